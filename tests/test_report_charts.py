"""Every figure says what it shows: of studies made up here, the drawings, their tables and their words."""

import csv
import io
import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samtl.metrics import classification as metrics
from samtl.metrics import segmentation as pixel_metrics
from samtl.metrics.classification import Score
from samtl.report import figures as charts
from samtl.report.content import ImageScores, Study, Trial
from samtl.report.figures.confusions import _percent
from samtl.report.figures.costs import payback
from samtl.report.figures.groups import at_share, cells
from samtl.report.figures.shares import spaced
from samtl.report.style import looks, png, svg

CLASSES = tuple(f"Class{i}" for i in range(6))
HEADS = {"logreg": "pooled", "mlp": "pooled", "conv": "grid", "vit": "grid"}
SHARES = tuple(i / 10 for i in range(1, 10))
SKILL = {"floor": 0.7, "logreg": 0.82, "mlp": 0.83, "conv": 0.87, "vit": 0.88, "cnn": 0.95}
SKILL |= {"unet": 0.93, "vgg19": 0.9}
TOTAL = 2000


def curves(epochs, skill, random):
    x = np.linspace(0.1, 1, epochs)
    noise = random.normal(0, 0.01, (2, epochs))
    return {
        "epoch": list(range(1, epochs + 1)),
        "train_loss": list(2 * np.exp(-3 * x * skill)),
        "train_accuracy": list(skill * np.sqrt(x)),
        "validation_loss": list(2 * np.exp(-2.5 * x * skill) + abs(noise[0])),
        "validation_accuracy": list(skill * np.sqrt(x) - abs(noise[1])),
    }


def trial(name, share=0.2, seed=0, segments=False, left_out=0, **changes):
    """A trial with made-up figures that hang together; `share` is the held-out one."""
    random = np.random.default_rng([len(name), ord(name[0]), round(share * 100), seed, left_out])
    total = 90 if segments else TOTAL
    n_test = round(share * total)
    learnt = total - n_test - left_out
    skill = SKILL[name] - 0.25 * share - 0.02 * (left_out > 0) + random.normal(0, 0.006)
    images = None
    if segments:
        base = random.integers(1, 200, (n_test, 2, 2)) * [[[9, 1], [1, 3]]]
        confusion = base.sum(0)
        scores = pixel_metrics.bootstrap(base, resamples=50)
        names = tuple(f"tile_{i}.jpg" for i in range(n_test))
        images = ImageScores(names, pixel_metrics.per_image(base), tuple(map(Path, names)))
    else:
        truth = random.integers(0, len(CLASSES), n_test)
        wrong = random.random(n_test) > skill
        guess = np.where(wrong, random.integers(0, len(CLASSES), n_test), truth)
        confusion = metrics.confusion(truth, guess, len(CLASSES))
        scores = {
            key: Score(value, value - 0.015, value + 0.015)
            for key, value in (
                ("accuracy", float(metrics.accuracy(confusion))),
                ("macro_f1", float(metrics.macro_f1(confusion))),
            )
        }
    head = name in HEADS
    epochs = name not in ("floor", "logreg", "vgg19")
    floor = {key: Score(0.5, 0.45, 0.55) for key in scores}
    made = {
        "path": Path(f"runs/{name}-{share}-s{seed}-{left_out}"),
        "kind": "head" if head else "baseline",
        "name": name,
        "model": name,
        "features": ("dense" if segments else HEADS[name]) if head else "pixels",
        "seed": seed,
        "split": {
            "name": "label" if left_out else "holdout",
            "share": share,
            "seed": seed,
            "digest": f"digest of {share}, {seed}, {left_out}",
        },
        "n_train": learnt - learnt // 5,
        "n_validation": learnt // 5,
        "n_test": n_test,
        "n_left_out": left_out,
        "metrics": scores,
        "floor": None if name == "floor" else floor,
        "also": {"knn": floor} if name == "floor" else {},
        "confusion": confusion,
        "curves": curves(12 + 3 * len(name), skill, random) if epochs else {},
        "seconds": {"read": 1.0, "fit": 30.0 * len(name), "total": 30.0 * len(name) + 5 + seed},
        "training": {"best_epoch": 10, "samples_per_second": 123.4} if epochs else {},
        "peak_memory": 2**29,
        "fingerprint": "f" * 64 if head else "",
        "store": "eurosat" if head else "",
        "dataset": "eurosat",
        "encoder": "tiny" if head else "",
        "weights": "untrained (random:0)" if head else "",
        "untrained": head,
        "note": "",
        "warm_start": "",
        "config": {
            "digest": f"config-{name}",
            "floor": "majority",
            "versions": {"numpy": "2.4", "torch": "2.13"},
            "store": {"snapshot": "5" * 64} if head else None,
        },
        "predictions": None,
        "images": images,
    }
    return Trial(**{**made, **changes})


