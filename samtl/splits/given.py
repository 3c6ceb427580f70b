"""Splits that are given: by the parts of a dataset, by lists of names, or by the record of a run.

Lists are `PREFIX-train.txt`, `PREFIX-val.txt` and `PREFIX-test.txt` with one name on each line, as TorchGeo publishes
them for EuroSAT. A name is a sample's id, or its stem without folders and extension: EuroSAT's images are `.jpg` in one
archive and `.tif` in another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import msgspec
import numpy as np

from samtl._download import download, user_folder
from samtl._io import inside, read_json
from samtl.errors import DamageError, InputError
from samtl.splits.draw import validation_of
from samtl.splits.split import PARTS, Samples, Split, require_every_class, require_usable

_REMEDY = "choose a held-out share, such as --split 0.2"

# By TorchGeo (MIT licence). The first is the random split of Neumann et al. (arXiv 1911.06721), the other holds out
# by longitude; 16,200, 5,400 and 5,400 images each.
TORCHGEO = {"torchgeo": "eurosat", "torchgeo-spatial": "eurosat-spatial"}
BASE_URL = (
    "https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
    "1ce6f1bfb56db63fd91b6ecc466ea67f2509774c/"
)
SHA256 = {
    "eurosat-train.txt": "1c1d2e855f95deee605a3d992f914d113fddbecf422ec61648057d029a37d695",
    "eurosat-val.txt": "b385741f31daa9f1250cf1e1fe03adfab394e1172e0693df40141af004f60330",
    "eurosat-test.txt": "cf37948894c12bd953930ff54ee9b7abf0b31478abb8d25fd2c6c721db74c592",
    "eurosat-spatial-train.txt": "2db7d455afb8dcbca898ea19a00f1f90c091734efdbba89e22aaf24056da243f",
    "eurosat-spatial-val.txt": "6c758477604b7057a0fd990d7f6327b63b99a6725aac11a6a9d0174a7fdd8f0b",
    "eurosat-spatial-test.txt": "de22dec83d350cac3b3e4ca8e285cb6733c81ab94bf5bcf9213a567993402452",
}
IMAGES = 27_000  # of EuroSAT, all of which are listed
_OF_EUROSAT = re.compile(r"[A-Z][A-Za-z]+_\d{1,4}")  # such as AnnualCrop_1
_OF_SPLIT = ("name", "share", "seed", "digest", "validation_digest", "validation_share")
SHARED = "../../splits"  # where runs of a sweep keep their lists, from a run folder


def shipped(samples: Samples, name: str = "shipped") -> Split:
    """Split samples by their `parts`, for instance those that a dataset comes with.

    If none is for validation, a fifth of those to train on is, drawn as by other splits, the same whatever the seed.
    Raises InputError if a part is unknown or has no samples, or a class is not in every part.
    """
    if not samples.parts:
        raise InputError(f"{samples.where} does not come with a split; {_REMEDY}")
    if unknown := set(samples.parts) - {*PARTS, ""}:
        raise InputError(
            f"each sample must be in one of the parts {', '.join(PARTS)}, got {min(unknown)!r}"
        )
    of = np.array(samples.parts)
    members = {part: np.flatnonzero((samples.truth >= 0) & (of == part)) for part in PARTS}
    if len(members["train"]) and len(members["test"]) and not len(members["validation"]):
        members["train"], members["validation"] = validation_of(samples, members["train"])
    if not all(map(len, members.values())):
        found = ", ".join(f"{len(rows)} in {part}" for part, rows in members.items())
        raise InputError(f"the {name} split needs samples in each part, got {found}: {_REMEDY}")
    require_every_class(samples, members, f"in the {name} split: {_REMEDY}")
    train, validation, test = map(len, members.values())
    share, of_others = test / (train + validation + test), validation / (train + validation)
    return Split.of(samples, members.values(), name, share, 0, of_others)


def list_files(prefix: str | Path) -> dict[str, Path]:
    """Return the list file of each part."""
    return {p: Path(f"{prefix}-{'val' if p == 'validation' else p}.txt") for p in PARTS}


def read_lists(prefix: str | Path) -> dict[str, list[str]]:
    """Read the names in each part; InputError if a file is missing or is not text."""
    lists = {}
    for part, path in list_files(prefix).items():
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"the list {path} cannot be read ({type(error).__name__}): expected three text files, "
                f"{prefix}-train.txt, -val.txt and -test.txt, with a file name on each line"
            ) from error
        lists[part] = [line.strip() for line in lines if line.strip()]
    return lists


def listed(samples: Samples, lists: Mapping[str, Sequence[str]], source: str, name: str) -> Split:
    """Split samples by lists of the names in each part, as `shipped` does; `source` says where they are from.

    Raises InputError as `shipped`; also if a name matches no sample (figures on a part of a published split would not
    compare), several, or one that is listed already.
    """
    ids, known = samples.ids, dict[str, list[int]]()
    for i, sample in enumerate(ids):
        known.setdefault(PurePosixPath(sample).stem, []).append(i)
    known |= {sample: [i] for i, sample in enumerate(ids)}
    parts, absent = [""] * len(ids), []
    for part, names in lists.items():
        for text in names:
            rows = known.get(text) or known.get(PurePosixPath(text).stem, [])
            if len(rows) > 1:
                raise InputError(
                    f"{source} name {text!r}, which may be {ids[rows[0]]!r} or {ids[rows[1]]!r} of {samples.where}: "
                    "list whole sample ids"
                )
            if not rows:
                absent.append(text)
            elif parts[rows[0]]:
                raise InputError(
                    f"{source} name {ids[rows[0]]!r} twice, in {parts[rows[0]]} and in {part}"
                )
            else:
                parts[rows[0]] = part
    if absent:
        raise InputError(
            f"{source} name {len(absent)} samples that are not in {samples.where}, such as {absent[0]!r}: choose the "
            f"whole dataset that they were made for (without --limit or --per-class), or {_REMEDY}"
        )
    return shipped(replace(samples, parts=tuple(parts)), name)


def require_eurosat(samples: Samples, name: str) -> None:
    """Raise InputError if samples cannot be those of TorchGeo's lists, which are not downloaded in vain then."""
    known = sum(_OF_EUROSAT.fullmatch(PurePosixPath(one).stem) is not None for one in samples.ids)
    if known < IMAGES:
        raise InputError(
            f"--split {name} holds out what TorchGeo lists of EuroSAT's {IMAGES:,} images, and {samples.where} has "
            f"{known:,} of them: embed all of EuroSAT (without --limit or --per-class), or {_REMEDY}"
        )


