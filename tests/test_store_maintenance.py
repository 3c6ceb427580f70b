"""What is damaged is removed, so that the next pass redoes exactly that; and compaction."""

import errno
import json
import os
import random
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import zarr
from made import ARRAYS, DAMAGES, ROWS, a_folder, contents, files, make, relisted

from samtl import _io
from samtl.errors import DamageError, InputError, ResourceError
from samtl.store.maintenance import ASIDE, compact, repair
from samtl.store.reader import open_store
from samtl.store.samples import SampleTable
from samtl.store.storage import open_storage
from samtl.store.verify import check
from samtl.store.writer import open_writer


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make(tmp_path_factory.mktemp("maintenance") / "a.zarr")


@pytest.fixture
def store(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "a.zarr"))


def repaired(store, level="rows"):
    done = repair(open_storage(store), check(store, level))
    assert check(store).findings == []
    assert check(store).leftovers == []
    return done


def rows(store):
    """Every listed row, as bytes, by array and sample."""
    opened = open_store(store)
    return {
        (array, sample): opened.row(array, row).tobytes()
        for array in opened.arrays
        for row, sample in enumerate(opened.sample_ids)
    }


# Repair


def test_a_damaged_row_costs_its_block_and_no_other(store, original):
    path = store / "pooled/c.1.0"
    path.write_bytes(path.read_bytes()[::-1])
    done = repaired(store)
    assert (done.blocks, sorted(done.withdrawn[1]), done.rewritten) == (1, sorted(ARRAYS), [])
    assert done.set_aside == ["log/1.0.json"]
    assert open_store(store).missing == 16
    make(store)
    assert check(store, "deep").findings == []
    assert rows(store) == rows(original)


def test_a_tier_that_came_later_is_redone_alone(store, original):
    make(store, arrays=["dense"])
    (store / "dense/c.0.0.0.0").unlink()
    assert repaired(store, "quick").withdrawn == {0: ["dense"]}
    assert open_store(store).valid("pooled").all()
    shutil.rmtree(store / "grid")
    assert sorted(repaired(store).withdrawn) == [0, 1, 2]
    make(store, arrays=[*ARRAYS, "dense"])
    assert check(store, "deep").findings == []
    assert rows(store).items() >= rows(original).items()


def test_a_damaged_record_is_set_aside_with_those_after_it(store):
    make(store, arrays=["dense"])
    for content in (b"nonsense", b"more of it"):
        (store / "log/1.0.json").write_bytes(content)
        assert repaired(store).set_aside == ["log/1.1.json", "log/1.0.json"]
        make(store)
        make(store, arrays=["dense"])
        assert check(store, "deep").ok == ROWS
    assert (store / ASIDE / "1.0.json.0").read_bytes() == b"nonsense"
    assert (store / ASIDE / "1.0.json.1").read_bytes() == b"more of it"


@pytest.mark.parametrize(
    "name", ["log/notes.txt", "log/5000.0.json", "log/5000.3.json", "samples/000001.parquet"]
)
def test_what_says_nothing_of_the_rows_is_set_aside(store, original, name):
    """What is no record, a record of a block that there is not, a table between others."""
    relisted(store, set(range(ROWS)) - {1})
    (store / name).write_text("do not lose me")
    done = repaired(store)
    assert (done.set_aside, done.blocks) == ([name], 0)
    assert (store / ASIDE / f"{Path(name).name}.0").read_text() == "do not lose me"
    assert rows(store).items() <= rows(original).items()


def test_what_an_interrupted_pass_left_is_removed(store):
    """A shard may be of images that have changed since."""
    (store / "log/1.0.json").unlink()
    (store / "valid/.tmp-1").write_bytes(b"half")
    with pytest.raises(DamageError, match=r"c\.1.*verify --repair"):
        make(store, images={17: "another"})
    done = repaired(store)
    assert {"pooled/c.1.0", "grid/c.1.0.0.0", "valid/.tmp-1"} <= set(done.removed)
    assert done.blocks == 0
    assert open_store(store).missing == 16
    make(store)
    assert check(store, "deep").findings == []


def test_metadata_is_written_again(store, original):
    before = contents(store)
    (store / "zarr.json").write_text("{")
    (store / "pooled/zarr.json").unlink()
    (store / "valid/c.0").write_bytes(b"")
    done = repaired(store)
    assert sorted(done.rewritten) == ["pooled/zarr.json", "valid/c.0", "zarr.json"]
    assert (done.blocks, contents(store)) == (0, before)


def test_a_pack_that_is_damaged_is_removed(store, monkeypatch):
    monkeypatch.setattr("samtl.store.writer.PACK_RECORDS", 2)
    make(store, arrays=["dense"])
    (store / "log/pack.npz").write_bytes(b"")
    assert repaired(store).removed == ["log/pack.npz"]


@pytest.mark.parametrize("name", ["pooled/c.1.0", "pooled/zarr.json", "log/1.0.json", "valid/c.0"])
def test_a_folder_in_the_place_of_a_file_is_not_removed(store, name):
    a_folder(store / name, None)
    (store / name / "notes.txt").write_text("of somebody")
    before = contents(store)
    with pytest.raises(DamageError, match=f"{name} is a folder.*move it elsewhere"):
        repair(open_storage(store), check(store))
    assert contents(store) == before


@pytest.mark.parametrize("name", ["fingerprint.json", "samples/000001.parquet"])
def test_what_everything_refers_to_cannot_be_repaired(store, name):
    (store / name).write_bytes(b"{}")
    with pytest.raises(DamageError, match="copy"):
        repair(open_storage(store), check(store))


