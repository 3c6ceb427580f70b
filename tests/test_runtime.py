"""Prefetching, task pools, memory, devices, quantities in words, and the order of rows."""

import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from workers import end_worker, hears_ctrl_c, invert

from samtl import _runtime
from samtl._runtime import machine_memory, peak_memory, prefetch, run_tasks
from samtl.errors import InputError, ResourceError, writing


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_order_and_not_without_bound(workers):
    def work(row):
        started.append(row)
        time.sleep(random.Random(row).uniform(0, 0.005))
        return row

    started, depth = [], 6
    for row, result in enumerate(prefetch(work, iter(range(50)), workers, depth)):
        assert result == row
        assert len(started) <= row + 1 + depth
    assert sorted(started) == list(range(50))


def test_an_error_is_raised_when_its_result_is_taken_and_threads_end():
    before = threading.active_count()
    results = prefetch(lambda item: 1 // (2 - item), range(10**6), 3, 6)
    assert [next(results), next(results)] == [0, 1]
    assert threading.active_count() > before
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert threading.active_count() == before
    results = prefetch(abs, range(10**6), 3, 6)
    assert next(results) == 0
    results.close()
    assert threading.active_count() == before


def run(work, tasks, workers=2, **options):
    return run_tasks(work, tasks, workers, instead="do it here", **options)


@pytest.mark.slow
def test_tasks_yield_results_exceptions_and_messages():
    taken, messages, stop = [], [], threading.Event()

    def tasks():
        for task in (1, 0, 2, 4, 8):
            taken.append(task)
            yield task

    found = {}
    for task, result in run(invert, tasks(), on_message=messages.append, should_stop=stop.is_set):
        found[task] = result
        assert task in messages  # is there before the result
        assert len(taken) <= len(found) + 2
        stop.set()
    assert isinstance(found.pop(0), ZeroDivisionError)
    assert found == {1: 1.0, 2: 0.5, 4: 0.25, 8: 0.125}
    assert sorted(messages, key=str) == [0, 1, 2, 4, 8, "stopped", "stopped", "stopped"]


@pytest.mark.slow
def test_only_the_task_that_kills_its_worker_twice_fails(tmp_path):
    once, losses = tmp_path / "once", []
    tasks = [0, 1, -1, 2, once, 3]
    found = dict(run(end_worker, tasks, on_loss=lambda: losses.append(1)))
    assert isinstance(found.pop(-1), BrokenExecutor)
    assert found == {0: 0, 1: 1, 2: 2, 3: 3, once: "second"}
    assert 1 <= len(losses) <= 2


@pytest.mark.slow
def test_workers_are_deaf_to_ctrl_c_and_killed_at_the_end():
    running = run(hears_ctrl_c, [0, 600, 600])
    assert next(running) == (0, False)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    began = time.monotonic()
    running.close()
    assert time.monotonic() - began < 60


UNGUARDED = """
import functools
from samtl._runtime import run_tasks
from workers import invert
work = functools.partial(invert, more=bytes(2**20))
list(run_tasks(work, [0, 1], 2, instead="do it here"))
"""


def test_work_that_cannot_be_sent_and_a_script_without_a_guard_are_refused(tmp_path):
    with pytest.raises(InputError, match="or do it here"):
        next(run(lambda task, link: task, [1]))
    (tmp_path / "script.py").write_text(UNGUARDED)  # its processes run it again from the start
    done = subprocess.run(
        [sys.executable, "script.py"], capture_output=True, text=True, timeout=100, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )  # fmt: skip
    assert done.returncode == 1
    assert "__main__" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_a_request_and_the_next_one_ends_it(number, capfd):
    before = signal.getsignal(number)
    with _runtime.polite_stop("stopping") as asked:
        assert not asked()
        signal.raise_signal(number)
        assert asked()
        assert asked.exit_code == 128 + number
        with pytest.raises(_runtime.StopNow):
            signal.raise_signal(number)
    assert capfd.readouterr().err.strip() == "stopping"
    with _runtime.stop_at_once(), pytest.raises(_runtime.StopNow) as stop:
        signal.raise_signal(number)
    assert stop.value.exit_code == 128 + number
    assert signal.getsignal(number) is before


def test_nohup_holds():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _runtime.stop_at_once():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_a_disk_answers_is_told_as_one_error():
    told = r"cannot write a table: No space left.*make room"
    with pytest.raises(ResourceError, match=told), writing("a table"):
        raise OSError(errno.ENOSPC, "No space left on device")


PEAK = """
from samtl._runtime import peak_memory
print(peak_memory())
block = bytearray(b"x") * 2**26
print(peak_memory())
del block
print(peak_memory())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="elsewhere only ru_maxrss")
def test_the_peak_is_that_of_this_process_alone():
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    before, during, after = map(int, done.stdout.split())
    # `ru_maxrss` would start at the size of this process, which has loaded torch.
    assert 2**20 < before < peak_memory() / 2
    assert 0.9 * 2**26 < during - before < 1.2 * 2**26
    assert after > during - 2**20


@pytest.mark.skipif(not Path("/proc/self/cgroup").exists(), reason="no control groups")
def test_the_limit_of_a_control_group_counts(monkeypatch):
    real, files = Path.read_text, {"/proc/self/cgroup": "0::/\n"}

    def read(path, *rest, **options):
        if not str(path).startswith(("/proc/self/cgroup", "/sys/fs/cgroup")):
            return real(path, *rest, **options)
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read)
    whole, a, b = machine_memory(), "/sys/fs/cgroup/a/memory.max", "/sys/fs/cgroup/a/b/memory.max"
    memory = "/sys/fs/cgroup/memory/{}memory.limit_in_bytes"
    for groups, limits, expected in (
        ("0::/a/b\n", {a: "1000000\n", b: "max\n"}, 10**6),
        ("0::/a/b\n", {a: "1000000\n", b: "7\n"}, 7),
        ("4:memory:/x\n3:cpu:/y\n", {memory.format("x/"): "4096\n"}, 4096),
        ("4:memory:/\n", {memory.format(""): "9223372036854771712\n"}, whole),
        ("0::/\n", {}, whole),
    ):
        files = {"/proc/self/cgroup": groups, **limits}
        assert machine_memory() == expected
    assert whole > peak_memory() > 0


def test_quantities_in_words():
    spans = {
        0: "0 s", 0.25: "0.25 s", 9.9: "9.9 s", 9.99: "10 s", 59.6: "1 min", 61: "1 min 1 s", 7200: "2 h",
        3700: "1 h 1 min",
    }  # fmt: skip
    assert {seconds: _runtime.duration(seconds) for seconds in spans} == spans
    sizes = {0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 3.4 * 2**30: "3.4 GiB", 2**40: "1.00 TiB"}
    assert {count: _runtime.size(count) for count in sizes} == sizes


@given(st.lists(st.text(), unique=True, max_size=30), st.randoms())
def test_the_order_of_rows_is_that_of_the_sha256_of_their_ids(ids, rng):
    shuffled = rng.sample(ids, len(ids))
    ordered = [ids[i] for i in _runtime.hash_order(ids)]
    assert ordered == [shuffled[i] for i in _runtime.hash_order(shuffled)]
    digests = [hashlib.sha256(i.encode()).hexdigest() for i in ordered]
    assert digests == sorted(digests)
