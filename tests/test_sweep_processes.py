"""Worker processes share the work, and one that is killed costs no more than the cell that it was at."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from stubs import embedded
from sweeps import outcome, trained
from toys import stripes

from samtl.experiment.fit import fit_baseline, fit_head
from samtl.sweep.api import Progress, cores, sweep
from samtl.sweep.results import failed_cells

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return embedded(tmp_path_factory.mktemp("store"), stripes(60), 64, ("pooled", "grid"))


def run(store, out, jobs=2, **options):
    params = {"mlp": {"hidden": (64,), "epochs": 100, "patience": 100}}
    return sweep(store, ["mlp"], "kfold:3", out=out, params=params, jobs=jobs, **options)


def test_the_cores_that_this_process_may_use_are_counted(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores() == os.cpu_count()


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_jobs_and_threads_come_to_the_same_as_each_fit_alone(store, tmp_path, monkeypatch):
    """Splits within each other, which warm starts would connect."""
    data, splits = stripes(60), ("0.6", "0.2")
    params = {"mlp": {"epochs": 3}, "conv": {"epochs": 2}, "cnn": {"epochs": 1}, "logreg": {}}
    options = {"baselines": ["cnn"], "dataset": data, "params": params}
    for jobs, room in ((1, 0), (4, None)):
        out = tmp_path / str(jobs)
        made = sweep(
            store,
            ["logreg", "mlp", "conv"],
            ",".join(splits),
            1,
            out,
            jobs=jobs,
            room=room,
            **options,
        )
        assert (made.done, made.failed) == (8, {})
    before, alone = torch.get_num_threads(), tmp_path / "alone" / "cells"
    torch.set_num_threads(8)
    try:
        for name, split in itertools.product(("logreg", "mlp", "conv"), splits):
            fit_head(store, name, split, out=alone, params=params[name])
        for split in splits:
            fit_baseline(data, "cnn", split, out=alone, params=params["cnn"])
    finally:
        torch.set_num_threads(before)

    assert trained(tmp_path / "1") == trained(tmp_path / "4")
    heads = {name: one for name, one in trained(tmp_path / "1").items() if "-cnn-" not in name}
    assert len(heads) == 6
    assert heads.items() <= trained(tmp_path / "alone").items()
    # The name of a baseline's run covers the store that it is beside.
    weights = [
        {path.read_bytes() for path in folder.glob("*-cnn-*/head.safetensors")}
        for folder in (tmp_path / "1" / "cells", alone)
    ]
    assert weights[0] == weights[1]
    assert len(weights[0]) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_a_cell_that_kills_its_worker_fails_and_a_worker_that_is_killed_once_costs_only_time(
    store, tmp_path
):
    out, killed = tmp_path / "sweep", []

    def on_event(event):
        trained = isinstance(event, Progress) and event.what == "event"
        # The first time whatever is at work, then what the cell is tried in alone.
        if trained and (event.cell.split == "fold:2/3" or not killed):
            killed.append(event)
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)
                child.join()

    result = run(store, out, on_event=on_event)
    assert (result.done, len(result.failed)) == (2, 1)
    ((cell, reason),) = failed_cells(out)
    assert "fold:2/3" in cell
    assert "killed" in reason
    assert not list(out.glob("*/.*"))
    again = run(store, out, jobs=1)
    assert (again.done, again.skipped, failed_cells(out)) == (1, 2, [])


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_what_stops_the_parent_ends_the_workers(store, tmp_path):
    class Stop(BaseException):
        pass

    def stop(event):
        if event.what == "event":
            raise Stop

    with pytest.raises(Stop):
        run(store, tmp_path / "sweep", on_event=stop)
    assert not multiprocessing.active_children()


MLP = {"hidden": (8,), "epochs": 60, "lr": 1e-2, "patience": 60}
PARAMS = {"mlp": MLP, "conv": {"width": 8, "epochs": 20, "patience": 20}}
WHAT = {"heads": ["mlp", "conv"], "splits": "0.6,0.2", "seeds": 2, "params": PARAMS, "room": 0}
SCRIPT = f"""
    import os, sys
    os.fsync = lambda descriptor: None
    os.sched_getaffinity = lambda process: {{0, 1}}  # a thread for each worker
    from samtl.heads.training import trainer
    trainer.WARM_SAMPLES = 30
    from samtl.sweep import plan
    plan.MOST_KNOWN = 1.0
    from samtl.sweep.api import sweep

    if __name__ == "__main__":
        store, out = sys.argv[1:]
        told = lambda event: print(getattr(event, "what", "note"), flush=True)
        sweep(store, out=out, jobs=2, on_event=told, **{WHAT})
"""


def processes(session):
    """Ids of the processes of a session that are still there, zombies not counted."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_sweep_killed_at_any_moment_ends_with_the_same_rows(store, warm_starts, tmp_path):
    sweep(store, out=tmp_path / "whole", jobs=1, **WHAT)
    script, log, out = tmp_path / "study.py", tmp_path / "log", tmp_path / "sweep"
    script.write_text(textwrap.dedent(SCRIPT))
    random = np.random.default_rng(0)
    for kill in [os.kill, os.killpg] * (5 if os.environ.get("SAMTL_TORTURE") else 1):
        with log.open("w") as file:
            command = [sys.executable, script, store, out]
            process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
            # From the first cell on, which comes after some seconds of loading.
            while process.poll() is None and "started" not in log.read_text():
                time.sleep(0.02)
            time.sleep(random.random() * 0.8)
            kill(process.pid, signal.SIGKILL)
            process.wait(300)
        ended = time.monotonic()
        while processes(process.pid) and time.monotonic() - ended < 10:
            time.sleep(0.05)
        assert not processes(process.pid)  # nobody goes on without the parent
    result = sweep(store, out=out, jobs=1, **WHAT)
    assert result.failed == {}
    assert outcome(out) == outcome(tmp_path / "whole")
    assert not list(out.glob("*/.*"))
