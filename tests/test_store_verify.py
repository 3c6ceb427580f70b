"""What is found in a store that is not as it was committed, and how it is told; readers refuse the same."""

import json
import shutil
from pathlib import Path

import pytest
from made import ARRAYS, KEPT, ROWS, begin, make, meanwhile, relisted, state_of, stats, write

from samtl._io import seal
from samtl.errors import DamageError, InputError
from samtl.store import verify
from samtl.store.maintenance import compact, repair
from samtl.store.reader import open_store
from samtl.store.samples import NO_TABLE
from samtl.store.storage import DiskStorage, open_storage
from samtl.store.verify import LEVELS, check

TABLE = "samples/000001.parquet"


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


def found(store, level="rows"):
    return {(one.what, one.path) for one in check(store, level).findings}


def refused(store, what, path):
    """Whether a check finds this and nothing else, and readers refuse it."""
    assert found(store) == {(what, path)}
    with pytest.raises(DamageError, match=path.replace(".", r"\.")):
        open_store(store)


@pytest.mark.parametrize("level", LEVELS)
def test_a_whole_store_is_whole(original, level):
    before, seen = stats(original), []
    done = check(original, level, lambda *progress: seen.append(progress))
    assert (done.findings, done.leftovers) == ([], [])
    assert (done.rows, done.ok, done.quarantined, done.missing) == (ROWS, ROWS, 0, 0)
    assert (done.blocks, done.files, done.superseded) == (3, 3 * len(ARRAYS), 0)
    shards = (path for name in ARRAYS for path in original.glob(f"{name}/c.*"))
    assert done.bytes == sum(path.stat().st_size for path in shards)
    assert seen == sorted(seen)
    assert seen[-1:] == ([] if level == "quick" else [(done.bytes, done.bytes)])
    assert json.loads(json.dumps(done.to_json()))["ok"] == ROWS
    fixed = repair(open_storage(original), done)
    assert (fixed.rewritten, fixed.set_aside, fixed.withdrawn, fixed.removed) == ([], [], {}, [])
    assert stats(original) == before  # nothing was changed


def test_bad_arguments(original, tmp_path):
    for place, level in ((original, "slow"), (tmp_path, "rows"), (tmp_path / "nothing", "rows")):
        with pytest.raises(InputError, match="quick" if level == "slow" else "no samtl store"):
            check(place, level)


def flip(data):
    for position in (2, 7):
        data[32 + position * 24 + 5] ^= 4


def swap(data):
    data[32:56], data[56:80] = data[56:80], data[32:56]


@pytest.mark.parametrize(
    ("change", "what", "rows"),
    [
        (flip, "row", (18, 23)),
        (swap, "row", (16, 17)),  # each with its own checksum
        (lambda data: data.__setitem__(3, data[3] ^ 1), "key", ()),
        (lambda data: data.__setitem__(-20, data[-20] ^ 1), "index", ()),
        (lambda data: data.__setitem__(-1, data[-1] ^ 1), "index", ()),
        (lambda data: data.append(1), "size", tuple(range(16, 32))),
        (lambda data: data.clear(), "size", tuple(range(16, 32))),
    ],
)
def test_every_byte_of_a_shard_is_looked_at(store, change, what, rows):
    path = store / "pooled" / "c.1.0"
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    (one,) = check(store).findings
    assert (one.what, one.path, one.array, one.block) == (what, "pooled/c.1.0", "pooled", 1)
    assert one.damaged_rows == rows
    assert bool(found(store, "quick")) == (what == "size")


def test_a_shard_of_another_store_is_not_the_committed_one(store):
    """The same rows with the same checksums, and a record that lies about the whole."""
    arrays = json.loads((store / "log/0.0.json").read_bytes())["arrays"]
    for shard in arrays.values():
        shard["sha256"] = "0" * 64
    changed(store, "log/0.0.json", arrays=arrays)
    assert found(store) == set()
    assert {what for what, _ in found(store, "deep")} == {"sha256"}


def test_quarantined_and_missing_rows_are_counted(tmp_path):
    store = make(tmp_path / "a.zarr", bad=[3], stop=2)
    done, opened = check(store), open_store(store)
    assert (done.findings, done.ok, done.quarantined, done.missing) == ([], 31, 1, 8)
    assert (done.missing, done.quarantined) == (opened.missing, len(opened.quarantined))
    make(store, bad=[3])
    assert (check(store).ok, check(store).leftovers) == (ROWS - 1, [])
    done = check(relisted(store, KEPT), "deep")
    assert (done.findings, done.rows, done.ok, done.superseded) == ([], ROWS - 2, ROWS - 3, 2)
    make(store, arrays=["dense"], bad=[3], stop=1)  # lists them again, and a tier has begun
    assert (check(store).findings, check(store).missing) == ([], ROWS - 16)


