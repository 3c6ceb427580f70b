"""The encoder of Prithvi-EO-2.0 (Szwarcman et al. 2024, arXiv 2412.02732) for images of one date, in its four sizes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn, unflatten
from torch.nn.functional import conv2d, interpolate, scaled_dot_product_attention

from samtl.encoders.base import OWN, EncoderSpec, Weights, preprocessing
from samtl.encoders.compute import resolve_compute
from samtl.encoders.device import resolve_device
from samtl.encoders.fast.engines import LAYERS, check_engine
from samtl.encoders.fast.int8 import Int8Linear
from samtl.encoders.fast.linear import Linear, Unfused
from samtl.encoders.pooling import feature_names
from samtl.encoders.torch_encoder import INT8, Forward, TorchEncoder
from samtl.encoders.weights.checkpoints import Official, load_weights
from samtl.encoders.weights.containers import Tensors
from samtl.errors import InputError
from samtl.images.bands import REFLECTANCE, Bands, scaling
from samtl.images.transforms import check_image_size

NAMES = {
    "prithvi_tiny": "Prithvi-EO-2.0 tiny: six bands, 192 wide, 12 deep, 6 M parameters, needs --checkpoint",
    "prithvi_100m": "Prithvi-EO-2.0 100M: six bands, 768 wide, 12 deep, 86 M parameters, needs --checkpoint",
    "prithvi_300m": "Prithvi-EO-2.0 300M: six bands, 1024 wide, 24 deep, 304 M parameters, checkpoint of 1.3 GB",
    "prithvi_600m": "Prithvi-EO-2.0 600M: six bands, 1280 wide, 32 deep, 631 M parameters, needs --checkpoint",
}

# Of Harmonized Landsat Sentinel-2, with mean and deviation of the images that all sizes were trained on.
BANDS = ("blue", "green", "red", "nir_narrow", "swir1", "swir2")
MEAN = (1087.0, 1342.0, 1433.0, 2734.0, 1958.0, 1363.0)
STD = (2248.0, 2179.0, 2178.0, 1850.0, 1242.0, 1049.0)
IMAGE_SIZE = 224  # side of the input that the weights were trained for
HUB = "https://huggingface.co/ibm-nasa-geospatial/"

# In checkpoints, beside the encoder: the decoder, sine positions, which are computed here, and the weights of date and
# place, which are not given.
_LEFT_OUT = r"(^|\.)(decoder\w*\.|mask_token|decoder_pos_embed|pos_embed|(temporal|location)_embed)"


@dataclass(frozen=True)
class Variant:
    """Numbers that define an architecture, and where its checkpoint is."""

    width: int
    depth: int
    heads: int
    page: str  #: of the checkpoint
    patch: int = 16
    official: Official | None = None

    @property
    def taps(self) -> tuple[int, ...]:
        """The blocks after the first three quarters; the last one's output is `dense`."""
        return tuple(self.depth * quarter // 4 - 1 for quarter in (1, 2, 3))


# Names and shapes of the 100M's published tensors were not seen; those of the others were compared.
VARIANTS = {
    "prithvi_tiny": Variant(192, 12, 3, HUB + "Prithvi-EO-2.0-tiny-TL"),
    "prithvi_100m": Variant(768, 12, 12, HUB + "Prithvi-EO-2.0-100M-TL"),
    "prithvi_300m": Variant(1024, 24, 16, HUB + "Prithvi-EO-2.0-300M", official=Official(
        HUB + "Prithvi-EO-2.0-300M/resolve/9eb1b1102806593963daa333bcc491b1c6f8562f/Prithvi_EO_V2_300M.pt", 1326658396,
        "faab2c8b776f0723f93431747603a7ec586a54fc45473613b4322c29752486e7",
    )),
    "prithvi_600m": Variant(1280, 32, 16, HUB + "Prithvi-EO-2.0-600M", patch=14),
}  # fmt: skip


def spec(name: str, image_size: int | None = None, bands: Bands = OWN) -> EncoderSpec:
    """Return the properties of the encoder `name` without loading it; see `Encoder`."""
    variant, size = VARIANTS[name], IMAGE_SIZE if image_size is None else image_size
    check_image_size(size, variant.patch)
    names = bands.names or BANDS
    places, units = places_of(name, names), bands.units
    mean, std = ([constants[i] for i in places] for constants in (MEAN, STD))
    return EncoderSpec(
        name=name,
        image_size=size,
        patch=variant.patch,
        channels=variant.width,
        features=feature_names(variant.width, dict.fromkeys(variant.taps, variant.width)),
        bands=names,
        units=units,
        scaling=scaling(mean, std, REFLECTANCE, units),
        preprocessing={
            **preprocessing(units),
            "pad": "zeros at the bottom and right, after scaling",
        },
    )


def places_of(name: str, bands: Sequence[str]) -> list[int]:
    """Find each band among the six of the network; `nir` stands for the narrow one. InputError if it has no such."""
    own = ["nir_narrow" if band == "nir" else band for band in bands]
    foreign = [band for band in own if band not in BANDS]
    if foreign or len(set(own)) < len(own):
        raise InputError(
            f"{name} takes {', '.join(BANDS)} (or nir in place of nir_narrow), or some of them, once each: got "
            f"{', '.join(bands)}"
        )
    return [BANDS.index(band) for band in own]


class Encoder(TorchEncoder):
    """A frozen Prithvi encoder on a device; options as in `samtl.embed`.

    Bands that are not given count as their mean. Positions of another image size than 224 are resampled. Date and place
    are not given, as in a part of the training of the checkpoints that know them ("TL").
    """

    def __init__(
        self,
        name: str,
        checkpoint: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        image_size: int | None = None,
        engine: str = "fast",
        bands: Bands = OWN,
    ) -> None:
        check_engine(engine)
        found, on = spec(name, image_size, bands), resolve_device(device)
        compute_dtype = resolve_compute(dtype, engine, on)
        if compute_dtype.startswith(INT8):
            engine = "int8"
        model, weights = load(name, checkpoint)
        model.take_bands(places_of(name, found.bands))
        forward = partial(forward_pass, engine, side=found.grid[0], taps=VARIANTS[name].taps)
        super().__init__(found, weights, model, forward, on, compute_dtype)


def load(name: str, checkpoint: str | None = None) -> tuple[Network, Weights]:
    """Return the network with its weights, in float32 on the CPU, for inference; see `Encoder`."""
    variant, source = VARIANTS[name], checkpoint or "official"
    if source == "official" and variant.official is None:
        raise InputError(
            f"{name} is not downloaded, because the sha256 of its checkpoint is not known: take the file from "
            f"{variant.page} and pass it with --checkpoint FILE, or try without weights: --checkpoint random:0"
        )
    model = Network(variant)
    weights = load_weights(
        model,
        source,
        variant.official,
        name,
        remedy="Choose the --encoder it was made for",
        adapt=_adapt,
    )
    return model.eval().requires_grad_(False), weights


def _adapt(tensors: Tensors) -> Tensors:
    """Leave the encoder's tensors; InputError if they are of the first generation, which was trained otherwise."""
    if "decoder_embed.weight" in tensors:
        raise InputError(
            "--checkpoint is of Prithvi-EO-1.0, for which pixels are scaled otherwise: use one of Prithvi-EO-2.0"
        )
    return {key: tensor for key, tensor in tensors.items() if not re.search(_LEFT_OUT, key)}


class Network(nn.Module):
    """The parameters of an encoder, under their published names; `forward_pass` runs it."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        width, patch = variant.width, variant.patch
        self.variant = variant
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        kernel = (1, patch, patch)  # dates, rows, columns
        patches = nn.Conv3d(len(BANDS), width, kernel, kernel)
        self.patch_embed = nn.ModuleDict({"proj": patches})
        self.blocks = nn.ModuleList(_block(width) for _ in range(variant.depth))
        self.norm = nn.LayerNorm(width)

    def take_bands(self, places: Sequence[int]) -> None:
        """Keep what belongs to these of the six bands, in this order."""
        layer: Any = self.patch_embed["proj"]
        layer.weight = nn.Parameter(layer.weight[:, list(places)], requires_grad=False)


def _block(width: int) -> nn.Module:
    return nn.ModuleDict(
        {
            "norm1": nn.LayerNorm(width),
            "attn": nn.ModuleDict(
                {"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}
            ),
            "norm2": nn.LayerNorm(width),
            "mlp": nn.ModuleDict(
                {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
            ),
        }
    )


def sine_positions(width: int, trained: int, side: int) -> Tensor:
    """Compute the positions of side x side tokens of the first date, (side ** 2, width) float32.

    Of the channels 6/16 each tell column and row, 4/16 the date. Those of another grid than the trained one are
    resampled from it: bicubic, corner on corner.
    """

    def waves(share: int, at: NDArray[np.float64]) -> NDArray[np.float64]:
        half = width // 16 * share // 2
        angles = at[:, None] / 10_000 ** (np.arange(half) / half)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    steps = np.arange(trained, dtype=np.float64)
    along = waves(6, steps)
    columns, rows = np.tile(along, (trained, 1)), np.repeat(along, trained, axis=0)
    dates = waves(4, np.zeros(trained**2))
    found = torch.from_numpy(np.concatenate([columns, rows, dates], axis=1)).float()
    if side != trained:
        grid = found.T.reshape(1, width, trained, trained)
        grid = interpolate(grid, (side, side), mode="bicubic", align_corners=True)
        found = grid[0].flatten(1).T
    return found.contiguous()


def forward_pass(engine: str, model: Any, side: int, taps: Sequence[int]) -> Forward:
    """Return an engine's forward pass, from (batch, bands, size, size) to the last block's normalised tokens.

    They come as (batch, width, side, side), without the class token. If the engine is not `reference`, the weights of
    linear layers are moved out of the model.
    """
    variant, layer = model.variant, LAYERS[engine] or Unfused
    patches, cls_token = model.patch_embed["proj"], model.cls_token
    kernel = patches.weight[:, :, 0]
    positions = sine_positions(variant.width, IMAGE_SIZE // variant.patch, side).to(kernel)
    blocks = [_Block(block, variant.heads, side**2 + 1, layer) for block in model.blocks]

    def forward(x: Tensor, tap: Callable[[Tensor], None]) -> Tensor:
        x = conv2d(x, kernel, patches.bias, stride=variant.patch).flatten(2).transpose(1, 2)
        x = torch.cat([cls_token.expand(len(x), -1, -1), x + positions], dim=1)
        for index, block in enumerate(blocks):
            x = block(x)
            if index in taps:
                tap(unflatten(x[:, 1:], 1, (side, side)))
        return unflatten(model.norm(x)[:, 1:].transpose(1, 2), 2, (side, side))

    return forward


class _Block:
    """Attention between all tokens and a multilayer perceptron, each on normalised tokens and added to them."""

    def __init__(
        self, block: Any, heads: int, tokens: int, linear: type[Linear | Int8Linear]
    ) -> None:
        self.heads = heads
        self.norm1, self.norm2 = block["norm1"], block["norm2"]
        attention, mlp = block["attn"], block["mlp"]
        self.qkv, self.merge, self.widen, self.narrow = (
            linear(module, tokens)
            for module in (attention["qkv"], attention["proj"], mlp["fc1"], mlp["fc2"])
        )

    def __call__(self, x: Tensor) -> Tensor:
        q, k, v = unflatten(self.qkv(self.norm1(x)), 2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(q, k, v)
        x = self.merge.plus(seen.transpose(1, 2).flatten(2), x)
        return self.narrow.plus(self.widen.gelu(self.norm2(x)), x)
