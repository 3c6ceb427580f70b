"""Run a frozen torch network as an encoder: scaling, batches, devices, pooling, and what happens without memory."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from samtl._runtime import bounded, out_of_memory
from samtl.encoders import pooling
from samtl.encoders.base import TIERS, EncoderSpec, Weights
from samtl.errors import ResourceError
from samtl.images.transforms import Pixels

_Item = TypeVar("_Item")
_Part = TypeVar("_Part")

Images = Sequence[Pixels]
Output = dict[str, NDArray[Any]]

# Maps (batch, bands, size, size) to the dense output; calls its second argument with the output (batch, h, w, width) of
# each block whose mean belongs to `pooled`.
Forward = Callable[[Tensor, Callable[[Tensor], None]], Tensor]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
INT8 = "int8+"  # begins a compute dtype in which linear layers multiply integers; the rest is in the dtype after it
MOST = 32  # images in a batch that is chosen for a GPU
_SMALLER = "use --dtype bfloat16, a smaller --image-size, a smaller encoder or --device cpu"


def encoder_dtype(compute_dtype: str) -> torch.dtype:
    """Return the dtype of all that is not in 8-bit integers."""
    return DTYPES[compute_dtype.removeprefix(INT8)]


class TorchEncoder:
    """The base of encoders that are torch networks; see `samtl.encoders.base.Encoder` for its methods.

    The spec's `scaling` holds `mean` and `std` of each band; `model` is in float32 on the CPU; `make_forward` returns
    its forward pass once it is on its device, where it computes in `compute_dtype`.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        weights: Weights,
        model: nn.Module,
        make_forward: Callable[[nn.Module], Forward],
        device: torch.device,
        compute_dtype: str,
    ) -> None:
        self.spec, self.weights, self.device = spec, weights, device
        self.compute_dtype, self.dtype = compute_dtype, encoder_dtype(compute_dtype)
        with bounded(f"{spec.name} on {device}", _SMALLER):
            self._network = make_forward(model.to(device, self.dtype))
        self._mean = torch.tensor(spec.scaling["mean"], device=device).view(-1, 1, 1)
        self._std = torch.tensor(spec.scaling["std"], device=device).view(-1, 1, 1)
        self._limit = sys.maxsize  # images that have not yet been found to be too many
        self._lock = threading.Lock()

    def fingerprint(self) -> dict[str, Any]:
        return self.spec.fingerprint(self.weights.sha256, self.compute_dtype)

    @torch.inference_mode()
    def encode(self, pixels: Images, tiers: Sequence[str] = TIERS) -> Output:
        """Encode a batch of images; may be called by several threads."""
        limit = self._limit
        if len(pixels) > limit:
            starts = range(0, len(pixels), limit)
            return _joined([self.encode(pixels[i : i + limit], tiers) for i in starts])
        try:
            return self._attempt(pixels, tiers)
        except RuntimeError as error:
            if not out_of_memory(error):
                if isinstance(error, torch.AcceleratorError):
                    raise ResourceError(f"the device {self.device} failed: {error}") from error
                raise
        # Outside the except block, so that the tensors of the attempt are gone.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(pixels) == 1:
            what = f"one image through {self.spec.name}"
            raise ResourceError(f"{what} does not fit in the memory of {self.device}; {_SMALLER}")
        self._limit = min(self._limit, len(pixels) // 2)
        return self.encode(pixels, tiers)

    def best_batch(self, most: int) -> int:
        """Return a batch size: on a CPU an image for each core, on a GPU what half of the free memory holds."""
        fits = 4 if self.device.type == "mps" else min(8, os.cpu_count() or 1)
        if self.device.type == "cuda":
            with bounded(f"one image through {self.spec.name} on {self.device}", _SMALLER):
                each = self._bytes_per_image()
            fits = torch.cuda.mem_get_info(self.device)[0] // 2 // each
        return max(1, min(most, fits, MOST))

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        """Run the network on scaled and padded images, (batch, bands, size, size) to (batch, *spec.shape("dense"))."""
        if self.device.type == "cpu" and len(x) > 1:
            return torch.cat(_one_per_core(self.forward, torch.split(x, 1)))
        return self._network(x, lambda tokens: None)

    def _attempt(self, pixels: Images, tiers: Sequence[str]) -> Output:
        if self.device.type == "cpu":
            found = _one_per_core(lambda image: self._computed([image], tiers), pixels)
            return _joined([{k: t.numpy() for k, t in part.items()} for part in found])
        with self._lock:  # one batch's activations at a time
            kept = self._computed(pixels, tiers)
        return {tier: tensor.cpu().numpy() for tier, tensor in kept.items()}

    def _computed(self, pixels: Images, tiers: Sequence[str]) -> dict[str, Tensor]:
        """Compute tiers on the device."""
        patch = self.spec.patch
        tokens = [(-(-image.shape[0] // patch), -(-image.shape[1] // patch)) for image in pixels]
        mask = pooling.valid_mask(tokens, self.spec.grid, self.device)
        means: list[Tensor] = []

        def tap(output: Tensor) -> None:
            means.append(pooling.masked_mean(output.permute(0, 3, 1, 2), mask))

        dense = self._network(self._scaled(pixels), tap).to(torch.float16).contiguous()
        made: dict[str, Callable[[], Tensor]] = {
            "pooled": lambda: pooling.pooled(dense, means, mask),
            "grid": lambda: pooling.grid(dense, mask, self.spec.cells),
            "dense": lambda: dense,
        }
        return {tier: made[tier]() for tier in made if tier in tiers}

    def _scaled(self, pixels: Images) -> Tensor:
        """Scale in float32, then pad with zeros: (batch, bands, size, size) in the compute dtype."""
        size, pinned = self.spec.image_size, self.device.type == "cuda"
        shape = len(pixels), size, size, len(self.spec.bands)
        dtype = torch.uint8 if pixels[0].dtype == np.uint8 else torch.float32
        raw = torch.zeros(shape, dtype=dtype, pin_memory=pinned)
        for square, image in zip(raw.numpy(), pixels, strict=True):
            square[: image.shape[0], : image.shape[1]] = image
        on_device = raw.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        if "clip" in self.spec.scaling:
            on_device = on_device.clip(*self.spec.scaling["clip"])
        batch = ((on_device - self._mean) / self._std).to(self.dtype)
        for square, image in zip(batch, pixels, strict=True):
            square[:, image.shape[0] :] = 0
            square[:, :, image.shape[1] :] = 0
        return batch

    def _bytes_per_image(self) -> int:
        """Measure what one image takes on a CUDA device."""
        size = self.spec.image_size
        x = torch.zeros(1, len(self.spec.bands), size, size, dtype=self.dtype, device=self.device)
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        self.forward(x)
        return max(1, torch.cuda.max_memory_allocated(self.device) - before)


def _joined(parts: Sequence[Output]) -> Output:
    return {tier: np.concatenate([part[tier] for part in parts]) for tier in parts[0]}


def _one_per_core(work: Callable[[_Item], _Part], items: Sequence[_Item]) -> list[_Part]:
    """Map over images, each on its own core; cores that share an image wait for each other at every step."""
    if len(items) == 1:
        return [work(items[0])]

    def alone(item: _Item) -> _Part:
        with torch.inference_mode():  # like the number of threads, a setting of each thread
            torch.set_num_threads(1)
            return work(item)

    with ThreadPoolExecutor(min(len(items), torch.get_num_threads())) as pool:
        return list(pool.map(alone, items))
