"""Commit records, and what they add up to."""

import re
from array import array
from dataclasses import replace

import pytest

from samtl.errors import DamageError
from samtl.store.documents import seal
from samtl.store.log import (
    OK,
    CommittedFile,
    Record,
    committed,
    image_of,
    read_log,
    read_record,
    record_name,
    snapshot,
)


def record(block=0, sequence=0, arrays=("pooled",), **changes):
    """Give a record of a block of two rows."""
    fields = {
        "block": block,
        "sequence": sequence,
        "fingerprint": "f" * 64,
        "status": (OK, "quarantined:truncated"),
        "reasons": {str(16 * block + 1): "cut short"},
        "image_sha256": ("a" * 64, ""),
        "files": {
            a: CommittedFile(f"{a}/c.{block}", 99, "b" * 64, array("I", (1, 2))) for a in arrays
        },
        "writer": {"pid": 1},
    }
    return Record(**{**fields, **changes})


def publish(store, *records):
    (store / "log").mkdir(exist_ok=True)
    for one in records:
        (store / record_name(one.block, one.sequence)).write_bytes(seal(one.to_dict()))
    return store


def test_a_record_comes_back(tmp_path):
    wanted = record(3, 1, arrays=("grid", "label"), withdrawn=("grid",))
    publish(tmp_path, wanted)
    back = read_record(tmp_path / "log" / "3.1.json")
    assert back == wanted
    assert back.first_row == 48
    assert re.fullmatch("[0-9a-f]{64}", back.checksum)


def test_the_image_of_a_row_is_that_of_the_first_record_in_which_it_is_ok():
    bad = "quarantined:changed"
    first = record(status=(OK, bad), image_sha256=("a", "b"))
    second = record(sequence=1, status=(bad, bad), image_sha256=("c", "d"))
    third = record(sequence=2, status=(OK, OK), image_sha256=("e", "f"))
    assert [image_of([third, second, first], at) for at in (0, 1)] == ["a", "f"]
    assert [image_of([second, first], at) for at in (0, 1)] == ["a", "b"]
    assert image_of([record(status=(OK, bad), image_sha256=("a", "")), second], 1) == "d"
    assert image_of([], 0) == ""


def test_records_are_read_in_the_order_of_their_commits(tmp_path):
    publish(tmp_path, record(10), record(2), record(2, 1), *(record(1, n) for n in range(11)))
    places = [(one.block, one.sequence) for one in read_log(tmp_path)]
    assert places == [*((1, n) for n in range(11)), (2, 0), (2, 1), (10, 0)]


def test_a_store_without_a_log_has_no_records(tmp_path):
    assert read_log(tmp_path) == []


def test_a_record_under_another_name_is_damage(tmp_path):
    publish(tmp_path, record(0)).joinpath("log/0.json").rename(tmp_path / "log/1.json")
    with pytest.raises(DamageError, match=r"log/1\.json holds the record of block 0\.0"):
        read_log(tmp_path)


@pytest.mark.parametrize(("lost", "kept"), [(0, (1,)), (1, (0, 2))])
def test_a_record_lost_before_a_later_one_is_damage(tmp_path, lost, kept):
    publish(tmp_path, *(record(0, n) for n in kept))
    with pytest.raises(DamageError, match=re.escape(record_name(0, lost)) + " is missing"):
        read_log(tmp_path)


@pytest.mark.parametrize("name", ["notes.txt", "0.json.bak", "0.1.2.json", "-1.json"])
def test_a_foreign_file_in_the_log_is_named(tmp_path, name):
    (publish(tmp_path, record()) / "log" / name).write_text("hello")
    with pytest.raises(DamageError, match=re.escape(name)):
        read_log(tmp_path)


def test_what_a_killed_writer_left_is_no_record(tmp_path):
    (publish(tmp_path, record()) / "log" / ".tmp-123").write_text("half a rec")
    assert read_log(tmp_path) == [record()]


@pytest.mark.parametrize("field", sorted(record().to_dict().keys() - {"first_row"}))
def test_a_record_that_lacks_a_field_is_damage(tmp_path, field):
    publish(tmp_path, record())
    content = record().to_dict()
    del content[field]
    path = tmp_path / "log/0.json"
    path.write_bytes(seal(content))
    with pytest.raises(DamageError, match=field):
        read_record(path)


@pytest.mark.parametrize(
    "change",
    [
        {"status": (OK,)},
        {"image_sha256": ("a" * 64,) * 3},
        {"files": {"pooled": CommittedFile("pooled/c.0", 99, "b" * 64, array("I", (1, 2, 3)))}},
        {"status": (), "image_sha256": (), "files": {}},
        {"status": (OK,) * 17, "image_sha256": ("",) * 17, "files": {}},
    ],
)
def test_a_record_whose_lists_do_not_fit_is_damage(tmp_path, change):
    publish(tmp_path, record(**change))
    with pytest.raises(DamageError, match="not a commit record"):
        read_log(tmp_path)


def test_each_array_is_committed_by_the_last_record_that_names_it():
    first, second = record(0, 0, ("pooled", "label")), record(0, 1, ("grid",))
    other = record(1, 0, ("pooled",))
    assert committed([first, second, other]) == {
        "pooled": {0: first, 1: other},
        "label": {0: first},
        "grid": {0: second},
    }


def test_a_withdrawn_array_is_no_longer_committed():
    first = record(0, 0, ("pooled", "label"))
    withdrawal = record(0, 1, (), withdrawn=("pooled", "never_there"))
    assert committed([first, withdrawal]) == {"pooled": {}, "label": {0: first}}


def test_a_withdrawn_array_may_be_committed_again():
    first, withdrawal = record(0, 0), record(0, 1, (), withdrawn=("pooled",))
    again = record(0, 2)
    assert committed([first, withdrawal, again])["pooled"] == {0: again}
    at_once = record(0, 1, ("pooled",), withdrawn=("pooled",))
    assert committed([first, at_once])["pooled"] == {0: at_once}


def test_a_snapshot_names_the_set_of_records():
    one, two = replace(record(0), checksum="1" * 64), replace(record(1), checksum="2" * 64)
    assert snapshot([one, two]) == snapshot([two, one])
    assert len({snapshot([]), snapshot([one]), snapshot([two]), snapshot([one, two])}) == 4
