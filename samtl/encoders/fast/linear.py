"""Linear layers fused with what follows them, on CPUs for which torch has such kernels."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear


class Linear:
    """A linear layer with a bias whose weights are laid out once for the CPU's products of about `rows` tokens.

    On a CPU, oneDNN applies what follows while a tile of the product is still in the cache, which saves a quarter of
    the time of ViT-B's first MLP layer. The operators are those that torch's own compiler uses. If they are missing,
    and on other devices, this is the plain layer. Weights that are laid out anew are taken from `module`, because
    ViT-H's do not fit twice.
    """

    def __init__(self, module: nn.Linear, rows: int) -> None:
        weight = module.weight
        self._packed: Tensor | None = None
        if weight.device.type == "cpu" and packs(weight.dtype):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
            module.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)
        self.weight, self.bias = module.weight, module.bias

    def __call__(self, x: Tensor) -> Tensor:
        if self._packed is None:
            return linear(x, self.weight, self.bias)
        return _fused("default", x, self._packed, self.bias, "none", [], "")

    def gelu(self, x: Tensor) -> Tensor:
        if self._packed is None:
            return gelu(linear(x, self.weight, self.bias))
        return _fused("default", x, self._packed, self.bias, "gelu", [], "none")

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        if self._packed is None:
            return linear(x, self.weight, self.bias) + other
        return _fused("binary", x, other, self._packed, self.bias, "add")


class Unfused(Linear):
    """The plain layer with this interface."""

    def __init__(self, module: nn.Linear, rows: int) -> None:
        self._packed, self.weight, self.bias = None, module.weight, module.bias


def _fused(overload: str, *arguments: Any) -> Tensor:
    return getattr(torch.ops.mkldnn._linear_pointwise, overload)(*arguments)  # type: ignore[no-any-return]


@functools.cache
def packs(dtype: torch.dtype) -> bool:
    """Whether this torch has working fused operators for a dtype; they are compared with the plain ones."""
    random = torch.Generator().manual_seed(0)
    x, weight, bias, other = (
        torch.randn(shape, generator=random).to(dtype)
        for shape in ((8, 16), (32, 16), (32,), (8, 32))
    )
    plain = linear(x.float(), weight.float(), bias.float())
    expected = torch.stack([plain, gelu(plain), plain + other.float()])
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 8)
        found = [
            _fused("default", x, packed, bias, "none", [], ""),
            _fused("default", x, packed, bias, "gelu", [], "none"),
            _fused("binary", x, other, packed, bias, "add"),
        ]
    except (AttributeError, RuntimeError, TypeError):  # no operator, signature or kernel for it
        return False
    return torch.allclose(torch.stack(found).float(), expected, rtol=0.02, atol=0.05)
