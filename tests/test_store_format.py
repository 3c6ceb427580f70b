"""Shards, the identity and the sample table: whatever was altered, or contradicts itself, is noticed."""

import json

import geopandas
import msgspec
import numpy as np
import pytest
from made import FIELDS, ROWS, SPECS, drawn, make, sha256, state_of

from samtl._io import seal
from samtl.errors import DamageError, InputError, MismatchError
from samtl.store.fingerprint import differences, make_identity, read_identity, require_same
from samtl.store.format import ArraySpec, check_shard, encode_shard, rows_of_a_block
from samtl.store.samples import NO_TABLE, SampleTable, read_table
from samtl.store.storage import IDENTITY, open_storage

MADE = make_identity(FIELDS, SPECS, {"weights": "none"}, 16)


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
    storage.create(IDENTITY, [MADE.to_bytes()])
    assert read_identity(storage) == MADE
    assert MADE.store_id != make_identity(FIELDS, SPECS, {}, 16).store_id
    require_same(MADE, FIELDS, "x")


@pytest.mark.parametrize(
    "fields",
    [
        {"sha256": "0" * 64}, {"block_rows": 0}, {"arrays": {"pooled": {"name": "other"}}},
        {"fingerprint": {"format": 2}}, {"fingerprint": 3}, {"fingerprint": {**FIELDS, "format": 1}},
    ],
)  # fmt: skip
def test_an_identity_that_is_wrong(tmp_path, fields):
    content = json.loads(MADE.to_bytes()) | fields
    (tmp_path / IDENTITY).write_bytes(seal(content))
    other = fields == {"fingerprint": {**FIELDS, "format": 1}}
    error, told = (InputError, "format 1") if other else (DamageError, IDENTITY)
    with pytest.raises(error, match=told):
        read_identity(open_storage(tmp_path))


def test_another_fingerprint_is_told_field_by_field():
    other = {"encoder": {"name": "stub", "weights_sha256": "1" * 64}, "bands": 3}
    with pytest.raises(MismatchError) as caught:
        require_same(MADE, other, "x")
    names = [one[0] for one in caught.value.differences]
    assert names == ["bands", "encoder.weights_sha256", "image_size"]
    assert differences({"a": {"b": 1}}, {"a": {"b": 2}}) == [("a.b", "1", "2")]


# The sample table


def table(**fields):
    given = {
        "dataset": "toy", "classes": ("x", "ü"), "rows": [3, 0, 20], "samples": ["c", "a/ä", "b"],
        "labels": [1, 0, -1], "groups": ["g", "g", "h"], "images": [sha256("c"), "", sha256("b")],
        "note": "n", "rows_end": 21,
    }  # fmt: skip
    return SampleTable.make(**given | fields)


def written(folder, made, identity=MADE, after=NO_TABLE.about):
    placed, raw = made.placed(identity, after)
    (folder / "samples").mkdir(exist_ok=True)
    (folder / placed.path).write_bytes(raw)
    return folder / placed.path


def test_a_table_is_read_back_in_the_order_of_rows(tmp_path):
    path = written(tmp_path, table())
    found = read_table(open_storage(tmp_path), MADE, 0)
    assert (found.rows.tolist(), found.labels.tolist()) == ([0, 3, 20], [0, 1, -1])
    assert (found.samples, found.groups, found.parts) == (("a/ä", "c", "b"), ("g", "g", "h"), ())
    assert found.images == ("", sha256("c"), sha256("b"))
    assert [bytes(one).hex() for one in found.digests()] == ["00" * 32, *found.images[1:]]
    assert found.position.tolist()[:4] == [0, -1, -1, 1]
    blocks = [found.block_rows(block, 16) for block in (0, 1, 2)]
    assert blocks == [range(4), range(16, 21), range(32, 32)]
    about = {"dataset": "toy", "note": "n", "classes": ("x", "ü"), "rows_end": 21, "follows": ""}
    assert msgspec.structs.asdict(found.about).items() >= {**about, "number": 0}.items()
    images = [sha256(sample) for sample in found.samples]
    after = found.with_images(images).placed(MADE, found.about)[0]
    assert (after.about.number, after.about.follows) == (1, found.about.digest)
    assert after.same_content(found)
    assert not table(labels=[0, 0, -1]).same_content(found)
    with pytest.raises(ValueError, match="3 rows"):
        table(samples=["a", "a", "b"])
    theirs = geopandas.read_parquet(path)
    assert theirs["sample"].tolist() == ["a/ä", "c", "b"]
    assert theirs["label_name"].tolist()[:2] == ["x", "ü"]
    assert (theirs.geometry.isna().all(), theirs.crs) == (True, None)


def test_every_changed_bit_is_noticed(tmp_path):
    path = written(tmp_path, table())
    raw = path.read_bytes()
    other = [bytes([byte ^ 1 << at % 8]) for at, byte in enumerate(raw)]
    torn = [raw[:at] + other[at] + raw[at + 1 :] for at in range(0, len(raw), 7)]
    for content in (*torn, raw[:-9], raw[:100], raw + b"x", b""):
        path.write_bytes(content)
        with pytest.raises(DamageError, match="000000"):
            read_table(open_storage(tmp_path), MADE, 0)


@pytest.mark.parametrize(
    "fields",
    [{"rows": [0, 0, 1]}, {"rows": [0, 1, 21]}, {"labels": [2, 0, 0], "classes": ("a", "b", "c")}],
)
def test_a_table_that_contradicts_itself(tmp_path, fields):
    made = table(**fields)
    made.about = msgspec.structs.replace(made.about, classes=("a", "b"))
    written(tmp_path, made)
    with pytest.raises(DamageError, match="lists"):
        read_table(open_storage(tmp_path), MADE, 0)


def test_a_table_that_contradicts_the_records(tmp_path):
    """Another one in its place, its digest right: of other images, or with a row that no record has."""
    state = state_of(make(tmp_path / "a"))
    first = read_table(state.storage, state.identity, 0).about
    names = [f"i{row}" for row in (*range(ROWS), 41)]
    more = table(
        rows=[*range(ROWS), 41], samples=names, labels=[0] * 41, groups=(), images=(), rows_end=42
    )
    others = state.table.with_images([sha256("x"), *state.table.images[1:]])
    for other, told in ((others, "row 0 .* another image"), (more, "row 41")):
        written(tmp_path / "a", other, state.identity, first)
        with pytest.raises(DamageError, match=told):
            state_of(tmp_path / "a")
