"""EuroSAT RGB: 27,000 Sentinel-2 tiles of 64 x 64 pixels in 10 land-cover classes.

The data are by Helber et al. (arXiv 1709.00029), under the MIT licence. Both official archives are
read, `EuroSAT.zip` (`eurosat/2750/<Class>/*.jpg`) and `EuroSAT_RGB.zip`
(`EuroSAT_RGB/<Class>/*.jpg`), packed or unpacked, from any level. The sample id is
`<Class>/<file>` in each of them, so that stores made from either agree. A zip is read in place.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from samtl.datasets.archive import Archive
from samtl.datasets.base import Dataset, Reader
from samtl.datasets.listing import (
    FolderReader,
    images_below,
    is_hidden,
    kind_of,
    natural_path,
    subfolders,
)
from samtl.errors import InputError, ResourceError

_log = logging.getLogger(__name__)

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


class Source(NamedTuple):
    """An address that the official archive can be had from."""

    url: str
    file_name: str
    known_hash: str


# In the order in which they are tried.
SOURCES = (
    Source(
        "https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
        "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
        "EuroSAT.zip",
        "md5:c8fa014336c82ac7804f0398fcb19387",
    ),
    Source(
        "https://zenodo.org/records/7711810/files/EuroSAT_RGB.zip?download=1",
        "EuroSAT_RGB.zip",
        "sha256:b4f5b234ecb7d7ff9c6cddb046543b4717c53fd6e9815be6c0e80cc614f51b90",
    ),
)

_SUFFIXES = frozenset({".jpg", ".jpeg"})
_LEVELS = ("", "2750", "EuroSAT_RGB", "eurosat/2750", "eurosat", "EuroSAT/2750", "EuroSAT")
_LAYOUT = (
    "expected is EuroSAT RGB as EuroSAT.zip (eurosat/2750/<Class>/*.jpg) or EuroSAT_RGB.zip "
    "(EuroSAT_RGB/<Class>/*.jpg), the zip itself or the folder that it unpacks to"
)


@dataclass(frozen=True)
class _ArchiveReader:
    archive: Archive
    prefix: str

    def __call__(self, sample_id: str) -> bytes:
        return self.archive.read(self.prefix + sample_id)


def open_dataset(argument: str | None, root: Path | None, download: bool = True) -> Dataset:
    """List EuroSAT.

    Parameters
    ----------
    argument : None
        EuroSAT takes none.
    root : Path, optional
        A zip archive or a folder. Without it, the official archive is taken from the download
        folder, which is `$SAMTL_DATA_CACHE` or else the user's cache folder.
    download : bool
        Whether an archive that is not in the download folder is fetched (90 MB).

    Returns
    -------
    Dataset
        Labels index the alphabetical list of the classes there are. `note` says so where it is not
        the whole set.

    Raises
    ------
    InputError
        Where `root` holds something else, or what was downloaded is not the official archive.
    ResourceError
        Where the download fails.
    """
    if argument is not None:
        raise InputError(
            f"eurosat takes no argument, got {argument!r}; a copy of the data is named with --root"
        )
    path = root if root is not None else _official_archive(download)
    read: Reader
    kind = kind_of(path)
    if kind == "nothing":
        raise InputError(f"there is no {path}; {_LAYOUT}")
    if kind == "folder":
        base = _base_folder(path)
        listed = {name: images_below(base / name, base, _SUFFIXES) for name in subfolders(base)}
        read = FolderReader(base)
    else:
        archive = Archive(path)
        prefix, listed = _list_archive(archive)
        read = _ArchiveReader(archive, prefix)
    _check(path, listed)
    classes = tuple(sorted(listed))
    return Dataset(
        name="eurosat",
        classes=classes,
        sample_ids=tuple(f"{name}/{file}" for name in classes for file in listed[name]),
        labels=tuple(i for i, name in enumerate(classes) for _ in listed[name]),
        read=read,
        note=_note({name: len(listed[name]) for name in classes}),
    )


def _check(path: Path, listed: dict[str, list[str]]) -> None:
    unknown = sorted(set(listed) - set(COUNTS))
    if unknown:
        raise InputError(
            f"{path} has class folders that EuroSAT has not: {', '.join(unknown[:5])}; {_LAYOUT}. "
            "Images of your own are read with --dataset folder:PATH"
        )
    empty = [name for name in sorted(listed) if not listed[name]]
    if empty:
        raise InputError(f"{path} has no JPEG images in {', '.join(empty)}; {_LAYOUT}")


def _note(counts: dict[str, int]) -> str:
    if counts == COUNTS:
        return ""
    total, whole = sum(counts.values()), sum(COUNTS.values())
    note = f"not the whole of EuroSAT: {total:,} of {whole:,} images"
    missing = sorted(set(COUNTS) - set(counts))
    return f"{note}, no {', '.join(missing)}" if missing else note


def _base_folder(path: Path) -> Path:
    """Find the folder of class folders in `path`, at whichever level of the layouts `path` is."""
    for level in _LEVELS:
        base = path / level
        if any((base / name).is_dir() for name in COUNTS):
            return base
    zips = sorted(p.name for p in path.glob("*.zip"))
    hint = f"; it holds {zips[0]}: give that file itself" if zips else ""
    raise InputError(f"{path} holds no folder named after a EuroSAT class{hint}; {_LAYOUT}")


def _list_archive(archive: Archive) -> tuple[str, dict[str, list[str]]]:
    """Group the archive's images by class, and find what all their names begin with."""
    for level in _LEVELS:
        prefix = level and f"{level}/"
        inside = [
            name.removeprefix(prefix).split("/", 1)
            for name in archive.names
            if name.startswith(prefix) and not any(map(is_hidden, name.split("/")))
        ]
        listed: dict[str, list[str]] = {parts[0]: [] for parts in inside if len(parts) == 2}
        if listed.keys() & COUNTS.keys():
            break
    else:
        raise InputError(f"{archive.path} holds no folder named after a EuroSAT class; {_LAYOUT}")
    for name, file in (parts for parts in inside if len(parts) == 2):
        if Path(file).suffix.lower() in _SUFFIXES:
            listed[name].append(file)
    for files in listed.values():
        files.sort(key=natural_path)
    return prefix, listed


