"""A fit is the same for the same seed, never peeks at what is held out, and leaves a whole run folder."""

import csv
import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from stubs import embedded
from toys import blobs, stripes

from samtl import registry, splits
from samtl.datasets import IGNORE, Dataset
from samtl.errors import InputError, UnknownName
from samtl.experiment import features as feed
from samtl.experiment import fit
from samtl.experiment.fit import fit_head
from samtl.experiment.run import comparison_key, read_run
from samtl.experiment.tables import read_curves, read_predictions
from samtl.experiment.trial import Stage
from samtl.heads.base import Candidate, Epoch
from samtl.heads.io import load
from samtl.images.transforms import resized_shape
from samtl.metrics import classification as metrics
from samtl.metrics import segmentation as pixel_metrics
from samtl.splits import read_split
from samtl.store.reader import Store, open_store

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = ("Crop", "Forest", "River")
FAST = {"hidden": (16,), "epochs": 6, "lr": 5e-3}


class FakeStore:
    """What `fit_head` uses of a store, in memory; records which rows were read."""

    def __init__(self, n=120, seed=0, statistics=True):
        random = np.random.default_rng(seed)
        self.path, self.name = Path("cache/toy.tiny.64.zarr"), "toy.tiny.64"
        self.fingerprint, self.snapshot = "f" * 64, "a" * 64
        self.dataset, self.classes, self.note = "toy", CLASSES, "generated"
        self.task, self.groups, self.parts = "classification", (), ()
        self.identity = {"image_size": 64}
        self.encoder, self.weights, self.untrained = "tiny", "untrained (random:0)", True
        self.labels = (np.arange(n) % 3).astype(np.int32)
        self.sample_ids = tuple(f"{CLASSES[c]}/{i}.png" for i, c in enumerate(self.labels))
        centres = 1.5 * np.eye(3, 8)
        self.data = {"pooled": centres[self.labels] + random.normal(size=(n, 8))}
        if statistics:
            self.data["image_stats"] = 0.5 * centres[self.labels, :5] + random.normal(size=(n, 5))
        self.data = {name: array.astype(np.float32) for name, array in self.data.items()}
        self.arrays = (*self.data, "label", "sample_id")
        self.tiers = ("pooled",)
        self.committed = np.ones(n, dtype=bool)
        self.bad = []
        self.reads = []

    @property
    def quarantined(self):
        return tuple(SimpleNamespace(row=row) for row in self.bad)

    def image_sha256(self, row):
        return f"hash of {self.sample_ids[row]}"

    def columns(self, array):
        return tuple(f"{array}_{i}" for i in range(self.data[array].shape[1]))

    def valid(self, *arrays):
        assert arrays
        valid = self.committed.copy()
        valid[self.bad] = False
        return valid

    def read(self, array, rows):
        assert self.valid(array)[rows].all()
        self.reads.append((array, frozenset(np.asarray(rows).tolist())))
        return self.data[array][rows].copy()


def predictions(run):
    return (run / "predictions.csv").read_text()


def curves_of(result):
    with (result.run / "curves.csv").open() as file:
        return list(csv.DictReader(file))


def test_scores_are_those_of_the_saved_head_on_what_was_held_out():
    store = FakeStore()
    result = fit_head(store, "logreg", 0.25, seed=3)
    test = result.split.test
    assert result.split == splits.holdout(
        splits.Samples.of(store.sample_ids, store.labels), 0.25, 3
    )
    chances = load(result.run).predict_proba(store.data["pooled"][test])
    assert result.metrics == metrics.bootstrap(store.labels[test], chances, seed=3)
    matrix = metrics.confusion(store.labels[test], chances.argmax(1), 3)
    np.testing.assert_array_equal(result.confusion, matrix)
    np.testing.assert_array_equal(result.per_class.recall, metrics.per_class(matrix).recall)
    assert (result.kind, result.name, result.task) == ("head", "logreg", "classification")
    assert (result.features, result.images, result.also) == ("pooled", {}, {})
    assert (result.n_train, result.n_validation, result.n_test) == (72, 18, 30)
    assert result.metrics["accuracy"].value > 0.7
    assert result.left_out == 0


