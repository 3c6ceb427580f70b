"""A fit is the same for the same seed, never peeks at what is held out, and leaves a whole run folder."""

import csv
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from PIL import Image
from stubs import embedded, holdout
from toys import blobs, numbers, samples_of, several, stripes

from samtl import registry, splits
from samtl._io import digest
from samtl.datasets import IGNORE
from samtl.errors import InputError, ResourceError, UnknownName
from samtl.experiment import features as feed
from samtl.experiment import fit
from samtl.experiment.clock import Stage
from samtl.experiment.fit import fit_head
from samtl.experiment.run import read_run
from samtl.experiment.tables import read_curves, read_images, read_predictions
from samtl.heads.base import Epoch
from samtl.heads.io import load
from samtl.images.transforms import resized_shape
from samtl.metrics import classification as metrics
from samtl.metrics import segmentation as pixel_metrics
from samtl.splits import read_split
from samtl.store.reader import Store, open_store

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = ("Crop", "Forest", "River")
FAST = {"hidden": (16,), "epochs": 6, "lr": 5e-3}
CONV = {"width": 16, "epochs": 12, "lr": 1e-2}
OF = {
    "knn": {},
    "logreg": {},
    "ridge": {},
    "mlp": FAST,
    "conv": CONV,
    "vit": {"width": 64, "epochs": 12},
}
STANDARD = {"scaling": "standard"}


class FakeStore:
    """What `fit_head` uses of a store, in memory; records which rows were read."""

    path, name = Path("cache/toy.tiny.64.zarr"), "toy.tiny.64"
    fingerprint, snapshot, identity = "f" * 64, "a" * 64, {"image_size": 64}
    dataset, classes, note, task = "toy", CLASSES, "generated", "classification"
    encoder, weights, untrained = "tiny", "untrained (random:0)", True
    groups = parts = ()
    tiers = ("pooled",)
    state = SimpleNamespace(identity=SimpleNamespace(files={}))

    def __init__(self, n=120, statistics=True):
        random, centres = np.random.default_rng(0), 1.5 * np.eye(3, 8)
        self.labels = (np.arange(n) % 3).astype(np.int32)
        self.sample_ids = tuple(f"{CLASSES[c]}/{i}.png" for i, c in enumerate(self.labels))
        self.data = {"pooled": centres[self.labels] + random.normal(size=(n, 8))}
        if statistics:
            self.data["image_stats"] = 0.5 * centres[self.labels, :5] + random.normal(size=(n, 5))
        self.data = {name: array.astype(np.float32) for name, array in self.data.items()}
        self.arrays = (*self.data, "label", "sample_id")
        self.committed = np.ones(n, dtype=bool)
        self.bad, self.reads = [], []

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


def held_out(run, store):
    return np.array([store.sample_ids.index(name) for name in read_split(run.path).held_out])


def files_of(run, *names):
    return [(run.path / name).read_bytes() for name in names]


def test_the_floor_is_logreg_on_image_statistics_of_the_same_rows():
    store = FakeStore()
    run = fit_head(store, "mlp", params=FAST)
    swapped = FakeStore()
    swapped.data["pooled"] = swapped.data["image_stats"]
    assert fit_head(swapped, "logreg").metrics == run.floor
    rows = {array: [r for a, r in store.reads if a == array] for array in store.data}
    assert rows["pooled"] == rows["image_stats"]
    bare = fit_head(FakeStore(statistics=False), "logreg")
    assert (bare.floor, bare.floor_missing) == (None, "the store has no image_stats")


def test_each_part_is_read_once():
    store, seen = FakeStore(), []
    run = fit_head(store, "mlp", params=FAST, on_event=seen.append)
    training, validation, held = (rows for array, rows in store.reads if array == "pooled")
    assert held == set(held_out(run, store).tolist())
    assert not training & validation
    stages = [event.name for event in seen if isinstance(event, Stage)]
    assert stages == ["read", "fit", "score", "floor", "write"]
    assert all(str(event) for event in seen)


