"""Several devices at work on one store: a process for each, which writes to the store on its own."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import replace

import torch

from samtl._runtime import Link, Note, run_tasks
from samtl.embed.pipeline import Meter, Progress, Told, encode_blocks, load_encoder, start_writer
from samtl.embed.plan import Job
from samtl.errors import ResourceError


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
    torch.cuda.empty_cache()  # what the trial of an encoder took, for the process of the same device
    meter = Meter(tell, job.plan.pending_rows)
    latest: dict[int, Progress] = {}  # of each process
    failures: list[BaseException] = []

    def listen(message: tuple[int, Progress]) -> None:
        latest.update([message])
        meter.quarantined = sum(progress.quarantined for progress in latest.values())
        meter.bytes_written = sum(progress.bytes_written for progress in latest.values())
        meter.advance(sum(progress.encoded for progress in latest.values()) - meter.encoded)

    work = functools.partial(
        _work, replace(job, state=None, pending=job.pending[:0], tried={}), len(devices)
    )
    for device, found in run_tasks(
        work,
        devices,
        len(devices),
        instead="--device must name one device",
        on_message=listen,
        on_loss=lambda: tell(Note("a worker process was killed: one device at a time goes on")),
        should_stop=lambda: bool(failures) or should_stop(),
    ):
        if isinstance(found, BrokenExecutor):
            found = ResourceError(
                f"the process for {device} was killed. What was committed before is kept; run the same command again "
                "to go on"
            )
        if isinstance(found, BaseException):
            failures.append(found)
        else:
            for event in found:
                tell(event)
    if failures:
        raise failures[0]
    meter.report()
    return meter


def _work(job: Job, processes: int, device: str, link: Link) -> list[Told]:
    """Do blocks until none is left, and return what else there is to tell."""
    if device == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    elif device.startswith("cuda"):
        torch.cuda.set_device(device)  # or something of this process lands on the first
    encoder = load_encoder(job, device)
    events: list[Told] = []

    def tell(event: Told) -> None:
        if isinstance(event, Progress):
            link.send((os.getpid(), event))
        else:
            events.append(event)

    writer = start_writer(job, encoder, device)
    encode_blocks(job, encoder, writer, device, tell, link.stopped, processes)
    return events