def test_the_floor_is_logreg_on_image_statistics_of_the_same_rows():
    store = FakeStore()
    result = fit_head(store, "mlp", params=FAST)
    swapped = FakeStore()
    swapped.data["pooled"] = swapped.data["image_stats"]
    assert fit_head(swapped, "logreg").metrics == result.floor
    assert set(result.floor) == set(result.metrics)
    rows = {array: [r for a, r in store.reads if a == array] for array in store.data}
    assert rows["pooled"] == rows["image_stats"]


def test_without_image_statistics_the_floor_says_why():
    result = fit_head(FakeStore(statistics=False), "logreg")
    assert result.floor is None
    assert result.floor_missing == "the store has no image_stats"
    assert result.to_json()["floor"] is None


def test_held_out_rows_are_read_once_and_last():
    store, seen = FakeStore(), []
    result = fit_head(
        store, "mlp", params=FAST, on_event=lambda e: seen.append((e, len(store.reads)))
    )
    held = set(result.split.test.tolist())
    pooled = [rows for array, rows in store.reads if array == "pooled"]
    assert [bool(rows & held) for rows in pooled] == [False, False, True]
    assert pooled[2] == held
    assert not pooled[0] & pooled[1]
    scoring = next(count for event, count in seen if event == Stage("score"))
    assert scoring == 2  # training was over before the third read
    assert all(count == 2 for event, count in seen if isinstance(event, Epoch))


@pytest.mark.parametrize("head", ["logreg", "mlp"])
def test_held_out_samples_do_not_change_the_head(head):
    """With the labels and features of held-out rows in disorder, the same split gives the same head."""
    params = FAST if head == "mlp" else {}
    store = FakeStore()
    result = fit_head(store, head, params=params)
    other = FakeStore()
    test = result.split.test
    other.labels[test] = other.labels[np.roll(test, 1)]
    other.data["pooled"][test] *= -3
    again = fit_head(other, head, result.split, params=params)
    assert (again.run / "head.safetensors").read_bytes() == (
        result.run / "head.safetensors"
    ).read_bytes()
    assert (again.run / "curves.csv").read_text() == (result.run / "curves.csv").read_text()
    assert again.metrics["accuracy"].value < result.metrics["accuracy"].value


def test_validation_rows_change_the_head():
    """The counterpart of the test above: what may be looked at is looked at."""
    store, other = FakeStore(), FakeStore()
    result = fit_head(store, "logreg")
    inner = splits.inner(splits.Samples.of(store.sample_ids, store.labels), result.split)
    other.data["pooled"][inner.test] *= -3
    again = fit_head(other, "logreg")
    assert predictions(again.run) != predictions(result.run)


@pytest.mark.parametrize("head", ["logreg", "mlp"])
def test_the_same_seed_gives_the_same_run(head):
    params = FAST if head == "mlp" else {}
    first, second, other = (fit_head(FakeStore(), head, seed=s, params=params) for s in (1, 1, 2))
    assert second.run == first.run.with_name(first.run.name + ".2")
    for name in (
        "config.json",
        "split.json",
        "confusion.csv",
        "curves.csv",
        "predictions.csv",
        "head.json",
    ):
        assert (first.run / name).read_bytes() == (second.run / name).read_bytes()
    assert first.metrics == second.metrics
    assert first.split != other.split
    assert predictions(first.run) != predictions(other.run)


