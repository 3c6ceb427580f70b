"""Decoding of untrusted images in worker processes with limits of memory and time.

The decoders are written in C and parse whatever a file contains. `prepare` in this process is twice as fast and enough
for trusted files; with `SafeDecoder`, a file that crashes, hangs or exhausts its decoder ends nothing but itself.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress

from samtl.errors import ResourceError
from samtl.images import codecs
from samtl.images.codecs import BadImage, Prepared

# An answer may take this many times the limit of processor time, on a busy machine.
_PATIENCE = 20


class SafeDecoder:
    """Decodes images in worker processes, one for each calling thread.

    Parameters
    ----------
    memory : int
        Bytes that a worker may take beyond what it has when it starts. The largest image allowed takes 1.2 GB.
    seconds : int
        Processor time for one image.
    """

    def __init__(self, memory: int = 1536 * 2**20, seconds: int = 10) -> None:
        self.memory, self.seconds = memory, seconds
        self._local = threading.local()
        self._pools: list[ProcessPoolExecutor] = []

    def prepare(self, data: bytes, image_size: int) -> Prepared:
        """Do what `samtl.images.codecs.prepare` does.

        Raises
        ------
        BadImage
            As there; of code `undecodable` if the image ended its worker, twice, or hung.
        ResourceError
            If no worker can be started.
        """
        for _ in range(2):  # a worker can be killed for want of memory that others took
            pool, process = self._worker()
            try:
                return pool.submit(_prepare, data, image_size, self.seconds).result(
                    self.seconds * _PATIENCE
                )
            except BrokenProcessPool:
                self._end(pool)
            except TimeoutError:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
                self._end(pool)
                break
        raise BadImage(
            "undecodable",
            f"an image was expected that decodes within {self.seconds} s of processor time and "
            f"{self.memory // 2**20} MiB, this one ended its decoder; replace it",
        )

    def close(self) -> None:
        """End all workers."""
        for pool in list(self._pools):
            self._end(pool)

    def _worker(self) -> tuple[ProcessPoolExecutor, int]:
        pool, process = getattr(self._local, "worker", (None, 0))
        if pool in self._pools:
            return pool, process
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(1, context, initializer=_start, initargs=(self.memory,))
        self._pools.append(pool)
        try:
            self._local.worker = pool, pool.submit(os.getpid).result()
        except (BrokenProcessPool, OSError) as error:
            self._end(pool)
            raise ResourceError(
                f"no process can be started to decode images in: {error}; end other programs, and guard the start "
                "of a script with `if __name__ == '__main__'`"
            ) from error
        return pool, self._local.worker[1]

    def _end(self, pool: ProcessPoolExecutor) -> None:
        self._pools.remove(pool)
        pool.shutdown(wait=False, cancel_futures=True)


def _start(memory: int) -> None:
    from samtl.images import raster  # noqa: F401  # loaded before memory is limited

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        taken = int(file.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    with suppress(ValueError):  # a limit below is set already
        resource.setrlimit(resource.RLIMIT_AS, (taken + memory, hard))


def _prepare(data: bytes, image_size: int, seconds: int) -> Prepared:
    _limit_time(seconds)
    return codecs.prepare(data, image_size)


def _limit_time(seconds: int) -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(usage.ru_utime + usage.ru_stime) + seconds + 1
    with suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))
