"""Datasets by name, and `Dataset`, what the rest of samtl knows of them."""

from __future__ import annotations

from pathlib import Path

from samtl import registry
from samtl.datasets.base import IGNORE as IGNORE
from samtl.datasets.base import PARTS as PARTS
from samtl.datasets.base import Dataset as Dataset
from samtl.datasets.base import LeftOut as LeftOut
from samtl.datasets.base import Understood as Understood
from samtl.datasets.base import groups_by as groups_by
from samtl.datasets.base import only as only
from samtl.datasets.base import shuffled as shuffled
from samtl.datasets.base import subset as subset
from samtl.datasets.files.listing import kind_of
from samtl.datasets.mapped.samples import MapStyle as MapStyle
from samtl.datasets.mapped.torch_dataset import from_torch as from_torch
from samtl.errors import InputError


def resolve(
    spec: str | Dataset | MapStyle, root: str | Path | None = None, *, download: bool = True
) -> Dataset:
    """List a dataset in natural order: class by class, files by number. Nothing is decoded yet.

    `spec` is `NAME` or `NAME:ARGUMENT`, such as `eurosat`, `folder:PATH`, `masks:PATH` or `synthetic:100`; a dataset is
    returned as it is, and what gives samples by their number is listed by `from_torch`. `root` is the folder or archive
    of the data. Raises UnknownName if no dataset has that name, InputError if the data are missing or have another
    layout, or must be downloaded and may not be, and ResourceError if a download fails.
    """
    spec = str(spec) if isinstance(spec, Path) else spec
    if not isinstance(spec, str):
        found = spec if isinstance(spec, Dataset) else from_torch(spec)
        if root is not None:
            raise InputError(f"{found.name!r} is no name of files; it takes no root")
        return found
    name, colon, argument = spec.partition(":")
    if name not in registry.names("datasets") and spec and kind_of(Path(spec)) == "folder":
        raise InputError(f"no dataset is called {spec!r}, but a folder is; use folder:{spec}")
    module = registry.load("datasets", name)
    where = None if root is None else Path(root).expanduser()
    dataset: Dataset = module.open_dataset(argument if colon else None, where, download)
    return dataset
