"""Whether a store is still what was committed, what its images are by now, and what the encoder says of its rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samtl.datasets import Dataset, resolve
from samtl.embed.decode import OUT_OF_RESOURCES, decode_row
from samtl.embed.plan import require_usable
from samtl.embed.reload import reload_encoder
from samtl.errors import (
    DamageError,
    InputError,
    MismatchError,
    ResourceError,
)
from samtl.images.codecs import BadImage, mask_sha256
from samtl.store.durable import recover_folder
from samtl.store.find import locate
from samtl.store.fingerprint import FILE
from samtl.store.layout import TIER_ARRAYS
from samtl.store.reader import Store, open_store
from samtl.store.remote import as_path
from samtl.store.repair import Repaired, repair
from samtl.store.verify import Checked, Finding, check
from samtl.store.writer import locked

#: Largest relative L2 distance of a row from what the encoder gives now, by what it computes in. Engines and devices
#: differ by less, other images and other weights by more.
TOLERANCE = {"float32": 2e-3, "float16": 1e-2, "bfloat16": 5e-2}

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ImageFinding:
    """A row that is not what the dataset has now.

    Attributes
    ----------
    row : int
    sample_id : str
    what : {"changed", "gone", "relabelled", "regrouped"}
        Its image, or mask, is not what it was made from, or is not to be had; both are, and its class is another, or
        its part of the split that the dataset ships with.
    told : str
    """

    row: int
    sample_id: str
    what: str
    told: str


@dataclass(frozen=True)
class Recomputed:
    """A row that went through the encoder again: its largest relative L2 distance over the tiers, and in which."""

    row: int
    sample_id: str
    distance: float
    tier: str
    within: bool


@dataclass(frozen=True)
class Verification:
    """What became of it.

    Attributes
    ----------
    store : Path
    level : str
    checked : Checked
        What the files are like; of before the repair, where there was one.
    repaired : Repaired or None
    refused : str
        Why there was no repair, where one was asked for, or "".
    images : tuple of ImageFinding
    images_compared : int
    images_added : int
        Of the dataset, that the store has no row for.
    recomputed : tuple of Recomputed
    recompute : int
        How many of these were asked for.
    """

    store: Path
    level: str
    checked: Checked
    repaired: Repaired | None
    refused: str
    images: tuple[ImageFinding, ...]
    images_compared: int
    images_added: int
    recomputed: tuple[Recomputed, ...]
    recompute: int

    @property
    def findings(self) -> list[Finding]:
        """What is not as it was committed."""
        return self.checked.findings

    @property
    def exit_code(self) -> int:
        """What the command ends with.

        2 where something is damaged and stays so, 3 where images are not those that the rows were made from, or of
        another class or part, 1 where rows hold no embedding, else 0.
        """
        if (self.findings and self.repaired is None) or not all(
            row.within for row in self.recomputed
        ):
            return InputError.exit_code
        if self.images:
            return MismatchError.exit_code
        lost = self.repaired is not None and self.repaired.blocks
        short = self.checked.quarantined or self.checked.missing or not self.checked.begun
        return 1 if lost or short else 0

    def to_json(self) -> dict[str, object]:
        """Give it as JSON values."""
        checked = asdict(replace(self.checked, records={}))  # of a large store they are many
        del checked["records"]
        return {
            "store": str(self.store),
            "level": self.level,
            **checked,
            "repaired": None if self.repaired is None else asdict(self.repaired),
            "refused": self.refused,
            "images": [asdict(one) for one in self.images],
            "images_compared": self.images_compared,
            "images_added": self.images_added,
            "recompute": self.recompute,
            "recomputed": [asdict(one) for one in self.recomputed],
            "exit_code": self.exit_code,
        }


def verify(
    store: str | Path | None = None,
    level: str = "rows",
    *,
    repair_it: bool = False,
    dataset: str | Dataset | None = None,
    root: str | Path | None = None,
    recompute: int = 0,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> Verification:
    """Hold a store against its commit log, and against its images and encoder where these are at hand.

    Parameters
    ----------
    store : path, optional
        By default the only one in the cache folder.
    level : {"quick", "rows", "deep"}
        Sizes and records; every row's checksum; sha256 of every file, and where there is a dataset, of every image and
        mask, beside the classes and parts of the images. Groups are left out: `embed` may have made its own.
    repair_it : bool
        Withdraw what is damaged, so that the next `embed` redoes exactly that, and write damaged metadata anew.
    dataset, root
        What the store was made from; as `samtl.embed` has them. Read by level "deep" and by `recompute` only.
    recompute : int
        So many rows, drawn at random, go through the encoder again; fewer where fewer have an embedding and an image.
    seed : int
        Of that draw.
    checkpoint, device
        Of that encoder; by default the weights that the store names.
    on_progress : callable, optional
        Called with what is done, how much of it, and how much there is.

    Returns
    -------
    Verification

    Raises
    ------
    InputError
        Where there is no store, `recompute` lacks a dataset, or nothing reads the dataset that is named; where that one
        could not become a store, or an image that is to be recomputed cannot be decoded.
    MismatchError
        Where the encoder, or the dataset, is not that of the store; where rows are to be recomputed and the dataset has
        the image of none.
    LockedError
        Where another process writes to a store that is to be repaired.
    ResourceError
        Where the drive of the store, or of the images, gives out.
    """
    if recompute < 0:
        raise InputError(f"--recompute must not be below 0, got {recompute}")
    if recompute and dataset is None:
        raise InputError("--recompute needs the images: name the store's --dataset")
    if dataset is not None and level != "deep" and not recompute:
        raise InputError("--dataset is read by --deep and --recompute only: add one of them")
    path = _path(store)
    tell = on_progress or (lambda what, done, all_of: None)
    repaired, refused = None, ""
    with locked(path) if repair_it else nullcontext():
        checked = check(path, level, lambda done, all_of: tell("bytes of shards", done, all_of))
        if repair_it and checked.findings:
            try:
                repaired = repair(path, checked)
            except DamageError as error:  # the findings are to be had all the same
                refused = str(error)
    images: tuple[ImageFinding, ...] = ()
    compared = added = 0
    recomputed: tuple[Recomputed, ...] = ()
    if dataset is not None and (repaired is not None or not checked.findings):
        opened = open_store(path)
        listed = resolve(dataset, root)
        require_usable(listed)
        where = _places(opened, listed)
        if level == "deep":
            images, compared = _images(opened, listed, where, tell)
            added = len(listed) - len(where)
        if recompute:
            source = None if checkpoint is None else str(checkpoint)
            recomputed = _recomputed(opened, listed, where, recompute, seed, source, device, tell)
    return Verification(
        path, level, checked, repaired, refused, images, compared, added, recomputed, recompute
    )


def _path(store: str | Path | None) -> Path:
    """Find the store; one whose fingerprint is gone is found by its own name only."""
    if store is not None:
        path = as_path(store)
        recover_folder(path.resolve())
        if path.suffix == ".zarr" and not (path / FILE).exists():
            return path
    return locate(store)


def _places(store: Store, listed: Dataset) -> dict[int, int]:
    """Map rows of a store to images of a dataset."""
    if listed.name != store.dataset:
        raise MismatchError(
            f"{store.path} was made from another dataset:",
            [("dataset", store.dataset, listed.name)],
        )
    at = {sample_id: i for i, sample_id in enumerate(listed.sample_ids)}
    return {row: at[name] for row, name in enumerate(store.sample_ids) if name in at}


def _images(
    store: Store, listed: Dataset, where: dict[int, int], tell: OnProgress
) -> tuple[tuple[ImageFinding, ...], int]:
    """Compare the images, their masks, classes and parts with what the rows were made from."""
    found = []
    compared = 0
    had, has = _targets(store), _targets(listed)
    for row, sample_id in enumerate(store.sample_ids):
        image, mask = store.image_sha256(row), store.mask_sha256(row)
        what: tuple[str, str] | None = None
        if image or mask:  # else it is not committed, or was never read
            compared += 1
            if row not in where:
                what = "gone", "it is not listed any more"
        if what is None and image:
            what = _image(listed, sample_id, image)
        if what is None and mask:
            what = _mask(listed, sample_id, mask)
        if what is None and row in where:
            what = _target(had[row], has[where[row]])
        if what:
            found.append(ImageFinding(row, sample_id, *what))
        tell("images", row + 1, len(store))
    return tuple(found), compared


def _image(listed: Dataset, sample_id: str, expected: str) -> tuple[str, str] | None:
    try:
        content = listed.read(sample_id)
    except (BadImage, InputError, OSError) as error:
        return _gone(sample_id, error)
    if hashlib.sha256(content).hexdigest() != expected:
        return "changed", "its bytes are not those that the row was made from"
    return None


def _mask(listed: Dataset, sample_id: str, expected: str) -> tuple[str, str] | None:
    if listed.read_mask is None:
        return "gone", "the dataset has no masks"
    try:
        there = mask_sha256(listed.read_mask(sample_id))
    except (BadImage, InputError, OSError) as error:
        return _gone(sample_id, error, "its mask: ")
    if there != expected:
        return "changed", "its mask is not the one that the row has"
    return None


def _targets(of: Store | Dataset) -> list[tuple[str, str]]:
    """Give the name of each image's class, and its part, "" where there is none; classes of masks are in the masks."""
    names = (*of.classes, "")  # which is what the label -1 is
    classes = [names[label] if of.task == "classification" else "" for label in of.labels]
    return list(zip(classes, of.parts or [""] * len(of), strict=True))


