"""Reading a store: the same bytes for every reader of Zarr, and never a wrong one."""

import hashlib
import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import stubs
import tensorstore
import xarray
import zarr
from samtl.store.documents import seal
from samtl.store.layout import INDEX_BYTES, crc32c
from stubs import everything, small_dataset

from samtl.embed.api import embed
from samtl.errors import DamageError, InputError
from samtl.store import reader
from samtl.store.fingerprint import FILE
from samtl.store.log import read_log, record_name
from samtl.store.reader import open_store

ARRAYS = ("dense", "grid", "pooled", "image_stats", "original_size", "label", "sample_id")
NUMERIC = ARRAYS[:-1]


def shards(store, array):
    """Give the paths of an array's shards, in the order of blocks."""
    found = store.glob(f"{array}/c.*")
    return sorted(found, key=lambda path: int(path.name.split(".")[1]))


# The same bytes for every reader


@pytest.mark.parametrize("array", ARRAYS)
def test_zarr_reads_the_same(small, array):
    theirs = zarr.open_group(small, mode="r")[array][:]
    ours = open_store(small).read(array)
    assert theirs.shape == ours.shape
    if array == "sample_id":
        assert theirs.tolist() == ours.tolist()
    else:
        assert theirs.dtype == ours.dtype
        assert theirs.tobytes() == ours.tobytes()


@pytest.mark.parametrize("array", ARRAYS)
def test_xarray_reads_the_same_with_named_dimensions(small, array):
    dimensions = {
        "dense": ("sample", "channel", "y", "x"),
        "grid": ("sample", "channel", "y_grid", "x_grid"),
        "pooled": ("sample", "feature"),
        "image_stats": ("sample", "statistic"),
        "original_size": ("sample", "height_width"),
        "label": ("sample",),
        "sample_id": ("sample",),
    }
    ours = open_store(small).read(array)
    with xarray.open_zarr(small) as dataset:
        theirs = dataset[array]
        assert theirs.dims == dimensions[array]
        if array == "sample_id":
            assert theirs.values.tolist() == ours.tolist()
        else:
            assert theirs.dtype == ours.dtype
            assert theirs.values.tobytes() == ours.tobytes()


@pytest.mark.parametrize("array", NUMERIC)
def test_tensorstore_reads_the_same(small, array):
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{small / array}/"}}
    theirs = tensorstore.open(spec, read=True).result().read().result()
    ours = open_store(small).read(array)
    assert theirs.dtype == ours.dtype
    assert theirs.tobytes() == ours.tobytes()


def test_group_attributes_say_what_the_store_is(small):
    attributes = zarr.open_group(small, mode="r").attrs["samtl"]
    store = open_store(small)
    assert attributes["fingerprint"] == store.fingerprint
    assert attributes["untrained"] is True
    assert attributes["classes"] == ["class0", "class1", "class2"]
    assert open_store(small).zarr()["label"].shape == (37,)


# What a store tells of itself


def test_labels_and_ids_are_those_of_the_dataset(small):
    store, dataset = open_store(small), small_dataset()
    wanted = dict(zip(dataset.sample_ids, dataset.labels, strict=True))
    assert dict(zip(store.sample_ids, store.labels.tolist(), strict=True)) == wanted
    assert store.read("label").tolist() == store.labels.tolist()
    assert store.read("sample_id").tolist() == list(store.sample_ids)


def test_quarantined_rows_hold_nan_and_say_why(small):
    store = open_store(small)
    bad = {q.row: q for q in store.quarantined}
    assert {(q.sample_id, q.code) for q in bad.values()} == {
        ("class0/0003.png", "truncated"),
        ("class0/0030.png", "empty"),
    }
    assert all("expected" in q.reason for q in bad.values())
    for array in ("dense", "grid", "pooled", "image_stats"):
        is_nan = np.isnan(store.read(array)).reshape(37, -1)
        assert is_nan[sorted(bad)].all()
        assert is_nan.any(axis=1).sum() == 2
    assert np.flatnonzero(~store.valid()).tolist() == sorted(bad)
    assert (store.read("original_size") == 0).all(axis=1).sum() == 2


