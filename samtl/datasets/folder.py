"""Images of your own, `folder:PATH`: one sub-folder for each class."""

from __future__ import annotations

from pathlib import Path

from samtl.datasets.base import Dataset
from samtl.datasets.listing import (
    FolderReader,
    expanded,
    images_below,
    is_hidden,
    kind_of,
    subfolders,
)
from samtl.datasets.tree import own_name
from samtl.errors import InputError
from samtl.images.codecs import SUFFIXES

_LAYOUT = (
    "expected is a folder with one sub-folder for each class, at least two, and images in them: "
    "PATH/<class>/*.jpg (or .jpeg, .png, .webp, .tif, .tiff, .bmp)"
)


def open_dataset(argument: str | None, root: Path | None, download: bool = True) -> Dataset:
    """List a folder of class folders.

    Hidden files and folders and files that are not named like images are left out. Folders inside a
    class folder count to the class. What is named like an image and is none that can safely be
    read (a pipe, a device, a link out of the folder, a name that is not UTF-8 or has a line
    break) ends the listing: left out silently, it would make another dataset.

    Parameters
    ----------
    argument : str, optional
        The folder, as in `folder:PATH`.
    root : Path, optional
        The folder, where there is no `argument`.
    download : bool
        Has no meaning here.

    Returns
    -------
    Dataset
        Named `folder-` and the folder's own name.

    Raises
    ------
    InputError
        Where the folder is not laid out as expected.
    """
    if argument and root is None:
        path = expanded(argument)
    elif root is not None and argument is None:
        path = root
    else:
        came = f"both {argument!r} and {str(root)!r}" if root is not None else "neither"
        raise InputError(f"a folder of images is named by folder:PATH or by --root, got {came}")
    kind = kind_of(path)
    if kind != "folder":
        what = "is a file" if kind == "file" else "does not exist"
        raise InputError(f"{str(path)!r} {what}; {_LAYOUT}")
    classes = tuple(subfolders(path))
    listed = {name: images_below(path / name, path, SUFFIXES) for name in classes}
    _check(path, listed)
    return Dataset(
        name=f"folder-{own_name(path)}",
        classes=classes,
        sample_ids=tuple(f"{name}/{file}" for name in classes for file in listed[name]),
        labels=tuple(i for i, name in enumerate(classes) for _ in listed[name]),
        read=FolderReader(path),
    )


def _check(path: Path, listed: dict[str, list[str]]) -> None:
    loose = [
        entry.name
        for entry in path.iterdir()
        if entry.suffix.lower() in SUFFIXES and not is_hidden(entry.name) and not entry.is_dir()
    ]
    if loose:
        raise InputError(
            f"{str(path)!r} has images beside its class folders ({len(loose)}, such as "
            f"{min(loose)!a}), whose class is unknown; {_LAYOUT}"
        )
    if len(listed) < 2:
        came = f"only one sub-folder, {next(iter(listed))!r}" if listed else "no sub-folder"
        raise InputError(f"{str(path)!r} has {came}; {_LAYOUT}")
    empty = [name for name, files in listed.items() if not files]
    if empty:
        raise InputError(
            f"{str(path)!r} has no image in {', '.join(map(repr, empty[:5]))}; add some or remove "
            f"the folder: {_LAYOUT}"
        )
