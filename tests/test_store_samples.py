"""The sample table: GeoParquet that notices when it was altered, or contradicts itself or the records."""

import geopandas
import msgspec
import pytest
from made import FIELDS, ROWS, SPECS, make, sha256

from samtl.errors import DamageError
from samtl.store.fingerprint import make_identity
from samtl.store.samples import NO_TABLE, SampleTable, read_table
from samtl.store.state import load_state
from samtl.store.storage import open_storage

IDENTITY = make_identity(FIELDS, SPECS, {}, 16)


def table(**fields):
    given = {
        "dataset": "toy", "classes": ("x", "ü"), "rows": [3, 0, 20], "samples": ["c", "a/ä", "b"],
        "labels": [1, 0, -1], "groups": ["g", "g", "h"], "images": [sha256("c"), "", sha256("b")],
        "note": "n", "rows_end": 21,
    }  # fmt: skip
    return SampleTable.make(**given | fields)


def written(folder, made, identity=IDENTITY, after=NO_TABLE.about):
    placed, raw = made.placed(identity, after)
    (folder / "samples").mkdir(exist_ok=True)
    (folder / placed.path).write_bytes(raw)
    return folder / placed.path


def test_a_table_is_read_back_in_the_order_of_rows(tmp_path):
    path = written(tmp_path, table())
    found = read_table(open_storage(tmp_path), IDENTITY, 0)
    assert (found.rows.tolist(), found.labels.tolist()) == ([0, 3, 20], [0, 1, -1])
    assert (found.samples, found.groups, found.parts) == (("a/ä", "c", "b"), ("g", "g", "h"), ())
    assert found.images == ("", sha256("c"), sha256("b"))
    assert [bytes(one).hex() for one in found.digests()] == ["00" * 32, *found.images[1:]]
    assert found.position.tolist()[:4] == [0, -1, -1, 1]
    blocks = [found.block_rows(block, 16) for block in (0, 1, 2)]
    assert blocks == [range(4), range(16, 21), range(32, 32)]
    about = {
        name: getattr(found.about, name) for name in ("dataset", "note", "classes", "rows_end")
    }
    assert about == {"dataset": "toy", "note": "n", "classes": ("x", "ü"), "rows_end": 21}
    assert (found.about.number, found.about.follows) == (0, "")
    images = [sha256(sample) for sample in found.samples]
    after = found.with_images(images).placed(IDENTITY, found.about)[0]
    assert (after.about.number, after.about.follows) == (1, found.about.digest)
    assert after.same_content(found)
    assert not table(labels=[0, 0, -1]).same_content(found)
    theirs = geopandas.read_parquet(path)
    assert theirs["sample"].tolist() == ["a/ä", "c", "b"]
    assert theirs["label_name"].tolist()[:2] == ["x", "ü"]
    assert (theirs.geometry.isna().all(), theirs.crs) == (True, None)


@pytest.mark.parametrize("fields", [{"samples": ["a", "a", "b"]}, {"labels": [0]}, {"samples": []}])
def test_what_is_no_table(fields):
    with pytest.raises(ValueError, match="3 rows"):
        table(**fields)


def test_every_changed_bit_is_noticed(tmp_path):
    path = written(tmp_path, table())
    raw = path.read_bytes()
    torn = [
        raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :] for at in range(0, len(raw), 7)
    ]
    for content in (*torn, raw[:-9], raw[:100], raw + b"x", b""):
        path.write_bytes(content)
        with pytest.raises(DamageError, match="000000"):
            read_table(open_storage(tmp_path), IDENTITY, 0)


@pytest.mark.parametrize(
    "fields",
    [{"rows": [0, 0, 1]}, {"rows": [0, 1, 21]}, {"labels": [2, 0, 0], "classes": ("a", "b", "c")}],
)
def test_a_table_that_contradicts_itself(tmp_path, fields):
    made = table(**fields)
    made.about = msgspec.structs.replace(made.about, classes=("a", "b"))
    written(tmp_path, made)
    with pytest.raises(DamageError, match="lists"):
        read_table(open_storage(tmp_path), IDENTITY, 0)


def test_a_table_that_contradicts_the_records(tmp_path):
    """Another one in its place, its digest right: of other images, or with a row that no record has."""
    state = load_state(open_storage(make(tmp_path / "a")))
    names = [f"i{row}" for row in (*range(ROWS), 41)]
    more = table(
        rows=[*range(ROWS), 41], samples=names, labels=[0] * 41, groups=(), images=(), rows_end=42
    )
    others = state.table.with_images([sha256("x"), *state.table.images[1:]])
    for other, told in ((others, "row 0 .* another image"), (more, "row 41")):
        written(
            tmp_path / "a",
            other,
            state.identity,
            read_table(state.storage, state.identity, 0).about,
        )
        with pytest.raises(DamageError, match=told):
            load_state(state.storage)
