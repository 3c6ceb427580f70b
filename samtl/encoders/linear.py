"""Linear layers with what follows them in one call, where torch has that for a CPU."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear


class Linear:
    """A linear layer whose weights are laid out once as the CPU's products want them.

    On a CPU, oneDNN does what follows while a tile of the product is still in the cache: for ViT-B's first layer of a
    block's MLP a quarter of the time is saved. torch reaches that by operators that its own compiler uses; where they
    are missing, and on other devices, this is the plain layer.

    Parameters
    ----------
    module : nn.Linear
        With a bias. Its weights are taken from it where they are laid out anew: twice would be too much for ViT-H.
    rows : int
        Tokens in a call, or so.
    """

    def __init__(self, module: nn.Linear, rows: int) -> None:
        weight = module.weight
        self._packed: Tensor | None = None
        if weight.device.type == "cpu" and packs(weight.dtype):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
            module.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)
        self.weight, self.bias = module.weight, module.bias

    def __call__(self, x: Tensor) -> Tensor:
        """Compute x W + b: (..., inputs) to (..., outputs)."""
        if self._packed is None:
            return linear(x, self.weight, self.bias)
        return _packed(x, self._packed, self.bias, "none", [], "")

    def gelu(self, x: Tensor) -> Tensor:
        """Compute the exact GELU of x W + b."""
        if self._packed is None:
            return gelu(linear(x, self.weight, self.bias))
        return _packed(x, self._packed, self.bias, "gelu", [], "none")

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """Compute x W + b + other, which has the shape of the result."""
        if self._packed is None:
            return linear(x, self.weight, self.bias) + other
        return _added(x, other, self._packed, self.bias, "add")


def _packed(*arguments: Any) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(*arguments)  # type: ignore[no-any-return]


def _added(*arguments: Any) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.binary(*arguments)  # type: ignore[no-any-return]


@functools.cache
def packs(dtype: torch.dtype) -> bool:
    """Tell whether this torch has the operators for a dtype, by trying them against the plain ones."""
    random = torch.Generator().manual_seed(0)
    x, weight, bias, other = (
        torch.randn(shape, generator=random).to(dtype)
        for shape in ((8, 16), (32, 16), (32,), (8, 32))
    )
    plain = linear(x.float(), weight.float(), bias.float())
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 8)
        found = (
            _packed(x, packed, bias, "none", [], ""),
            _packed(x, packed, bias, "gelu", [], "none"),
            _added(x, other, packed, bias, "add"),
        )
    except (
        AttributeError,
        RuntimeError,
        TypeError,
    ):  # no such operator, another signature, no kernel for the dtype
        return False
    expected = plain, gelu(plain), plain + other.float()
    return all(
        torch.allclose(ours.float(), theirs, rtol=0.02, atol=0.05)
        for ours, theirs in zip(found, expected, strict=True)
    )