def _target(had: tuple[str, str], has: tuple[str, str]) -> tuple[str, str] | None:
    for what, of, old, new in zip(
        ("relabelled", "regrouped"), ("class", "part"), had, has, strict=True
    ):
        if old != new:
            now, then = (repr(name) if name else "none" for name in (new, old))
            return what, f"its {of} is {now}, the row has {then}"
    return None


def _gone(sample_id: str, error: Exception, which: str = "") -> tuple[str, str]:
    if isinstance(error, OSError) and error.errno in OUT_OF_RESOURCES:
        raise ResourceError(f"reading {sample_id} failed: {error.strerror}") from error
    return "gone", f"{which}{error}"


def _recomputed(
    store: Store,
    listed: Dataset,
    where: dict[int, int],
    k: int,
    seed: int,
    checkpoint: str | None,
    device: str,
    tell: OnProgress,
) -> tuple[Recomputed, ...]:
    """Put some rows through the encoder again."""
    whole = np.flatnonzero(store.valid(*(TIER_ARRAYS[tier] for tier in store.tiers)))
    rows = np.random.default_rng(seed).permutation([row for row in whole.tolist() if row in where])
    if len(whole) and not len(rows):
        had, has = store.sample_ids[whole[0]], listed.sample_ids[0]
        raise MismatchError(
            f"none of the {len(whole)} embedded rows of {store.path} can be recomputed: the dataset lists no image of "
            "theirs any more, as where folders were renamed; give the --dataset and --root that it was made from:",
            [("sample_id", f"{had!r} for one", f"{has!r} for one")],
        )
    encoder = reload_encoder(
        store.identity,
        store.weights,
        store.path,
        f"the one that made {store.path}",
        checkpoint,
        device,
    )
    images = replace(listed, read_mask=None)  # the encoder sees no mask
    found = []
    for done, row in enumerate(rows[:k].tolist()):
        tell("rows through the encoder", done, min(k, len(rows)))
        sample_id = store.sample_ids[row]
        decoded = decode_row(images, where[row], encoder.spec.image_size)
        if decoded.image_sha256 != store.image_sha256(row):
            raise MismatchError(
                f"the image {sample_id} is not the one that row {row} was made from:",
                [("image_sha256", store.image_sha256(row), decoded.image_sha256 or decoded.reason)],
            )
        if decoded.pixels is None:
            raise InputError(
                f"the image {sample_id} is the one that row {row} was made from, but cannot be decoded here: "
                f"{decoded.reason}"
            )
        outputs = encoder.encode([decoded.pixels], store.tiers)
        distances = {
            tier: _distance(store.read(TIER_ARRAYS[tier], [row])[0], outputs[TIER_ARRAYS[tier]][0])
            for tier in store.tiers
        }
        tier = max(distances, key=lambda name: distances[name])
        within = distances[tier] <= TOLERANCE[str(store.identity["compute_dtype"])]
        found.append(Recomputed(row, sample_id, distances[tier], tier, within))
    return tuple(found)


def _distance(stored: NDArray[np.floating], now: NDArray[np.floating]) -> float:
    """Give the relative L2 distance."""
    have, want = stored.astype(np.float64), now.astype(np.float64)
    return float(np.linalg.norm(have - want)) / max(float(np.linalg.norm(want)), 1e-12)
