"""Every figure says what it shows: drawings, their tables and captions, of runs that are made up."""

import re
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from fake_runs import a_mask_run, a_run, the_one
from scipy.stats import binomtest
from stubs import edit_run
from toys import blobs

from samtl.experiment.tables import read_images, read_predictions
from samtl.metrics.declared import ranked_by
from samtl.metrics.paired import Difference
from samtl.report import figures
from samtl.report.figures.confusion import percent
from samtl.report.findings import Pair, compared, findings, headline
from samtl.report.pictures.album import Album
from samtl.report.pictures.images import panels
from samtl.report.style import looks, png, svg

MODELS = ("floor", "logreg", "mlp", "conv", "vit", "cnn")
HEADS = MODELS[1:-1]
FLOOR, KNN = "floor (image statistics)", "floor (nearest neighbours)"
COLOUR = "floor (nearest mean colour)"
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
    kinds = (
        figures.training_curves, figures.by_share, figures.image_scores, figures.confusions, figures.per_class,
        figures.reliability,
    )  # fmt: skip
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
    matrices = [f"confusions-{i}" for i in range(1, 4)]
    scores = ["by-share-accuracy", "by-share-macro-f1"]
    assert [list(some) for some in drawn] == [
        ["training-curves", *scores, *matrices, "classes", "reliability", "costs"],
        [
            "training-curves",
            "by-share-pooled-iou",
            "image-scores",
            "confusions",
            "classes",
            "costs",
        ],
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
    colour = looks(whole.names)["cnn"].colour
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
    drawn = every(the_one(tmp_path))
    for name in ("confusions-1", "classes"):
        image = svg(drawn[name].figure)
        assert all(f">{name}<" in image for name in ("$\\frac{$", "$x^2$"))
    for drawing in drawn.values():
        assert png(drawing.figure)


def test_training_curves_are_the_runs_own(drawn, tmp_path):
    drawing = drawn[0]["training-curves"]
    assert f"{FLOOR} and logreg" in drawing.caption  # no epochs
    shown = [row for row in drawing.rows if row["model"] == "vit"]
    assert [row["validation loss"] for row in shown] == pytest.approx([2.5, 1.25, 2.5 / 3])
    assert [row["epoch"] for row in shown if row["kept"]] == [2]
    assert len(drawing.figure.axes) == 2 * 4  # loss and accuracy of each
    a_run(tmp_path, "mlp")
    a_run(tmp_path, "vit", warm_start="earlier")
    (drawing,) = figures.training_curves(the_one(tmp_path))
    assert legend(drawing) == ["training", "validation"]
    assert [axes.get_title(loc="left") for axes in drawing.figure.axes[::2]] == [
        "mlp",
        "vit (warm)",
    ]
    a_run(tmp_path / "other", "logreg")
    assert figures.training_curves(the_one(tmp_path / "other")) == []


def test_by_share_has_a_panel_for_each_model_with_means_bands_and_every_seed(whole, drawn):
    drawing = drawn[0]["by-share-accuracy"]
    (row,) = (r for r in drawing.rows if (r["model"], r["training share, %"]) == ("mlp", 50))
    values = 100 * np.array(accuracies(whole, "mlp", 75))
    assert row["repeats"] == len(values) == 2
    expected = (np.mean(values), np.std(values, ddof=1), np.mean(values) - 2)
    assert (row["mean"], row["deviation"], row["low"]) == pytest.approx(expected)
    last = {r["model"]: r["mean"] for r in drawing.rows if r["training share, %"] == 80}
    titles = [axes.get_title(loc="left").replace("\n", " ") for axes in drawing.figure.axes]
    assert titles == sorted(last, key=last.get, reverse=True)
    assert set(last) == {FLOOR, KNN, *MODELS[1:]}
    for axes in drawing.figure.axes:
        dots = [x for x in axes.lines if x.get_linestyle() == "None"]
        assert sum(len(line.get_ydata()) for line in dots) == 2 * 2
        assert len(axes.lines) == 6 + 2 + 1  # the means of the others, dots, and the model


def test_one_share_is_drawn_as_rows(drawn):
    drawing = drawn[1]["by-share-pooled-iou"]
    names = [label.get_text() for label in drawing.figure.axes[0].get_yticklabels()]
    means = {row["model"]: row["mean"] for row in drawing.rows}
    assert names == sorted(means, key=means.get) == [COLOUR, "conv", "vit", "unet"]
    assert "75 %" in drawing.caption


def test_label_fractions_are_a_curve_that_ends_in_all_labels(tmp_path):
    for left_out in (0, 400, 796):
        a_run(tmp_path, "vit", ids=1000, left_out=left_out)
    found = {drawing.name: drawing for drawing in figures.by_share(the_one(tmp_path))}
    assert {"by-share-accuracy-holdout", "by-share-macro-f1-label"} <= {*found}
    drawing = found["by-share-accuracy-label"]
    shares = [row["training share, %"] for row in drawing.rows if row["model"] == "vit"]
    assert sorted(shares) == pytest.approx([0.4, 40, 80])
    assert drawing.figure.axes[0].get_xscale() == "log"


def test_the_floor_beside_the_heads_is_drawn_if_none_was_run(tmp_path):
    a_run(tmp_path, "mlp")
    comparison = the_one(tmp_path)
    drawing = figures.by_share(comparison)[0]
    assert [row["mean"] for row in drawing.rows if row["model"] == FLOOR] == [30]
    assert [d.rows[0]["model"] for d in figures.confusions(comparison)] == ["mlp"]
    (scores,) = figures.score_tables(comparison)
    assert [row["model"] for row in scores.shown] == ["mlp", FLOOR]
    assert f"`{FLOOR}`, accuracy 30.0 % [28.0, 32.0]" in headline(comparison)[1]


def test_image_scores_are_of_every_held_out_image(masks, drawn):
    drawing = drawn[1]["image-scores"]
    assert len(drawing.rows) == 4 * 6
    for key, axes in zip(("iou", "dice", "accuracy"), drawing.figure.axes, strict=True):
        medians = {f"{100 * np.median(read_images(run).scores[key]):.1f}" for run in masks.runs}
        assert {text.get_text() for text in axes.texts} == medians


def test_confusions_add_up_seeds_of_the_best_head_the_best_baseline_and_the_floor(whole, drawn):
    drawings = [drawn[0][f"confusions-{i}"] for i in range(1, 4)]
    models = [drawing.rows[0]["model"] for drawing in drawings]
    score = {model: np.mean(accuracies(whole, model, 30)) for model in (FLOOR, *MODELS[1:])}
    best = max(HEADS, key=score.get)
    assert models == sorted((best, "cnn", FLOOR), key=score.get, reverse=True)
    total = sum(run.confusion for run in whole.models[models[0]] if run.n_test == 30)
    assert [row["samples"] for row in drawings[0].rows] == total.ravel().tolist()
    parts = np.reshape([row["% of true"] for row in drawings[0].rows], total.shape)
    np.testing.assert_allclose(parts.sum(1), 100)


def test_of_many_classes_the_worst_are_shown(tmp_path):
    classes = tuple(f"a_rather_long_class_name_{i}" for i in range(200))
    wrong = dict.fromkeys([f"{classes[i]}/{i:03d}.png" for i in range(0, 200, 2)], 7)
    a_run(tmp_path, "mlp", ids=200, share=0.5, classes=classes, wrong=wrong)
    (table,) = figures.confusions(the_one(tmp_path))
    assert table.figure is None
    assert {row["predicted"] for row in table.rows} == {classes[7]}
    assert {row["% of true"] for row in table.rows} == {100}
    assert len(table.rows) == 20
    (drawing,) = figures.per_class(the_one(tmp_path))
    assert len(drawing.rows) == 200
    assert len(drawing.shown) == 40
    assert {row["mlp, %"].value for row in drawing.shown} == {0}
    labels = drawing.figure.axes[0].get_yticklabels()
    boxes = [label.get_window_extent() for label in labels]
    assert not [i for i in range(1, 40) if boxes[i].overlaps(boxes[i - 1])]


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


def test_tables_of_scores_have_one_unit_and_aligned_decimals(whole):
    by_share, scores = figures.score_tables(whole)
    assert list(by_share.shown[0]) == ["model", "50 %", "80 %"]
    assert list(scores.shown[0]) == ["model", "accuracy, %", "macro F1, %"]
    assert "untrained" in by_share.note
    last = {row["model"]: row["80 %"].value for row in by_share.shown}
    assert list(last) == sorted(last, key=last.get, reverse=True)
    assert set(last) == {FLOOR, KNN, *MODELS[1:]}
    for table, pattern in (
        (by_share, r"\d+\.\d ± \d+\.\d"),
        (scores, r"\d+\.\d \[\d+\.\d, \d+\.\d\]"),
    ):
        for name in table.columns[1:]:
            cells = [row[name] for row in table.shown]
            assert len({len(cell.text) for cell in cells}) == 1
            assert all(re.fullmatch(pattern, cell.text.replace("\u2007", "")) for cell in cells)
            best = max(cell.value for cell in cells)
            assert [cell.best for cell in cells] == [cell.value == best for cell in cells]
    for row in scores.rows:
        assert row["low"] <= row["mean"] <= row["high"]
        assert row["unit"] == "%"


def test_every_two_models_are_compared_on_the_splits_that_both_have(whole, tmp_path):
    pairs = compared(whole)
    (table,) = figures.differences(whole, pairs)
    assert len(table.rows) == 2 * 15
    for row in table.rows:
        n_test = round(1.5 * (100 - row["training share, %"]))
        a, b = (np.mean(accuracies(whole, row[key], n_test)) for key in ("model", "other model"))
        assert row["difference, points"] == pytest.approx(100 * (a - b))
        assert row["difference, points"] >= 0
        assert row["seeds"] == 2
    for name, seeds in (("mlp", (0, 1)), ("vit", (1, 2)), ("cnn", (3,))):
        for seed in seeds:
            a_run(tmp_path, name, seed)
    (one,) = compared(the_one(tmp_path))
    assert ({one.better.model, one.other.model}, one.gap.n_seeds) == ({"mlp", "vit"}, 1)


def test_the_best_is_compared_with_all_and_every_difference_that_is_shown_is_told(whole):
    pairs = [p for p in compared(whole) if p.better.kind == whole.standard[0].kind]
    best = whole.ranked(whole.standard)[0].model
    told = " ".join(findings(whole, pairs))
    (table,) = figures.differences(whole, pairs)
    assert len(table.shown) == 5  # the best against each other model
    for pair in pairs:
        amount = f"`{pair.other.model}` by {pair.amount(whole.metric)}"
        assert (amount in told) == pair.gap.shown
        open_ = f"`{pair.other.model}` ({pair.amount(whole.metric)})"
        assert (open_ in told) == (not pair.gap.shown and pair.better.model == best)
    assert any(pair.gap.shown and pair.better.model != best for pair in pairs)


def test_the_best_head_is_the_best_on_average_over_seeds(tmp_path):
    ids = [f"Crop/{i:03d}.png" for i in range(40)]
    for name, misses in (("mlp", (0, 9)), ("conv", (2, 2))):
        for seed, count in enumerate(misses):
            held = np.random.default_rng([seed, 40]).permutation(40)[:20]
            wrong = {ids[i]: 1 - int(i) % 2 for i in sorted(held.tolist())[:count]}
            a_run(tmp_path, name, seed, 0.5, ids=ids, classes=("a", "b"), wrong=wrong)
    comparison = the_one(tmp_path)
    assert headline(comparison)[0].startswith("Best head: `conv`, accuracy 90.0 ± 0.0 %")
    assert [one.model for one in comparison.leading] == ["conv"]


@pytest.mark.parametrize(
    ("figures_", "text"),
    [
        ((0.012, 0.004, 0.02, True), "vit beats mlp by 1.2 points [0.4, 2.0]"),
        ((0.0007, 0.00004, 0.001, True), "vit beats mlp by 0.070 points [0.004, 0.100]"),
        ((0.003, -0.002, 0.008, False), "no difference shown between vit and mlp (0.3 points [-0.2, 0.8])"),
        ((0.0001, -0.0004, 0.0, False), "no difference shown between vit and mlp (0.0 points [0.0, 0.0])"),
    ],
)  # fmt: skip
def test_words(figures_, text):
    series = [SimpleNamespace(model=name) for name in ("vit", "mlp")]
    pair = Pair(*series, Difference(*figures_, 99, 1))
    assert pair.words(ranked_by("classification")) == text


@pytest.fixture(scope="module")
def roads(tmp_path_factory):
    """Two models of which one finds nothing, on images of which two have nothing to find."""
    data, out = blobs(24), tmp_path_factory.mktemp("roads")
    for name in sorted(data.sample_ids)[:12]:
        data.read_mask.content[name] = np.zeros_like(data.read_mask.content[name])
    a_mask_run(out, "conv", share=0.5, data=data, shift="nothing")
    a_mask_run(out, "unet", share=0.5, data=data, shift="half")
    a_mask_run(out, "floor", share=0.5, data=data, shift=11)
    return the_one(out)


def test_a_model_that_finds_nothing_is_not_ranked_above_one_that_does(roads):
    assert [one.model for one in roads.ranked(roads.standard)][-1] == "conv"
    runs = {model: run.metrics for model, (run,) in roads.models.items()}
    assert runs["conv"]["iou"].value > 0.5 > runs["unet"]["iou"].value  # empty images score 1 or 0
    lines = headline(roads)
    assert "`conv` predicts one class everywhere, `background`." in lines
    assert [pair.better.model for pair in compared(roads) if pair.other.model == "conv"] == [
        COLOUR,
        "unet",
    ]


def test_images_without_foreground_are_counted_apart(roads):
    drawing, table = figures.image_scores(roads)
    empty = {row["image"] for row in drawing.rows if row["has foreground"] == "no"}
    assert f"without the {len(empty)} that have no foreground" in drawing.caption
    found = {row["model"]: (row["images"], row["with false alarms"]) for row in table.rows}
    assert found == {"conv": (len(empty), 0), "unet": (len(empty),) * 2, COLOUR: (len(empty), 0)}
    (shown,) = panels(roads, Album(None))
    assert not {row["sample_id"] for row in shown.rows} & empty


def test_a_model_that_predicts_one_class_leads_only_if_all_do(tmp_path):
    ids = [f"x/{i:03d}.png" for i in range(20)]
    a_run(tmp_path, "mlp", ids=ids, share=0.5, classes=("a", "b"), wrong=dict.fromkeys(ids, 0))
    a_run(
        tmp_path,
        "vit",
        ids=ids,
        share=0.5,
        classes=("a", "b"),
        wrong={i: int(i[-5]) % 2 ^ 1 for i in ids},
    )
    comparison = the_one(tmp_path)
    assert [one.only_class for one in comparison.standard] == ["a", ""]
    assert [one.model for one in comparison.leading] == ["vit"]


def test_reliability_is_of_the_predictions_and_not_drawn_without_probabilities(
    whole, drawn, tmp_path
):
    drawing = drawn[0]["reliability"]
    rows = [row for row in drawing.rows if row["model"] == "mlp"]
    outcomes = [read_predictions(run) for run in whole.models["mlp"] if run.n_test == 30]
    assert sum(row["predictions"] for row in rows) == 60
    for row in rows:
        low, high = row["from, %"] / 100, row["to, %"] / 100
        hits = [
            hit
            for found in outcomes
            for hit, chance in zip(found.truth == found.guess, found.confidence, strict=True)
            if low <= chance < high
        ]
        assert row["right, %"] == pytest.approx(100 * np.mean(hits))
        assert row["low"] <= row["right, %"] <= row["high"]
    run = a_run(tmp_path)
    lines = (run / "predictions.csv").read_text().splitlines()
    (run / "predictions.csv").write_text("".join(f"{line.rsplit(',', 1)[0]}\n" for line in lines))
    edit_run(run, "metrics.json", lambda c: c | {"files": {}})
    assert figures.reliability(the_one(tmp_path)) == []


def test_scores_of_classes_have_intervals(tmp_path):
    ids = [f"x/{i:03d}.png" for i in range(60)]
    a_run(tmp_path, "mlp", ids=ids, share=0.5, classes=("a", "b"), wrong={})
    (drawing,) = figures.per_class(the_one(tmp_path))
    for row in drawing.rows:
        n = round(row["held out"])
        expected = binomtest(n, n).proportion_ci()
        assert row["recall, %"] == 100
        assert row["recall, low"] == pytest.approx(100 * expected.low, rel=1e-6)


def test_provenance_names_sources_splits_runs_and_versions(whole):
    tables = {table.name: table.rows for table in figures.provenance(whole)}
    assert [*tables] == ["sources", "splits", "runs", "versions"]
    sources = {row["models"]: row for row in tables["sources"]}
    assert sources["conv, vit"]["snapshot"] == "5" * 64
    assert len(tables["splits"]) == 2 * 2
    assert {row["run"] for row in tables["runs"]} == {run.path.name for run in whole.runs}
    assert {row["library"]: row["runs"] for row in tables["versions"]}["numpy"] == 24
    assert str(whole.runs[0].path.parent) not in str(tables["runs"])