def test_a_run_folder_holds_everything(tmp_path):
    store = FakeStore()
    result = fit_head(store, "mlp", 0.2, seed=5, out=tmp_path / "out", params=FAST)
    run = read_run(result.run, whole=True)
    assert run.path.parent == tmp_path / "out"
    assert run.path.name == f"toy.tiny.64-mlp-0.2-s5-{run.digest[:8]}"
    assert sorted(path.name for path in run.path.iterdir()) == [
        "config.json", "confusion.csv", "curves.csv", "head.json", "head.safetensors",
        "metrics.json", "predictions.csv", "split.json",
    ]  # fmt: skip
    assert json.dumps(run.to_json()) == json.dumps(result.to_json(), allow_nan=False)
    assert (run.kind, run.name, run.task, run.inputs) == ("head", "mlp", "classification", "pooled")
    assert (run.classes, run.seed, run.params["hidden"]) == (CLASSES, 5, [16])
    assert (run.dataset, run.note, run.store, run.encoder) == (
        "toy",
        "generated",
        store.name,
        "tiny",
    )
    assert (run.store_path, run.identity) == ("cache/toy.tiny.64.zarr", store.identity)
    assert (run.fingerprint, run.snapshot) == ("f" * 64, "a" * 64)
    assert (run.untrained, run.weights) == (True, "untrained (random:0)")
    assert {"python", "torch", "numpy", "scikit-learn"} <= run.versions.keys()
    assert (run.given["split"], run.warm_start, run.resolution) == (0.2, "", 0)
    # What the defaults and the size of the training part came to, not only what was asked for.
    assert run.recipe["batch_size"] == 16
    assert run.training["best_epoch"] == load(run.path).best_epoch_
    assert run.training["samples_per_second"] > 0
    assert 0 <= run.training["waiting"] <= 1
    assert set(run.seconds) == {"read", "fit", "score", "floor", "write", "total"}
    assert run.peak_memory > 2**20
    assert abs(datetime.now(UTC) - datetime.fromisoformat(run.finished)).total_seconds() < 60

    split = read_split(run.path)
    held = [store.sample_ids[row] for row in result.split.test]
    assert (split.held_out, split.digest, split.left_out) == (held, result.split.digest, [])
    assert split.validation_digest == run.validation.digest
    assert len(split.validation) == run.n_validation
    truth = {i: i.split("/")[0] for i in held}
    assert run.comparison_key == comparison_key(run.task, CLASSES, truth, 0)

    with (run.path / "confusion.csv").open() as file:
        table = list(csv.reader(file))
    assert table[0] == ["truth", *CLASSES]
    assert [[int(n) for n in row[1:]] for row in table[1:]] == run.confusion.tolist()
    found = read_predictions(run)
    assert (list(found.ids), run.n_test) == (held, 24)
    assert run.metrics["accuracy"].value == (found.truth == found.guess).mean()
    epochs = read_curves(run)["epoch"]
    assert epochs == list(range(1, run.training["epochs"] + 1))
    assert load(run.path).columns_ == store.columns("pooled")
    assert json.loads((run.path / "head.json").read_text())["class_names"] == list(CLASSES)


def test_a_run_names_the_samples_that_there_were():
    runs = [fit_head(FakeStore(), name, params=p) for name, p in (("logreg", {}), ("mlp", FAST))]
    assert len({run.samples_digest for run in runs}) == 1
    other = FakeStore()
    other.image_sha256 = str
    assert fit_head(other, "logreg").samples_digest != runs[0].samples_digest
    assert fit_head(other, "logreg").comparison_key == runs[0].comparison_key


def test_no_path_of_this_machine_is_in_a_run(tmp_path):
    result = fit_head(FakeStore(), "logreg", out=tmp_path)
    for path in result.run.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
        assert str(Path(fit.__file__).parent).encode() not in path.read_bytes()


def test_events_tell_the_stages_in_order():
    seen = []
    fit_head(FakeStore(), "logreg", on_event=seen.append)
    stages = [event.name for event in seen if isinstance(event, Stage)]
    assert stages == ["read", "fit", "score", "floor", "write"]
    assert any(isinstance(event, Candidate) for event in seen)
    assert all(str(event) for event in seen)


