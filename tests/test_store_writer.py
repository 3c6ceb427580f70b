"""Writing a store: what is published in which order, by whom, and what is refused."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from samtl.store.rows import Rows
from stubs import contents

from samtl.errors import (
    DamageError,
    InputError,
    LockedError,
    MismatchError,
)
from samtl.store import documents, durable
from samtl.store.fingerprint import FILE, Fingerprint
from samtl.store.log import OK, read_log
from samtl.store.reader import open_store
from samtl.store.writer import open_writer

COLUMNS = {"pooled": ["a", "b"], "image_stats": ["c"]}
FINGERPRINT = Fingerprint(
    "stub", "ab" * 32, {"resize": "bilinear"}, 64, "float32", {"pooled": "float32"}
)
ROWS = Rows("toy", ("cat", "dog"), tuple(f"cat/{i}.png" for i in range(20)), (0, 1) * 10)
ARRAYS = ("pooled", "label")


def writing(path, fingerprint=FINGERPRINT, rows=ROWS, arrays=ARRAYS):
    return open_writer(
        path, fingerprint, {"weights": "none", "untrained": True}, rows, COLUMNS, arrays
    )


def write(writer, block, arrays=ARRAYS, value=0.0):
    count = len(writer.block_rows(block))
    labels = [writer.rows.labels[row] for row in writer.block_rows(block)]
    values = {"pooled": [np.full(2, value, np.float32)] * count, "label": labels}
    wanted = {name: values[name] for name in arrays}
    return writer.write_block(
        block, wanted, [OK] * count, {}, ["a" * 64] * count, {"device": "cpu"}
    )


@pytest.fixture
def store(tmp_path):
    """Give a store with its first block committed and its second not."""
    path = tmp_path / "a.zarr"
    with writing(path) as writer:
        write(writer, 0)
    return path


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Record what is published, in order, relative to the store `a.zarr`."""
    names = []
    publish = durable.publish

    def record(path, pieces):
        publish(path, pieces)
        names.append(str(path.relative_to(tmp_path / "a.zarr")))

    monkeypatch.setattr(durable, "publish", record)
    return names


def test_the_fingerprint_comes_first_and_each_record_after_its_shards(tmp_path, published):
    with writing(tmp_path / "a.zarr") as writer:
        write(writer, 1)
        write(writer, 0)
    assert published == [
        "fingerprint.json",
        "rows/0.json",
        "pooled/zarr.json",
        "label/zarr.json",
        "pooled/c.1.0",
        "label/c.1",
        "log/1.json",
        "pooled/c.0.0",
        "label/c.0",
        "log/0.json",
    ]


def test_the_record_says_what_is_on_disk(store):
    import hashlib

    (record,) = read_log(store)
    assert record.fingerprint == FINGERPRINT.sha256
    assert record.writer["pid"] == os.getpid()
    assert record.writer["device"] == "cpu"
    for name in ARRAYS:
        file = record.files[name]
        content = (store / file.path).read_bytes()
        assert file.size == len(content)
        assert file.sha256 == hashlib.sha256(content).hexdigest()


def test_what_is_not_committed_is_missing(store):
    with writing(store) as writer:
        assert writer.blocks == 2
        assert writer.block_rows(1) == range(16, 20)
        assert (writer.missing(0), writer.missing(1)) == ((), ARRAYS)


def test_what_the_disk_gives_back_is_compared_before_it_counts(tmp_path, monkeypatch):
    publish = durable.publish

    def publish_on_a_bad_disk(path, pieces):
        publish(path, pieces)
        if path.name == "c.0.0":
            damaged = bytearray(path.read_bytes())
            damaged[5] ^= 1
            path.write_bytes(damaged)

    monkeypatch.setattr(durable, "publish", publish_on_a_bad_disk)
    with (
        writing(tmp_path / "a.zarr") as writer,
        pytest.raises(DamageError, match=r"pooled/c\.0\.0: what the disk gives back"),
    ):
        write(writer, 0)
    assert read_log(tmp_path / "a.zarr") == []


