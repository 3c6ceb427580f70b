"""Writing: what is committed was safe before, any number of writers share the work, and nothing foreign is adopted."""

import errno
import os
import threading

import numpy as np
import pytest
from made import ARRAYS, FIELDS, ROWS, SPECS, contents, drawn, make, relisted, sha256

from samtl.errors import DamageError, MismatchError, ResourceError
from samtl.store.fingerprint import make_identity
from samtl.store.reader import open_store
from samtl.store.samples import SampleTable
from samtl.store.state import load_state
from samtl.store.storage import DiskStorage, open_storage
from samtl.store.writer import Writer, open_writer


def table(n=ROWS, **fields):
    given = {
        "dataset": "made", "classes": ("x", "y"), "rows": range(n),
        "samples": [f"i{row}" for row in range(n)], "labels": [row % 2 for row in range(n)],
    }  # fmt: skip
    return SampleTable.make(**given | fields)


def begin(place, *, fields=FIELDS, arrays=ARRAYS, **options):
    identity = make_identity(fields, SPECS, {"weights": "none"}, 16)
    return open_writer(open_storage(place), identity, table(**options), arrays, {"device": "cpu"})


def write(writer, block, arrays=None, image="i{}", status="ok"):
    here = writer.block_rows(block)
    names = writer.missing(block) if arrays is None else arrays
    rows = {name: [drawn(name, image.format(row)) for row in here] for name in names}
    images = [sha256(image.format(row)) for row in here]
    return writer.write_block(block, rows, [status] * len(here), {}, images)


def killed_before_the_record(writer, monkeypatch):
    def killed(record):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("samtl.store.log.Record.sealed", killed)
        with pytest.raises(KeyboardInterrupt):
            write(writer, 0)


def whole(place, arrays=ARRAYS):
    store = open_store(place)
    for name in arrays:
        for row, found in enumerate(store.read(name)):
            np.testing.assert_array_equal(found, drawn(name, f"i{row}"))
    return store


def test_a_pass_in_two_goes(tmp_path):
    make(tmp_path / "a", stop=1)
    store = open_store(tmp_path / "a")
    assert (store.missing, store.valid().sum()) == (ROWS - 16, 16)
    assert not any(load_state(open_storage(tmp_path / "a")).table.images)
    make(tmp_path / "a")
    store = whole(tmp_path / "a")
    assert store.missing == 0
    assert store.image_sha256(17) == sha256("i17")
    assert load_state(open_storage(tmp_path / "a")).table.images[17] == sha256("i17")


def test_nothing_to_do_reads_each_thing_once_and_writes_nothing(tmp_path, monkeypatch):
    make(tmp_path / "a")
    before = contents(tmp_path / "a")
    read, real = [], DiskStorage.read
    monkeypatch.setattr(
        DiskStorage, "read", lambda self, name, *most: read.append(name) or real(self, name, *most)
    )
    state = load_state(open_storage(tmp_path / "a"))
    writer = open_writer(state.storage, state.identity, state.table, ARRAYS, state=state)
    assert writer.pending() == []
    writer.finish()
    once = [name for name in read if not name.endswith("zarr.json")]
    assert sorted(once) == [
        "fingerprint.json", "log/0.0.json", "log/1.0.json", "log/2.0.json", "log/pack.npz",
        "samples/000001.parquet",
    ]  # fmt: skip
    assert contents(tmp_path / "a") == before


def test_further_arrays_come_by_further_records(tmp_path):
    make(tmp_path / "a", arrays=("pooled",))
    before = {
        name: raw
        for name, raw in contents(tmp_path / "a").items()
        if name.startswith(("pooled/c", "log/"))
    }
    make(tmp_path / "a")
    after = contents(tmp_path / "a")
    assert before.items() <= after.items()
    assert "log/2.1.json" in after
    whole(tmp_path / "a")


