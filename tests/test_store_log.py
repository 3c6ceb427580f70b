"""The log: what is committed follows from the records, and from a pack only if it says the same."""

import json
import random
import shutil

import pytest
from made import ARRAYS, DAMAGES, ROWS, drawn, make, relisted

from samtl._io import seal
from samtl.errors import DamageError
from samtl.store import writer
from samtl.store.log import PACK, LogState, Record, Shard, read_log, record_places
from samtl.store.samples import SampleTable
from samtl.store.state import load_state
from samtl.store.storage import DiskStorage, open_storage
from samtl.store.verify import check
from samtl.store.writer import open_writer


def state_of(store):
    return load_state(open_storage(store))


def altered(path, **fields):
    path.write_bytes(seal(json.loads(path.read_bytes()) | fields))


def test_the_writers_state_is_what_is_on_disk(tmp_path):
    make(tmp_path / "a", stop=2)
    half = state_of(tmp_path / "a")
    assert half.marked("committed").sum() == 32
    make(tmp_path / "a", arrays=("pooled", "mask"), bad=(3,))
    make(tmp_path / "a")
    state = state_of(tmp_path / "a")
    assert state.marked("committed").all()
    assert len(state.log.records) == 3 + 3
    assert set(state.required) == {"grid", "pooled", "image_stats", "mask"}
    facts = state.log.facts(3)
    assert (facts.committed, facts.ok, facts.codes) == (True, False, {"truncated": "cut short"})
    assert facts.image == facts.mask != ""
    assert state.log.same(state_of(tmp_path / "a").log)


@pytest.mark.parametrize(
    "fields",
    [
        {"block": 2}, {"sequence": 1}, {"fingerprint": "0" * 64}, {"status": ["ok"]}, {"status": []},
        {"image_sha256": ["zz"] * 16}, {"mask_sha256": ["0" * 64]},
        {"arrays": {}}, {"arrays": {"other": {"size": 1, "sha256": "", "crc32c": []}}},
        {"arrays": {"pooled": {"size": 1, "sha256": "00", "crc32c": [2**32] * 16}}},
    ],
)  # fmt: skip
def test_a_record_that_is_wrong(tmp_path, fields):
    make(tmp_path / "a")
    altered(tmp_path / "a" / "log" / "1.0.json", **fields)
    with pytest.raises(DamageError, match=r"log/1\.0\.json"):
        state_of(tmp_path / "a")


def test_damaged_records_are_named(tmp_path):
    path = make(tmp_path / "a") / "log" / "1.0.json"
    whole = path.read_bytes()
    for damage in DAMAGES:
        if damage.__name__ not in ("deleted", "longer", "swapped", "a_folder"):
            damage(path, random.Random(1))
            with pytest.raises(DamageError, match=r"log/1\.0\.json"):
                state_of(tmp_path / "a")
            path.write_bytes(whole)


def test_a_lost_record_means_missing_rows_and_a_gap_is_damage(tmp_path):
    make(tmp_path / "a", arrays=("pooled",))
    make(tmp_path / "a")
    altered(tmp_path / "a" / "log" / "1.1.json", image_sha256=["1" * 64] * 16)
    with pytest.raises(DamageError, match=r"log/1\.1\.json.* other images"):
        state_of(tmp_path / "a")
    (tmp_path / "a" / "log" / "1.1.json").unlink()
    assert state_of(tmp_path / "a").marked("committed").sum() == ROWS - 16
    (tmp_path / "a" / "log" / "0.0.json").unlink()
    with pytest.raises(DamageError, match=r"log/0\.0\.json is missing"):
        state_of(tmp_path / "a")


def test_what_does_not_belong_into_the_log(tmp_path):
    make(tmp_path / "a")
    for name in ("x", "0.json", "01.0.json", "0.0.json.bak"):
        (tmp_path / "a" / "log" / name).write_bytes(b"")
        with pytest.raises(DamageError, match=name):
            state_of(tmp_path / "a")
        (tmp_path / "a" / "log" / name).unlink()


