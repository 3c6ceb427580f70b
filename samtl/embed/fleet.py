"""Several devices at work on one store: a process for each, which asks for a block when it needs one."""

from __future__ import annotations

import ctypes
import multiprocessing
import pickle
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from samtl import registry
from samtl._runtime import deaf_children, ended, serve_parent
from samtl.embed.pipeline import Pass, Progress, Told
from samtl.embed.plan import Job
from samtl.errors import (
    InputError,
    MismatchError,
    ResourceError,
    SamtlError,
)
from samtl.store.writer import StoreWriter

NOTHING = Progress(0, 0, 0, 0, 0.0, None)
LISTEN = 0.2  # seconds after which it is asked whether to stop, where no process says anything


@dataclass(eq=False)
class _Worker:
    """A process, the line to it, and how far it is."""

    device: str
    process: BaseProcess
    line: Any
    ready: bool = False
    progress: Progress = NOTHING


class Fleet:
    """Passes on several devices; parameters and attributes are those of `samtl.embed.pipeline.Pass`.

    The store's lock is this process's; the others write blocks that only they were given. Each device has its own batch
    size; `batch_size` is the plan's.

    Parameters
    ----------
    devices : sequence of str
    checkpoint : str or None
        Where each process gets the encoder's weights.
    """

    def __init__(
        self,
        job: Job,
        devices: Sequence[str],
        checkpoint: str | None,
        writer: StoreWriter,
        tell: Callable[[Told], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self.job, self.devices, self.checkpoint = job, devices, checkpoint
        self.writer, self.tell, self.should_stop = writer, tell, should_stop
        self.encoded = self.bytes_written = 0
        self.batch_size = job.plan.batch_size
        self._context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        # Without a lock, which a process that is killed could leave locked.
        self._stopping = self._context.RawValue(ctypes.c_bool, False)
        self._workers: list[_Worker] = []
        self._failure: BaseException | None = None

    def run(self, blocks: Iterable[int]) -> None:
        """Encode and commit blocks.

        Raises
        ------
        SamtlError
            What the first process that failed met; the others finish the block that they are at before it is raised.
        """
        waiting = iter(blocks)
        try:
            for device in self.devices:
                self._start(device)
            busy = list(self._workers)
            while busy:
                if self.should_stop():
                    self._stopping.value = True
                for line in connection.wait([worker.line for worker in busy], LISTEN):
                    worker = next(worker for worker in busy if worker.line is line)
                    if not self._listen(worker, waiting):
                        busy.remove(worker)
        finally:
            for worker in self._workers:
                worker.process.terminate()
            for worker in self._workers:
                worker.process.join()
        if self._failure is not None:
            raise self._failure

    def _start(self, device: str) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(theirs, self._stopping, len(self.devices)), daemon=True
        )
        try:
            with deaf_children():
                process.start()
        except OSError as error:
            raise ResourceError(
                f"no process could be started for {device}: {error.strerror or error}"
            ) from error
        theirs.close()  # so that the line ends when the process does
        self._workers.append(_Worker(device, process, ours))

    def _listen(self, worker: _Worker, waiting: Iterator[int]) -> bool:
        """Take a message; says whether there will be another."""
        try:
            what, content = worker.line.recv()
            if what == "hello":
                worker.ready = True
                self._hand_over(worker)
            elif what == "next":
                worker.line.send(None if self._stopping.value else next(waiting, None))
        except (EOFError, OSError):
            worker.process.join()
            self._fail(_ended(worker))
            return False
        if what == "failed":
            self._fail(content)
            return False
        if isinstance(content, Progress):
            worker.progress = content
            self._report()
        elif content is not None:
            self.tell(content)
        return bool(what != "done")

    def _hand_over(self, worker: _Worker) -> None:
        """Give a process what it needs. Not at its start: that would wait for ever for one that dies meanwhile."""
        plan = replace(self.job.plan, device=worker.device)
        try:
            worker.line.send((replace(self.job, plan=plan), self.checkpoint, self.writer))
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            raise InputError(
                f"the dataset cannot be handed to another process ({error}): its functions must be those of a module, "
                "or --device must name one device"
            ) from error

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._stopping.value = True

    def _report(self) -> None:
        all_of = [worker.progress for worker in self._workers]
        self.encoded = sum(progress.encoded for progress in all_of)
        self.bytes_written = sum(progress.bytes_written for progress in all_of)
        rate = sum(progress.images_per_second for progress in all_of)
        total = self.job.plan.pending_rows
        self.tell(
            Progress(
                self.encoded,
                total,
                self.bytes_written,
                sum(progress.quarantined for progress in all_of),
                rate,
                (total - self.encoded) / rate if rate else None,
            )
        )


def _ended(worker: _Worker) -> Exception:
    code = worker.process.exitcode
    if not worker.ready and code == 1:
        return InputError(
            f'the process for {worker.device} ended before it began: a script needs `if __name__ == "__main__":` '
            "around what starts a pass on several devices"
        )
    return ResourceError(
        f"the process for {worker.device} was ended {ended(code)}. What was committed before is kept; run the same "
        "command again to go on"
    )


def _serve(line: Any, stopping: Any, processes: int) -> None:
    """Work off blocks until there are none."""
    serve_parent()
    line.send(("hello", None))
    job, checkpoint, writer = line.recv()
    try:
        _work(job, checkpoint, writer, line, lambda: bool(stopping.value), processes)
    except Exception as error:  # whatever it is, the parent tells it
        line.send(("failed", _portable(error)))
    else:
        line.send(("done", None))


def _work(
    job: Job,
    checkpoint: str | None,
    writer: StoreWriter,
    line: Any,
    should_stop: Callable[[], bool],
    processes: int,
) -> None:
    plan = job.plan
    if plan.device == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    elif plan.device.startswith("cuda"):
        torch.cuda.set_device(plan.device)  # else something of this process lands on the first
    model = registry.load("encoders", plan.encoder).Encoder(
        plan.encoder, checkpoint, plan.device, job.dtype, plan.image_size, plan.engine
    )
    if model.weights.sha256 != writer.fingerprint.weights_sha256:
        raise MismatchError(f"the weights of {plan.encoder} changed while they were read", [])

    def blocks() -> Iterator[int]:
        while True:
            line.send(("next", None))
            block = line.recv()
            if block is None:
                return
            yield block

    def tell(event: Told) -> None:
        line.send(("event", event))

    Pass(job, model, writer, tell, should_stop, processes).run(blocks())


def _portable(error: Exception) -> Exception:
    """Give an exception that another process can be sent: itself, or what it says; a defect says where it was."""
    told = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))  # what this line made itself
    except Exception:
        return RuntimeError(told)
    if not isinstance(error, SamtlError):
        error.add_note(told)
    return error
