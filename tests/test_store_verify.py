"""What is found in a store that is not as it was committed, and how it is told."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stubs import StubEncoders, install, stub_store, toy_dataset

from samtl.embed.api import embed
from samtl.errors import DamageError, InputError, SamtlError
from samtl.store import documents
from samtl.store.compact import compact
from samtl.store.layout import INDEX_BYTES
from samtl.store.log import read_record
from samtl.store.reader import open_store
from samtl.store.repair import repair
from samtl.store.verify import LEVELS, check
from samtl.store.writer import locked

ROWS = 40


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A store of three blocks, the last one not full."""
    return stub_store(tmp_path_factory.mktemp("verify"), ROWS)


@pytest.fixture
def store(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "a.zarr"))


def content(store):
    """The files that say something, or hold rows."""
    return sorted(
        path for path in store.rglob("*") if path.is_file() and not path.name.startswith(".")
    )


@pytest.mark.parametrize("level", LEVELS)
def test_a_whole_store_is_whole(original, level):
    found = check(original, level)
    assert (found.findings, found.leftovers) == ([], [])
    assert (found.rows, found.ok, found.quarantined, found.missing) == (ROWS, ROWS, 0, 0)
    assert (found.blocks, found.files) == (3, 3 * len(open_store(original).arrays))
    assert found.bytes == sum(path.stat().st_size for path in original.glob("*/c.*"))


@pytest.mark.parametrize("level", LEVELS)
def test_each_damaged_row_is_named(store, level):
    path = store / "pooled" / "c.1.0"
    data = bytearray(path.read_bytes())
    length = (len(data) - INDEX_BYTES) // 16
    for position in (2, 7):
        data[position * length + 5] ^= 4
    path.write_bytes(data)
    found = check(store, level).findings
    if level == "quick":
        assert found == []
        return
    (one,) = found
    assert (one.what, one.array, one.block) == ("row", "pooled", 1)
    assert one.damaged_rows == (18, 23)


def test_a_row_of_another_place_is_damage(store):
    """Its own checksum is right."""
    path = store / "label" / "c.0"
    data = path.read_bytes()
    path.write_bytes(data[8:16] + data[:8] + data[16:])
    (one,) = check(store).findings
    assert one.what == "row"
    assert set(one.damaged_rows) <= {0, 1}


def test_a_shard_that_is_consistent_in_itself_is_not_the_committed_one(store):
    """Rows in another order and an index that says so: what is read is right, and it is another file."""
    from samtl.store.layout import crc32c

    path = store / "label" / "c.0"
    data = bytearray(path.read_bytes())
    data[0:16] = data[8:16] + data[0:8]
    index = np.frombuffer(data[-INDEX_BYTES:-4], "<u8").reshape(16, 2).copy()
    index[[0, 1]] = index[[1, 0]]
    data[-INDEX_BYTES:] = index.tobytes() + crc32c(index.tobytes()).to_bytes(4, "little")
    before = open_store(store).read("label").tolist()
    path.write_bytes(data)
    assert open_store(store).read("label").tolist() == before
    assert check(store, "rows").findings == []
    (one,) = check(store, "deep").findings
    assert one.what == "sha256"


def test_quarantined_and_missing_rows_are_counted(tmp_path, monkeypatch):
    install(StubEncoders(), monkeypatch.setattr)
    dataset = toy_dataset(ROWS, bad={3: b"no image"})
    out = tmp_path / "b.zarr"
    stop = iter([False, False, True, True, True, True, True, True])
    embed(
        dataset, "stub", out=out, device="cpu", batch_size=16, should_stop=lambda: next(stop, True)
    )
    found = check(out)
    store = open_store(out)
    assert found.missing == store.missing > 0
    assert found.quarantined == len(store.quarantined) == 1
    assert found.ok == int(store.valid().sum())
    assert not found.findings


@pytest.mark.parametrize("array", ["pooled", "label", "grid"])
def test_an_array_that_was_withdrawn_altogether_is_missing(tmp_path, array):
    """In a store of one block nothing else says that it was there."""
    store = stub_store(tmp_path, 7)
    spec = next((store / array).glob("c.*"))
    spec.write_bytes(spec.read_bytes()[:-1])
    with locked(store):
        repair(store, check(store))
    found = check(store)
    assert (found.findings, found.ok, found.missing) == ([], 0, 7)
    opened = open_store(store)
    assert (opened.missing, opened.summary().missing, opened.valid().sum()) == (7, 7, 0)
    other = "grid" if array == "pooled" else "pooled"
    assert opened.valid(other).sum() == 7


