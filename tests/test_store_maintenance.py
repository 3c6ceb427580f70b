"""What is damaged is removed, so that the next pass redoes exactly that; and compaction."""

import errno
import json
import os
import random
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import zarr
from made import ARRAYS, DAMAGES, KEPT, ROWS, a_folder, contents, files, make, relisted

from samtl import _io
from samtl.errors import DamageError, InputError, ResourceError
from samtl.store.maintenance import ASIDE, compact, repair
from samtl.store.reader import open_store
from samtl.store.samples import SampleTable
from samtl.store.storage import open_storage
from samtl.store.verify import check
from samtl.store.writer import open_writer

LATER, PACK = ("dense", "mask"), "log/pack.npz"


def again(store):
    """The pass that a store is made by, in two parts; of row 30 the mask alone is of no use."""
    make(store, bad=[5, 18], task="segmentation")
    return make(store, arrays=LATER, bad=[5, 18, 30], task="segmentation")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("samtl.store.writer.PACK_RECORDS", 4)
        return again(tmp_path_factory.mktemp("maintenance") / "a.zarr")


@pytest.fixture
def store(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "a.zarr"))


@pytest.fixture
def changed(store):
    """A store with rows that are not listed."""
    return relisted(store, KEPT)


def repaired(store, level="rows"):
    done = repair(open_storage(store), check(store, level))
    after = check(store)
    assert (after.findings, after.leftovers) == ([], [])
    return done


def rows(store):
    """What is known of every listed row, once all is verified: its bytes, what it was made from, why it is bad."""
    assert check(store, "deep").findings == []
    opened = open_store(store)
    bad = {one.sample_id: (one.code, one.reason) for one in opened.quarantined}
    return {
        (array, sample): (
            opened.row(array, row).tobytes(), bool(opened.valid(array)[row]), bad.get(sample),
            opened.image_sha256(row), opened.mask_sha256(row),
        )
        for array in opened.arrays
        for row, sample in enumerate(opened.sample_ids)
    }  # fmt: skip


# Repair


@pytest.mark.parametrize(
    ("names", "withdrawn", "aside"),
    [
        (["pooled/c.1.0"], {1: {*ARRAYS, *LATER}}, ["log/1.1.json", "log/1.0.json"]),
        (["dense/c.0.0.0.0"], {0: {*LATER}}, ["log/0.1.json"]),
        (["log/1.0.json"], {1: set()}, ["log/1.1.json", "log/1.0.json"]),
        (["log/notes.txt"], {}, ["log/notes.txt"]),
        (["log/5000.0.json", "log/5000.3.json"], {}, ["log/5000.0.json", "log/5000.3.json"]),
        (["samples/000001.parquet"], {}, ["samples/000001.parquet"]),  # there is a newer one
        (["zarr.json", "pooled/zarr.json", "valid/c.0", PACK], {}, []),
    ],
)
def test_what_is_damaged_is_redone_and_nothing_else(store, original, names, withdrawn, aside):
    if "samples" in names[0]:
        relisted(store, KEPT)
    for content in (b"do not lose me", b"nor me"):
        for name in names:
            (store / name).write_bytes(content)
        done = repaired(store)
        assert {block: set(lost) for block, lost in done.withdrawn.items()} == withdrawn
        assert done.set_aside == aside
        derived = [name for name in names if name.endswith(("zarr.json", "c.0"))]
        assert sorted(done.rewritten) == sorted(derived)
        assert open_store(store).missing == 16 * len(withdrawn)
        kept = [path.read_bytes() for path in (store / ASIDE).glob("*")]
        assert kept.count(content) == len({*names} & {*aside})
        assert rows(again(store)) == rows(original)


def test_an_array_that_is_lost_is_made_again(store, original):
    shutil.rmtree(store / "grid")
    assert sorted(repaired(store, "quick").withdrawn) == [0, 1, 2]
    assert rows(again(store)) == rows(original)


def test_what_an_interrupted_pass_left_is_removed(store):
    """A shard may be of images that have changed since."""
    for path in store.glob("log/1.*"):
        path.unlink()
    half = f"valid/.tmp-{32 * '0'}"
    (store / half).write_bytes(b"half")
    with pytest.raises(DamageError, match=r"c\.1.*verify --repair"):
        make(store, images={17: "another"}, task="segmentation")
    done = repaired(store)
    assert {"pooled/c.1.0", "grid/c.1.0.0.0", half} <= set(done.removed)
    assert (done.blocks, open_store(store).missing) == (0, 16)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        *(
            (True, name)
            for name in ("pooled/c.1.0", "pooled/zarr.json", "log/1.0.json", "valid/c.0")
        ),
        *((False, name) for name in ("fingerprint.json", "samples/000001.parquet")),
    ],
)
def test_what_is_not_repaired(store, folder, name):
    """A folder in the place of a file holds what is somebody's; what everything refers to is in copies alone."""
    told = f"{name} is a folder.*move it elsewhere" if folder else f"{name} cannot be repaired"
    (store / name).write_bytes(b"{}")
    if folder:
        a_folder(store / name, None)
        (store / name / "notes.txt").write_text("of somebody")
    before = contents(store)
    with pytest.raises(DamageError, match=told):
        repair(open_storage(store), check(store))
    assert contents(store) == before


