"""What readers of plain Zarr, xarray first of all, find beside the rows: metadata and coordinates.

All of it follows from the sample table and the log, is replaced as a whole, and is never evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from samtl._io import canonical, crc32c
from samtl.errors import DamageError, require_extra
from samtl.store.format import ROOT, ArraySpec
from samtl.store.samples import read_table
from samtl.store.state import StoreState, read_root

if TYPE_CHECKING:
    import xarray
    import zarr

_CONVENTION = "https://github.com/geo-embeddings/embeddings-zarr-convention"
_COMMIT = "0655212938f36351245dbd3e5e8868f811d43663"
_Coordinate = tuple[NDArray[Any], str]  # values and the name of their dimension


def derived(state: StoreState, arrays: Sequence[str]) -> dict[str, bytes]:
    """Return the files that follow from a store's table and log, for readers of plain Zarr; the root's comes last.

    Parameters
    ----------
    state : StoreState
    arrays : sequence of str
        Those that are there.
    """
    table, identity = state.table, state.identity
    assert table is not None
    about = table.about
    files: dict[str, bytes] = {}
    inlined: dict[str, object] = {}
    for name in arrays:
        inlined[name] = array_metadata(state, name)
    for name, (values, dimension) in _coordinates(state, arrays).items():
        inlined[name], files[f"{name}/c.0"] = _encode(values, dimension)
    names = sorted(inlined.keys() - set(arrays))
    for name, content in inlined.items():
        files[f"{name}/{ROOT}"] = canonical(content)
    # Texts and numbers only: netCDF has no objects, and not every version has lists of texts.
    attributes: dict[str, object] = {
        "samtl_format": identity.fingerprint["format"],
        "samtl_fingerprint": identity.sha256,
        "samtl_table": about.number,
        "samtl_snapshot": state.snapshot,
        "dataset": about.dataset,
        "task": about.task,
        "encoder": identity.encoder,
        "weights": str(identity.about.get("weights", "")),
        "coordinates": " ".join(names),
    }
    root = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": attributes,
        # Inlined, so that readers need not list.
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": inlined},
    }
    return {**files, ROOT: canonical(root)}


def array_metadata(state: StoreState, name: str) -> dict[str, object]:
    """Return the `zarr.json` of one of a store's arrays."""
    assert state.table is not None
    identity, spec = state.identity, state.identity.arrays[name]
    extra: dict[str, object] = {}
    # Not on the group, although the convention has it there: netCDF, to which `pooled` can be saved, takes no objects.
    if spec.dimensions[:1] == ("channel",):
        model = str(identity.about.get("model", identity.encoder))
        extra = _geoemb(spec, identity.image_size, model, state.table.about.dataset)
    return spec.metadata(state.table.about.rows_end, identity.block_rows, extra)


def as_zarr(state: StoreState) -> zarr.Group:
    """Open a store with zarr-python, after comparing the metadata of its arrays with what it must be."""
    import zarr

    for name in state.log.arrays:
        try:
            found = state.storage.read(f"{name}/{ROOT}")
        except FileNotFoundError:
            found = b""
        if found != canonical(array_metadata(state, name)):
            raise DamageError(
                f"{state.storage.url}/{name}/{ROOT} is damaged or outdated; samtl verify --repair writes it again"
            )
    try:
        return zarr.open_group(state.storage.zarr_store(), mode="r", use_consolidated=False)
    except Exception as error:  # whatever zarr runs into in a damaged file
        raise DamageError(
            f"{state.storage.url}/{ROOT} is damaged ({error}); samtl verify --repair writes it again"
        ) from error


