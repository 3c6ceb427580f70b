"""Sealed JSON notices any change to it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samtl.errors import DamageError
from samtl.store import documents
from samtl.store.documents import (
    canonical,
    digest,
    seal,
    unseal,
)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
contents = st.dictionaries(st.text().filter(lambda key: key != "checksum"), json_values, max_size=4)
EXAMPLE = {"b": [1, 2.5, None], "a": {"text": "Straße", "empty": ""}, "n": -7}


@given(contents)
def test_what_was_sealed_comes_back(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "sealed.json"
    path.write_bytes(seal(content))
    assert unseal(path) == {**content, "checksum": digest(content)}


def test_equal_content_has_equal_bytes():
    assert canonical({"a": 1, "b": {"c": 2, "d": 3}}) == canonical({"b": {"d": 3, "c": 2}, "a": 1})


def test_nan_is_not_json():
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical({"a": float("nan")})


@given(st.data())
def test_a_changed_byte_is_damage(tmp_path_factory, data):
    sealed = bytearray(seal(EXAMPLE))
    position = data.draw(st.integers(0, len(sealed) - 2))  # the last is white space
    sealed[position] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "changed.json"
    path.write_bytes(sealed)
    with pytest.raises(DamageError, match=r"changed\.json"):
        unseal(path)


def test_a_document_cut_short_anywhere_is_damage(tmp_path):
    sealed = seal(EXAMPLE)
    path = tmp_path / "cut.json"
    for length in range(len(sealed) - 1):
        path.write_bytes(sealed[:length])
        with pytest.raises(DamageError, match=r"cut\.json"):
            unseal(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "7",
        "null",
        '"a"',
        "{}",
        '{"checksum": 1}',
        "[" * 100_000,
        "\xff",
        '{"a": NaN, "checksum": ""}',
    ],
)
def test_other_json_and_no_json_are_damage(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DamageError, match=r"other\.json"):
        unseal(path)


def test_a_file_that_is_absurdly_large_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "large.json"
    path.write_bytes(seal(EXAMPLE))
    monkeypatch.setattr(documents, "MAX_BYTES", 20)
    with pytest.raises(DamageError, match="larger than any file of its kind"):
        unseal(path)


def test_a_missing_file_is_not_damage(tmp_path):
    with pytest.raises(FileNotFoundError):
        unseal(tmp_path / "none.json")
