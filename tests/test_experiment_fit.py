"""A fit is the same for the same seed, never peeks at what is held out, and leaves a whole run folder."""

import csv
import json
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
from samtl.experiment.trial import Stage
from samtl.heads.base import Candidate, Epoch
from samtl.heads.io import load
from samtl.images.transforms import resized_shape
from samtl.metrics import classification as metrics
from samtl.metrics import segmentation as pixel_metrics
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
    run = result.run
    config = json.loads((run / "config.json").read_text())
    assert run.parent == tmp_path / "out"
    assert run.name == f"toy.tiny.64-mlp-0.2-s5-{config['digest'][:8]}"
    assert sorted(path.name for path in run.iterdir()) == [
        "config.json", "confusion.csv", "curves.csv", "head.json", "head.safetensors",
        "metrics.json", "predictions.csv", "split.json",
    ]  # fmt: skip

    assert (config["format"], config["kind"], config["head"]) == (2, "head", "mlp")
    assert (config["task"], config["features"], config["columns"]) == (
        "classification",
        "pooled",
        "all",
    )
    assert config["params"]["hidden"] == [16]
    assert config["params"]["random_state"] == config["seed"] == 5
    assert config["store"]["path"] == "cache/toy.tiny.64.zarr"
    assert {"python", "torch", "numpy", "scikit-learn"} <= config["versions"].keys()
    assert "unknown" not in (config["versions"]["torch"], config["versions"]["numpy"])

    split = json.loads((run / "split.json").read_text())
    held = [store.sample_ids[row] for row in result.split.test]
    assert split["held_out"] == held
    assert split["digest"] == result.split.digest
    assert (split["share"], split["seed"]) == (0.2, 5)
    assert len(split["validation"]) == result.n_validation
    assert not set(split["validation"]) & set(held)
    assert split["left_out"] == []
    assert split["validation_digest"] == config["validation"]["digest"]

    content = json.loads((run / "metrics.json").read_text())
    assert content["metrics"]["accuracy"] == {
        "value": result.metrics["accuracy"].value,
        "low": result.metrics["accuracy"].low,
        "high": result.metrics["accuracy"].high,
    }
    assert content["untrained"] is True
    assert content["weights"] == "untrained (random:0)"
    assert content["note"] == "generated"
    assert content["fingerprint"] == "f" * 64
    assert content["snapshot"] == "a" * 64
    assert content["counts"]["test"] == 24
    assert (content["head"], content["task"], content["also"]) == ("mlp", "classification", {})
    training = content["training"]
    assert training["stopped"] == result.training["stopped"]
    assert training["epochs"] == len((run / "curves.csv").read_text().splitlines()) - 1
    assert training["best_epoch"] == load(run).best_epoch_
    assert training["samples_per_second"] > 0
    assert 0 <= training["waiting"] <= 1
    # What the defaults and the size of the training part came to, not only what was asked for.
    assert config["recipe"] == training["recipe"]
    assert config["recipe"]["batch_size"] == 16
    assert config["given"]["split"] == 0.2
    assert content["peak_memory"] == result.peak_memory > 2**20
    assert content["per_class"]["River"]["support"] == 8
    assert set(content["seconds"]) == {"read", "fit", "score", "floor", "write", "total"}

    with (run / "confusion.csv").open() as file:
        table = list(csv.reader(file))
    assert table[0] == ["truth", *CLASSES]
    assert [[int(n) for n in row[1:]] for row in table[1:]] == result.confusion.tolist()

    with (run / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["sample_id"] for row in rows] == held
    assert [row["label"] for row in rows] == [i.split("/")[0] for i in held]
    chances = np.array([[float(row[f"p_{name}"]) for name in CLASSES] for row in rows])
    assert [row["predicted"] for row in rows] == [CLASSES[c] for c in chances.argmax(1)]
    again = metrics.bootstrap([CLASSES.index(row["label"]) for row in rows], chances, seed=5)
    for name, score in result.metrics.items():
        assert again[name].value == pytest.approx(score.value)

    curves = curves_of(result)
    assert [int(row["epoch"]) for row in curves] == list(range(1, len(curves) + 1))

    head = load(run)
    assert head.columns_ == store.columns("pooled")
    assert json.loads((run / "head.json").read_text())["class_names"] == list(CLASSES)


def test_no_path_of_this_machine_is_in_a_run(tmp_path):
    result = fit_head(FakeStore(), "logreg", out=tmp_path)
    for path in result.run.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
        assert str(Path(fit.__file__).parent).encode() not in path.read_bytes()


def test_to_json_has_what_programs_rely_on():
    result = fit_head(FakeStore(), "logreg")
    content = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert {"metrics", "floor", "split", "fingerprint", "run", "seconds"} <= content.keys()
    assert set(content["metrics"]) == {
        "accuracy",
        "balanced_accuracy",
        "macro_f1",
        "ece",
        "log_loss",
    }
    for score in [*content["metrics"].values(), *content["floor"].values()]:
        assert score.keys() == {"value", "low", "high"}
    assert content["run"] == str(result.run)
    assert content["split"]["digest"] == result.split.digest