def test_the_summary_counts(small):
    summary = open_store(small).summary()
    assert (summary.rows, summary.ok, summary.missing) == (37, 35, 0)
    assert summary.per_class == {"class0": 13, "class1": 12, "class2": 12}
    assert {a.name: a.rows for a in summary.arrays} == dict.fromkeys(ARRAYS, 37)
    assert summary.bytes == sum(p.stat().st_size for p in small.glob("*/c.*"))
    assert json.loads(json.dumps(summary.to_json()))["encoder"] == "stub"


def test_the_store_knows_its_columns_and_images(small):
    store = open_store(small)
    assert store.columns("pooled") == tuple(f"column_{i}" for i in range(10))
    assert store.columns("image_stats")[:2] == ("mean_r", "mean_g")
    assert store.shape("pooled") == (37, 10)
    assert (store.dtype("dense"), store.dtype("sample_id")) == ("float16", "string")
    assert store.tiers == ("pooled", "grid", "dense")
    assert len({store.image_sha256(row) for row in range(37)}) == 37
    assert repr(store).startswith("<samtl store")


def test_checksums_are_those_of_the_bytes_that_are_read(small):
    store = open_store(small)
    for row in (0, 17, 36):
        assert store.checksum("pooled", row) == crc32c(store.row("pooled", row).tobytes())
    next((small / "log").glob("1.json")).unlink()
    with pytest.raises(InputError, match=r"row 17 of pooled is not in .*; run samtl embed again"):
        open_store(small).checksum("pooled", 17)
    with pytest.raises(InputError, match="has no array 'mask'"):
        open_store(small).checksum("mask", 0)


def test_a_copy_elsewhere_reads_the_same(small, tmp_path):
    before = everything(open_store(small))
    assert everything(open_store(small.rename(tmp_path / "elsewhere"))) == before


# Which rows are handed out


def test_rows_come_in_the_order_asked_for_with_repeats(small):
    store = open_store(small)
    whole, rows = store.read("pooled"), [36, 0, 17, 17, 5]
    assert store.read("pooled", rows).tobytes() == whole[rows].tobytes()
    assert store.read("pooled", []).shape == (0, 10)
    assert store.read("pooled", np.array([3], np.uint8)).tobytes() == whole[3].tobytes()


def test_each_shard_is_mapped_once_however_the_rows_are_shuffled(small, monkeypatch):
    monkeypatch.setattr(reader, "OPEN_SHARDS", 1)
    mapped, map_shard = [], reader.Store._map_shard

    def count(self, array, block):
        mapped.append(block)
        return map_shard(self, array, block)

    monkeypatch.setattr(reader.Store, "_map_shard", count)
    open_store(small).read("pooled", np.random.default_rng(0).permutation(37))
    assert mapped == [0, 1, 2]


@pytest.mark.parametrize(("most", "kept"), [(64, 3), (2, 2)])
def test_shards_that_are_kept_open_are_bounded_by_number(small, monkeypatch, most, kept):
    monkeypatch.setattr(reader, "OPEN_SHARDS", most)
    alive = []
    map_shard = reader.Store._map_shard

    def remember(self, array, block):
        shard, index = map_shard(self, array, block)
        alive.append(weakref.ref(shard))
        return shard, index

    monkeypatch.setattr(reader.Store, "_map_shard", remember)
    store = open_store(small)
    for row in (0, 16, 32):
        store.read("dense", [row])
    assert sum(ref() is not None for ref in alive) == kept
    mapped = len(alive)
    store.read("dense", [36, 20])  # the last two are kept in any case
    assert len(alive) == mapped


def in_memory(folder):
    """The bytes of files below a folder that count as this process's memory."""
    found, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.partition(" ")[0]:
            here = str(folder) in line
        elif here and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