@pytest.mark.parametrize("damage", ["index", "short", "empty"])
def test_a_bad_end_of_a_shard_is_found_before_it_counts(tmp_path, monkeypatch, damage):
    publish = durable.publish

    def publish_on_a_bad_disk(path, pieces):
        publish(path, pieces)
        if path.name == "c.0.0":
            content = path.read_bytes()
            flipped = content[:-50] + bytes([content[-50] ^ 1]) + content[-49:]
            path.write_bytes({"index": flipped, "short": content[:-1], "empty": b""}[damage])

    monkeypatch.setattr(durable, "publish", publish_on_a_bad_disk)
    with (
        writing(tmp_path / "a.zarr") as writer,
        pytest.raises(DamageError, match=r"pooled/c\.0\.0"),
    ):
        write(writer, 0)
    assert read_log(tmp_path / "a.zarr") == []


def test_a_shard_without_a_record_is_written_again(store):
    (store / "pooled" / "c.1.0").write_bytes(b"left over from a crash")
    with writing(store) as writer:
        write(writer, 1, value=5)
    np.testing.assert_array_equal(open_store(store).read("pooled", [19]), [[5, 5]])


def test_what_killed_writers_left_is_swept_away(store):
    left = [store / f / ".tmp-0123" for f in (".", "log", "rows", "pooled", "grid")]
    left[-1].parent.mkdir()
    for path in left:
        path.write_bytes(b"half")
    with writing(store):
        pass
    assert [path for path in left if path.exists()] == []


def test_a_crash_between_any_two_steps_of_the_start_is_taken_up(tmp_path, monkeypatch):
    whole, publish = tmp_path / "whole.zarr", durable.publish
    with writing(whole):
        pass
    for steps in range(4):
        path, left = tmp_path / f"{steps}.zarr", iter(range(steps))

        def stop_after(path, pieces, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            publish(path, pieces)

        monkeypatch.setattr(durable, "publish", stop_after)
        with pytest.raises(KeyboardInterrupt), writing(path):
            pass
        monkeypatch.setattr(durable, "publish", publish)
        with writing(path):
            pass
        mine, theirs = contents(path, hidden=False), contents(whole, hidden=False)
        assert {k: v[-1] for k, v in mine.items()} == {k: v[-1] for k, v in theirs.items()}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"encoder": "other"}, "encoder.name"),
        ({"weights_sha256": "cd" * 32}, "encoder.weights_sha256"),
        ({"preprocessing": {"resize": "nearest"}}, "preprocessing.resize"),
        ({"compute_dtype": "bfloat16"}, "compute_dtype"),
    ],
)
def test_another_fingerprint_is_refused_and_nothing_touched(store, change, field):
    before = contents(store)
    with pytest.raises(MismatchError, match=f"{re.escape(field)}: the store has") as caught:  # noqa: SIM117
        with writing(store, replace(FINGERPRINT, **change)):
            pass
    assert [difference[0] for difference in caught.value.differences] == [field]
    assert caught.value.exit_code == 3
    assert contents(store) == before


def test_other_rows_are_refused_and_nothing_touched(store):
    before = contents(store)
    fewer = replace(ROWS, sample_ids=ROWS.sample_ids[:5], labels=ROWS.labels[:5])
    with (
        pytest.raises(MismatchError, match="sample_ids: the store has 20 rows"),
        writing(store, rows=fewer),
    ):
        pass
    assert contents(store) == before


@pytest.mark.parametrize("what", ["a file", "a folder with something in it", "a path below a file"])
def test_what_is_not_a_store_is_refused_and_kept(tmp_path, what):
    path = tmp_path / "a.zarr"
    if what == "a file":
        path.write_text("my thesis")
    elif what == "a path below a file":
        path.write_text("my thesis")
        path = path / "b.zarr"
    else:
        path.mkdir()
        (path / "thesis.tex").write_text("my thesis")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="--out"), writing(path):
        pass
    assert contents(tmp_path) == before


HOLDER = f"""
import sys, time
from pathlib import Path
from samtl.store.fingerprint import Fingerprint
from samtl.store.rows import Rows
from samtl.store.writer import open_writer
with open_writer(Path(sys.argv[1]), {FINGERPRINT}, {{}}, {ROWS}, {COLUMNS}, {ARRAYS}):
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(store):
    """Give a process that writes to the store until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, store], stdout=subprocess.PIPE)
    with process:
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


def test_a_second_writer_is_refused_until_the_first_is_gone(store, holder):
    before = contents(store)
    with pytest.raises(LockedError, match=f"process {holder.pid} on") as caught, writing(store):
        pass
    assert caught.value.exit_code == 4
    assert contents(store) == before
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with writing(store) as writer:
        assert write(writer, 1).block == 1