def test_masks_are_missing_before_any_record_has_one(tmp_path):
    store = make(tmp_path / "a.zarr", 9, task="segmentation")
    assert check(store).missing == 9
    assert check(make(store, 9, ["mask"], task="segmentation"), "deep").ok == 9


def test_a_store_that_was_begun_and_nothing_else(tmp_path):
    store = make(tmp_path / "a.zarr", stop=0)
    assert check(store).missing == ROWS
    for path in (store / "samples").iterdir():
        path.unlink()
    assert (check(store).begun, check(store).findings) == (False, [])


@pytest.mark.parametrize(
    ("what", "name"), [("identity", "fingerprint.json"), ("rows", TABLE), ("rows", "samples")]
)
def test_the_lists_are_damaged_or_missing(store, tmp_path, what, name):
    if name == "samples":
        shutil.copy(store / TABLE, store / "samples/000002.parquet")
        refused(store, what, "samples/000002.parquet")
        shutil.rmtree(store / name)
        refused(store, what, "samples/000000.parquet")
        return
    for content in (b"{}", (make(tmp_path / "b.zarr") / TABLE).read_bytes()):
        (store / name).write_bytes(content)
        refused(store, what, name)
    (store / name).unlink()  # then the metadata is newer than the table
    refused(store, what, name.replace("1", "0"))


def test_a_table_that_the_newest_does_not_follow(store):
    state = state_of(store)
    placed, raw = state.table.placed(state.identity, NO_TABLE.about)
    (store / placed.path).write_bytes(raw)
    assert found(store, "quick") == set()
    assert found(store) == {("table", "samples/000000.parquet")}


@pytest.mark.parametrize(
    "fields",
    [
        {"block": 2}, {"sequence": 1}, {"fingerprint": "0" * 64}, {"status": ["ok"]}, {"status": []},
        {"image_sha256": ["zz"] * 16}, {"image_sha256": ["0" * 63] * 16}, {"mask_sha256": ["0" * 64]},
        {"arrays": {}}, {"arrays": {"other": {"size": 1, "sha256": "", "crc32c": [0] * 16}}},
        {"arrays": {"pooled": {"size": 1, "sha256": "00", "crc32c": [2**32] * 16}}},
    ],
)  # fmt: skip
def test_a_whole_record_that_is_not_of_this_place(store, fields):
    changed(store, "log/1.0.json", **fields)
    refused(store, "record", "log/1.0.json")


def test_records_after_a_damaged_or_lost_one_say_nothing(store):
    make(store, arrays=["dense"])
    first, second = (store / "log" / f"1.{sequence}.json" for sequence in (0, 1))
    first.write_bytes(b"{}")
    refused(store, "record", "log/1.0.json")
    assert check(store).missing == 16
    first.unlink()
    assert ("record", "log/1.1.json") in found(store)
    with pytest.raises(DamageError, match=r"log/1\.0\.json is missing"):
        open_store(store)
    second.unlink()
    assert (check(store).findings, open_store(store).missing) == ([], 16)


def test_rows_of_two_images(store):
    """No pass commits them; the records of two copies of a store, mixed, may be such."""
    make(store, arrays=["dense"])
    images = json.loads((store / "log/1.1.json").read_bytes())["image_sha256"]
    changed(store, "log/1.1.json", image_sha256=[*images[:4], "1" * 64, *images[5:]])
    refused(store, "record", "log/1.1.json")


@pytest.mark.parametrize("name", ["notes.txt", "01.0.json", "1.json", "-1.0.json", "0.0.json.bak"])
def test_what_is_no_record_is_told(store, name):
    (store / "log" / name).write_text("{}")
    refused(store, "record", f"log/{name}")


def test_packs_are_compared_with_the_records(store, monkeypatch):
    monkeypatch.setattr("samtl.store.writer.PACK_RECORDS", 2)
    make(store, arrays=["dense"])
    pack = store / "log/pack.npz"
    assert found(store) == set()
    for content in (pack.read_bytes()[:-3], pack.read_bytes().replace(b"\1", b"\0"), b""):
        pack.write_bytes(content)
        assert found(store) == {("pack", "log/pack.npz")}
        assert open_store(store).missing == 0


