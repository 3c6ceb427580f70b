"""Features of another encoder become a store, and stand beside those of samtl's own encoders."""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from samtl._io import as_text, digest
from samtl.datasets import Dataset, MapStyle, only, resolve, shuffled
from samtl.datasets.files.listing import PART_NAMES, own_name
from samtl.datasets.tables.features import Features, read_features
from samtl.datasets.tables.labels import class_indices, text_of
from samtl.embed.changes import table_of
from samtl.embed.decode import Decoded, decoded_ahead
from samtl.embed.pipeline import Block, Progress, commit
from samtl.embed.plan import place_in, refuse_foreign
from samtl.errors import InputError, MismatchError
from samtl.images.bands import statistics_of
from samtl.images.transforms import PATCH
from samtl.store.fingerprint import IMPORTED, make_identity
from samtl.store.format import array_specs, rows_of_a_block
from samtl.store.reader import Store
from samtl.store.samples import SampleTable
from samtl.store.state import Quarantined, load_state
from samtl.store.storage import open_storage
from samtl.store.writer import open_writer


@dataclass(frozen=True)
class ImportResult:
    """What an import did."""

    store: Path | str  #: str in a bucket
    dataset: str
    encoder: str  #: `import:NAME`
    fingerprint: str  #: identity of the store's rows
    rows: int  #: samples of the store
    features: int  #: numbers of each sample
    without_features: int  #: images of the dataset that the file has no features of
    not_in_dataset: int  #: ids of the file that are no image of the dataset
    columns_left_out: tuple[str, ...]  #: of the file, that are no features
    quarantined: tuple[Quarantined, ...]

    def to_json(self) -> dict[str, object]:
        """Return the result as JSON values."""
        return {**asdict(self), "store": str(self.store)}


def import_features(
    file: str | Path,
    *,
    dataset: str | Dataset | MapStyle | None = None,
    root: str | Path | None = None,
    name: str | None = None,
    out: str | Path | None = None,
    on_event: Callable[[Progress], None] | None = None,
) -> ImportResult:
    """Make a store of features that another encoder computed, one vector for each sample.

    They become the array `pooled`, which heads for classes and numbers learn from. With a dataset, samples, labels,
    groups and parts are the dataset's, and its images are read for their hashes and statistics: held-out samples are
    the same as those of other stores of it, if the file has features of all images.

    Parameters
    ----------
    file : str or Path
        A table, CSV or Parquet, with a column of ids called id, sample_id, path or file, and columns of numbers or one
        column of lists; or an npz file with ids, features and, unless there is a dataset, labels. Without a dataset a
        table has a column label, and may have group and part.
    dataset : str or Dataset, optional
        The dataset that the ids are sample ids of, as for `samtl embed`.
    root : str or Path, optional
        Folder or archive with the dataset's files.
    name : str, optional
        What the encoder is called, by default as the file.
    out : str or Path, optional
        The store, NAME.zarr, or the folder in which it gets its usual name. By default $SAMTL_CACHE, or ./cache.
    on_event : callable, optional
        Called with `Progress` after each block.

    Returns
    -------
    ImportResult

    Raises
    ------
    InputError
        If the file is not what it must be, or no id is one of the dataset.
    MismatchError
        If the store has other features or samples.
    """
    path = Path(file).expanduser()
    found = read_features(path)
    called = own_name(path.with_suffix("")) if name is None else name
    if not called or own_name(Path(called)) != called:
        raise InputError(f"--name takes letters, digits, '.', '_' and '-', got {called!r}")
    if dataset is None:
        if root is not None:
            raise InputError("--root is for a dataset: name it with --dataset")
        source, listed = shuffled(_own_dataset(found, path, called)), len(found.ids)
    else:
        whole = shuffled(resolve(dataset, root))
        source, listed = _matched(whole, found, path), len(whole)
    statistics = statistics_of(source.bands) if dataset is not None else ()
    specs = array_specs(
        channels=0, grid=(0, 0), cells=0, square=0, features=found.names, statistics=statistics
    )
    if dataset is None:
        specs.pop("original_size")
    place = place_in(
        out, ".".join([source.name] * (dataset is not None) + [f"import-{called}", "zarr"])
    )
    source.require_outside(place)
    storage = open_storage(place)
    refuse_foreign(place, storage)
    state, table = load_state(storage), table_of(source)
    if state and state.table.about.number >= 0 and not state.table.same_content(table):
        raise MismatchError(
            f"{place} has other samples or labels; name another store with --out:",
            [("samples", _told(state.table), _told(table))],
        )
    identity = make_identity(
        _fields(found, source, f"{IMPORTED}{called}"),
        specs,
        {"weights": f"features of {as_text(path.name)}", "untrained": False},
        rows_of_a_block(len(source), [specs["pooled"]]),
    )
    about = {"versions": {"samtl": importlib.metadata.version("samtl")}}
    writer = open_writer(storage, identity, table, tuple(specs), about, state)
    at, done, written = {one: i for i, one in enumerate(found.ids)}, 0, 0
    blocks = [
        Block(number, tuple(specs), [at for at in writer.positions(number) if at >= 0])
        for number in writer.pending()
    ]
    order = [position for block in blocks for position in block.positions]
    bad = 0
    with closing(_decoded(source, order, dataset is not None)) as items:
        for block in blocks:
            for item in itertools.islice(items, len(block.positions)):
                row = found.values[at[source.sample_ids[item.row]]]
                if not (item.code or np.isfinite(row).all()):
                    reason = "the file has NaN, infinity or nothing in its features"
                    item = replace(item, code="nonfinite", reason=reason)
                bad += bool(item.code)
                block.items[item.row] = replace(item, pixels=None, outputs={"pooled": row})
            written += commit(writer, block) or 0
            done += len(block.positions)
            if on_event is not None:
                on_event(Progress(done, len(order), written, bad, 0.0, None))
    store = Store(writer.finish())
    return ImportResult(
        store=place,
        dataset=store.dataset,
        encoder=store.encoder,
        fingerprint=store.fingerprint,
        rows=len(store),
        features=len(found.names),
        without_features=listed - len(source),
        not_in_dataset=len(found.ids) - len(source),
        columns_left_out=found.left_out,
        quarantined=store.quarantined,
    )


