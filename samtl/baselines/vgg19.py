"""VGG-19 (Simonyan and Zisserman 2014), pretrained on ImageNet and frozen, with logistic regression."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from samtl._runtime import bounded, probe
from samtl._runtime.probe import Work
from samtl.baselines.base import (
    REDUCTION,
    PixelBaseline,
    Predictions,
    blank_linear,
    fit_linear,
)
from samtl.baselines.networks import Normalised
from samtl.baselines.pixels import Rows, squares
from samtl.datasets import Dataset
from samtl.encoders.base import Weights
from samtl.encoders.compute import resolve_compute
from samtl.encoders.device import resolve_device
from samtl.encoders.torch_encoder import DTYPES
from samtl.encoders.weights import checkpoints as sources
from samtl.errors import InputError
from samtl.heads.base import Features, Layout, OnEvent, check_ranges
from samtl.images.transforms import resized_shape

BASE_URL = "https://download.pytorch.org/models/"
# torchvision's; the name ends in the first digits of the file's sha256, and no more of it is published.
OFFICIAL = sources.Official(BASE_URL + "vgg19-dcbb9e9d.pth", 574673361, "dcbb9e9d")

# Configuration E: widths of 3 x 3 convolutions; the size is halved after each block.
BLOCKS = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)
N_FEATURES = 2 * BLOCKS[-1][-1]


def convolutions() -> nn.Sequential:
    """VGG-19's 16 convolutions, named as in torchvision's `features`, with uninitialised weights."""
    layers: list[nn.Module] = []
    channels = 3
    with torch.device("meta"):
        for block in BLOCKS:
            for width in block:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers).to_empty(device="cpu")


@dataclass(eq=False, repr=False)
class Baseline(PixelBaseline):
    """Frozen VGG-19 (arXiv 1409.1556, configuration E) and the head `logreg`.

    Features are the mean and the maximum of the last block's 512 channels over the cells of the image, without its
    padding. VGG-19's three linear layers are not used.

    Parameters
    ----------
    checkpoint : str
        `official` (torchvision's, downloaded once, 575 MB), `random:SEED`, or a file with torchvision's names.
    image_size : int
        Longest side that images are resized to, a multiple of 32.
    device : str
        Where the network runs: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
    random_state : int
        For the choice of the penalty if there is no validation part.

    Attributes
    ----------
    weights_sha256 : str
        Over the convolutions' tensors.
    compute_dtype : str
        What the network computes in, when fitted and when predicting.
    """

    checkpoint: str = "official"
    image_size: int = 224
    device: str = "auto"
    random_state: Any = 0

    tasks = ("classification",)
    facts = ("task_", "weights", "untrained", "weights_sha256", "compute_dtype")
    caches = True

    weights_sha256: str = field(default="", init=False)
    compute_dtype: str = field(default="auto", init=False)
    _cache: dict[Any, Any] | None = field(default=None, init=False)
    _cached_seconds: float = field(default=0.0, init=False)
    _model: Normalised | None = field(default=None, init=False)  # loaded when it is needed

    def _check(self) -> None:
        check_ranges(self, image_size=REDUCTION)
        sources.check_source(self.checkpoint)
        resolve_device(self.device)

    def _fit(self, dataset: Dataset, train: Rows, held: Rows, seed: int, on_event: OnEvent) -> None:
        self.compute_dtype = "auto"
        loaded = self._load()
        self.compute_dtype = str(self._dtype).removeprefix("torch.")
        self.weights, self.untrained = loaded.description, loaded.untrained
        self.weights_sha256 = loaded.sha256
        features = np.concatenate(list(self._features(dataset, np.append(train, held))))
        self._head = fit_linear(dataset, train, held, features, seed, on_event)
        self.curves_ = self._head.curves_

    def _predict(self, dataset: Dataset, rows: Rows, image_size: int) -> Iterator[Predictions]:
        if self._model is None and self._load().sha256 != self.weights_sha256:
            raise InputError(
                f"this baseline was fitted with the weights {self.weights}, and --checkpoint {self.checkpoint} now "
                "holds others: restore the file that it was fitted with"
            )
        for features in self._features(dataset, rows):
            yield {"vgg19": self._head.predict_proba(features)}

    def _load(self) -> Weights:
        network = convolutions()
        remedy = "Pass the state dict of torchvision's vgg19"
        loaded = sources.load_weights(
            network, self.checkpoint, OFFICIAL, "vgg19", remedy=remedy, gain=2
        )
        self._device = resolve_device(self.device)
        self._model = Normalised(network).eval().requires_grad_(False).to(self._device)
        name = self.compute_dtype
        if name == "auto" and self._device.type == "cpu":
            name = probe.fastest_dtype("vgg19", self._some)
        self._dtype = DTYPES[resolve_compute(name, "fast", self._device)]
        return loaded

    def _some(self, dtype: str) -> Work:
        """Prepare some images in a dtype, to see how long they take."""
        images = torch.zeros(2, 3, 96, 96, dtype=torch.uint8)
        return lambda: self._run(images, DTYPES[dtype])

    def use_cache(self, cache: dict[Any, Any]) -> None:
        self._cache = cache

    def cached_seconds(self) -> float:
        seconds, self._cached_seconds = self._cached_seconds, 0.0
        return seconds

    def _features(self, dataset: Dataset, rows: Rows) -> Iterator[Features]:
        """Compute (n, 1024) float32 features, some images at a time, or find them in the cache."""
        if self._cache is None:
            yield from self._computed(dataset, rows)
            return
        about = (self.weights_sha256, self.image_size, str(self._dtype))
        known: dict[int, tuple[Features, float]] = self._cache.setdefault(about, {})
        found = [row in known for row in rows.tolist()]
        self._cached_seconds += sum(known[row][1] for row in rows[found].tolist())
        missing, began = rows[np.logical_not(found)], time.perf_counter()
        features = [row for some in self._computed(dataset, missing) for row in some]
        each = (time.perf_counter() - began) / max(1, len(features))
        known.update({row: (f, each) for row, f in zip(missing.tolist(), features, strict=True)})
        if len(rows):
            yield np.stack([known[row][0] for row in rows.tolist()])

    def _computed(self, dataset: Dataset, rows: Rows) -> Iterator[Features]:
        for inputs, shapes in squares(dataset, rows, self.image_size):
            pooled = []
            for cells, shape in zip(self._run(inputs, self._dtype), shapes, strict=True):
                height, width = resized_shape(*shape, self.image_size)
                seen = cells[:, : -(-height // REDUCTION), : -(-width // REDUCTION)]
                pooled.append(torch.cat([seen.mean((1, 2)), seen.amax((1, 2))]))
            yield torch.stack(pooled).numpy()

    @torch.inference_mode()
    def _run(self, inputs: Tensor, dtype: torch.dtype) -> Tensor:
        """Compute the last block's channels, (n, 512, side / 32, side / 32) float32."""
        assert self._model is not None  # `_load` was called before
        remedy = "use a smaller --image-size, or another device"
        mixed = torch.autocast(self._device.type, dtype, dtype is not torch.float32)
        with bounded("VGG-19", remedy), mixed:
            out: Tensor = self._model(inputs.to(self._device))
        return out.float().cpu()

    def tensors(self) -> dict[str, NDArray[Any]]:
        # The frozen weights are identified by `weights_sha256`, not saved.
        return self._head.tensors()

    def layout(self) -> Layout:
        return blank_linear(self.task_, self.classes_, N_FEATURES).layout()

    def restore(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self._head = blank_linear(self.task_, self.classes_, N_FEATURES)
        self._head.restore(tensors)
        self._model = None
