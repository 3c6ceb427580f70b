"""The log: what is committed follows from the records, and from a pack only if it says the same."""

import random

import pytest
from made import DAMAGES, ROWS, begin, make, relisted, write

from samtl.store import log, writer
from samtl.store.log import LogState, Record, Shard
from samtl.store.state import load_state
from samtl.store.storage import DiskStorage, open_storage
from samtl.store.verify import check


def state_of(store):
    return load_state(open_storage(store))


@pytest.fixture
def packed(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "PACK_RECORDS", 2)
    return make(tmp_path / "a", bad=(3,))


@pytest.fixture
def read(monkeypatch):
    """The names of the files that are read."""
    names, real = [], DiskStorage.read
    monkeypatch.setattr(
        DiskStorage, "read", lambda self, name, *most: names.append(name) or real(self, name, *most)
    )
    return names


def test_arrays_that_come_later(tmp_path):
    make(tmp_path / "a", stop=2)
    assert state_of(tmp_path / "a").marked("committed").sum() == 32
    make(tmp_path / "a", arrays=("pooled", "mask"), bad=(3,))
    make(tmp_path / "a")
    state = state_of(tmp_path / "a")
    assert (state.marked("committed").all(), len(state.log.records)) == (True, 3 + 3)
    assert set(state.required) == {"grid", "pooled", "image_stats", "mask"}
    facts = state.log.facts(3)
    assert (facts.committed, facts.ok, facts.codes) == (True, False, {"truncated": "cut short"})
    assert facts.image == facts.mask != ""


def test_a_row_that_a_later_array_lacks_is_not_ok():
    """As stores of earlier writers have them."""
    found = LogState(16, 16)
    for sequence, (name, rows) in enumerate({"pooled": 16, "dense": 15}.items()):
        shards = {name: Shard(1, "1" * 64, [0] * rows)}
        record = Record(0, sequence, "", ["ok"] * rows, {}, ["2" * 64] * rows, shards, {})
        found.add(record, "x")
    assert (found.facts(14).ok, found.facts(15).ok) == (True, False)
    assert found.facts(15).committed


# Packs


def test_a_pack_replaces_reading_the_records_it_has(packed, read):
    storage = open_storage(packed)
    plain = LogState(16, ROWS)
    for record in log.read_log(storage, state_of(packed).identity):
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
        for damage in DAMAGES:
            if damage.__name__ not in ("swapped", "a_folder"):
                path.write_bytes(raw)
                damage(path, random.Random(seed))
                assert state_of(packed).log.same(before)
    path.write_bytes(raw)
    (packed / "log" / "1.0.json").unlink()
    assert state_of(packed).marked("committed").sum() == ROWS - 16


def test_a_pack_that_is_replaced_meanwhile_is_no_damage(packed, monkeypatch, read):
    real, done = log.record_places, []

    def listing(storage, *tell):
        found = real(storage, *tell)
        if not done:
            done.append(found)
            make(packed, arrays=("original_size",))
            read.clear()
        return found

    monkeypatch.setattr(log, "record_places", listing)
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
