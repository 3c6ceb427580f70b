"""Reading a store: the same bytes for every reader of Zarr, and never a wrong row."""

import pickle
import random
import shutil
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import xarray
import zarr
from made import ARRAYS, DAMAGES, ROWS, drawn, make, relisted, sha256

import samtl
from samtl.errors import DamageError, InputError
from samtl.store.reader import Store, open_store, shards

NUMBERS = (*ARRAYS, "dense", "original_size", "mask")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make(tmp_path_factory.mktemp("reader") / "a.zarr", arrays=NUMBERS, bad=(3, 30))


@pytest.fixture
def store(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "a.zarr"))


def test_zarr_and_tensorstore_read_the_same(original):
    group = zarr.open_group(original, mode="r")
    for array in NUMBERS:
        ours = open_store(original).read(array)
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{original / array}/"}}
        for theirs in (group[array][:], tensorstore.open(spec, read=True).result().read().result()):
            assert theirs.dtype == ours.dtype
            assert theirs.tobytes() == ours.tobytes()
    attributes = group["dense"].attrs
    assert (attributes["geoemb:type"], attributes["geoemb:dimensions"]) == ("chip", 3)
    (convention,) = attributes["zarr_conventions"]
    assert convention["uuid"] == "61c12cc5-0e28-4056-999a-480cf3fb7e4c"


def test_xarray_has_the_coordinates(original, tmp_path):
    ours = open_store(original)
    with xarray.open_zarr(original, chunks=None) as dataset:
        assert set(dataset.data_vars) == set(NUMBERS)
        assert dataset["dense"].dims == ("sample", "channel", "y", "x")
        assert dataset["mask"].dims == ("sample", "mask_y", "mask_x")
        for name, values in {
            "feature": list("abcde"),
            "sample": list(ours.sample_ids),
            "valid": ours.valid().tolist(),
            "label_name": [ours.classes[i] for i in ours.labels],
        }.items():
            assert dataset[name].values.tolist() == values
        one = dataset.sel(sample="i7")["pooled"]
        np.testing.assert_array_equal(one, drawn("pooled", "i7"))
        means = dataset["pooled"].where(dataset["valid"]).groupby("label").mean()
        wanted = [ours.read("pooled")[ours.valid() & (ours.labels == i)].mean(0) for i in (0, 1)]
        np.testing.assert_allclose(means, wanted, rtol=1e-6)
        dataset[["pooled"]].load().to_netcdf(tmp_path / "a.nc")
    with xarray.open_dataset(tmp_path / "a.nc") as saved:
        assert saved["pooled"].values.tobytes() == ours.read("pooled").tobytes()
        assert saved.attrs["dataset"] == "made"


def test_listed_rows_as_xarray(store, monkeypatch):
    pytest.importorskip("dask")
    derived = {p: p.read_bytes() for p in store.rglob("*") if p.name in ("zarr.json", "c.0")}
    old = open_store(store)
    new = open_store(relisted(store, range(5, ROWS)))
    found = new.to_xarray()
    assert found["pooled"].chunks[0][:2] == (11, 16)
    np.testing.assert_array_equal(found.sel(sample="i7")["pooled"], drawn("pooled", "i7"))
    with pytest.raises(DamageError, match=r"zarr\.json"):  # of another table
        old.to_xarray()
    for path, content in derived.items():  # as if killed before they were written
        path.write_bytes(content)
    with pytest.raises(DamageError, match=r"zarr\.json"):
        new.to_xarray()
    assert len(old.to_xarray()["sample"]) == ROWS
    monkeypatch.setitem(sys.modules, "dask", None)
    with pytest.raises(InputError, match=r"samtl\[xarray\]"):
        old.to_xarray()