def test_the_order_of_rows_changes_neither_the_split_nor_who_is_scored():
    store, other = FakeStore(), FakeStore()
    order = np.random.default_rng(0).permutation(120)
    other.labels = other.labels[order]
    other.sample_ids = tuple(other.sample_ids[i] for i in order)
    other.data = {name: array[order] for name, array in other.data.items()}
    first, second = fit_head(store, "logreg"), fit_head(other, "logreg")
    assert first.split == second.split
    assert first.metrics["accuracy"].value == pytest.approx(
        second.metrics["accuracy"].value, abs=0.05
    )


def test_quarantined_and_unlabelled_rows_are_left_out_and_counted():
    store = FakeStore()
    store.bad = [0, 5]
    store.labels[[7, 8, 9]] = -1
    store.data["pooled"][store.bad] = np.nan
    result = fit_head(store, "logreg")
    assert result.left_out_because == {"quarantined": 2, "missing": 0, "unlabelled": 3}
    assert result.left_out == 5
    split = json.loads((result.run / "split.json").read_text())
    assert split["left_out"] == [store.sample_ids[row] for row in (0, 5, 7, 8, 9)]
    used = {*result.split.train, *result.split.test}
    assert not used & {0, 5, 7, 8, 9}
    assert len(used) == 115


def test_an_incomplete_store_is_refused_unless_allowed():
    store = FakeStore()
    store.committed[90:] = False
    store.bad = [3]
    with pytest.raises(
        InputError, match="30 of 120 rows have no 'pooled' yet; run samtl embed again"
    ):
        fit_head(store, "logreg")
    result = fit_head(store, "logreg", allow_partial=True)
    assert result.left_out_because == {"quarantined": 1, "missing": 30, "unlabelled": 0}
    assert max(result.split.train.max(), result.split.test.max()) < 90


def test_a_split_with_rows_that_are_quarantined_is_refused():
    store = FakeStore()
    split = splits.holdout(splits.Samples.of(store.sample_ids, store.labels), 0.2)
    store.bad = [11]
    with pytest.raises(
        InputError,
        match=r"1 samples without a label or features in .*, such as 'River/11.png'",
    ):
        fit_head(store, split=split)


def without_features(store):
    store.arrays, store.tiers = ("grid", "label"), ("grid",)


def unlabelled(store):
    store.labels[:] = -1


def small_class(store):
    store.labels[np.flatnonzero(store.labels == 2)[1:]] = -1


def infinite(store, array="pooled"):
    store.data[array][17, 3] = np.inf