def test_rows_that_do_not_count_hold_fill_values(tmp_path):
    writer = begin(tmp_path / "a", n=3)
    writer.write_block(
        0, {"pooled": [drawn("pooled", "i0"), None, None], "grid": [drawn("grid", "i0"), None, None],
            "image_stats": [drawn("image_stats", "i0"), None, None]},
        ["ok", "quarantined:truncated", "unlisted"], {1: "cut short"}, [sha256("i0"), "", ""],
    )  # fmt: skip
    store = open_store(tmp_path / "a")
    assert store.valid().tolist() == [True, False, False]
    assert np.isnan(store.read("grid")[1:]).all()
    assert [(one.row, one.code, one.reason) for one in store.quarantined] == [
        (1, "truncated", "cut short"), (2, "unlisted", ""),
    ]  # fmt: skip
    assert store.missing == 0


# Several writers


def test_writers_at_once_commit_every_block_once(tmp_path):
    n, done = 40 * 16, []

    def work(seed):
        writer = begin(tmp_path / "a", n=n, arrays=("pooled",))
        order = np.random.default_rng(seed).permutation(writer.blocks).tolist()
        done.extend(b for b in order if writer.missing(b) and write(writer, b) is not None)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(40))
    assert whole(tmp_path / "a", ["pooled"]).missing == 0
    assert len(list((tmp_path / "a" / "log").iterdir())) == 40
    assert not list((tmp_path / "a").rglob(".*"))


def test_a_writer_that_comes_second_records_nothing(tmp_path):
    one, two = begin(tmp_path / "a"), begin(tmp_path / "a")
    assert two.state.identity.store_id == one.state.identity.store_id
    assert write(one, 0, ARRAYS) > 0
    assert write(two, 0, ARRAYS) is None
    assert two.lacking(0) == ()
    assert write(two, 1) > 0
    assert one.missing(1) == ()
    assert one.state.snapshot == two.state.snapshot


def test_writers_of_different_arrays_share_a_block(tmp_path):
    one, two = begin(tmp_path / "a", arrays=("pooled",)), begin(tmp_path / "a")
    write(one, 0, ["pooled"])
    assert write(two, 0, ARRAYS) is not None
    assert two.missing(0) == ()
    assert one.missing(0) == ()
    assert {path.name for path in (tmp_path / "a" / "log").iterdir()} == {"0.0.json", "0.1.json"}


def test_a_shard_without_record_is_taken_as_it_is(tmp_path, monkeypatch):
    """But not if it is rotten, or of other images."""
    writer = begin(tmp_path / "a")
    killed_before_the_record(writer, monkeypatch)
    shard = tmp_path / "a" / "pooled" / "c.0.0"
    raw, time = shard.read_bytes(), shard.stat().st_mtime_ns
    for other in ({"image": "other{}"}, {"status": "quarantined:x"}):
        with pytest.raises(DamageError, match=r"pooled/c\.0\.0 .*--repair"):
            write(begin(tmp_path / "a"), 0, **other)
    shard.write_bytes(raw[:100] + bytes([raw[100] ^ 1]) + raw[101:])
    with pytest.raises(DamageError, match=r"pooled/c\.0\.0"):
        write(begin(tmp_path / "a"), 0)
    shard.write_bytes(raw)
    os.utime(shard, ns=(time, time))
    make(tmp_path / "a")
    assert shard.stat().st_mtime_ns == time
    whole(tmp_path / "a")


def test_another_writers_block_of_another_image(tmp_path):
    one, two = begin(tmp_path / "a", arrays=("pooled",)), begin(tmp_path / "a", arrays=("grid",))
    write(one, 0, ["pooled"])
    with pytest.raises(DamageError, match=r"row 0 .* another image"):
        write(two, 0, ["grid"], image="other{}")
    assert two.earlier_image(0) == sha256("i0")


# What is refused


def test_another_fingerprint_changes_nothing(tmp_path):
    make(tmp_path / "a", stop=1)
    before = contents(tmp_path / "a")
    with pytest.raises(MismatchError, match="image_size"):
        begin(tmp_path / "a", fields={**FIELDS, "image_size": 128})
    assert contents(tmp_path / "a") == before


