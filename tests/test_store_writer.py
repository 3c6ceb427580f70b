"""Writing: what is committed was safe before, any number of writers share the work, and nothing foreign is adopted."""

import errno
import os
import threading

import numpy as np
import pytest
from made import ARRAYS, FIELDS, ROWS, begin, contents, drawn, make, relisted, sha256, write

from samtl.errors import DamageError, MismatchError, ResourceError
from samtl.store import writer
from samtl.store.reader import open_store
from samtl.store.state import load_state
from samtl.store.storage import DiskStorage, open_storage
from samtl.store.verify import check
from samtl.store.writer import Writer, open_writer


def state_of(place):
    return load_state(open_storage(place))


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


def test_a_pass_in_parts(place):
    make(place, arrays=("pooled",), stop=1)
    store = open_store(place)
    assert (store.missing, store.valid().sum()) == (ROWS - 16, 16)
    assert not any(state_of(place).table.images)
    make(place, arrays=("pooled",))
    assert state_of(place).table.images[17] == sha256("i17")
    before = {
        name: raw for name, raw in contents(place).items() if name.startswith(("pooled/c", "log/"))
    }
    after = contents(make(place))
    assert before.items() <= after.items()
    assert "log/2.1.json" in after
    whole(place)


def test_nothing_to_do_reads_each_thing_once_and_writes_nothing(place, monkeypatch):
    before = contents(make(place))
    read, real = [], DiskStorage.read
    monkeypatch.setattr(
        DiskStorage, "read", lambda self, name, *most: read.append(name) or real(self, name, *most)
    )
    state = state_of(place)
    one = open_writer(state.storage, state.identity, state.table, ARRAYS, state=state)
    assert one.pending() == []
    one.finish()
    records = [f"log/{block}.0.json" for block in range(3)]
    once = ["fingerprint.json", *records, "log/pack.npz", "samples/000001.parquet"]
    assert sorted(name for name in read if not name.endswith("zarr.json")) == once
    assert contents(place) == before


def test_rows_that_do_not_count_hold_fill_values(place):
    rows = {name: [drawn(name, "i0"), None, None] for name in ARRAYS}
    status = ["ok", "quarantined:truncated", "unlisted"]
    begin(place, n=3).write_block(0, rows, status, {1: "cut short"}, [sha256("i0"), "", ""])
    store = open_store(place)
    assert (store.valid().tolist(), store.missing) == ([True, False, False], 0)
    assert np.isnan(store.read("grid")[1:]).all()
    assert [(one.row, one.code, one.reason) for one in store.quarantined] == [
        (1, "truncated", "cut short"), (2, "unlisted", ""),
    ]  # fmt: skip


# Several writers


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


def test_writers_that_share_blocks(place):
    one, two, third = begin(place, arrays=("pooled",)), begin(place), begin(place)
    assert two.state.identity.store_id == one.state.identity.store_id
    write(one, 0, ["pooled"])
    with pytest.raises(DamageError, match=r"row 0 .* another image"):
        write(third, 0, ["image_stats"], images={0: "other"})
    assert third.earlier_image(0) == sha256("i0")
    assert third.missing(0) == ("grid", "image_stats")
    assert write(two, 0, ["pooled", "grid"]) > 0
    assert write(third, 0, ["pooled", "grid"]) is None
    assert one.missing(0) == ()
    assert {path.name for path in (place / "log").iterdir()} == {"0.0.json", "0.1.json"}
    assert two.state.snapshot == third.state.snapshot


def test_writers_that_end_at_once_leave_what_is_derived_up_to_date(place, monkeypatch):
    one, two = begin(place), begin(place)
    write(one, 0)
    real, others = writer.derived, [two]

    def slow(state, arrays):
        found = real(state, arrays)
        for other in [others.pop()] if others else ():
            write(other, 1)
            write(other, 2)
            other.finish()
        return found

    monkeypatch.setattr(writer, "derived", slow)
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


def test_further_processes_write_from_a_loaded_state(place):
    begin(place)
    further = Writer(state_of(place), ARRAYS)
    for block in further.pending():
        write(further, block)
    assert further.known_good() == 0
    further.finish()
    whole(place)


# What is refused


@pytest.mark.parametrize(
    "change", [{"fields": {**FIELDS, "image_size": 128}}, {"dataset": "other"}]
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


def test_a_full_disk_costs_the_block_alone(place, monkeypatch):
    one = begin(place)
    write(one, 0)

    def full(*args):
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr("os.link", full)
        with pytest.raises(ResourceError, match="no space"):
            write(one, 1)
    assert not list(place.rglob(".tmp-*"))
    whole(make(place))


def test_a_file_system_without_exclusive_creation(place, monkeypatch):
    monkeypatch.setattr("os.link", lambda one, other: os.replace(one, other))  # noqa: PTH105
    with pytest.raises(ResourceError):
        begin(place)
    assert not (place / "fingerprint.json").exists()


# Images come and go


def test_rows_of_removed_images_come_back(place):
    older = begin(make(place))
    relisted(place, set(range(4, ROWS)))
    store, before = open_store(place), contents(place)
    assert (len(store), store.sample_ids[0], store.missing) == (ROWS - 4, "i4", 0)
    assert store.summary().superseded == 4
    np.testing.assert_array_equal(store.row("pooled", 0), drawn("pooled", "i4"))
    older.finish()  # metadata of a newer table stays
    assert contents(place) == before
    assert len(whole(make(place))) == ROWS