def study(names=("floor", *HEADS, "cnn"), shares=SHARES, seeds=(0, 1, 2), segments=False, more=()):
    trials = [trial(n, s, seed, segments) for n in names for s in shares for seed in seeds]
    classes = ("background", "road") if segments else CLASSES
    task = "segmentation" if segments else "classification"
    return Study("eurosat", task, classes, (*trials, *more))


SEGMENTING = ("floor", "conv", "vit", "unet")


@pytest.fixture(scope="module")
def whole():
    return study()


@pytest.fixture(scope="module")
def roads():
    return study(SEGMENTING, (0.2, 0.5, 0.8), segments=True)


def every(of):
    return [
        *charts.training_curves(of),
        *charts.by_share(of),
        *charts.image_scores(of),
        *charts.confusions(of),
        *charts.costs(of, encoder_seconds=3000.0),
    ]


@pytest.fixture(scope="module")
def whole_drawn(whole):
    return every(whole)


@pytest.fixture(scope="module")
def roads_drawn(roads):
    return every(roads)


@pytest.fixture(scope="module")
def drawings(whole_drawn, roads_drawn):
    return [*whole_drawn, *roads_drawn]


def rows(table):
    return [dict(zip(table.header, row, strict=True)) for row in table.rows]


def test_what_is_drawn(whole_drawn, roads_drawn):
    assert [d.name for d in whole_drawn] == [
        "training-curves",
        "by-share-accuracy",
        "by-share-macro-f1",
        *(f"confusions-{i}" for i in range(1, 5)),
        "costs",
    ]
    assert [d.name for d in roads_drawn] == [
        "training-curves",
        *(f"by-share-{metric}" for metric in ("iou", "dice", "f1", "pooled-iou")),
        "image-scores",
        "confusions",
        "costs",
    ]


def test_every_drawing_has_words_a_table_and_fits_its_paper(drawings):
    for drawing in drawings:
        assert re.fullmatch(r"[a-z0-9-]+", drawing.name)
        assert drawing.title
        assert drawing.caption.endswith(".")
        assert drawing.alt.endswith(".")
        assert drawing.table.rows
        assert all(len(row) == len(drawing.table.header) for row in drawing.table.rows)
        csv.writer(io.StringIO()).writerows(drawing.table.rows)
        within = drawing.figure.get_tightbbox()
        assert within.x0 >= -0.02
        assert within.x1 <= drawing.figure.get_figwidth() + 0.02
        assert within.y0 >= -0.02
        assert within.y1 <= drawing.figure.get_figheight() + 0.02


def test_untrained_weights_are_named_wherever_figures_hang_on_them(drawings, whole):
    for drawing in drawings:
        models = {row[0] for row in drawing.table.rows}
        concerned = bool(models & set(HEADS))
        for words in (drawing.caption, drawing.alt, drawing.table.caption, svg(drawing.figure)):
            assert ("untrained" in words.lower()) == concerned, drawing.name
    assert "untrained" in charts.scores_table(whole).caption.lower()


def test_trained_weights_are_not_called_untrained():
    of = study(("floor", "cnn"), (0.2,))
    texts = [text for d in every(of) for text in (d.caption, d.alt, svg(d.figure))]
    assert not [text for text in texts if "untrained" in text.lower()]


def test_weights_that_are_untrained_without_saying_so_are_marked():
    of = Study("d", "classification", CLASSES, (trial("mlp", weights="random:3"),))
    assert "untrained random:3" in charts.training_curves(of)[0].caption


