"""What makes two embeddings comparable."""

from dataclasses import replace

import pytest
from samtl.store.documents import digest, seal

from samtl.errors import DamageError, InputError
from samtl.store.fingerprint import (
    FILE,
    Fingerprint,
    differences,
    read_fingerprint,
    row_key,
)

FINGERPRINT = Fingerprint(
    encoder="stub",
    weights_sha256="ab" * 32,
    preprocessing={"image_size": 64, "resize": "bilinear"},
    image_size=64,
    compute_dtype="float32",
    stored_dtypes={"pooled": "float32", "dense": "float16"},
)


def document(**changes):
    """Give the content of a good `fingerprint.json`, with some fields replaced."""
    fields = FINGERPRINT.to_dict()
    content = {
        "fingerprint": fields,
        "sha256": digest(fields),
        "about": {"untrained": False},
        "columns": {"pooled": ["a", "b"], "image_stats": ["c"]},
    }
    return {**content, **changes}


def write(store, content):
    (store / FILE).write_bytes(seal(content))
    return store


@pytest.mark.parametrize(
    "change",
    [
        {"encoder": "other"},
        {"weights_sha256": "cd" * 32},
        {"preprocessing": {"image_size": 64, "resize": "nearest"}},
        {"image_size": 128},
        {"compute_dtype": "bfloat16"},
        {"stored_dtypes": {"pooled": "float32", "dense": "float32"}},
        {"format": 2},
    ],
)
def test_every_field_is_identity(change):
    assert replace(FINGERPRINT, **change).sha256 != FINGERPRINT.sha256


def test_order_of_fields_is_not_identity():
    turned = dict(reversed(FINGERPRINT.preprocessing.items()))
    assert replace(FINGERPRINT, preprocessing=turned).sha256 == FINGERPRINT.sha256


def test_a_row_is_named_by_its_image_and_how_it_was_embedded():
    keys = {row_key(f, image) for f in ("f" * 64, "a" * 64) for image in ("1" * 64, "2" * 64)}
    assert len(keys) == 4


def test_differences_name_nested_fields():
    other = replace(FINGERPRINT, compute_dtype="bfloat16", preprocessing={"resize": "nearest"})
    assert differences(FINGERPRINT.to_dict(), other.to_dict()) == [
        ("compute_dtype", "float32", "bfloat16"),
        ("preprocessing.image_size", "64", "(none)"),
        ("preprocessing.resize", "bilinear", "nearest"),
    ]
    assert differences(FINGERPRINT.to_dict(), FINGERPRINT.to_dict()) == []


def test_the_document_comes_back(tmp_path):
    content = read_fingerprint(write(tmp_path, document(about={"untrained": True})))
    assert content["fingerprint"] == FINGERPRINT.to_dict()
    assert content["sha256"] == FINGERPRINT.sha256
    assert content["about"] == {"untrained": True}


def test_another_format_is_refused_as_such(tmp_path):
    fields = replace(FINGERPRINT, format=2).to_dict()
    write(tmp_path, document(fingerprint=fields, sha256=digest(fields)))
    with pytest.raises(InputError, match="store format 2; this samtl reads format 1") as caught:
        read_fingerprint(tmp_path)
    assert not isinstance(caught.value, DamageError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "00" * 32}, "digest"),
        ({"about": "weights"}, "lacks the field about"),
        ({"columns": None}, "lacks the field columns"),
        ({"columns": {"pooled": ["a"]}}, r"columns\.image_stats is missing or wrong"),
        ({"columns": {"pooled": "ab", "image_stats": []}}, r"columns\.pooled is missing or wrong"),
        ({"about": {"untrained": 1}}, r"about\.untrained is missing or wrong"),
        ({"fingerprint": []}, "lacks the field fingerprint"),
    ],
)
def test_a_sealed_document_of_another_kind_is_damage(tmp_path, change, message):
    write(tmp_path, document(**change))
    with pytest.raises(DamageError, match=message):
        read_fingerprint(tmp_path)
