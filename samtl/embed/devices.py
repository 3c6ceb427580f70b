"""Several devices at work on one store: a process for each, which writes to the store on its own."""

from __future__ import annotations

import ctypes
import multiprocessing
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from samtl._runtime import Note, process_pool, run_tasks
from samtl.embed.pipeline import Meter, Progress, Told, encode_blocks, load_encoder, start_writer
from samtl.embed.plan import Job
from samtl.errors import InputError, ResourceError

_FIELDS = 4  # of each device: images encoded, quarantined, bytes written, whether it has begun
_shared: tuple[Any, Any]  # in a worker: whether to stop, and the fields of all devices


def encode_on_devices(
    job: Job,
    devices: Sequence[str],
    tell: Callable[[Told], None],
    should_stop: Callable[[], bool],
) -> Meter:
    """Do the pending blocks of a pass on several devices; parameters are those of `encode_blocks`.

    If a worker process is killed, the devices go on one after the other. What goes wrong in a worker is raised here,
    once the others are through with the block that they are at.
    """
    try:
        pickle.dumps(job.dataset)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise InputError(
            f"the dataset cannot be sent to another process ({error}): its functions must be those of a module, or "
            "--device must name one device"
        ) from error
    context = multiprocessing.get_context("spawn")
    # Without locks, which a worker that is killed would keep.
    stop = context.RawValue(ctypes.c_bool, False)
    counts = context.RawArray(ctypes.c_double, _FIELDS * len(devices))
    meter = Meter(tell, job.plan.pending_rows)
    failures: list[BaseException] = []

    def listen() -> None:
        stop.value = stop.value or should_stop()
        encoded, quarantined, size = (int(sum(counts[i::_FIELDS])) for i in range(3))
        if encoded != meter.encoded:
            meter.quarantined, meter.bytes_written = quarantined, size
            meter.advance(encoded - meter.encoded)

    def start(workers: int) -> ProcessPoolExecutor:
        if workers == 1 and not any(counts[3::_FIELDS]):
            raise InputError(
                'a worker process ended before it began: a script needs `if __name__ == "__main__":` around what '
                "starts a pass on several devices"
            )
        if workers == 1:
            tell(Note("a worker process was killed: one device at a time goes on"))
        return process_pool(workers, _begin, (stop, counts))

    tasks = [
        (replace(job, state=None), device, number, len(devices))
        for number, device in enumerate(devices)
    ]
    for task, found in run_tasks(_work, tasks, start, in_flight=len(tasks), idle=listen):
        if isinstance(found, BrokenExecutor):
            found = ResourceError(
                f"the process for {task[1]} was killed. What was committed before is kept; run the same command again "
                "to go on"
            )
        if isinstance(found, BaseException):
            failures.append(found)
            stop.value = True
        else:
            for event in found:
                tell(event)
    listen()
    if failures:
        raise failures[0]
    meter.report()
    return meter


def _begin(*shared: Any) -> None:
    global _shared
    _shared = shared


def _work(task: tuple[Job, str, int, int]) -> list[Told]:
    """Do blocks until none is left, and return what else there is to tell."""
    job, device, number, processes = task
    stop, counts = _shared
    begin = number * _FIELDS
    before = counts[begin : begin + 3]  # of a worker that was killed
    if device == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    elif device.startswith("cuda"):
        torch.cuda.set_device(device)  # or something of this process lands on the first
    counts[begin + 3] = 1
    encoder = load_encoder(job, device)
    events: list[Told] = []

    def tell(event: Told) -> None:
        if isinstance(event, Progress):
            done = event.encoded, event.quarantined, event.bytes_written
            counts[begin : begin + 3] = [a + b for a, b in zip(before, done, strict=True)]
        else:
            events.append(event)

    writer = start_writer(job, encoder, device)
    encode_blocks(job, encoder, writer, device, tell, lambda: bool(stop.value), processes)
    return events
