"""A fit is the same for the same seed, never peeks at what is held out, and leaves a whole run folder."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from samtl import fit, metrics, splits
from samtl.errors import InputError, UnknownName
from samtl.fit import fit_head
from samtl.trial import Stage
from samtl.heads._base import Candidate, Epoch
from samtl.heads._save import load

CLASSES = ("Crop", "Forest", "River")
FAST = {"hidden": (16,), "epochs": 6, "lr": 5e-3}


class FakeStore:
    """What `fit_head` uses of a store, in memory; records which rows were read."""

    def __init__(self, n=120, seed=0, statistics=True):
        random = np.random.default_rng(seed)
        self.path, self.name = Path("cache/toy.tiny.64.zarr"), "toy.tiny.64"
        self.fingerprint, self.snapshot = "f" * 64, "a" * 64
        self.dataset, self.classes, self.note = "toy", CLASSES, "generated"
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

    def columns(self, array):
        return tuple(f"{array}{i}" for i in range(self.data[array].shape[1]))

    def valid(self, *arrays):
        assert arrays
        valid = self.committed.copy()
        valid[self.bad] = False
        return valid

    def read(self, array, rows):
        assert self.valid(array)[rows].all()
        self.reads.append((array, frozenset(np.asarray(rows).tolist())))
        return self.data[array][rows].copy()


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def predictions(run):
    return (run / "predictions.csv").read_text()


def test_scores_are_those_of_the_saved_head_on_what_was_held_out():
    store = FakeStore()
    result = fit_head(store, "logreg", 0.25, seed=3)
    test = result.split.test
    assert result.split == splits.holdout(store.sample_ids, store.labels, 0.25, 3)
    chances = load(result.run).predict_proba(store.data["pooled"][test])
    assert result.metrics == metrics.bootstrap(store.labels[test], chances, seed=3)
    matrix = metrics.confusion(store.labels[test], chances.argmax(1), 3)
    np.testing.assert_array_equal(result.confusion, matrix)
    np.testing.assert_array_equal(result.per_class.recall, metrics.per_class(matrix).recall)
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
    inner = splits.inner(result.split, store.sample_ids, store.labels)
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

    with (run / "curves.csv").open() as file:
        curves = list(csv.DictReader(file))
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
    assert first.run.name + ".2" == second.run.name
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
    store.arrays = ("grid16", "label")
    with pytest.raises(
        InputError, match="has grid16, label: add it with samtl embed --tiers pooled"
    ):
        fit_head(store)


@pytest.mark.parametrize("array", ["pooled", "image_stats"])
def test_features_that_are_no_numbers_are_named(array, tmp_path):
    store = FakeStore()
    store.data[array][17, 3] = np.inf
    with pytest.raises(
        InputError, match=f"{array} of sample 'River/17.png' is not finite in column '{array}3'"
    ):
        fit_head(store, "logreg", out=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("share", [0, 1, 1.5, -1])
def test_the_share_must_be_a_share(share):
    with pytest.raises(
        InputError, match=r"--split must lie between 0 and 1 \(the held-out share\), got"
    ):
        fit_head(FakeStore(), split=share)


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (0, "'River' has 0 labelled samples"),
        (1, "1 labelled sample,"),
        (2, "'River' has 1 training sample"),
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
    with pytest.raises(InputError, match="has 0 labelled rows of 3 classes"):
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
    split = splits.holdout([f"other/{i}" for i in range(120)], store.labels, 0.2)
    with pytest.raises(InputError, match="made for other samples than those of"):
        fit_head(store, split=split)
    longer = splits.holdout([f"other/{i}" for i in range(300)], np.arange(300) % 3, 0.2)
    with pytest.raises(InputError, match="made for other samples"):
        fit_head(store, split=longer)


def test_a_split_with_rows_that_are_quarantined_is_refused():
    store = FakeStore()
    split = splits.holdout(store.sample_ids, store.labels, 0.2)
    store.bad = [11]
    with pytest.raises(
        InputError,
        match=r"1 rows that .* holds no label or no 'pooled' for, such as 'River/11.png'",
    ):
        fit_head(store, split=split)


def test_a_path_that_is_no_store_is_said(tmp_path):
    with pytest.raises(InputError, match=r"does not exist; expected a folder NAME\.zarr"):
        fit_head(tmp_path / "no.zarr")
