"""The sample table: GeoParquet that notices when it was altered, or is another store's."""

import geopandas
import numpy as np
import pytest
from made import FIELDS, SPECS, make, sha256

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


def written(folder, made):
    placed, raw = made.placed(IDENTITY, NO_TABLE.about)
    open_storage(folder).create(placed.path, [raw])
    return folder / placed.path


def test_a_table_is_read_back_in_the_order_of_rows(tmp_path):
    written(tmp_path, table())
    found = read_table(open_storage(tmp_path), IDENTITY, 0)
    assert found.rows.tolist() == [0, 3, 20]
    assert found.samples == ("a/ä", "c", "b")
    assert found.labels.tolist() == [0, 1, -1]
    assert found.groups == ("g", "g", "h")
    assert found.parts == ()
    assert found.images == ("", sha256("c"), sha256("b"))
    assert [bytes(one).hex() for one in found.digests()] == ["00" * 32, *found.images[1:]]
    assert found.position.tolist()[:4] == [0, -1, -1, 1]
    assert [found.block_rows(block, 16) for block in (0, 1, 2)] == [
        range(4), range(16, 21), range(32, 32),
    ]  # fmt: skip
    about = found.about
    assert (about.dataset, about.note, about.classes, about.rows_end) == (
        "toy",
        "n",
        ("x", "ü"),
        21,
    )
    assert (about.number, about.follows, about.store_id) == (0, "", IDENTITY.store_id)
    after = found.with_images([sha256(s) for s in found.samples]).placed(IDENTITY, found.about)[0]
    assert (after.about.number, after.about.follows) == (1, found.about.digest)
    assert after.same_content(found)
    assert not table(labels=[0, 0, -1]).same_content(found)


def test_geopandas_opens_it(tmp_path):
    found = geopandas.read_parquet(written(tmp_path, table()))
    assert found["sample"].tolist() == ["a/ä", "c", "b"]
    assert found["label_name"].tolist()[:2] == ["x", "ü"]
    assert found.geometry.isna().all()
    assert found.crs is None


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
    if "classes" in fields:
        import msgspec

        made.about = msgspec.structs.replace(made.about, classes=("a", "b"))
    written(tmp_path, made)
    with pytest.raises(DamageError, match="lists"):
        read_table(open_storage(tmp_path), IDENTITY, 0)


def test_another_stores_table_and_an_older_copy_are_refused(tmp_path):
    tables = [make(tmp_path / name) / "samples" / "000001.parquet" for name in "ab"]
    tables[0].write_bytes(tables[1].read_bytes())
    with pytest.raises(DamageError, match="another store"):
        load_state(open_storage(tmp_path / "a"))
    tables[0].unlink()
    with pytest.raises(DamageError, match="older"):
        load_state(open_storage(tmp_path / "a"))


def republished(store, change):
    """Put a table in the place of the newest that says something else, with a right digest."""
    state = load_state(open_storage(store))
    after = read_table(state.storage, state.identity, 0)
    placed, raw = change(state.table).placed(state.identity, after.about)
    (store / placed.path).write_bytes(raw)


def test_a_table_that_contradicts_the_records(tmp_path):
    make(tmp_path / "a")
    republished(tmp_path / "a", lambda t: t.with_images([sha256("x"), *t.images[1:]]))
    with pytest.raises(DamageError, match=r"row 0 .* another image"):
        load_state(open_storage(tmp_path / "a"))
    (tmp_path / "a" / "samples" / "000001.parquet").unlink()
    (tmp_path / "a" / "zarr.json").unlink()
    republished(
        tmp_path / "a",
        lambda t: SampleTable.make(
            dataset="made", classes=t.about.classes, rows=[*t.rows, 41], samples=[*t.samples, "new"],
            labels=np.append(t.labels, 0), rows_end=42,
        ),
    )  # fmt: skip
    with pytest.raises(DamageError, match="row 41"):
        load_state(open_storage(tmp_path / "a"))