def test_nothing_is_done_to_a_whole_store(store):
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in store.rglob("*")}
    done = repaired(store)
    assert (done.rewritten, done.set_aside, done.withdrawn, done.removed) == ([], [], {}, [])
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in store.rglob("*")} == before


@pytest.mark.parametrize("seed", range(8))
def test_after_any_damage_a_repair_and_a_pass_give_the_same_rows(store, original, seed):
    """Several damages at once, but to the lists that cannot be had again."""
    chance = random.Random(seed)
    possible = [
        p for p in files(store) if p.name != "fingerprint.json" and p.parent.name != "samples"
    ]
    for path in chance.sample(possible, 4):
        if path.exists():
            chance.choice([one for one in DAMAGES if one is not a_folder])(path, chance)
    repaired(store)
    make(store)
    assert check(store, "deep").findings == []
    assert rows(store) == rows(original)


def test_in_a_bucket(bucket):
    place = make(f"{bucket}/a.zarr")
    storage = open_storage(place)
    storage.replace("log/1.0.json", b"{}")
    storage.replace("zarr.json", b"{}")
    done = repaired(place)
    assert (done.set_aside, done.rewritten) == (["log/1.0.json"], ["valid/c.0", "zarr.json"])
    assert storage.read(f"{ASIDE}/1.0.json.0") == b"{}"
    make(place)
    assert check(place, "deep").findings == []
    with pytest.raises(InputError, match="copy it to a disk"):
        compact(place)


# Compaction

KEPT = set(range(ROWS)) - {1, 20}


@pytest.fixture
def changed(store):
    return relisted(store, KEPT)


def test_what_counts_is_kept_to_the_bit(changed):
    (changed / ASIDE).mkdir()
    (changed / ASIDE / "1.0.json.0").write_bytes(b"kept")
    before, told = rows(changed), []
    done = compact(changed, lambda *progress: told.append(progress))
    assert (done.rows, done.dropped, done.rewritten) == (38, 2, True)
    assert done.bytes_after < done.bytes_before
    assert rows(changed) == before
    store = open_store(changed)
    assert (store.snapshot, len(store), store.summary().superseded) == (done.snapshot, 38, 0)
    assert zarr.open_group(changed, mode="r")["grid"].shape[0] == 38
    found = check(changed, "deep")
    assert (found.findings, found.leftovers, found.superseded) == ([], [], 0)
    assert told[-1] == (38, 38)
    assert [p.name for p in changed.parent.iterdir()] == ["a.zarr"]
    assert (changed / ASIDE / "1.0.json.0").read_bytes() == b"kept"
    again = compact(changed)
    assert (again.rewritten, again.dropped, again.snapshot) == (False, 0, done.snapshot)
    assert json.loads(json.dumps(again.to_json()))["rows"] == 38


def test_statuses_reasons_and_hashes_are_kept(tmp_path):
    store = make(tmp_path / "a.zarr", bad=[5, 18], task="segmentation")
    make(store, arrays=["mask"], bad=[5, 18, 30], task="segmentation")
    relisted(store, KEPT, [-1] * len(KEPT))

    def facts():
        opened = open_store(store)
        bad = {(one.sample_id, one.code, one.reason) for one in opened.quarantined}
        names = enumerate(opened.sample_ids)
        images = {name: (opened.image_sha256(row), opened.mask_sha256(row)) for row, name in names}
        return bad, images, set(np.array(opened.sample_ids)[opened.valid("pooled")])

    before = facts()
    assert len(before[0]) == 3
    assert len(before[2]) == len(KEPT) - 2
    compact(store)
    assert facts() == before
    assert check(store, "deep").findings == []


def test_rows_that_are_missing_are_asked_for_first(changed):
    make(changed, arrays=["dense"], stop=1)
    with pytest.raises(InputError, match="run samtl embed first"):
        compact(changed)


def test_a_damaged_row_stops_it_and_nothing_is_lost(changed):
    shard = changed / "pooled/c.0.0"
    data = bytearray(shard.read_bytes())
    data[40] ^= 1
    shard.write_bytes(data)
    before = contents(changed)
    with pytest.raises(DamageError):
        compact(changed)
    assert contents(changed) == before
    assert [p.name for p in changed.parent.iterdir()] == ["a.zarr"]


def test_somebody_elses_files_are_not_lost(changed):
    (changed / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt does not belong"):
        compact(changed)
    assert (changed / "notes.txt").exists()


def test_coordinates_of_columns_that_are_gone_are_its_own(changed):
    state = open_store(changed).state
    columns = {name: getattr(state.table, name) for name in ("samples", "labels", "images", "rows")}
    about = {"dataset": "made", "classes": ("x", "y"), "rows_end": state.table.about.rows_end}
    for parts in (["train"] * len(state.table), ()):
        table = SampleTable.make(**columns, **about, parts=parts)
        open_writer(state.storage, state.identity, table, state.required).finish()
        assert (changed / "part/c.0").is_file() == bool(parts)
    assert check(changed, "deep").findings == []
    assert compact(changed).rewritten


def test_there_must_be_room_for_both(changed, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 1))
    with pytest.raises(ResourceError, match="a second store of"):
        compact(changed)


@pytest.mark.parametrize("exchange", [True, False])
def test_a_disk_that_gives_out_leaves_the_store_as_it_was(changed, monkeypatch, exchange):
    before = contents(changed)

    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if exchange:
        monkeypatch.setattr(_io.AtomicFolder, "publish", full)
    else:
        monkeypatch.setattr(_io, "publish", full)
    with pytest.raises(ResourceError, match="No space"):
        compact(changed)
    assert contents(changed) == before
    assert [p.name for p in changed.parent.iterdir()] == ["a.zarr"]
