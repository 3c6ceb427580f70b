"""Reading a store: memory-mapped shards, every row's checksum verified, only committed rows returned."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samtl.errors import InputError
from samtl.splits import Samples, Split, resolve
from samtl.store.coordinates import as_xarray, as_zarr
from samtl.store.format import TIERS, ArraySpec
from samtl.store.log import read_log
from samtl.store.reader import views
from samtl.store.reader.shards import Shards
from samtl.store.state import Quarantined, StoreState, Summary, load_state, quarantined
from samtl.store.storage import as_place, locate, open_storage

if TYPE_CHECKING:
    import xarray
    import zarr


class Store:
    """What is committed in a store when it is opened, for the rows that its sample table lists.

    Made by `samtl.open`. Rows are numbered 0 to n - 1 in the order of the arrays, without the rows that are not listed.
    Rows that are committed later are not seen.

    Attributes
    ----------
    path : Path or str
        A URL if it is in a bucket.
    fingerprint, identity : str, dict
        sha256 of what decides the rows' values, and its fields: encoder, weights, preprocessing, dtypes.
    snapshot : str
        sha256 over the records and the sample table.
    encoder, weights : str
        Its name, and what its weights are, such as "untrained (random:0)".
    untrained : bool
        Whether they are random numbers.
    dataset, note, task : str
        `note` is what readers of figures must know; `task` is `classification`, `multilabel` or
        `regression` (labels), or `segmentation` (masks).
    classes : tuple of str
        A label, or a pixel of a mask, is an index into them.
    arrays, tiers : tuple of str
        Arrays with at least one committed block; those of them that are tiers.
    block_rows : int
        Rows that are written together.
    """

    def __init__(self, state: StoreState) -> None:
        if state.table.about.number < 0:
            raise InputError(
                f"{state.storage.url} was begun, and has no rows yet: run samtl embed again"
            )
        self.state, self._table = state, state.table
        about, identity = state.table.about, state.identity
        self.dataset, self.note, self.task = about.dataset, about.note, about.task
        self.classes, self.encoder = about.classes, identity.encoder
        self.path = as_place(state.storage.url)
        # The working directory may be another one when it travels.
        self._place_of_files = self.path if isinstance(self.path, str) else self.path.absolute()
        self.fingerprint, self.identity = identity.sha256, identity.fingerprint
        self.snapshot = state.snapshot
        self.weights = str(identity.about.get("weights", "unknown"))
        self.untrained = bool(identity.about.get("untrained", True))
        self.block_rows = identity.block_rows
        self.arrays = tuple(name for name in identity.arrays if name in state.log.arrays)
        self.tiers = tuple(tier for tier in TIERS if tier in self.arrays)
        self._shards = Shards(state, self.arrays)

    def __repr__(self) -> str:
        """Describe the store in a line."""
        done = int(self.valid().sum())
        return (
            f"<samtl store {self.path}: {done} of {len(self)} rows, {', '.join(self.arrays)}; "
            f"{self.encoder}, weights {self.weights}>"
        )

    def _repr_html_(self) -> str:
        """Describe the store in a notebook."""
        return views.html(self)

    def __fspath__(self) -> str:
        """Stand for its path wherever one is expected."""
        return str(self.path)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process, which opens it there."""
        return _opened_again, (self._place_of_files, self._table.about.digest)

    def __len__(self) -> int:
        """Count the listed rows, embedded or not."""
        return len(self._table)

    def __contains__(self, sample_id: object) -> bool:
        """Whether there is a row of a sample id."""
        return sample_id in self.row_of

    def __getitem__(self, key: SupportsIndex | str) -> dict[str, Any]:
        """Return the row of a number or sample id: `sample_id`, label, group, part and its values in each array.

        `valid` is False if they are fill values, because the image could not be used. UnknownName if there is no such
        id; InputError if there is no such row, or it is not committed in every array.
        """
        return views.record(self, views.row_number(self, key))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Read one row after the other, each as by its number."""
        return map(self.__getitem__, range(len(self)))

    @property
    def name(self) -> str:
        """The folder's name without `.zarr`."""
        last = str(self.path) if isinstance(self.path, str) else self.path.resolve().name
        return last.rpartition("/")[2].removesuffix(".zarr")

    @property
    def sample_ids(self) -> tuple[str, ...]:
        """Id of each row: its image's path below the dataset's root."""
        return self._table.samples

    @functools.cached_property
    def row_of(self) -> dict[str, int]:
        """Row of each sample id."""
        return {name: row for row, name in enumerate(self.sample_ids)}

    @property
    def image_size(self) -> int:
        """Side of the encoder's square in pixels."""
        return int(self.identity["image_size"])

    @property
    def groups(self) -> tuple[str, ...]:
        """What each row's image was cut from, such as its scene; empty if that is not known."""
        return self._table.groups

    @property
    def parts(self) -> tuple[str, ...]:
        """Each row's part of the dataset's own split: `train`, `validation`, `test`; or empty."""
        return self._table.parts

    @property
    def labels(self) -> NDArray[Any]:
        """Class index of each row, (rows,) int32, -1 if there is none; or what the task has instead.

        `multilabel`: (rows, K) int8, 1 for classes that apply, -1 if that is not known; `regression`: (rows,) float64,
        NaN if there is none.
        """
        return self._table.labels.copy()

    def columns(self, array: str) -> tuple[str, ...]:
        """Names of the columns of `pooled` or `image_stats`."""
        return self._spec(array).columns

    def shape(self, array: str) -> tuple[int, ...]:
        """Shape of an array over the listed rows."""
        return (len(self), *self._spec(array).row_shape)

    def bytes_of(self, array: str) -> int:
        """Bytes of all listed rows of an array, committed or not."""
        return len(self) * self._spec(array).row_bytes

    def dtype(self, array: str) -> str:
        """Name of an array's dtype."""
        return self._spec(array).dtype

    def valid(self, *arrays: str) -> NDArray[np.bool_]:
        """Mark the rows, (rows,), that hold an embedding in some arrays, by default in every one of the store."""
        return self.state.marked("ok", arrays)

    def samples(self, array: str = "pooled") -> Samples:
        """Describe the rows for `samtl.splits`; usable are those that hold an embedding and have a label or mask."""
        self._spec(array)
        return views.samples_of(self, array)

    def usable(self, array: str = "pooled") -> NDArray[np.int64]:
        """Numbers of the rows, ascending, that hold an embedding and have a label or mask.

        If no row has a label, numbers of all rows that hold an embedding.
        """
        rows = self.samples(array).rows
        return rows if len(rows) else np.flatnonzero(self.valid(array))

    @property
    def missing(self) -> int:
        """Number of rows that are not committed in every array of the store."""
        return len(self) - int(self.state.marked("committed").sum())

    @property
    def quarantined(self) -> tuple[Quarantined, ...]:
        """Rows whose images could not be used, in the order of rows."""
        return quarantined(self.state)

    def image_sha256(self, row: int) -> str:
        """sha256 of the image file that a row was made from; "" if it is not committed."""
        return self.state.log.image(self._place(row))

    def mask_sha256(self, row: int) -> str:
        """sha256 of a row's mask as the dataset gave it; "" if there is none."""
        return self.state.log.mask(self._place(row))

    def checksum(self, array: str, row: int) -> int:
        """Return the committed CRC-32C of a row's bytes, which `compact` keeps; nothing is read."""
        return int(self.state.log.arrays[array].crc32c[self._committed(array, row)])

    def read(self, array: str, rows: ArrayLike | None = None) -> NDArray[Any]:
        """Copy rows into memory, verified.

        Parameters
        ----------
        array : str
            A name in `arrays`.
        rows : array_like of int, optional
            Row numbers in any order, repeats allowed, or a mask of all rows; by default all.

        Returns
        -------
        (number of rows, ...) ndarray
            In the array's dtype. Quarantined rows hold fill values, NaN for floats.

        Raises
        ------
        DamageError
            If a row's bytes do not match its record.
        InputError
            If a row is not committed, or there is no such array or row.
        """
        self._spec(array)
        wanted = views.row_numbers(self, np.arange(len(self)) if rows is None else rows)
        places = np.array([self._committed(array, row) for row in wanted.tolist()], np.int64)
        return self._shards.read(array, places)

    @overload
    def features(
        self,
        array: str = ...,
        *,
        rows: ArrayLike | None = ...,
        columns: str | Sequence[str] | None = ...,
    ) -> tuple[NDArray[Any], NDArray[Any]]: ...
    @overload
    def features(
        self,
        array: str = ...,
        *,
        split: float | str | Split,
        seed: int = ...,
        columns: str | Sequence[str] | None = ...,
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]: ...
    def features(
        self,
        array: str = "pooled",
        *,
        rows: ArrayLike | None = None,
        columns: str | Sequence[str] | None = None,
        split: float | str | Split | None = None,
        seed: int = 0,
    ) -> tuple[NDArray[Any], ...]:
        """Read features and targets as scikit-learn takes them.

        Parameters
        ----------
        array : str
            A name in `arrays`. For scikit-learn, `grid` and `dense` have to be flattened.
        rows : array_like of int, optional
            By default `usable(array)`.
        columns : str or sequence of str, optional
            Which columns: patterns of their names without the number, such as "mean,std" or "block*".
        split, seed : float, str or Split, int
            As for `samtl.fit_head`, which holds out the same samples.

        Returns
        -------
        X, y : (n, ...) and (n,) ndarray
            X in the array's dtype; y of int64, -1 for no label. Of a segmentation, y are masks, (n, S, S) uint8, in
            which 255 is ignored.
        X_train, X_test, y_train, y_test : ndarray
            Instead, with `split`, in the order of `sklearn.model_selection.train_test_split`. Samples for validation
            are in the training part.

        Raises
        ------
        DamageError, InputError
            As `read`; also if no such split is possible, or the machine has less memory.
        """
        if split is None:
            chosen = self.usable(array) if rows is None else rows
            return views.features(self, array, views.row_numbers(self, chosen), columns)
        if rows is not None:
            raise InputError("rows and split exclude each other: leave one out")
        found = resolve(self.samples(array), split, seed)
        parts = [views.features(self, array, part, columns) for part in (found.seen, found.test)]
        return tuple(part[i] for i in (0, 1) for part in parts)

    def pairs(self, array: str = "pooled", rows: ArrayLike | None = None) -> views.Pairs:
        """Return a data set for `torch.utils.data.DataLoader`: (features, target) of rows, by default `usable(array)`.

        Features have the array's dtype; targets are class indices, or masks (S, S) uint8.
        """
        chosen = self.usable(array) if rows is None else rows
        return views.Pairs(self, array, views.row_numbers(self, chosen))

    def row(self, array: str, row: int) -> NDArray[Any]:
        """Return one row without copying it, verified as by `read`; read-only and backed by the mapped file."""
        return self._shards.rows(array, [self._committed(array, row)])[0]

    def _committed(self, array: str, row: int) -> int:
        """Return the place of a row in the arrays, refusing one that is not committed in an array."""
        self._spec(array)
        place = self._place(row)
        if not self.state.log.arrays[array].committed[place]:
            raise InputError(
                f"row {row} of {array} is not in {self.path} yet; run samtl embed again to go on with it"
            )
        return place

    def _place(self, row: int) -> int:
        if not 0 <= row < len(self):
            raise InputError(f"{self.path} has rows 0 to {len(self) - 1}, asked for {row}")
        return int(self._table.rows[row])

    def key(self, row: int) -> str:
        """Name a row's embedding for good: the sha256 of the fingerprint followed by that of the image file."""
        return hashlib.sha256(f"{self.fingerprint}{self.image_sha256(row)}".encode()).hexdigest()

    def writers(self) -> list[dict[str, Any]]:
        """Return what each record says of who wrote it: versions, device, host, process, time (`committed`)."""
        return [record.writer for record in read_log(self.state.storage, self.state.identity)]

    def summary(self) -> Summary:
        """Count what the store holds."""
        return views.summary(self)

    def zarr(self) -> zarr.Group:
        """Open the plain read-only Zarr group; its rows are those of the arrays, listed or not.

        DamageError if the metadata is not what this store's must be: Zarr would follow any shape and codec.
        """
        return as_zarr(self.state)

    def to_xarray(self) -> xarray.Dataset:
        """Return the listed rows as a dataset of dask arrays with a chunk for each block.

        Coordinates along `sample` are `sample`, `label`, `label_name`, `valid`, and `group` and `part` if known.
        Values are not verified against the records. Attributes are numbers and texts, which netCDF takes, but grids
        are float16, which it does not. Needs the extra `xarray`.
        """
        return as_xarray(self.state)

    def _spec(self, array: str) -> ArraySpec:
        if array not in self.arrays:
            raise InputError(
                f"{self.path} has no array {array!r}; it has {', '.join(self.arrays) or 'none yet'}"
            )
        return self.state.identity.arrays[array]


def _opened_again(path: str | Path, table: str) -> Store:
    store = open_store(path)
    if store._table.about.digest != table:
        raise InputError(
            f"what the rows of {path} are has changed since it was opened: open it again"
        )
    return store


def open_store(path: str | os.PathLike[str] | None = None) -> Store:
    """Open a store for reading.

    Parameters
    ----------
    path : str or path, optional
        The `NAME.zarr` folder, its URL, or a folder with exactly one; by default $SAMTL_CACHE, or ./cache.

    Raises
    ------
    InputError
        If there is no store, or one of another format, or there are several.
    DamageError
        If its fingerprint, sample table or log is damaged.
    """
    place = locate() if path is None else as_place(path)
    state = load_state(open_storage(place))
    if state is None:
        place = locate(place)
        state = load_state(open_storage(place))
    if state is None:
        raise InputError(f"{place} is no store; expected a folder NAME.zarr made by `samtl embed`")
    return Store(state)