def test_runs_land_in_the_environment_s_folder(monkeypatch, tmp_path):
    assert fit_head(FakeStore(), "logreg").run.parent == Path("runs")
    monkeypatch.setenv("SAMTL_RUNS", str(tmp_path / "elsewhere"))
    assert fit_head(FakeStore(), "logreg").run.parent == tmp_path / "elsewhere"


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


def test_a_store_without_the_features_says_how_to_get_them():
    store = FakeStore()
    store.arrays = ("grid", "label")
    with pytest.raises(
        InputError,
        match=r"head mlp needs the tier pooled for classification, and .* has grid: add it with samtl embed "
        r".*--tiers pooled --out cache/toy",
    ):
        fit_head(store)
    store.arrays = ("label",)
    with pytest.raises(InputError, match=r"has none: add it with samtl embed .*--tiers grid"):
        fit_head(store, "vit")


@pytest.mark.parametrize("array", ["pooled", "image_stats"])
def test_features_that_are_no_numbers_are_named(array, tmp_path):
    store = FakeStore()
    store.data[array][17, 3] = np.inf
    with pytest.raises(
        InputError, match=f"{array} of sample 'River/17.png' is not finite in column '{array}_3'"
    ):
        fit_head(store, "logreg", out=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("share", [0, 1, 1.5, -1])
def test_the_share_must_be_a_share(share):
    with pytest.raises(InputError, match=r"lies between 0 and 1"):
        fit_head(FakeStore(), split=share)


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (0, "'River', got 0"),
        (1, "'River', got 1"),
        (2, "training part.*'River', got 1"),
    ],
)
def test_a_class_too_small_is_named(samples, said):
    store = FakeStore()
    store.labels[np.flatnonzero(store.labels == 2)[samples:]] = -1
    with pytest.raises(InputError, match=said):
        fit_head(store, "logreg")


def test_a_store_without_labels_is_refused():
    store = FakeStore()
    store.labels[:] = -1
    with pytest.raises(InputError, match="has 0 rows that can be used, and 3 classes"):
        fit_head(store)


def test_an_unknown_head_is_met_with_the_nearest():
    with pytest.raises(UnknownName, match="no head is called 'mpl': did you mean mlp"):
        fit_head(FakeStore(), "mpl")


def test_an_unknown_parameter_is_met_with_the_nearest():
    with pytest.raises(
        UnknownName, match="no parameter of the head mlp is called 'drop_out': did you mean dropout"
    ):
        fit_head(FakeStore(), params={"drop_out": 0.1})


def test_a_parameter_out_of_range_is_the_user_s_matter(tmp_path):
    with pytest.raises(
        InputError, match=r"head mlp cannot be trained: dropout must be in \[0, 1\)"
    ):
        fit_head(FakeStore(), params={"dropout": 2}, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_the_seed_must_be_one(seed):
    with pytest.raises(InputError, match=f"--seed must lie between 0 and 4294967295, got {seed}"):
        fit_head(FakeStore(), seed=seed)


def test_a_split_of_other_samples_is_refused():
    store = FakeStore()
    split = splits.holdout(splits.Samples.of([f"other/{i}" for i in range(120)], store.labels), 0.2)
    with pytest.raises(InputError, match="made for other samples than those of"):
        fit_head(store, split=split)
    longer = splits.holdout(
        splits.Samples.of([f"other/{i}" for i in range(300)], np.arange(300) % 3), 0.2
    )
    with pytest.raises(InputError, match="made for other samples"):
        fit_head(store, split=longer)


def test_a_split_with_rows_that_are_quarantined_is_refused():
    store = FakeStore()
    split = splits.holdout(splits.Samples.of(store.sample_ids, store.labels), 0.2)
    store.bad = [11]
    with pytest.raises(
        InputError,
        match=r"1 samples without a label or features in .*, such as 'River/11.png'",
    ):
        fit_head(store, split=split)


def test_a_path_that_is_no_store_is_said(tmp_path):
    with pytest.raises(InputError, match=r"does not exist; expected a folder NAME\.zarr"):
        fit_head(tmp_path / "no.zarr")


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
        config = json.loads((result.run / "config.json").read_text())
        groups = list(dict.fromkeys(names[i].rpartition("_")[0] for i in kept))
        assert config["columns"] == ("all" if len(kept) == 8 else groups)
    assert len({path.name for path in Path("runs").iterdir()}) == 4


def test_columns_that_are_not_there_are_met_with_the_nearest():
    store = FakeStore()
    store.columns = lambda array: tuple(f"mean_{i}" for i in range(8))
    with pytest.raises(
        UnknownName, match="no group of columns is called 'meen': did you mean mean"
    ):
        fit_head(store, "logreg", features="mean,meen")


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


def test_what_is_no_way_to_group_is_refused():
    with pytest.raises(InputError, match="is no regular expression"):
        fit_head(FakeStore(), "logreg", group_by="(")
    with pytest.raises(InputError, match=r"it finds nothing in 'Crop/0\.png'"):
        fit_head(FakeStore(), "logreg", group_by="scene")


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


def test_a_share_goes_before_a_shipped_split():
    store = shipping()
    assert fit_head(store, "logreg", 0.25).split == fit_head(FakeStore(), "logreg", 0.25).split


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("shipped", r"cache/toy.tiny.64.zarr does not come with a split; .*--split 0.2"),
        ("half", "no split is called 'half': known are 0.2, shipped, fold:1/5, "),
        ("nan", "lies between 0 and 1"),
    ],
)
def test_what_is_no_split_is_refused(split, said):
    with pytest.raises(InputError, match=said):
        fit_head(FakeStore(), "logreg", split)


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