def _told(table: SampleTable) -> str:
    return f"{len(table)} of {table.about.dataset}"


def _decoded(source: Dataset, order: list[int], images: bool) -> Any:
    """Yield what is known of samples in this order: of their images, if there are any."""
    if images:
        return decoded_ahead(source, iter(order), PATCH, PATCH, "cpu")
    return (Decoded(position) for position in order)


def _own_dataset(found: Features, path: Path, name: str) -> Dataset:
    """Make a dataset without images of what a file says of its samples."""
    about = found.about
    if "label" not in about:
        raise InputError(
            f"{path} has no labels: add a column label, or name the dataset that has them with --dataset"
        )
    classes, labels, readings = class_indices(about["label"], "label")
    parts = [text_of(part).lower() for part in about.get("part", ())]
    if strange := [part for part in parts if part not in PART_NAMES]:
        raise InputError(f"{path}: parts are {', '.join(PART_NAMES)}, not {strange[0]!r}")
    groups = tuple(map(text_of, about.get("group", ())))
    if "" in groups:
        raise InputError(f"{path}: every sample must have a group, or none")

    def no_image(sample_id: str) -> bytes:
        raise InputError(f"{sample_id!r} has no image: only its features were imported")

    return Dataset(
        name, classes, found.ids, labels, no_image, groups=groups,
        parts=tuple(PART_NAMES[part] for part in parts), readings=tuple(readings),
    )  # fmt: skip


def _matched(dataset: Dataset, found: Features, path: Path) -> Dataset:
    """Take the images of a dataset that there are features of."""
    if dataset.read_mask is not None:
        raise InputError(
            f"{dataset.name} has masks, and {path} one vector for each image: import features for a dataset of labels"
        )
    ids = set(found.ids)
    there = [name for name in dataset.sample_ids if name in ids]
    if not there:
        raise InputError(
            f"no id of {path} is one of {dataset.name}: the file has {found.ids[0]!r}, the dataset "
            f"{dataset.sample_ids[0]!r}; write ids as the dataset has them"
        )
    return only(dataset, there)


def _fields(found: Features, source: Dataset, encoder: str) -> dict[str, Any]:
    """Return the fields of a fingerprint: there is no preprocessing, and the features are the weights."""
    order = sorted(range(len(found.ids)), key=found.ids.__getitem__)
    features = hashlib.sha256(found.values[order].astype("<f4").tobytes()).hexdigest()
    weights = digest({"ids": sorted(found.ids), "features": features, "names": found.names})
    return {
        "encoder": {"name": encoder, "weights_sha256": weights},
        "bands": list(source.bands),
        "units": source.units,
        "scaling": {},
        "preprocessing": {},
        "image_size": 0,
        "stored_dtypes": {"pooled": "float32"},
        "compute_dtype": "float32",
    }