def test_what_it_says(original):
    store = samtl.open(original)
    said = {
        "name": "a", "path": original, "encoder": "stub", "dataset": "made", "task": "classification",
        "classes": ("x", "y"), "tiers": ("pooled", "grid", "dense"), "block_rows": 16, "untrained": True,
        "groups": (), "parts": (),
    }  # fmt: skip
    assert {name: getattr(store, name) for name in said} == said
    assert (store.shape("grid"), store.bytes_of("grid")) == ((ROWS, 3, 2, 2), len(store) * 24)
    assert store.columns("pooled") == tuple("abcde")
    assert [(one.row, one.sample_id, one.code, one.reason) for one in store.quarantined] == [
        (row, f"i{row}", "truncated", "cut short") for row in (3, 30)
    ]
    assert store.image_sha256(5) == store.mask_sha256(5) == sha256("i5")
    assert store.key(5) == sha256(store.fingerprint + sha256("i5"))
    assert {one["device"] for one in store.writers()} == {"cpu"}
    summary = store.summary().to_json()
    assert (summary["rows"], summary["ok"], summary["missing"]) == (ROWS, ROWS - 2, 0)
    assert summary["bytes"] == sum(
        path.stat().st_size for name in NUMBERS for path in original.glob(f"{name}/c.*")
    )
    assert "38 of 40 rows" in repr(store)


def test_rows_in_any_order(original):
    store, wanted = open_store(original), [33, 0, 17, 0]
    found = store.read("pooled", wanted)
    np.testing.assert_array_equal(found, [drawn("pooled", f"i{row}") for row in wanted])
    assert store.read("pooled", []).shape == (0, 5)
    assert not store.row("pooled", 1).flags.writeable
    assert np.isnan(store.read("grid", [3])).all()
    for array, wrong in [("pooled", [w]) for w in (0.0, True, [1], ROWS, -1)] + [("nothing", [0])]:
        with pytest.raises(InputError):
            store.read(array, wrong)


def test_a_store_or_rows_that_are_not_there_yet(tmp_path):
    for place in (tmp_path, tmp_path / "a"):
        with pytest.raises(InputError, match="no store"):
            open_store(place)
    make(tmp_path / "a", stop=0)
    (tmp_path / "a" / "samples").rename(tmp_path / "samples")
    with pytest.raises(InputError, match="embed again"):
        open_store(tmp_path / "a")
    (tmp_path / "samples").rename(tmp_path / "a" / "samples")
    store = open_store(make(tmp_path / "a", stop=1))
    assert store.missing == ROWS - 16
    for array, row, told in (("pooled", 16, "embed"), ("dense", 0, "no array")):
        with pytest.raises(InputError, match=told):
            store.row(array, row)


def test_stores_travel_to_other_processes(store):
    found = pickle.loads(pickle.dumps(open_store(store)))
    assert isinstance(found, Store)
    sent = pickle.dumps(found)
    relisted(store, range(5, ROWS))
    with pytest.raises(InputError, match="open it again"):
        pickle.loads(sent)


def test_few_shards_stay_mapped(original, monkeypatch):
    monkeypatch.setattr(shards, "OPEN_BYTES", 0)
    mapped, real = [], shards.open_shard

    def opened(storage, path):
        shard = real(storage, path)
        mapped.append(weakref.ref(shard.obj))
        return shard

    monkeypatch.setattr(shards, "open_shard", opened)
    store = open_store(original)
    for row in (0, 1, 16, 32):
        store.row("pooled", row)
    assert [one() is None for one in mapped] == [True, False, False]


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_wrong_row_is_ever_returned(original, tmp_path, damage):
    for seed in range(6):
        chance = random.Random(seed)
        store = Path(shutil.copytree(original, tmp_path / str(seed)))
        path = chance.choice(sorted(store.glob("*/c.*.0*")))
        damage(path, chance)
        found, refused = open_store(store), 0
        for name in NUMBERS:
            for row in set(range(ROWS)) - {3, 30}:
                try:
                    np.testing.assert_array_equal(found.row(name, row), drawn(name, f"i{row}"))
                except DamageError:
                    refused += 1
                    assert name in path.parent.name
        # A bit of the key, or of the index, concerns no row.
        assert refused or damage.__name__ in ("flipped", "zeroed", "swapped")


def test_damage_is_refused_for_zarr_too(store):
    path = store / "pooled" / "c.0.0"
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(Exception, match=r"(?i)checksum|crc"):
        open_store(store).zarr()["pooled"][0]
    path = store / "pooled" / "zarr.json"
    path.write_bytes(path.read_bytes().replace(b'"shape":[40,5]', b'"shape":[40,50]'))
    with pytest.raises(DamageError, match=r"pooled/zarr\.json"):
        open_store(store).zarr()
