"""Whether a store is what was committed, what its images are by now, and what the encoder makes of its rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samtl.datasets import Dataset, resolve
from samtl.embed.decode import decode_row, require_drive
from samtl.embed.plan import require_usable
from samtl.embed.reload import reload_encoder
from samtl.errors import DamageError, InputError, MismatchError
from samtl.images.codecs import BadImage, mask_sha256
from samtl.store.fingerprint import FILE
from samtl.store.maintenance import Repaired, repair
from samtl.store.reader import Store, open_store
from samtl.store.storage import as_place, locate, open_storage
from samtl.store.verify import Checked, Finding, check

#: Largest relative L2 distance of a row from what the encoder makes of its image now, by compute dtype. Engines and
#: devices differ by less, other images and other weights by more.
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
        The image or mask is another one, or cannot be read; or both are the same, and the class, or the part of the
        dataset's own split, is another one.
    told : str
    """

    row: int
    sample_id: str
    what: str
    told: str


@dataclass(frozen=True)
class Recomputed:
    """A row that went through the encoder again: the largest relative L2 distance over the tiers, and its tier."""

    row: int
    sample_id: str
    distance: float
    tier: str
    within: bool


@dataclass(frozen=True)
class Verification:
    """Result of `verify`.

    Attributes
    ----------
    store : Path or str
    level : str
    checked : Checked
        The files, before the repair if there was one.
    repaired : Repaired or None
    refused : str
        Why a repair that was asked for was not possible, or "".
    images : tuple of ImageFinding
    images_compared : int
    images_added : int
        Images of the dataset that the store has no row for.
    recomputed : tuple of Recomputed
    recompute : int
        How many of these were asked for.
    """

    store: Path | str
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
        """Exit code of the command.

        2 if something is damaged and stays so; 3 if images, classes or parts are not those of the rows; 1 if rows hold
        no embedding; else 0.
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
        """Return the result as JSON values."""
        return {
            "store": str(self.store),
            "level": self.level,
            **self.checked.to_json(),
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
    """Compare a store with its commit log, and with its images and encoder if these are at hand.

    Parameters
    ----------
    store : str or Path, optional
        The store, or a folder with exactly one; by default $SAMTL_CACHE, or ./cache.
    level : {"quick", "rows", "deep"}
        `quick` compares sizes and records, `rows` the checksum of every row, `deep` also the sha256 of every file, and
        of every image and mask of the dataset, and classes and parts.
    repair_it : bool
        Set damaged blocks aside, so that the next embed does exactly these again, and write damaged metadata again.
        Nobody may write to the store meanwhile.
    dataset : str or Dataset, optional
        What the store was made from, as for embed; read by level deep and by recompute.
    root : str or Path, optional
        Folder or archive with the dataset's files.
    recompute : int
        Number of random rows that go through the encoder again.
    seed : int
        Seed of the choice of these rows.
    checkpoint : str or Path, optional
        The encoder's weights; by default those that the store names.
    device : str
        Device for these rows, as for embed.
    on_progress : callable, optional
        Called with what is done, how much of it, and how much there is.

    Returns
    -------
    Verification

    Raises
    ------
    InputError
        If there is no store, `recompute` lacks a dataset, or nothing reads the dataset that is named; if an image that
        is to be recomputed cannot be decoded.
    MismatchError
        If the encoder, or the dataset, is not that of the store; if the dataset has no image of an embedded row.
    ResourceError
        If the drive of the store, or of the images, gives out.
    """
    if recompute < 0:
        raise InputError(f"--recompute must not be below 0, got {recompute}")
    if recompute and dataset is None:
        raise InputError("--recompute needs the images: name the store's --dataset")
    if dataset is not None and level != "deep" and not recompute:
        raise InputError("--dataset is read by --deep and --recompute only: add one of them")
    storage = open_storage(_place(store))
    tell = on_progress or (lambda what, done, total: None)
    repaired, refused = None, ""
    checked = check(storage, level, lambda done, total: tell("bytes of shards", done, total))
    if repair_it and (checked.findings or checked.leftovers):
        try:
            repaired = repair(storage, checked)
        except DamageError as error:  # the findings are reported all the same
            refused = str(error)
    found: tuple[ImageFinding, ...] = ()
    compared = added = 0
    again: tuple[Recomputed, ...] = ()
    if dataset is not None and (repaired is not None or not checked.findings):
        opened, listed = open_store(storage.url), resolve(dataset, root)
        require_usable(listed)
        where = _positions(opened, listed)
        if level == "deep":
            found, compared = _compare_images(opened, listed, where, tell)
            added = len(listed) - len(where)
        if recompute:
            rows = _choose_rows(opened, listed, where, seed)[:recompute]
            source = None if checkpoint is None else str(checkpoint)
            again = _recompute(opened, listed, where, rows, source, device, tell)
    return Verification(
        as_place(storage.url), level, checked, repaired, refused, found, compared, added, again, recompute
    )  # fmt: skip


def _place(store: str | Path | None) -> Path | str:
    """Find the store; one without a fingerprint is found by its own name only."""
    if store is not None:
        place = as_place(store)
        if str(place).endswith(".zarr") and open_storage(place).size(FILE) is None:
            return place
    return locate(store)


def _positions(store: Store, listed: Dataset) -> dict[int, int]:
    """Map rows of a store to images of a dataset."""
    if listed.name != store.dataset:
        raise MismatchError(
            f"{store.path} was made from another dataset:",
            [("dataset", store.dataset, listed.name)],
        )
    at = {sample_id: i for i, sample_id in enumerate(listed.sample_ids)}
    return {row: at[name] for row, name in enumerate(store.sample_ids) if name in at}


def _compare_images(
    store: Store, listed: Dataset, where: dict[int, int], tell: OnProgress
) -> tuple[tuple[ImageFinding, ...], int]:
    """Compare images, masks, classes and parts with those of the rows."""
    found = []
    compared = 0
    had, has = _targets(store), _targets(listed)
    for row, sample_id in enumerate(store.sample_ids):
        image, mask = store.image_sha256(row), store.mask_sha256(row)
        what: tuple[str, str] | None = None
        if image or mask:  # or it is not committed, or was never read
            compared += 1
            if row not in where:
                what = "gone", "it is not listed any more"
            else:
                what = _other_image(listed, sample_id, image, mask)
        if what is None and row in where:
            what = _other_target(had[row], has[where[row]])
        if what:
            found.append(ImageFinding(row, sample_id, *what))
        tell("images", row + 1, len(store))
    return tuple(found), compared


def _other_image(listed: Dataset, sample_id: str, image: str, mask: str) -> tuple[str, str] | None:
    """Say how an image or its mask differs from those with these digests, of which one may be "" for unknown."""
    of = "image"
    try:
        now = hashlib.sha256(listed.read(sample_id)).hexdigest() if image else ""
        if now == image and mask:
            if listed.read_mask is None:
                return "gone", "the dataset has no masks"
            of, image, now = "mask", mask, mask_sha256(listed.read_mask(sample_id))
    except (BadImage, InputError, OSError) as error:
        require_drive(sample_id, error)
        return "gone", f"its {of}: {error}"
    return None if now == image else ("changed", f"its {of} is not the one of the row")


def _targets(of: Store | Dataset) -> list[tuple[str, str]]:
    """List the name of each image's class, and its part, "" if it has none; classes of pixels are in the masks."""
    names = (*of.classes, "")  # the label -1 means no class
    classes = [names[label] if of.task == "classification" else "" for label in of.labels]
    return list(zip(classes, of.parts or [""] * len(of), strict=True))


