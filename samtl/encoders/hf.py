"""Vision backbones of transformers, from the Hugging Face hub or a folder: all that give tokens on a square grid."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from samtl.encoders.base import OWN, EncoderSpec, Weights, preprocessing, three
from samtl.encoders.compute import resolve_compute
from samtl.encoders.device import resolve_device
from samtl.encoders.fast.engines import LAYERS, check_engine
from samtl.encoders.pooling import feature_names
from samtl.encoders.torch_encoder import INT8, Forward, TorchEncoder
from samtl.encoders.weights.checkpoints import load_weights
from samtl.encoders.weights.hub import CONFIG, Source, find, with_weights
from samtl.errors import InputError, SamtlError, require_extra
from samtl.images.bands import BYTES, Bands, scaling
from samtl.images.transforms import IMAGE_SIZE, check_image_size

NAMES = {
    "hf:REPO_OR_FOLDER": "DINOv2 and 3, SAM 2, SigLIP, CLIP, ... of transformers: hf:REPO[@REVISION] or hf:FOLDER",
}

_SIDE = 64  # tokens along a side by default
_USUAL_SIZE = 224  # pixels, for a network that has no size of its own
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What is switched off: masking, and heads that no token passes through.
_OFF = {"mask_ratio": 0.0, "vision_use_head": False}


@dataclass(frozen=True)
class Layout:
    """The shape of a network's output for square images."""

    image_size: int
    patch: int  #: pixels along a token's side
    channels: int
    prefix: int  #: tokens before those of the grid
    cls: bool  #: whether the first of them stands for the whole image


def spec(name: str, image_size: int | None = None, bands: Bands = OWN) -> EncoderSpec:
    """Return the properties of the encoder `name` without its weights, but with its configuration; see `Encoder`."""
    return _spec_of(find(name), image_size, bands)


def _spec_of(source: Source, image_size: int | None, bands: Bands) -> EncoderSpec:
    layout, scale = _layout(source.folder, image_size), _normalisation(source.folder)
    taken = three(source.name, bands.names)
    mean, std = scale or ([255 * value for value in values] for values in _IMAGENET)
    features = feature_names(layout.channels, {})
    if layout.cls:
        features += tuple(f"cls_{c:04d}" for c in range(layout.channels))
    return EncoderSpec(
        name=source.name,
        image_size=layout.image_size,
        patch=layout.patch,
        channels=layout.channels,
        features=features,
        bands=taken,
        units=bands.units,
        scaling=scaling(mean, std, BYTES, bands.units),
        preprocessing={
            **preprocessing(bands.units),
            "pad": "zeros at the bottom and right, after scaling",
            "normalisation": "the checkpoint's" if scale else "ImageNet's; the checkpoint has none",
        },
    )


class Encoder(TorchEncoder):
    """A frozen backbone on a device; options as in `samtl.embed`.

    `dense` are the final tokens of the grid, for SAM 2 its features at 1/16 of the resolution. `pooled` has the CLS
    token at its end if there is one. If `image_size` is not the network's own, positions are resampled as transformers
    does it. `checkpoint` may also be a copy of the model's folder, if the model is not where `name` says.
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
        try:
            source = find(name)
        except SamtlError:  # the folder was moved, or the repository is out of reach
            if checkpoint is None or not Path(checkpoint, CONFIG).is_file():
                raise
            source, checkpoint = Source(name, Path(checkpoint).resolve()), None
        found, on = _spec_of(source, image_size, bands), resolve_device(device)
        compute_dtype = resolve_compute(dtype, engine, on)
        if compute_dtype.startswith(INT8):
            engine = "int8"
        model, weights = load(source, checkpoint)
        layout = _layout(source.folder, found.image_size)
        forward = functools.partial(_forward_pass, engine=engine, layout=layout)
        super().__init__(found, weights, model, forward, on, compute_dtype)


def load(source: Source, checkpoint: str | None = None) -> tuple[nn.Module, Weights]:
    """Return a plain network of transformers with its weights, in float32 on the CPU, for inference; see `Encoder`."""
    config, whole = _config(source.folder)
    if checkpoint in (None, "official"):
        model = _pretrained(source, config, within=config is not whole)
        weights = Weights(source.description, False, "")
    else:
        model = _built(config)
        weights = load_weights(model, str(checkpoint), None, source.name)
    model = model.eval().requires_grad_(False)
    return model, replace(weights, sha256=_digest(model))


def _digest(model: nn.Module) -> str:
    """Compute the sha256 over a network's tensors without their names, which versions of transformers change."""
    tensors = (tensor.contiguous() for tensor in model.state_dict().values())
    each = sorted(
        hashlib.sha256(f"{t.dtype} {tuple(t.shape)}\n".encode() + t.numpy().tobytes()).hexdigest()
        for t in tensors
    )
    return hashlib.sha256("\n".join(each).encode()).hexdigest()


