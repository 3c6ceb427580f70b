"""Several processes leave the store that one would, whatever becomes of them."""

import json
import multiprocessing
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
from zips import put

from samtl._runtime import Note
from samtl.datasets import resolve
from samtl.embed.api import embed
from samtl.embed.pipeline import Progress
from samtl.errors import InputError, ResourceError
from samtl.store.reader import open_store

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked_workers")]
ROWS = 128  # eight blocks


def run(devices="cpu,cpu", dataset="synthetic:16", out="a.zarr", **options):
    options = {"dtype": "float32", "image_size": 96, "batch_size": 2, **options}
    options.setdefault("tiers", ("pooled", "grid", "dense"))
    return embed(dataset, "tiny", device=devices, out=out, **options)


def processes(path):
    return {writer["pid"] for writer in open_store(path).writers()}


def test_two_devices_leave_what_one_does_and_a_stop_ends_both():
    events = []
    result = run(on_event=events.append)
    assert (result.rows, result.encoded, result.missing) == (ROWS, ROWS, 0)
    assert result.plan.device == json.loads(json.dumps(result.to_json()))["device"] == "cpu,cpu"
    assert (result.bytes_written > 0, result.interrupted) == (True, False)
    progress = [event for event in events if isinstance(event, Progress)]
    assert progress[-1].encoded == progress[-1].pending_rows == ROWS
    assert len(processes("a.zarr")) == 2
    assert os.getpid() not in processes("a.zarr")
    assert run().encoded == 0
    events.clear()
    stopped = run(out="b.zarr", on_event=events.append, should_stop=lambda: len(events) > 3)
    assert stopped.interrupted
    assert stopped.encoded == ROWS - stopped.missing < ROWS
    rest = run("cpu", out="b.zarr")
    assert (rest.encoded, rest.missing) == (ROWS - stopped.encoded, 0)
    assert os.getpid() in processes("b.zarr")
    one, two = open_store("b.zarr"), open_store("a.zarr")
    assert two.fingerprint == one.fingerprint
    for name in ("pooled", "grid", "dense", "image_stats"):
        np.testing.assert_allclose(two.read(name), one.read(name), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("always", [False, True])
def test_if_a_process_is_killed_the_others_go_on_and_a_device_may_fail(always):
    events, killed = [], []

    def kill(event):
        events.append(event)
        if isinstance(event, Progress) and event.encoded and (always or not killed):
            for child in multiprocessing.active_children()[: None if always else 1]:
                killed.append(child.pid)
                os.kill(child.pid, signal.SIGKILL)

    if always:
        with pytest.raises(ResourceError, match=r"was killed.*run the same command again"):
            run(dataset="synthetic:40", on_event=kill)
    else:
        assert run(on_event=kill).missing == 0
    assert any(isinstance(event, Note) and "killed" in event.text for event in events)
    assert open_store("a.zarr").quarantined == ()
    assert multiprocessing.active_children() == []


def test_what_goes_wrong_in_a_process_is_raised_in_this_one(tmp_path):
    source = resolve("synthetic:12")
    put(source, tmp_path / "images")

    def take_away(event):
        if isinstance(event, Progress):
            shutil.rmtree(tmp_path / "images", ignore_errors=True)

    with pytest.raises(ResourceError, match="cannot be read any more"):
        run(dataset=f"folder:{tmp_path / 'images'}", on_event=take_away)
    with pytest.raises(InputError, match="--device must name one"):
        run(dataset=replace(source, read=lambda name: source.read(name)), out="own.zarr")
