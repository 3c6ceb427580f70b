"""What a user writes after `--split`.

::

    0.2                a held-out share, of each class or of whole groups
    shipped            the split that the dataset comes with
    fold:1/5           the first of 5 folds; kfold:5 is all of them
    label:0.1@0.2      0.2 held out, and 0.1 of the labels of the others
    shots:5@0.2        0.2 held out, and 5 labels of each class of the others
    file:PATH          a file like a run's split.json, or PATH-train.txt, PATH-val.txt, PATH-test.txt
    torchgeo           TorchGeo's lists of EuroSAT, drawn at random
    torchgeo-spatial   TorchGeo's lists of EuroSAT, by longitude

After the @ may be any of those that hold out, except kfold.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import zip_longest
from pathlib import Path
from typing import Any

from samtl.errors import InputError, UnknownName
from samtl.splits import given
from samtl.splits.draw import fewer, fold, holdout
from samtl.splits.given import TORCHGEO
from samtl.splits.split import Samples, Split, require_usable

SHIPPED = "shipped"
FORMS = (
    "0.2",
    SHIPPED,
    "fold:1/5",
    "kfold:5",
    "label:0.1@0.2",
    "shots:5@0.2",
    "file:PATH",
    *TORCHGEO,
)
MOST = 1000  # splits that "..." may stand for

_RANDOM = frozenset({"holdout", "fold", "label", "shots", "torchgeo"})
_NUMBER = re.compile(r"(\d+(?:\.\d+)?|\.\d+)", re.ASCII)
# 20, 20% and 80-20; 0.1-0.9
_PERCENT = re.compile(r"((?P<first>\d{1,2})[-/:])?(?P<share>\d\d|\d(?=%)|(?<=[-/:])\d)%?", re.ASCII)
_RANGE = re.compile(r"(0?\.\d{1,3})(?:-|:|\.\.\.?| to )(0?\.\d{1,3})", re.ASCII)
_ARGUMENTS = {
    "fold": r"(?P<fold>\d{1,9})/(?P<count>\d{1,9})",
    "kfold": r"(?P<count>\d{1,9})",
    "label": r"(?P<share>(\d+\.?\d*|\.\d+)(e-?\d{1,3})?)@(?P<base>.+)",
    "shots": r"(?P<count>\d{1,9})@(?P<base>.+)",
    "file": r"(?P<path>.+)",
}


@dataclass(frozen=True)
class SplitSpec:
    """One way to hold out samples.

    `kind` is `share`, or what the text begins with. The other fields are its arguments: `share` of the samples that is
    held out, or of the labels that is kept; `count` of folds, or of samples of each class; which `fold`, from 1; `path`
    of a file; and `base`, what holds out before `label` or `shots` leave labels out.
    """

    kind: str
    share: float = 0.0
    count: int = 0
    fold: int = 0
    path: str = ""
    base: SplitSpec | None = None

    def __post_init__(self) -> None:
        expected = {
            "share": (0 < self.share < 1, "a held-out share lies between 0 and 1, as 0.2 does"),
            "label": (0 < self.share <= 1, "label:F@SHARE needs F above 0 and up to 1"),
            "shots": (self.count >= 2, "shots:K@SHARE needs K from 2 (one is for validation)"),
            "fold": (1 <= self.fold <= self.count > 1, "fold:I/K needs K from 2 and I from 1 to K"),
            "kfold": (self.count > 1, "kfold:K needs K from 2"),
        }
        holds, rule = expected.get(self.kind, (True, ""))
        if self.base is not None and self.base.kind in ("kfold", "label", "shots"):
            holds, rule = False, "after the @ comes one split of all labels, such as 0.2"
        if not holds:
            raise InputError(f"--split {self.text}: {rule}")

    @property
    def text(self) -> str:
        """As a user would write it; equal specs have the same text."""
        number = str(self.share).removesuffix(".0")
        base = self.base.text if self.base else ""
        return {
            "share": number,
            "fold": f"fold:{self.fold}/{self.count}",
            "kfold": f"kfold:{self.count}",
            "label": f"label:{number}@{base}",
            "shots": f"shots:{self.count}@{base}",
            "file": f"file:{self.path}",
        }.get(self.kind, self.kind)

    @property
    def draws(self) -> bool:
        """Whether samples or groups are drawn, not held out as they were listed."""
        return (self.base or self).kind in ("share", "fold", "kfold")


def parse(spec: str | float) -> SplitSpec:
    """Parse one split spec; UnknownName if it has none of the known forms, InputError if a number is out of range."""
    text = str(spec).strip()
    if text == SHIPPED or text in TORCHGEO:
        return SplitSpec(text)
    kind, colon, rest = text.partition(":")
    if meant := _meant(text):
        raise InputError(
            f"--split {text}: did you mean {meant}? A held-out share is written like 0.2"
        )
    if not colon:
        with suppress(ValueError):
            return SplitSpec("share", float(text))
    if kind not in _ARGUMENTS:
        raise UnknownName("split", text, FORMS)
    found = re.fullmatch(_ARGUMENTS[kind], rest, re.ASCII)
    if found is None:
        form = next(form for form in FORMS if form.startswith(f"{kind}:"))
        raise InputError(f"--split {kind} is written like {form}, got {text!r}")
    read: dict[str, Callable[[str], Any]] = {
        "share": float, "count": int, "fold": int, "path": str, "base": parse
    }  # fmt: skip
    return SplitSpec(kind, **{name: read[name](part) for name, part in found.groupdict().items()})


def _meant(text: str) -> str:
    """Return how a percentage, the shares of two parts, or a range of shares is written here; or ""."""
    if found := _PERCENT.fullmatch(text):
        share = Decimal(found["share"]) / 100
        parts = share + Decimal(found["first"] or 100 - 100 * share) / 100
        return f"{share}" if parts == 1 and 0 < share < 1 else ""
    if found := _RANGE.fullmatch(text):
        low, high = map(Decimal, found.groups())
        step = (
            low if low and high % low == 0 else Decimal(1).scaleb(-len(found[1].partition(".")[2]))
        )
        if 0 < low < low + 2 * step < high < 1:
            return f"{low},{low + step},...,{high} with samtl sweep --splits"
    return ""


def parse_many(text: str) -> list[SplitSpec]:
    """Parse split specs separated by commas; a `kfold` gives its folds.

    Between the second and the last spec of an arithmetic sequence, "..." stands for those left out: `0.1,0.2,...,0.9`,
    or `label:0.1@0.2,label:0.2@0.2,...,label:1@0.2`.

    Raises UnknownName, InputError as `parse`; also if a step does not lead to the last spec, or a split is listed
    twice.
    """
    items = [item.strip() for item in text.split(",")]
    if "" in items:
        raise InputError(f"a list of splits is written like 0.1,0.2,shipped, got {text!r}")
    specs: list[SplitSpec] = []
    for i, item in enumerate(items):
        for written in _between(items, i) if item == "..." else [item]:
            spec = parse(written)
            folds = range(1, spec.count + 1) if spec.kind == "kfold" else ()
            for one in [SplitSpec("fold", count=spec.count, fold=k) for k in folds] or [spec]:
                if one in specs:
                    raise InputError(f"the split {one.text} is listed twice in {text!r}")
                specs.append(one)
    return specs


def select(samples: Samples, spec: SplitSpec, seed: int) -> Split:
    """Select the samples that are held out, for validation and for training; others are left out.

    Raises InputError if no such split of these samples is possible, or `spec` is a `kfold`, which is several splits;
    ResourceError if lists cannot be downloaded.
    """
    kind = spec.kind
    if spec.base is not None:
        whole = select(samples, spec.base, seed)
        drawn = samples if spec.draws else replace(samples, groups=())
        return fewer(drawn, whole, seed, share=spec.share, count=spec.count)
    if kind == SHIPPED:
        return given.shipped(samples)
    if kind in TORCHGEO:
        given.require_eurosat(samples, kind)
        return given.listed(samples, given.torchgeo(kind), f"the {kind} lists", kind)
    if kind == "file":
        return _from_file(samples, Path(spec.path).expanduser())
    if kind == "kfold":
        raise InputError(
            f"{spec.text} is {spec.count} splits: choose one of them, such as fold:1/{spec.count}, or run them all "
            "with samtl sweep"
        )
    if kind == "fold":
        return fold(samples, spec.fold, spec.count, seed)
    return holdout(samples, spec.share, seed)


def resolve(samples: Samples, split: float | str | Split, seed: int) -> Split:
    """Select as `select` what a user wrote, or check that a `Split` was made for these samples.

    Raises InputError, too, if it was made for others, or holds samples that cannot take part.
    """
    if not isinstance(split, Split):
        return select(samples, parse(split), seed)
    if not split.fits(samples):
        raise InputError(
            f"the split {split.name!r} was made for other samples than those of {samples.where}"
        )
    require_usable(samples, split)
    return split


def leaks(name: str) -> bool:
    """Whether a split of that name ignores where images were taken.

    Its held-out images may lie beside training images, so scores are higher than on new land (spatial leakage).
    """
    return name.removesuffix("-label").removesuffix("-shots") in _RANDOM


def _from_file(samples: Samples, path: Path) -> Split:
    if path.is_file():
        return given.reuse(samples, given.read_split_file(path), path)
    if not any(file.is_file() for file in given.list_files(path).values()):
        raise InputError(
            f"--split file:{path}: there is no such file, which would be like a run's split.json, and no "
            f"{path.name}-train.txt, -val.txt and -test.txt beside it"
        )
    return given.listed(samples, given.read_lists(path), f"the lists {path}-*.txt", "file")


def _between(items: list[str], i: int) -> list[str]:
    """Return the specs that `items[i]`, "...", stands for: one number continues from those before it."""
    texts = [*items[max(i - 2, 0) : i], *items[i + 1 : i + 2]]
    cut = [_NUMBER.split(text) for text in texts]  # between numbers, number, ...
    differ = [k for k, parts in enumerate(zip_longest(*cut)) if len(set(parts)) > 1]
    if len(cut) == 3 and len(differ) == 1 and differ[0] % 2:
        place = differ[0]
        begin, then, end = (Decimal(parts[place]) for parts in cut)
        steps = (end - then) / (then - begin) if then != begin else Decimal(0)
        if steps == int(steps) and 1 <= steps <= MOST:
            numbers = (then + (then - begin) * k for k in range(1, int(steps)))
            return ["".join([*cut[1][:place], f"{n}", *cut[1][place + 1 :]]) for n in numbers]
    raise InputError(
        f"'...' needs two splits before it and one after that differ in one number, in at most {MOST} equal steps, as "
        f"in 0.1,0.2,...,0.9; got {','.join(items)!r}"
    )
