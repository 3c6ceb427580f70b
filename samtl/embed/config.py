"""The options of an encoder pass as one value, from the command line to the worker processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from samtl.datasets import Dataset
from samtl.errors import InputError
from samtl.store.format import TIERS


@dataclass(frozen=True)
class EmbedConfig:
    """The options of `samtl.embed`, which describes them."""

    dataset: str | Dataset = "eurosat"
    encoder: str = "sam_vit_b"
    root: str | Path | None = None
    group_by: str | None = None
    checkpoint: str | Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    image_size: int | None = None
    tiers: Sequence[str] = TIERS
    limit: int | None = None
    per_class: int | None = None
    batch_size: int | str = "auto"
    engine: str = "fast"
    out: str | Path | None = None
    check_images: bool = True
    untrusted: bool = False

    @property
    def source(self) -> str | None:
        """Where the weights come from, as text."""
        return None if self.checkpoint is None else str(self.checkpoint)

    @property
    def ordered_tiers(self) -> tuple[str, ...]:
        """The tiers in the order of `TIERS`, each once; InputError for an unknown one, or none."""
        if not self.tiers or not set(self.tiers) <= set(TIERS):
            raise InputError(
                f"--tiers takes one or more of {','.join(TIERS)}, separated by commas, got {','.join(self.tiers)!r}"
            )
        return tuple(tier for tier in TIERS if tier in self.tiers)
