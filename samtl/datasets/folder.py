"""Images of your own, `folder:PATH`: one sub-folder for each class, or no sub-folders and no labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from samtl.datasets.base import PARTS, Dataset
from samtl.datasets.files.archive import LISTED, left_out
from samtl.datasets.files.listing import (
    BANDS,
    PART_NAMES,
    PUBLISHED,
    FolderTree,
    bands_in,
    kind_of,
    one_place,
    options_of,
    own_name,
    published,
    some,
)
from samtl.errors import InputError

_LAYOUT = (
    "expected is a folder with one sub-folder for each class, at least two, and images in them: PATH/<class>/*.jpg "
    "(or .jpeg, .jfif, .png, .webp, .bmp, .tif, .tiff, .jp2); or PATH/train, PATH/val and PATH/test of such folders; "
    "or, without labels, images and no sub-folders"
)
# Images in formats that are not read, of which a reader of figures must know.
_NOT_READ = frozenset(
    {".gif", ".heic", ".avif", ".ppm", ".pgm", ".tga", ".dng", ".img", ".nc", ".hdf", ".h5", ".npy"}
)  # fmt: skip


def open_dataset(argument: str | None, root: Path | None, download: bool = True) -> Dataset:
    """List a folder of class folders, of parts (train, val, test) of class folders, or of images without labels.

    The folder is `argument`, as in `folder:PATH` or `folder:PATH?bands=B02,B03,B04`, or `root`; with both, `argument`
    is a path in `root`, and links may lead to any file in `root`. Hidden files and folders, and files that are not
    named like images, are left out;
    folders inside a class folder belong to the class, and are parts if all are named so. A file that is named like an
    image but cannot be read safely (a pipe, a device, a link that leads out, a name that is not UTF-8 or has a line
    break) is refused: without it, the dataset would be another. The dataset is named `folder-` and the folder's own
    name; `note` counts the images in formats that are not read. Raises InputError if the folder has another layout.
    """
    text, _, query = (argument or "").partition("?")
    path, bound = one_place("folder", text, root)
    options = options_of("folder", query, BANDS)
    if kind_of(path) != "folder":
        raise InputError(f"{str(path)!r} is no folder; {_LAYOUT}")
    tree = FolderTree(path, bound)
    folders, loose = tree.folders(), tree.images(deep=False)
    if not folders and loose:
        ids, labels, classes, tops = loose, [-1] * len(loose), [], [""]
    else:
        tops = _tops(path, folders)
        classes = tree.folders(tops[0])
        ids, labels = _labelled(tree, tops, classes)
    parts = published([_part(sample_id, 0 if tops[0] else 1) for sample_id in ids])
    others = left_out(tree, [""])
    unread = ", ".join(str(one) for one in others if one.what.split()[0] in _NOT_READ)
    return Dataset(
        name=f"folder-{own_name(path)}",
        classes=tuple(classes),
        sample_ids=tuple(ids),
        labels=tuple(labels),
        read=tree.read,
        note=unread and f"left out, since they are not read: {unread}",
        parts=parts,
        left_out=others,
        readings=tuple(_readings(ids, classes, tops, bool(parts))),
        root=path,
        **bands_in(options),
    )


def _tops(path: Path, folders: list[str]) -> list[str]:
    """Return the folders of parts, training first; or "", if the folders are those of classes."""
    parts = [name for name in folders if name.lower() in PART_NAMES]
    if len(parts) > 1 and len(parts) == len(folders):
        return sorted(parts, key=lambda name: PARTS.index(PART_NAMES[name.lower()]))
    if len(parts) > 1:
        others = sorted({*folders} - {*parts})
        raise InputError(
            f"{str(path)!r} has folders called as parts are, {parts}, and others, {others[:LISTED]}: classes or parts? "
            f"{_LAYOUT}"
        )
    if len(folders) < 2:
        inner = folders and FolderTree(path / folders[0]).folders()
        hint = f"; perhaps folder:{path / folders[0]} is meant" if len(inner) > 1 else ""
        raise InputError(f"{str(path)!r} has the sub-folders {folders}{hint}; {_LAYOUT}")
    return [""]


def _labelled(tree: FolderTree, tops: list[str], classes: list[str]) -> tuple[list[str], list[int]]:
    """List the ids and the labels of all images; each part must have the same classes, and no image beside them."""
    ids, labels = list[str](), list[int]()
    for top in tops:
        found, loose = tree.folders(top), tree.images(top, deep=False)
        if found != classes or len(found) < 2:
            raise InputError(
                f"the parts of {str(tree.path)!r} must have the same classes, at least two: {top!r} has {found}, "
                f"another has {classes}; {_LAYOUT}"
            )
        if loose:
            raise InputError(
                f"{str(tree.path / top)!r} has images beside its class folders ({len(loose)}, such as {loose[0]!a}), "
                f"whose class is unknown; {_LAYOUT}"
            )
        for label, name in enumerate(classes):
            folder = f"{top}/{name}".strip("/")
            files = tree.images(folder)
            if not files:
                raise InputError(f"{str(tree.path)!r} has no image in {folder!r}; {_LAYOUT}")
            ids += [f"{folder}/{file}" for file in files]
            labels += [label] * len(files)
    return ids, labels


def _part(sample_id: str, level: int) -> str:
    """Return the part that the folder at this level of an id is called after, or ""."""
    folders = sample_id.split("/")[:-1]
    return PART_NAMES.get(folders[level].lower(), "") if len(folders) > level else ""


def _readings(ids: list[str], classes: list[str], tops: list[str], parted: bool) -> Iterator[str]:
    if not classes:
        yield "no sub-folders: the images have no labels"
    if parted:
        yield PUBLISHED
    depth = 1 + bool(tops[0]) + (parted and not tops[0])  # of folders that mean something
    names = (sample_id.split("/")[:-1] for sample_id in ids)
    deeper = sorted({folders[depth] for folders in names if len(folders) > depth})
    if deeper:
        yield f"folders in class folders belong to the class: {some(deeper, LISTED)}"