def torchgeo(name: str) -> dict[str, list[str]]:
    """Read TorchGeo's lists of EuroSAT, of `TORCHGEO`; missing files are downloaded (500 kB).

    Raises InputError if a download is not the published file; ResourceError if a download fails.
    """
    folder = user_folder("SAMTL_DATA_CACHE")
    prefix = folder / TORCHGEO[name]
    for path in list_files(prefix).values():
        sources = {BASE_URL + path.name: f"sha256:{SHA256[path.name]}"}
        download(sources, folder, f"try again, or put {path.name} there yourself")
    return read_lists(prefix)


class SplitRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `split.json`: attributes of a `Split`, and sample ids.

    Samples in none of the lists were trained on; those of `left_out` are in no part.
    """

    name: str
    share: float
    seed: int
    digest: str
    validation_digest: str = ""
    validation_share: float
    held_out: list[str]
    validation: list[str]
    left_out: list[str]


def record_of(sample_ids: Sequence[str], split: Split) -> SplitRecord:
    """Describe a split by sample id."""
    neither = np.setdiff1d(np.arange(len(sample_ids)), np.concatenate([split.seen, split.test]))
    held_out, validation, left_out = (
        [sample_ids[row] for row in part] for part in (split.test, split.validation, neither)
    )
    about = {name: getattr(split, name) for name in _OF_SPLIT}
    return SplitRecord(**about, held_out=held_out, validation=validation, left_out=left_out)


def read_split(run: str | Path) -> SplitRecord:
    """Read the split of a run folder: see `read_split_file`."""
    file = Path(run, "split.json")
    if not file.is_file():
        raise InputError(
            f"{run} is not a run: expected a folder with split.json, as samtl fit-head and samtl fit-baseline write it"
        )
    return read_split_file(file)


def read_split_file(path: str | Path) -> SplitRecord:
    """Read a file like the `split.json` of a run.

    The `split.json` of a sweep's run names a `file` with the lists of ids, which the sweep's runs share.

    Raises InputError if the file, or the one that it names, is missing, damaged, or of another split.
    """
    file = Path(path)
    try:
        content = read_json(file, dict)
        if "file" in content:
            shared = inside(file.parent, str(content["file"]), file.parent / SHARED)
            whole = read_json(shared, dict)
            for field in ("digest", "validation_digest"):
                if content.get(field) != whole.get(field):
                    raise InputError(
                        f"{shared} is not the split that {file} names: its {field} is {whole.get(field)!r}, expected "
                        f"{content.get(field)!r}"
                    )
            content = {**whole, **content}
        return msgspec.convert(content, SplitRecord)
    except msgspec.ValidationError as error:
        raise DamageError(f"{file} is damaged: {error}") from error
    except OSError as error:
        raise InputError(
            f"{error.filename or file} is not there: expected a file like a run's split.json; keep runs of a sweep "
            "with its splits"
        ) from error


def reuse(samples: Samples, record: SplitRecord, source: str | Path) -> Split:
    """Restore a recorded split; `source` says where the record is from, for messages.

    Raises InputError if the record is of other samples, or contains samples that cannot be used.
    """
    other = f"the split of {source} was made for other samples than those of {samples.where}"
    row = {sample: i for i, sample in enumerate(samples.ids)}
    listed = [*record.held_out, *record.validation, *record.left_out]
    absent = [sample for sample in listed if sample not in row]
    if absent:
        raise InputError(
            f"{other}: {len(absent)} of the {len(listed)} that it lists are not here, such as {absent[0]!r}"
        )
    test, held, without = (
        {row[sample] for sample in part}
        for part in (record.held_out, record.validation, record.left_out)
    )
    seen = set(row.values()) - test - without
    train = seen - held
    about = (record.name, record.share, record.seed, record.validation_share)
    split = Split.of(samples, (train, held, test), *about)
    if split.digest != record.digest:
        raise InputError(
            f"{other}: the held-out ones are here, but the {len(seen)} to train and validate on differ"
        )
    if not (test and held and train):
        raise InputError(
            f"the split of {source} needs samples to train on, for validation and held out, got {len(train)}, "
            f"{len(held)} and {len(test)}"
        )
    require_usable(samples, split)
    return split
