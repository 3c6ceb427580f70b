"""Every figure says what it shows: drawings, their tables and captions, of runs that are made up."""

import csv
import io
import re

import numpy as np
import pytest
from fake_runs import a_mask_run, a_run
from hypothesis import given
from hypothesis import strategies as st

from samtl.experiment.tables import read_images
from samtl.report import figures
from samtl.report.compare import compared, findings
from samtl.report.figures.confusion import percent
from samtl.report.figures.costs import payback
from samtl.report.load import read_comparisons
from samtl.report.style import looks, svg

HEADS = ("logreg", "mlp", "conv", "vit")
SHARES = (0.2, 0.5, 0.8)
UNTRAINED = {"untrained": True, "weights": "untrained (random:0)"}
CLASSES = tuple(f"Class{i}" for i in range(6))


def the_one(*sources):
    (comparison,) = read_comparisons(sources)
    return comparison


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    for name in ("floor", *HEADS, "cnn"):
        for share in SHARES:
            for seed in (0, 1):
                given = UNTRAINED if name in HEADS else {}
                a_run(out, name, seed, share, ids=300, classes=CLASSES, **given)
    return the_one(out)


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    out = tmp_path_factory.mktemp("masks")
    for shift, name in enumerate(("floor", "conv", "vit", "unet")):
        a_mask_run(out, name, shift=4 - shift)
    return the_one(out)


def every(comparison):
    return [
        *figures.training_curves(comparison),
        *figures.by_share(comparison),
        *figures.image_scores(comparison),
        *figures.confusions(comparison),
        *figures.costs(comparison, encoder_seconds=3000.0),
    ]


@pytest.fixture(scope="module")
def drawn(whole, masks):
    return every(whole), every(masks)


def rows(table):
    return [dict(zip(table.header, row, strict=True)) for row in table.rows]


def test_what_is_drawn(drawn):
    matrices = [f"confusions-{i}" for i in range(1, 5)]
    scores = [f"by-share-{name}" for name in ("iou", "dice", "f1", "pooled-iou")]
    assert [[d.name for d in some] for some in drawn] == [
        ["training-curves", "by-share-accuracy", "by-share-macro-f1", *matrices, "costs"],
        ["training-curves", *scores, "image-scores", "confusions", "costs"],
    ]


def test_every_drawing_has_a_caption_a_table_and_fits_its_paper(drawn):
    for drawing in (d for some in drawn for d in some):
        assert re.fullmatch(r"[a-z0-9-]+", drawing.name)
        assert drawing.caption.endswith(".")
        assert drawing.rows
        assert all(len(row) == len(drawing.header) for row in drawing.rows)
        csv.writer(io.StringIO()).writerows(drawing.rows)
        within = drawing.figure.get_tightbbox()
        width, height = drawing.figure.get_size_inches()
        assert -0.02 <= within.x0 < within.x1 <= width + 0.02
        assert -0.02 <= within.y0 < within.y1 <= height + 0.02


def test_untrained_weights_are_named_wherever_figures_depend_on_them(drawn, whole, tmp_path):
    for drawing in drawn[0]:
        concerned = bool({row[0] for row in drawing.rows} & set(HEADS))
        for text in (drawing.caption, svg(drawing.figure)):
            assert ("untrained" in text.lower()) == concerned, drawing.name
    assert "untrained" in figures.scores_table(whole).caption.lower()
    for text in (d.caption for d in drawn[1]):
        assert "untrained" not in text.lower()
    a_run(tmp_path, untrained=True, weights="random:3")  # which does not say so itself
    assert "untrained random:3" in figures.training_curves(the_one(tmp_path))[0].caption


def test_class_and_model_names_are_text_and_no_formulas(tmp_path):
    classes = ("$\\frac{$", "$x^2$", "<b>&", "d", "e")
    a_run(tmp_path, classes=classes, params={"dollar": "$\\frac{"})
    a_run(tmp_path, classes=classes)
    (drawing, *_) = figures.confusions(the_one(tmp_path))
    assert all(f">{name}<" in svg(drawing.figure) for name in ("$\\frac{$", "$x^2$"))
    every(the_one(tmp_path))


def test_training_curves_are_the_runs_own(whole, tmp_path):
    (drawing,) = figures.training_curves(whole)
    assert "floor and logreg" in drawing.caption  # no epochs
    shown = [row for row in rows(drawing) if row["model"] == "vit"]
    assert [row["validation loss"] for row in shown] == [2.5, 1.25, 0.83333]
    assert [row["epoch"] for row in shown if row["kept"]] == [2]
    assert len(drawing.figure.axes) == 4
    a_run(tmp_path, "mlp")
    a_run(tmp_path, "vit", warm_start="earlier")
    (drawing,) = figures.training_curves(the_one(tmp_path))
    legend = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert legend == ["mlp", "vit (warm)"]
    a_run(tmp_path / "other", "logreg")
    assert figures.training_curves(the_one(tmp_path / "other")) == []


