"""What is found in a store that is not as it was committed, and how it is told."""

import json
import shutil
from pathlib import Path

import pytest
from made import ARRAYS, ROWS, make, relisted

from samtl._io import seal
from samtl.errors import DamageError, InputError
from samtl.store import verify
from samtl.store.maintenance import compact
from samtl.store.reader import open_store
from samtl.store.state import load_state
from samtl.store.storage import DiskStorage, open_storage
from samtl.store.verify import LEVELS, check
from samtl.store.writer import open_writer


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make(tmp_path_factory.mktemp("verify") / "a.zarr")


@pytest.fixture
def store(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "a.zarr"))


def changed(store, name, **fields):
    """Write a sealed document again with other fields."""
    content = json.loads((store / name).read_bytes()) | fields
    (store / name).write_bytes(seal(content))


@pytest.mark.parametrize("level", LEVELS)
def test_a_whole_store_is_whole(original, level):
    seen = []
    found = check(original, level, lambda *progress: seen.append(progress))
    assert (found.findings, found.leftovers) == ([], [])
    assert (found.rows, found.ok, found.quarantined, found.missing) == (ROWS, ROWS, 0, 0)
    assert (found.blocks, found.files, found.superseded) == (3, 3 * len(ARRAYS), 0)
    assert found.bytes == sum(
        p.stat().st_size for name in ARRAYS for p in original.glob(f"{name}/c.*")
    )
    assert seen == sorted(seen)
    assert seen[-1:] == ([] if level == "quick" else [(found.bytes, found.bytes)])
    assert json.loads(json.dumps(found.to_json()))["ok"] == ROWS


@pytest.mark.parametrize("level", LEVELS)
def test_each_damaged_row_is_named(store, level):
    path = store / "pooled" / "c.1.0"
    data = bytearray(path.read_bytes())
    for position in (2, 7):
        data[32 + position * 24 + 5] ^= 4
    path.write_bytes(data)
    found = check(store, level).findings
    if level == "quick":
        assert found == []
        return
    (one,) = found
    assert (one.what, one.array, one.block, one.damaged_rows) == ("row", "pooled", 1, (18, 23))


def test_a_row_of_another_place_is_damage(store):
    """Its own checksum is right."""
    path = store / "pooled" / "c.0.0"
    data = path.read_bytes()
    path.write_bytes(data[:32] + data[56:80] + data[32:56] + data[80:])
    (one,) = check(store).findings
    assert (one.what, one.damaged_rows) == ("row", (0, 1))


@pytest.mark.parametrize(("what", "at"), [("key", 3), ("index", -20), ("index", -1)])
def test_what_stands_around_the_rows_is_looked_at(store, what, at):
    path = store / "grid" / "c.2.0.0.0"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    (one,) = check(store).findings
    assert (one.what, one.path, one.block) == (what, "grid/c.2.0.0.0", 2)


def test_a_shard_of_another_store_is_not_the_committed_one(store, tmp_path):
    """The same rows with the same checksums, and a record that lies about the whole."""
    changed(store, "log/0.0.json", arrays={
        name: {**shard, "sha256": "0" * 64}
        for name, shard in json.loads((store / "log/0.0.json").read_bytes())["arrays"].items()
    })  # fmt: skip
    assert check(store, "rows").findings == []
    found = check(store, "deep").findings
    assert {(one.what, one.block) for one in found} == {("sha256", 0)}


def test_quarantined_and_missing_rows_are_counted(tmp_path):
    store = make(tmp_path / "a.zarr", bad=[3], stop=2)
    found, opened = check(store), open_store(store)
    assert found.findings == []
    assert (found.ok, found.quarantined, found.missing) == (31, 1, 8)
    assert (found.missing, found.quarantined) == (opened.missing, len(opened.quarantined))
    make(store, bad=[3])
    assert (check(store).ok, check(store).leftovers) == (ROWS - 1, [])


def test_rows_that_are_not_listed_are_counted_apart(store):
    relisted(store, set(range(ROWS)) - {1, 20})
    found = check(store, "deep")
    assert (found.findings, found.rows, found.ok, found.superseded) == ([], ROWS - 2, ROWS - 2, 2)


def test_a_tier_that_has_begun_is_missing(store):
    make(store, arrays=["dense"], stop=1)
    found = check(store)
    assert (found.findings, found.missing, found.ok) == ([], ROWS - 16, 16)


