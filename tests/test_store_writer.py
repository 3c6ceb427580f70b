"""Writing: what is committed was safe before, any number of writers share the work, and nothing foreign is adopted."""

import os
import random
import threading

import made
import numpy as np
import pytest
from made import ARRAYS, ROWS, begin, contents, drawn, make, relisted, sha256, state_of, write

from samtl import _io
from samtl.errors import DamageError, InputError, MismatchError, ResourceError
from samtl.store import log, samples, writer
from samtl.store.log import LogState, Record, Shard
from samtl.store.reader import open_store
from samtl.store.storage import DiskStorage
from samtl.store.verify import check


def whole(place, arrays=ARRAYS):
    store = open_store(place)
    assert store.missing == 0
    for name in arrays:
        for row, found in enumerate(store.read(name)):
            np.testing.assert_array_equal(found, drawn(name, f"i{row}"))
    return store


@pytest.fixture
def place(tmp_path):
    return tmp_path / "a"


@pytest.fixture
def packed(place, monkeypatch):
    monkeypatch.setattr(writer, "PACK_RECORDS", 2)
    return make(place, bad=(3,))


@pytest.fixture
def read(monkeypatch):
    """The names of the files that are read."""
    names, real = [], DiskStorage.read
    monkeypatch.setattr(
        DiskStorage, "read", lambda self, name, *most: names.append(name) or real(self, name, *most)
    )
    return names


def test_a_pass_in_parts(place):
    make(place, arrays=("pooled",), stop=1)
    store = open_store(place)
    assert (store.missing, store.valid().sum()) == (ROWS - 16, 16)
    assert not any(state_of(place).table.images)
    make(place, arrays=("pooled", "mask"), bad=(35,))
    assert state_of(place).table.images[17] == sha256("i17")
    before = {
        name: raw for name, raw in contents(place).items() if name.startswith(("pooled/c", "log/"))
    }
    assert before.items() <= contents(make(place)).items()
    state = state_of(place)
    assert (state.marked("committed").all(), len(state.log.records)) == (True, 7)
    assert set(state.required) == {*ARRAYS, "mask"}
    facts = state.log.facts(35)
    assert (facts.committed, facts.ok, facts.codes) == (True, False, {"truncated": "cut short"})
    assert facts.image == facts.mask == sha256("i35")
    whole(place, ["grid"])


def test_rows_that_do_not_count_hold_fill_values(place):
    rows = {name: [drawn(name, "i0"), None, None] for name in ARRAYS}
    status = ["ok", "quarantined:truncated", "unlisted"]
    begin(place, n=3).write_block(0, rows, status, {1: "cut short"}, [sha256("i0"), "", ""])
    store = open_store(place)
    assert (store.valid().tolist(), store.missing) == ([True, False, False], 0)
    assert np.isnan(store.read("grid")[1:]).all()
    assert [(one.row, one.code) for one in store.quarantined] == [(1, "truncated"), (2, "unlisted")]


def test_a_row_that_a_later_array_lacks_is_not_ok():
    """As stores of earlier writers have them."""
    found = LogState(16, 16)
    for sequence, (name, rows) in enumerate({"pooled": 16, "dense": 15}.items()):
        shards = {name: Shard(1, "1" * 64, [0] * rows)}
        record = Record(0, sequence, "", ["ok"] * rows, {}, ["2" * 64] * rows, shards, {})
        found.add(record, "x")
    assert (found.facts(14).ok, found.facts(15).ok) == (True, False)
    assert found.facts(15).committed


def test_writers_at_once_commit_every_block_once(place):
    n, done = 40 * 16, []

    def work(seed):
        one = begin(place, n, ("pooled",))
        order = np.random.default_rng(seed).permutation(one.blocks).tolist()
        done.extend(b for b in order if one.missing(b) and write(one, b) is not None)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(40))
    whole(place, ["pooled"])
    assert len(list((place / "log").iterdir())) == 40
    assert not list(place.rglob(".*"))


@pytest.fixture
def moments(monkeypatch):
    """What happens, in order: folders that are synced, with the names in them, and files that are replaced."""
    done, sync, replace = [], _io.sync_folder, DiskStorage.replace

    def noted(path):
        done.append((path.name, {one.name for one in path.iterdir()}))
        sync(path)

    def replaced(self, name, content):
        done.append((name, None))
        replace(self, name, content)

    monkeypatch.setattr(_io, "sync_folder", noted)
    monkeypatch.setattr(DiskStorage, "replace", replaced)
    return done


