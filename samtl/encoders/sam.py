"""SAM's image encoder (Kirillov et al. 2023) in its three published sizes, and a tiny one of the same architecture."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.functional import interpolate

from samtl.encoders.base import OWN, EncoderSpec, Weights, preprocessing, three
from samtl.encoders.compute import resolve_compute
from samtl.encoders.device import resolve_device
from samtl.encoders.fast.engines import check_engine, forward_pass
from samtl.encoders.pooling import feature_names
from samtl.encoders.torch_encoder import INT8, TorchEncoder
from samtl.encoders.weights.checkpoints import Official, load_weights
from samtl.encoders.weights.containers import Tensors
from samtl.errors import InputError
from samtl.images.bands import BYTES, Bands, scaling
from samtl.images.transforms import PATCH, PIXEL_MEAN, PIXEL_STD, check_image_size

NAMES = {
    "sam_vit_b": "SAM ViT-B: 768 wide, 12 deep, 90 M parameters, checkpoint of 375 MB",
    "sam_vit_l": "SAM ViT-L: 1024 wide, 24 deep, 308 M parameters, checkpoint of 1.2 GB",
    "sam_vit_h": "SAM ViT-H: 1280 wide, 32 deep, 637 M parameters, checkpoint of 2.6 GB",
    "tiny": "SAM's architecture, 192 wide and 6 deep, with untrained seeded weights: no download",
}

BASE_URL = "https://dl.fbaipublicfiles.com/segment_anything/"
WINDOW = 14  # tokens along the side of a window, in blocks without global attention
IMAGE_SIZE = 1024  # side of the input that the published weights were trained for
CHANNELS = 256  # of the output


@dataclass(frozen=True)
class Variant:
    """Numbers that define an architecture; `taps` are the blocks with global attention."""

    width: int
    depth: int
    heads: int
    taps: tuple[int, ...]
    official: Official | None = None


VARIANTS = {
    "sam_vit_b": Variant(768, 12, 12, (2, 5, 8, 11), Official(
        BASE_URL + "sam_vit_b_01ec64.pth", 375042383,
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    )),
    "sam_vit_l": Variant(1024, 24, 16, (5, 11, 17, 23), Official(
        BASE_URL + "sam_vit_l_0b3195.pth", 1249524607,
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    )),
    "sam_vit_h": Variant(1280, 32, 16, (7, 15, 23, 31), Official(
        BASE_URL + "sam_vit_h_4b8939.pth", 2564550879,
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    )),
    "tiny": Variant(192, 6, 3, (2, 5)),
}  # fmt: skip


# Names in transformers' `SamModel`, and those of the same tensors here.
_HUGGING_FACE = {
    r"\.layers\.": ".blocks.",
    r"\.layer_norm([12])\.": r".norm\1.",
    r"patch_embed\.projection": "patch_embed.proj",
    r"neck\.conv1": "neck.0",
    r"neck\.norm1": "neck.1",
    r"neck\.conv2": "neck.2",
    r"neck\.norm2": "neck.3",
}


def spec(name: str, image_size: int | None = None, bands: Bands = OWN) -> EncoderSpec:
    """Return the properties of the encoder `name` without loading it; see `Encoder`."""
    variant, size = VARIANTS[name], IMAGE_SIZE if image_size is None else image_size
    check_image_size(size)
    return EncoderSpec(
        name=name,
        image_size=size,
        patch=PATCH,
        channels=CHANNELS,
        features=feature_names(CHANNELS, dict.fromkeys(variant.taps, variant.width)),
        bands=three(name, bands.names),
        units=bands.units,
        scaling=scaling(PIXEL_MEAN, PIXEL_STD, BYTES, bands.units),
        preprocessing={
            **preprocessing(bands.units),
            "pad": "zeros at the bottom and right, after scaling",
        },
        default_checkpoint="official" if variant.official else "random:0",
    )


class Encoder(TorchEncoder):
    """A frozen SAM encoder on a device; options as in `samtl.embed`.

    If `image_size` is not 1024, positions are resampled.
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
        model, weights = load(name, checkpoint, found.image_size)
        forward = partial(forward_pass, engine, taps=VARIANTS[name].taps)
        super().__init__(found, weights, model, forward, on, compute_dtype)


