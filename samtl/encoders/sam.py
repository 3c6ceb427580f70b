"""SAM's image encoder (Kirillov et al. 2023) at its three published sizes, and a tiny one of the same architecture."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from samtl._runtime import out_of_memory
from samtl.encoders import pooling as _tiers
from samtl.encoders.batching import SIZES, knee, rate_of
from samtl.encoders.device import resolve_device, resolve_dtype
from samtl.encoders.engines import check_engine
from samtl.encoders.engines import engine as engine_of
from samtl.encoders.modeling import modeling
from samtl.encoders.sources import Official, Weights, load_weights
from samtl.encoders.turns import Turns
from samtl.errors import ResourceError
from samtl.images.transforms import (
    PATCH,
    PIXEL_MEAN,
    PIXEL_STD,
    Preprocessing,
    check_image_size,
    valid_tokens,
)

_Item = TypeVar("_Item")
_Part = TypeVar("_Part")

NAMES = {
    "sam_vit_b": "SAM ViT-B: 768 wide, 12 deep, 90 M parameters, checkpoint of 375 MB",
    "sam_vit_l": "SAM ViT-L: 1024 wide, 24 deep, 308 M parameters, checkpoint of 1.2 GB",
    "sam_vit_h": "SAM ViT-H: 1280 wide, 32 deep, 637 M parameters, checkpoint of 2.6 GB",
    "tiny": "SAM's architecture, 192 wide and 6 deep, with untrained seeded weights: no download",
}


@dataclass(frozen=True)
class Variant:
    """Numbers that make an architecture; `taps` are the blocks with global attention."""

    width: int
    depth: int
    heads: int
    taps: tuple[int, ...]
    official: Official | None
    default_checkpoint: str = "official"


WINDOW = 14  # tokens along the side of a window, in the blocks without global attention
IMAGE_SIZE = 1024  # side of the input that the published weights were trained for

VARIANTS = {
    "sam_vit_b": Variant(
        768, 12, 12, (2, 5, 8, 11),
        Official(
            "sam_vit_b_01ec64.pth", 375042383,
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
    ),
    "sam_vit_l": Variant(
        1024, 24, 16, (5, 11, 17, 23),
        Official(
            "sam_vit_l_0b3195.pth", 1249524607,
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
    ),
    "sam_vit_h": Variant(
        1280, 32, 16, (7, 15, 23, 31),
        Official(
            "sam_vit_h_4b8939.pth", 2564550879,
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
    ),
    "tiny": Variant(192, 6, 3, (2, 5), None, default_checkpoint="random:0"),
}  # fmt: skip


def build(name: str, image_size: int = IMAGE_SIZE) -> nn.Module:
    """Build the plain `ImageEncoderViT` of a name, as `segment_anything.build_sam` does; weights are not set."""
    variant = VARIANTS[name]
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
        out_chans=_tiers.CHANNELS,
    )


@torch.no_grad()
def resampled(model: nn.Module, target: nn.Module) -> nn.Module:
    """Give an encoder of another image size the weights of one, its positions resampled.

    Absolute positions are a map over the token grid: bicubic, antialiased where there are fewer tokens, as timm does.
    Relative positions of the blocks with global attention are a table over distances: linear, as `segment_anything`
    itself does where a table does not fit. Windows are 14 x 14 tokens at every size.
    """
    tensors = model.state_dict()
    for name, wanted in target.state_dict().items():
        have = tensors[name]
        if have.shape == wanted.shape:
            continue
        if name == "pos_embed":
            grid = have.permute(0, 3, 1, 2)
            size = wanted.shape[1:3]
            grid = interpolate(grid, size, mode="bicubic", antialias=True, align_corners=False)
            tensors[name] = grid.permute(0, 2, 3, 1).contiguous()
        else:
            table = interpolate(have.T[None], wanted.shape[0], mode="linear")
            tensors[name] = table[0].T.contiguous()
    target.load_state_dict(tensors)
    return target


def load(
    name: str, checkpoint: str | None = None, image_size: int = IMAGE_SIZE
) -> tuple[nn.Module, Weights]:
    """Give the plain `ImageEncoderViT` with its weights, in float32 on the CPU, ready to be used and not to be trained.

    Parameters
    ----------
    name, checkpoint, image_size
        See `Encoder`.
    """
    variant = VARIANTS[name]
    model = build(name)
    source = checkpoint or variant.default_checkpoint
    weights = load_weights(model, source, variant.official, name)
    if image_size != IMAGE_SIZE:
        model = resampled(model, build(name, image_size))
    return model.eval().requires_grad_(False), weights


class Encoder:
    """A frozen encoder on a device, from resized pixels to the arrays that a store keeps.

    Parameters
    ----------
    name : str
        One of `NAMES`.
    checkpoint : str, optional
        `official`, `random:SEED` or a file; by default what the variant says.
    device : str
        `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
    dtype : str
        `auto`, `float32`, `bfloat16` or `float16`: what the encoder computes in.
    image_size : int
        Side of the input in pixels, a multiple of 16. Where it is not the 1024 that the weights were trained for, the
        learnt positions are resampled; see `resampled`.
    engine : {"fast", "compiled", "reference"}
        `reference` is `segment_anything`'s own forward pass, `fast` the same sums in less time, `compiled` those
        translated by torch.compile, for GPUs.

    Attributes
    ----------
    weights : Weights
        What they are, whether they are untrained, and the digest over the tensors.
    columns : tuple of str
        Names of the columns of `pooled`.
    preprocessing : Preprocessing
        What `encode` expects to have been done to the pixels, and does itself.
    """

    def __init__(
        self,
        name: str,
        checkpoint: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        image_size: int = IMAGE_SIZE,
        engine: str = "fast",
    ) -> None:
        check_image_size(image_size)
        check_engine(engine)
        variant = VARIANTS[name]
        self.name = name
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        self.preprocessing = Preprocessing(image_size)
        self.columns = _tiers.pooled_columns(variant.taps, variant.width)
        model, self.weights = load(name, checkpoint, image_size)
        self._note = ""
        if engine == "compiled" and self.device.type == "cpu":
            engine, self._note = "fast", "torch.compile gains nothing on a CPU: the engine is fast"
        try:
            self._engine = engine_of(engine, model.to(self.device, self.dtype), variant.taps)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise ResourceError(f"{name} does not fit in the memory of {self.device}") from error
        self._pinned = self.device.type == "cuda"
        self._most = sys.maxsize  # images at a time, as far as memory has been found to reach
        self._threads = threading.local()
        self._turns = Turns()
        self._mean = torch.tensor(PIXEL_MEAN, device=self.device).view(3, 1, 1)
        self._std = torch.tensor(PIXEL_STD, device=self.device).view(3, 1, 1)
        if self._pinned:
            torch.cuda.synchronize(self.device)  # threads that encode have streams of their own

    @property
    def compute_dtype(self) -> str:
        """The compute dtype's name, such as "bfloat16"."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def note(self) -> str:
        """What a user should know of the engine by now, in a line, or ""."""
        return self._note or self._engine.note

    @torch.inference_mode()
    def encode(
        self, pixels: Sequence[NDArray[np.uint8]], tiers: Sequence[str] = _tiers.TIERS
    ) -> dict[str, NDArray[np.float16] | NDArray[np.float32]]:
        """Encode a batch of images.

        Parameters
        ----------
        pixels : sequence of ndarray of uint8, (h, w, 3)
            RGB, the longest side resized to `preprocessing.image_size`; sizes may differ between images.
        tiers : sequence of {"pooled", "grid", "dense"}

        Returns
        -------
        dict
            For the tiers asked for: `pooled` float32 (batch, columns), `grid` float16 (batch, 256, cells,
            cells), `dense` float16 (batch, 256, side, side), where side = image_size / 16 and cells = min(16,
            side).

        Raises
        ------
        ResourceError
            Where one image alone does not fit in the device's memory. A larger batch is halved instead, and so are
            those that follow.
        """
        if len(pixels) > self._most:
            return self._in_parts(pixels, tiers)
        with self._turns.together():
            done = self._attempt(pixels, tiers)
        if done is None:  # there may be room when no other thread holds any
            with self._turns.alone():
                done = self._attempt(pixels, tiers)
                if done is None:
                    if len(pixels) == 1:
                        raise ResourceError(
                            f"one image through {self.name} does not fit in the memory of {self.device}; "
                            "use --dtype bfloat16, a smaller --image-size, a smaller encoder or --device cpu"
                        )
                    self._most = min(self._most, len(pixels) // 2)
        return self._in_parts(pixels, tiers) if done is None else done

    def _attempt(
        self, pixels: Sequence[NDArray[np.uint8]], tiers: Sequence[str]
    ) -> dict[str, NDArray[np.float16] | NDArray[np.float32]] | None:
        """Encode, or give None where memory does not reach."""
        try:
            if self.device.type == "cpu" and len(pixels) > 1:
                return self._encode_side_by_side(pixels, tiers)
            with self._stream():
                return self._encode(pixels, tiers)
        except RuntimeError as error:
            if not out_of_memory(error):
                if isinstance(error, torch.AcceleratorError):
                    raise ResourceError(f"the device {self.device} gave out: {error}") from error
                raise
        if self._pinned:
            torch.cuda.empty_cache()  # after the except block, so that the attempt's tensors are gone
        return None

    def best_batch(self, most: int) -> int:
        """Find how many images at a time this device is fastest with; takes a few seconds on a GPU.

        Parameters
        ----------
        most : int
            That there are.
        """
        size = self.preprocessing.image_size

        def rate(images: int) -> float:
            x = torch.randn(images, 3, size, size, dtype=self.dtype, device=self.device)
            found = rate_of(lambda: self.forward(x), images, self.device)
            if self._pinned and images > 1 and _used(self.device) > 0.5:
                raise torch.OutOfMemoryError("two batches are in flight at a time")
            return found

        return knee(rate, [size for size in SIZES if size <= max(1, most)]) if most else 1

    def _in_parts(
        self, pixels: Sequence[NDArray[np.uint8]], tiers: Sequence[str]
    ) -> dict[str, NDArray[np.float16] | NDArray[np.float32]]:
        most = self._most
        starts = range(0, len(pixels), most)
        parts = [self.encode(pixels[start : start + most], tiers) for start in starts]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def _encode_side_by_side(
        self, pixels: Sequence[NDArray[np.uint8]], tiers: Sequence[str]
    ) -> dict[str, NDArray[np.float16] | NDArray[np.float32]]:
        parts = _on_a_core_each(lambda image: self._encode([image], tiers), pixels)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _encode(
        self, pixels: Sequence[NDArray[np.uint8]], tiers: Sequence[str]
    ) -> dict[str, NDArray[np.float16] | NDArray[np.float32]]:
        size = self.preprocessing.image_size
        tokens = [valid_tokens(image.shape[0], image.shape[1], size) for image in pixels]
        mask = _tiers.validity(tokens, size // PATCH, self.device)
        output, block_means = self._forward(self._normalised(pixels), mask)
        dense = output.to(torch.float16)
        kept: dict[str, Tensor] = {}
        if "pooled" in tiers:
            kept["pooled"] = _tiers.pooled(dense, block_means, mask)
        if "grid" in tiers:
            kept["grid"] = _tiers.grid(dense, mask)
        if "dense" in tiers:
            kept["dense"] = dense
        return {name: self._fetched(tensor) for name, tensor in kept.items()}

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        """Run the network alone.

        Parameters
        ----------
        x : Tensor, (batch, 3, size, size)
            Normalised and padded, in the compute dtype, on the encoder's device.

        Returns
        -------
        Tensor, (batch, 256, side, side)
            In the compute dtype.
        """
        if self.device.type == "cpu" and len(x) > 1:
            return torch.cat(_on_a_core_each(self.forward, torch.split(x, 1)))
        return self._engine(x, lambda tokens: None)

    def _normalised(self, pixels: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Normalise in float32, then pad with zeros: (batch, 3, size, size) in the compute dtype.

        Pixels travel to the device as the bytes that they are.
        """
        size = self.preprocessing.image_size
        raw = torch.zeros(len(pixels), size, size, 3, dtype=torch.uint8, pin_memory=self._pinned)
        for square, image in zip(raw.numpy(), pixels, strict=True):
            square[: image.shape[0], : image.shape[1]] = image
        there = raw.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        batch = ((there - self._mean) / self._std).to(self.dtype)
        for square, image in zip(batch, pixels, strict=True):
            square[:, image.shape[0] :] = 0
            square[:, :, image.shape[1] :] = 0
        return batch

    def _fetched(self, tensor: Tensor) -> NDArray[np.float16] | NDArray[np.float32]:
        """Copy a result to the host's memory; on a GPU only this thread waits for it."""
        if not self._pinned:
            return tensor.contiguous().cpu().numpy()
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        torch.cuda.current_stream(self.device).synchronize()
        return host.numpy()

    def _stream(self) -> AbstractContextManager[Any]:
        """Queue this thread's work on a GPU beside that of other threads, not after it."""
        if not self._pinned:
            return nullcontext()
        if not hasattr(self._threads, "stream"):
            self._threads.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(self._threads.stream)

    def _forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Run the network, keeping the means of the tapped blocks on the way.

        Returns the output (batch, 256, side, side) and one (batch, width) float32 mean for each tap.
        """
        means: list[Tensor] = []

        def tap(tokens: Tensor) -> None:
            means.append(_tiers.masked_mean(tokens.permute(0, 3, 1, 2), mask))

        return self._engine(x, tap), means


def _used(device: torch.device) -> float:
    """Tell which part of a GPU's memory torch has had in use at most."""
    _, total = torch.cuda.mem_get_info(device)
    return torch.cuda.max_memory_allocated(device) / total


def _on_a_core_each(work: Callable[[_Item], _Part], items: Sequence[_Item]) -> list[_Part]:
    """Map over images, each on a core of its own: cores that share one image wait for each other at every step."""

    def alone(item: _Item) -> _Part:
        with torch.inference_mode():  # a thread's own setting, as the next one is
            torch.set_num_threads(1)
            return work(item)

    with ThreadPoolExecutor(min(len(items), torch.get_num_threads())) as pool:
        return list(pool.map(alone, items))


def operations(name: str, image_size: int = IMAGE_SIZE) -> int:
    """Count the floating-point operations of the products for one image, a multiplication and an addition each.

    Of windows at the edge, queries on padding are not counted, keys on padding are: every query sees 14 x 14 of them.
    """
    variant, side = VARIANTS[name], image_size // PATCH
    tokens, width = side * side, variant.width
    everywhere = len(variant.taps)
    linear = variant.depth * 12 * width**2 + 3 * PATCH**2 * width
    neck = width * _tiers.CHANNELS + 9 * _tiers.CHANNELS**2
    # Scores and weighted values for each key, and the two relative positions for each row and column of keys.
    attention = everywhere * (2 * tokens + 2 * side) + (variant.depth - everywhere) * (
        2 * WINDOW**2 + 2 * WINDOW
    )
    return 2 * tokens * (linear + neck + attention * width)


def columns(name: str) -> tuple[str, ...]:
    """Name the columns of `pooled` that an encoder gives, without loading it."""
    variant = VARIANTS[name]
    return _tiers.pooled_columns(variant.taps, variant.width)


def default_checkpoint(name: str) -> str:
    """Say which weights an encoder has where none are asked for."""
    return VARIANTS[name].default_checkpoint
