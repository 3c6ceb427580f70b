"""Images of your own, `folder:PATH`: one sub-folder for each class."""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath

from samtl.datasets.base import PARTS, Dataset
from samtl.datasets.files.listing import FolderTree, kind_of, one_place, own_name
from samtl.errors import InputError

_LAYOUT = (
    "expected is a folder with one sub-folder for each class, at least two, and images in them: PATH/<class>/*.jpg "
    "(or .jpeg, .jfif, .png, .webp, .bmp, .tif, .tiff, .jp2); or PATH/train, PATH/val and PATH/test of such folders"
)
PART_NAMES = {
    "train": 0,
    "training": 0,
    "val": 1,
    "valid": 1,
    "validation": 1,
    "test": 2,
    "testing": 2,
}
# Images in formats that are not read: left out, but named.
_NOT_READ = frozenset(
    {".gif", ".heic", ".avif", ".j2k", ".ppm", ".pgm", ".tga", ".dng", ".img", ".nc", ".hdf", ".h5", ".npy"}
)  # fmt: skip


def open_dataset(argument: str | None, root: Path | None, download: bool = True) -> Dataset:
    """List a folder of class folders, or of parts (train, val, test) of class folders.

    The folder is `argument`, as in `folder:PATH`, or `root`. Hidden files and folders, and files that are not named
    like images, are left out; folders inside a class folder belong to the class. A file that is named like an image
    but cannot be read safely (a pipe, a device, a link out of the folder, a name that is not UTF-8 or has a line break)
    is refused: without it, the dataset would be another. The dataset is named `folder-` and the folder's own name;
    `parts` is set if the folder has parts; `note` counts the images in formats that are not read. Raises InputError
    if the folder has another layout.
    """
    path = one_place("folder", argument, root)
    if kind_of(path) != "folder":
        raise InputError(f"{str(path)!r} is no folder; {_LAYOUT}")
    tree = FolderTree(path)
    folders = tree.folders()
    if len(folders) < 2:
        raise InputError(f"{str(path)!r} has the sub-folders {folders}; {_LAYOUT}")
    parted = all(name.lower() in PART_NAMES for name in folders)
    tops = sorted(folders, key=lambda name: PART_NAMES[name.lower()]) if parted else [""]
    classes = tree.folders(tops[0])
    ids, labels, parts = list[str](), list[int](), list[str]()
    for top in tops:
        _require_classes(tree, top, classes)
        for label, name in enumerate(classes):
            folder = f"{top}/{name}".strip("/")
            files = tree.images(folder)
            if not files:
                raise InputError(f"{str(path)!r} has no image in {folder!r}; {_LAYOUT}")
            ids += [f"{folder}/{file}" for file in files]
            labels += [label] * len(files)
            parts += [PARTS[PART_NAMES[top.lower()]]] * len(files) if parted else []
    others = (PurePosixPath(f).suffix.lower() for n in folders for f in tree.images(n, _NOT_READ))
    left_out = ", ".join(f"{n} {suffix} files" for suffix, n in Counter(others).items())
    return Dataset(
        name=f"folder-{own_name(path)}",
        classes=tuple(classes),
        sample_ids=tuple(ids),
        labels=tuple(labels),
        read=tree.read,
        note=left_out and f"left out, since they are not read: {left_out}",
        parts=tuple(parts),
    )


def _require_classes(tree: FolderTree, top: str, classes: list[str]) -> None:
    """Require that the class folders in a part are those of the others, with no image beside them."""
    found, loose = tree.folders(top), tree.images(top, deep=False)
    if found != classes or len(found) < 2:
        raise InputError(
            f"the parts of {str(tree.path)!r} must have the same classes, at least two: {top!r} has {found}, another "
            f"has {classes}; {_LAYOUT}"
        )
    if loose:
        raise InputError(
            f"{str(tree.path / top)!r} has images beside its class folders ({len(loose)}, such as {loose[0]!a}), whose "
            f"class is unknown; {_LAYOUT}"
        )
