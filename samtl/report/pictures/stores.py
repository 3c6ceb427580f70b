"""Pictures of stores: a map of the pooled features, nearest neighbours, and tokens as colours.

The samples are the same for every store, so that encoders can be compared side by side.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from samtl.errors import SamtlError
from samtl.images.transforms import IGNORE, resized_shape
from samtl.report.figures.plane import plane
from samtl.report.page import Part, caption
from samtl.report.pictures.album import SIDE, Album
from samtl.report.pictures.images import drawn
from samtl.report.pictures.sheet import HIT, MISSED, Picture, Pixels, Row
from samtl.store.reader import Store

MOST = 5000  # samples of a map
_VALUES = 2**24  # of `pooled` that are read at once
_MASKS = 1000  # samples of a map if masks must be read
_TOKENS = 2**14  # that components are fitted to
_COLOURED, _ASKED, _NEAREST, _ACROSS = 12, 10, 5, 6
_PLACES = ("sample", "nearest", "second", "third", "fourth", "fifth")
_STRETCH = (2, 98)  # percentiles that become the darkest and the lightest value of a colour
_AT_ONCE = 512  # rows of a matrix of cosines
_FEWEST = 16  # samples that UMAP needs, as it looks at 15 neighbours

Floats = NDArray[np.float32]


class Known(NamedTuple):
    """Samples: their ids, how their labels are written, numbers to colour them by, and what these are."""

    ids: Sequence[str]
    names: Sequence[str]
    values: NDArray[np.float64]
    unit: str


class Near(NamedTuple):
    """The nearest others of each sample, the nearest first, (n, k): places and cosines, -inf if there is none."""

    places: NDArray[np.int64]
    cosines: Floats

    def agreement(self, values: NDArray[Any]) -> float:
        """Return the percentage of samples with a neighbour that have the value of their nearest one."""
        same = (values[self.places[:, 0]] == values)[np.isfinite(self.cosines[:, 0])]
        return 100 * float(same.mean()) if len(same) else np.nan


def embeddings(stores: Mapping[str, Store], album: Album) -> tuple[list[Part], list[str]]:
    """Draw what stores, by their names, hold, and say what could not be drawn."""
    tokens = {n: "dense" if "dense" in s.tiers else "grid" for n, s in stores.items()}
    parts, notes = [], []
    for draw, arrays in ((_maps, dict.fromkeys(stores, "pooled")), (_tokens, tokens)):
        held = {name: array for name, array in arrays.items() if array in stores[name].tiers}
        try:
            parts += draw({name: stores[name] for name in held}, held, album)
        except (SamtlError, OSError) as error:
            notes.append(caption("unreadable_store", reason=str(error)))
    return parts, notes


def _maps(stores: Mapping[str, Store], arrays: Mapping[str, str], album: Album) -> list[Part]:
    """Draw the map and the nearest neighbours, and count how many of these are of the same class."""
    ids = _shared(stores, arrays)
    if len(ids) < 3:
        return []
    store = next(iter(stores.values()))
    most = min(MOST, *(_VALUES // one.shape("pooled")[1] for one in stores.values()))
    known = _known(store, ids[: _MASKS if store.task == "segmentation" else most])
    classes, note = store.task == "classification", _untrained(stores)
    panels, records, shares, sheets = {}, [], [], []
    facts = {"shown": len(known.ids), "count": len(ids), "store": store, "several": len(stores) > 1}
    for number, (name, one) in enumerate(stores.items(), 1):
        rows, alike = _rows(one, known.ids), _alike(one, known.ids)
        x = _standardised(one.read("pooled", rows))
        near, (points, axes) = _nearest(x, alike, _NEAREST), _placed(x)
        panels[name] = (points, axes)
        labels: Sequence[Any] = known.names if classes else known.values.tolist()
        for i, (label, sample, place) in enumerate(zip(labels, known.ids, points, strict=True)):
            record = {"store": name, "sample_id": sample, known.unit: label}
            nearest = known.ids[near.places[i, 0]] if np.isfinite(near.cosines[i, 0]) else ""
            record |= {"x": float(place[0]), "y": float(place[1]), "nearest": nearest}
            records.append(record)
        agreed = near.agreement(known.values)
        share = {"store": name, "samples": len(rows), "same class, %": agreed}
        if "image_stats" in one.arrays and one.valid("image_stats")[rows].all():
            floor = _nearest(_standardised(one.read("image_stats", rows)), alike, 1)
            share["by image statistics, %"] = floor.agreement(known.values)
        shares.append(share)
        if album.dataset is not None:
            sheets += _neighbours(
                f"neighbours-{number}", name, {name: one}, near, known, album, facts
            )
    facts["umap"] = "UMAP" in axes[0]
    figure = plane(panels, known.names if classes else None, known.values, known.unit, note)
    text = caption("map", **facts, unit=known.unit)
    parts = [Part("map", "Map of the pooled features", text, records, note, figure)]
    if classes:
        text = caption("same_class", **facts)
        parts.append(Part("same-class", "Nearest neighbours of the same class", text, shares, note))
    return parts + sheets


def _neighbours(
    file: str,
    name: str,
    store: Mapping[str, Store],
    near: Near,
    known: Known,
    album: Album,
    facts: Mapping[str, Any],
) -> list[Part]:
    """Show the nearest neighbours of some samples."""
    rows = []
    legend = {"same class": HIT, "another class": MISSED} if known.unit == "class" else {}
    for asked in _varied(known, _ASKED if legend else _ASKED // 2):
        sample, mine = known.ids[asked], known.names[asked]
        pictures = [Picture(album.photograph(sample, SIDE // 2), mine)]
        each = zip(near.places[asked].tolist(), near.cosines[asked].tolist(), strict=True)
        for rank, (i, cosine) in enumerate(each):
            if not np.isfinite(cosine):
                break
            other, its = known.ids[i], known.names[i]
            record = {"sample_id": sample, known.unit: mine, "place": _PLACES[rank + 1]}
            record |= {"neighbour": other, f"its {known.unit}": its, "cosine": cosine}
            frame = legend and (HIT if its == mine else MISSED)
            pixels = album.photograph(other, SIDE // 2)
            pictures.append(Picture(pixels, f"{its}\n{cosine:.2f}", record, frame or ""))
        rows.append(Row("", pictures))
    look: dict[str, Any] = {"columns": _PLACES, "legend": legend, "note": _untrained(store)}
    return drawn(file, f"Nearest neighbours by {name}", rows, _ACROSS, facts, **look)


def _tokens(stores: Mapping[str, Store], arrays: Mapping[str, str], album: Album) -> list[Part]:
    """Show images beside their tokens."""
    ids = _shared(stores, arrays)
    if not ids:
        return []
    first = next(iter(stores.values()))
    masks, classes = first.task == "segmentation", len(first.classes)
    known = _known(first, ids[: _COLOURED if masks else None])
    each = _COLOURED % classes if first.task == "classification" and classes < _COLOURED else 0
    chosen = _varied(known, _COLOURED - each)
    found = {n: _coloured(s, arrays[n], [known.ids[i] for i in chosen]) for n, s in stores.items()}
    photographs = album.dataset is not None
    of = [name.replace(" ", "\n") for name in stores] if len(stores) > 1 else ["tokens"]
    titles = ["image"] * photographs + of
    pictures = []
    for place, i in enumerate(chosen):
        sample, label = known.ids[i], known.names[i]
        if photographs:
            pictures.append(Picture(album.photograph(sample, SIDE // 2), label))
        for name, (pixels, _) in found.items():
            record = {"store": name, "array": arrays[name], "sample_id": sample, known.unit: label}
            pictures.append(Picture(pixels[place], "" if photographs else label, record))
    across = max(1, _ACROSS // len(titles)) * len(titles)
    rows = [Row("", pictures[i : i + across]) for i in range(0, len(pictures), across)]
    facts = {"arrays": arrays, "found": found, "several": len(stores) > 1}
    look: dict[str, Any] = {"columns": titles * (across // len(titles)), "note": _untrained(stores)}
    return drawn("tokens", "Tokens as colours", rows, across, facts, **look)


def _shared(stores: Mapping[str, Store], arrays: Mapping[str, str]) -> list[str]:
    """Return in random order the ids of the samples that every store has in its array."""
    found = [{s.sample_ids[i] for i in s.usable(arrays[n]).tolist()} for n, s in stores.items()]
    ids = sorted(set.intersection(*found)) if found else []
    return [ids[i] for i in np.random.default_rng(0).permutation(len(ids)).tolist()]


def _rows(store: Store, ids: Iterable[str]) -> NDArray[np.int64]:
    return np.array([store.row_of[name] for name in ids])


def _known(store: Store, ids: Sequence[str]) -> Known:
    """Read labels; the number of several is how many there are, that of a mask the share of its foreground."""
    rows, classes = _rows(store, ids), store.classes
    if store.task == "segmentation":
        what = classes[1] if len(classes) == 2 else "foreground"
        values = np.array([100 * _foreground(store.row("mask", row)) for row in rows.tolist()])
        return Known(ids, [f"{what} {value:.0f} %" for value in values], values, f"{what}, %")
    labels = store.labels[rows]
    if store.task == "multilabel":
        named = [", ".join(classes[k] for k in np.flatnonzero(one > 0)) for one in labels]
        return Known(ids, named, (labels > 0).sum(1).astype(float), "classes")
    if store.task == "regression":
        return Known(ids, [f"{value:.3g}" for value in labels], labels, classes[0])
    return Known(ids, [classes[i] for i in labels], labels.astype(float), "class")


def _foreground(mask: NDArray[np.uint8]) -> float:
    counted = mask[mask != IGNORE]
    return float((counted > 0).mean()) if len(counted) else 0.0


def _varied(known: Known, most: int) -> list[int]:
    """Choose the first samples such that labels have as many each, and sort them by label."""
    seen: Counter[str] = Counter()
    turns = []
    for place, name in enumerate(known.names):
        turns.append((seen[name], place))
        seen[name] += 1
    return sorted((place for _, place in sorted(turns)[:most]), key=known.values.__getitem__)


def _alike(store: Store, ids: Sequence[str]) -> list[NDArray[np.int64]]:
    """Return codes, (n,) each, of samples that are near each other whatever the encoder is: copies, and scenes."""
    rows = _rows(store, ids).tolist()
    kinds = [[store.image_sha256(row) or f"{row}" for row in rows]]
    if len(set(store.groups)) > 1:
        kinds.append([store.groups[row] for row in rows])
    return [np.unique(kind, return_inverse=True)[1] for kind in kinds]


def _standardised(values: NDArray[Any]) -> Floats:
    """Bring the columns of (n, F) to mean 0 and deviation 1; what is not finite is taken for 0."""
    x: Floats = values.astype(np.float32)
    x[~np.isfinite(x)] = 0
    x -= x.mean(axis=0)
    x /= np.maximum(x.std(axis=0), 1e-6)
    return x


def _components(x: Floats, count: int) -> tuple[Floats, list[float]]:
    """Return the first principal components, (n, count), fitted to some rows, and their shares of the variance."""
    with np.errstate(invalid="ignore"):  # if nothing varies
        pca = PCA(min(count, *x.shape), random_state=0).fit(x[:: max(1, len(x) // _TOKENS)])
    absent = count - pca.n_components_
    found: Floats = np.pad(pca.transform(x), ((0, 0), (0, absent))).astype(np.float32)
    return found, [*np.nan_to_num(pca.explained_variance_ratio_).tolist(), *[0.0] * absent]


def _placed(x: Floats) -> tuple[Floats, tuple[str, str]]:
    """Place samples on a plane: by UMAP (McInnes et al. 2018) if that is installed, else by PCA."""
    try:
        umap: Any = importlib.import_module("umap") if len(x) >= _FEWEST else None
    except ImportError:
        umap = None
    if umap:
        return umap.UMAP(random_state=0, n_jobs=1).fit_transform(x), ("UMAP 1", "UMAP 2")
    points, (first, second) = _components(x, 2)
    return points, (f"component 1 ({100 * first:.0f} %)", f"component 2 ({100 * second:.0f} %)")


def _nearest(x: Floats, alike: Sequence[NDArray[Any]], most: int) -> Near:
    """Find the nearest samples by cosine among those that differ in all codes of `_alike`."""
    unit, k = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12), min(most, len(x) - 1)
    places, cosines = [], []
    for start in range(0, len(x), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        cosine = unit[some] @ unit.T
        for codes in alike:
            cosine[codes[some, None] == codes] = -np.inf
        best = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        found = np.take_along_axis(cosine, best, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")
        places.append(np.take_along_axis(best, order, axis=1))
        cosines.append(np.take_along_axis(found, order, axis=1))
    return Near(np.concatenate(places), np.concatenate(cosines))


def _coloured(store: Store, array: str, ids: Sequence[str]) -> tuple[list[Pixels], float]:
    """Return the tokens of samples as (h, w, 3) colours, without padding, and the share of variance in them."""
    rows, tokens = _rows(store, ids), []
    for (high, wide), values in zip(
        store.read("original_size", rows).tolist(), store.read(array, rows), strict=True
    ):
        covered = np.multiply(resized_shape(high, wide, store.image_size), values.shape[1:])
        down, across = -(-covered // store.image_size)  # rounded up
        tokens.append(np.moveaxis(values[:, :down, :across], 0, -1))
    x = _standardised(np.concatenate([one.reshape(-1, one.shape[-1]) for one in tokens]))
    found, shares = _components(x, 3)
    low, high = np.percentile(found, _STRETCH, axis=0)
    colours = (255 * ((found - low) / np.maximum(high - low, 1e-6)).clip(0, 1)).astype(np.uint8)
    each = np.split(colours, np.cumsum([one[..., 0].size for one in tokens])[:-1])
    return [c.reshape(*one.shape[:2], 3) for c, one in zip(each, tokens, strict=True)], sum(shares)


def _untrained(stores: Mapping[str, Store]) -> str:
    found = (f"encoder {s.encoder}, {s.weights}" for s in stores.values() if s.untrained)
    return "; ".join(dict.fromkeys(found))
