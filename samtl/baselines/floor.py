"""The floor: statistics of an image's pixels, or the colour of each pixel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samtl._runtime import prefetch
from samtl.baselines.base import PixelBaseline, Predictions, blank_linear, fit_linear
from samtl.baselines.pixels import Pixel, Rows, read_image, read_mask
from samtl.datasets import Dataset
from samtl.heads.base import Features, Floats, Layout, OnEvent, check_ranges, scaled, standard
from samtl.images.bands import statistics_of
from samtl.images.codecs import statistics
from samtl.images.transforms import IGNORE, resize_longest_side

_AT_ONCE = 256  # images
_STRIP = 2**18  # pixels
_ROUNDING = 1 / 12  # variance of a colour that is rounded to a whole number


@dataclass(eq=False, repr=False)
class Baseline(PixelBaseline):
    """A model that is not better than this one has learnt nothing but colours.

    Classification: mean, deviation, minimum and maximum of each channel (`samtl.images.codecs.statistics`), classified
    by the head `logreg` and, as its companion `knn`, by the nearest neighbours of the standardised statistics. If
    several classes may apply it is the same; numbers are predicted by the head `ridge`, and by the neighbours' mean.

    Segmentation: `mean-colour` assigns each pixel to the class with the nearest mean colour, after whitening by the
    classes' common covariance; this is linear discriminant analysis without class frequencies. Its companion predicts
    the most frequent class everywhere; it is called `all-background` for class 0, else `all-` and the class.

    `knn` and the segmenters, which choose nothing, are trained on the validation part, too.

    Parameters
    ----------
    neighbours : int
        How many neighbours vote in `knn`.
    random_state : int
        For the choice of the penalty if there is no validation part.
    """

    neighbours: int = 5
    random_state: Any = 0

    tasks = ("classification", "multilabel", "regression", "segmentation")
    facts = ("task_", "n_images_")

    def _check(self) -> None:
        check_ranges(self, neighbours=1)

    def _fit(self, dataset: Dataset, train: Rows, held: Rows, seed: int, on_event: OnEvent) -> None:
        rows = np.append(train, held)
        self.n_images_ = len(rows)
        if self.task_ == "segmentation":
            self.curves_ = {}
            self._tensors = _colours(dataset, rows)
            return
        self._features = np.concatenate(list(_described(dataset, rows)))
        self._codes = dataset.truth[rows]
        self._head = fit_linear(dataset, train, held, self._features, seed, on_event)
        self._find_neighbours()
        self.curves_ = self._head.curves_

    def _predict(self, dataset: Dataset, rows: Rows, image_size: int) -> Iterator[Predictions]:
        if self.task_ != "segmentation":
            linear = type(self._head).__module__.rpartition(".")[2]
            for features in _described(dataset, rows):
                near = scaled(features, *self._scaling)
                yield {linear: self._head.outputs(features), "knn": self._neighbours(near)}
            return
        coef, intercept = _discriminant(**self._tensors)
        most = int(self._tensors["counts"].argmax())
        for row in rows:
            pixels = resize_longest_side(read_image(dataset, row), image_size)
            everywhere = np.full(pixels.shape[:2], most, dtype=np.uint8)
            companion = f"all-{dataset.classes[most] if most else 'background'}"
            yield {"mean-colour": _nearest(pixels, coef, intercept), companion: everywhere}

    def tensors(self) -> dict[str, NDArray[Any]]:
        if self.task_ == "segmentation":
            return dict(self._tensors)
        return {**self._head.tensors(), "features": self._features, "codes": self._codes}

    def layout(self) -> Layout:
        k, n, f = len(self.classes_), self.n_images_, len(statistics_of())
        if self.task_ == "segmentation":
            return {
                "counts": ("int64", (k,)),
                "means": ("float64", (k, 3)),
                "covariance": ("float64", (3, 3)),
            }
        dtype, shape = {"multilabel": ("int8", (n, k)), "regression": ("float64", (n,))}.get(
            self.task_, ("int64", (n,))
        )
        own = {"features": ("float32", (n, f)), "codes": (dtype, shape)}
        return {**blank_linear(self.task_, self.classes_, f).layout(), **own}

    def restore(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        if self.task_ == "segmentation":
            self._tensors = dict(tensors)
            return
        self._head = blank_linear(self.task_, self.classes_, len(statistics_of()))
        self._head.restore(tensors)
        self._features, self._codes = tensors["features"], tensors["codes"]
        self._find_neighbours()

    def _find_neighbours(self) -> None:
        from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor  # slow to import

        self._scaling = standard(self._features)
        votes = self.task_ == "classification"
        kind = KNeighborsClassifier if votes else KNeighborsRegressor
        knn = kind(min(self.neighbours, len(self._codes)))
        knn.fit(scaled(self._features, *self._scaling), self._codes)
        self._knn = knn.predict_proba if votes else knn.predict

    def _neighbours(self, features: Features) -> Floats:
        return np.reshape(self._knn(features), (len(features), -1)).astype(np.float64)


def _described(dataset: Dataset, rows: Rows) -> Iterator[Features]:
    """(n, 12) float32 statistics, some images at a time."""

    def load(part: Rows) -> Features:
        return np.stack([statistics(read_image(dataset, row)) for row in part])

    return prefetch(load, [rows[i : i + _AT_ONCE] for i in range(0, len(rows), _AT_ONCE)])


def _colours(dataset: Dataset, rows: Rows) -> dict[str, NDArray[Any]]:
    """Number of pixels and mean colour (0 without pixels) of each class, and the covariance within classes."""
    k = len(dataset.classes)
    # Sums of whole numbers, exact in float64 up to some 10^11 pixels.
    counts, sums, products = np.zeros(k, dtype=np.int64), np.zeros((k, 3)), np.zeros((3, 3))
    for row in rows:
        pixels = read_image(dataset, row)
        mask = read_mask(dataset, row, pixels.shape[:2])
        colours, codes = pixels[mask != IGNORE], mask[mask != IGNORE]
        counts += np.bincount(codes, minlength=k)
        for start in range(0, len(codes), _STRIP):
            part = colours[start : start + _STRIP].astype(np.float64)
            products += part.T @ part
            some = codes[start : start + _STRIP]
            sums += np.stack([np.bincount(some, band, minlength=k) for band in part.T], axis=1)
    means = sums / np.maximum(counts, 1)[:, None]
    within = products - means.T @ sums
    return {"counts": counts, "means": means, "covariance": within / max(counts.sum(), 1)}


def _discriminant(
    counts: NDArray[np.int64], means: Floats, covariance: Floats
) -> tuple[Floats, Floats]:
    """Coefficients (K, 3) and (K,) of scores: the class with the nearest mean in whitened colours has the highest."""
    variances, axes = np.linalg.eigh(covariance)
    coef = means @ (axes / np.maximum(variances, _ROUNDING)) @ axes.T
    intercept = -0.5 * (coef * means).sum(axis=1)
    intercept[counts == 0] = -np.inf
    return coef, intercept


def _nearest(pixels: Pixel, coef: Floats, intercept: Floats) -> NDArray[np.uint8]:
    """Classify each pixel, (h, w, 3) to (h, w), in strips that bound memory."""
    colours = pixels.reshape(-1, 3)
    found = np.empty(len(colours), dtype=np.uint8)
    for start in range(0, len(colours), _STRIP):
        scores = colours[start : start + _STRIP] @ coef.T + intercept
        found[start : start + _STRIP] = scores.argmax(axis=1)
    return found.reshape(pixels.shape[:2])
