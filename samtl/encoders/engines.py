"""The ways through an encoder that a user can name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from samtl.encoders.blocks import Engine, Fast, Reference
from samtl.encoders.compiled import Compiled
from samtl.errors import UnknownName

ENGINES: dict[str, type[Reference] | type[Fast]] = {
    "fast": Fast,
    "compiled": Compiled,
    "reference": Reference,
}


def check_engine(name: str) -> None:
    """Raise UnknownName unless there is an engine of this name."""
    if name not in ENGINES:
        raise UnknownName("engine", name, ENGINES)


def engine(name: str, model: nn.Module, taps: Sequence[int]) -> Engine:
    """Give the engine of a name that `check_engine` knows."""
    return ENGINES[name](model, taps)
