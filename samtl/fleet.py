"""Several devices at work on one store: a process for each, which asks for a block when it needs one."""

from __future__ import annotations

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
from samtl.encoding import Pass, Progress
from samtl.errors import InputError, MismatchError, ResourceError
from samtl.planning import Job
from samtl.processes import ended, serve_parent
from samtl.store.reader import Quarantined
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
    """Passes on several devices; parameters and attributes are those of `samtl.encoding.Pass`.

    Each device has its own batch size; `batch_size` is the plan's.

    The store's lock is this process's; the others write blocks that only they were given.

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
        tell: Callable[[Progress | Quarantined], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self.job, self.devices, self.checkpoint = job, devices, checkpoint
        self.writer, self.tell, self.should_stop = writer, tell, should_stop
        self.encoded = self.bytes_written = 0
        self.batch_size = job.plan.batch_size
        self._context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self._stopping = self._context.Event()
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
                    self._stopping.set()
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
            target=_serve,
            args=(self.job, device, self.checkpoint, self.writer, theirs, self._stopping, len(self.devices)),
            daemon=True,
        )  # fmt: skip
        try:
            process.start()
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            raise InputError(
                f"the dataset cannot be handed to another process ({error}): its functions must be those of a module, "
                "or --device must name one device"
            ) from error
        theirs.close()  # so that the line ends when the process does
        self._workers.append(_Worker(device, process, ours))

    def _listen(self, worker: _Worker, waiting: Iterator[int]) -> bool:
        """Take a message; says whether there will be another."""
        try:
            what, content = worker.line.recv()
        except (EOFError, OSError):
            worker.process.join()
            self._fail(_ended(worker))
            return False
        if what == "next":
            worker.ready = True
            worker.line.send(None if self._stopping.is_set() else next(waiting, None))
        elif what == "failed":
            self._fail(content)
            return False
        elif isinstance(content, Progress):
            worker.progress = content
            self._report()
        elif content is not None:
            self.tell(content)
        return bool(what != "done")

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._stopping.set()

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


def _serve(
    job: Job,
    device: str,
    checkpoint: str | None,
    writer: StoreWriter,
    line: Any,
    stopping: Any,
    processes: int,
) -> None:
    """Work off blocks until there are none."""
    serve_parent()
    try:
        _work(job, device, checkpoint, writer, line, stopping, processes)
    except Exception as error:  # whatever it is, the parent tells it
        line.send(("failed", _portable(error)))
    else:
        line.send(("done", None))


def _work(
    job: Job,
    device: str,
    checkpoint: str | None,
    writer: StoreWriter,
    line: Any,
    stopping: Any,
    processes: int,
) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    plan = replace(job.plan, device=device)
    model = registry.load("encoders", plan.encoder).Encoder(
        plan.encoder, checkpoint, device, job.dtype, plan.image_size, plan.engine
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

    def tell(event: Progress | Quarantined) -> None:
        line.send(("event", event))

    Pass(replace(job, plan=plan), model, writer, tell, stopping.is_set, processes).run(blocks())


def _portable(error: Exception) -> Exception:
    """Give an exception that another process can be sent: itself, or what it says."""
    try:
        pickle.loads(pickle.dumps(error))  # what this line made itself
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