def load(
    name: str, checkpoint: str | None = None, image_size: int = IMAGE_SIZE
) -> tuple[nn.Module, Weights]:
    """Return the plain `ImageEncoderViT` with its weights, in float32 on the CPU, for inference; see `Encoder`."""
    model, source = build(name), checkpoint or spec(name).default_checkpoint
    official, remedy = VARIANTS[name].official, "Choose the --encoder it was made for"
    weights = load_weights(
        model, source, official, name, remedy=remedy, adapt=lambda t: _adapt(t, model, name)
    )
    if image_size != model.pos_embed.shape[1] * PATCH:  # type: ignore[index]
        model = _resampled(model, build(name, image_size))
    return model.eval().requires_grad_(False), weights


def _adapt(tensors: Tensors, model: nn.Module, name: str) -> Tensors:
    """Give tensors the names of `segment_anything`, and the model the image size that they were trained at."""
    if any(".layer_norm1." in key for key in tensors):
        for pattern, ours in _HUGGING_FACE.items():
            tensors = {re.sub(pattern, ours, key): tensor for key, tensor in tensors.items()}
    shapes = (tensor.shape for key, tensor in tensors.items() if key.endswith("pos_embed"))
    side = next((s[1] for s in shapes if len(s) == 4 and s[1] == s[2]), IMAGE_SIZE // PATCH)
    if side != IMAGE_SIZE // PATCH:
        for key, parameter in build(name, side * PATCH).named_parameters():
            module, _, leaf = key.rpartition(".")
            setattr(model.get_submodule(module), leaf, parameter)
    return tensors


def build(name: str, image_size: int = IMAGE_SIZE) -> nn.Module:
    """Build the plain `ImageEncoderViT` as `segment_anything.build_sam` does; its weights are not set."""
    return network(VARIANTS[name], image_size)


def network(variant: Variant, image_size: int) -> nn.Module:
    """Build an `ImageEncoderViT` of any size; its weights are not set."""
    return modeling().ImageEncoderViT(  # type: ignore[no-any-return]
        img_size=image_size,
        patch_size=PATCH,
        embed_dim=variant.width,
        depth=variant.depth,
        num_heads=variant.heads,
        norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
        use_rel_pos=True,
        window_size=WINDOW,
        global_attn_indexes=variant.taps,
        out_chans=CHANNELS,
    )


@torch.no_grad()
def _resampled(model: nn.Module, target: nn.Module) -> nn.Module:
    """Fill an encoder of another image size with the weights of a model, resampling its positions.

    Absolute positions are a map over the token grid: bicubic, antialiased if there are fewer tokens, as in timm.
    Relative positions of blocks with global attention are a table over distances: linear, as `segment_anything` does
    if a table does not fit. Windows are 14 x 14 tokens at every size.
    """
    tensors = model.state_dict()
    for name, wanted in target.state_dict().items():
        have = tensors[name]
        if have.shape == wanted.shape:
            continue
        if name == "pos_embed":
            grid, size = have.permute(0, 3, 1, 2), wanted.shape[1:3]
            grid = interpolate(grid, size, mode="bicubic", antialias=True, align_corners=False)
            tensors[name] = grid.permute(0, 2, 3, 1).contiguous()
        else:
            table = interpolate(have.T[None], wanted.shape[0], mode="linear")
            tensors[name] = table[0].T.contiguous()
    target.load_state_dict(tensors)
    return target


def modeling() -> ModuleType:
    """Load `segment_anything.modeling`, which is plain torch, under a name of its own.

    `import segment_anything` imports torchvision, which samtl does not need and which does not load with every torch.
    """
    name = "samtl.encoders._segment_anything_modeling"
    if name in sys.modules:
        return sys.modules[name]
    found = importlib.util.find_spec("segment_anything")
    if found is None or not found.submodule_search_locations:
        raise InputError("the package segment-anything is missing: pip install segment-anything")
    folder = Path(found.submodule_search_locations[0]) / "modeling"
    module_spec: Any = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # its relative imports look it up there
    module_spec.loader.exec_module(module)
    return module