@pytest.mark.parametrize("shards", [2, 5])
def test_of_large_shards_only_the_last_ones_count_as_memory(
    tmp_path, encoders, monkeypatch, shards
):
    """They stay mapped, so that nothing is looked up again when they are read once more."""
    encoders.IMAGE_SIZE = 512
    path = embed(stubs.toy_dataset(160), "stub", out=tmp_path / "a.zarr", device="cpu").store
    store = open_store(path)
    size = store._records["dense"][0].files["dense"].size
    assert size > 2**22
    monkeypatch.setattr(reader, "OPEN_BYTES", shards * size)
    good = store.read("dense")
    rows = np.random.default_rng(0).permutation(160)
    for _ in range(2):
        assert np.array_equal(store.read("dense", rows), good[rows])
        kept = store.row("dense", 0)
        most = 0
        for row in rows[:40].tolist():
            store.row("dense", row)
            most = max(most, in_memory(path))
        # A page is mapped with its neighbours, and one shard more while another one goes.
        assert size // 16 <= most <= (shards + 1) * size
        assert np.array_equal(kept, good[0])  # what was handed out earlier stays what it is
    assert store._shards["dense"].cache_info().misses == 10


def test_rows_count_as_memory_and_not_the_shards_that_they_are_in(tmp_path, encoders, monkeypatch):
    encoders.IMAGE_SIZE = 512
    path = embed(stubs.toy_dataset(160), "stub", out=tmp_path / "a.zarr", device="cpu").store
    store = open_store(path)
    size = store._records["dense"][0].files["dense"].size
    monkeypatch.setattr(reader, "OPEN_BYTES", size)
    one_of_each = list(range(0, 160, 16))
    for _ in range(3):  # read again, they are no more
        store.read("dense", one_of_each)
        assert in_memory(path) >= 10 * size // 16
    store.read(
        "dense", [*range(1, 8), *range(16, 160, 16)]
    )  # too much together, so that the first goes
    assert in_memory(path) <= size + 2**20


@pytest.mark.parametrize("row", [37, -1, 10**12])
def test_a_row_that_does_not_exist_is_refused(small, row):
    with pytest.raises(InputError, match="rows 0 to 36, asked for"):
        open_store(small).read("pooled", [0, row])


@pytest.mark.parametrize("rows", [np.ones(37, bool), [True, False], [0.5, 1.0], [[0, 1]], ["0"]])
def test_what_is_not_a_list_of_row_numbers_is_refused(small, rows):
    with pytest.raises(InputError, match="row numbers"):
        open_store(small).read("pooled", rows)


def test_an_array_that_does_not_exist_is_refused(small):
    with pytest.raises(InputError, match="no array 'dense'; it has embeddings, grid"):
        open_store(small).read("dense")


def test_a_row_is_not_copied_and_cannot_be_written(small):
    row = open_store(small).row("dense", 0)
    assert not row.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        row[:] = 0


@pytest.mark.parametrize("block", [0, 2])
def test_rows_without_a_record_are_not_handed_out(small, block):
    lost = range(16 * block, min(16 * block + 16, 37))
    (small / record_name(block, 0)).unlink()
    store = open_store(small)
    assert store.missing == len(lost)
    assert not store.valid()[lost].any()
    assert store.image_sha256(lost[0]) == ""
    with pytest.raises(InputError, match=f"row {lost[0]} of pooled is not in .* yet"):
        store.read("pooled")
    kept = [row for row in range(37) if row not in lost]
    assert store.read("pooled", kept).shape == (len(kept), 10)


def test_rows_committed_later_are_seen_when_opened_again(small):
    record = small / record_name(1, 0)
    content = record.read_bytes()
    record.unlink()
    early = open_store(small)
    record.write_bytes(content)
    with pytest.raises(InputError, match="row 16"):
        early.row("pooled", 16)
    late = open_store(small)
    assert late.missing == 0
    assert late.snapshot != early.snapshot