@pytest.mark.parametrize("name", ["zarr.json", "pooled/zarr.json", "valid/c.0", "sample/zarr.json"])
def test_metadata_and_coordinates(store, name):
    for content in (b"{", (store / name).read_bytes()[:-1] + b" "):
        (store / name).write_bytes(content)
        assert ("metadata", name) in found(store)
    (store / name).unlink()
    assert ("metadata", name) in found(store)


def test_what_an_interrupted_pass_has_not_derived_is_no_damage(store):
    """As after a kill between the table or a record and what follows from them."""
    derived = {p: p.read_bytes() for p in store.rglob("*") if p.name in ("zarr.json", "c.0")}
    relisted(store, KEPT)
    for path, content in derived.items():
        path.write_bytes(content)
    done = check(store, "deep")
    assert (done.findings, done.leftovers) == ([], ["zarr.json"])
    valid = store / "valid/c.0"
    valid.write_bytes(valid.read_bytes()[:-2] + b"00")
    assert found(store) == {("metadata", "valid/c.0")}


def test_what_counts_for_nothing_is_listed(store):
    (store / "log/2.0.json").unlink()
    expected = {"grid/c.2.0.0.0", "pooled/c.2.0"}
    for folder in ("pooled/", "log/", "samples/", "valid/", ".damaged/", ""):
        (store / folder).mkdir(exist_ok=True)
        (store / f"{folder}.tmp-1").write_bytes(b"half")
        expected.add(f"{folder}.tmp-1")
    done = check(store)
    assert (done.findings, done.missing) == ([], ROWS - 32)
    assert expected <= set(done.leftovers)


def test_a_pass_that_writes_meanwhile_is_no_damage(tmp_path, monkeypatch):
    """Before the metadata is compared, and while shards are read."""
    store, tiers = make(tmp_path / "a.zarr", stop=1), [["dense"]]
    meanwhile(monkeypatch, verify, "load_state", lambda: make(store))
    go_on = lambda *progress: tiers and make(store, arrays=tiers.pop())  # noqa: E731
    assert check(store, "rows", go_on).findings == []
    assert (check(store).missing, tiers) == (0, [])


def test_a_store_that_is_compacted_meanwhile_is_no_damage(store, monkeypatch):
    relisted(store, KEPT)
    meanwhile(monkeypatch, verify, "load_state", lambda: compact(store))
    after = check(store)
    assert (after.findings, after.superseded, after.rows) == ([], 0, len(KEPT))


def test_a_writer_that_begins_while_another_ends_leaves_no_damage(tmp_path, monkeypatch):
    """What it derives is of an earlier log; the other's root comes after that."""
    store, replace, begun = make(tmp_path / "a.zarr", stop=1), DiskStorage.replace, []
    earlier = state_of(store)
    make(store, stop=2)

    def slow(self, name, content):
        if name == "zarr.json" and not begun:
            begun.append("soon")
            begun.append(begin(store, state=earlier))
        replace(self, name, content)

    ending = begin(store)
    monkeypatch.setattr(DiskStorage, "replace", slow)
    ending.finish()
    begun[1].finish()
    done = check(store)
    assert (done.findings, done.leftovers) == ([], [])


@pytest.mark.parametrize("killed", [True, False])
def test_a_writer_that_ends_beside_another_leaves_no_damage(tmp_path, monkeypatch, killed):
    """The coordinates that stay are of its earlier log, the root is the other's; a writer that ends mends them."""
    store, replace, roots = tmp_path / "a.zarr", DiskStorage.replace, []
    one, two = begin(store), begin(store)
    write(one, 0)

    def slow(self, name, content):
        if self is two.state.storage and name == "zarr.json":
            roots.append(content)
            return
        if name == "valid/c.0" and self is one.state.storage and two.pending():
            for block in two.pending():
                write(two, block)
            two.finish()
        replace(self, name, content)
        if name == "zarr.json" and roots:
            replace(self, name, roots.pop())
            if killed:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DiskStorage, "replace", slow)
        if killed:
            with pytest.raises(KeyboardInterrupt):
                one.finish()
        else:
            one.finish()
    left = check(store)
    assert (left.findings, left.leftovers, left.missing) == ([], ["zarr.json"] * killed, 0)
    make(store)
    done = check(store)
    assert (done.findings, done.leftovers, roots) == ([], [], [])
