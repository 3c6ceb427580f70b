"""Which sample each row is."""

from dataclasses import replace

import pytest

from samtl.errors import DamageError, InputError, MismatchError
from samtl.store.documents import seal
from samtl.store.rows import (
    PATH,
    Rows,
    generations,
    newest,
    read_rows,
    require_kin,
)

ROWS = Rows("toy", ("cat", "dog"), ("cat/1.png", "dog/ö.png"), (0, 1), note="a note")


def write(store, content):
    (store / PATH).parent.mkdir()
    (store / PATH).write_bytes(seal(content))
    return store


def test_rows_come_back(tmp_path):
    assert read_rows(write(tmp_path, ROWS.to_dict())) == ROWS
    assert len(ROWS) == 2


def test_a_missing_list_is_damage(tmp_path):
    with pytest.raises(InputError, match="no row is in it yet"):
        read_rows(tmp_path)
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "0.json").touch()
    with pytest.raises(DamageError, match="rows holds no list of rows"):
        read_rows(tmp_path)


@pytest.mark.parametrize("change", [{"labels": [0]}, {"labels": ["x", "y"]}, {"sample_ids": None}])
def test_a_list_that_does_not_fit_is_damage(tmp_path, change):
    write(tmp_path, {**ROWS.to_dict(), **change})
    with pytest.raises(DamageError, match=r"rows/0\.json"):
        read_rows(tmp_path)


LATER = {"task", "groups", "parts"}  # fields that the first stores did not have


@pytest.mark.parametrize("field", sorted(ROWS.to_dict().keys() - LATER))
def test_a_list_that_lacks_a_field_is_damage(tmp_path, field):
    content = ROWS.to_dict()
    del content[field]
    with pytest.raises(DamageError, match=field):
        read_rows(write(tmp_path, content))


def test_a_list_of_the_first_stores_is_read(tmp_path):
    content = {name: value for name, value in ROWS.to_dict().items() if name not in LATER}
    assert read_rows(write(tmp_path, content)) == ROWS


@pytest.mark.parametrize("field", ["groups", "parts"])
def test_as_many_groups_as_rows(tmp_path, field):
    with pytest.raises(DamageError, match="2 ids but 1 groups or parts"):
        read_rows(write(tmp_path, {**ROWS.to_dict(), field: ["a"]}))


@pytest.mark.parametrize(
    ("change", "field", "have", "want"),
    [
        ({"dataset": "other"}, "dataset", "toy", "other"),
        ({"task": "segmentation"}, "task", "classification", "segmentation"),
        (
            {"sample_ids": ("cat/3.png", "dog/2.png")},
            "sample_ids",
            "2 rows, row 0 is 'cat/1.png'",
            "2 rows, row 0 is 'cat/3.png'; 0 of the store's are among them",
        ),
    ],
)
def test_rows_of_another_dataset_are_refused_by_field(tmp_path, change, field, have, want):
    with pytest.raises(MismatchError, match=f"{field}: the store has") as caught:
        require_kin(ROWS, replace(ROWS, **change), tmp_path)
    assert caught.value.differences == [(field, have, want)]


@pytest.mark.parametrize(
    "change",
    [
        {"note": "another"},
        {"labels": (1, 0)},
        {"classes": ("cat", "cow", "dog")},
        {"sample_ids": ("cat/1.png", "dog/2.png")},
        {"groups": ("a", "b")},
        {"sample_ids": ("cat/1.png",), "labels": (0,)},
    ],
)
def test_the_same_dataset_may_change(tmp_path, change):
    require_kin(ROWS, replace(ROWS, **change), tmp_path)


LATER_ROWS = Rows(
    "toy",
    ("cat", "dog"),
    ("a", "b", *[""] * 14, "b", "c"),
    (0, 1, *[-1] * 14, 1, 0),
    generation=2,
    previous="0" * 64,
    superseded=(1,),
    spans=((0, 2), (16, 18)),
)


def write_later(store, **change):
    rows = replace(LATER_ROWS, **change)
    (store / "rows").mkdir(exist_ok=True)
    (store / rows.path).write_bytes(seal(rows.to_dict()))


def test_rows_that_changed_come_back(tmp_path):
    write_later(tmp_path)
    rows = read_rows(tmp_path)
    assert rows == LATER_ROWS
    assert list(rows.current) == [0, 16, 17]
    assert [list(rows.block_rows(block)) for block in range(rows.blocks)] == [[0, 1], [16, 17]]
    assert 1 not in rows.counts
    assert rows.attributes()["superseded"] == [1]


def test_the_latest_list_counts(tmp_path):
    write(tmp_path, ROWS.to_dict())
    write_later(tmp_path)
    write_later(tmp_path, generation=10)
    (tmp_path / "rows" / "11.json.tmp").write_bytes(b"")
    assert (generations(tmp_path), newest(tmp_path)) == ([0, 2, 10], "rows/10.json")
    assert read_rows(tmp_path).generation == 10


def test_a_list_that_is_taken_away_meanwhile_is_looked_for_again(tmp_path, monkeypatch):
    """As a writer does that has added the next."""
    write_later(tmp_path)
    found = iter(([0], [0], [2], [2]))
    monkeypatch.setattr("samtl.store.rows.generations", lambda store: next(found))
    assert read_rows(tmp_path) == LATER_ROWS


@pytest.mark.parametrize(
    "change",
    [
        {"spans": ((0, 2), (17, 18))},
        {"spans": ((0, 2), (16, 17))},
        {"spans": ((0, 2), (16, 16), (16, 18))},
        {"spans": ((16, 18),)},
        {"spans": ((0, 2), (32, 18))},
        {"superseded": (5,)},
        {"superseded": (18,)},
        {"superseded": (0,)},  # then two rows of one sample count
    ],
)
def test_a_changed_list_that_does_not_fit_is_damage(tmp_path, change):
    write_later(tmp_path, **change)
    with pytest.raises(DamageError, match=r"rows/2\.json is not a list of rows"):
        read_rows(tmp_path)


def test_a_list_under_another_name_is_damage(tmp_path):
    write_later(tmp_path)
    (tmp_path / "rows/2.json").rename(tmp_path / "rows/3.json")
    with pytest.raises(DamageError, match=r"rows/3\.json holds the list of generation 2"):
        read_rows(tmp_path)
