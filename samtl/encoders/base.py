"""What every encoder declares about itself, and the interface that the rest of samtl uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

from samtl.errors import InputError
from samtl.images.bands import BYTES, RGB, Bands
from samtl.images.transforms import Pixels, grid_cells

OWN = Bands(())
# Arrays that an encoder's output is kept in, from the smallest to the largest, and the dtype of each in a store.
STORED_DTYPES = {"pooled": "float32", "grid": "float16", "dense": "float16"}
TIERS = tuple(STORED_DTYPES)


@dataclass(frozen=True)
class Weights:
    """Where an encoder's weights come from."""

    description: str  #: `official sam_vit_b_01ec64.pth`, `file NAME` or `untrained (random:SEED)`
    untrained: bool  #: True for random weights
    sha256: str  #: over sorted names, dtypes, shapes and bytes of the tensors, whatever the file's format


@dataclass(frozen=True)
class EncoderSpec:
    """Properties of an encoder that are known before its weights are loaded; mappings hold JSON values."""

    name: str
    image_size: int  #: side of the square input in pixels
    patch: int  #: side in pixels of the square that one token covers
    channels: int  #: of `dense` and `grid`
    features: tuple[str, ...]  #: names of the columns of `pooled`
    bands: tuple[str, ...]  #: of the input, in the encoder's order
    units: str  #: what a pixel value is before scaling
    scaling: Mapping[str, Any]  #: how pixel values become the network's input
    preprocessing: Mapping[str, Any]  #: everything else that is done to an image
    default_checkpoint: str = "official"  #: loaded if the user names none
    keeps_size: bool = False  #: whether images keep their size unless another is asked for
    usual_dtype: str = "auto"  #: computed in unless another is asked for
    #: The dtype in which a store keeps each tier.
    stored_dtypes: Mapping[str, str] = field(default_factory=lambda: dict(STORED_DTYPES))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens: height and width of `dense`."""
        side = self.image_size // self.patch
        return side, side

    @property
    def cells(self) -> int:
        """Cells along each side of the tier `grid`."""
        return grid_cells(min(self.grid))

    def shape(self, tier: str) -> tuple[int, ...]:
        """Shape of one image's row in a tier."""
        return {
            "pooled": (len(self.features),),
            "grid": (self.channels, self.cells, self.cells),
            "dense": (self.channels, *self.grid),
        }[tier]

    def fingerprint(self, weights_sha256: str, compute_dtype: str) -> dict[str, Any]:
        """Everything that decides the values of an embedding, as JSON values.

        Two rows are comparable if and only if these fields are equal. Device, batch size and versions of libraries are
        not among them.
        """
        return {
            "encoder": {"name": self.name, "weights_sha256": weights_sha256},
            "bands": list(self.bands),
            "units": self.units,
            "scaling": dict(self.scaling),
            "preprocessing": dict(self.preprocessing),
            "image_size": self.image_size,
            "stored_dtypes": dict(self.stored_dtypes),
            "compute_dtype": compute_dtype,
        }


def three(encoder: str, bands: Sequence[str]) -> tuple[str, ...]:
    """Return the three bands that an encoder of RGB images is given; InputError if it is given more or fewer."""
    if len(bands) not in (0, 3):
        raise InputError(
            f"{encoder} takes three bands in the places of red, green and blue, got {', '.join(bands)}"
        )
    return tuple(bands) or RGB


def preprocessing(units: str) -> dict[str, str]:
    """Describe how images in these units are decoded and resized."""
    if units != BYTES:
        return {"resize": "longest side, Pillow bilinear, antialiased, float32"}
    return {
        "colour": "RGB, 8 bits, alpha dropped, EXIF orientation ignored",
        "resize": "longest side, Pillow bilinear, antialiased, uint8",
    }


class Encoder(Protocol):
    """A frozen network on a device, from resized pixels to the arrays that a store keeps.

    An encoder that users can name is a module of this package with such a class, named `Encoder` and constructed as
    `Encoder(name, checkpoint, device, dtype, image_size, engine, bands)`, and a function
    `spec(name, image_size=None, bands=OWN)`. `bands` are what it is given: without names, the bands that it was trained
    with. If it has none of its own, `spec(name).bands` is empty, and it is given all that the images have.

    If its weights come from the images, the module has a function `fit(images, checkpoint, dataset)` that returns them
    as the content of a file, which is what `Encoder` then gets as `checkpoint`; the spec's `default_checkpoint` is what
    stands before the seed, and the seed.
    """

    spec: EncoderSpec
    weights: Weights
    compute_dtype: str  #: what the network computes in, such as `bfloat16` or `int8+float32`

    def encode(
        self, pixels: Sequence[Pixels], tiers: Sequence[str] = TIERS
    ) -> dict[str, NDArray[Any]]:
        """Encode a batch of images.

        Batches that do not fit in the device's memory are halved until they do; raises ResourceError if a single image
        does not fit.

        Parameters
        ----------
        pixels : sequence of ndarray, (h, w, bands), of uint8 or float32
            In the spec's units, resized so that the longest side is `spec.image_size`; sizes may differ between images.
        tiers : sequence of {"pooled", "grid", "dense"}

        Returns
        -------
        dict
            For each tier an array (batch, *spec.shape(tier)) of the dtype `spec.stored_dtypes[tier]`.
        """
        ...

    def best_batch(self, most: int) -> int:
        """Return a batch size that suits the device, at most `most`."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Return `spec.fingerprint` of this encoder's weights and compute dtype."""
        ...
