"""A store in the hands of scikit-learn, torch and plain Python: what is given lines up, and only what can be used."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import stubs
import toys
from made import ROWS, begin, drawn, write
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader

import samtl
from samtl import splits
from samtl._html import table as samtl_table
from samtl.errors import InputError, UnknownName

BAD, UNLABELLED = (3, 30), (5, 20)
LABELS = [-1 if row in UNLABELLED else row % 2 for row in range(ROWS)]
USABLE = [row for row in range(ROWS) if row not in (*BAD, *UNLABELLED)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """40 rows; two could not be used, and two have no label."""
    place = tmp_path_factory.mktemp("views") / "a.zarr"
    groups = [f"scene{row // 4}" for row in range(ROWS)]
    writer = begin(place, labels=LABELS, groups=groups)
    for block in writer.pending():
        write(writer, block, bad=BAD)
    writer.finish()
    return samtl.open(place)


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    images = toys.blobs(12, classes=2, shapes=((32, 32), (16, 40)))
    return samtl.open(stubs.embedded(tmp_path_factory.mktemp("masked"), images, 64, ["dense"]))


def test_features_are_those_of_embedded_and_labelled_rows(store):
    X, y = store.features("pooled")
    assert (X.dtype, y.dtype) == (np.float32, np.int64)
    assert store.usable("pooled").tolist() == USABLE
    np.testing.assert_array_equal(X, [drawn("pooled", f"i{row}") for row in USABLE])
    assert y.tolist() == [row % 2 for row in USABLE]
    X, y = store.features("grid", rows=[20, 4])
    np.testing.assert_array_equal(X, [drawn("grid", "i20"), drawn("grid", "i4")])
    assert y.tolist() == [-1, 0]


def test_columns_are_chosen_by_the_names_that_fit_head_takes(store, tmp_path):
    X, _ = store.features("image_stats", columns="*")
    assert X.shape == (len(USABLE), 2)
    seeing = samtl.open(stubs.embedded(tmp_path, stubs.toy_dataset(9), 64, ["pooled"]))
    X, _ = seeing.features(columns="max, mean")
    at = [i for i, name in enumerate(seeing.columns("pooled")) if name[:3] in ("mea", "max")]
    np.testing.assert_array_equal(X, seeing.features()[0][:, at])
    with pytest.raises(UnknownName, match="std"):
        seeing.features(columns="sdt")


def test_a_split_holds_out_what_a_fit_holds_out(store):
    samples = store.samples("pooled")
    split = splits.select(samples, splits.parse(0.25), 7)
    X_train, X_test, y_train, y_test = store.features("pooled", split=0.25, seed=7)
    np.testing.assert_array_equal(X_test, store.read("pooled", split.test))
    np.testing.assert_array_equal(X_train, store.read("pooled", split.seen))
    labels = np.array(LABELS)
    assert (y_train.tolist(), y_test.tolist()) == (
        labels[split.seen].tolist(),
        labels[split.test].tolist(),
    )
    groups = np.array(store.groups)
    assert not {*groups[split.seen]} & {*groups[split.test]}
    again = store.features("pooled", split=split)
    np.testing.assert_array_equal(again[1], X_test)
    with pytest.raises(InputError, match="exclude"):
        store.features("pooled", rows=[1], split=0.2)
    with pytest.raises(InputError, match="other samples"):
        samtl.open(store.path).features(split=splits.holdout(toys.samples_of("abcdef"), 0.5))


def test_scikit_learn_takes_them_as_they_are(store):
    X, y = store.features("pooled")
    groups = np.array(store.groups)[store.usable("pooled")]
    model = make_pipeline(StandardScaler(), LogisticRegression())
    scores = cross_val_score(model, X, y, groups=groups, cv=GroupKFold(3))
    assert ((scores >= 0) & (scores <= 1)).all()


def test_without_any_label_every_embedded_row_is_given(tmp_path):
    writer = begin(tmp_path / "a.zarr", labels=[-1] * ROWS)
    for block in writer.pending():
        write(writer, block, bad=BAD)
    writer.finish()
    X, y = samtl.open(tmp_path / "a.zarr").features()
    assert (len(X), {*y.tolist()}) == (ROWS - 2, {-1})


def test_masks_are_the_targets_of_a_segmentation(masked):
    X, y = masked.features("dense")
    assert X.shape == (12, *masked.shape("dense")[1:])
    np.testing.assert_array_equal(y, masked.read("mask"))
    one = masked[0]
    assert "label" not in one
    np.testing.assert_array_equal(one["mask"], y[0])


def test_more_than_memory_is_refused_before_it_is_read(store, monkeypatch):
    monkeypatch.setattr("samtl.store.reader.views.machine_memory", lambda: 100)
    with pytest.raises(InputError, match="to_xarray"):
        store.features("grid")


def test_a_row_by_its_number_or_id(store):
    one = store[6]
    assert list(one) == [
        "sample_id", "label", "label_name", "group", "valid", *store.arrays
    ]  # fmt: skip
    assert {name: one[name] for name in ("sample_id", "label", "label_name", "group", "valid")} == {
        "sample_id": "i6", "label": 0, "label_name": "x", "group": "scene1", "valid": True
    }  # fmt: skip
    for key in ("i6", np.int64(6), np.str_("i6"), 6 - ROWS):
        np.testing.assert_array_equal(store[key]["pooled"], drawn("pooled", "i6"))
    assert one["grid"].flags.writeable
    assert (store["i5"]["label"], store["i5"]["label_name"]) == (-1, "")
    assert not store[BAD[0]]["valid"]
    assert [row["sample_id"] for row in store] == list(store.sample_ids)
    assert ("i6" in store, "i60" in store, 6 in store) == (True, False, False)
    with pytest.raises(UnknownName, match="i39"):
        store["i99"]
    for key in (ROWS, -ROWS - 1, 1.5, slice(3), [1, 2], None):
        with pytest.raises(InputError):
            store[key]


def test_a_loader_of_batches(store, masked):
    pairs = store.pairs("grid")
    assert len(pairs) == len(USABLE)
    inputs, labels = next(iter(DataLoader(pairs, batch_size=8)))
    np.testing.assert_array_equal(inputs.numpy(), store.read("grid", USABLE[:8]))
    assert labels.tolist() == [row % 2 for row in USABLE[:8]]
    assert len(list(pairs)) == len(pairs)
    np.testing.assert_array_equal(pairs[-1][0], store.row("grid", USABLE[-1]))
    travelled = pickle.loads(pickle.dumps(pairs))
    np.testing.assert_array_equal(travelled[0][0], pairs[0][0])
    batch = next(iter(DataLoader(masked.pairs("dense", rows=[4, 2]), batch_size=2)))
    np.testing.assert_array_equal(batch[1].numpy(), masked.read("mask", [4, 2]))
    records = next(iter(DataLoader(store, batch_size=3)))
    assert records["sample_id"] == ["i0", "i1", "i2"]
    assert records["pooled"].shape == (3, 5)


def test_a_store_is_found_as_a_path_is(store, tmp_path, monkeypatch):
    place = Path(store.path)
    shutil.copytree(place, tmp_path / "cache" / "with space.zarr")
    copy = tmp_path / "cache" / "with space.zarr"
    monkeypatch.setenv("HOME", str(tmp_path))
    for written in (
        copy, str(copy), copy.parent, copy.as_uri(), "~/cache/with space.zarr", samtl.open(copy), "cache", None,
    ):  # fmt: skip
        found = samtl.open(*[] if written is None else [written])
        assert (found.snapshot, Path(found.path).resolve()) == (store.snapshot, copy)
    shutil.copytree(copy, copy.parent / "b.zarr")
    with pytest.raises(InputError, match="several"):
        samtl.open("cache")
    with pytest.raises(InputError, match="no store"):
        samtl.open("~/nothing.zarr")


def test_a_store_travels_from_wherever_it_was_opened(store, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(store.path).parent)
    found = samtl.open("a.zarr")
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(pickle.dumps(found)).snapshot == store.snapshot


def test_rows_by_a_mask(store):
    mask = np.array(LABELS) == 1
    np.testing.assert_array_equal(
        store.read("pooled", mask), store.read("pooled", np.flatnonzero(mask))
    )
    X, y = store.features(rows=mask)
    assert (len(X), {*y.tolist()}) == (mask.sum(), {1})
    assert len(store.pairs(rows=mask)) == mask.sum()
    with pytest.raises(InputError, match="mask"):
        store.read("pooled", mask[1:])


def test_grids_are_saved_as_netcdf(store, tmp_path):
    pytest.importorskip("dask")
    xarray = pytest.importorskip("xarray")
    found = store.to_xarray()
    assert found["grid"].attrs["geoemb:type"] == "chip"
    found.astype("float32").to_netcdf(tmp_path / "a.nc")
    with xarray.open_dataset(tmp_path / "a.nc") as saved:
        np.testing.assert_array_equal(saved["grid"].sel(sample="i7"), drawn("grid", "i7"))


def test_columns_are_names_in_a_text_or_a_list(store, tmp_path):
    np.testing.assert_array_equal(store.features(columns=["*"])[0], store.features(columns="*")[0])
    with pytest.raises(InputError, match="no named columns"):
        store.features("grid", columns="mean")


def test_a_message_does_not_list_every_sample():
    with pytest.raises(UnknownName) as caught:
        raise UnknownName("sample", "i1", [f"i{row}" for row in range(1000)])
    assert "i10" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_notebook_shows_it(store):
    assert "38 of 40" in store._repr_html_()
    assert "<script>" not in samtl_table("<script>", [("<script>",)], ["<script>"])
