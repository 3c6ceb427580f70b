"""EuroSAT RGB: 27,000 Sentinel-2 tiles of 64 x 64 pixels in 10 land-cover classes.

By Helber et al. (arXiv 1709.00029), under the MIT licence. Both official archives are read, `EuroSAT.zip`
(`eurosat/2750/<Class>/*.jpg`) and `EuroSAT_RGB.zip` (`EuroSAT_RGB/<Class>/*.jpg`), packed or unpacked, from any
level. Sample ids are `<Class>/<file>` in each of them, so that stores made from either agree.
"""

from __future__ import annotations

import functools
from pathlib import Path

from samtl import _download
from samtl.datasets.base import Dataset
from samtl.datasets.files.archive import named, open_tree
from samtl.datasets.files.listing import Tree, some
from samtl.errors import InputError

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

# URLs of the official archives and their hashes, tried in this order.
SOURCES = {
    "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip":
        "md5:c8fa014336c82ac7804f0398fcb19387",
    "https://zenodo.org/records/7711810/files/EuroSAT_RGB.zip?download=1":
        "sha256:b4f5b234ecb7d7ff9c6cddb046543b4717c53fd6e9815be6c0e80cc614f51b90",
}  # fmt: skip

_SUFFIXES = (".jpg", ".jpeg")
_LEVELS = ("2750", "EuroSAT_RGB", "eurosat", "EuroSAT")  # folders above those of the classes
_LAYOUT = (
    "expected is EuroSAT RGB as EuroSAT.zip (eurosat/2750/<Class>/*.jpg) or EuroSAT_RGB.zip "
    "(EuroSAT_RGB/<Class>/*.jpg), the zip itself or the folder that it unpacks to"
)


def open_dataset(argument: str | None, root: Path | None, download: bool = True) -> Dataset:
    """List EuroSAT from `root`, a zip archive or a folder; it takes no `argument`.

    Without `root`, the official archive is taken from the download folder, `$SAMTL_DATA_CACHE` or else the user's cache
    folder, and is fetched (90 MB) if `download` allows it. Labels index the alphabetical list of the classes present;
    `note` says if it is not the whole set. Raises InputError and ResourceError (if the download fails).
    """
    if argument is not None:
        raise InputError(
            f"eurosat takes no argument, got {argument!r}; a copy of the data is named with --root"
        )
    path = root if root is not None else _official_archive(download)
    tree = open_tree(path, _LAYOUT)
    base, classes = _class_folders(tree)
    names: dict[str, str] = {}
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = [f for f in tree.images(base + name) if f.lower().endswith(_SUFFIXES)]
        if not files:
            raise InputError(f"{path} has no JPEG images in {name}; {_LAYOUT}")
        names |= {f"{name}/{file}": f"{base}{name}/{file}" for file in files}
        labels += [label] * len(files)
    return Dataset(
        name="eurosat",
        classes=tuple(classes),
        sample_ids=tuple(names),
        labels=tuple(labels),
        read=functools.partial(named, tree, names),
        note=_note({name: labels.count(i) for i, name in enumerate(classes)}),
        root=path / base if path.is_dir() else None,
    )


def _class_folders(tree: Tree) -> tuple[str, list[str]]:
    """Find the level of the class folders; return its prefix and their names."""
    waiting = [""]
    for level in waiting:
        found = tree.folders(level)
        if COUNTS.keys() & set(found):
            if unknown := sorted(set(found) - COUNTS.keys()):
                raise InputError(
                    f"{tree.path} has class folders that EuroSAT has not: {some(unknown)}; {_LAYOUT}. "
                    "Images of your own are read with --dataset folder:PATH"
                )
            return level and f"{level}/", found
        waiting += [f"{level}/{name}".strip("/") for name in found if name in _LEVELS]
    zips = sorted(p.name for p in tree.path.glob("*.zip")) if tree.path.is_dir() else []
    hint = f"; it holds {zips[0]}: name that file" if zips else ""
    raise InputError(f"{tree.path} holds no folder named after a EuroSAT class{hint}; {_LAYOUT}")


def _note(counts: dict[str, int]) -> str:
    if counts == COUNTS:
        return ""
    total, missing = sum(counts.values()), sorted(set(COUNTS) - set(counts))
    note = f"not the whole of EuroSAT: {total:,} of {sum(COUNTS.values()):,} images"
    return f"{note}, no {', '.join(missing)}" if missing else note


def _official_archive(download: bool) -> Path:
    """Find the official archive among the downloads, or fetch it; its hash is checked each time."""
    folder = _download.user_folder("SAMTL_DATA_CACHE")
    by_hand = f"download {next(iter(SOURCES))} by hand and name the file with --root"
    if not (download or _download.downloaded(SOURCES, folder)):
        raise InputError(
            f"EuroSAT is not in {folder} and a dry run does not download it: run without --dry-run, or {by_hand}"
        )
    return _download.download(SOURCES, folder, by_hand, "90 MB")
