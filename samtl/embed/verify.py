"""Whether a store is what was committed, what its images are by now, and what the encoder makes of its rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samtl.datasets import Dataset, MapStyle, resolve
from samtl.embed.changes import Found, look
from samtl.embed.decode import decode_row, require_drive
from samtl.embed.plan import require_usable
from samtl.embed.reload import reload_encoder
from samtl.encoders.base import Encoder
from samtl.errors import DamageError, InputError, MismatchError
from samtl.splits.labels import label_texts
from samtl.store.maintenance import Repaired, repair
from samtl.store.reader import Store, open_store
from samtl.store.storage import IDENTITY, as_place, locate, open_storage
from samtl.store.verify import Checked, Finding, check

#: Largest relative L2 distance of a row from what the encoder makes of its image now, by compute dtype. Engines and
#: devices differ by less, other images and other weights by more.
TOLERANCE = {"float32": 2e-3, "float16": 1e-2, "bfloat16": 5e-2, "int8": 5e-2}

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ImageFinding:
    """A row that is not what the dataset has now.

    `what` is `changed` if the image or mask is another one, `gone` if it cannot be read, and if both are the same,
    `relabelled` or `regrouped` if the class, or the part of the dataset's own split, is another one.
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
    """Result of `verify`."""

    store: Path | str
    level: str
    checked: Checked  #: the files, before the repair if there was one
    repaired: Repaired | None = None
    refused: str = ""  #: why a repair that was asked for was not possible
    images: tuple[ImageFinding, ...] = ()
    images_compared: int = 0
    images_added: int = 0  #: images of the dataset that the store has no row for
    recomputed: tuple[Recomputed, ...] = ()
    recompute: int = 0  #: how many of these were asked for

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
        far = not all(row.within for row in self.recomputed)
        if far or (self.findings and self.repaired is None):
            return InputError.exit_code
        if self.images:
            return MismatchError.exit_code
        lost = self.repaired is not None and self.repaired.blocks
        short = self.checked.quarantined or self.checked.missing or not self.checked.begun
        return 1 if lost or short else 0

    def to_json(self) -> dict[str, object]:
        """Return the result as JSON values, those of the check beside the rest."""
        content = asdict(replace(self, checked=Checked()))
        del content["checked"]
        rest = {"store": str(self.store), "exit_code": self.exit_code}
        return {**self.checked.to_json(), **content, **rest}


def verify(
    store: str | Path | None = None,
    level: str = "rows",
    *,
    repair_it: bool = False,
    dataset: str | Dataset | MapStyle | None = None,
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
        What the store was made from, as for embed; needed to compare images (deep) and to recompute rows.
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
    tell = on_progress or (lambda what, done, total: None)
    storage = open_storage(_place(store))
    checked = check(storage, level, lambda done, total: tell("bytes of shards", done, total))
    found = Verification(as_place(storage.url), level, checked, recompute=recompute)
    if repair_it and (checked.findings or checked.leftovers):
        try:
            found = replace(found, repaired=repair(storage, checked))
        except DamageError as error:  # the findings are reported all the same
            found = replace(found, refused=str(error))
    if dataset is None or (checked.findings and found.repaired is None):
        return found
    opened, listed = open_store(storage.url), resolve(dataset, root)
    require_usable(listed)
    if listed.name != opened.dataset:
        raise MismatchError(
            f"{opened.path} was made from another dataset:",
            [("dataset", opened.dataset, listed.name)],
        )
    at = {sample_id: i for i, sample_id in enumerate(listed.sample_ids)}
    where = {row: at[name] for row, name in enumerate(opened.sample_ids) if name in at}
    if level == "deep":
        differ, compared = _compare_images(opened, listed, where, tell)
        added = len(listed) - len(where)
        found = replace(found, images=differ, images_compared=compared, images_added=added)
    if recompute:
        rows = _choose_rows(opened, listed, where, seed)[:recompute]
        weights = None if checkpoint is None else str(checkpoint)
        encoder = reload_encoder(opened.identity, opened.weights, opened.path, weights, device)
        images = replace(listed, labels=(-1,) * len(listed), read_mask=None)  # it sees no mask
        images = images.taking(encoder.spec.bands, encoder.spec.units)
        again = []
        for done, row in enumerate(rows):
            tell("rows through the encoder", done, len(rows))
            again.append(_recompute(opened, images, encoder, row, where[row]))
        found = replace(found, recomputed=tuple(again))
    return found


def _place(store: str | Path | None) -> Path | str:
    """Find the store; one without a fingerprint is found by its own name only."""
    if store is not None:
        place = as_place(store)
        if str(place).endswith(".zarr") and open_storage(place).size(IDENTITY) is None:
            return place
    return locate(store)


def _compare_images(
    store: Store, listed: Dataset, where: dict[int, int], tell: OnProgress
) -> tuple[tuple[ImageFinding, ...], int]:
    """Compare images, masks, classes and parts with those of the rows; also count the images."""
    found: list[ImageFinding] = []
    # Others are not committed, or were never read.
    made = {row for row in range(len(store)) if store.image_sha256(row) or store.mask_sha256(row)}
    looked = look(listed, [store.sample_ids[row] for row in sorted(made & where.keys())])
    had, has = _targets(store), _targets(listed)
    for row, sample_id in enumerate(store.sample_ids):
        what: tuple[str, str] | None = None
        if row in made and row not in where:
            what = "gone", "it is not listed any more"
        elif row in made:
            what = _other_image(store, row, *next(looked))
        if what is None and row in where and had[row] != has[where[row]]:
            at = int(had[row][0] == has[where[row]][0])
            kind, of = (("relabelled", "class"), ("regrouped", "part"))[at]
            now, then = has[where[row]][at] or "none", had[row][at] or "none"
            what = kind, f"its {of} is {now}, the row has {then}"
        if what:
            found.append(ImageFinding(row, sample_id, *what))
        tell("images", row + 1, len(store))
    return tuple(found), len(made)


def _other_image(store: Store, row: int, sample_id: str, seen: Found) -> tuple[str, str] | None:
    """Say how an image or its mask differs from those of a row, of which one may be unknown."""
    if seen.error is not None:
        require_drive(sample_id, seen.error)
    image, mask = store.image_sha256(row), store.mask_sha256(row)
    for of, old, now in (("image", image, seen.image), ("mask", mask, seen.mask)):
        if old and not now:
            return "gone", f"its {of}: {seen.error or 'the dataset has no masks'}"
        if old and now != old:
            return "changed", f"its {of} is not the one of the row"
    return None


def _targets(of: Store | Dataset) -> list[tuple[str, str]]:
    """List each image's label as text, and its part, "" if it has none; classes of pixels are in the masks."""
    labels = of.truth if isinstance(of, Dataset) else of.labels
    return list(zip(label_texts(labels, of.classes), of.parts or [""] * len(of), strict=True))


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
    store: Store, images: Dataset, encoder: Encoder, row: int, position: int
) -> Recomputed:
    """Put a row through the encoder again."""
    sample_id = store.sample_ids[row]
    decoded = decode_row(images, position, encoder.spec.image_size)
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
    within = distance <= TOLERANCE[encoder.compute_dtype.partition("+")[0]]
    return Recomputed(row, sample_id, distance, tier, within)


def _distance(stored: NDArray[np.floating], now: NDArray[np.floating]) -> float:
    """Compute the relative L2 distance."""
    have, want = stored.astype(np.float64), now.astype(np.float64)
    return float(np.linalg.norm(have - want)) / max(float(np.linalg.norm(want)), 1e-12)
