"""Several processes leave the store that one would, whatever becomes of them."""

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from samtl.embed.fleet import Fleet, _portable, _Worker

from samtl.datasets import Dataset, resolve
from samtl.embed.api import embed
from samtl.embed.pipeline import Progress
from samtl.errors import (
    InputError,
    MismatchError,
    ResourceError,
    UnknownName,
)
from samtl.store.log import read_log
from samtl.store.reader import open_store

ROWS = 128  # eight blocks


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(devices="cpu,cpu", dataset="synthetic:16", out="a.zarr", **options):
    return embed(
        dataset, "tiny", device=devices, dtype="float32", image_size=96, batch_size=2, out=out, **options
    )  # fmt: skip


def processes(path):
    return {record.writer["pid"] for record in read_log(Path(path))}


@pytest.mark.slow
def test_two_devices_leave_what_one_does():
    events = []
    result = run(on_event=events.append)
    assert (result.rows, result.encoded, result.missing) == (ROWS, ROWS, 0)
    assert result.plan.device == json.loads(json.dumps(result.to_json()))["device"] == "cpu,cpu"
    assert result.bytes_written > 0
    assert not result.interrupted
    progress = [event for event in events if isinstance(event, Progress)]
    assert progress[-1].encoded == progress[-1].pending_rows == ROWS
    assert [p.encoded for p in progress] == sorted(p.encoded for p in progress)
    one = open_store(run("cpu", out="one.zarr").store)
    two = open_store(result.store)
    assert two.fingerprint == one.fingerprint
    for name in ("pooled", "grid", "dense", "image_stats", "label"):
        np.testing.assert_allclose(two.read(name), one.read(name), rtol=1e-3, atol=1e-3)
    pids = processes("a.zarr")
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert processes("one.zarr") == {os.getpid()}


@pytest.mark.slow
def test_a_stop_ends_all_and_loses_nothing():
    seen = []
    result = run(on_event=seen.append, should_stop=lambda: len(seen) > 3)
    assert result.interrupted
    done = sum(len(record.status) for record in read_log(Path("a.zarr")))
    assert result.encoded == done < ROWS
    assert result.missing == ROWS - done
    again = run("cpu")
    assert (again.encoded, again.missing) == (ROWS - done, 0)


@pytest.mark.slow
def test_a_process_that_is_killed_is_told_and_the_rest_can_be_taken_up():
    def kill(event):
        if isinstance(event, Progress) and event.encoded:
            for child in multiprocessing.active_children()[:1]:
                os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(ResourceError, match=r"signal 9.*run the same command again"):
        run(on_event=kill)
    assert multiprocessing.active_children() == []
    assert run("cpu").missing == 0


@pytest.mark.slow
def test_what_goes_wrong_in_a_process_is_raised_in_this_one(tmp_path):
    source = resolve("synthetic:16")
    for sample_id in source.sample_ids:
        path = tmp_path / "images" / sample_id
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.read(sample_id))

    def take_away(event):
        if isinstance(event, Progress):
            shutil.rmtree(tmp_path / "images", ignore_errors=True)

    with pytest.raises(ResourceError, match="cannot be read any more"):
        run(dataset=f"folder:{tmp_path / 'images'}", on_event=take_away)


@pytest.mark.slow
def test_a_dataset_that_cannot_travel_is_refused():
    source = resolve("synthetic:2")
    own = Dataset(
        "own", source.classes, source.sample_ids, source.labels, lambda name: source.read(name)
    )
    with pytest.raises(InputError, match="--device must name one"):
        run(dataset=own)


def test_an_error_that_cannot_travel_is_told_in_words():
    class Stuck(Exception):
        def __init__(self, one, two):
            super().__init__(f"{one} and {two}")

    found = _portable(Stuck("a", "b"))
    assert type(found) is RuntimeError
    assert "a and b" in str(found)
    defect = _portable(ZeroDivisionError("nothing to divide by"))
    assert type(defect) is ZeroDivisionError
    assert "ZeroDivisionError: nothing to divide by" in defect.__notes__[0]


@pytest.mark.parametrize(
    "error",
    [
        ResourceError("the disk gave out"),
        MismatchError("made in another way", [("encoder", "a", "b")]),
        UnknownName("engine", "fsat", ["fast"]),
    ],
)
def test_errors_of_samtl_travel_whole(error):
    there = pickle.loads(pickle.dumps(_portable(error)))
    assert type(there) is type(error)
    assert (str(there), there.exit_code) == (str(error), error.exit_code)
    assert there.__dict__ == error.__dict__


class Line:
    """The parent's end of a line to a process that has just died."""

    def __init__(self, message):
        self.message = message

    def recv(self):
        return self.message

    def send(self, content):
        raise BrokenPipeError


class Dead:
    exitcode = -9

    def join(self):
        pass


@pytest.mark.parametrize("what", ["hello", "next"])
def test_a_process_that_dies_while_it_is_answered(what):
    plan = SimpleNamespace(batch_size=1, pending_rows=1, device="cpu,cpu")
    fleet = Fleet(SimpleNamespace(plan=plan), ["cpu"], None, None, print, lambda: False)
    fleet._hand_over = lambda worker: worker.line.send("everything")
    assert not fleet._listen(_Worker("cpu", Dead(), Line((what, None))), iter([1]))
    assert "the process for cpu was ended by signal 9" in str(fleet._failure)
    assert fleet._stopping.value


@pytest.mark.slow
def test_an_unguarded_script_is_told_so():
    """Its processes run it again from the start; the dataset is more than a pipe holds."""
    script = (
        "import samtl\n"
        "samtl.embed('synthetic:400', 'tiny', device='cpu,cpu', image_size=64, out='a.zarr')\n"
    )
    Path("script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "script.py"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "__main__" in done.stderr.splitlines()[-1]