@contextmanager
def _transformers() -> Iterator[Any]:
    """Import transformers; within a `with` block it writes nothing to the terminal."""
    transformers = require_extra("transformers", "hf")
    logs = require_extra("transformers.utils.logging", "hf")
    level, shown = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity(logs.CRITICAL)
    logs.disable_progress_bar()
    try:
        yield transformers
    finally:
        logs.set_verbosity(level)
        if shown:
            logs.enable_progress_bar()


def _config(folder: Path) -> tuple[Any, Any]:
    """Read the configuration of the vision part and of the whole model."""
    with _transformers() as transformers:
        try:
            whole = transformers.AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # of many kinds: no JSON, no known type, another version's
            raise InputError(
                f"{folder} is of a model that transformers {transformers.__version__} does not know: "
                f"{_first_line(error)}"
            ) from error
    vision = getattr(whole, "vision_config", whole)
    for name, value in _OFF.items():
        if hasattr(vision, name):
            setattr(vision, name, value)
    return vision, whole


def _first_line(error: Exception) -> str:
    return (str(error).strip().partition("\n")[0] or type(error).__name__)[:200]


def _built(config: Any, device: str = "cpu") -> Any:
    """Build the network of a configuration, with any weights; InputError if it is not one for images."""
    kind = config.model_type
    with _transformers() as transformers, torch.device(device):
        try:
            model = transformers.AutoModel.from_config(config, dtype=torch.float32)
        except Exception as error:  # no such class, or what the class does not like
            raise _unfit(kind, _first_line(error)) from error
    modalities = getattr(model, "input_modalities", ("image",))
    if model.main_input_name != "pixel_values" or "image" not in modalities:
        raise _unfit(kind, f"it takes {model.main_input_name}")
    if (channels := getattr(config, "num_channels", 3)) != 3:
        raise _unfit(kind, f"it takes {channels} bands")
    return _headless(model)


def _headless(model: Any) -> Any:
    """Leave out a pooling layer with weights, which often are not in the checkpoint."""
    pooler = getattr(model, "pooler", None)
    if pooler is not None and any(True for _ in pooler.parameters()):
        model.pooler = None
    return model


def _unfit(kind: str, why: str) -> InputError:
    return InputError(
        f"a model of type {kind} does not encode images as tokens on a square grid ({why}): choose a vision backbone, "
        "such as dinov2, dinov3_vit, sam2, siglip, clip or vit_mae"
    )


def _pretrained(source: Source, config: Any, within: bool) -> nn.Module:
    """Load the weights of a model's folder, `within` a larger model."""
    folder = with_weights(source)
    # The other names of parts are known to transformers.
    mapping = {"key_mapping": {r"^vision_encoder\.": ""}} if within else {}
    with _transformers() as transformers:
        try:
            model, told = transformers.AutoModel.from_pretrained(
                folder, config=config, dtype=torch.float32, local_files_only=True, trust_remote_code=False,
                weights_only=True, output_loading_info=True, **mapping,
            )  # fmt: skip
        except Exception as error:  # safetensors, zip and pickle have their own classes
            raise InputError(
                f"the weights of {source.name} cannot be read ({type(error).__name__}: {_first_line(error)}): download "
                "them again"
            ) from error
    _headless(model)
    state = model.state_dict()
    odd = sorted(key for key in told["missing_keys"] if key in state)
    odd += [key for key, tensor in state.items() if not torch.isfinite(tensor).all()]
    if odd:
        raise InputError(
            f"the weights of {source.name} are not those of its configuration: {len(odd)} tensors are missing, NaN or "
            f"infinite, such as {odd[0]}"
        )
    return model  # type: ignore[no-any-return]