def test_a_shipped_split_is_taken_over():
    store = shipping()
    first = fit_head(store, "logreg")
    store.parts = ()
    second = fit_head(store, "logreg", same_split_as=first.run)
    assert (second.split, second.metrics) == (first.split, first.metrics)


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


def test_one_split_is_enough():
    first = fit_head(FakeStore(), "logreg")
    with pytest.raises(InputError, match="--split and --same-split-as exclude each other"):
        fit_head(FakeStore(), "logreg", 0.2, same_split_as=first.run)


def test_what_is_no_run_has_no_split(tmp_path):
    with pytest.raises(InputError, match=r"is not a run: expected a folder with split.json"):
        fit_head(FakeStore(), same_split_as=tmp_path)


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
        assert row not in self.forbidden, f"row {row} of {array} is held out"
        self.late += row in self.held_out
        return super().row(array, row)


WAYS = [(*case, False) for case in CASES]
WAYS += [(*case, True) for case in CASES if case[0] not in ("logreg", "mlp")]  # which hold all


@pytest.mark.parametrize(("head", "task", "streamed"), WAYS)
def test_held_out_rows_are_not_read_before_the_score(head, task, streamed, stores, monkeypatch):
    if streamed:
        monkeypatch.setattr(feed, "HELD_BYTES", 0)
    store = Guarded(stores[task])
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
    store = Guarded(stores["segmentation"])
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
    of_each = pixel_metrics.per_image(np.stack(matrices))
    for name, values in of_each.items():
        assert [float(row[name]) for row in rows] == pytest.approx(values, abs=1e-5)
        np.testing.assert_array_equal(masks.images[name], values)
    content = json.loads((run / "metrics.json").read_text())
    assert content["metrics"]["pooled_iou"]["value"] == expected["pooled_iou"].value
    assert content["confusion"] == masks.confusion.tolist()


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


def test_a_head_for_another_task_names_those_that_there_are(stores):
    with pytest.raises(
        InputError,
        match=r"the head mlp is for classification, and .*blobs.zarr is for segmentation: heads for that are conv, vit",
    ):
        fit_head(stores["segmentation"], "mlp")


def test_a_missing_tier_is_named_with_the_command(stores, tmp_path):
    store = embedded(tmp_path, blobs(4, classes=3), 64, ("pooled",))
    with pytest.raises(
        InputError, match=r"the head conv needs the tier dense for segmentation, and .* has pooled: "
        r"add it with samtl embed --tiers dense --out .*blobs.zarr, and the",
    ):  # fmt: skip
        fit_head(store, "conv")


def test_columns_are_of_pooled_features_alone(stores):
    with pytest.raises(
        InputError, match="--features chooses columns of pooled, and this head reads grid"
    ):
        fit_head(stores["classification"], "conv", features="mean")


def test_a_parameter_of_another_head_is_unknown(stores, tmp_path):
    with pytest.raises(UnknownName, match="no parameter of the head conv is called 'depht'"):
        fit_head(stores["classification"], "conv", params={"depht": 2}, out=tmp_path)
    with pytest.raises(UnknownName, match="no parameter of the head logreg is called 'epochs'"):
        fit_head(stores["classification"], "logreg", params={"epochs": 2}, out=tmp_path)
    with pytest.raises(InputError, match="the head vit cannot be trained: width must be"):
        fit_head(stores["classification"], "vit", params={"width": 20}, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


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


def test_a_mask_that_was_quarantined_is_left_out(tmp_path):
    dataset = blobs(24, classes=3)
    read = dataset.read_mask

    def some(sample_id):
        mask = read(sample_id)
        return mask[:-1] if sample_id == "005.png" else mask

    broken = Dataset(**{**vars(dataset), "read_mask": some})
    store = embedded(tmp_path, broken, 64, ("dense",))
    result = fit_head(store, "conv", params=GRIDS["conv"] | {"epochs": 1})
    assert result.left_out_because == {"quarantined": 1, "missing": 0, "unlabelled": 0}
    assert parts_of(result)["left_out"] == ["005.png"]