def _official_archive(download: bool) -> Path:
    """Find the official archive among the downloads, or fetch it; its hash is checked each time."""
    import pooch

    folder = Path(os.environ.get("SAMTL_DATA_CACHE") or pooch.os_cache("samtl"))
    for source in SOURCES:
        path = folder / source.file_name
        if path.is_file() and _is_official(path, source):
            return path
    by_hand = f"download {SOURCES[0].url} by hand and give the file with --root"
    if not download:
        raise InputError(
            f"EuroSAT is not in {folder} and a dry run is not to download it: run without --dry-run, or {by_hand}"
        )
    failures = []
    for source in SOURCES:
        try:
            return _fetch(source, folder)
        except (InputError, ResourceError) as error:
            failures.append(error)
    # Where each address answers, but with other bytes, trying again will not help.
    kind = InputError if all(isinstance(e, InputError) for e in failures) else ResourceError
    raise kind(f"EuroSAT could not be downloaded: {'; '.join(map(str, failures))}; {by_hand}")


def _fetch(source: Source, folder: Path) -> Path:
    import pooch

    partial = folder / f".{source.file_name}.{secrets.token_hex(8)}.partial"
    # pooch closes no response that says "not found", so they are kept to be closed here.
    answers: list[Any] = []
    download = pooch.HTTPDownloader(
        chunk_size=2**20, hooks={"response": lambda answer, **_: answers.append(answer)}
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _log.info("downloading %s into %s", source.url, folder)
        # Not pooch.retrieve: that logs to standard error, which is not the library's to write to.
        download(source.url, str(partial), None)
        if not _is_official(partial, source):
            raise InputError(
                f"{source.url} gave {partial.stat().st_size:,} bytes whose hash is not "
                f"{source.known_hash}"
            )
        return partial.replace(folder / source.file_name)
    except OSError as error:  # the network's errors are OSErrors, too
        # The network's own words are a nest of nested errors; the traceback keeps them.
        status = getattr(getattr(error, "response", None), "status_code", None)
        what = (
            f"answered with HTTP status {status}" if status else f"failed ({type(error).__name__})"
        )
        raise ResourceError(f"{source.url} {what}") from error
    finally:
        for answer in answers:
            answer.close()
        with contextlib.suppress(OSError):
            partial.unlink()


def _is_official(path: Path, source: Source) -> bool:
    import pooch

    algorithm, _, digest = source.known_hash.partition(":")
    return bool(pooch.file_hash(str(path), alg=algorithm) == digest)