def test_masks_whose_record_is_gone_are_missing(tmp_path):
    store = make(tmp_path / "a.zarr", 9, task="segmentation")
    assert check(store).missing == 9
    make(store, 9, ["mask"], task="segmentation")
    assert check(store, "deep").ok == 9
    (store / "log/0.1.json").unlink()
    assert check(store).missing == 9


# The lists and the log


def test_a_store_that_was_begun_and_nothing_else(tmp_path):
    store = make(tmp_path / "a.zarr", stop=0)
    assert check(store).missing == ROWS
    for path in (store / "samples").iterdir():
        path.unlink()
    assert check(store).begun is False
    assert check(store).findings == []


@pytest.mark.parametrize("name", ["fingerprint.json", "samples/000001.parquet"])
def test_the_lists_are_damaged(store, name):
    (store / name).write_bytes(b"{}")
    (one,) = check(store).findings
    assert one.what in ("identity", "rows")
    assert one.path == name
    (store / name).unlink()
    (one,) = check(store).findings
    assert one.what in ("identity", "rows")


def test_the_table_of_another_store(store, tmp_path):
    other = make(tmp_path / "b.zarr")
    shutil.copy(other / "samples/000001.parquet", store / "samples/000001.parquet")
    (one,) = check(store).findings
    assert (one.what, one.path) == ("rows", "samples/000001.parquet")
    with pytest.raises(DamageError):
        open_store(store)


def test_a_table_before_the_newest(store):
    relisted(store, set(range(ROWS)) - {1})
    path = store / "samples/000000.parquet"
    path.write_bytes((store / "samples/000001.parquet").read_bytes())
    assert check(store, "quick").findings == []
    (one,) = check(store).findings
    assert (one.what, one.path) == ("table", "samples/000000.parquet")


def test_records_after_a_damaged_one_say_nothing(store):
    make(store, arrays=["dense"])
    kept = (store / "log/1.0.json").read_bytes()
    (store / "log/1.0.json").write_bytes(b"{}")
    found = check(store)
    assert {one.path for one in found.findings} == {"log/1.0.json"}
    assert found.missing == 16
    (store / "log/1.0.json").unlink()
    assert "log/1.1.json" in {one.path for one in check(store).findings}
    (store / "log/1.0.json").write_bytes(kept)
    assert check(store).findings == []


@pytest.mark.parametrize("name", ["notes.txt", "01.0.json", "1.json", "-1.0.json"])
def test_what_is_no_record_is_told(store, name):
    (store / "log" / name).write_text("{}")
    (one,) = check(store).findings
    assert (one.what, one.path) == ("record", f"log/{name}")
    with pytest.raises(DamageError):
        open_store(store)


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "0" * 64}, {"block": 3}, {"sequence": 1}, {"status": ["ok"] * 15},
        {"arrays": {"grid99": {"size": 1, "sha256": "", "crc32c": [0] * 16}}},
        {"image_sha256": ["0" * 63] * 16},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_whole_records_that_are_not_of_this_store(store, change):
    changed(store, "log/1.0.json", **change)
    (one,) = (one for one in check(store).findings if one.what == "record")
    assert (one.path, one.block) == ("log/1.0.json", 1)


def test_rows_of_two_images(store):
    """No pass commits them; the records of two copies of a store, mixed, may be such."""
    make(store, arrays=["dense"])
    content = json.loads((store / "log/1.1.json").read_bytes())
    content["image_sha256"][4] = "1" * 64
    changed(store, "log/1.1.json", **content)
    (one,) = (one for one in check(store).findings if one.what == "record")
    assert one.path == "log/1.1.json"


def test_packs_are_compared_with_the_records(store, monkeypatch):
    monkeypatch.setattr("samtl.store.writer.PACK_RECORDS", 2)
    make(store, arrays=["dense"])
    pack = store / "log/pack.npz"
    assert check(store).findings == []
    for content in (pack.read_bytes()[:-3], pack.read_bytes().replace(b"\1", b"\0"), b""):
        pack.write_bytes(content)
        assert {one.what for one in check(store).findings} == {"pack"}
        assert open_store(store).missing == 0


# What is derived


@pytest.mark.parametrize("name", ["zarr.json", "pooled/zarr.json", "valid/c.0", "sample/zarr.json"])
def test_metadata_and_coordinates(store, name):
    for content in (b"{", (store / name).read_bytes()[:-1] + b" ", None):
        if content is None:
            (store / name).unlink()
        else:
            (store / name).write_bytes(content)
        assert (name, "metadata") in {(one.path, one.what) for one in check(store).findings}


