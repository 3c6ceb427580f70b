"""Features from elsewhere become a store that all verbs work on."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from PIL import Image
from samtl.cli import app
from typer.testing import CliRunner

import samtl
from samtl.errors import InputError, MismatchError

N, F = 32, 8
DATA = "synthetic:4"  # images of each of eight classes


@pytest.fixture(scope="module")
def dataset():
    from samtl.datasets import resolve

    return resolve(DATA)


@pytest.fixture
def features(dataset):
    """Features that tell the classes apart."""
    noise = np.random.default_rng(0).normal(size=(N, F)).astype(np.float32)
    return noise + 9 * np.eye(F, dtype=np.float32)[list(dataset.labels)]


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """A store of the same dataset, by an encoder of samtl."""
    out = tmp_path_factory.mktemp("own")
    return samtl.embed(DATA, "rcf", image_size=64, tiers=["pooled"], out=out).store


def columns(ids, features, **more):
    return {"id": list(ids), **more} | {f"A{i:02}": features[:, i] for i in range(F)}


def parquet(content, name="alpha.parquet"):
    pq.write_table(pa.table(content), name)
    return name


def in_order(store, dataset, features):
    return features[[dataset.sample_ids.index(name) for name in store.sample_ids]]


def names(dataset):
    return [dataset.classes[label] for label in dataset.labels]


def imported(*arguments, code=0):
    done = CliRunner().invoke(app, ["import", *arguments, "--json", "told.json"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return json.loads(Path("told.json").read_text())


def test_held_out_samples_are_those_of_other_stores(dataset, features, embedded):
    order = np.random.default_rng(1).permutation(N)  # files need not have the dataset's order
    file = parquet(columns(np.array(dataset.sample_ids)[order], features[order], lon=[0.5] * N))
    told = imported(file, "--dataset", DATA)
    assert (told["rows"], told["features"], told["without_features"]) == (N, F, 0)
    assert told["columns_left_out"] == ["lon"]
    store, other = samtl.open(told["store"]), samtl.open(embedded)
    assert (store.encoder, store.untrained, store.tiers) == ("import:alpha", False, ("pooled",))
    assert store.sample_ids == other.sample_ids
    np.testing.assert_array_equal(store.read("pooled"), in_order(store, dataset, features))
    np.testing.assert_array_equal(store.read("image_stats"), other.read("image_stats"))
    assert samtl.verify(store, level="deep", dataset=DATA).exit_code == 0
    one, two = (samtl.fit_head(s, head="knn", split=0.5) for s in (store, other))
    assert one.split.digest == two.split.digest
    assert one.comparison_key == two.comparison_key
    assert one.floor == two.floor
    assert one.metrics["accuracy"].value > 0.9
    assert (
        imported(file, "--dataset", DATA)["fingerprint"] == told["fingerprint"]
    )  # again: nothing to do


def test_a_sweep_compares_it_with_other_encoders(dataset, features, embedded):
    a = imported(parquet(columns(dataset.sample_ids, features)), "--dataset", DATA)["store"]
    swept = samtl.sweep([a, embedded], heads=["knn"], splits=[0.5], seeds=1, jobs=1)
    assert (swept.done, swept.failed) == (2, {})


@pytest.mark.parametrize("kind", ["csv", "list", "npz"])
def test_features_with_labels_need_no_images(dataset, features, kind):
    labels = names(dataset)
    if kind == "csv":
        file = "own.csv"
        pa_csv.write_csv(pa.table(columns(dataset.sample_ids, features, label=labels)), file)
    elif kind == "list":
        rows = pa.array(features.tolist(), pa.list_(pa.float32()))
        file = parquet({"id": dataset.sample_ids, "embedding": rows, "class": labels}, "own.pq")
    else:
        file = "own.npz"
        np.savez(file, ids=dataset.sample_ids, features=features, labels=labels)
    told = imported(file, "--name", "tessera")
    store = samtl.open(told["store"])
    assert (store.encoder, set(store.arrays)) == ("import:tessera", {"pooled"})
    wanted = in_order(store, dataset, features)
    np.testing.assert_allclose(store.read("pooled"), wanted, rtol=1e-6)
    assert samtl.verify(store).exit_code == 0
    for head in ("logreg", "mlp"):
        run = samtl.fit_head(store, head=head, split=0.5)
        assert run.metrics["accuracy"].value > 0.8
    done = samtl.predict(run, from_store=store)
    assert done.rows == N
    model = samtl.load_head(run)
    assert len(model.predict(store)) == N
    Image.new("RGB", (8, 8)).save("one.png")
    with pytest.raises(InputError, match="samtl import"):
        samtl.predict(run, images="one.png")
    with pytest.raises(InputError, match="samtl import"):
        samtl.embed(DATA, "tiny", out=told["store"])


def test_groups_and_parts_of_a_table(dataset, features):
    groups = [f"scene{i % 4}" for i in range(N)]
    parts = ["test" if i % 4 == 0 else "train" for i in range(N)]
    more = {"label": names(dataset), "group": groups, "split": parts}
    store = samtl.open(imported(parquet(columns(dataset.sample_ids, features, **more)))["store"])
    found = dict(zip(store.sample_ids, zip(store.groups, store.parts, strict=True), strict=True))
    assert found == dict(zip(dataset.sample_ids, zip(groups, parts, strict=True), strict=True))


def test_what_is_left_out_is_counted(dataset, features):
    ids = [*dataset.sample_ids[3:], "a", "b"]
    features = np.concatenate([features[3:], features[:2]])
    features[4, 1], features[6, 0] = np.nan, 1e30
    values = columns(ids, features.astype(float))
    values["A00"] = np.where(values["A00"] > 1e29, 1e300, values["A00"])
    told = imported(parquet(values), "--dataset", DATA, code=1)
    assert (told["rows"], told["without_features"], told["not_in_dataset"]) == (N - 3, 3, 2)
    bad = [(one["sample_id"], one["code"]) for one in told["quarantined"]]
    assert sorted(bad) == [(ids[4], "nonfinite"), (ids[6], "nonfinite")]


def test_other_features_do_not_get_into_a_store(dataset, features):
    samtl.import_features(parquet(columns(dataset.sample_ids, features)), dataset=DATA)
    other = parquet(columns(dataset.sample_ids, features + 1))
    with pytest.raises(MismatchError):
        samtl.import_features(other, dataset=DATA)
    with pytest.raises(MismatchError):
        samtl.import_features(parquet(columns(dataset.sample_ids[1:], features[1:])), dataset=DATA)


def hostile(dataset, features):
    """Name files that are refused, and write each."""
    ids, good = list(dataset.sample_ids), columns(dataset.sample_ids, features)
    yield "no-ids.npy", lambda f: np.save(f, features)
    yield "pickled.npz", lambda f: np.savez(f, ids=np.array(ids, object), features=features)
    yield "torn.npz", lambda f: Path(f).write_bytes(b"PK\x03\x04 and no more")
    yield "shape.npz", lambda f: np.savez(f, ids=ids, features=features[:-1])
    yield "flat.npz", lambda f: np.savez(f, ids=ids, features=features[:, 0])
    yield "deep.npz", lambda f: np.savez(f, ids=ids, features=features[None])
    yield "texts.npz", lambda f: np.savez(f, ids=ids, features=features.astype(str))
    yield "other.npz", lambda f: np.savez(f, x=features)
    yield "doubled.parquet", lambda f: parquet({**good, "id": [ids[0], *ids[:-1]]}, f)
    yield "empty.parquet", lambda f: parquet({**good, "id": ["", *ids[1:]]}, f)
    yield "foreign.parquet", lambda f: parquet({**good, "id": [f"no/{i}" for i in ids]}, f)
    yield "no-id.parquet", lambda f: parquet({k: v for k, v in good.items() if k != "id"}, f)
    yield "text.parquet", lambda f: parquet({"id": ids, "note": ids}, f)
    mixed = ["n/a", *map(str, range(N - 1))]
    yield "mixed.parquet", lambda f: parquet({**good, "A00": mixed}, f)
    ragged = [[1.0] * (1 + i % 2) for i in range(N)]
    yield "ragged.parquet", lambda f: parquet({"id": ids, "v": ragged}, f)
    yield "torn.parquet", lambda f: Path(f).write_bytes(b"PAR1 and no more")
    yield "unknown.xyz", lambda f: Path(f).write_bytes(b"")


def test_hostile_files_are_refused_and_leave_nothing(dataset, features, tmp_path):
    for name, write in hostile(dataset, features):
        write(name)
        with pytest.raises(InputError) as refused:
            samtl.import_features(name, dataset=DATA)
        assert len(str(refused.value)) > len(name)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(InputError):
        samtl.import_features("absent.parquet", dataset=DATA)
    file = parquet(columns(dataset.sample_ids, features))
    for options in ({}, {"root": "."}, {"dataset": DATA, "name": "../x"}):
        with pytest.raises(InputError):
            samtl.import_features(file, **options)
