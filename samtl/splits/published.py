"""Split files as others publish them: three lists of file names, such as TorchGeo's lists of EuroSAT.

`PREFIX-train.txt`, `PREFIX-val.txt` and `PREFIX-test.txt` hold one name on each line. A name is a sample's id, or its
stem without folders and extension: EuroSAT's images are `.jpg` in one archive and `.tif` in another.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from samtl.errors import InputError, ResourceError
from samtl.splits.split import PARTS

_log = logging.getLogger(__name__)

ENDINGS = dict(zip(PARTS, ("train", "val", "test"), strict=True))

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


def list_files(prefix: str | Path) -> dict[str, Path]:
    """The list file of each part."""
    return {part: Path(f"{prefix}-{ending}.txt") for part, ending in ENDINGS.items()}


def read_lists(prefix: str | Path) -> dict[str, list[str]]:
    """Read the names in each part; InputError if a file is missing or is not text."""
    lists = {}
    for part, path in list_files(prefix).items():
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"the list {path} cannot be read ({type(error).__name__}): expected three text files, "
                f"{', '.join(file.name for file in list_files(prefix).values())}, with a file name on each line"
            ) from error
        lists[part] = [line.strip() for line in lines if line.strip()]
    return lists


def parts_of(
    lists: Mapping[str, Sequence[str]], ids: Sequence[str], source: str, where: str
) -> list[str]:
    """Find the part of each sample, "" if it is not listed.

    `lists` maps parts to names; `source` and `where` say where lists and samples are from, for messages.

    Raises
    ------
    InputError
        If a name matches no sample (figures on some of a published split would not compare), several, or one that is
        listed already.
    """
    row = {sample: i for i, sample in enumerate(ids)}
    by_stem: dict[str, list[int]] = {}
    for i, sample in enumerate(ids):
        by_stem.setdefault(PurePosixPath(sample).stem, []).append(i)
    parts, absent = [""] * len(ids), []
    for part, names in lists.items():
        for name in names:
            rows = [row[name]] if name in row else by_stem.get(PurePosixPath(name).stem, [])
            if not rows:
                absent.append(name)
                continue
            if len(rows) > 1:
                raise InputError(
                    f"{source} name {name!r}, which may be {ids[rows[0]]!r} or {ids[rows[1]]!r} of {where}: list whole "
                    "sample ids"
                )
            if parts[rows[0]]:
                raise InputError(
                    f"{source} name {ids[rows[0]]!r} twice, in {parts[rows[0]]} and in {part}"
                )
            parts[rows[0]] = part
    if absent:
        raise InputError(
            f"{source} name {len(absent)} samples that are not in {where}, such as {absent[0]!r}: choose the whole "
            "dataset that they were made for (without --limit or --per-class), or a held-out share, such as --split 0.2"
        )
    return parts


def torchgeo(name: str) -> dict[str, list[str]]:
    """Read TorchGeo's lists of EuroSAT, of `TORCHGEO`; missing files are downloaded (500 kB).

    Raises
    ------
    InputError
        If a download is not the published file.
    ResourceError
        If a download fails.
    """
    import pooch

    folder = Path(os.environ.get("SAMTL_DATA_CACHE") or pooch.os_cache("samtl"))
    prefix = folder / TORCHGEO[name]
    pooch.get_logger().setLevel(logging.WARNING)  # samtl reports downloads itself
    for path in list_files(prefix).values():
        url, digest = BASE_URL + path.name, SHA256[path.name]
        remedy = f"try again, or put {path.name} into {folder} yourself"
        if not path.is_file():
            _log.info("downloading %s into %s", url, folder)
        try:
            pooch.retrieve(url, known_hash=f"sha256:{digest}", fname=path.name, path=folder)
        except OSError as error:  # includes requests' errors
            raise ResourceError(
                f"could not download {url} ({type(error).__name__}): {remedy}"
            ) from error
        except ValueError as error:  # another hash
            raise InputError(f"{url} does not have the sha256 {digest}: {remedy}") from error
    return read_lists(prefix)