def test_training_curves_are_the_runs_own_and_name_those_without(whole):
    (drawing,) = charts.training_curves(whole)
    assert "no epochs: floor and logreg" in drawing.caption
    assert "seed 0" in drawing.caption
    shown = [row for row in rows(drawing.table) if row["model"] == "vit"]
    chosen = next(t for t in whole.trials if t.model == "vit" and t.share == 0.8 and t.seed == 0)
    losses = [row["validation loss"] for row in shown]
    np.testing.assert_allclose(losses, chosen.curves["validation_loss"], rtol=1e-4)
    assert [row["epoch"] for row in shown if row["kept"]] == [10]
    panels = drawing.figure.axes
    assert len(panels) == 4
    np.testing.assert_allclose(panels[1].lines[-2].get_ydata(), whole_losses(whole, "cnn"))


def test_training_that_went_on_from_other_weights_is_marked(whole):
    """Such a curve begins where those weights were, which without a word would look like quick learning."""
    mixed = Study(
        "eurosat", "classification", CLASSES, (trial("mlp"), trial("vit", warm_start="earlier"))
    )
    (drawing,) = charts.training_curves(mixed)
    assert "marked warm" in drawing.caption
    legend = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert legend == ["mlp", "vit (warm)"]
    assert {row["model"] for row in rows(drawing.table)} == {"mlp", "vit (warm)"}
    assert "vit (warm) validation loss" in drawing.alt
    assert "warm" not in charts.training_curves(whole)[0].caption


def whole_losses(of, model):
    return next(
        t.curves["validation_loss"]
        for t in of.trials
        if t.model == model and t.share == 0.8 and t.seed == 0
    )


def test_the_split_nearest_to_the_share_is_taken(whole):
    assert {round(cell.share, 3) for cell in at_share(whole, 0.2)} == {0.8}
    assert {round(cell.share, 3) for cell in at_share(whole, 0.52)} == {0.5}
    fewer = study(
        more=[trial("vit", 0.2, left_out=1592)]
    )  # held out is a fifth, learnt from little
    assert {cell.kind[0] for cell in at_share(fewer, 0.2)} == {"holdout"}


def test_no_epochs_no_curves():
    assert charts.training_curves(study(("floor", "logreg"), (0.2,))) == []


def test_an_empty_study_draws_nothing():
    empty = Study("d", "classification", CLASSES, ())
    assert every(empty) == []
    assert charts.scores_table(empty).rows == ()
    assert charts.provenance(empty) == []


def test_by_share_gives_means_bands_and_every_seed(whole):
    drawing = charts.by_share(whole)[0]
    row = next(r for r in rows(drawing.table) if r["model"] == "mlp" and r["training share"] == 0.7)
    scores = [
        t.metrics["accuracy"]
        for t in whole.trials
        if t.model == "mlp" and abs(t.share - 0.7) < 0.01
    ]
    assert row["repeats"] == len(scores) == 3
    assert row["mean"] == pytest.approx(np.mean([s.value for s in scores]), abs=1e-4)
    assert row["deviation"] == pytest.approx(np.std([s.value for s in scores], ddof=1), abs=1e-4)
    assert row["low"] == pytest.approx(np.mean([s.low for s in scores]), abs=1e-4)
    assert row["high"] == pytest.approx(np.mean([s.high for s in scores]), abs=1e-4)
    axes = drawing.figure.axes[0]
    dots = [line for line in axes.lines if line.get_linestyle() == "None"]
    assert sum(len(line.get_ydata()) for line in dots) == 6 * 9 * 3
    assert "bootstrap" in drawing.caption


def test_lines_are_named_at_their_ends_without_overlap(whole, whole_drawn, roads, roads_drawn):
    for of, drawn in ((whole, whole_drawn), (roads, roads_drawn)):
        for drawing in (d for d in drawn if d.name.startswith("by-share")):
            axes = drawing.figure.axes[0]
            boxes = [text.get_window_extent() for text in axes.texts]
            assert {text.get_text() for text in axes.texts} == set(of.models)
            assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=12).map(sorted),
    st.floats(0.001, 0.2),
)
def test_names_are_moved_apart_and_no_further_than_needed(wanted, gap):
    places = spaced(wanted, gap)
    assert all(b - a >= gap - 1e-9 for a, b in pairwise(places))
    assert np.mean(places) == pytest.approx(np.mean(wanted))
    if all(b - a >= gap for a, b in pairwise(wanted)):
        assert places == pytest.approx(wanted)


