"""Linear layers in 8-bit integers, for CPUs that multiply these faster than floats.

Each token has a scale of its own, and so has each output channel: both follow from what is there, so that no images
are needed to calibrate. Input channels with extreme values stay in float (Dettmers et al. 2022, "LLM.int8()"),
because a scale that reaches them leaves little of the others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

BAND = 64  # tokens at a time, so that what is between the passes stays in a core's cache
# Tokens are stored from 1 to 255: some processors multiply signed integers far slower.
LARGEST, ZERO = 127, 128
#: A channel stays in float if its largest value exceeds that of the median channel this many times.
EXTREME = 4
_TINY = 1e-30


class Int8Linear:
    """A linear layer with a bias, with the interface of `samtl.encoders.fast.linear.Linear`.

    What rounding takes from the weights is kept, and its product with the mean of the tokens, each in its own scale, is
    added: else it would shift all tokens alike, and their mean as much as each. The weights are moved out of `module`.
    """

    def __init__(self, module: nn.Linear, rows: int) -> None:
        weight, self.bias = module.weight.float(), module.bias
        self._bias = module.bias.float()
        self._scale = weight.abs().amax(1).clamp(min=_TINY) / LARGEST  # of each output channel
        self._integers = (weight / self._scale[:, None]).round().to(torch.int8)
        self._lost = weight - self._integers * self._scale[:, None]
        self._product = products()(self._integers, self._scale)
        module.weight = nn.Parameter(module.weight.new_empty(0), requires_grad=False)

    def __call__(self, x: Tensor) -> Tensor:
        return self._banded(x, lambda found, rows, out: out.copy_(found))

    def gelu(self, x: Tensor) -> Tensor:
        return self._banded(x, lambda found, rows, out: out.copy_(nn.functional.gelu(found)))

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        added = other.flatten(0, -2)
        return self._banded(x, lambda found, rows, out: torch.add(found, added[rows], out=out))

    def _banded(self, x: Tensor, then: Callable[[Tensor, slice, Tensor], object]) -> Tensor:
        flat = x.flatten(0, -2)
        out = x.new_empty(len(flat), len(self._bias))
        reach = _reach(flat, 0)
        extreme = (reach > EXTREME * reach.median()).nonzero()[:, 0]
        kept, exact = flat[:, extreme].float(), self._weight(extreme).T
        if len(extreme):
            flat = flat.index_fill(1, extreme, 0)
        scale = _reach(flat, 1)[:, None].clamp_(min=_TINY).div_(LARGEST)
        mean = ((1 / scale).to(x.dtype).T @ flat).float()[0] / len(flat)
        shift = self._lost @ mean
        for start in range(0, len(flat), BAND):
            rows = slice(start, start + BAND)
            # Rounds, as the half that is added is cut off.
            integers = torch.div(flat[rows], scale[rows]).add_(ZERO + 0.5).to(torch.uint8)
            found = self._product(integers).add_(shift)
            torch.addcmul(self._bias, found, scale[rows], out=found)
            if len(extreme):
                found.addmm_(kept[rows], exact)
            then(found, rows, out[rows])
        return out.view(*x.shape[:-1], -1)

    def _weight(self, inputs: Tensor) -> Tensor:
        """Put together the weights of some inputs."""
        return self._integers[:, inputs] * self._scale[:, None] + self._lost[:, inputs]


def _reach(x: Tensor, axis: int) -> Tensor:
    """Return the largest magnitude along an axis, in float32."""
    return torch.maximum(x.amax(axis), x.amin(axis).neg_()).float()


Product = Callable[[Tensor], Tensor]


def _onednn(weight: Tensor, scale: Tensor) -> Product:
    """Multiply by oneDNN, which applies the scales of channels while the sums are in the cache."""
    packed = torch.ops.onednn.qlinear_prepack(weight, [BAND, weight.shape[1]])
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    multiply = torch.ops.onednn.qlinear_pointwise
    after: Any = None, 1.0, 0, torch.float32, "none", [], ""
    return lambda x: multiply(x, 1.0, ZERO, packed, scale, zeros, *after)


def _plain(weight: Tensor, scale: Tensor) -> Product:
    """Multiply by torch's product of integers; sums are exact in both ways."""
    turned = weight.T
    return lambda x: torch._int_mm((x.int() - ZERO).to(torch.int8), turned) * scale


@functools.cache
def products() -> Callable[[Tensor, Tensor], Product]:
    """Return a function that makes products with weights, (outputs, inputs) int8, and their scales.

    The products map tokens, (n, inputs) uint8, to (n, outputs) float32. oneDNN's is what torch's own compiler uses; it
    is compared with the plain one.
    """
    random = torch.Generator().manual_seed(0)
    weight = torch.randint(-LARGEST, ZERO, (32, 64), generator=random).to(torch.int8)
    x = torch.randint(1, 2 * ZERO, (8, 64), generator=random).to(torch.uint8)
    scale = torch.rand(32, generator=random)
    try:
        found = _onednn(weight, scale)(x)
    except (AttributeError, RuntimeError, TypeError):  # no operator, signature or kernel for it
        return _plain
    return _onednn if torch.allclose(found, _plain(weight, scale)(x)) else _plain
