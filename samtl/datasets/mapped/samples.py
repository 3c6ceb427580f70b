"""Samples by their ids: dicts with an image and a label or mask, or pairs, taken apart."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samtl.datasets.landscapes import bmp
from samtl.datasets.mapped.arrays import Scale, array_of, by_rows, eight_bits, mask_of
from samtl.errors import InputError

_TARGETS = ("label", "mask")
_LOOKED_AT = 16  # samples that are read to learn what they are
_LOCK = threading.RLock()  # many data sets keep a file open, and some read from others
_LATEST = threading.local()  # what this thread read last


class MapStyle(Protocol):
    """A data set that gives samples by their number."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


Sample = tuple[Any, str, Any]  # an image, "label", "mask" or "", and the target


@dataclass(eq=False)
class Samples:
    """Samples by their ids, each read once for its image and its target. Thread-safe."""

    sources: list[Any]
    paths: InitVar[list[str]]
    target: str | None
    bands: Sequence[int] | None = None
    scale: Scale | None = None
    index: dict[str, tuple[int, int]] = field(init=False)

    def __post_init__(self, paths: list[str]) -> None:
        places = [(s, i) for s, one in enumerate(self.sources) for i in range(len(one))]
        numbers = [f"{s}/{i:06d}" if len(self.sources) > 1 else f"{i:06d}" for s, i in places]
        ids = paths if len(set(paths)) == len(places) else numbers
        self.index = dict(zip(ids, places, strict=True))

    def __len__(self) -> int:
        return len(self.index)

    @property
    def some(self) -> list[str]:
        """The ids of a few samples, evenly spaced."""
        return [*self.index][:: max(1, -(-len(self) // _LOOKED_AT))]

    def read(self, sample_id: str) -> bytes:
        """Return an image as a BMP file."""
        image, _, _ = self.sample(sample_id)
        return bmp(eight_bits(by_rows(image, self.bands), self.scale))

    def read_mask(self, sample_id: str) -> NDArray[np.uint8]:
        """Return a mask of class indices."""
        return mask_of(self.sample(sample_id)[2])

    def sample(self, sample_id: str, anew: bool = False) -> Sample:
        """Read a sample; InputError if the data set raises anything but an OSError."""
        if not anew and getattr(_LATEST, "of", None) == (self, sample_id):
            return _LATEST.sample  # type: ignore[no-any-return]
        source, number = self.index[sample_id]
        try:
            with _LOCK:
                found = self.sources[source][number]
        except OSError:
            raise
        except Exception as error:  # whatever another library raises
            told = f"{type(error).__name__}: {error}"
            raise InputError(f"sample {number} of the data set cannot be read: {told}") from error
        _LATEST.of, _LATEST.sample = (self, sample_id), self._taken_apart(found)
        return _LATEST.sample  # type: ignore[no-any-return]

    def _taken_apart(self, sample: Any) -> Sample:
        """Find the image and the target of a sample."""
        if isinstance(sample, Mapping):
            kinds = [kind for kind in _TARGETS if kind in sample and self.target in (None, kind)]
            if "image" in sample and len(kinds) < 2 and (kinds or self.target is None):
                return sample["image"], *((kinds[0], sample[kinds[0]]) if kinds else ("", None))
            told = f"the keys {', '.join(map(str, sample))}"
            if len(kinds) == 2:
                told += ": choose one with target='label' or target='mask'"
        elif isinstance(sample, (tuple, list)) and len(sample) in (1, 2):
            if len(sample) == 1:
                return sample[0], "", None
            picture = isinstance(sample[1], Image.Image) or array_of(sample[1]).ndim >= 2
            kind = "mask" if picture else "label"
            if self.target in (None, kind):
                return sample[0], kind, sample[1]
            told = f"a {kind}, and not a {self.target}"
        else:
            many = f" of {len(sample)}" if isinstance(sample, (tuple, list)) else ""
            told = f"a {type(sample).__name__}{many}"
        raise InputError(
            f"a sample must be a dict with 'image' and 'label' or 'mask', or a pair of an image and one of these; this "
            f"one has {told}"
        )
