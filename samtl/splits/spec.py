"""Ways to decide who is held out, as a user writes them.

::

    0.2                a share, of each class or of whole groups
    shipped            the split that the dataset comes with
    fold:1/5           the first of 5 folds; kfold:5 is all of them
    label:0.1@0.2      0.2 held out, and of the labels of the others 0.1
    shots:5@0.2        0.2 held out, and of the others 5 of each class
    file:PATH          a file like a run's split.json, or PATH-train.txt, PATH-val.txt, PATH-test.txt
    torchgeo           TorchGeo's lists of EuroSAT, drawn at random
    torchgeo-spatial   TorchGeo's lists of EuroSAT, by longitude

After the @ may be any of those that hold out but kfold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samtl import splits
from samtl.errors import InputError, UnknownName
from samtl.splits import Split, SplitRecord, read_split_file
from samtl.splits import published as split_lists

SHIPPED = "shipped"
FORMS = (
    "0.2",
    SHIPPED,
    "fold:1/5",
    "kfold:5",
    "label:0.1@0.2",
    "shots:5@0.2",
    "file:PATH",
    *split_lists.TORCHGEO,
)
RANDOM = frozenset({"holdout", "fold", "label", "shots", "torchgeo"})
MOST = 1000  # splits that "..." may stand for

_NUMBER = re.compile(r"(\d+(?:\.\d+)?|\.\d+)", re.ASCII)
_ARGUMENTS = {
    "fold": re.compile(r"(\d{1,9})/(\d{1,9})", re.ASCII),
    "kfold": re.compile(r"(\d{1,9})", re.ASCII),
    "label": re.compile(r"([^@]+)@(.+)"),
    "shots": re.compile(r"(\d{1,9})@(.+)", re.ASCII),
    "file": re.compile(r"(.+)"),
}


@dataclass(frozen=True)
class Samples:
    """The samples that a trial may draw on.

    Attributes
    ----------
    where : str
        The store or dataset, for messages.
    task : str
    ids : tuple of str
    classes : tuple of str
    labels : (N,) int64
        -1 where there is none; all -1 for segmentation.
    usable : (N,) bool
        Samples that can take part: embedded, and labelled where labels are needed.
    groups, parts : tuple of str
        As of the dataset, or empty.
    """

    where: str
    task: str
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    usable: NDArray[np.bool_]
    groups: tuple[str, ...]
    parts: tuple[str, ...]


@dataclass(frozen=True)
class SplitSpec:
    """One way to decide who is held out.

    Attributes
    ----------
    text : str
        As a user would write it; specs that are the same have the same.
    kind : str
        `share`, or what `spec` begins with.
    share : float
        Of `share` the held-out part, of `label` the part of the labels that is kept; else 0.
    count : int
        How many folds, or samples of each class; else 0.
    fold : int
        Which fold, from 1; else 0.
    path : str
        Of `file`; else "".
    base : SplitSpec or None
        What holds out before `label` or `shots` leave labels out.
    """

    text: str
    kind: str
    share: float = 0.0
    count: int = 0
    fold: int = 0
    path: str = ""
    base: SplitSpec | None = None

    @property
    def draws(self) -> bool:
        """Whether samples, or groups of them, are drawn: else they are held out as they were given."""
        return (self.base or self).kind in ("share", "fold", "kfold")

    def expand(self) -> list[SplitSpec]:
        """Give the folds of a `kfold`; all others are one split, and give themselves."""
        if self.kind != "kfold":
            return [self]
        return [parse(f"fold:{which}/{self.count}") for which in range(1, self.count + 1)]


def parse(spec: str | float) -> SplitSpec:
    """Read one spec.

    Raises
    ------
    UnknownName
        Where it begins like none.
    InputError
        Where its numbers are missing or out of range.
    """
    text = str(spec).strip()
    if text == SHIPPED or text in split_lists.TORCHGEO:
        return SplitSpec(text, text)
    kind, colon, rest = text.partition(":")
    share = None if colon else _number(text)
    if share is not None:
        splits.require_share(share)
        return SplitSpec(_written(share), "share", share=share)
    if kind not in _ARGUMENTS:
        raise UnknownName("split", text, FORMS)
    found = _ARGUMENTS[kind].fullmatch(rest)
    if found is None:
        form = next(form for form in FORMS if form.startswith(f"{kind}:"))
        raise InputError(f"--split {kind} is written like {form}, got {text!r}")
    if kind == "file":
        return SplitSpec(text, kind, path=rest)
    if kind == "fold":
        which, folds = int(found[1]), int(found[2])
        splits.require_fold(which, folds)
        return SplitSpec(f"fold:{which}/{folds}", kind, count=folds, fold=which)
    if kind == "kfold":
        splits.require_fold(1, int(found[1]))
        return SplitSpec(f"kfold:{int(found[1])}", kind, count=int(found[1]))
    base = parse(found[2])
    if base.kind in ("kfold", "label", "shots"):
        raise InputError(
            f"--split {kind} leaves labels out of the training part of one split, and {base.text!r} after the @ is "
            f"{'several' if base.kind == 'kfold' else 'without some already'}: name a share, as in {kind}:...@0.2"
        )
    if kind == "shots":
        splits.require_shots(int(found[1]))
        return SplitSpec(f"shots:{int(found[1])}@{base.text}", kind, count=int(found[1]), base=base)
    kept = _number(found[1])
    if kept is None:
        raise InputError(f"--split label is written like label:0.1@0.2, got {text!r}")
    splits.require_part(kept)
    return SplitSpec(f"label:{_written(kept)}@{base.text}", kind, share=kept, base=base)


def parse_many(text: str) -> list[SplitSpec]:
    """Read a list of specs, each fold of a `kfold` for itself.

    Parameters
    ----------
    text : str
        Separated by commas. Between the second and the last of a row that goes up (or down) by one step, "..." stands
        for those left out: `0.1,0.2,...,0.9`, or `label:0.1@0.2,label:0.2@0.2,...,label:1@0.2`.

    Raises
    ------
    UnknownName, InputError
        As `parse`; also where a step does not lead to the last, or a split is given twice.
    """
    items = [item.strip() for item in text.split(",")]
    if "" in items:
        raise InputError(f"a list of splits is written like 0.1,0.2,shipped, got {text!r}")
    written: list[str] = []
    for i, item in enumerate(items):
        if item != "...":
            written.append(item)
        elif i < 2 or i == len(items) - 1 or "..." in (items[i - 2], items[i + 1]):
            raise InputError(
                f"'...' needs two splits before it and one after, as in 0.1,0.2,...,0.9, got {text!r}"
            )
        else:
            written += _between(items[i - 2], items[i - 1], items[i + 1])
    specs = [one for item in written for one in parse(item).expand()]
    seen: set[str] = set()
    for spec in specs:
        if spec.text in seen:
            raise InputError(f"the split {spec.text} is given twice in {text!r}; leave one out")
        seen.add(spec.text)
    return specs


def validation_of(samples: Samples, split: Split) -> Split:
    """Cut the validation part from the training part of a split."""
    return splits.inner(
        split,
        samples.ids,
        _labels(samples),
        classes=samples.classes,
        groups=samples.groups or None,
    )


def select(samples: Samples, spec: SplitSpec, seed: int) -> tuple[Split, Split]:
    """Decide who is held out, and which of the others validate.

    Parameters
    ----------
    samples : Samples
    spec : SplitSpec
        Any but a `kfold`, which is several splits.
    seed : int
        Not used where nothing is drawn.

    Returns
    -------
    split, inner : Split
        Held out is `split.test`; `inner` cuts the others. Who is in neither is left out.

    Raises
    ------
    InputError
        Where no such split of these samples is possible.
    ResourceError
        Where lists cannot be downloaded.
    """
    ids, classes, usable = samples.ids, samples.classes, samples.usable
    labels = _labels(samples)
    groups = (samples.groups or None) if spec.draws else None
    kind = spec.kind
    if spec.base is not None:
        outer, inner = select(samples, spec.base, seed)
        if kind == "shots":
            return splits.shots(outer, inner, ids, labels, spec.count, seed, classes)
        return splits.fewer(outer, inner, ids, labels, spec.share, seed, groups=groups)
    if kind == SHIPPED:
        if not samples.parts:
            raise InputError(
                f"{samples.where} comes with no split of its own; give the held-out share, such as --split 0.2"
            )
        return splits.shipped(ids, samples.parts, labels, usable, classes)
    if kind in split_lists.TORCHGEO:
        return _listed(samples, labels, split_lists.torchgeo(kind), f"the {kind} lists", kind)
    if kind == "file":
        return _from_file(samples, labels, Path(spec.path).expanduser())
    if kind == "fold":
        which, folds = spec.fold, spec.count
        outer = splits.fold(ids, labels, which, folds, seed, classes, groups=groups, usable=usable)
    elif kind == "share":
        outer = splits.holdout(ids, labels, spec.share, seed, classes, groups=groups, usable=usable)
    else:
        raise InputError(
            f"{spec.text} is {spec.count} splits, and one is needed: name one of them, such as "
            f"fold:1/{spec.count}, or run them all with samtl sweep"
        )
    return outer, validation_of(samples, outer)


def leaks(name: str) -> bool:
    """Tell whether a split of that name ignores where images were taken.

    What is held out then may lie beside what was learnt from, and scores are higher than on new land.
    """
    return name.removesuffix("-label").removesuffix("-shots") in RANDOM


def reuse(samples: Samples, record: SplitRecord, source: str | Path) -> tuple[Split, Split]:
    """Restore a recorded split.

    Raises
    ------
    InputError
        If the split is of other samples, or contains samples that cannot be used.
    """
    try:
        outer, inner = splits.from_record(samples.ids, record)
    except InputError as error:
        raise InputError(f"the split of {source} does not fit {samples.where}: {error}") from error
    require_usable(samples, outer)
    return outer, inner


def require_usable(samples: Samples, split: Split) -> None:
    """Raise InputError where a split has samples that cannot take part."""
    rows = np.concatenate([split.train, split.test])
    unusable = rows[~samples.usable[rows]]
    if len(unusable):
        raise InputError(
            f"the split {split.name!r} has {len(unusable)} samples that {samples.where} holds no label or no "
            f"features for, such as {samples.ids[unusable[0]]!r}"
        )


def _labels(samples: Samples) -> NDArray[np.int64] | None:
    return None if samples.task == "segmentation" else np.where(samples.usable, samples.labels, -1)


def _from_file(
    samples: Samples, labels: NDArray[np.int64] | None, path: Path
) -> tuple[Split, Split]:
    if path.is_file():
        return reuse(samples, read_split_file(path), path)
    if not any(file.is_file() for file in split_lists.list_files(path).values()):
        raise InputError(
            f"--split file:{path}: there is no such file (expected is one like a run's split.json), and no "
            f"{', '.join(file.name for file in split_lists.list_files(path).values())} beside it"
        )
    lists = split_lists.read_lists(path)
    return _listed(samples, labels, lists, f"the lists {path}-*.txt", "file")


def _listed(
    samples: Samples,
    labels: NDArray[np.int64] | None,
    lists: Mapping[str, Sequence[str]],
    lists_of: str,
    name: str,
) -> tuple[Split, Split]:
    parts = split_lists.parts_of(lists, samples.ids, lists_of, samples.where)
    listed = samples.usable & np.array([part != "" for part in parts])
    # Whatever part is put down for those that no list names, they are not used.
    filled = [part or splits.PARTS[0] for part in parts]
    return splits.shipped(samples.ids, filled, labels, listed, samples.classes, name)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _written(number: float) -> str:
    return str(number).removesuffix(".0")


def _between(first: str, second: str, last: str) -> list[str]:
    """Write down what "..." stands for after `second`, which differs from `first` and `last` in one number."""
    cut = [_NUMBER.split(text) for text in (first, second, last)]  # between numbers, number, ...
    steps = f"{first},{second},...,{last}"
    alike = len({(len(parts), *parts[::2]) for parts in cut}) == 1
    differ = [i for i in range(1, len(cut[0]), 2) if len({p[i] for p in cut}) > 1] if alike else []
    if len(differ) != 1:
        raise InputError(
            f"'...' goes on in one number in which the splits around it differ, as in 0.1,0.2,...,0.9; got {steps!r}"
        )
    where = differ[0]
    begin, then, end = (Decimal(parts[where]) for parts in cut)
    step = then - begin
    count = (end - then) / step if step else Decimal(0)
    if count != int(count) or not 1 <= count <= MOST:
        raise InputError(
            f"'...' goes on in equal steps to the last, at most {MOST} of them; from {then} none of {step} lead to "
            f"{end} in {steps!r}"
        )
    numbers = (then + step * i for i in range(1, int(count)))
    return ["".join([*cut[1][:where], str(n), *cut[1][where + 1 :]]) for n in numbers]