@pytest.mark.parametrize("seed", range(8))
def test_after_any_damage_a_repair_and_a_pass_give_the_same_rows(store, original, seed):
    """Several damages at once, but to the lists that cannot be had again."""
    chance, lists = random.Random(seed), {"fingerprint.json", "samples"}
    possible = [p for p in files(store) if not {p.name, p.parent.name} & lists]
    for path in chance.sample(possible, 4):
        if path.exists():
            chance.choice([one for one in DAMAGES if one is not a_folder])(path, chance)
    repaired(store)
    assert rows(again(store)) == rows(original)


def test_in_a_bucket(bucket):
    place = make(f"{bucket}/a.zarr")
    storage, done = open_storage(place), check(place, "deep")
    assert (done.findings, done.leftovers, done.ok) == ([], [], ROWS)
    content = storage.read("pooled/c.2.0")
    storage.replace("pooled/c.2.0", content[:40] + b"x" + content[41:])
    for name in ("log/1.0.json", "zarr.json"):
        storage.replace(name, b"{}")
    done = repaired(place)
    assert done.set_aside == ["log/2.0.json", "log/1.0.json"]
    assert done.rewritten == ["valid/c.0", "zarr.json"]
    assert storage.read(f"{ASIDE}/1.0.json.0") == b"{}"
    assert check(make(place), "deep").ok == ROWS
    with pytest.raises(InputError, match="copy it to a disk"):
        compact(place)


# Compaction


def test_what_counts_is_kept_to_the_bit(changed):
    """Values, hashes, and what is wrong with which rows; what was set aside stays beside them."""
    (changed / ASIDE).mkdir()
    (changed / ASIDE / "1.0.json.0").write_bytes(b"kept")
    before, told = rows(changed), []
    done = compact(changed, lambda *progress: told.append(progress))
    assert (done.rows, done.dropped, done.rewritten, told[-1]) == (38, 2, True, (38, 38))
    assert done.bytes_after < done.bytes_before
    assert rows(changed) == before
    store, found = open_store(changed), check(changed)
    assert (store.snapshot, len(store), store.summary().superseded) == (done.snapshot, 38, 0)
    assert (len(store.quarantined), store.valid("pooled").sum(), store.valid().sum()) == (3, 36, 35)
    assert zarr.open_group(changed, mode="r")["grid"].shape[0] == 38
    assert (found.leftovers, found.superseded) == ([], 0)
    assert [p.name for p in changed.parent.iterdir()] == ["a.zarr"]
    assert (changed / ASIDE / "1.0.json.0").read_bytes() == b"kept"
    again = compact(changed)
    assert (again.rewritten, again.dropped, again.snapshot) == (False, 0, done.snapshot)
    assert json.loads(json.dumps(again.to_json()))["rows"] == 38


def test_coordinates_of_columns_that_are_gone_are_its_own(changed):
    state = open_store(changed).state
    columns = {name: getattr(state.table, name) for name in ("samples", "labels", "images", "rows")}
    about = {"dataset": "made", "classes": ("x", "y"), "rows_end": ROWS, "task": "segmentation"}
    for parts in (["train"] * len(state.table), ()):
        table = SampleTable.make(**columns, **about, parts=parts)
        open_writer(state.storage, state.identity, table, state.required).finish()
        assert (changed / "part/c.0").is_file() == bool(parts)
    assert check(changed, "deep").findings == []
    assert compact(changed).rewritten


def full(*args, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


usage = namedtuple("usage", "total used free")(1, 1, 1)
STOPS = {
    "run samtl embed first": (
        InputError,
        lambda store, patch: make(store, arrays=["original_size"], stop=1, task="segmentation"),
    ),
    r"pooled/c\.0\.0": (DamageError, lambda store, patch: (store / "pooled/c.0.0").write_bytes(bytes(740))),
    r"notes\.txt does not": (InputError, lambda store, patch: (store / "notes.txt").write_text("")),
    "a second store of": (
        ResourceError, lambda store, patch: patch.setattr(shutil, "disk_usage", lambda path: usage),
    ),
    "No space": (ResourceError, lambda store, patch: patch.setattr(_io, "publish", full)),
    "No space left": (
        ResourceError, lambda store, patch: patch.setattr(_io.AtomicFolder, "publish", full),
    ),
}  # fmt: skip


@pytest.mark.parametrize("told", STOPS)
def test_what_stops_it_loses_nothing(changed, monkeypatch, told):
    """Rows that are missing or damaged, somebody's file, no room for both, a disk that gives out at once or last."""
    error, prepare = STOPS[told]
    prepare(changed, monkeypatch)
    before = contents(changed)
    with pytest.raises(error, match=told):
        compact(changed)
    assert contents(changed) == before
    assert [p.name for p in changed.parent.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize(
    "name", ["notes.txt", ".git/HEAD", ".tmp-mine", "samples/a.csv", "pooled/a.txt"]
)
def test_files_of_others_in_a_store_are_kept(changed, name):
    mine = changed / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("months of work")
    with pytest.raises(InputError, match=mine.name):
        compact(changed)
    repair(open_storage(changed), check(changed))
    assert mine.read_text() == "months of work"
    shutil.move(mine, changed.parent / "elsewhere")
    assert compact(changed).rewritten


def test_what_killed_processes_left_in_a_store_is_no_obstacle(changed):
    (changed / "pooled" / f".tmp-{'0' * 32}").write_text("half of a shard")
    assert compact(changed).rewritten
    assert not list(changed.rglob(".tmp-*"))