@pytest.mark.parametrize("head", ["logreg", "mlp"])
def test_the_same_seed_gives_the_same_run_whatever_is_held_out(head):
    """With the labels and features of held-out rows in disorder, the same split gives the same head."""
    store, split = FakeStore(), holdout(FakeStore(), 0.2, 1)
    first, second, other = (fit_head(store, head, seed=s, params=OF[head]) for s in (1, 1, 2))
    assert second.path == first.path.with_name(first.path.name + ".2")
    model = ("head.safetensors", "curves.csv")
    names = (*model, "config.json", "split.json", "confusion.csv", "predictions.csv", "head.json")
    assert files_of(first, *names) == files_of(second, *names)
    assert first.metrics == second.metrics
    assert first.split != other.split
    assert files_of(first, "predictions.csv") != files_of(other, "predictions.csv")
    store.labels[split.test] = store.labels[np.roll(split.test, 1)]
    store.data["pooled"][split.test] *= -3
    again = fit_head(store, head, split, seed=1, params=OF[head])
    assert files_of(again, *model) == files_of(first, *model)
    assert again.metrics["accuracy"].value < first.metrics["accuracy"].value
    store.data["pooled"][split.validation] *= -3
    third = fit_head(store, head, split, seed=1, params=OF[head])
    assert files_of(third, *model) != files_of(first, *model)


def test_a_run_folder_holds_everything(tmp_path):
    store = FakeStore()
    result = fit_head(store, "mlp", 0.2, seed=5, out=tmp_path / "out", params=FAST)
    run = read_run(result.path, whole=True)
    assert run.path == result.run
    assert run.path == tmp_path / "out" / f"toy.tiny.64-mlp-0.2-s5-{run.digest[:8]}"
    assert sorted(path.name for path in run.path.iterdir()) == [
        "config.json", "confusion.csv", "curves.csv", "head.json", "head.safetensors",
        "metrics.json", "predictions.csv", "split.json",
    ]  # fmt: skip
    expected = {
        "kind": "head", "name": "mlp", "task": "classification", "inputs": "pooled", "classes": CLASSES, "seed": 5,
        "dataset": "toy", "note": "generated", "store": store.name, "encoder": "tiny", "identity": store.identity,
        "store_path": "cache/toy.tiny.64.zarr", "fingerprint": "f" * 64, "snapshot": "a" * 64, "untrained": True,
        "weights": "untrained (random:0)", "warm_start": "", "resolution": 0, "n_test": 24,
    }  # fmt: skip
    assert {name: getattr(run, name) for name in expected} == expected
    assert (run.params["hidden"], run.given["split"]) == ([16], 0.2)
    assert {"python", "samtl", "torch", "scikit-learn"} <= run.versions.keys()
    assert run.versions["numpy"] == np.__version__
    # What the defaults and the size of the training part came to, not only what was asked for.
    assert run.recipe["batch_size"] == 16
    assert run.training["best_epoch"] == load(run.path).best_epoch_
    assert run.training["samples_per_second"] > 0
    assert 0 <= run.training["waiting"] <= 1
    assert set(run.seconds) == {"read", "fit", "score", "floor", "write", "total"}
    assert run.peak_memory > 2**20
    assert abs(datetime.now(UTC) - datetime.fromisoformat(run.finished)).total_seconds() < 60

    split, expected = read_split(run.path), holdout(store, 0.2, 5)
    held = [store.sample_ids[row] for row in expected.test]
    assert (split.held_out, split.digest, split.left_out) == (held, expected.digest, [])
    assert (split.digest, split.validation_digest) == (run.split.digest, run.validation.digest)
    assert len(split.validation) == run.n_validation
    truth = [[name, name.split("/")[0]] for name in sorted(held)]
    assert run.comparison_key == digest([run.task, CLASSES, 0, truth])
    header, *rows = csv.reader((run.path / "confusion.csv").read_text().splitlines())
    assert header == ["truth", *CLASSES]
    assert [[int(n) for n in row[1:]] for row in rows] == run.confusion.tolist()
    found = read_predictions(run)
    assert list(found.ids) == held
    assert found.truth.tolist() == store.labels[expected.test].tolist()
    assert metrics.confusion(found.truth, found.guess, 3).tolist() == run.confusion.tolist()
    with pytest.raises(InputError, match=r"predictions\.csv"):
        read_predictions(msgspec.structs.replace(run, n_test=25))
    assert read_curves(run)["epoch"] == list(range(1, run.training["epochs"] + 1))
    for path in run.path.iterdir():  # no path of this machine
        assert str(tmp_path).encode() not in path.read_bytes()
        assert str(Path(fit.__file__).parent).encode() not in path.read_bytes()