def as_xarray(state: StoreState) -> xarray.Dataset:
    """Open the listed rows with xarray, with the coordinates that they have now."""
    require_extra("dask", "xarray")
    table = state.table
    assert table is not None
    if read_root(state.storage).attributes.samtl_table != table.about.number:
        raise DamageError(
            f"{state.storage.url}/{ROOT} was derived from another sample table: open the store again, or let samtl "
            "verify --repair write it again"
        )
    found: xarray.Dataset = require_extra("xarray", "xarray").open_zarr(
        state.storage.zarr_store(), chunks=None, consolidated=True
    )
    if state.log.rows != len(table):
        found = found.isel(sample=table.rows)
    _, sizes = np.unique(table.rows // state.log.block_rows, return_counts=True)
    now = _coordinates(state, ())
    along = {name: ("sample", v[table.rows]) for name, (v, dim) in now.items() if dim == "sample"}
    return found.chunk({"sample": tuple(sizes.tolist())}).assign_coords(along)


def is_derived(state: StoreState, arrays: Sequence[str]) -> bool:
    """Whether what is there was derived from this table and log, for at least these arrays."""
    root = read_root(state.storage)
    there = root.consolidated_metadata.metadata.keys()
    return root.attributes.samtl_snapshot == state.snapshot and set(arrays) <= there


def compare_derived(state: StoreState) -> tuple[dict[str, str], bool]:
    """Compare the files that follow from a store's table and log with those that are there.

    Returns
    -------
    damaged : dict
        Name of a file to what is wrong with it.
    stale : bool
        Whether they follow from an earlier log, and perhaps an earlier table, as after a pass that was killed.
    """
    root, told, damaged = None, set(), {}
    with suppress(DamageError, FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        root = msgspec.json.decode(state.storage.read(ROOT))
        told = set(root["consolidated_metadata"]["metadata"])
    arrays = [name for name in state.identity.arrays if name in state.log.arrays or name in told]
    before = _earlier(state, root, arrays)
    for name, content in derived(state, arrays).items():
        try:
            there = state.storage.read(name)
        except FileNotFoundError:
            # A pass that has committed nothing may have been killed before it wrote any.
            if state.log.arrays and (before is None or name in before):
                damaged[name] = "it is missing"
            continue
        except DamageError as error:
            damaged[name] = str(error)
            continue
        sound = name.endswith(ROOT) or crc32c(there[:-4]) == int.from_bytes(there[-4:], "little")
        tolerated = before is not None and (there == before.get(name) or not name.endswith(ROOT))
        if there != content and not (tolerated and sound):
            damaged[name] = "it does not follow from the sample table and the log"
    return damaged, before is not None


def _earlier(state: StoreState, root: Any, arrays: list[str]) -> dict[str, bytes] | None:
    """Return the files from which a killed pass began, if the root is of that time, and sound."""
    assert state.table is not None
    now = state.snapshot
    with suppress(DamageError, FileNotFoundError, ValueError, KeyError, TypeError):
        told = root["attributes"]
        if told["samtl_table"] != state.table.about.number:
            table = read_table(state.storage, state.identity, int(told["samtl_table"]))
            state = replace(state, table=table)
        found = derived(state, arrays)
        mine = msgspec.json.decode(found[ROOT])
        mine["attributes"]["samtl_snapshot"] = str(told["samtl_snapshot"])
        found[ROOT] = canonical(mine)
        if told["samtl_snapshot"] != now and found[ROOT] == canonical(root):
            return found
    return None


def _coordinates(state: StoreState, arrays: Sequence[str]) -> dict[str, _Coordinate]:
    table = state.table
    assert table is not None
    rows, classes = table.rows, np.array([*table.about.classes, ""], object)

    def spread(values: Any, fill: object, dtype: Any) -> _Coordinate:
        found = np.full(table.about.rows_end, fill, dtype)
        found[rows] = values
        return found, "sample"

    found = {
        "sample": spread(np.array(table.samples, object), "", object),
        "label": spread(table.labels, -1, np.int32),
        "label_name": spread(classes[table.labels], "", object),
        "valid": spread(state.marked("ok"), False, bool),
        "class_name": (classes[:-1], "class_name"),
    }
    for name, texts in (("group", table.groups), ("part", table.parts)):
        if texts:
            found[name] = spread(np.array(texts, object), "", object)
    for name in arrays:
        spec = state.identity.arrays[name]
        if spec.columns:
            found[spec.dimensions[0]] = np.array(spec.columns, object), spec.dimensions[0]
        if spec.dimensions[:1] == ("channel",):
            for dimension, size in zip(spec.dimensions[1:], spec.row_shape[1:], strict=True):
                found[dimension] = np.arange(size, dtype=np.int32), dimension
    return found


def _encode(values: NDArray[Any], dimension: str) -> tuple[dict[str, object], bytes]:
    """Encode a one-dimensional array of numbers, booleans or texts (objects) as `zarr.json` and its only chunk."""
    from numcodecs import VLenUTF8

    if values.dtype == object:
        kind, data = "string", bytes(VLenUTF8().encode(values))
        fill: object = ""
        serializer: dict[str, object] = {"name": "vlen-utf8"}
    else:
        kind, fill = values.dtype.name, False if values.dtype == bool else 0
        data = values.astype(values.dtype.newbyteorder("<")).tobytes()
        serializer = {"name": "bytes"}
        if values.dtype.itemsize > 1:
            serializer["configuration"] = {"endian": "little"}
    metadata: dict[str, object] = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [len(values)],
        "data_type": kind,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [max(len(values), 1)]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": fill,
        "codecs": [serializer, {"name": "crc32c"}],
        "attributes": {},
        "dimension_names": [dimension],
        "storage_transformers": [],
    }
    return metadata, data + crc32c(data).to_bytes(4, "little")


def _geoemb(spec: ArraySpec, square: int, model: str, source: str) -> dict[str, object]:
    """Return the attributes by which the embeddings-zarr-convention describes an array of token grids."""
    return {
        "zarr_conventions": [
            {
                "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
                "name": "geoemb:",
                "schema_url": f"{_CONVENTION}/blob/{_COMMIT}/schema.json",
                "spec_url": f"{_CONVENTION}/blob/{_COMMIT}/README.md",
                "description": "metadata of geospatial embeddings",
            }
        ],
        "geoemb:type": "chip",
        "geoemb:dimensions": spec.row_shape[0],
        "geoemb:model": model,
        "geoemb:source_data": [source],
        "geoemb:data_type": spec.dtype,
        "geoemb:chip_layout": {
            "layout_type": "irregular",
            "chip_size": [square, square],
            "stride": [square, square],
        },
    }
