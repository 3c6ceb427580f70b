"""Processes share the work, and one that is killed costs the cell that it was at."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from stubs import embedded
from toys import stripes

from samtl.experiment.trial import Parts
from samtl.splits import Samples, holdout, inner
from samtl.store.reader import open_store
from samtl.sweep import crew
from samtl.sweep.api import Progress, sweep
from samtl.sweep.worker import (
    CELLS,
    Cell,
    Given,
    Unit,
    Workshop,
)

pytestmark = pytest.mark.usefixtures("one_thread")

PARAMS = {"mlp": {"hidden": (8,), "epochs": 3}, "logreg": {"C": 1.0}}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return embedded(tmp_path_factory.mktemp("store"), stripes(60), 64, ("pooled",))


def cell(store, number, name="logreg", seed=0, start="", params=PARAMS):
    opened = open_store(store)
    samples = Samples.of(opened.sample_ids, opened.labels)
    split = holdout(samples, 0.3, seed)
    parts = Parts(split, inner(samples, split))
    names = {"run": f"run{number}", "start": start}
    found = Cell(number, "heads", name, str(store), None, "0.3", seed, parts, **names)
    config = Workshop(Given(Path("out"), params)).trial(found).config
    return replace(found, digest=config.digest)


def test_the_cores_that_this_process_may_use_are_counted(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert crew.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert crew.cores() == os.cpu_count()


def test_one_job_works_in_this_process_and_in_order(store, tmp_path):
    told = []
    cells = [cell(store, i, seed=i) for i in range(3)]
    units = [Unit(((one,),)) for one in cells]
    crew.work(units, Given(tmp_path, PARAMS), 1, lambda c, what, text: told.append((c, what)))
    assert not multiprocessing.active_children()
    steps = [(one, what) for one, what in told if what != "event"]
    assert steps == [(one, what) for one in cells for what in ("started", "done")]
    assert len(list((tmp_path / CELLS).iterdir())) == 3


@pytest.mark.parametrize(
    ("code", "said"),
    [(-9, "its process was ended by signal 9"), (1, "was ended with code 1"), (None, "code None")],
)
def test_how_a_process_ended(code, said):
    assert said in crew._ended(code)


# With processes


@pytest.mark.slow
def test_two_jobs_share_the_work_and_each_has_its_cores(store, tmp_path):
    told, children = [], set()

    def tell(one, what, text):
        told.append((one.number, what))
        children.update(child.pid for child in multiprocessing.active_children())

    units = [Unit(((cell(store, i, seed=i),),)) for i in range(6)]
    crew.work(units, Given(tmp_path, PARAMS), 2, tell)
    steps = [pair for pair in told if pair[1] != "event"]
    assert sorted(steps) == sorted((i, what) for i in range(6) for what in ("started", "done"))
    assert len(children) == 2
    assert not multiprocessing.active_children()


def end_all():
    """End all processes of the crew, as one that is short of memory is ended."""
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
        child.join()


LONG = {"mlp": {"hidden": (64,), "epochs": 400, "patience": 400}}


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_nothing_but_time(store, tmp_path):
    killed = []

    def kill(event):
        if isinstance(event, Progress) and event.what == "event" and not killed:
            killed.append(event.cell.run)
            end_all()

    options = {"heads": ["mlp"], "splits": "kfold:4", "seeds": 2, "params": LONG}
    result = sweep(store, jobs=2, on_event=kill, out=tmp_path / "sweep", **options)
    assert len(killed) == 1
    assert (result.done, result.failed) == (8, {})
    assert not list((tmp_path / "sweep" / CELLS).glob(".*"))
    assert len(list((tmp_path / "sweep" / CELLS).iterdir())) == 8
    whole = sweep(store, jobs=2, out=tmp_path / "whole", **options)
    values = [[(row["run"], row["metric_value"]) for row in r.rows] for r in (result, whole)]
    assert values[0] == values[1]


@pytest.mark.slow
def test_a_cell_whose_process_is_killed_twice_is_given_up(store, tmp_path):
    told = []

    def tell(one, what, text):
        told.append((one.number, what, text))
        if (one.number, what) == (0, "started"):
            end_all()

    lane = (cell(store, 0), cell(store, 1, seed=1))
    crew.work([Unit((lane,))], Given(tmp_path, PARAMS), 2, tell)
    assert [t for t in told if t[1] != "event"] == [
        (0, "started", ""),
        (0, "started", ""),
        (0, "failed", crew._ended(-9)),
        (1, "started", ""),
        (1, "done", ""),
    ]


@pytest.mark.slow
def test_what_stops_the_parent_ends_the_processes(store, tmp_path):
    class Stop(BaseException):
        pass

    def tell(one, what, text):
        if what == "event":
            raise Stop

    params = {"mlp": {"hidden": (64,), "epochs": 4000, "patience": 4000}}
    units = [Unit(((cell(store, i, "mlp", seed=i, params=params),),)) for i in range(4)]
    with pytest.raises(Stop):
        crew.work(units, Given(tmp_path, params), 2, tell)
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
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert 'a script needs `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]
    assert not list(Path(tmp_path / "out").glob("cells/*"))


@pytest.mark.slow
def test_units_larger_than_a_pipe_reach_a_process_that_takes_its_time(store, tmp_path):
    large = cell(store, 0)
    padded = Cell(**{**vars(large), "run": "x" * 300_000})
    told = []
    units = [Unit(((padded,),)), Unit(((cell(store, 1, seed=1),),))]
    crew.work(units, Given(tmp_path, PARAMS), 2, lambda c, what, text: told.append((c, what)))
    assert {one.number for one, what in told if what == "done"} == {0, 1}
