"""Splits that are drawn: a share of each class or whole groups, one fold of several, fewer labels.

A fifth of the samples that are not held out, of each class or of whole groups, too, is for validation.

Every draw takes the first samples, or groups, of a ranking by sha256 of (purpose, seed, id). The purpose is part of
the key, so that the validation part is not the runners-up of the held-out one.

Identical images are drawn as one, under the id that comes first, and groups that have an image in common as one group.
An image that three groups or more have in common, such as a blank tile, joins them only if more than one different
image in a hundred is so: then the groups are copies of each other. Else copies of it may be on both sides of a split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np

from samtl.errors import InputError
from samtl.splits.split import VALIDATION_SHARE, Rows, Samples, Split, divided, require_every_class


def holdout(samples: Samples, share: float, seed: int = 0) -> Split:
    """Hold out a share of the samples: the same share of every class, or whole groups.

    Without groups, the share of all samples is rounded, and every class is in both parts. If there are groups, as many
    of the ranked groups are held out as bring the number of held-out samples closest to the share; classes are then not
    balanced, only checked to be in both parts.

    Raises InputError if the share leaves a part empty or without a class, there are fewer than 2 samples (of a class)
    or groups to divide, or whole groups leave a part without a class.
    """
    samples, rows = _joined(samples), samples.rows
    _require(samples, rows, 2, "a split")
    drawn = samples.distinct(rows)
    total, classes = _rounded(share, len(drawn)), len(samples.by_class(drawn))
    # Of what is not held out, some is for validation.
    if not samples.groups and not classes <= total <= len(drawn) - 2 * classes:
        lacks = f"without some of the {classes} classes" if classes > 1 else "empty"
        low = classes / len(drawn)
        what = "samples" if len(drawn) == len(rows) else "different images"
        raise InputError(
            f"--split {share} of {len(drawn)} {what} holds out {total}, which leaves one part {lacks}: choose a "
            f"share from {low:.3g} to {1 - 2 * low:.3g}, or embed more images"
        )
    name = "grouped" if samples.groups else "holdout"
    return _made(samples, _cut(samples, rows, share, seed, name), name, share, seed)


def fold(samples: Samples, which: int, folds: int, seed: int = 0) -> Split:
    """Hold out one of several folds, counted from 1; each sample is in exactly one of them.

    The ranked samples of one class after another are dealt to the folds in turn, so that neither folds nor a class in
    them differ by more than one sample. Each ranked group goes to the fold with the fewest samples so far.

    Raises InputError if there are fewer samples (of a class) or groups than folds, or fewer than 2 to train and
    validate on, or whole groups leave a part without a class.
    """
    samples, rows = _joined(samples), samples.rows
    _require(samples, rows, folds, f"a split into {folds} folds")
    if not samples.groups:
        ranked = _ranked("fold", seed, samples.ids, samples.distinct(rows).tolist())
        dealt = sorted(ranked, key=samples.strata.__getitem__)
        parts = _with_copies(samples, rows, dealt[which - 1 :: folds])
        return _made(samples, parts, "fold", 1 / folds, seed)
    filled, chosen = [0] * folds, set()
    for group, count in _groups("grouped-fold", seed, samples, rows).items():
        to = filled.index(min(filled))
        filled[to] += count
        if to == which - 1:
            chosen.add(group)
    parts = _whole(samples, rows, chosen, "held-out")
    return _made(samples, parts, "grouped-fold", 1 / folds, seed)


def fewer(samples: Samples, split: Split, seed: int, *, share: float = 0, count: int = 0) -> Split:
    """Keep some of the samples that are not held out; the others are in no part of the split returned.

    Either a `share`, the same of every class, or whole groups; it is raised if a class would have no training or no
    validation sample. Or a `count` of different images of each class (for segmentation, of all samples), a fifth of
    them for validation; it raises InputError if a class has too few. What is kept of less is kept of more.
    """
    samples = _joined(samples)
    if count:
        held = max(_rounded(VALIDATION_SHARE, count), 1)
        train = _shots(samples, split.train, count - held, seed)
        validation = _shots(samples, split.validation, held, seed)
    else:
        train = _kept(samples, split.train, share, seed)
        validation = _kept(samples, split.validation, share, seed)
    kind = "shots" if count else "label"
    name = kind if split.name == "holdout" else f"{split.name}-{kind}"
    rows = (train, validation, split.test)
    return Split.of(samples, rows, name, split.share, seed, split.validation_share)


def validation_of(samples: Samples, rows: Rows, seed: int = 0) -> tuple[Rows, Rows]:
    """Divide rows that are not held out: to train on, and to validate on; raises InputError as `holdout`."""
    _require(samples, rows, 2, "a training part, some of which is for validation,")
    return _cut(samples, rows, VALIDATION_SHARE, seed, "validation")


def _made(samples: Samples, parts: tuple[Rows, Rows], name: str, share: float, seed: int) -> Split:
    """Make a split from the other rows and those that are held out; some of the former are for validation."""
    seen, test = parts
    train, validation = validation_of(samples, seen, seed)
    return Split.of(samples, (train, validation, test), name, share, seed, VALIDATION_SHARE)


def _kept(samples: Samples, rows: Rows, share: float, seed: int) -> list[int]:
    if not samples.groups:
        drawn = samples.distinct(rows)
        n = max(_rounded(share, len(drawn)), len(np.unique(samples.truth[drawn])))
        line = _line(samples, drawn, "label", seed)
        kept: list[int] = _with_copies(samples, rows, line[:n])[1].tolist()
        return kept
    sizes = _groups("label", seed, samples, rows)
    place = {group: i for i, group in enumerate(sizes)}
    n = _closest(list(sizes.values()), share * len(rows))
    for members in samples.by_class(rows).values():  # go on until each class has a sample
        n = max(n, 1 + min((place[samples.groups[i]] for i in members), default=0))
    return [i for i in rows.tolist() if place[samples.groups[i]] < n]


def _shots(samples: Samples, rows: Rows, count: int, seed: int) -> list[int]:
    chosen: list[int] = []
    for name, members in samples.by_class(samples.distinct(rows)).items():
        if len(members) < count:
            of = f" of class {name!r}" if samples.task == "classification" else ""
            raise InputError(
                f"--split shots needs {count} samples{of} in a part for training or validation, got {len(members)}: "
                "ask for fewer, hold out less, or embed more images"
            )
        chosen += _ranked("label", seed, samples.ids, members.tolist())[:count]
    return chosen


def _require(samples: Samples, rows: Rows, n: int, purpose: str) -> None:
    """Raise InputError if rows cannot be divided into n parts that each have every class, or a group."""
    drawn = samples.distinct(rows)
    copies = len(drawn) < len(rows)
    one = "different images" if copies else "samples"
    sizes = {f"{one} that can be used": len(drawn)}
    if samples.groups:
        between = " without identical images between them" * copies
        sizes[f"groups{between}"] = len(samples.group_sizes(rows))
    elif samples.task == "classification":
        found = samples.by_class(drawn).items()
        sizes |= {f"{one} of class {name!r}": len(members) for name, members in found}
    for what, size in sizes.items():
        if size < n:
            finer = "remove copies of images" if copies else "group the images more finely"
            remedy = finer if what.startswith("groups") else "embed more images"
            raise InputError(
                f"{purpose} needs at least {n} {what}, got {size}: {remedy}, or choose another --split"
            )


def _ranked(purpose: str, seed: int, names: Sequence[str], rows: Iterable[int]) -> list[int]:
    """Order rows by the hash of their names."""
    head = f"samtl {purpose} {seed}\n"
    return sorted(rows, key=lambda i: hashlib.sha256((head + names[i]).encode()).digest())


def _joined(samples: Samples) -> Samples:
    """Make one group, with the name that comes first, of groups that have an image in common."""
    if not samples.groups or len(np.unique(samples.image)) == len(samples.ids):
        return samples
    from scipy.sparse import coo_array  # slow to import
    from scipy.sparse.csgraph import connected_components

    names, of = np.unique(samples.groups, return_inverse=True)
    pairs = np.unique(np.stack([samples.image, of]), axis=1)
    images, spread = np.unique(pairs[0], return_counts=True)
    wide = images[spread > 2]
    if len(wide) <= max(1, len(images) / 100):
        pairs = pairs[:, ~np.isin(pairs[0], wide)]
    edges = np.ones(pairs.shape[1]), (pairs[1], of[pairs[0]])
    _, joined = connected_components(coo_array(edges, shape=(len(names), len(names))), False)
    _, first = np.unique(joined, return_index=True)
    return replace(samples, groups=tuple(names[first[joined[of]]].tolist()))


def _with_copies(samples: Samples, rows: Rows, chosen: Sequence[int]) -> tuple[Rows, Rows]:
    """Divide rows: second come those whose image is that of a chosen row."""
    out = np.isin(samples.image[rows], samples.image[np.asarray(chosen, np.int64)])
    return rows[~out], rows[out]


def _groups(purpose: str, seed: int, samples: Samples, rows: Rows) -> dict[str, int]:
    """Count the rows of each group, groups ordered by their hash."""
    counts = samples.group_sizes(rows)
    names = list(counts)
    return {names[i]: counts[names[i]] for i in _ranked(purpose, seed, names, range(len(names)))}


def _line(samples: Samples, rows: Rows, purpose: str, seed: int) -> list[int]:
    """Order rows so that the first n, for any n, have the classes in the same shares.

    Sample j of the n ranked ones of a class stands at (j + 1/2) / n of the line, so that each class is rounded at its
    halves; but the first of each class come first, and the last ones last.
    """
    place: dict[int, float] = {}
    for members in divided(rows, samples.strata[rows]).values():
        ranked = _ranked(purpose, seed, samples.ids, members.tolist())
        place |= {i: (j + 0.5) / len(ranked) for j, i in enumerate(ranked)}
        # A single one, which only a rare class of several for a sample can have, is for training.
        first = ranked[:1] if len(ranked) > 1 or purpose == "label" else []
        place |= dict.fromkeys(ranked[-1:], 1.0) | dict.fromkeys(first, 0.0)
    return sorted(place, key=place.__getitem__)


def _cut(samples: Samples, rows: Rows, share: float, seed: int, purpose: str) -> tuple[Rows, Rows]:
    """Divide rows: a share of each class, if possible at least one sample of it, or whole groups come second."""
    if samples.groups:
        sizes = _groups(purpose, seed, samples, rows)
        n = _closest(list(sizes.values())[:-1], share * len(rows))
        part = "validation" if purpose == "validation" else "held-out"
        return _whole(samples, rows, set(list(sizes)[:n]), part)
    drawn = samples.distinct(rows)
    classes = len(samples.by_class(drawn))
    total = min(max(_rounded(share, len(drawn)), classes), len(drawn) - classes)
    return _with_copies(samples, rows, _line(samples, drawn, purpose, seed)[:total])


def _whole(samples: Samples, rows: Rows, chosen: set[str], part: str) -> tuple[Rows, Rows]:
    out = np.array([samples.groups[i] in chosen for i in rows.tolist()])
    require_every_class(samples, {part: rows[out], "training": rows[~out]})
    return rows[~out], rows[out]


def _closest(sizes: list[int], wanted: float) -> int:
    """Return the number of groups, counted from the first and at least one, whose total size is nearest to `wanted`."""
    held = list(accumulate(sizes))
    return 1 + min(range(len(held)), key=lambda i: abs(held[i] - wanted))


def _rounded(share: float, n: int) -> int:
    return int(share * n + 0.5 + 1e-9)  # 0.15 of 10 is 1.5, though a little less in binary
