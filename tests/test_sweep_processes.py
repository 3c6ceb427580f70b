"""Worker processes share the work, and one that is killed costs no more than the cell that it was at."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from stubs import embedded
from toys import stripes

from samtl.errors import InputError
from samtl.sweep.api import Progress, sweep
from samtl.sweep.results import failed_cells
from samtl.sweep.worker import CELLS, cores

pytestmark = pytest.mark.usefixtures("one_thread")

LONG = {"mlp": {"hidden": (64,), "epochs": 100, "patience": 100}}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return embedded(tmp_path_factory.mktemp("store"), stripes(60), 64, ("pooled",))


def killing(stop):
    """Kill all worker processes at each event of a cell until `stop` is true; keeps what was told."""
    told = []

    def on_event(event):
        told.append(event)
        if isinstance(event, Progress) and event.what == "event" and not stop(event):
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)
                child.join()

    return told, on_event


def run(store, out, splits="kfold:3", **options):
    return sweep(store, ["mlp"], splits, out=out, params=LONG, jobs=2, **options)


def test_the_cores_that_this_process_may_use_are_counted(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores() == os.cpu_count()


def test_a_dataset_that_cannot_be_sent_is_refused(store, tmp_path):
    class Local(type(stripes(3))):
        pass

    data = stripes(60)
    local = Local(**{name: getattr(data, name) for name in data.__dataclass_fields__})
    with pytest.raises(InputError, match="jobs"):
        sweep([], [], "0.2,0.4", 2, tmp_path / "out", baselines=["floor"], dataset=local, jobs=2)


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_nothing_but_time(store, tmp_path):
    kills = []
    _, on_event = killing(lambda event: kills.append(event) or len(kills) > 1)
    result = run(store, tmp_path / "sweep", on_event=on_event)
    assert kills
    assert (result.done, result.failed) == (3, {})
    whole = run(store, tmp_path / "whole")
    values = [[(row["run"], row["metric_value"]) for row in r.rows] for r in (result, whole)]
    assert values[0] == values[1]


@pytest.mark.slow
def test_a_cell_that_kills_its_worker_fails_and_the_rest_goes_on(store, tmp_path):
    out = tmp_path / "sweep"
    _, on_event = killing(lambda event: event.cell.split != "fold:2/3")
    result = run(store, out, on_event=on_event)
    assert (result.done, len(result.failed)) == (2, 1)
    ((cell, reason),) = failed_cells(out)
    assert "fold:2/3" in cell
    assert "killed" in reason
    assert not list((out / CELLS).glob(".*"))
    again = run(store, out)
    assert (again.done, again.skipped, failed_cells(out)) == (1, 2, [])


@pytest.mark.slow
def test_what_stops_the_parent_ends_the_workers(store, tmp_path):
    class Stop(BaseException):
        pass

    def stop(event):
        if event.what == "event":
            raise Stop

    with pytest.raises(Stop):
        run(store, tmp_path / "sweep", on_event=stop)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_of(store, tmp_path):
    script = tmp_path / "study.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            from samtl.sweep.api import sweep
            sweep(sys.argv[1], ["logreg"], "kfold:3", 1, sys.argv[2], jobs=2)
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(script), str(store), str(tmp_path / "out")],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 1
    assert '`if __name__ == "__main__":`' in done.stderr.splitlines()[-1]
    assert not list((tmp_path / "out").glob("cells/*"))