def test_what_another_writer_has_just_named_is_made_durable(place, monkeypatch, moments):
    """Else a power cut may keep the rows of the second writer and lose what the first one had written before."""
    read = writer.read_root
    begin(place)
    monkeypatch.setattr(
        writer, "read_root", lambda storage: (moments.append("read"), read(storage))[1]
    )
    begin(place)
    after = moments[moments.index("read") :]
    assert [names for name, names in after[1:] if name == place.name and "zarr.json" in names]


def test_the_folder_of_records_is_durable_before_the_first(place, moments):
    """Another writer may have made it for its own first record, and not yet synced the store's folder."""
    begin(place)
    assert [names for name, names in moments if name == place.name and "log" in names]


def test_a_table_is_durable_before_the_root_that_follows_from_it(place, monkeypatch, moments):
    """Else a power cut may leave a root that says that the newest table is missing."""

    def overtake():
        one = begin(place)
        for block in one.pending():
            write(one, block)
        with monkeypatch.context() as patch:
            patch.setattr(writer.Writer, "derive", lambda self: None)  # which is yet to come
            one.finish()
        moments.clear()

    made.meanwhile(monkeypatch, writer, "begun", overtake)
    read = samples.read_table
    monkeypatch.setattr(
        samples, "read_table", lambda *which: (moments.append(("table", None)), read(*which))[1]
    )
    assert begin(place).state.table.about.number == 1
    order = [name for name, _ in moments]
    assert "samples" in order[order.index("table") : order.index("zarr.json")]


def test_writers_that_share_blocks(place):
    one, two, third = begin(place, arrays=("pooled",)), begin(place), begin(place)
    assert two.state.identity.store_id == one.state.identity.store_id
    write(one, 0, ["pooled"])
    with pytest.raises(DamageError, match=r"row 0 .* another image"):
        write(third, 0, ["image_stats"], images={0: "other"})
    assert third.state.log.image(0) == sha256("i0")
    assert third.missing(0) == ("grid", "image_stats")
    assert write(two, 0, ["pooled", "grid"]) > 0
    assert write(third, 0, ["pooled", "grid"]) is None
    assert one.missing(0) == ()
    assert {path.name for path in (place / "log").iterdir()} == {"0.0.json", "0.1.json"}
    assert two.state.snapshot == third.state.snapshot


def test_writers_that_end_at_once_leave_what_is_derived_up_to_date(place, monkeypatch):
    one, two = begin(place), begin(place)
    write(one, 0)

    def go_on():
        write(two, 1)
        write(two, 2)
        two.finish()

    made.meanwhile(monkeypatch, writer, "derived", go_on)
    one.finish()
    checked = check(place)
    assert (checked.findings, checked.leftovers, checked.missing) == ([], [], 0)


def test_a_shard_without_record_is_taken_as_it_is(place, monkeypatch):
    """But not if it is rotten, or of other images."""

    def killed(record):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("samtl.store.log.Record.sealed", killed)
        with pytest.raises(KeyboardInterrupt):
            write(begin(place), 0)
    shard = place / "pooled" / "c.0.0"
    raw, time = shard.read_bytes(), shard.stat().st_mtime_ns
    for other in ({"images": {0: "other"}}, {"bad": range(16)}):
        with pytest.raises(DamageError, match=r"pooled/c\.0\.0 .*--repair"):
            write(begin(place), 0, **other)
    shard.write_bytes(raw[:100] + bytes([raw[100] ^ 1]) + raw[101:])
    with pytest.raises(DamageError, match=r"pooled/c\.0\.0"):
        write(begin(place), 0)
    shard.write_bytes(raw)
    os.utime(shard, ns=(time, time))
    make(place)
    assert shard.stat().st_mtime_ns == time
    whole(place)