def test_by_share_shows_means_bands_and_every_seed(whole):
    drawing = figures.by_share(whole)[0]
    (row,) = (r for r in rows(drawing) if (r["model"], r["training share"]) == ("mlp", 0.5))
    scores = [run.metrics["accuracy"] for run in whole.models["mlp"] if run.n_test == 150]
    assert row["repeats"] == len(scores) == 2
    values = [score.value for score in scores]
    assert row["mean"] == pytest.approx(np.mean(values), abs=1e-4)
    assert row["deviation"] == pytest.approx(np.std(values, ddof=1), abs=1e-4)
    assert row["low"] == pytest.approx(np.mean(values) - 0.02, abs=1e-4)
    axes = drawing.figure.axes[0]
    dots = [line for line in axes.lines if line.get_linestyle() == "None"]
    assert sum(len(line.get_ydata()) for line in dots) == 6 * 3 * 2
    legend = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert set(legend) == set(whole.models)
    last = {r["model"]: r["mean"] for r in rows(drawing) if r["training share"] == 0.8}
    assert legend == sorted(last, key=last.get, reverse=True)


def test_one_share_is_drawn_as_rows(masks):
    drawing = figures.by_share(masks)[0]
    names = [label.get_text() for label in drawing.figure.axes[0].get_yticklabels()]
    means = {row["model"]: row["mean"] for row in rows(drawing)}
    assert names == sorted(means, key=means.get) == ["floor", "conv", "vit", "unet"]
    assert "75 %" in drawing.caption


def test_label_fractions_are_a_curve_that_ends_in_all_labels(tmp_path):
    for left_out in (0, 400, 760, 796):
        a_run(tmp_path, "vit", ids=1000, left_out=left_out)
    names = [drawing.name for drawing in figures.by_share(the_one(tmp_path))]
    assert names[::2] == ["by-share-accuracy-holdout", "by-share-accuracy-label"]
    label = figures.by_share(the_one(tmp_path))[2]
    shares = [row["training share"] for row in rows(label) if row["model"] == "vit"]
    assert sorted(shares) == [0.004, 0.04, 0.4, 0.8]
    assert label.figure.axes[0].get_xscale() == "log"


def test_the_floor_beside_the_heads_is_drawn_if_none_was_run(tmp_path):
    for share in (0.2, 0.5):
        a_run(tmp_path, "mlp", 0, share)
    comparison = the_one(tmp_path)
    drawing = figures.by_share(comparison)[0]
    assert [row["mean"] for row in rows(drawing) if row["model"] == "floor"] == [0.3, 0.3]
    assert "most frequent class" in drawing.caption
    assert [d.rows[0][0] for d in figures.confusions(comparison)] == ["mlp"]
    assert "mlp" in figures.scores_table(comparison).rows[0]


def test_image_scores_are_of_every_held_out_image(masks, whole):
    (drawing,) = figures.image_scores(masks)
    assert len(drawing.rows) == 4 * 6
    for key, axes in zip(("accuracy", "dice", "f1"), drawing.figure.axes, strict=True):
        medians = {f"{np.median(read_images(run).scores[key]):.3f}" for run in masks.runs}
        assert {text.get_text() for text in axes.texts} == medians
    assert svg(drawing.figure) == svg(figures.image_scores(masks)[0].figure)
    assert figures.image_scores(whole) == []


def test_confusions_add_up_seeds_of_the_best_three_and_the_floor(whole):
    drawings = figures.confusions(whole)
    models = [drawing.rows[0][0] for drawing in drawings]
    runs = {m: [run for run in some if run.n_test == 60] for m, some in whole.models.items()}
    score = {m: np.mean([r.metrics["accuracy"].value for r in some]) for m, some in runs.items()}
    floor = score.pop("floor")
    assert floor < min(score.values())
    assert models == [*sorted(score, key=score.get, reverse=True)[:3], "floor"]
    total = sum(run.confusion for run in runs[models[0]])
    counts = [row["samples"] for row in rows(drawings[0])]
    assert np.reshape(counts, total.shape).tolist() == total.tolist()
    parts = np.reshape([row["% of true"] for row in rows(drawings[0])], total.shape)
    np.testing.assert_allclose(parts.sum(1), 100, atol=0.05)


def test_of_many_classes_the_most_confused_are_shown(tmp_path):
    classes = tuple(f"a_rather_long_class_name_{i}" for i in range(200))
    a_run(tmp_path, "mlp", ids=1000, classes=classes)
    (drawing,) = figures.confusions(the_one(tmp_path))
    labels = drawing.figure.axes[0].get_yticklabels()
    assert len(labels) == 40
    boxes = [label.get_window_extent() for label in labels]
    assert not [i for i in range(1, 40) if boxes[i].overlaps(boxes[i - 1])]
    assert sum(row["samples"] for row in rows(drawing)) == 200