@pytest.mark.parametrize("told", ["", "[]", "{}", "[" * 100_000, '{"pid": 1, "host": {}}'])
def test_who_writes_may_not_be_known(store, holder, told):
    (store / ".writer.json").write_text(told)
    with pytest.raises(LockedError, match="being written by another process"), writing(store):
        pass


def test_a_store_can_be_read_while_it_is_written(store, holder):
    assert open_store(store).read("label", range(16)).tolist() == [0, 1] * 8


def test_arrays_that_are_not_of_a_store_stay_out_of_its_metadata(store):
    (store / "other").mkdir()
    (store / "other" / "zarr.json").write_text("{}")
    before = (store / "zarr.json").read_bytes()
    with writing(store) as writer:
        write(writer, 1)
    assert (store / "zarr.json").read_bytes() == before
    assert (store / "other" / "zarr.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["zarr.json", "pooled/zarr.json"])
def test_a_folder_in_the_place_of_metadata_stops_a_pass(store, name):
    (store / name).unlink()
    (store / name).mkdir()
    with pytest.raises(DamageError, match=f"{name} is a folder.*move it elsewhere"), writing(store):
        pass


def test_a_second_writer_that_the_lock_did_not_stop_overwrites_nothing(store):
    with writing(store) as late:
        (store / ".lock").unlink()  # as some network file systems do not lock at all
        with writing(store) as first:
            write(first, 1, value=1)
            committed = contents(store)
            with pytest.raises(LockedError, match=r"another writer was at .*log/1\.json"):
                write(late, 1, value=2)
            assert contents(store) == committed
    assert open_store(store).read("pooled", [16]).tolist() == [[1, 1]]


def test_of_two_records_of_a_block_the_first_stays(store, monkeypatch):
    publish = durable.publish

    def come_second(path, pieces):
        if path.name == "1.json":
            path.write_bytes(b"the other writer's")
        publish(path, pieces)

    monkeypatch.setattr(durable, "publish", come_second)
    with (
        writing(store) as writer,
        pytest.raises(LockedError, match=r"another writer .*log/1\.json"),
    ):
        write(writer, 1)
    assert (store / "log" / "1.json").read_bytes() == b"the other writer's"


def test_arrays_are_added_by_a_second_record(tmp_path, store):
    before = contents(store, hidden=False)
    with writing(store, arrays=("pooled", "label", "image_stats")) as writer:
        assert writer.missing(0) == ("image_stats",)
        assert writer.earlier_image(15) == "a" * 64
        assert writer.earlier_image(16) == ""
        writer.write_block(0, {"image_stats": [[3]] * 16}, [OK] * 16, {}, ["a" * 64] * 16, {})
    after = contents(store, hidden=False)
    assert after.keys() - before.keys() == {
        "image_stats/zarr.json",
        "image_stats/c.0.0",
        "log/0.1.json",
    }
    assert {k for k in before if after[k] != before[k]} == {"zarr.json"}
    assert sorted(json.loads(after["zarr.json"][-1])["consolidated_metadata"]["metadata"]) == [
        "image_stats",
        "label",
        "pooled",
    ]
    assert open_store(store).arrays == ("pooled", "image_stats", "label")


def test_withdrawn_arrays_are_written_again(store):
    (first,) = read_log(store)
    withdrawal = replace(first, sequence=1, files={}, withdrawn=("pooled",))
    (store / "log" / "0.1.json").write_bytes(documents.seal(withdrawal.to_dict()))
    with writing(store) as writer:
        assert writer.missing(0) == ("pooled",)
        write(writer, 0, arrays=("pooled",), value=9)
    assert [record.sequence for record in read_log(store)] == [0, 1, 2]
    assert open_store(store).read("pooled", [3]).tolist() == [[9, 9]]


def test_damaged_metadata_is_named_and_can_be_mended(store):
    metadata = store / "pooled" / "zarr.json"
    whole = metadata.read_bytes()
    metadata.write_bytes(whole[:50])
    with (
        pytest.raises(DamageError, match=r"pooled/zarr\.json is damaged; remove it"),
        writing(store),
    ):
        pass
    metadata.unlink()
    with writing(store):
        pass
    assert metadata.read_bytes() == whole


def test_a_damaged_log_is_not_written_on(store):
    (store / "log" / "0.json").write_bytes(b"{}")
    before = contents(store, hidden=False)
    with pytest.raises(DamageError, match=r"log/0\.json"), writing(store):
        pass
    assert contents(store, hidden=False) == before
    assert (store / FILE).exists()
