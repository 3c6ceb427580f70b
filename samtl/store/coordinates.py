"""What readers of plain Zarr, xarray first of all, find beside the rows: metadata and coordinates.

All of it follows from the sample table and the log, is replaced as a whole, and is never evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from samtl._io import canonical, crc32c
from samtl.errors import DamageError, require_extra
from samtl.store.fingerprint import Identity
from samtl.store.format import ROOT, ArraySpec, bytes_codec, packed, zarr_array
from samtl.store.state import StoreState, read_root

if TYPE_CHECKING:
    import xarray
    import zarr

_CONVENTION = (
    "https://github.com/geo-embeddings/embeddings-zarr-convention/blob/"
    "0655212938f36351245dbd3e5e8868f811d43663"
)
_OF_LOG = "valid/c.0"  # the only coordinate that follows from the log as well


def derived(state: StoreState, arrays: Sequence[str]) -> dict[str, bytes]:
    """Return the files that follow from a store's table and log, by name; the root's comes last.

    `arrays` are those that are there.
    """
    table, identity = state.table, state.identity
    files: dict[str, bytes] = {}
    inlined: dict[str, object] = {name: array_metadata(state, name) for name in arrays}
    coordinates = _coordinates(state, arrays)
    for name, (dimension, values) in coordinates.items():
        inlined[name], files[f"{name}/c.0"] = _encode(values, dimension)
    for name, content in inlined.items():
        files[f"{name}/{ROOT}"] = canonical(content)
    # Texts and numbers only: netCDF has no objects, and not every version has lists of texts.
    attributes: dict[str, object] = {
        "samtl_format": identity.fingerprint["format"],
        "samtl_fingerprint": identity.sha256,
        "samtl_table": table.about.number,
        "samtl_snapshot": state.snapshot,
        "dataset": table.about.dataset,
        "task": table.about.task,
        "encoder": identity.encoder,
        "weights": str(identity.about.get("weights", "")),
        "coordinates": " ".join(sorted(coordinates)),
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
    identity, spec, about = state.identity, state.identity.arrays[name], state.table.about
    # Not on the group, although the convention has it there: netCDF, to which `pooled` can be saved, takes no objects.
    grid = spec.dimensions[:1] == ("channel",)
    extra = _geoemb(identity, spec, about.dataset) if grid else {}
    return spec.metadata(about.rows_end, identity.block_rows, extra)


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
    if read_root(state.storage).table != table.about.number:
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
    along = {name: (dim, v[table.rows]) for name, (dim, v) in now.items() if dim == "sample"}
    for variable in found.variables.values():  # netCDF has texts and numbers only
        variable.attrs = {
            name: value if isinstance(value, (str, int, float)) else canonical(value).decode()
            for name, value in variable.attrs.items()
        }
    return found.chunk({"sample": tuple(sizes.tolist())}).assign_coords(along)


def compare_derived(state: StoreState) -> tuple[dict[str, str], bool]:
    """Compare the files that follow from a store's table and log with those that are there.

    Returns what is wrong with the files that are damaged, and whether the files are stale: they follow from another
    table or log, as after a pass that was killed.
    """
    root, damaged, outdated = read_root(state.storage), {}, False
    stale = root.snapshot not in ("", state.snapshot)
    held = root.arrays.union(state.log.arrays)
    arrays = [name for name in state.identity.arrays if name in held]
    for name, content in derived(state, arrays).items():
        try:
            there = state.storage.read(name)
        except FileNotFoundError:
            # A pass that has committed nothing may have been killed before it wrote any.
            if state.log.arrays and not stale:
                damaged[name] = "it is missing"
            continue
        except DamageError as error:
            damaged[name] = str(error)
            continue
        if there == content:
            continue
        if not name.endswith(ROOT) and packed(crc32c(there[:-4])) != there[-4:]:
            damaged[name] = "it fails its checksum"
        elif name == _OF_LOG and root.snapshot and len(there) == len(content):
            # A writer that ends beside another one, and is killed, may leave it behind the root.
            outdated = True
        elif not stale:
            damaged[name] = "it does not follow from the sample table and the log"
    return damaged, stale or outdated


def valid_is_current(state: StoreState) -> bool:
    """Whether the coordinate `valid` is there, and of this log."""
    dimension, values = _coordinates(state, ())["valid"]
    try:
        return state.storage.read(_OF_LOG) == _encode(values, dimension)[1]
    except (FileNotFoundError, DamageError):
        return False


def _coordinates(state: StoreState, arrays: Sequence[str]) -> dict[str, tuple[str, NDArray[Any]]]:
    """Make the coordinates: the dimension and values of each."""
    table, found = state.table, {}
    classes = np.array([*table.about.classes, ""], object)
    columns: dict[str, tuple[Any, object]] = {
        "sample": (table.samples, ""),
        "label": (table.indices, -1),
        "label_name": (table.label_names, ""),
        "valid": (state.marked("ok"), False),
        "group": (table.groups, ""),
        "part": (table.parts, ""),
    }
    if table.about.task == "regression":
        columns["target"] = table.labels, np.nan
    for name, (values, fill) in columns.items():
        if name not in ("group", "part") or values:
            dtype = getattr(values, "dtype", np.dtype(object))
            spread = np.full(table.about.rows_end, fill, dtype)
            spread[table.rows] = values
            found[name] = "sample", spread
    found["class_name"] = "class_name", classes[:-1]
    for name in arrays:
        spec = state.identity.arrays[name]
        if spec.columns:
            found[spec.dimensions[0]] = spec.dimensions[0], np.array(spec.columns, object)
        if spec.dimensions[:1] == ("channel",):
            for dimension, size in zip(spec.dimensions[1:], spec.row_shape[1:], strict=True):
                found[dimension] = dimension, np.arange(size, dtype=np.int32)
    return found


def _encode(values: NDArray[Any], dimension: str) -> tuple[dict[str, object], bytes]:
    """Encode a one-dimensional array of numbers, booleans or texts (objects) as `zarr.json` and its only chunk."""
    from numcodecs import VLenUTF8

    if values.dtype == object:
        kind, fill, data = "string", "", bytes(VLenUTF8().encode(values))
        codec: dict[str, object] = {"name": "vlen-utf8"}
    else:
        kind, fill = values.dtype.name, values.dtype.type(0).item()
        data, codec = values.astype(values.dtype.newbyteorder("<")).tobytes(), bytes_codec(kind)
    codecs: list[dict[str, object]] = [codec, {"name": "crc32c"}]
    metadata = zarr_array(values.shape, max(len(values), 1), kind, fill, codecs, (dimension,), {})
    return metadata, data + packed(crc32c(data))


def _geoemb(identity: Identity, spec: ArraySpec, source: str) -> dict[str, object]:
    """Return the attributes by which the embeddings-zarr-convention describes an array of token grids."""
    square = [identity.image_size] * 2
    return {
        "zarr_conventions": [
            {
                "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
                "name": "geoemb:",
                "schema_url": f"{_CONVENTION}/schema.json",
                "spec_url": f"{_CONVENTION}/README.md",
                "description": "metadata of geospatial embeddings",
            }
        ],
        "geoemb:type": "chip",
        "geoemb:dimensions": spec.row_shape[0],
        "geoemb:model": str(identity.about.get("model", identity.encoder)),
        "geoemb:source_data": [source],
        "geoemb:data_type": spec.dtype,
        "geoemb:chip_layout": {
            "layout_type": "irregular",
            "chip_size": square,
            "stride": square,
        },
    }
