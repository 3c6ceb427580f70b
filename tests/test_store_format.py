"""Shards: every byte is checked. The identity: whatever is wrong in it is told."""

import json

import numpy as np
import pytest
from made import FIELDS, SPECS, drawn

from samtl._io import seal
from samtl.errors import DamageError, InputError, MismatchError
from samtl.store.fingerprint import differences, make_identity, read_identity, require_same
from samtl.store.format import ArraySpec, check_shard, encode_shard, rows_of_a_block
from samtl.store.storage import IDENTITY, open_storage


def shard(spec, n):
    rows = [drawn(spec.name, f"i{row}") for row in range(n)]
    pieces, sums = encode_shard(spec, rows, 16, b"k" * 32)
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
    small, large = (ArraySpec("a", (n,), "float16", "NaN", ("x",)) for n in (1280, 2**20))
    counts = [(999_999, [small]), (1_000_000, [small]), (1_000_000, [large, small])]
    assert [rows_of_a_block(*one) for one in counts] == [16, 1024, 16]


# The identity


def test_an_identity_is_read_back(tmp_path):
    storage = open_storage(tmp_path)
    assert read_identity(storage) is None
    written = make_identity(FIELDS, SPECS, {"weights": "none"}, 16)
    storage.create(IDENTITY, [written.to_bytes()])
    assert read_identity(storage) == written
    assert written.store_id != make_identity(FIELDS, SPECS, {}, 16).store_id
    require_same(written, FIELDS, "x")


@pytest.mark.parametrize(
    "fields",
    [
        {"sha256": "0" * 64}, {"block_rows": 0}, {"arrays": {"pooled": {"name": "other"}}},
        {"fingerprint": {"format": 2}}, {"fingerprint": 3}, {"fingerprint": {**FIELDS, "format": 1}},
    ],
)  # fmt: skip
def test_an_identity_that_is_wrong(tmp_path, fields):
    content = json.loads(make_identity(FIELDS, SPECS, {}, 16).to_bytes()) | fields
    (tmp_path / IDENTITY).write_bytes(seal(content))
    other = fields == {"fingerprint": {**FIELDS, "format": 1}}
    error, told = (InputError, "format 1") if other else (DamageError, IDENTITY)
    with pytest.raises(error, match=told):
        read_identity(open_storage(tmp_path))


def test_another_fingerprint_is_told_field_by_field():
    identity = make_identity(FIELDS, SPECS, {}, 16)
    other = {"encoder": {"name": "stub", "weights_sha256": "1" * 64}, "bands": 3}
    with pytest.raises(MismatchError) as caught:
        require_same(identity, other, "x")
    names = [one[0] for one in caught.value.differences]
    assert names == ["bands", "encoder.weights_sha256", "image_size"]
    assert differences({"a": {"b": 1}}, {"a": {"b": 2}}) == [("a.b", "1", "2")]