def test_one_share_stands_in_rows():
    drawing = charts.by_share(study(shares=(0.2,)))[0]
    axes = drawing.figure.axes[0]
    assert {label.get_text() for label in axes.get_yticklabels()} == set(study().models)
    means = {row["model"]: row["mean"] for row in rows(drawing.table)}
    order = [label.get_text() for label in axes.get_yticklabels()]
    assert order == sorted(order, key=means.__getitem__)
    assert "trained on 80 %" in drawing.caption.lower()


def test_label_fractions_are_a_curve_of_their_own_that_ends_in_all_labels():
    fewer = [trial("vit", seed=s, left_out=n) for s in (0, 1) for n in (800, 1520, 1592)]
    drawings = charts.by_share(study(("vit",), (0.2, 0.5), (0, 1), more=fewer))
    assert [d.name for d in drawings if "accuracy" in d.name] == [
        "by-share-accuracy-holdout",
        "by-share-accuracy-label",
    ]
    label = next(d for d in drawings if d.name == "by-share-accuracy-label")
    shares = [row["training share"] for row in rows(label.table) if row["model"] == "vit"]
    assert sorted(shares) == [0.004, 0.04, 0.4, 0.8]
    assert label.figure.axes[0].get_xscale() == "log"


def test_the_floor_beside_the_trials_is_drawn_where_none_was_run():
    of = study(("mlp", "vit"), (0.2, 0.5))
    drawing = charts.by_share(of)[0]
    floors = [row for row in rows(drawing.table) if row["model"] == "floor"]
    assert [(row["mean"], row["repeats"]) for row in floors] == [(0.5, 3), (0.5, 3)]
    assert "most frequent class" in drawing.caption
    assert all(cell.run == (cell.model != "floor") for cell in cells(of))
    assert len(charts.confusions(of)) == 2  # which a floor without a run has none of


def test_image_scores_are_of_every_held_out_image(roads):
    (drawing,) = charts.image_scores(roads)
    chosen = [t for t in roads.trials if abs(t.share - 0.8) < 0.01 and t.seed == 0]
    assert len(drawing.table.rows) == sum(len(t.images.ids) for t in chosen)
    for key, axes in zip(("accuracy", "dice", "f1"), drawing.figure.axes, strict=True):
        shown = {text.get_text() for text in axes.texts}
        assert shown == {f"{np.median(t.images.scores[key]):.3f}" for t in chosen}
    assert charts.image_scores(study(shares=(0.2,))) == []


def test_points_do_not_jump(roads, roads_drawn):
    first = next(d for d in roads_drawn if d.name == "image-scores")
    assert svg(first.figure) == svg(charts.image_scores(roads)[0].figure)


def test_confusions_add_up_seeds_of_the_best_three_and_the_floor(whole):
    drawings = charts.confusions(whole)
    assert [d.title.split()[-1] for d in drawings][-1] == "floor"
    score = {
        model: np.mean(
            [
                t.metrics["accuracy"].value
                for t in whole.trials
                if t.model == model and abs(t.share - 0.8) < 0.01
            ]
        )
        for model in whole.models
        if model != "floor"
    }
    best = sorted(score, key=score.__getitem__, reverse=True)[:3]
    assert [d.title.split()[-1] for d in drawings][:3] == best
    total = sum(
        t.confusion for t in whole.trials if t.model == best[0] and abs(t.share - 0.8) < 0.01
    )
    counts = [row["samples"] for row in rows(drawings[0].table)]
    np.testing.assert_array_equal(np.reshape(counts, total.shape), total)
    parts = np.reshape([row["% of true"] for row in rows(drawings[0].table)], total.shape)
    np.testing.assert_allclose(parts.sum(1), 100, atol=0.05)


def test_a_class_without_samples_has_no_percentages():
    empty = np.array([[3, 1], [0, 0]])
    one = trial("vit", segments=True, confusion=empty)
    (drawing,) = charts.confusions(Study("d", "segmentation", ("background", "road"), (one,)))
    assert [row["% of true"] for row in rows(drawing.table)] == [75, 25, 0, 0]


def test_few_is_not_none_and_nearly_all_is_not_all():
    assert list(map(_percent, (0.001, 0.005, 0.012, 0.994, 0.9951, 1.0))) == [
        *("<1", "<1", "1", "99", ">99", "100")
    ]