@pytest.mark.parametrize(
    "change", [{"fields": {**made.FIELDS, "image_size": 128}}, {"dataset": "other"}]
)
def test_another_plan_changes_nothing(place, monkeypatch, change):
    """Not even if the second has found no store, and the first has made one when it comes to write."""
    begin(place)
    before = contents(place)
    if "fields" in change:
        with pytest.raises(MismatchError, match="image_size"):
            begin(place, **change)
    monkeypatch.setattr("samtl.store.writer.load_state", lambda storage: None)
    with pytest.raises(MismatchError):
        begin(place, **change)
    assert contents(place) == before
    assert begin(place).state.table.about.number == 0  # the same plan goes on


def test_a_table_that_came_meanwhile(place):
    begin(place)
    state = state_of(place)
    begin(place, labels=[0] * ROWS)
    with pytest.raises(MismatchError, match="sample table"):
        begin(place, labels=[1] * ROWS, state=state)


def test_a_disk_that_gives_back_something_else(place, monkeypatch):
    real = DiskStorage.create

    def lying(self, name, pieces):
        pieces = list(pieces)
        if name.startswith("grid/"):
            pieces[1:5] = [*pieces[3:5], *pieces[1:3]]
        real(self, name, pieces)

    monkeypatch.setattr(DiskStorage, "create", lying)
    with pytest.raises(DamageError, match="something else"):
        write(begin(place), 0)
    assert not list(place.glob("log/*"))


def test_a_file_system_without_exclusive_creation(place, monkeypatch):
    monkeypatch.setattr("os.link", lambda one, other: os.replace(one, other))  # noqa: PTH105
    with pytest.raises(ResourceError):
        begin(place)
    assert not (place / "fingerprint.json").exists()


def test_rows_of_removed_images_come_back(place):
    older, keep = begin(make(place, bad=(30,))), [*range(4, 20), *range(25, ROWS)]
    relisted(place, keep)
    store, before = open_store(place), contents(place)
    assert (store.sample_ids, store.missing) == (tuple(f"i{row}" for row in keep), 0)
    assert store.summary().superseded == ROWS - len(keep)
    assert [one.row for one in store.quarantined] == [keep.index(30)]
    np.testing.assert_array_equal(store.row("pooled", 0), drawn("pooled", "i4"))
    with pytest.raises(InputError):
        store.row("pooled", len(keep))
    older.finish()  # metadata of a newer table stays
    assert contents(place) == before
    store = open_store(make(place))
    assert (len(store), store.row("pooled", 0).tolist()) == (ROWS, drawn("pooled", "i0").tolist())


# Packs


def test_a_pack_replaces_reading_the_records_it_has(packed, read):
    state, plain = state_of(packed), LogState(16, ROWS)
    for record in log.read_log(state.storage, state.identity):
        plain.add(record, "x")
    read.clear()
    assert state_of(packed).log.same(plain)
    assert not [name for name in read if name.startswith("log/") and name.endswith(".json")]
    make(packed, arrays=("original_size",))
    assert len(state_of(packed).log.records) == 6


def test_a_pack_is_never_evidence(packed):
    path = packed / log.PACK
    before, raw = state_of(packed).log, path.read_bytes()
    for seed in range(20):
        for damage in made.DAMAGES:
            if damage.__name__ not in ("swapped", "a_folder"):
                path.write_bytes(raw)
                damage(path, random.Random(seed))
                assert state_of(packed).log.same(before)
    path.write_bytes(raw)
    (packed / "log" / "1.0.json").unlink()
    assert state_of(packed).marked("committed").sum() == ROWS - 16


def test_a_pack_that_is_replaced_meanwhile_is_no_damage(packed, monkeypatch, read):
    def go_on():
        make(packed, arrays=("original_size",))
        read.clear()

    made.meanwhile(monkeypatch, log, "record_places", go_on)
    assert state_of(packed).marked("committed").all()
    assert not [name for name in read if name.startswith("log/") and name.endswith(".json")]
    assert check(packed).findings == []


def test_a_pack_grows_with_the_table(packed):
    rows = [*range(ROWS), *range(48, 60)]  # from the next block on
    samples = [f"i{row}" for row in rows]
    one = begin(packed, rows=rows, labels=[0] * len(rows), samples=samples)
    assert one.pending() == [3]
    write(one, 3)
    one.finish()
    assert state_of(packed).marked("committed").all()
    relisted(packed, keep=range(5, 60))
    assert state_of(packed).superseded == 5