def test_what_an_interrupted_pass_has_not_derived_is_no_damage(store):
    """As after a kill between the table or a record and what follows from them."""
    derived = {p: p.read_bytes() for p in store.rglob("*") if p.name in ("zarr.json", "c.0")}
    relisted(store, set(range(ROWS)) - {1})
    for path, content in derived.items():
        path.write_bytes(content)
    found = check(store, "deep")
    assert (found.findings, found.leftovers) == ([], ["zarr.json"])
    valid = store / "valid/c.0"
    valid.write_bytes(valid.read_bytes()[:-2] + b"00")
    assert [one.path for one in check(store).findings] == ["valid/c.0"]


def test_a_list_older_than_the_metadata(store):
    (store / "samples/000001.parquet").unlink()
    (one,) = (one for one in check(store).findings if one.what == "rows")
    assert one.path == "samples/000000.parquet"


# Files that are not committed


def test_what_counts_for_nothing_is_listed(store):
    (store / "log/2.0.json").unlink()
    (store / "pooled/.tmp-1").write_bytes(b"half")
    for name in ("log", "samples", "valid", ".damaged", "."):
        (store / name).mkdir(exist_ok=True)
        (store / name / ".tmp-2").write_bytes(b"half")
    found = check(store)
    assert found.findings == []
    assert found.missing == ROWS - 32
    assert {
        "grid/c.2.0.0.0",
        "pooled/c.2.0",
        "pooled/.tmp-1",
        ".tmp-2",
        "valid/.tmp-2",
        "log/.tmp-2",
        "samples/.tmp-2",
        ".damaged/.tmp-2",
    } <= set(found.leftovers)


def test_a_check_changes_nothing(store):
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in store.rglob("*")}
    check(store, "deep")
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in store.rglob("*")} == before


def test_a_pass_that_writes_meanwhile_is_no_damage(tmp_path, monkeypatch):
    """Before the metadata is compared, and while shards are read."""
    store, began, compare = make(tmp_path / "a.zarr", stop=1), [], verify.compare_derived

    def slow(state):
        if len(began) < 1:
            began.append(make(store))
        return compare(state)

    def go_on(done, all_of):
        if len(began) < 2:
            began.append(make(store, arrays=["dense"]))

    monkeypatch.setattr(verify, "compare_derived", slow)
    assert check(store, "rows", go_on).findings == []
    assert (check(store).missing, len(began)) == (0, 2)


def test_a_store_that_is_compacted_meanwhile_is_no_damage(store, monkeypatch):
    relisted(store, set(range(ROWS)) - {1, 20})
    done, compare = [], verify.compare_derived

    def slow(state):
        if not done:
            done.append(compact(store))
        return compare(state)

    monkeypatch.setattr(verify, "compare_derived", slow)
    found = check(store)
    assert (found.findings, found.superseded, len(done)) == ([], 0, 1)


def test_in_a_bucket(bucket):
    place = make(f"{bucket}/a.zarr")
    found = check(place, "deep")
    assert (found.findings, found.leftovers, found.ok) == ([], [], ROWS)
    storage = open_storage(place)
    content = storage.read("pooled/c.1.0")
    storage.replace("pooled/c.1.0", content[:40] + b"x" + content[41:])
    storage.replace("log/2.0.json", b"{}")
    assert {one.path for one in check(place).findings} == {"pooled/c.1.0", "log/2.0.json"}


def test_bad_arguments(original, tmp_path):
    with pytest.raises(InputError, match="quick"):
        check(original, "slow")
    for place in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputError, match="no samtl store"):
            check(place)


def test_a_writer_that_begins_while_another_ends_leaves_no_damage(tmp_path, monkeypatch):
    """What it derives is of an earlier log; the other's root comes after that."""
    store, replace, begun = make(tmp_path / "a.zarr", stop=1), DiskStorage.replace, []
    earlier = load_state(open_storage(store))
    make(store, stop=2)

    def begin():
        return open_writer(
            open_storage(store), earlier.identity, earlier.table, ARRAYS, state=earlier
        )

    def slow(self, name, content):
        if name == "zarr.json" and not begun:
            begun.append("soon")
            begun.append(begin())
        replace(self, name, content)

    ending = open_writer(open_storage(store), earlier.identity, earlier.table, ARRAYS)
    monkeypatch.setattr(DiskStorage, "replace", slow)
    ending.finish()
    begun[1].finish()
    found = check(store)
    assert (found.findings, found.leftovers) == ([], [])
