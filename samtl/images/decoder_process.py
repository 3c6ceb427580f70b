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
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from samtl._runtime import deaf_children, ended
from samtl.errors import ResourceError
from samtl.images import codecs as images
from samtl.images.codecs import (
    MAX_PIXELS,
    STATISTICS,
    BadImage,
    Code,
)
from samtl.images.transforms import resize_image

# Bytes beyond what the process has at its start; the largest image that is allowed takes 1.2 GB.
MEMORY = 1536 * 2**20
SECONDS = 10  # of processor time for a file
IDLE = 60.0  # seconds after which a process without work ends
PATIENCE = 180.0  # seconds for an answer, however busy the machine
TRIES = 2
CODES = frozenset(get_args(Code))
# How a process ends that the image did not end.
_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP)

_START = "import sys; sys.path[:] = {path!r}; from samtl.images.decoder_process import serve; serve({limits!r})"
_Made = TypeVar("_Made")
_Array = TypeVar("_Array", bound=NDArray[Any])
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
        See `samtl.images.codecs.statistics`; of the pixels before.
    """

    pixels: NDArray[np.uint8]
    size: tuple[int, int]
    statistics: NDArray[np.float32]


def prepare(data: bytes, image_size: int) -> Prepared:
    """Decode, measure and resize an image file; safe to call from several threads, each gets a process.

    Parameters
    ----------
    data : bytes
        As `samtl.images.codecs.decode` takes them.
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
    return _apart(lambda decoder: decoder.prepare(data, image_size))


def decode_mask(data: bytes, *, lookup: bool = False) -> NDArray[np.uint8]:
    """Decode a mask, as `samtl.images.codecs.decode_mask` does; raises what `prepare` does.

    Returns
    -------
    ndarray, (H, W) uint8
    """
    if not sys.executable:
        return images.decode_mask(data, lookup=lookup)
    return _apart(lambda decoder: decoder.decode_mask(data, lookup))


def _apart(ask: Callable[[Decoder], _Made]) -> _Made:
    """Let a process make something of an image; where it ends, let another one try."""
    for attempt in range(TRIES):
        decoder = Decoder() if attempt else _take()
        try:
            made = ask(decoder)
        except BadImage:
            _give_back(decoder)
            raise
        except TimeoutError:
            decoder.end(wait=0)
            raise _refused(f"was stopped after {PATIENCE:.0f} s") from None
        except (OSError, ValueError, EOFError):
            code = decoder.end()
            if code == -signal.SIGXCPU:
                raise _refused("ended when its time was over") from None
        except BaseException:  # Ctrl-C between a request and its answer
            decoder.end(wait=0)
            raise
        else:
            _give_back(decoder)
            return made
    if code in _FROM_OUTSIDE:
        raise ResourceError(
            f"the process in which images are decoded was ended {ended(code)}, as when memory runs out; end other "
            "programs, and go on with the same command"
        )
    how = "gave no answer" if code is None else f"ended {ended(code)}"
    raise _refused(f"{how}, {TRIES} times")


def _refused(told: str) -> BadImage:
    return BadImage(
        "undecodable",
        f"an image was expected that decodes within {SECONDS} s of processor time and {MEMORY // 2**20} MiB, with this "
        f"one the process {told}; replace it",
    )


def prepare_here(data: bytes, image_size: int) -> Prepared:
    """Do the same in this process."""
    full: MemoryError | None = None
    with images.opened_rgb(data) as image:
        try:
            pixels = resize_image(image, image_size)
            return Prepared(pixels, (image.height, image.width), images.statistics_of(image))
        except MemoryError as error:  # which would be told as a fault of the file
            full = error
    raise full


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
                f"the process in which images are decoded ended {ended(self.end())} before it began; what it wrote is "
                "above"
            )

    @property
    def alive(self) -> bool:
        """Whether it waits for work."""
        return self._process.poll() is None

    def prepare(self, data: bytes, image_size: int) -> Prepared:
        """Let it prepare an image; raises OSError, ValueError or EOFError where it ends meanwhile."""
        answer = self._ask(image_size, data)
        shape, size = _whole(answer.get("shape"), 3), _whole(answer.get("size"), 2)
        if shape[2] != 3 or max(shape[:2]) != image_size or size[0] * size[1] > MAX_PIXELS:
            raise ValueError("shape")
        pixels = self._receive(np.empty(shape, dtype=np.uint8))
        values = self._receive(np.empty(len(STATISTICS), dtype=np.float32))
        return Prepared(pixels, (size[0], size[1]), values)

    def decode_mask(self, data: bytes, lookup: bool) -> NDArray[np.uint8]:
        """Let it decode a mask; raises as `prepare` does."""
        shape = _whole(self._ask(lookup, data).get("shape"), 2)
        if shape[0] * shape[1] > MAX_PIXELS:
            raise ValueError("shape")
        return self._receive(np.empty(shape, dtype=np.uint8))

    def _ask(self, job: int, data: bytes) -> dict[str, Any]:
        self._in.write(json.dumps([job, len(data)]).encode() + b"\n")
        self._in.write(data)
        self._in.flush()
        # Whatever the file has made of the process: its answer is not believed before it is looked at.
        if not select.select([self._out], [], [], PATIENCE)[0]:
            raise TimeoutError
        line = self._out.readline(2**16)
        if not line:
            raise EOFError
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise ValueError("answer")
        if "code" in answer:
            if answer["code"] not in CODES:
                raise ValueError("code")
            raise BadImage(answer["code"], str(answer.get("reason")))
        return answer

    def _receive(self, array: _Array) -> _Array:
        view = memoryview(array.data).cast("B")
        if self._out.readinto(view) != len(view):  # type: ignore[attr-defined]
            raise EOFError
        return array

    def end(self, wait: float = 1.0) -> int | None:
        """End it; gives how it ended as `subprocess` does, None where it had not by itself."""
        for file in (self._in, self._out):
            with contextlib.suppress(OSError):
                file.close()
        try:
            return self._process.wait(wait)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return None


def _whole(numbers: object, count: int) -> tuple[int, ...]:
    """Take so many whole numbers from 1 from an answer."""
    if not isinstance(numbers, list) or len(numbers) != count:
        raise ValueError("numbers")
    if not all(type(number) is int and number > 0 for number in numbers):
        raise ValueError("numbers")
    return tuple(numbers)


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
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with its parent, which hears these
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(BrokenPipeError):  # whoever asked is gone
        _serve(memory, seconds, idle)


def _serve(memory: int, seconds: int, idle: float) -> None:
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
        job, length = json.loads(line)
        _limit_time(seconds)
        _answer(answers, requests, job, length)
        answers.flush()


def _answer(answers: IO[bytes], requests: IO[bytes], job: int, length: int) -> None:
    """Make of an image what is asked: a side's length means pixels of that size, a truth value those of a mask."""
    data = requests.read(length)
    if len(data) < length:
        raise SystemExit  # whoever asked is gone
    try:
        if isinstance(job, bool):
            arrays: tuple[NDArray[Any], ...] = (images.decode_mask(data, lookup=job),)
            head = {}
        else:
            prepared = prepare_here(data, job)
            arrays, head = (prepared.pixels, prepared.statistics), {"size": prepared.size}
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
    answers.write(json.dumps({**head, "shape": arrays[0].shape}).encode() + b"\n")
    for array in arrays:
        answers.write(np.ascontiguousarray(array).data)


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