def test_few_is_not_none_and_nearly_all_is_not_all():
    shares = (0.001, 0.005, 0.012, 0.994, 0.9951, 1.0)
    assert [*map(percent, shares)] == ["<1", "<1", "1", "99", ">99", "100"]


def test_costs_tell_when_the_pass_has_paid(whole):
    (drawing,) = figures.costs(whole, encoder_seconds=100.0)
    table = {row["model"]: row for row in rows(drawing)}
    assert table["vit"]["seconds, median"] == 95.5  # 30 s a letter, 5 s more, and the seed's
    assert table["vit"]["samples/s"] == 123.4
    assert table["vit"]["peak memory, MiB"] == 512
    pays = "fits that pay the pass back, against cnn"
    assert table["logreg"][pays] == "never"
    assert table["cnn"][pays] is None
    assert "25 min" in figures.costs(whole, encoder_seconds=1500.0)[0].caption
    assert "not known" in figures.costs(whole)[0].caption


def test_costs_include_the_fits_that_a_warm_one_started_from(tmp_path):
    first = a_run(tmp_path, "vit", left_out=40)
    a_run(tmp_path, "vit")
    a_run(tmp_path, "vit", 1, warm_start=f"../{first.name}")
    a_run(tmp_path, "cnn")
    table = rows(figures.costs(the_one(tmp_path))[0])
    assert [(row["model"], row["start"], row["seconds, median"]) for row in table] == [
        ("vit", "from scratch", 95),
        ("vit", "warm", 96 + 95),
        ("cnn", "from scratch", 95),
    ]


@given(st.floats(1, 1e6), st.floats(1, 1e5), st.floats(1, 1e5))
def test_the_pass_has_paid_when_all_heads_together_are_cheaper(encoder, pixel, head):
    fits = payback(encoder, pixel, head)
    if fits is None:
        assert head >= pixel
        return
    slack = 1e-6 * (encoder + fits * pixel)
    assert encoder + fits * head <= fits * pixel + slack
    assert encoder + (fits - 1) * head >= (fits - 1) * pixel - slack


def test_scores_stand_beside_their_floor(whole):
    found = rows(figures.scores_table(whole))
    assert len(found) == 7 * 3  # the floor's companion among them
    floor = {r["training share"]: r["accuracy"] for r in found if r["model"] == "floor"}
    for row in found:
        if not row["model"].startswith("floor"):
            assert row["accuracy of the floor"] == floor[row["training share"]]
            low, high = map(float, row["accuracy, 95 % interval"].split(" to "))
            assert low <= row["accuracy"] <= high
        if row["model"] in HEADS:
            assert row["encoder and weights"] == "tiny, untrained (random:0)"


def test_every_two_models_are_compared_on_the_splits_that_both_have(whole, tmp_path):
    found = compared(whole)
    table = rows(figures.differences(whole, found))
    assert len(table) == 3 * 15
    for row in table:
        runs = {m: [r for r in whole.models[m] if r.split.share == 0.5] for m in whole.models}
        if row["training share"] == 0.5:
            a, b = (
                np.mean([r.metrics["accuracy"].value for r in runs[row[key]]])
                for key in ("model", "other model")
            )
            assert row["difference"] == pytest.approx(100 * (a - b), abs=0.01)
            assert row["difference"] >= 0
            assert (row["seeds"], row["held-out samples"]) == (2, pytest.approx(225, abs=40))
    assert len(findings(whole, found)) == 5
    assert all(text in {row["in words"] for row in table} for text in findings(whole, found))
    for name, seeds in (("mlp", (0, 1)), ("vit", (1, 2)), ("cnn", (3,))):
        for seed in seeds:
            a_run(tmp_path, name, seed)
    (one,) = compared(the_one(tmp_path))
    assert ({one.better.model, one.other.model}, one.difference.n_seeds) == ({"mlp", "vit"}, 1)


def test_provenance_names_sources_splits_runs_and_versions(whole):
    tables = {table.name: table for table in figures.provenance(whole)}
    assert [*tables] == ["sources", "splits", "runs", "versions"]
    sources = {row["models"]: row for row in rows(tables["sources"])}
    assert sources["conv, vit"]["snapshot"] == "5" * 64
    assert len(tables["splits"].rows) == 3 * 2
    assert {row["run"] for row in rows(tables["runs"])} == {run.path.name for run in whole.runs}
    assert {row["library"]: row["runs"] for row in rows(tables["versions"])}["numpy"] == 36
    assert str(whole.runs[0].path.parent) not in str(tables["runs"].rows)


def test_models_keep_their_colour_in_every_figure(whole, drawn):
    colour = looks(whole.models)["cnn"].colour
    for drawing in drawn[0]:
        if "cnn" in {row[0] for row in drawing.rows} and "confusions" not in drawing.name:
            assert colour in svg(drawing.figure)