def test_withdrawn_arrays_are_not_handed_out(small):
    before = everything(open_store(small))
    record = read_log(small)[1]
    withdrawal = replace(record, sequence=1, files={}, withdrawn=("grid",))
    (small / record_name(1, 1)).write_bytes(seal(withdrawal.to_dict()))
    store = open_store(small)
    with pytest.raises(InputError, match="row 16 of grid is not in"):
        store.read("grid")
    assert store.read("pooled").tobytes() == before["pooled"]
    assert store.missing == 16
    assert store.valid("pooled")[16:32].any()
    assert not store.valid("grid")[16:32].any()


# Damage


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif how in ("empty", "short", "long", "wide"):
        between = content[:-INDEX_BYTES] + b"\0" + content[-INDEX_BYTES:]
        altered = {"empty": b"", "short": content[:-1], "long": content + b"\0", "wide": between}
        path.write_bytes(altered[how])
    else:
        position = {"first byte": 0, "index": len(content) - INDEX_BYTES, "end": len(content) - 1}[
            how
        ]
        content[position] ^= 0x10
        path.write_bytes(content)


HOW = ("first byte", "index", "end", "empty", "short", "long", "wide", "missing", "folder")


@pytest.mark.parametrize("array", ARRAYS)
def test_a_damaged_shard_is_named_and_spoils_no_other(small, array):
    path = shards(small, array)[1]
    content = path.read_bytes()
    for how in HOW:
        damage(path, how)
        store = open_store(small)
        with pytest.raises(DamageError, match=f"{array}/{path.name}"):
            store.read(array)
        assert len(store.read(array, [0, 15, 32, 36])) == 4
        if how != "folder":
            path.write_bytes(content)


@pytest.mark.parametrize("array", ARRAYS)
def test_no_flipped_byte_gives_a_wrong_row(small, array):
    path = shards(small, array)[2]
    content, wanted = path.read_bytes(), everything(open_store(small))[array]
    step = max(1, len(content) // 80)  # over all rows, their checksums and the index
    refused = 0
    for position in range(0, len(content), step):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        store = open_store(small)
        try:
            read = store.read(array)
        except DamageError:
            refused += 1
        else:  # the checksum inside the shard, which samtl has in its log
            assert (read.tolist() if array == "sample_id" else read.tobytes()) == wanted
    assert refused > 0


@pytest.mark.parametrize("array", ["dense", "pooled", "sample_id"])
def test_exchanged_shards_are_found(small, array):
    one, two, _ = shards(small, array)
    three = one.rename(one.with_suffix(".moved"))
    two.rename(one)
    three.rename(two)
    with pytest.raises(DamageError, match=f"{array}/c"):
        open_store(small).read(array)


def test_a_shard_of_another_store_is_found(small, tmp_path):
    """Row checksums inside the shard fit, only the log knows better."""
    other = shutil.copytree(small, tmp_path / "other.zarr")
    path = shards(small, "pooled")[0]
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    content[40:44] = crc32c(bytes(content[:40])).to_bytes(4, "little")
    path.write_bytes(content)
    assert zarr.open_group(small, mode="r")["pooled"][0].shape == (10,)
    with pytest.raises(DamageError, match="row 0 fails its checksum"):
        open_store(small).read("pooled")
    assert len(open_store(other).read("pooled")) == 37


@pytest.mark.parametrize("name", ["log/1.json", "rows/0.json", FILE])
def test_a_damaged_document_is_named(small, name):
    content = bytearray((small / name).read_bytes())
    for position in range(0, len(content) - 1, len(content) // 20):
        damaged = content.copy()
        damaged[position] ^= 1
        (small / name).write_bytes(damaged)
        with pytest.raises(DamageError, match=name):
            open_store(small)


def test_a_missing_list_of_rows_is_damage(small):
    (small / "rows" / "0.json").unlink()
    with pytest.raises(DamageError, match="rows holds no list of rows"):
        open_store(small)


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "0" * 64},
        {"block": 7},
        {"status": ("ok",) * 5, "image_sha256": ("",) * 5, "files": {}},
    ],
)
def test_a_record_of_another_store_is_damage(small, change):
    record = replace(read_log(small)[0], **change)
    (small / "log" / "0.json").unlink()
    (small / record_name(record.block, 0)).write_bytes(seal(record.to_dict()))
    with pytest.raises(DamageError, match="belongs to another store"):
        open_store(small)


