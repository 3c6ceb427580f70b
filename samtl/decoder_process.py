"""Images decoded in processes of their own: one that hangs, crashes or takes all memory costs its row, not the pass.

The decoders of image files are written in C and read what strangers wrote. A process here has a limit of memory, and
of processor time for each file; where it ends all the same, another one tries once more, and then the image is refused.
Requests and answers are a line of JSON and raw bytes; nothing is unpickled.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray

from samtl.errors import ResourceError
from samtl.images import BadImage, decode, statistics
from samtl.preprocess import resize_longest_side
from samtl.processes import deaf_children, ended

MEMORY = (
    1536 * 2**20
)  # bytes beyond what the process has at its start; the largest image that is allowed takes 1.2 GB
SECONDS = 10  # of processor time for a file
IDLE = 60.0  # seconds after which a process without work ends
TRIES = 2

_START = (
    "import sys; sys.path[:] = {path!r}; from samtl.decoder_process import serve; serve({limits!r})"
)
_idle: list[Decoder] = []
_inherited: list[Decoder] = []
_guard = threading.Lock()


@dataclass(frozen=True)
class Prepared:
    """An image on its way to an encoder.

    Attributes
    ----------
    pixels : (h, w, 3) uint8
        Resized.
    size : (height, width)
        Before.
    statistics : (12,) float32
        See `samtl.images.statistics`; of the pixels before.
    """

    pixels: NDArray[np.uint8]
    size: tuple[int, int]
    statistics: NDArray[np.float32]


def prepare(data: bytes, image_size: int) -> Prepared:
    """Decode, measure and resize an image file; safe to call from several threads, each gets a process.

    Parameters
    ----------
    data : bytes
        As `samtl.images.decode` takes them.
    image_size : int
        What the longest side becomes, in pixels.

    Raises
    ------
    BadImage
        Whatever is wrong with the file.
    ResourceError
        Where no process can be started.
    """
    if not sys.executable:  # Python within another program
        return prepare_here(data, image_size)
    told = ""
    for _ in range(TRIES):
        decoder = _take()
        try:
            prepared = decoder.prepare(data, image_size)
        except BadImage:
            _give_back(decoder)
            raise
        except (OSError, ValueError, EOFError):
            told = decoder.end()
        except BaseException:  # Ctrl-C between a request and its answer
            decoder.end()
            raise
        else:
            _give_back(decoder)
            return prepared
    raise BadImage(
        "undecodable",
        f"an image was expected that decodes within {SECONDS} s of processor time and {MEMORY // 2**20} MiB, with this "
        f"one the process ended {told}, {TRIES} times; replace it",
    )


def prepare_here(data: bytes, image_size: int) -> Prepared:
    """Do the same in this process."""
    pixels = decode(data)
    size = pixels.shape[0], pixels.shape[1]
    return Prepared(resize_longest_side(pixels, image_size), size, statistics(pixels))


class Decoder:
    """A process that decodes."""

    def __init__(self) -> None:
        code = _START.format(path=sys.path, limits=(MEMORY, SECONDS, IDLE))
        threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
        try:
            with deaf_children():
                self._process = subprocess.Popen(
                    [sys.executable, "-c", code],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env={**os.environ, **threads},
                )
        except OSError as error:
            raise ResourceError(
                f"no process can be started to decode images in: {error.strerror}; end other programs"
            ) from error
        self._in: IO[bytes] = self._process.stdin  # type: ignore[assignment]
        self._out: IO[bytes] = self._process.stdout  # type: ignore[assignment]
        if self._out.readline() != b"ready\n":
            raise ResourceError(
                f"the process in which images are decoded ended {self.end()} before it began; what it wrote is above"
            )

    @property
    def alive(self) -> bool:
        """Whether it waits for work."""
        return self._process.poll() is None

    def prepare(self, data: bytes, image_size: int) -> Prepared:
        """Let it prepare an image; raises OSError, ValueError or EOFError where it ends meanwhile."""
        self._in.write(json.dumps([image_size, len(data)]).encode() + b"\n")
        self._in.write(data)
        self._in.flush()
        line = self._out.readline()
        if not line:
            raise EOFError
        answer = json.loads(line)
        if "code" in answer:
            raise BadImage(answer["code"], answer["reason"])
        pixels = np.empty(answer["shape"], dtype=np.uint8)
        values = np.empty(answer["statistics"], dtype=np.float32)
        for array in (pixels, values):
            view = memoryview(array.data).cast("B")
            if self._out.readinto(view) != len(view):  # type: ignore[attr-defined]
                raise EOFError
        height, width = answer["size"]
        return Prepared(pixels, (height, width), values)

    def end(self) -> str:
        """End it, and say how it ended where it had by itself."""
        for file in (self._in, self._out):
            with contextlib.suppress(OSError):
                file.close()
        try:
            code = self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code == -signal.SIGXCPU:
            return "when its time was over"
        return ended(code)


def _take() -> Decoder:
    while True:
        with _guard:
            decoder = _idle.pop() if _idle else None
        if decoder is None:
            return Decoder()
        if decoder.alive:
            return decoder
        decoder.end()  # it had waited for too long


def _give_back(decoder: Decoder) -> None:
    with _guard:
        _idle.append(decoder)


def _end_all() -> None:
    while _idle:
        _idle.pop().end()


def _after_fork() -> None:
    """Leave the processes to the one that started them."""
    global _guard
    _guard = threading.Lock()
    _inherited.extend(_idle)  # kept, since nobody here may wait for them
    _idle.clear()


atexit.register(_end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# What goes on in such a process


def serve(limits: tuple[int, int, float]) -> None:
    """Answer requests until there are no more, or none for a while."""
    memory, seconds, idle = limits
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    requests = sys.stdin.buffer
    _limit_memory(memory)
    answers.write(b"ready\n")
    answers.flush()
    while select.select([requests], [], [], idle)[0]:
        line = requests.readline()
        if not line:
            return
        image_size, length = json.loads(line)
        _limit_time(seconds)
        _answer(answers, requests, image_size, length)
        answers.flush()


def _answer(answers: IO[bytes], requests: IO[bytes], image_size: int, length: int) -> None:
    data = requests.read(length)
    if len(data) < length:
        raise SystemExit  # whoever asked is gone
    try:
        prepared = prepare_here(data, image_size)
    except BadImage as bad:
        _refuse(answers, bad.code, bad.reason)
        return
    except MemoryError:
        _refuse(
            answers,
            "too_large",
            f"an image was expected that decodes in {MEMORY // 2**20} MiB, this one takes more; cut it into tiles",
        )
        return
    head = {
        "size": prepared.size,
        "shape": prepared.pixels.shape,
        "statistics": prepared.statistics.shape,
    }
    answers.write(json.dumps(head).encode() + b"\n")
    answers.write(np.ascontiguousarray(prepared.pixels).data)
    answers.write(np.ascontiguousarray(prepared.statistics).data)


def _refuse(answers: IO[bytes], code: str, reason: str) -> None:
    answers.write(json.dumps({"code": code, "reason": reason}).encode() + b"\n")


def _limit_memory(memory: int) -> None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
            pages = int(file.read().split()[0])
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = pages * resource.getpagesize() + memory
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _limit_time(seconds: int) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    limit = int(used.ru_utime + used.ru_stime) + seconds + 1
    with contextlib.suppress(OSError, ValueError):
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))