@pytest.mark.parametrize(
    ("spoil", "options", "error", "told"),
    [
        (None, {"head": "mpl"}, UnknownName, "'mpl': did you mean mlp"),
        (None, {"params": {"drop_out": 0.1}}, UnknownName, "'drop_out': did you mean dropout"),
        (None, {"head": "conv", "params": {"depht": 2}}, UnknownName, "'depht'"),
        (None, {"head": "logreg", "params": {"epochs": 2}}, UnknownName, "'epochs'"),
        (None, {"params": {"dropout": 2}}, InputError, "head mlp .*dropout"),
        (None, {"head": "vit", "params": {"width": 20}}, InputError, "head vit .*width"),
        (None, {"seed": -1}, InputError, "got -1"),
        (None, {"seed": 2**32}, InputError, "got 4294967296"),
        (None, {"split": 1.5}, InputError, "1.5"),
        (None, {"split": "half"}, UnknownName, "'half'"),
        (None, {"split": "shipped"}, InputError, r"toy\.tiny\.64\.zarr"),
        (None, {"group_by": "("}, InputError, "regular expression"),
        (None, {"group_by": "scene"}, InputError, r"'Crop/0\.png'"),
        (None, {"features": "pooled,poled"}, UnknownName, "'poled': did you mean pooled"),
        (None, {"split": 0.2, "same_split_as": "runs/x"}, InputError, "exclude each other"),
        (None, {"same_split_as": "runs/x"}, InputError, "runs/x"),
        (
            without_features,
            {},
            InputError,
            r"tier pooled .* has grid: .*--tiers pooled --out cache",
        ),
        (without_features, {"head": "conv", "features": "mean"}, InputError, "reads grid"),
        (unlabelled, {}, InputError, "0 usable rows and 3 classes"),
        (small_class, {"head": "logreg"}, InputError, "'River', got 1"),
        (infinite, {"head": "logreg"}, InputError, r"pooled of sample 'River/17\.png'"),
        (
            lambda store: infinite(store, "image_stats"),
            {"head": "logreg"},
            InputError,
            "image_stats",
        ),
    ],
)
def test_what_cannot_be_is_refused(spoil, options, error, told, tmp_path):
    store = FakeStore()
    if spoil:
        spoil(store)
    with pytest.raises(error, match=told):
        fit_head(store, **options, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_no_store_is_said(tmp_path):
    with pytest.raises(InputError, match=r"no\.zarr"):
        fit_head(tmp_path / "no.zarr")


def test_a_head_for_another_task_names_those_that_there_are(stores):
    with pytest.raises(InputError, match="heads for that are conv, vit"):
        fit_head(stores["segmentation"], "mlp")


# Which columns, which samples


def test_a_head_may_learn_from_some_columns():
    store = FakeStore()
    names = ("mean_0", "mean_1", "std_0", "block2_0", "block2_1", "block5_0", "max_0", "max_1")
    store.columns = lambda array: names if array == "pooled" else tuple("abcde")
    for features, kept in (
        ("mean", [0, 1]),
        ("mean,std", [0, 1, 2]),
        ("max , block*", [3, 4, 5, 6, 7]),
        ("*", list(range(8))),
    ):
        result = fit_head(store, "logreg", features=features)
        head = load(result.run)
        assert head.columns_ == tuple(names[i] for i in kept)
        chances = head.predict_proba(store.data["pooled"][result.split.test][:, kept])
        expected = metrics.bootstrap(store.labels[result.split.test], chances)
        assert result.metrics == expected
        groups = list(dict.fromkeys(names[i].rpartition("_")[0] for i in kept))
        assert result.columns == (() if len(kept) == 8 else tuple(groups))
    assert len({path.name for path in Path("runs").iterdir()}) == 4


def parts_of(result):
    """Ids in each part of a run."""
    split = json.loads((result.run / "split.json").read_text())
    return {name: split[name] for name in ("held_out", "validation", "left_out", "digest")}


def last_digit(ids):
    return {i[-5] for i in ids}


@pytest.mark.parametrize("known", [False, True])
def test_groups_stay_together(known):
    store, options = FakeStore(), {}
    if known:
        store.groups = tuple(i[-5] for i in store.sample_ids)
    else:
        options["group_by"] = r"(\d)\.png$"
    result = fit_head(store, "logreg", 0.3, **options)
    inner = parts_of(result)
    assert result.split.name == "grouped"
    held, validation = last_digit(inner["held_out"]), last_digit(inner["validation"])
    used = {*inner["held_out"], *inner["validation"]}
    rest = last_digit(i for i in store.sample_ids if i not in used)
    assert not held & validation
    assert not (held | validation) & rest
    assert held | validation | rest == set("0123456789")


def shipping():
    store = FakeStore()
    which = np.random.default_rng(1).permutation(120) % 10
    store.parts = tuple(("test", "validation", *["train"] * 8)[w] for w in which)
    return store


@pytest.mark.parametrize("split", [None, "shipped"])
def test_a_shipped_split_is_the_default(split):
    store = shipping()
    result = fit_head(store, "logreg", split)
    assert result.split.name == "shipped"
    found = parts_of(result)
    for part, name in (("held_out", "test"), ("validation", "validation")):
        expected = {i for i, p in zip(store.sample_ids, store.parts, strict=True) if p == name}
        assert set(found[part]) == expected
    assert (result.n_train, result.n_validation, result.n_test) == (96, 12, 12)


# The split of another run


def test_another_head_on_the_same_split():
    store = FakeStore()
    store.labels[[7, 8]] = -1
    first = fit_head(store, "logreg", 0.3, seed=5)
    second = fit_head(store, "mlp", seed=9, params=FAST, same_split_as=first.run)
    assert second.split == first.split
    assert parts_of(second) == parts_of(first)
    assert second.n_train == first.n_train
    np.testing.assert_array_equal(second.split.test, first.split.test)
    rounded = fit_head(store, "logreg", seed=5, same_split_as=str(second.run))
    assert rounded.metrics == first.metrics


def test_who_was_not_yet_embedded_is_left_out_again_and_again():
    """The store has grown since: who was learnt from must not."""
    store = FakeStore()
    store.committed[90:] = False
    runs = [fit_head(store, "logreg", allow_partial=True)]
    store.committed[:] = True
    for _ in range(2):
        runs.append(fit_head(store, "logreg", same_split_as=runs[-1].run))
    assert [parts_of(run) for run in runs] == [parts_of(runs[0])] * 3
    assert len(parts_of(runs[2])["left_out"]) == 30
    assert runs[2].metrics == runs[0].metrics


def test_the_split_of_a_run_of_other_samples_is_refused():
    first = fit_head(FakeStore(), "logreg")
    other = FakeStore(60)
    with pytest.raises(InputError, match="other samples than those of cache/toy") as caught:  # fmt: skip
        fit_head(other, "logreg", same_split_as=first.run)
    assert "\n" not in str(caught.value)
    lost = FakeStore()
    lost.bad = [int(first.split.test[0])]
    with pytest.raises(InputError, match=r"1 samples without a label or features"):
        fit_head(lost, "logreg", same_split_as=first.run)


# Nothing is left behind


@pytest.mark.parametrize("at", ["read", "fit", "score", "floor", "write", "epoch"])
def test_an_interrupted_run_leaves_nothing(at, tmp_path):
    def stop(event):
        if event == Stage(at) or (at == "epoch" and isinstance(event, Epoch)):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_head(FakeStore(), "mlp", params=FAST, out=tmp_path / "runs", on_event=stop)
    assert list(tmp_path.glob("runs/*")) == list(tmp_path.glob("runs/.*")) == []


# Numbers that are none


def test_a_rate_far_too_high_keeps_the_last_good_weights():
    params = FAST | {"lr": 1e6, "epochs": 1000, "patience": 1000}
    result = fit_head(FakeStore(), "mlp", params=params)
    stopped, step = result.training["stopped"].rsplit(" ", 1)
    assert stopped == "diverged at step"
    assert int(step) > result.training["best_epoch"] >= 1
    head = load(result.run)
    assert all(np.isfinite(array).all() for array in head.tensors().values())
    assert result.training["best_epoch"] <= len(curves_of(result)) < 1000


def test_a_rate_that_never_gave_a_number_leaves_no_run(tmp_path):
    params = FAST | {"lr": 1e30}
    with pytest.raises(InputError, match=r"training diverged at step .*lower the learning rate"):
        fit_head(FakeStore(), "mlp", params=params, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("head", ["mlp", "logreg"])
def test_validation_features_that_overflow_are_told_of(head, tmp_path):
    """Finite, but beyond float32 once they are scaled as the training part asks for."""
    store = FakeStore()
    samples = splits.Samples.of(store.sample_ids, store.labels)
    inner = splits.inner(samples, splits.holdout(samples, 0.2))
    store.data["pooled"][:, 3] *= np.float32(1e-20)
    store.data["pooled"][inner.test[0], 3] = 3e38
    params = FAST if head == "mlp" else {"scaling": "standard"}
    with pytest.raises(
        InputError, match=r"extreme values in the features|cannot be trained.*infin"
    ):
        fit_head(store, head, params=params, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


# Heads on grids, and masks: stores on disk


GRIDS = {
    "logreg": {},
    "mlp": FAST,
    "conv": {"width": 32, "epochs": 12, "lr": 1e-2},
    "vit": {"width": 64, "epochs": 12},
}
CASES = [
    (name, task)
    for name in registry.names("heads")
    for task in registry.load("heads", name).Head.tiers
]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A small store of each task, whose features tell what is to be told."""
    folder = tmp_path_factory.mktemp("stores")
    return {
        "classification": embedded(folder, stripes(60), 64, ("pooled", "grid")),
        "segmentation": embedded(folder, blobs(40, classes=3), 64, ("dense",)),
    }


@pytest.fixture(scope="module")
def masks(stores, tmp_path_factory):
    """A run of `conv` on masks."""
    out = tmp_path_factory.mktemp("runs")
    params = GRIDS["conv"] | {"epochs": 30}
    return fit_head(stores["segmentation"], "conv", 0.25, seed=2, out=out, params=params)


class Guarded(Store):
    """A store of which some rows must not be read yet."""

    forbidden: frozenset = frozenset()
    late = 0

    def row(self, array, row):
        self.seen(array, row)
        return super().row(array, row)

    def read(self, array, rows=None):
        for row in range(len(self)) if rows is None else rows:
            self.seen(array, row)
        return super().read(array, rows)

    def seen(self, array, row):
        assert row not in self.forbidden, f"row {row} of {array} is held out"
        self.late += row in self.held_out


WAYS = [(*case, False) for case in CASES]
WAYS += [(*case, True) for case in CASES if case[0] not in ("logreg", "mlp")]  # which hold all


@pytest.mark.parametrize(("head", "task", "streamed"), WAYS)
def test_held_out_rows_are_not_read_before_the_score(head, task, streamed, stores, monkeypatch):
    if streamed:
        monkeypatch.setattr(feed, "HELD_BYTES", 0)
    store = Guarded(open_store(stores[task]).state)
    labels = store.labels if task == "classification" else None
    split = splits.holdout(splits.Samples.of(store.sample_ids, labels), 0.25)
    store.forbidden = store.held_out = frozenset(split.test.tolist())

    def release(event):
        if event == Stage("score"):
            assert store.late == 0
            store.forbidden = frozenset()

    epochs = {"epochs": 2} if "epochs" in GRIDS[head] else {}
    result = fit_head(store, head, 0.25, params=GRIDS[head] | epochs, on_event=release)
    assert set(result.split.test.tolist()) == store.held_out
    assert store.late >= len(split.test)


def test_the_guard_would_bark(stores):
    store = Guarded(open_store(stores["segmentation"]).state)
    store.forbidden = store.held_out = frozenset([3])
    with pytest.raises(AssertionError, match="row 3 of dense is held out"):
        store.read("dense", [2, 3])


@pytest.mark.parametrize("head", ["conv", "vit"])
def test_heads_on_grids_tell_classes_apart(head, stores):
    result = fit_head(stores["classification"], head, params=GRIDS[head])
    assert (result.features, result.task, result.images) == ("grid", "classification", {})
    assert result.metrics["accuracy"].value > 0.9
    assert {"samples_per_second", "waiting"} < result.training.keys()
    store = open_store(stores["classification"])
    chances = load(result.run).predict_proba(store.read("grid", result.split.test))
    assert result.metrics == metrics.bootstrap(store.labels[result.split.test], chances)
    assert "predictions.csv" in {path.name for path in result.run.iterdir()}


def test_masks_are_found(masks):
    floor = masks.floor
    assert (masks.features, masks.task, masks.n_test) == ("dense", "segmentation", 10)
    assert masks.metrics["iou"].value > 0.5
    assert floor["iou"].value == 0  # the floor says that there is nothing but background
    assert masks.metrics["accuracy"].value > floor["accuracy"].value > 0.5
    assert masks.floor_missing == ""


def test_the_run_of_a_segmentation_keeps_its_masks(masks, stores):
    run, store = masks.run, open_store(stores["segmentation"])
    assert sorted(path.name for path in run.iterdir()) == [
        "config.json", "confusion.csv", "curves.csv", "head.json", "head.safetensors",
        "images.csv", "masks", "metrics.json", "split.json",
    ]  # fmt: skip
    with (run / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["sample_id"] for row in rows] == parts_of(masks)["held_out"]
    assert {row["mask"] for row in rows} == {
        path.relative_to(run).as_posix() for path in run.glob("masks/*")
    }
    maps, head = [], load(run)
    matrices = []
    for line, row in zip(rows, masks.split.test, strict=True):
        height, width = resized_shape(*map(int, store.row("original_size", row)), 64)
        with Image.open(run / line["mask"]) as image:
            guess = np.array(image)
        assert guess.shape == (height, width)
        truth = store.row("mask", row)[:height, :width]
        assert (truth == IGNORE).any()  # a corner of each is unknown
        matrices.append(pixel_metrics.confusion(truth, guess, 3))
        maps += head.class_maps(store.read("dense", [row]), [(height, width)], 64)
        np.testing.assert_array_equal(guess, maps[-1])
    expected = pixel_metrics.bootstrap(np.stack(matrices), seed=2)
    assert masks.metrics == expected
    np.testing.assert_array_equal(masks.confusion, np.sum(matrices, axis=0))
    of_each = pixel_metrics.scores(np.stack(matrices))
    for name, values in of_each.items():
        assert [float(row[name]) for row in rows] == pytest.approx(values, abs=1e-5)
        np.testing.assert_array_equal(masks.images[name], values)
    assert (read_run(run).metrics, read_run(run).resolution) == (expected, 64)


def test_two_classes_and_the_transformer(tmp_path):
    store = embedded(tmp_path, blobs(30, classes=2), 64, ("dense",))
    params = GRIDS["vit"] | {"epochs": 20, "lr": 5e-3}
    result = fit_head(store, "vit", params=params)
    assert result.classes == ("background", "class1")
    assert result.metrics["dice"].value > 0.5 > result.floor["dice"].value


def test_streaming_learns_as_well_and_the_same_for_the_same_seed(stores, monkeypatch):
    monkeypatch.setattr(feed, "HELD_BYTES", 0)
    monkeypatch.setattr(feed, "WINDOW_BYTES", 1)
    params = GRIDS["conv"]
    runs = [fit_head(stores["classification"], "conv", params=params) for _ in range(2)]
    assert runs[0].metrics["accuracy"].value > 0.9
    assert runs[0].metrics == runs[1].metrics
    tensors = [(run.run / "head.safetensors").read_bytes() for run in runs]
    assert tensors[0] == tensors[1]


def masked(n, mask_of):
    """Images whose masks are given: `mask_of(i)`."""
    dataset = blobs(n)
    masks = {sample: mask_of(i) for i, sample in enumerate(dataset.sample_ids)}
    return Dataset(
        "masked",
        ("background", "road", "river"),
        dataset.sample_ids,
        dataset.labels,
        dataset.read,
        read_mask=lambda i: np.full(dataset.read_mask(i).shape, masks[i], dtype=np.uint8),
    )


def test_a_class_that_cannot_be_learnt_is_named(tmp_path):
    store = embedded(tmp_path, masked(16, lambda i: i % 2), 64, ("dense",))
    with pytest.raises(
        InputError,
        match="no pixel of the training part is of class 'river', so it cannot be learnt",
    ):
        fit_head(store, "conv", params=GRIDS["conv"], out=tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_mask_without_a_known_pixel_is_set_aside_by_the_pass(tmp_path):
    data = masked(24, lambda i: IGNORE if i == 5 else i % 3)
    store = open_store(embedded(tmp_path, data, 64, ("dense",)))
    (bad,) = store.quarantined
    assert (bad.sample_id, bad.code) == (data.sample_ids[5], "mask_values")
    result = fit_head(store, "conv", 0.25, params=GRIDS["conv"] | {"epochs": 1})
    assert result.left_out_because == {"quarantined": 1, "missing": 0, "unlabelled": 0}
