"""Every figure says what it shows: drawings, their tables and captions, of runs that are made up."""

import re
from itertools import product

import numpy as np
import pytest
from fake_runs import a_mask_run, a_run, the_one

from samtl.experiment.tables import read_images
from samtl.report import figures
from samtl.report.compare import compared, findings
from samtl.report.figures.confusion import percent
from samtl.report.style import looks, svg

MODELS = ("floor", "logreg", "mlp", "conv", "vit", "cnn")
HEADS = MODELS[1:-1]
UNTRAINED = {"untrained": True, "weights": "untrained (random:0)"}
CLASSES = tuple(f"Class{i}" for i in range(6))
PAYS = "fits that pay the pass back, against cnn"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Six models on two shares with two seeds."""
    out = tmp_path_factory.mktemp("whole")
    for name, share, seed in product(MODELS, (0.2, 0.5), (0, 1)):
        given = UNTRAINED if name in HEADS else {"seconds": {"total": 485.5}}
        a_run(out, name, seed, share, ids=150, classes=CLASSES, **given)
    return the_one(out)


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    out = tmp_path_factory.mktemp("masks")
    for shift, name in enumerate(("floor", "conv", "vit", "unet")):
        a_mask_run(out, name, shift=4 - shift)
    return the_one(out)


def every(comparison):
    kinds = (figures.training_curves, figures.by_share, figures.image_scores, figures.confusions)
    drawn = [drawing for draw in kinds for drawing in draw(comparison)]
    return {one.name: one for one in (*drawn, figures.costs(comparison, encoder_seconds=3000.0))}


@pytest.fixture(scope="module")
def drawn(whole, masks):
    return every(whole), every(masks)


def legend(drawing):
    return [text.get_text() for text in drawing.figure.legends[0].get_texts()]


def accuracies(comparison, model, n_test):
    runs = [run for run in comparison.models[model] if run.n_test == n_test]
    return [run.metrics["accuracy"].value for run in runs]


def test_every_drawing_has_a_caption_a_table_and_fits_its_paper(drawn):
    matrices = [f"confusions-{i}" for i in range(1, 5)]
    scores = [f"by-share-{name}" for name in ("iou", "dice", "f1", "pooled-iou")]
    assert [list(some) for some in drawn] == [
        ["training-curves", "by-share-accuracy", "by-share-macro-f1", *matrices, "costs"],
        ["training-curves", *scores, "image-scores", "confusions", "costs"],
    ]
    for drawing in (d for some in drawn for d in some.values()):
        assert re.fullmatch(r"[a-z0-9-]+", drawing.name)
        assert drawing.caption.endswith(".")
        assert "  " not in drawing.caption
        assert drawing.rows
        assert all(list(row) == drawing.header for row in drawing.rows)
        within = drawing.figure.get_tightbbox()
        assert min(within.min) >= -0.02
        assert (within.max <= drawing.figure.get_size_inches() + 0.02).all()


def test_models_keep_their_colour_and_weights_are_named_where_untrained(drawn, whole):
    colour = looks(whole.models)["cnn"].colour
    for name, drawing in drawn[0].items():
        concerned, image = (
            bool({r["model"] for r in drawing.rows} & set(HEADS)),
            svg(drawing.figure),
        )
        for text in (drawing.note, image):
            assert ("untrained" in text.lower()) == concerned, name
        assert name.startswith("confusions") or colour in image, name
    assert not any(drawing.note for drawing in drawn[1].values())


def test_class_and_model_names_are_text_and_no_formulas(tmp_path):
    classes = ("$\\frac{$", "$x^2$", "<b>&", "d", "e")
    a_run(tmp_path, classes=classes, params={"dollar": "$\\frac{"})
    a_run(tmp_path, classes=classes)
    drawing = every(the_one(tmp_path))["confusions-1"]
    assert all(f">{name}<" in svg(drawing.figure) for name in ("$\\frac{$", "$x^2$"))


def test_training_curves_are_the_runs_own(drawn, tmp_path):
    drawing = drawn[0]["training-curves"]
    assert "floor and logreg" in drawing.caption  # no epochs
    shown = [row for row in drawing.rows if row["model"] == "vit"]
    assert [row["validation loss"] for row in shown] == pytest.approx([2.5, 1.25, 2.5 / 3])
    assert [row["epoch"] for row in shown if row["kept"]] == [2]
    assert len(drawing.figure.axes) == 4
    a_run(tmp_path, "mlp")
    a_run(tmp_path, "vit", warm_start="earlier")
    (drawing,) = figures.training_curves(the_one(tmp_path))
    assert legend(drawing) == ["mlp", "vit (warm)"]
    a_run(tmp_path / "other", "logreg")
    assert figures.training_curves(the_one(tmp_path / "other")) == []


def test_by_share_shows_means_bands_and_every_seed(whole, drawn):
    drawing = drawn[0]["by-share-accuracy"]
    (row,) = (r for r in drawing.rows if (r["model"], r["training share"]) == ("mlp", 0.5))
    values = accuracies(whole, "mlp", 75)
    assert row["repeats"] == len(values) == 2
    expected = (np.mean(values), np.std(values, ddof=1), np.mean(values) - 0.02)
    assert (row["mean"], row["deviation"], row["low"]) == pytest.approx(expected)
    dots = [x for x in drawing.figure.axes[0].lines if x.get_linestyle() == "None"]
    assert sum(len(line.get_ydata()) for line in dots) == 6 * 2 * 2
    last = {r["model"]: r["mean"] for r in drawing.rows if r["training share"] == 0.8}
    assert legend(drawing) == sorted(last, key=last.get, reverse=True)
    assert set(last) == set(MODELS)


def test_one_share_is_drawn_as_rows(drawn):
    drawing = drawn[1]["by-share-iou"]
    names = [label.get_text() for label in drawing.figure.axes[0].get_yticklabels()]
    means = {row["model"]: row["mean"] for row in drawing.rows}
    assert names == sorted(means, key=means.get) == ["floor", "conv", "vit", "unet"]
    assert "75 %" in drawing.caption


def test_label_fractions_are_a_curve_that_ends_in_all_labels(tmp_path):
    for left_out in (0, 400, 796):
        a_run(tmp_path, "vit", ids=1000, left_out=left_out)
    found = {drawing.name: drawing for drawing in figures.by_share(the_one(tmp_path))}
    assert {"by-share-accuracy-holdout", "by-share-macro-f1-label"} <= {*found}
    drawing = found["by-share-accuracy-label"]
    shares = [row["training share"] for row in drawing.rows if row["model"] == "vit"]
    assert sorted(shares) == [0.004, 0.4, 0.8]
    assert drawing.figure.axes[0].get_xscale() == "log"


def test_the_floor_beside_the_heads_is_drawn_if_none_was_run(tmp_path):
    a_run(tmp_path, "mlp")
    comparison = the_one(tmp_path)
    drawing = figures.by_share(comparison)[0]
    assert [row["mean"] for row in drawing.rows if row["model"] == "floor"] == [0.3]
    assert "most frequent class" in drawing.caption
    assert [d.rows[0]["model"] for d in figures.confusions(comparison)] == ["mlp"]
    assert figures.scores_table(comparison).rows[0]["accuracy of the floor"] == 0.3


def test_image_scores_are_of_every_held_out_image(masks, drawn):
    drawing = drawn[1]["image-scores"]
    assert len(drawing.rows) == 4 * 6
    for key, axes in zip(("accuracy", "dice", "f1"), drawing.figure.axes, strict=True):
        medians = {f"{np.median(read_images(run).scores[key]):.3f}" for run in masks.runs}
        assert {text.get_text() for text in axes.texts} == medians


def test_confusions_add_up_seeds_of_the_best_three_and_the_floor(whole, drawn):
    drawings = [drawn[0][f"confusions-{i}"] for i in range(1, 5)]
    models = [drawing.rows[0]["model"] for drawing in drawings]
    score = {model: np.mean(accuracies(whole, model, 30)) for model in MODELS[1:]}
    assert models == [*sorted(score, key=score.get, reverse=True)[:3], "floor"]
    total = sum(run.confusion for run in whole.models[models[0]] if run.n_test == 30)
    assert [row["samples"] for row in drawings[0].rows] == total.ravel().tolist()
    parts = np.reshape([row["% of true"] for row in drawings[0].rows], total.shape)
    np.testing.assert_allclose(parts.sum(1), 100)


def test_of_many_classes_the_most_confused_are_shown(tmp_path):
    classes = tuple(f"a_rather_long_class_name_{i}" for i in range(200))
    a_run(tmp_path, "mlp", ids=1000, classes=classes)
    (drawing,) = figures.confusions(the_one(tmp_path))
    labels = drawing.figure.axes[0].get_yticklabels()
    assert len(labels) == 40
    boxes = [label.get_window_extent() for label in labels]
    assert not [i for i in range(1, 40) if boxes[i].overlaps(boxes[i - 1])]
    assert sum(row["samples"] for row in drawing.rows) == 200


def test_few_is_not_none_and_nearly_all_is_not_all():
    shares = (0.001, 0.005, 0.012, 0.994, 0.9951, 1.0)
    assert [*map(percent, shares)] == ["<1", "<1", "1", "99", ">99", "100"]


def test_costs_tell_when_the_pass_has_paid(whole, drawn):
    drawing = drawn[0]["costs"]
    table = {row["model"]: row for row in drawing.rows}
    found = [table["vit"][key] for key in ("seconds, median", "samples/s", "peak memory, MiB")]
    assert found == [95.5, 123.4, 512]  # 30 s a letter, 5 s more, and the seed's
    # A fit saves 390 s and 300 s, and the pass takes 3,000.
    assert [table[name][PAYS] for name in ("vit", "logreg", "cnn")] == [8, 10, None]
    assert "50 min" in drawing.caption
    unknown = figures.costs(whole)
    assert "not known" in unknown.caption
    assert {row[PAYS] for row in unknown.rows} == {"not known", None}


def test_costs_include_the_fits_that_a_warm_one_started_from(tmp_path):
    first = a_run(tmp_path, "vit", left_out=40)
    a_run(tmp_path, "vit")
    a_run(tmp_path, "vit", 1, warm_start=f"../{first.name}")
    a_run(tmp_path, "cnn")
    table = figures.costs(the_one(tmp_path), 3000.0).rows
    found = [
        tuple(row[key] for key in ("model", "start", "seconds, median", PAYS)) for row in table
    ]
    cold, warm = (("vit", "from scratch", 95, "never"), ("vit", "warm", 96 + 95, "never"))
    assert found == [cold, warm, ("cnn", "from scratch", 95, None)]


def test_scores_stand_beside_their_floor(whole):
    found = figures.scores_table(whole).rows
    assert "untrained" in figures.scores_table(whole).note
    assert len(found) == 7 * 2  # the floor's companion among them
    floor = {r["training share"]: r["accuracy"] for r in found if r["model"] == "floor"}
    for row in found:
        assert row["accuracy, low"] <= row["accuracy"] <= row["accuracy, high"]
        if not row["model"].startswith("floor"):
            assert row["accuracy of the floor"] == floor[row["training share"]]
        if row["model"] in HEADS:
            assert row["encoder and weights"] == "tiny, untrained (random:0)"


def test_every_two_models_are_compared_on_the_splits_that_both_have(whole, tmp_path):
    found = compared(whole)
    table = figures.differences(whole, found).rows
    assert len(table) == 2 * 15
    for row in table:
        n_test = round(150 * (1 - row["training share"]))
        a, b = (np.mean(accuracies(whole, row[key], n_test)) for key in ("model", "other model"))
        assert row["difference"] == pytest.approx(100 * (a - b))
        assert row["difference"] >= 0
        assert row["seeds"] == 2
    assert len(findings(whole, found)) == 5
    assert {*findings(whole, found)} <= {row["in words"] for row in table}
    for name, seeds in (("mlp", (0, 1)), ("vit", (1, 2)), ("cnn", (3,))):
        for seed in seeds:
            a_run(tmp_path, name, seed)
    (one,) = compared(the_one(tmp_path))
    assert ({one["model"], one["other model"]}, one["seeds"]) == ({"mlp", "vit"}, 1)


def test_provenance_names_sources_splits_runs_and_versions(whole):
    tables = {table.name: table.rows for table in figures.provenance(whole)}
    assert [*tables] == ["sources", "splits", "runs", "versions"]
    sources = {row["models"]: row for row in tables["sources"]}
    assert sources["conv, vit"]["snapshot"] == "5" * 64
    assert len(tables["splits"]) == 2 * 2
    assert {row["run"] for row in tables["runs"]} == {run.path.name for run in whole.runs}
    assert {row["library"]: row["runs"] for row in tables["versions"]}["numpy"] == 24
    assert str(whole.runs[0].path.parent) not in str(tables["runs"])
