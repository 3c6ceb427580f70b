"""Several classes for each image, and numbers: from a dataset to a store, a fit, a run, predictions."""

import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from fake_runs import read_csv
from made import begin
from stubs import edit_run, embedded
from toys import Reads, numbers, several
from zips import encoded

import samtl
from samtl.datasets import Dataset
from samtl.errors import DamageError, InputError
from samtl.experiment.fit import fit_baseline, fit_head
from samtl.experiment.predict import predict
from samtl.experiment.run import read_run
from samtl.experiment.tables import read_outputs
from samtl.metrics.paired import paired_differences
from samtl.store.reader import open_store
from samtl.store.samples import SampleTable

pytestmark = pytest.mark.usefixtures("one_thread")

DATA = {"multilabel": several, "regression": numbers}
BEST = {"multilabel": "macro_ap", "regression": "r2"}
LINEAR = {"multilabel": "logreg", "regression": "ridge"}
every_task = pytest.mark.parametrize("task", DATA)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A store of each task."""
    folder = tmp_path_factory.mktemp("stores")
    return {task: embedded(folder, of(60), 64, ("pooled", "grid")) for task, of in DATA.items()}


@every_task
def test_a_store_has_the_labels_of_its_dataset(task, stores):
    data, store = DATA[task](60), open_store(stores[task])
    place = [data.sample_ids.index(name) for name in store.sample_ids]
    assert store.task == task
    np.testing.assert_array_equal(store.labels, data.truth[place])
    X, y = store.features("pooled")
    assert (len(X), y.tolist()) == (60, store.labels.tolist())
    assert store[0]["label"] == store.labels[0].tolist()
    counted = store.summary().per_class
    assert counted == ({"class0": 40, "class1": 20, "class2": 20} if task == "multilabel" else {})
    found = store.to_xarray()
    if task == "regression":
        assert found["target"].values.tolist() == store.labels.tolist()
    else:
        assert found["label_name"].values[0] == ";".join(
            name for name, there in zip(data.classes, store.labels[0], strict=True) if there
        )


def test_a_class_that_is_not_there_is_damage(tmp_path):
    begin(tmp_path / "ok", 4, task="multilabel", labels=[(0,), (1, 0), (), None]).finish()
    store = open_store(tmp_path / "ok")
    assert store.labels.tolist() == [[1, 0], [1, 1], [0, 0], [-1, -1]]
    assert store.state.table.label_names == ("x", "y;x", "", "")
    columns = store.state.table.columns
    at = columns.schema.get_field_index("labels")
    for wrong in (2, -1):
        odd = pa.array([[0], [wrong], [], None], columns.schema.field(at).type)
        table = SampleTable(
            store.state.table.about, columns.set_column(at, columns.schema.field(at), odd)
        )
        place = tmp_path / f"odd{wrong}"
        shutil.copytree(tmp_path / "ok", place)
        raw = table.placed(store.state.identity, store.state.table.about)[1]
        (place / "samples/000001.parquet").write_bytes(raw)
        with pytest.raises(DamageError, match="a label that is not there"):
            open_store(place)


@every_task
def test_relabelled_images_keep_their_rows(task, tmp_path, encoders):
    data = DATA[task](8)
    first = samtl.embed(data, "stub", device="cpu", tiers=["pooled"], out=tmp_path / "a.zarr")
    label = (0, 2) if task == "multilabel" else 7.5
    plans = []
    other = replace(data, labels=(label, *data.labels[1:]))
    options = {"device": "cpu", "tiers": ["pooled"], "out": tmp_path / "a.zarr"}
    samtl.embed(other, "stub", **options, on_event=plans.append)
    assert next(e.changes for e in plans if hasattr(e, "changes")).relabelled == 1
    row = open_store(first.store).row_of[data.sample_ids[0]]
    assert open_store(first.store).labels[row].tolist() == ([1, 0, 1] if label == (0, 2) else 7.5)
    deep = [samtl.verify(first.store, level="deep", dataset=of) for of in (other, data)]
    assert [len(one.images) for one in deep] == [0, 1]


@every_task
def test_a_fit_finds_what_is_planted_and_a_run_holds_it(task, stores):
    run = fit_head(stores[task], LINEAR[task], 0.25, seed=1)
    score = run.metrics[BEST[task]]
    assert score.value > 0.95
    assert 0.7 < score.low <= score.value <= score.high <= 1
    assert run.floor[BEST[task]].value > 0.95  # the colours are all there is to be found
    assert read_run(run.path, whole=True).to_json() == run.to_json()
    rows = read_csv(run.path / "predictions.csv")
    assert len(rows) == run.n_test
    outputs = read_outputs(run)
    store = open_store(stores[task])
    place = [store.row_of[name] for name in outputs.ids]
    np.testing.assert_array_equal(outputs.truth, store.labels[place])
    each = run.to_json()["per_class"]
    assert sum(one["support"] for one in each.values()) == (
        0 if task == "regression" else (outputs.truth > 0).sum()
    )
    head = samtl.load_head(run)
    said = head.predict(store, place)
    assert said.shape == outputs.truth.shape
    expected = outputs.said[:, 0] if task == "regression" else outputs.said >= 0.5
    np.testing.assert_allclose(said, expected, rtol=1e-13)
    if task == "multilabel":
        np.testing.assert_allclose(head.predict_proba(store, place), outputs.said, rtol=1e-13)
    assert hasattr(head, "predict_proba") == (task == "multilabel")


@every_task
def test_the_same_images_give_baselines_the_same_split_and_are_compared(task, stores):
    by_head = fit_head(stores[task], "mlp", 0.25, params={"epochs": 1})
    floor = fit_baseline(DATA[task](60), "floor", 0.25)
    assert floor.split == by_head.split
    assert floor.comparison_key == by_head.comparison_key
    assert set(floor.also) == {"knn"}
    outcomes = {run.name: [read_outputs(run)] for run in (floor, by_head)}
    (gap,) = paired_differences(outcomes, BEST[task]).values()
    expected = floor.metrics[BEST[task]].value - by_head.metrics[BEST[task]].value
    assert gap.value == pytest.approx(expected, abs=1e-6)
    assert gap.low <= gap.value <= gap.high
    with pytest.raises(InputError):
        fit_baseline(DATA[task](60), "cnn")


@every_task
def test_new_images_are_predicted(task, stores, tmp_path):
    data = DATA[task](6)
    folder = tmp_path / "new"
    folder.mkdir()
    for i, name in enumerate(data.sample_ids):
        (folder / f"{i}.png").write_bytes(data.read(name))
    run = fit_baseline(DATA[task](60), "floor", 0.25)
    found = predict(run.path, folder, out=tmp_path / "said.csv")
    rows = read_csv(found.table)
    texts = ["class0", "class0;class1", "class2"] * 2
    if task == "multilabel":
        assert [row["predicted"] for row in rows] == texts
        assert set(rows[0]) == {"image", "predicted", "p_class0", "p_class1", "p_class2"}
        assert found.counts == {"class0": 4, "class1": 2, "class2": 2}
    else:
        said = [float(row["predicted"]) for row in rows]
        assert said == pytest.approx(data.labels, abs=2)
        assert set(rows[0]) == {"image", "predicted"}
        assert found.counts == {"level": 6}
        assert found.means["level"] == pytest.approx(np.mean(data.labels), abs=2)
    head = fit_head(stores[task], LINEAR[task], 0.25)
    stored = predict(head.path, from_store=stores[task], out=tmp_path / "stored.csv")
    assert stored.rows == 60


def test_numbers_far_from_zero_are_read_as_they_were_scored():
    """Such as times: their differences are small beside themselves."""
    data = numbers(60)
    late = replace(data, labels=tuple(1.7e9 + 0.01 * label for label in data.labels))
    run = fit_baseline(late, "floor", 0.25)
    outputs = read_outputs(run)
    error = abs(outputs.said[:, 0] - outputs.truth).mean()
    assert error == pytest.approx(run.metrics["mae"].value)


@every_task
def test_a_run_with_other_predictions_is_damaged(task, stores):
    run = fit_head(stores[task], LINEAR[task], 0.25)
    header, row, *rest = (run.path / "predictions.csv").read_text().splitlines()
    *told, said = row.split(",")
    other = 1 - float(said) if task == "multilabel" else float(said) + 1
    (run.path / "predictions.csv").write_text(
        "\n".join([header, ",".join([*told, str(other)]), *rest])
    )
    with pytest.raises(InputError):
        read_outputs(run)
    wrong = [[1]] if task == "regression" else []
    edit_run(run.path, "metrics.json", lambda content: {**content, "confusion": wrong})
    with pytest.raises(InputError, match="damaged"):
        read_run(run.path)


def test_the_mean_level_of_an_image_is_found():
    """The target is a mean of pixels, so the floor must know it and neighbours nearly."""
    random = np.random.default_rng(0)
    files = {
        f"{i}.png": np.clip(random.normal(random.uniform(60, 190), 25, (24, 24, 3)), 0, 255)
        for i in range(80)
    }
    images = {name: encoded(pixels.astype(np.uint8)) for name, pixels in files.items()}
    levels = tuple(float(pixels.astype(np.uint8).mean()) for pixels in files.values())
    data = Dataset("levels", ("level",), tuple(files), levels, Reads(images))
    run = fit_baseline(data, "floor", 0.25)
    assert run.metrics["r2"].value > 0.999
    assert 0.9 < run.also["knn"]["r2"].value < run.metrics["r2"].value
    mixed = replace(data, labels=tuple(random.permutation(levels).tolist()))
    assert fit_baseline(mixed, "floor", 0.25).metrics["r2"].value < 0.3


@pytest.mark.parametrize(
    ("labels", "classes", "told"),
    [
        (((0,), (2,)), ("a", "b"), "numbers from 0 to 1"),
        (((0,), 1), ("a", "b"), "tuples"),
        ((0.5, float("inf")), ("a",), "finite"),
        ((0.5, 1.0), ("a", "b"), "one class"),
        (((0,), ()), ("a;b", "c"), "';'"),
    ],
)
def test_labels_that_are_refused(labels, classes, told):
    with pytest.raises(InputError, match=told):
        Dataset("odd", classes, ("a.png", "b.png"), labels, Reads({}))


def test_numbers_may_be_missing(tmp_path):
    labels = [0.5, 1.0, 2.0, float("nan")]
    begin(tmp_path / "a", 4, task="regression", classes=("t",), labels=labels).finish()
    store = open_store(tmp_path / "a")
    np.testing.assert_array_equal(store.labels, labels)
    assert store.state.table.columns["target"].null_count == 1


@every_task
def test_a_sweep_trains_the_heads_of_the_task(task, stores):
    """With no room for grids, those heads share the passes over the store."""
    heads = {"regression": {"ridge", "mlp"}, "multilabel": {"logreg", "mlp", "conv", "vit"}}[task]
    by_steps = heads - {"ridge", "logreg"}
    result = samtl.sweep(
        stores[task],
        splits="0.25,0.5",
        seeds=1,
        params={head: {"epochs": 2} for head in by_steps},
        room=0,
        jobs=1,
        out="swept",
    )
    assert result.failed == {}
    assert {row["method"] for row in result.rows} == heads
    assert {row["metric_name"] for row in result.rows} >= {BEST[task]}
    for path in (result.out / "cells").iterdir():
        assert len(read_outputs(read_run(path)).ids) == read_run(path).n_test


def test_a_table_becomes_a_run(tmp_path, encoders):
    data = numbers(30)
    lines = ["file;level;split"]
    for i, (name, label) in enumerate(zip(data.sample_ids, data.labels, strict=True)):
        (tmp_path / f"{i}.png").write_bytes(data.read(name))
        lines.append(f"{i}.png;{label};{'test' if i % 5 == 4 else 'train'}")
    (tmp_path / "t.csv").write_text("\r\n".join(lines))
    place = f"table:{tmp_path / 't.csv'}?target=level"
    made = samtl.embed(place, "stub", device="cpu", tiers=["pooled"], out=tmp_path / "a.zarr")
    run = fit_head(made.store, "ridge")
    assert (run.split.name, run.n_test, run.n_validation, run.n_train) == ("shipped", 6, 5, 19)
    assert run.classes == ("level",)