@pytest.mark.parametrize("name", ["fingerprint.json", "samples"])
def test_a_store_that_was_not_copied_whole(tmp_path, name):
    path = make(tmp_path / "a") / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DamageError, match=name):
        state_of(tmp_path / "a")


# Packs


@pytest.fixture
def packed(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "PACK_RECORDS", 2)
    return make(tmp_path / "a", bad=(3,))


def test_a_pack_replaces_reading_the_records_it_has(packed, monkeypatch):
    storage = open_storage(packed)
    plain = LogState(16, ROWS)
    for record in read_log(storage, load_state(storage).identity):
        plain.add(record, "x")
    read = []
    real = DiskStorage.read
    monkeypatch.setattr(
        DiskStorage, "read", lambda self, name, *most: read.append(name) or real(self, name, *most)
    )
    assert load_state(storage).log.same(plain)
    assert not [name for name in read if name.startswith("log/") and name.endswith(".json")]
    make(packed, n=ROWS, arrays=("original_size",))
    assert len(load_state(storage).log.records) == 6


def test_a_pack_is_never_evidence(packed):
    storage, path = open_storage(packed), packed / PACK
    before, raw = load_state(storage).log, path.read_bytes()
    for seed in range(20):
        for damage in DAMAGES:
            if damage.__name__ not in ("swapped", "a_folder"):
                path.write_bytes(raw)
                damage(path, random.Random(seed))
                assert load_state(storage).log.same(before)
    path.write_bytes(raw)
    (packed / "log" / "1.0.json").unlink()
    assert load_state(storage).marked("committed").sum() == ROWS - 16


def test_a_pack_that_is_replaced_meanwhile_is_no_damage(packed, monkeypatch):
    storage, real, read, done = open_storage(packed), DiskStorage.read, [], []

    def reading(self, name, *most):
        read.append(name)
        return real(self, name, *most)

    def listing(storage, tell):
        found = record_places(storage, tell)
        if not done:
            done.append(found)
            make(packed, arrays=("original_size",))
            read.clear()
        return found

    monkeypatch.setattr(DiskStorage, "read", reading)
    monkeypatch.setattr("samtl.store.log.record_places", listing)
    assert load_state(storage).marked("committed").all()
    assert not [name for name in read if name.startswith("log/") and name.endswith(".json")]
    assert check(packed).findings == []


def test_a_pack_grows_with_the_table(packed):
    state = state_of(packed)
    old = state.table
    new = range(48, 60)  # from the next block on
    table = SampleTable.make(
        dataset="made", classes=old.about.classes, rows=[*old.rows, *new], labels=[0] * (ROWS + 12),
        samples=[*old.samples, *(f"i{row}" for row in new)],
    )  # fmt: skip
    writer = open_writer(state.storage, state.identity, table, ARRAYS)
    assert writer.pending() == [3]
    rows = {name: [drawn(name, f"i{row}") for row in new] for name in ARRAYS}
    writer.write_block(3, rows, ["ok"] * 12, {}, ["1" * 64] * 12)
    writer.finish()
    state = state_of(packed)
    assert state.marked("committed").all()
    relisted(packed, keep=range(5, 60))
    assert state_of(packed).superseded == 5


def test_a_row_that_a_later_array_lacks_is_not_ok():
    """As stores of earlier writers have them."""
    log = LogState(16, 16)
    for sequence, (name, rows) in enumerate({"pooled": 16, "dense": 15}.items()):
        shard = Shard(1, "1" * 64, [0] * rows)
        log.add(
            Record(0, sequence, "", ["ok"] * rows, {}, ["2" * 64] * rows, {name: shard}, {}), "x"
        )
    assert (log.facts(14).ok, log.facts(15).ok) == (True, False)
    assert log.facts(15).committed
