"""Which sample each row is."""

from dataclasses import replace

import pytest

from samtl.errors import DamageError, MismatchError
from samtl.store.documents import seal
from samtl.store.rows import PATH, Rows, read_rows, require_same

ROWS = Rows("toy", ("cat", "dog"), ("cat/1.png", "dog/ö.png"), (0, 1), note="a note")


def write(store, content):
    (store / PATH).parent.mkdir()
    (store / PATH).write_bytes(seal(content))
    return store


def test_rows_come_back(tmp_path):
    assert read_rows(write(tmp_path, ROWS.to_dict())) == ROWS
    assert len(ROWS) == 2


def test_a_missing_list_is_damage(tmp_path):
    with pytest.raises(DamageError, match=r"rows/0\.json is missing"):
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
        ({"classes": ("cat", "cow")}, "classes", "['cat', 'dog']", "['cat', 'cow']"),
        ({"labels": (0, 0)}, "labels", "2 rows, row 1 is 1", "2 rows, row 1 is 0"),
        (
            {"sample_ids": ("cat/1.png", "dog/2.png")},
            "sample_ids",
            "2 rows, row 1 is 'dog/ö.png'",
            "2 rows, row 1 is 'dog/2.png'",
        ),
    ],
)
def test_other_rows_are_refused_by_field(tmp_path, change, field, have, want):
    with pytest.raises(MismatchError, match=f"{field}: the store has") as caught:
        require_same(ROWS, replace(ROWS, **change), tmp_path)
    assert caught.value.differences == [(field, have, want)]


def test_fewer_rows_are_told_by_their_number(tmp_path):
    fewer = replace(ROWS, sample_ids=ROWS.sample_ids[:1], labels=ROWS.labels[:1])
    with pytest.raises(MismatchError) as caught:
        require_same(ROWS, fewer, tmp_path)
    assert caught.value.differences == [
        ("labels", "2 rows", "1 rows"),
        ("sample_ids", "2 rows", "1 rows"),
    ]


def test_a_note_is_not_identity(tmp_path):
    require_same(ROWS, replace(ROWS, note="another"), tmp_path)