@pytest.mark.parametrize(
    "change", [{"fields": {**FIELDS, "image_size": 128}}, {"dataset": "other"}]
)
def test_two_that_begin_at_once_with_different_plans(tmp_path, monkeypatch, change):
    """The second has found no store, and the first has made one when it comes to write."""
    begin(tmp_path / "a")
    before = contents(tmp_path / "a")
    monkeypatch.setattr("samtl.store.writer.load_state", lambda storage: None)
    with pytest.raises(MismatchError):
        begin(tmp_path / "a", **change)
    assert contents(tmp_path / "a") == before
    assert begin(tmp_path / "a").state.table.about.number == 0  # the same plan goes on


def test_a_table_that_came_meanwhile(tmp_path):
    one = begin(tmp_path / "a")
    state = load_state(one.state.storage)
    begin(tmp_path / "a", labels=[0] * ROWS)
    with pytest.raises(MismatchError, match="sample table"):
        open_writer(state.storage, state.identity, table(labels=[1] * ROWS), ARRAYS, state=state)


def test_a_disk_that_gives_back_something_else(tmp_path, monkeypatch):
    real = DiskStorage.create

    def lying(self, name, pieces):
        pieces = list(pieces)
        if name.startswith("grid/"):
            rows = [bytes(piece) for piece in pieces]
            rows[1], rows[2], rows[3], rows[4] = rows[3], rows[4], rows[1], rows[2]
            pieces = rows
        real(self, name, pieces)

    monkeypatch.setattr(DiskStorage, "create", lying)
    with pytest.raises(DamageError, match="something else"):
        write(begin(tmp_path / "a"), 0)
    assert not list((tmp_path / "a").glob("log/*"))


def test_a_full_disk_costs_the_block_alone(tmp_path, monkeypatch):
    writer = begin(tmp_path / "a")
    write(writer, 0)

    def full(*args):
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr("os.link", full)
        with pytest.raises(ResourceError, match="no space"):
            write(writer, 1)
    assert not list((tmp_path / "a").rglob(".tmp-*"))
    make(tmp_path / "a")
    whole(tmp_path / "a")


def test_a_file_system_without_exclusive_creation(tmp_path, monkeypatch):
    monkeypatch.setattr("os.link", lambda one, other: os.replace(one, other))  # noqa: PTH105
    with pytest.raises(ResourceError):
        begin(tmp_path / "a")
    assert not (tmp_path / "a" / "fingerprint.json").exists()


# Images come and go


def test_rows_of_removed_images_come_back(tmp_path):
    make(tmp_path / "a")
    kept = list(range(4, ROWS))
    samples, labels = [f"i{row}" for row in kept], [0] * len(kept)
    fewer = table(rows=kept, samples=samples, labels=labels, rows_end=ROWS)
    state = load_state(open_storage(tmp_path / "a"))
    open_writer(state.storage, state.identity, fewer, ARRAYS).finish()
    store = open_store(tmp_path / "a")
    assert (len(store), store.sample_ids[0], store.missing) == (ROWS - 4, "i4", 0)
    assert store.summary().superseded == 4
    np.testing.assert_array_equal(store.row("pooled", 0), drawn("pooled", "i4"))
    make(tmp_path / "a")
    assert len(whole(tmp_path / "a")) == ROWS


def test_metadata_of_a_newer_table_stays(tmp_path):
    make(tmp_path / "a")
    older = begin(tmp_path / "a")
    relisted(tmp_path / "a", set(range(ROWS)) - {1})
    before = contents(tmp_path / "a")
    older.finish()
    assert contents(tmp_path / "a") == before


def test_further_processes_write_from_a_loaded_state(tmp_path):
    begin(tmp_path / "a")
    writer = Writer(load_state(open_storage(tmp_path / "a")), ARRAYS)
    for block in writer.pending():
        write(writer, block)
    assert writer.known_good() == 0
    writer.finish()
    whole(tmp_path / "a")
