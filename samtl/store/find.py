"""Where stores are: the one that is meant when none is named."""

from __future__ import annotations

import os
from pathlib import Path

from samtl.errors import InputError
from samtl.store.durable import recover_folder
from samtl.store.fingerprint import FILE
from samtl.store.remote import as_path

DEFAULT_CACHE = "cache"


def cache_folder() -> Path:
    """Where stores land by default: `$SAMTL_CACHE`, else `./cache`."""
    return as_path(os.environ.get("SAMTL_CACHE") or DEFAULT_CACHE)


def stores_in(folder: Path) -> list[Path]:
    """List the stores directly in a folder, by name, but for hidden ones; a store is the only one of itself."""
    if (folder / FILE).is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob(f"[!.]*/{FILE}"))


def locate(cache: str | Path | None = None) -> Path:
    """Find the store that is meant.

    Parameters
    ----------
    cache : str or Path, optional
        A store, or a folder with exactly one, on a disk or in a bucket (`s3://...`); by default `cache_folder()`.

    Raises
    ------
    InputError
        Where there is none, or several; these are listed.
    """
    folder = as_path(cache) if cache is not None else cache_folder()
    recover_folder(folder.resolve())
    found = stores_in(folder)
    if not found:
        raise InputError(
            f"there is no store in {folder}; make one with samtl embed, or name one with --cache"
        )
    if len(found) > 1:
        listed = "\n".join(f"  --cache {path}" for path in found)
        raise InputError(f"there are several stores in {folder}; choose one:\n{listed}")
    return found[0]