def _other_target(had: tuple[str, str], has: tuple[str, str]) -> tuple[str, str] | None:
    kinds = (("relabelled", "class"), ("regrouped", "part"))
    for (what, of), old, new in zip(kinds, had, has, strict=True):
        if old != new:
            return what, f"its {of} is {new or 'none'}, the row has {old or 'none'}"
    return None


def _choose_rows(store: Store, listed: Dataset, where: dict[int, int], seed: int) -> list[int]:
    """Draw embedded rows whose images the dataset has, in random order."""
    whole = np.flatnonzero(store.valid(*store.tiers)).tolist()
    rows = [row for row in whole if row in where]
    if whole and not rows:
        raise MismatchError(
            f"none of the {len(whole)} embedded rows of {store.path} can be recomputed: the dataset lists no image of "
            "theirs, as if folders were renamed; name the --dataset and --root that it was made from:",
            [("sample_id", f"{store.sample_ids[whole[0]]!r} for one", f"{listed.sample_ids[0]!r} for one")],
        )  # fmt: skip
    chosen: list[int] = np.random.default_rng(seed).permutation(rows).tolist()
    return chosen


def _recompute(
    store: Store,
    listed: Dataset,
    where: dict[int, int],
    rows: list[int],
    checkpoint: str | None,
    device: str,
    tell: OnProgress,
) -> tuple[Recomputed, ...]:
    """Put rows through the encoder again."""
    encoder = reload_encoder(
        store.identity, store.weights, store.path, f"the one that made {store.path}", checkpoint, device
    )  # fmt: skip
    images = replace(listed, labels=(-1,) * len(listed), read_mask=None)  # the encoder sees no mask
    found = []
    for done, row in enumerate(rows):
        tell("rows through the encoder", done, len(rows))
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
        distance, tier = max(
            (_distance(store.read(tier, [row])[0], outputs[tier][0]), tier) for tier in store.tiers
        )
        within = distance <= TOLERANCE[str(store.identity["compute_dtype"])]
        found.append(Recomputed(row, sample_id, distance, tier, within))
    return tuple(found)


def _distance(stored: NDArray[np.floating], now: NDArray[np.floating]) -> float:
    """Compute the relative L2 distance."""
    have, want = stored.astype(np.float64), now.astype(np.float64)
    return float(np.linalg.norm(have - want)) / max(float(np.linalg.norm(want)), 1e-12)
