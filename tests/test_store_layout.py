"""A block's bytes on disk, and what Zarr makes of them."""

import json

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from samtl.errors import DamageError
from samtl.store.documents import canonical
from samtl.store.layout import (
    BLOCK_ROWS,
    INDEX_BYTES,
    MISSING,
    ArraySpec,
    array_specs,
    crc32c,
    encode_shard,
    shard_index,
)

COLUMNS = {"pooled": ["a", "b", "c"], "image_stats": ["d", "e"]}
SPECS = array_specs(8, COLUMNS)


def spec_of(dtype, row_shape=()):
    fill = "" if dtype == "string" else float("nan") if dtype.startswith("float") else 0
    return ArraySpec("a", row_shape, dtype, fill, tuple(f"d{i}" for i in range(len(row_shape))))


@st.composite
def blocks(draw):
    """Draw a spec and 1 to 16 rows of it."""
    count = draw(st.integers(1, BLOCK_ROWS))
    if draw(st.booleans()):
        return spec_of("string"), draw(st.lists(st.text(), min_size=count, max_size=count))
    dtype = draw(st.sampled_from(["float16", "float32", "int32", "uint8"]))
    shape = draw(npst.array_shapes(min_dims=0, max_dims=3, max_side=4))
    rows = draw(npst.arrays(dtype, (count, *shape)))
    return spec_of(dtype, shape), list(rows)


def content_of(spec, row):
    """Give what two equal rows have in common, NaN included."""
    return row if spec.dtype == "string" else np.asarray(row).tobytes()


@given(blocks())
def test_rows_come_back_from_a_shard(block):
    spec, rows = block
    encoded = encode_shard(spec, rows)
    shard = memoryview(b"".join(encoded.pieces))
    index = shard_index(shard, "a/c.0")
    assert len(shard) == encoded.size
    for row, crc, (offset, length) in zip(rows, encoded.row_crc32c, index.tolist(), strict=False):
        data = shard[offset : offset + length - 4]
        assert crc == crc32c(data) == int.from_bytes(shard[offset + length - 4 :][:4], "little")
        back = spec.decode_row(data)
        assert content_of(spec, back) == content_of(spec, row)
    assert (index[len(rows) :] == MISSING).all()
    assert (index[: len(rows)] != MISSING).all()


@given(blocks())
def test_size_of_a_shard_is_known_beforehand(block):
    spec, rows = block
    if spec.dtype != "string":
        assert encode_shard(spec, rows).size == spec.shard_bytes(len(rows))


@given(blocks())
def test_zarr_reads_what_was_laid_out(tmp_path_factory, block):
    spec, rows = block
    path = tmp_path_factory.mktemp("array") / "a"
    path.mkdir()
    (path / "zarr.json").write_bytes(canonical(spec.metadata(len(rows))))
    (path.parent / spec.shard_path(0)).write_bytes(b"".join(encode_shard(spec, rows).pieces))
    array = zarr.open_array(path, mode="r")
    assert [content_of(spec, row) for row in array[:]] == [content_of(spec, row) for row in rows]


def test_a_row_is_read_only():
    spec = SPECS["pooled"]
    row = spec.decode_row(bytes(spec.encode_row([1, 2, 3])))
    with pytest.raises(ValueError, match="read-only"):
        row[0] = 5


def test_a_row_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"pooled has shape \(3,\), got \(2,\)"):
        SPECS["pooled"].encode_row([1, 2])


@pytest.mark.parametrize("name", SPECS)
def test_zarr_parses_the_metadata_as_meant(tmp_path, name):
    spec = SPECS[name]
    metadata = spec.metadata(37)
    (tmp_path / "zarr.json").write_bytes(canonical(metadata))
    array = zarr.open_array(tmp_path, mode="r")
    assert array.shape == (37, *spec.row_shape)
    assert array.shards == (16, *spec.row_shape)
    assert array.chunks == (1, *spec.row_shape)
    assert array.attrs.asdict() == spec.attributes
    assert array.metadata.dimension_names == ("sample", *spec.dimensions)
    if spec.dtype != "string":
        assert array.dtype == np.dtype(spec.dtype)
    np.testing.assert_array_equal(array.fill_value, spec.fill)
    # zarr gives a configuration to each codec, though an empty one says nothing.
    parsed = json.dumps(array.metadata.to_dict()).replace(', "configuration": {}', "")
    assert json.loads(parsed) == json.loads(canonical(metadata))


def test_the_fill_value_stands_where_no_shard_is(tmp_path):
    for name, spec in SPECS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "zarr.json").write_bytes(canonical(spec.metadata(2)))
        empty = zarr.open_array(tmp_path / name, mode="r")[0]
        assert content_of(spec, empty) == content_of(spec, spec.empty_row()), name


def test_dimensions_of_one_name_have_one_size():
    sizes = {}
    for spec in array_specs(64, COLUMNS).values():
        for name, size in zip(spec.dimensions, spec.row_shape, strict=True):
            assert sizes.setdefault(name, size) == size


def test_sizes_are_those_of_format_1():
    specs = array_specs(64, COLUMNS)
    assert specs["dense"].row_shape == (256, 64, 64)
    assert specs["grid"].row_shape == (256, 16, 16)
    assert specs["dense"].shard_bytes() == 16 * (2 * 256 * 64 * 64 + 4) + 16 * 16 + 4
    assert specs["dense"].shard_path(7) == "dense/c.7.0.0.0"
    assert specs["label"].shard_path(7) == "label/c.7"


@pytest.fixture
def shard():
    return bytearray(b"".join(encode_shard(SPECS["pooled"], np.ones((3, 3))).pieces))


def test_any_flipped_byte_of_an_index_is_found(shard):
    for position in range(len(shard) - INDEX_BYTES, len(shard)):
        damaged = shard.copy()
        damaged[position] ^= 1
        with pytest.raises(DamageError, match=r"pooled/c\.0: the shard's index fails its checksum"):
            shard_index(memoryview(damaged), "pooled/c.0")


@pytest.mark.parametrize("size", [0, 1, INDEX_BYTES - 1])
def test_a_file_too_short_for_an_index_is_damage(shard, size):
    with pytest.raises(DamageError, match="index"):
        shard_index(memoryview(shard[:size]), "pooled/c.0")


@pytest.mark.parametrize("entry", [(0, 49), (48, 1), (33, 16), (2**64 - 2, 2)])
def test_an_index_that_points_outside_the_rows_is_damage(shard, entry):
    """With a checksum that fits, as an attacker or a broken writer would make it."""
    end = len(shard) - INDEX_BYTES
    shard[end : end + 16] = np.array(entry, "<u8").tobytes()
    shard[-4:] = crc32c(bytes(shard[end:-4])).to_bytes(4, "little")
    with pytest.raises(DamageError, match="points outside the file"):
        shard_index(memoryview(shard), "pooled/c.0")


@given(st.binary(max_size=2_000), st.integers(0, 70))
def test_the_checksum_is_the_one_of_zarr(data, start):
    """That of another library, at every length and alignment."""
    view = memoryview(data)[start:]
    assert crc32c(view) == crc32c(bytes(view)) == google_crc32c.value(bytes(view))


def test_the_checksum_of_the_standard():
    assert crc32c(b"123456789") == 0xE3069283