def test_a_record_of_an_unknown_array_is_damage(small):
    record = read_log(small)[0]
    files = {**record.files, "secret": record.files["label"]}
    (small / "log" / "0.json").write_bytes(seal(replace(record, files=files).to_dict()))
    with pytest.raises(DamageError, match="secret"):
        open_store(small)


def test_a_record_that_points_elsewhere_is_damage(small):
    record = read_log(small)[0]
    files = {**record.files, "pooled": record.files["pooled"]._replace(path="../outside")}
    (small / "log" / "0.json").write_bytes(seal(replace(record, files=files).to_dict()))
    with pytest.raises(DamageError, match="pooled"):
        open_store(small).read("pooled")


# What is not a store


def test_what_is_not_a_store_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        open_store(tmp_path / "none.zarr")
    with pytest.raises(InputError, match="is not a samtl store"):
        open_store(tmp_path)


def test_the_key_of_a_row_follows_its_image_and_the_fingerprint(small):
    store = open_store(small)
    text = f"{store.fingerprint}{store.image_sha256(4)}"
    assert store.key(4) == hashlib.sha256(text.encode()).hexdigest()
    assert store.key(5) != store.key(4)


def test_the_plain_zarr_group_is_read_only(small):
    group = open_store(small).zarr()
    assert group["pooled"].shape == (37, 10)
    with pytest.raises(ValueError, match="read-only"):
        group["pooled"][0] = 0


def hostile(**change):
    """Array metadata of a file that somebody else wrote."""

    def written(path):
        content = json.loads(path.read_bytes())
        path.write_text(json.dumps({**content, **change}))

    return written


GZIP = [{"name": "gzip", "configuration": {"level": 9}}]


@pytest.mark.parametrize(
    "damage",
    [
        hostile(shape=[10**15, 10]),
        hostile(shape=[-1, 10]),
        hostile(shape=[37.0, 10]),
        hostile(shape="37"),
        hostile(codecs=GZIP),
        hostile(codecs=[]),
        hostile(data_type="object"),
        hostile(zarr_format=2, filters=[{"id": "pickle"}], dtype="|O"),
        hostile(fill_value=0),
        hostile(chunk_grid={"name": "regular", "configuration": {"chunk_shape": [10**12, 10]}}),
        hostile(attributes={"x": "y"}),
        hostile(storage_transformers=[{"name": "x"}]),
        hostile(more="fields"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"[" * 100_000),
        lambda path: path.write_bytes(b'{"a": ' * 10_000),
        lambda path: path.write_bytes(b"\xff\xfe{}"),
        lambda path: path.write_bytes(b"null"),
        lambda path: path.write_bytes(b" " * (64 * 2**20 + 1)),
        lambda path: path.unlink(),
    ],
)
@pytest.mark.parametrize("name", ["pooled/zarr.json", "zarr.json"])
def test_zarr_sees_no_metadata_that_is_not_this_stores(small, monkeypatch, name, damage):
    monkeypatch.setattr(zarr, "open_group", lambda *args, **options: pytest.fail("zarr saw it"))
    damage(small / name)
    store = open_store(small)
    with pytest.raises(DamageError, match=name):
        store.zarr()
    assert len(store.read("pooled")) == 37  # which does not go by it


def test_the_plain_zarr_group_of_a_store_that_grew_meanwhile(small, monkeypatch):
    store = open_store(small)
    stubs.install(stubs.StubEncoders(), monkeypatch.setattr)
    embed(stubs.toy_dataset(41, bad={3: "truncated", 30: "empty"}), "stub", out=small, device="cpu")
    assert store.zarr()["pooled"].shape == (52, 10)
    assert len(store) == 37
