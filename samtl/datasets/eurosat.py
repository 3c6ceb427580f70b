"""EuroSAT RGB: 27,000 Sentinel-2 tiles of 64 x 64 pixels in 10 land-cover classes.

By Helber et al. (arXiv 1709.00029), under the MIT licence. Both official archives are read, `EuroSAT.zip`
(`eurosat/2750/<Class>/*.jpg`) and `EuroSAT_RGB.zip` (`EuroSAT_RGB/<Class>/*.jpg`), packed or unpacked, from any
level. Sample ids are `<Class>/<file>` in each of them, so that stores made from either agree.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from samtl import _download
from samtl.datasets.base import Dataset
from samtl.datasets.files.archive import named, open_tree
from samtl.datasets.files.listing import Tree, some
from samtl.errors import InputError
from samtl.images.bands import BYTES, RGB

# The study's slide gives Pasture 2,500; the published set has 2,000, and 27,000 in all.
COUNTS = {
    "AnnualCrop": 3000,
    "Forest": 3000,
    "HerbaceousVegetation": 3000,
    "Highway": 2500,
    "Industrial": 2500,
    "Pasture": 2000,
    "PermanentCrop": 2500,
    "Residential": 3000,
    "River": 2500,
    "SeaLake": 3000,
}


@dataclass(frozen=True)
class Archive:
    """An official archive of EuroSAT, and what is in it."""

    name: str
    sources: dict[str, str]  #: URLs of the archive and their hashes, tried in this order
    size: str
    suffixes: tuple[str, ...]
    levels: tuple[str, ...]  #: folders above those of the classes
    layout: str
    bands: tuple[str, ...] = RGB
    units: str = BYTES


ARCHIVE = Archive(
    name="eurosat",
    sources={
        "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip":
            "md5:c8fa014336c82ac7804f0398fcb19387",
        "https://zenodo.org/records/7711810/files/EuroSAT_RGB.zip?download=1":
            "sha256:b4f5b234ecb7d7ff9c6cddb046543b4717c53fd6e9815be6c0e80cc614f51b90",
    },
    size="90 MB",
    suffixes=(".jpg", ".jpeg"),
    levels=("2750", "EuroSAT_RGB", "eurosat", "EuroSAT"),
    layout="expected is EuroSAT RGB as EuroSAT.zip (eurosat/2750/<Class>/*.jpg) or EuroSAT_RGB.zip "
    "(EuroSAT_RGB/<Class>/*.jpg), the zip itself or the folder that it unpacks to",
)  # fmt: skip


def open_dataset(argument: str | None, root: Path | None, download: bool = True) -> Dataset:
    """List EuroSAT from `root`, a zip archive or a folder; it takes no `argument`.

    Without `root`, the official archive is taken from the download folder, `$SAMTL_DATA_CACHE` or else the user's cache
    folder, and is fetched (90 MB) if `download` allows it. Labels index the alphabetical list of the classes present;
    `note` says if it is not the whole set. Raises InputError and ResourceError (if the download fails).
    """
    return listed(ARCHIVE, argument, root, download)


def listed(archive: Archive, argument: str | None, root: Path | None, download: bool) -> Dataset:
    """List an archive of EuroSAT; see `open_dataset`."""
    if argument is not None:
        raise InputError(
            f"{archive.name} takes no argument, got {argument!r}; a copy of the data is named with --root"
        )
    path = root if root is not None else _official(archive, download)
    tree = open_tree(path, archive.layout)
    base, classes = _class_folders(tree, archive)
    names: dict[str, str] = {}
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = [f for f in tree.images(base + name) if f.lower().endswith(archive.suffixes)]
        if not files:
            raise InputError(
                f"{path} has no {archive.suffixes[0]} images in {name}; {archive.layout}"
            )
        names |= {f"{name}/{file}": f"{base}{name}/{file}" for file in files}
        labels += [label] * len(files)
    return Dataset(
        name=archive.name,
        classes=tuple(classes),
        sample_ids=tuple(names),
        labels=tuple(labels),
        read=functools.partial(named, tree, names),
        note=_note({name: labels.count(i) for i, name in enumerate(classes)}),
        root=path / base if path.is_dir() else None,
        bands=archive.bands,
        units=archive.units,
    )


def _class_folders(tree: Tree, archive: Archive) -> tuple[str, list[str]]:
    """Find the level of the class folders; return its prefix and their names."""
    waiting = [""]
    for level in waiting:
        found = tree.folders(level)
        if COUNTS.keys() & set(found):
            if unknown := sorted(set(found) - COUNTS.keys()):
                raise InputError(
                    f"{tree.path} has class folders that EuroSAT has not: {some(unknown)}; {archive.layout}. "
                    "Images of your own are read with --dataset folder:PATH"
                )
            return level and f"{level}/", found
        waiting += [f"{level}/{name}".strip("/") for name in found if name in archive.levels]
    zips = sorted(p.name for p in tree.path.glob("*.zip")) if tree.path.is_dir() else []
    hint = f"; it holds {zips[0]}: name that file" if zips else ""
    raise InputError(
        f"{tree.path} holds no folder named after a EuroSAT class{hint}; {archive.layout}"
    )


def _note(counts: dict[str, int]) -> str:
    if counts == COUNTS:
        return ""
    total, missing = sum(counts.values()), sorted(set(COUNTS) - set(counts))
    note = f"not the whole of EuroSAT: {total:,} of {sum(COUNTS.values()):,} images"
    return f"{note}, no {', '.join(missing)}" if missing else note


def _official(archive: Archive, download: bool) -> Path:
    """Find the official archive among the downloads, or fetch it; its hash is checked each time."""
    folder, sources = _download.user_folder("SAMTL_DATA_CACHE"), archive.sources
    by_hand = f"download {next(iter(sources))} by hand and name the file with --root"
    if not (download or _download.downloaded(sources, folder)):
        raise InputError(
            f"{archive.name} is not in {folder} and a dry run does not download it: run without --dry-run, or {by_hand}"
        )
    return _download.download(sources, folder, by_hand, archive.size)