def test_a_run_names_its_samples_whatever_the_order_of_rows():
    store, moved, other = FakeStore(), FakeStore(), FakeStore()
    order = np.random.default_rng(0).permutation(120)
    moved.labels = moved.labels[order]
    moved.sample_ids = tuple(moved.sample_ids[i] for i in order)
    moved.data = {name: array[order] for name, array in moved.data.items()}
    first, second = fit_head(store, "logreg"), fit_head(moved, "logreg")
    assert first.split == second.split
    accuracy = second.metrics["accuracy"].value
    assert first.metrics["accuracy"].value == pytest.approx(accuracy, abs=0.05)
    other.image_sha256 = str
    third = fit_head(other, "mlp", params=FAST)
    assert first.samples_digest == second.samples_digest != third.samples_digest
    assert first.comparison_key == second.comparison_key == third.comparison_key


def test_rows_that_cannot_be_used_are_left_out_and_counted():
    store = FakeStore()
    store.bad = [0, 5]
    store.labels[[7, 8, 9]] = -1
    store.data["pooled"][store.bad] = np.nan
    store.committed[90:] = False
    with pytest.raises(InputError, match="30 of 120 rows have no 'pooled' yet; run samtl embed"):
        fit_head(store, "logreg")
    run = fit_head(store, "logreg", allow_partial=True)
    assert run.left_out_because == {"quarantined": 2, "missing": 30, "unlabelled": 3}
    assert (run.left_out, run.n_train + run.n_validation + run.n_test) == (35, 85)
    split = read_split(run.path)
    assert split.left_out == [store.sample_ids[row] for row in (0, 5, 7, 8, 9, *range(90, 120))]
    # The store grows; who is learnt from does not, for any run that takes over the split.
    store.committed[:] = True
    again = fit_head(store, "logreg", same_split_as=run.path)
    third = fit_head(store, "mlp", seed=9, params=FAST, same_split_as=str(again.path))
    assert read_split(again.path) == read_split(third.path) == split
    assert (again.metrics, again.split, third.split) == (run.metrics, run.split, run.split)
    other = FakeStore()
    other.bad = [11]
    with pytest.raises(InputError, match=r"1 samples without a label or features .* 'River/11.png"):
        fit_head(other, split=holdout(FakeStore(), 0.2))


def without_features(store):
    store.arrays, store.tiers = ("grid", "label"), ("grid",)


def unlabelled(store):
    store.labels[:] = -1


def infinite(store, array="pooled"):
    store.data[array][17, 3] = np.inf


def overflowing(store):
    """Validation features are finite, but not once they are scaled as the training part asks for."""
    store.data["pooled"][:, 3] *= np.float32(1e-20)
    store.data["pooled"][holdout(store, 0.2).validation[0], 3] = 3e38