def test_masks_whose_record_is_gone_are_missing(tmp_path, monkeypatch):
    """After a compaction they have one of their own, the last of their block."""
    install(StubEncoders(), monkeypatch.setattr)

    def read_mask(sample_id):
        return np.zeros((9, 12), np.uint8)

    def segmented(rows):
        return replace(toy_dataset(rows), labels=(-1,) * rows, read_mask=read_mask)

    store = embed(segmented(9), "stub", out=tmp_path / "a.zarr", device="cpu").store
    embed(segmented(7), "stub", out=store, device="cpu")
    assert compact(store).rows == 7
    last = store / "log" / "0.1.json"
    assert set(read_record(last).files) == {"mask"}
    last.unlink()
    found = check(store)
    assert (found.findings, found.ok, found.missing) == ([], 0, 7)
    assert open_store(store).missing == 7


def test_records_after_a_damaged_one_say_nothing(store):
    record = documents.unseal(store / "log" / "1.json")
    record.pop("checksum")
    later = {**record, "sequence": 1, "files": {}, "withdrawn": ["pooled"]}
    (store / "log" / "1.1.json").write_bytes(documents.seal(later))
    assert check(store).findings == []
    assert check(store).missing == 16
    (store / "log" / "1.json").write_bytes(b"{}")
    found = check(store)
    assert [one.path for one in found.findings] == ["log/1.json"]
    assert 1 not in found.records
    (store / "log" / "1.json").unlink()
    found = check(store)
    assert [one.path for one in found.findings] == ["log/1.1.json"]
    assert "missing" in found.findings[0].told


@pytest.mark.parametrize("name", ["notes.txt", "01.json", "1.0.json", "-1.json"])
def test_what_is_no_record_is_told(store, name):
    (store / "log" / name).write_text("{}")
    (one,) = check(store).findings
    assert (one.what, one.path) == ("record", f"log/{name}")
    with pytest.raises(DamageError):
        open_store(store)


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "0" * 64},
        {"block": 3},
        {"status": ["ok"] * 15},
        {"files": {"grid99": {"path": "grid99/c.1", "size": 1, "sha256": "", "crc32c": [0] * 16}}},
        {"files": {"label": {"path": "label/c.2", "size": 1, "sha256": "", "crc32c": [0] * 16}}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whole_records_that_are_not_of_this_store(store, change):
    record = documents.unseal(store / "log" / "1.json")
    record.pop("checksum")
    record |= change
    name = f"{record['block']}.json"
    if "status" in change:
        record["image_sha256"] = record["image_sha256"][:15]
        for file in record["files"].values():
            file["crc32c"] = file["crc32c"][:15]
    (store / "log" / "1.json").unlink()
    (store / "log" / name).write_bytes(documents.seal(record))
    (one,) = check(store).findings
    assert (one.what, one.path) == ("record", f"log/{name}")


def test_what_counts_for_nothing_is_listed(store):
    (store / "log" / "2.json").unlink()
    (store / "pooled" / ".tmp-1").write_bytes(b"half")
    (store / "log" / ".tmp-2").write_bytes(b"half")
    found = check(store)
    assert found.findings == []
    assert found.missing == ROWS - 32
    assert {"label/c.2", "pooled/c.2.0", "pooled/.tmp-1", "log/.tmp-2"} <= set(found.leftovers)


def test_bytes_are_counted_as_they_are_read(original):
    seen = []
    found = check(original, "rows", lambda done, all_of: seen.append((done, all_of)))
    assert seen[-1] == (found.bytes, found.bytes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    quick = []
    check(original, "quick", lambda *progress: quick.append(progress))
    assert quick == []


def test_a_check_changes_nothing_and_needs_no_lock(store):
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in store.rglob("*")}
    check(store, "deep")
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in store.rglob("*")} == before
    with locked(store):
        assert check(store).findings == []


def test_bad_arguments(original, tmp_path):
    with pytest.raises(InputError, match="quick"):
        check(original, "slow")
    with pytest.raises(InputError, match="no samtl store"):
        check(tmp_path)
    with pytest.raises(SamtlError):
        check(tmp_path / "nothing")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_no_damage(store):
    (store / "label" / "c.0").chmod(0)
    with pytest.raises(PermissionError):
        check(store)
