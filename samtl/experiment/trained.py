"""A run folder, ready to predict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from samtl.errors import InputError
from samtl.experiment.run import Run, read_run
from samtl.heads.base import PooledHead
from samtl.heads.io import load


class Trained(Run, frozen=True, kw_only=True, eq=False):
    """A run with its trained head or baseline as `model`."""

    model: Any

    @property
    def array(self) -> str:
        """The store's array, and tier, that the head reads."""
        return str(self.model.tiers[self.task])

    def chosen(self, columns: Sequence[str]) -> NDArray[np.int64] | None:
        """Return which of the columns of `pooled` the head reads; None if it does not read `pooled`."""
        if not isinstance(self.model, PooledHead):
            return None
        missing = set(self.model.columns_) - set(columns)
        if missing:
            raise InputError(
                f"the head of {self.path} reads the column {min(missing)!r}, which its encoder does not have"
            )
        return np.array([columns.index(name) for name in self.model.columns_])


def read_trained(run: str | Path) -> Trained:
    """Read a run folder with its model.

    Raises
    ------
    InputError
        The folder is no run, is of another format, or is damaged.
    """
    found = read_run(run, whole=True)
    return Trained(**msgspec.structs.asdict(found), model=load(found.path))