@pytest.mark.parametrize("n", [12, 45])
def test_many_classes_still_fit(n):
    classes = tuple(f"a_rather_long_class_name_{i}" for i in range(n))
    one = trial("mlp", confusion=np.eye(n, dtype=np.int64) * 7)
    (drawing,) = charts.confusions(Study("d", "classification", classes, (one,)))
    axes = drawing.figure.axes[0]
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert not [i for i in range(1, n) if boxes[i].overlaps(boxes[i - 1])]
    assert axes.get_window_extent().width > 0.3 * drawing.figure.get_window_extent().width


def test_costs_tell_when_the_pass_has_paid(whole):
    (drawing,) = charts.costs(whole, encoder_seconds=100.0)
    table = {row["model"]: row for row in rows(drawing.table)}
    assert table["vit"]["seconds, median"] == 96  # 30 s a letter, 5 s more, and the seed's
    assert table["vit"]["samples/s"] == 123.4
    assert table["vit"]["peak memory, MiB"] == 512
    pays = "fits that pay the pass back, against cnn"
    assert table["logreg"][pays] == "never"
    assert table["cnn"][pays] is None
    assert "25 min" in charts.costs(whole, encoder_seconds=1500.0)[0].caption
    assert "not known" in charts.costs(whole)[0].caption


def test_costs_count_the_fits_that_a_warm_one_went_on_from():
    first = trial("vit", left_out=800)
    warm = trial("vit", seed=1, warm_start=f"../{first.path.name}")
    cold = trial("vit", seed=0)
    of = Study("d", "classification", CLASSES, (first, cold, warm, trial("cnn")))
    table = rows(charts.costs(of)[0].table)
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
    table = charts.scores_table(whole)
    found = rows(table)
    assert len(found) == 7 * 9  # the floor's companion among them
    assert {row["model"] for row in found} == {*whole.models, "floor: knn"}
    for row in found:
        if row["reads"] != "pixels":
            assert "untrained" in row["encoder and weights"]
        if not row["model"].startswith("floor"):
            same = next(
                r
                for r in found
                if r["model"] == "floor" and r["training share"] == row["training share"]
            )
            assert row["accuracy of the floor"] == same["accuracy"]
            low, high = map(float, row["accuracy, 95 % interval"].split(" to "))
            assert low <= row["accuracy"] <= high


def test_scores_of_one_seed_have_no_deviation():
    table = rows(charts.scores_table(study(("vit",), (0.2,), (0,), segments=True)))
    assert table[0]["± Dice"] is None
    assert table[0]["Dice of the floor"] == 0.5
    assert [row["model"] for row in table] == ["vit", "floor"]


def test_provenance_names_sources_splits_runs_and_versions(whole):
    tables = {table.name: table for table in charts.provenance(whole)}
    assert list(tables) == ["sources", "splits", "runs", "versions"]
    sources = {row["models"]: row for row in rows(tables["sources"])}
    assert sources["conv, vit"]["snapshot"] == "5" * 64
    assert sources["conv, vit"]["encoder and weights"] == "tiny, untrained (random:0)"
    assert len(tables["splits"].rows) == 9 * 3
    assert len(tables["runs"].rows) == len(whole.trials)
    assert {row["library"]: row["runs"] for row in rows(tables["versions"])} == {
        "numpy": len(whole.trials),
        "torch": len(whole.trials),
    }
    assert "runs/" not in str(tables["runs"].rows)


def test_models_keep_their_colour_in_every_figure(whole, whole_drawn):
    colour = looks(whole.models)["cnn"].colour
    for drawing in whole_drawn:
        if "cnn" in {row[0] for row in drawing.table.rows} and "confusions" not in drawing.name:
            assert colour in svg(drawing.figure)


def test_figures_are_the_same_bytes_again(whole_drawn, whole):
    again = [*charts.by_share(whole)[:1], *charts.costs(whole, encoder_seconds=3000.0)]
    for other in again:
        first = next(d for d in whole_drawn if d.name == other.name)
        assert svg(first.figure) == svg(other.figure)
        ElementTree.fromstring(svg(first.figure))
    assert png(again[0].figure, dpi=60).startswith(b"\x89PNG")
