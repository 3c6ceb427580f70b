"""The fast way through the blocks, translated by torch.compile: what goes on between the products becomes one kernel.

Meant for GPUs, where norms, GELU, sums and changes of layout wait for memory. On a CPU the fast way holds what it works
on in the cache already, and nothing was gained. It costs a minute or so before the first batch, less where the
translation is still in torch's cache, and is never needed: where it fails, the plain way goes on.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from samtl._runtime import out_of_memory
from samtl.encoders.blocks import Fast

Block = Callable[[Tensor], Tensor]


class Compiled(Fast):
    """`Fast`, each kind of block translated once, for all blocks of the kind and any number of images above one.

    Parameters
    ----------
    model, taps
        Those of `Fast`.
    backend : str or callable
        torch.compile's.

    Attributes
    ----------
    note : str
        What came of it, in a line: the time it took, or why it was given up; "" until then.
    """

    def __init__(
        self, model: Any, taps: Sequence[int], backend: str | Callable[..., Any] = "inductor"
    ) -> None:
        super().__init__(model, taps)
        kinds = ["global" if index in self.taps else "window" for index in range(len(self.blocks))]
        self._compiled = torch.compile(_through, fullgraph=True, backend=backend)
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = {}
        self._given_up = False
        self.blocks = [
            functools.partial(self._through, kind, block)
            for kind, block in zip(kinds, self.blocks, strict=True)
        ]

    def _through(self, kind: str, block: Block, x: Tensor) -> Tensor:
        if len(x) == 1 or self._given_up:  # torch would translate a single image by itself
            return block(x)
        x = x.contiguous()  # which the first block's is not: another layout, another translation
        if kind in self._seconds:
            return self._attempt(block, x)
        with self._lock:  # another thread may be at it
            began = time.perf_counter()
            out = self._attempt(block, x)
            self._seconds.setdefault(kind, time.perf_counter() - began)
            if not self._given_up:
                self.note = f"torch.compile took {sum(self._seconds.values()):.0f} s"
        return out

    def _attempt(self, block: Block, x: Tensor) -> Tensor:
        if self._given_up:
            return block(x)
        torch._dynamo.maybe_mark_dynamic(x, 0)
        try:
            return self._compiled(block, x)
        except Exception as error:
            no_memory = isinstance(error, RuntimeError) and out_of_memory(error)
            if no_memory or isinstance(error, torch.AcceleratorError):
                raise
            # Whatever the compiler raises, and it is much: were it not its fault, the plain way would raise as well.
            out = block(x)
            self._given_up = True
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self.note = f"torch.compile failed, and the encoder goes on without: {reason}"
            return out


def _through(block: Block, x: Tensor) -> Tensor:
    return block(x)
