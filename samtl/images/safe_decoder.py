"""Decoding of untrusted images in worker processes with limits of memory and time.

The decoders are written in C and parse whatever a file contains. `prepare` in this process is twice as fast and enough
for trusted files; with `SafeDecoder`, a file that crashes, hangs or exhausts its decoder ends nothing but itself.
"""

from __future__ import annotations

import os
import resource
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress

from samtl._runtime import process_pool
from samtl.errors import ResourceError
from samtl.images import codecs
from samtl.images.bands import PICTURES, Reading
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
        self._workers: dict[int, tuple[ProcessPoolExecutor, int]] = {}  # by thread

    def prepare(self, data: bytes, image_size: int, reading: Reading = PICTURES) -> Prepared:
        """Do what `samtl.images.codecs.prepare` does.

        Raises
        ------
        BadImage
            As there; of code `undecodable` if the image ended its worker, twice, or hung.
        ResourceError
            If no worker can be started.
        """
        thread = threading.get_ident()
        for _ in range(2):  # a worker can be killed for want of memory that others took
            if thread not in self._workers:
                self._workers[thread] = self._started()
            pool, process = self._workers[thread]
            try:
                task = pool.submit(_prepare, data, image_size, reading, self.seconds)
                return task.result(self.seconds * _PATIENCE)
            except BrokenProcessPool:
                self._end(thread)
            except TimeoutError:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
                self._end(thread)
                break
        raise BadImage(
            "undecodable",
            f"an image was expected that decodes within {self.seconds} s of processor time and "
            f"{self.memory // 2**20} MiB, this one ended its decoder; replace it",
        )

    def close(self) -> None:
        """End all workers."""
        for thread in list(self._workers):
            self._end(thread)

    def _started(self) -> tuple[ProcessPoolExecutor, int]:
        pool = process_pool(1, _start, (self.memory,))
        try:
            return pool, pool.submit(os.getpid).result()
        except (BrokenProcessPool, OSError) as error:
            pool.shutdown(wait=False, cancel_futures=True)
            raise ResourceError(
                f"no process can be started to decode images in: {error}; end other programs, and guard the start "
                "of a script with `if __name__ == '__main__'`"
            ) from error

    def _end(self, thread: int) -> None:
        self._workers.pop(thread)[0].shutdown(wait=False, cancel_futures=True)


def _start(memory: int) -> None:
    from samtl.images import raster  # noqa: F401  # loaded before memory is limited

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        taken = int(file.read().split()[0]) * resource.getpagesize()
    _limit(resource.RLIMIT_AS, taken + memory)


def _prepare(data: bytes, image_size: int, reading: Reading, seconds: int) -> Prepared:
    _limit_time(seconds)
    return codecs.prepare(data, image_size, reading)


def _limit_time(seconds: int) -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, int(usage.ru_utime + usage.ru_stime) + seconds + 1)


def _limit(what: int, value: int) -> None:
    with suppress(ValueError):  # a limit below is set already
        resource.setrlimit(what, (value, resource.getrlimit(what)[1]))