def _normalisation(folder: Path) -> tuple[list[float], list[float]] | None:
    """Return mean and deviation of each band on the scale from 0 to 255; None if the model's files do not say."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        try:
            told = json.loads((folder / name).read_text(encoding="utf-8"))
            told = told.get("image_processor", told)
            one = told.get("rescale_factor", 1 / 255) if told.get("do_rescale", True) else 1
            mean, std = [0.0] * 3, [1.0] * 3
            if told.get("do_normalize", True):
                mean, std = told["image_mean"], told["image_std"]
            scaled = [[float(value) / one for value in values] for values in (mean, std)]
        except (OSError, KeyError):
            continue
        except (ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
            raise InputError(f"{folder / name} is damaged: {_first_line(error)}") from error
        return scaled[0], scaled[1]
    return None


@functools.cache
def _layout(folder: Path, image_size: int | None) -> Layout:
    """Find the shape of a network's output by running it without numbers."""
    config, _ = _config(folder)
    model = _built(config, "meta").eval()
    sized = getattr(config, "backbone_config", None) or config  # SAM 2 has its size there
    own = getattr(sized, "image_size", None) or _USUAL_SIZE
    if isinstance(own, (list, tuple)):
        if len(set(own)) > 1:
            raise _unfit(config.model_type, f"its images are {' x '.join(map(str, own))}")
        own = own[0]
    first = _try(model, own)
    if image_size is None:
        try:
            return _try(model, min(_SIDE, IMAGE_SIZE // first.patch) * first.patch, first.patch)
        except InputError:  # it has a fixed number of positions
            return first
    if image_size == own:
        return first
    check_image_size(image_size, first.patch)
    return _try(model, image_size, first.patch)


@torch.inference_mode()
def _try(model: Any, size: int, patch: int = 0) -> Layout:
    """Run a network that is on no device on a square image; InputError if tokens are not squares of `patch` pixels."""
    kind, registers = model.config.model_type, getattr(model.config, "num_register_tokens", 0)
    try:
        shape = output(model, torch.empty(1, 3, size, size, device="meta")).shape
    except Exception as error:  # what a network does not like, it says in its own way
        raise _unfit(kind, f"with {size} pixels: {_first_line(error)}") from error
    if len(shape) == 4:
        special, prefix, (channels, *sides) = 0, 0, shape[1:]
    else:
        count, channels = shape[1:]
        # A CLS token, or none; DeiT has a second one. No two squares are so close.
        special = next((n for n in (1, 0, 2) if _is_square(count - registers - n)), 0)
        prefix = special + registers
        sides = [math.isqrt(max(0, count - prefix))] * 2
        if not _is_square(count - prefix):
            raise _unfit(kind, f"it gives {count} tokens, {registers} of them registers")
    if sides[0] != sides[1] or (patch and sides[0] != size // patch):
        raise _unfit(kind, f"{size} pixels give {sides[0]} x {sides[1]} tokens")
    return Layout(size, size // sides[0], channels, prefix, special > 0)


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def output(model: Any, x: Tensor) -> Tensor:
    """Run a network: (batch, 3, size, size) to its last tokens, (batch, tokens, channels), or feature map."""
    known, patch = _parameters(type(model).forward), getattr(model.config, "patch_size", 1)
    more: dict[str, Any] = {}
    if "interpolate_pos_encoding" in known:
        more["interpolate_pos_encoding"] = True
    if "noise" in known:  # by which ViT-MAE sorts tokens
        order = torch.arange((x.shape[-1] // patch) ** 2, device=x.device)
        more["noise"] = order.expand(len(x), -1)
    if "spatial_shapes" in known:  # SigLIP 2 takes patches, whose channels come last
        sides = [side // patch for side in x.shape[-2:]]
        more["spatial_shapes"] = torch.tensor([sides] * len(x), device="cpu")
        more["pixel_attention_mask"] = None
        patches = pixel_unshuffle(x, patch).view(len(x), 3, patch**2, -1)
        x = patches.permute(0, 3, 2, 1).flatten(2)
    found = model(x, **more)
    levels = getattr(found, "fpn_hidden_states", None)
    return levels[-1] if levels else found.last_hidden_state  # type: ignore[no-any-return]


@functools.cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def _forward_pass(model: Any, *, engine: str, layout: Layout) -> Forward:
    """Return the forward pass of an engine; if it is not `reference`, the weights of linear layers are moved."""
    side = layout.image_size // layout.patch
    if (kind := LAYERS[engine]) is not None:
        parts = [*model.modules()]
        linear: list[Any] = [p for p in parts if type(p) is nn.Linear and p.bias is not None]
        for layer in linear:
            layer.forward = kind(layer, side**2)
        for part in (part for part in parts if hasattr(part, "interpolate_pos_encoding")):
            part.interpolate_pos_encoding = _once(part.interpolate_pos_encoding)

    def forward(x: Tensor, tap: Callable[[Tensor], None]) -> Tensor:
        found = output(model, x)
        if found.ndim == 4:
            return found
        if layout.cls:
            tap(found[:, :1, None])
        tokens = found[:, layout.prefix :].transpose(1, 2)
        return tokens.reshape(*tokens.shape[:2], side, side)

    return forward


def _once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Remember results by the shapes of tensors: positions depend on nothing else, and images have one size."""
    known: dict[Any, Any] = {}

    def remembered(*given: Any) -> Any:
        key = tuple(getattr(one, "shape", one) for one in given)
        if key not in known:
            known[key] = function(*given)
        return known[key]

    return remembered
