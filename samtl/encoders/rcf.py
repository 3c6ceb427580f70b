"""Random convolutional features: filters are patches of the images themselves; no download, no GPU.

MOSAIKS (Rolf et al. 2021, Nature Communications 12, 4392) with the ZCA-whitened patches of Coates & Ng (2011).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, pad

from samtl.encoders.base import OWN, EncoderSpec, Weights, preprocessing
from samtl.encoders.device import resolve_device
from samtl.encoders.pooling import feature_names
from samtl.encoders.torch_encoder import Forward, Images, TorchEncoder
from samtl.encoders.weights.checkpoints import tensors_digest
from samtl.errors import InputError
from samtl.images.bands import Bands
from samtl.images.transforms import Pixels, check_image_size

NAMES = {
    "rcf": "random convolutional features, filters from patches of the images: no download, no GPU"
}

FILTERS = 256  # each of them gives two channels
SIDE, STRIDE = 6, 2  # of a filter, in pixels
IMAGES, PATCHES = 1000, 20_000  # that the covariance is taken of
RIDGE = 1e-3  # added to the variances, relative to their mean
SMALL, AT_ONCE = 256, 16  # pixels along a side, and such images in a batch
TOLD = "samtl"  # the entry of a file's metadata that says where filters are from
SEED = "patches:"  # and the seed of the draw: filters from the images that are embedded


def spec(name: str, image_size: int | None = None, bands: Bands = OWN) -> EncoderSpec:
    """Return the properties of the encoder; a token covers 4 to 16 pixels, so that there are 64 along most sides."""
    size, count = 64 if image_size is None else image_size, len(bands.names)
    check_image_size(size)
    channels = 2 * FILTERS
    return EncoderSpec(
        name=name,
        image_size=size,
        patch=4 if size <= SMALL else 8 if size <= 512 else 16,
        channels=channels,
        features=feature_names(channels, {}),
        bands=bands.names,
        units=bands.units,
        scaling={"mean": [0.0] * count, "std": [1.0] * count},
        preprocessing={**preprocessing(bands.units), "pad": "edge pixels at the bottom and right"},
        default_checkpoint=f"{SEED}0",
        keeps_size=True,
        usual_dtype="float32",
    )


def fit(images: Iterable[Pixels], checkpoint: str, dataset: str) -> bytes:
    """Make filters from images, and return them as the content of a safetensors file.

    Patches are whitened by the ZCA matrix of their covariance (with a ridge), and some are drawn, scaled to length 1,
    as filters. Filter and whitening are one linear map of a patch.

    Parameters
    ----------
    images : iterable of ndarray, (h, w, bands)
        Resized as for the encoder; those that are smaller than a filter are left out.
    checkpoint : str
        `patches:SEED`.
    dataset : str
        Name of what the images are of, to be told with the filters.
    """
    rng = np.random.default_rng(int(checkpoint.removeprefix(SEED)))
    patches = [_patches(image, rng) for image in images if min(image.shape[:2]) >= SIDE]
    if not patches:
        raise InputError(
            f"rcf takes its filters from the images, and none has {SIDE} x {SIDE} pixels"
        )
    drawn = np.concatenate(patches)
    drawn = drawn[np.isfinite(drawn).all(axis=1)]
    mean = drawn.mean(axis=0)
    variances, axes = np.linalg.eigh(np.cov(drawn.T))
    scale = 1 / np.sqrt(np.maximum(variances, 0) + RIDGE * max(variances.mean(), 1e-12))
    whitening = (axes * scale) @ axes.T
    white = (drawn - mean) @ whitening
    lengths = np.linalg.norm(white, axis=1, keepdims=True)
    uneven = np.flatnonzero(lengths[:, 0] > 1e-6)
    if not len(uneven):
        raise InputError("rcf takes its filters from the images, and no two patches of them differ")
    chosen = rng.choice(uneven, FILTERS, replace=len(uneven) < FILTERS)
    weights = (white[chosen] / lengths[chosen]) @ whitening
    filters = weights.reshape(FILTERS, SIDE, SIDE, -1).transpose(0, 3, 1, 2)
    tensors = {"weight": np.ascontiguousarray(filters), "bias": -weights @ mean}
    return save(
        {name: tensor.astype(np.float32) for name, tensor in tensors.items()},
        # One entry, since safetensors writes several in any order.
        {TOLD: json.dumps({"checkpoint": checkpoint, "dataset": dataset})},
    )


def _patches(image: Pixels, rng: np.random.Generator) -> NDArray[np.float64]:
    """Cut patches at random places of an image: (n, side * side * bands)."""
    height, width = image.shape[:2]
    tops = rng.integers(0, height - SIDE + 1, PATCHES // IMAGES)
    lefts = rng.integers(0, width - SIDE + 1, PATCHES // IMAGES)
    cut = [image[y : y + SIDE, x : x + SIDE].ravel() for y, x in zip(tops, lefts, strict=True)]
    return np.stack(cut).astype(np.float64)


class Encoder(TorchEncoder):
    """Random convolutional features on a device; `checkpoint` is the content of a file of filters, from `fit`.

    A token is the square root of the mean response in its pixels, apart for positive and negative responses: the root
    makes sums of squares of what are sums, as for histograms.
    """

    def __init__(
        self,
        name: str,
        checkpoint: bytes,
        device: str = "auto",
        dtype: str = "auto",
        image_size: int | None = None,
        engine: str = "fast",
        bands: Bands = OWN,
    ) -> None:
        found, on = spec(name, image_size, bands), resolve_device(device)
        if engine == "int8":
            raise InputError("rcf has no 8-bit products: leave --engine out")
        model = _load(checkpoint, len(bands.names))
        form = "filters from images of {dataset}, held-out ones too, without labels ({checkpoint})"
        description = form.format(**told(checkpoint))
        weights = Weights(description, False, tensors_digest(model))
        compute = found.usual_dtype if dtype == "auto" else dtype
        super().__init__(found, weights, model, lambda m: _forward(m, found.patch), on, compute)

    def best_batch(self, most: int) -> int:
        """Return a batch size: small images take a millisecond each, and a call of the encoder should take longer."""
        return min(most, AT_ONCE) if self.spec.image_size <= SMALL else super().best_batch(most)

    def _scaled(self, pixels: Images) -> Tensor:
        """Continue images beyond their right and lower edges, so that there is no edge to respond to."""
        size = self.spec.image_size
        squares = [
            np.pad(p, ((0, size - p.shape[0]), (0, size - p.shape[1]), (0, 0)), mode="edge")
            for p in pixels
        ]
        return (
            torch.from_numpy(np.stack(squares)).to(self.device).permute(0, 3, 1, 2).to(self.dtype)
        )


def told(content: bytes) -> dict[str, str]:
    """Return where filters are from: `checkpoint`, with the seed, and `dataset`; InputError if they are none."""
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        about = json.loads(header["__metadata__"][TOLD])
        return {name: str(about[name]) for name in ("checkpoint", "dataset")}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(
            f"expected the filters of a store of rcf, got something else ({error})"
        ) from error


def _load(content: bytes, bands: int) -> nn.Module:
    """Read filters; InputError if they are of another number of bands, or no numbers."""
    model = nn.Conv2d(bands, FILTERS, SIDE, STRIDE)
    try:
        filters = load(content)
        model.load_state_dict(filters)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in filters.values()):
            raise ValueError("values that are not finite")
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise InputError(
            f"expected {FILTERS} filters of {SIDE} x {SIDE} pixels in {bands} bands, got others: {error}"
        ) from error
    return model.eval().requires_grad_(False)


def _forward(model: nn.Module, patch: int) -> Forward:
    assert isinstance(model, nn.Conv2d)
    weight = model.weight.contiguous(memory_format=torch.channels_last)
    before = (SIDE - STRIDE) // 2

    def run(x: Tensor, tap: Callable[[Tensor], None]) -> Tensor:
        x = x.contiguous(
            memory_format=torch.channels_last
        )  # or the product takes three times as long
        x = pad(x, (before, SIDE - STRIDE - before) * 2, mode="replicate")
        responses = conv2d(x, weight, model.bias, STRIDE)
        signed = avg_pool2d(responses, patch // STRIDE).contiguous()
        sizes = avg_pool2d(responses.abs_(), patch // STRIDE).contiguous()
        # Means of the positive and of the negative responses: their sum is the mean size, their difference the mean.
        both = torch.cat([sizes + signed, sizes - signed], dim=1)
        return both.div_(2).clamp_(min=0).sqrt_()

    return run