@pytest.mark.parametrize(
    ("spoil", "options", "error", "told"),
    [
        (None, {"head": "mpl"}, UnknownName, "'mpl': did you mean mlp"),
        (None, {"params": {"drop_out": 0.1}}, UnknownName, "'drop_out': did you mean dropout"),
        (None, {"params": {"dropout": 2}}, InputError, "head mlp .*dropout"),
        (None, {"params": FAST | {"lr": 1e30}}, InputError, "diverged .*lower the learning rate"),
        (None, {"seed": -1}, InputError, "got -1"),
        (None, {"seed": 2**32}, InputError, "got 4294967296"),
        (None, {"group_by": "("}, InputError, "regular expression"),
        (None, {"features": "pooled,poled"}, UnknownName, "'poled': did you mean pooled"),
        (None, {"same_split_as": "runs/x"}, InputError, "runs/x"),
        (without_features, {}, InputError, "tier pooled, .* has grid: .*--tiers pooled --out"),
        (without_features, {"head": "conv", "features": "mean"}, InputError, "reads grid"),
        (unlabelled, {}, InputError, "no image of .* has a label"),
        (infinite, {"head": "logreg"}, InputError, r"pooled of sample 'River/17\.png'"),
        (lambda store: infinite(store, "image_stats"), {}, InputError, "image_stats"),
        (overflowing, {"params": FAST}, InputError, "extreme values in the features"),
        (overflowing, {"head": "logreg", "params": STANDARD}, InputError, "cannot be trained.*inf"),
    ],
)
def test_what_cannot_be_is_refused(spoil, options, error, told, tmp_path):
    store = FakeStore()
    if spoil:
        spoil(store)
    params = FAST if "head" not in options else {}
    with pytest.raises(error, match=told):
        fit_head(store, **{"params": params, **options}, out=tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_head_may_learn_from_some_columns():
    store = FakeStore()
    names = ("mean_0", "mean_1", "std_0", "block2_0", "block2_1", "block5_0", "max_0", "max_1")
    store.columns = lambda array: names if array == "pooled" else tuple("abcde")
    for features, kept in (
        ("mean", [0, 1]), ("mean,std", [0, 1, 2]), ("max , block*", [3, 4, 5, 6, 7]), ("*", list(range(8)))
    ):  # fmt: skip
        run = fit_head(store, "logreg", 0.25, seed=3, features=features)
        head, test = load(run.path), held_out(run, store)
        np.testing.assert_array_equal(test, holdout(store, 0.25, 3).test)
        assert head.columns_ == tuple(names[i] for i in kept)
        chances = head.predict_proba(store.data["pooled"][test][:, kept])
        assert run.metrics == metrics.score(store.labels[test], chances)
        matrix = metrics.confusion(store.labels[test], chances.argmax(1), 3)
        np.testing.assert_array_equal(run.confusion, matrix)
        groups = list(dict.fromkeys(names[i].rpartition("_")[0] for i in kept))
        assert run.columns == (() if len(kept) == 8 else tuple(groups))
    sizes = (run.n_train, run.n_validation, run.n_test, run.left_out)
    assert (sizes, run.also) == ((72, 18, 30, 0), {})
    assert run.metrics["accuracy"].value > 0.7
    assert len({path.name for path in Path("runs").iterdir()}) == 4


def test_groups_stay_together_and_a_shipped_split_is_the_default():
    store, digits = FakeStore(), tuple(name[-5] for name in FakeStore().sample_ids)
    samples = samples_of(store.sample_ids, store.labels, groups=digits)
    expected = splits.holdout(samples, 0.3)
    run = fit_head(store, "logreg", 0.3, group_by=r"(\d)\.png$")
    assert (run.split.name, run.split.digest) == ("grouped", expected.digest)
    store.groups = digits  # which are known
    assert fit_head(store, "logreg", 0.3).split == run.split
    store.parts = tuple(("test", "validation", *["train"] * 8)[i % 10] for i in range(120))
    for asked in (None, "shipped"):
        run = fit_head(store, "logreg", asked)
        split = read_split(run.path)
        assert (run.split.name, run.n_train) == ("shipped", 96)
        assert split.held_out == list(store.sample_ids[::10])
        assert split.validation == list(store.sample_ids[1::10])


@pytest.mark.parametrize("grouped", [True, False])
def test_intervals_are_between_the_groups_of_the_held_out_samples(grouped):
    store = FakeStore()
    run = fit_head(store, "logreg", 0.3, group_by=r"(\d)\.png$" if grouped else None)
    found = read_predictions(run)
    groups = [name[-5] for name in found.ids] if grouped else []
    assert found.groups == tuple(groups)
    assert (run.n_groups, "groups.csv" in run.files) == (len({*groups}), grouped)
    with (run.path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        chances = np.array([row[3:] for row in csv.reader(file)][1:], dtype=float)
    expected = metrics.score(found.truth, chances, groups)
    for name, score in run.metrics.items():
        bounds = (score.value, score.low, score.high)
        assert bounds == pytest.approx(
            (expected[name].value, expected[name].low, expected[name].high)
        )


@pytest.mark.parametrize("at", ["read", "fit", "score", "floor", "write", "epoch", "disk"])
def test_a_run_that_ends_early_leaves_nothing(at, tmp_path, monkeypatch):
    def stop(event):
        if event == Stage(at) or (at == "epoch" and isinstance(event, Epoch)):
            raise KeyboardInterrupt

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    if at == "disk":
        monkeypatch.setattr(Path, "write_text", full)
    error = ResourceError if at == "disk" else KeyboardInterrupt
    with pytest.raises(error, match="No space left on device" if at == "disk" else None):
        fit_head(FakeStore(), "mlp", params=FAST, out=tmp_path, on_event=stop)
    assert not [*tmp_path.iterdir()]


CASES = [
    (name, task, streamed)
    for name in registry.names("heads")
    for task, array in registry.load("heads", name).Head.tiers.items()
    for streamed in {False, array != "pooled"}
]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A small store of each task, whose features tell what is to be told."""
    folder, masked = tmp_path_factory.mktemp("stores"), blobs(33, classes=2)
    masked.read_mask.content["005.png"][:] = IGNORE
    return {
        "classification": embedded(folder, stripes(60), 64, ("pooled", "grid")),
        "multilabel": embedded(folder, several(60), 64, ("pooled", "grid")),
        "regression": embedded(folder, numbers(60), 64, ("pooled",)),
        "segmentation": embedded(folder, masked, 64, ("dense",)),
    }


class Guarded(Store):
    """A store of which some rows must not be read yet."""

    forbidden, late = frozenset(), 0

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


@pytest.mark.parametrize(("head", "task", "streamed"), CASES)
def test_held_out_rows_are_not_read_before_the_score(head, task, streamed, stores, monkeypatch):
    if streamed:
        monkeypatch.setattr(feed, "HELD_BYTES", 0)
    store = Guarded(open_store(stores[task]).state)
    split = splits.holdout(store.samples(store.tiers[0]), 0.25)
    store.forbidden = store.held_out = frozenset(split.test.tolist())
    with pytest.raises(AssertionError, match="is held out"):  # the guard would bark
        store.read("image_stats", split.test)

    def release(event):
        if event == Stage("score"):
            store.forbidden = frozenset()

    small = {} if head in ("knn", "logreg", "ridge") else {"epochs": 1}
    run = fit_head(store, head, 0.25, params=OF[head] | small, on_event=release)
    np.testing.assert_array_equal(held_out(run, store), split.test)
    assert store.late >= len(split.test)


@pytest.mark.parametrize("head", ["conv", "vit"])
def test_heads_on_grids_tell_classes_apart_and_streaming_repeats_itself(head, stores, monkeypatch):
    run = fit_head(stores["classification"], head, params=OF[head])
    assert (run.features, run.task, run.order) == ("grid", "classification", "windows")
    assert run.metrics["accuracy"].value > 0.9
    assert {"samples_per_second", "waiting"} < run.training.keys()
    store = open_store(stores["classification"])
    chances = load(run.path).predict_proba(store.read("grid", held_out(run, store)))
    assert run.metrics == metrics.score(store.labels[held_out(run, store)], chances)
    if head == "conv":
        monkeypatch.setattr(feed, "HELD_BYTES", 0)
        monkeypatch.setattr(feed, "WINDOW_BYTES", 1)
        runs = [fit_head(store, head, params=OF[head]) for _ in range(2)]
        assert runs[0].metrics["accuracy"].value > 0.9
        assert runs[0].metrics == runs[1].metrics
        first, second = (files_of(run, "head.safetensors") for run in runs)
        assert first == second
        with pytest.raises(InputError, match="heads for that are conv, vit"):
            fit_head(stores["segmentation"], "mlp")


def test_masks_are_found_and_kept(stores):
    store = open_store(stores["segmentation"])
    run = fit_head(store, "conv", 0.25, seed=2, params=CONV | {"epochs": 20})
    assert (run.features, run.task, run.n_test, run.resolution) == ("dense", "segmentation", 8, 64)
    assert run.metrics["iou"].value > 0.4 > run.floor["iou"].value == 0  # nothing but background
    assert run.metrics["accuracy"].value > run.floor["accuracy"].value > 0.5
    assert (run.floor_missing, read_run(run.path).metrics) == ("", run.metrics)
    assert run.left_out_because == {"quarantined": 1, "missing": 0, "unlabelled": 0}
    assert sorted(path.name for path in run.path.iterdir()) == [
        "config.json", "confusion.csv", "curves.csv", "head.json", "head.safetensors",
        "images.csv", "masks", "metrics.json", "pixels.csv", "split.json",
    ]  # fmt: skip
    found, matrices, head = read_images(run), [], load(run.path)
    assert list(found.ids) == read_split(run.path).held_out
    assert {*found.masks} == {*run.path.resolve().glob("masks/*")}
    for file, row in zip(found.masks, held_out(run, store), strict=True):
        height, width = resized_shape(*map(int, store.row("original_size", row)), 64)
        guess = np.array(Image.open(file))
        truth = store.row("mask", row)[:height, :width]
        assert (truth == IGNORE).any()  # a corner of each is unknown
        matrices.append(pixel_metrics.confusion(truth, guess, 2))
        (again,) = head.class_maps(store.read("dense", [row]), [(height, width)], 64)
        np.testing.assert_array_equal(guess, again)
    np.testing.assert_array_equal(found.counts, pixel_metrics.class_counts(np.stack(matrices)))
    assert run.metrics == pixel_metrics.score(np.stack(matrices))
    np.testing.assert_array_equal(run.confusion, np.sum(matrices, axis=0))
    for name, values in pixel_metrics.scores(np.stack(matrices)).items():
        assert found.scores[name] == pytest.approx(values, abs=1e-5)
    found.masks[0].unlink()
    with pytest.raises(InputError, match=r"images\.csv is damaged"):
        read_images(run)
