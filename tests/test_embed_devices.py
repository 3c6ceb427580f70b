"""Several processes leave the store that one would, whatever becomes of them."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from samtl._runtime import Note
from samtl.datasets import Dataset, resolve
from samtl.embed.api import embed
from samtl.embed.pipeline import Progress
from samtl.errors import InputError, ResourceError
from samtl.store.reader import open_store

pytestmark = pytest.mark.slow
ROWS = 128  # eight blocks


def run(devices="cpu,cpu", dataset="synthetic:16", out="a.zarr", **options):
    return embed(
        dataset, "tiny", device=devices, dtype="float32", image_size=96, batch_size=2, out=out, **options
    )  # fmt: skip


def processes(path):
    return {writer["pid"] for writer in open_store(path).writers()}


def test_two_devices_leave_what_one_does():
    events = []
    result = run(on_event=events.append)
    assert (result.rows, result.encoded, result.missing) == (ROWS, ROWS, 0)
    assert result.plan.device == json.loads(json.dumps(result.to_json()))["device"] == "cpu,cpu"
    assert (result.bytes_written > 0, result.interrupted) == (True, False)
    progress = [event for event in events if isinstance(event, Progress)]
    assert progress[-1].encoded == progress[-1].pending_rows == ROWS
    one, two = open_store(run("cpu", out="one.zarr").store), open_store(result.store)
    assert two.fingerprint == one.fingerprint
    for name in ("pooled", "grid", "dense", "image_stats"):
        np.testing.assert_allclose(two.read(name), one.read(name), rtol=1e-3, atol=1e-3)
    pids = processes("a.zarr")
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert processes("one.zarr") == {os.getpid()}
    assert run().encoded == 0


def test_a_stop_ends_all_and_loses_nothing():
    seen = []
    result = run(on_event=seen.append, should_stop=lambda: len(seen) > 3)
    assert result.interrupted
    assert result.encoded == ROWS - result.missing < ROWS
    again = run("cpu")
    assert (again.encoded, again.missing) == (ROWS - result.encoded, 0)


def test_if_a_process_is_killed_the_others_go_on():
    events, killed = [], []

    def kill(event):
        events.append(event)
        if isinstance(event, Progress) and event.encoded and not killed:
            killed.append(multiprocessing.active_children()[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    result = run(on_event=kill)
    assert (result.missing, result.quarantined) == (0, ())
    assert any(isinstance(event, Note) and "killed" in event.text for event in events)
    assert multiprocessing.active_children() == []


def test_a_device_whose_process_is_always_killed_fails():
    def kill(event):
        if isinstance(event, Progress) and event.encoded:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(ResourceError, match=r"was killed.*run the same command again"):
        run(dataset="synthetic:80", on_event=kill)
    assert open_store("a.zarr").quarantined == ()


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


def test_a_dataset_that_cannot_travel_is_refused():
    source = resolve("synthetic:2")
    own = Dataset(
        "own", source.classes, source.sample_ids, source.labels, lambda name: source.read(name)
    )
    with pytest.raises(InputError, match="--device must name one"):
        run(dataset=own)


def test_an_unguarded_script_is_told_so():
    """Its processes run it again from the start."""
    script = (
        "import samtl\n"
        "samtl.embed('synthetic:400', 'tiny', device='cpu,cpu', image_size=64, out='a.zarr')\n"
    )
    Path("script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "script.py"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1
    assert "__main__" in done.stderr.splitlines()[-1]
