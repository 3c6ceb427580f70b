"""Shards: every byte is checked, and other readers of Zarr agree on what is in them."""

import json

import numpy as np
import pytest
from made import FIELDS, SPECS, drawn

from samtl._io import seal
from samtl.errors import DamageError, InputError, MismatchError
from samtl.store.fingerprint import differences, make_identity, read_identity, require_same
from samtl.store.format import ArraySpec, check_shard, encode_shard, rows_of_a_block
from samtl.store.storage import IDENTITY, open_storage


def shard(spec, n, key=b"k" * 32):
    rows = [drawn(spec.name, f"i{row}") for row in range(n)]
    pieces, sums = encode_shard(spec, rows, 16, key)
    return bytearray(b"".join(pieces)), sums, rows


@pytest.mark.parametrize("name", ["dense", "pooled", "mask", "original_size"])
def test_a_shard_holds_its_rows(name):
    spec = SPECS[name]
    raw, sums, rows = shard(spec, 5)
    assert len(raw) == spec.shard_bytes(5, 16)
    assert check_shard(spec, memoryview(raw), 5, 16) == (sums, [], True)
    for position, row in enumerate(rows):
        start, stop = spec.extent(position)
        found = spec.decode_row(bytes(raw[start:stop]))
        assert found.dtype == row.dtype
        np.testing.assert_array_equal(found, row)


def test_every_changed_byte_but_the_key_is_noticed():
    spec = SPECS["image_stats"]
    raw, _, _ = shard(spec, 3)
    for at in range(32, len(raw)):
        raw[at] ^= 4
        assert check_shard(spec, memoryview(raw), 3, 16)[1:] != ([], True)
        raw[at] ^= 4
    for wrong in (raw[:-1], raw + b"x", b""):
        assert not check_shard(spec, memoryview(bytes(wrong)), 3, 16)[2]


def test_what_no_array_has_is_refused_and_large_stores_have_larger_blocks():
    with pytest.raises(ValueError, match="pooled"):
        encode_shard(SPECS["pooled"], [np.zeros(4)], 16)
    with pytest.raises(ValueError, match="shape"):
        ArraySpec("a", (2, 3), "uint8", 0, ("x",))
    dense = ArraySpec("dense", (2**20,), "float16", "NaN", ("x",))
    pooled = ArraySpec("pooled", (1280,), "float16", "NaN", ("x",))
    assert rows_of_a_block(999_999, [pooled]) == 16
    assert rows_of_a_block(1_000_000, [pooled]) == 1024
    assert rows_of_a_block(1_000_000, [dense, pooled]) == 16


# The identity


def test_an_identity_is_read_back(tmp_path):
    storage = open_storage(tmp_path)
    assert read_identity(storage) is None
    written = make_identity(FIELDS, SPECS, {"weights": "none"}, 16)
    storage.create(IDENTITY, [written.to_bytes()])
    found = read_identity(storage)
    assert found.arrays == SPECS
    assert (found.sha256, found.store_id) == (written.sha256, written.store_id)
    assert written.store_id != make_identity(FIELDS, SPECS, {}, 16).store_id
    require_same(found, FIELDS, "x")


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"sha256": "0" * 64}, DamageError),
        ({"block_rows": 0}, DamageError),
        ({"arrays": {"pooled": {"name": "other"}}}, DamageError),
        ({"fingerprint": {"format": 2}}, DamageError),
        ({"fingerprint": {**FIELDS, "format": 1}}, InputError),
        ({"fingerprint": 3}, DamageError),
    ],
)
def test_an_identity_that_is_wrong(tmp_path, fields, error):
    content = json.loads(make_identity(FIELDS, SPECS, {}, 16).to_bytes()) | fields
    (tmp_path / IDENTITY).write_bytes(seal(content))
    with pytest.raises(error, match="format 1" if error is InputError else IDENTITY):
        read_identity(open_storage(tmp_path))


def test_another_fingerprint_is_told_field_by_field():
    identity = make_identity(FIELDS, SPECS, {}, 16)
    other = {"encoder": {"name": "stub", "weights_sha256": "1" * 64}, "bands": 3}
    with pytest.raises(MismatchError) as caught:
        require_same(identity, other, "x")
    assert [one[0] for one in caught.value.differences] == [
        "bands", "encoder.weights_sha256", "image_size",
    ]  # fmt: skip
    assert differences({"a": {"b": 1}}, {"a": {"b": 2}}) == [("a.b", "1", "2")]
