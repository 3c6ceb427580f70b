"""Stores made by the writer alone, their rows drawn from their images' names; and what may happen to their files."""

import hashlib
import json
from pathlib import Path

import numpy as np

from samtl.store.fingerprint import make_identity
from samtl.store.format import array_specs
from samtl.store.samples import SampleTable
from samtl.store.state import load_state
from samtl.store.storage import open_storage
from samtl.store.writer import open_writer

ROWS = 40  # three blocks, the last one not full
ARRAYS = ("pooled", "grid", "image_stats")
SPECS = array_specs(
    channels=3, grid=(4, 4), cells=2, square=8, features=list("abcde"), statistics=list("mn")
)
FIELDS = {"encoder": {"name": "stub", "weights_sha256": "0" * 64}, "image_size": 64}


def sha256(image):
    return hashlib.sha256(image.encode()).hexdigest()


def drawn(array, image):
    """The row that an image has in an array."""
    spec = SPECS[array]
    seed = int(sha256(f"{array} {image}")[:16], 16)
    return (np.random.default_rng(seed).random(spec.row_shape) * 200).astype(spec.dtype)


def make(place, n=ROWS, arrays=ARRAYS, *, bad=(), stop=None, images=None, task="classification"):
    """Write a store, or go on with it; gives the path.

    The rows are called i0, i1 and so on. `bad` are rows whose images are of no use; `stop` ends it after so many
    blocks, as if killed; `images` has the names of images that are not the sample's.
    """
    storage = open_storage(place)
    images = {row: f"i{row}" for row in range(n)} | (images or {})
    state = load_state(storage)
    table = SampleTable.make(
        dataset="made", classes=("x", "y"), rows=range(n), samples=[f"i{row}" for row in range(n)],
        labels=[-1 if task == "segmentation" else row % 2 for row in range(n)], task=task,
        images=state.table.images if state and len(state.table) == n else (),
    )  # fmt: skip
    identity = make_identity(FIELDS, SPECS, {"weights": "none", "untrained": True}, 16)
    writer = open_writer(storage, identity, table, arrays, {"device": "cpu"}, state)
    for block in writer.pending()[:stop]:
        here, missing = writer.block_rows(block), writer.missing(block)
        status = ["quarantined:truncated" if row in bad else "ok" for row in here]
        rows = {
            name: [None if row in bad else drawn(name, images[row]) for row in here]
            for name in missing
        }
        reasons = {row: "cut short" for row in here if row in bad}
        digests = [sha256(images[row]) for row in here]
        masks = digests if "mask" in missing else ()
        writer.write_block(block, rows, status, reasons, digests, masks)
    if stop is None:
        writer.finish()
    return place


def relisted(place, keep):
    """Publish a table that lists some of the rows only."""
    state = load_state(open_storage(place))
    old = state.table
    at = np.flatnonzero(np.isin(old.rows, list(keep)))
    table = SampleTable(old.about, old.columns.take(at))
    open_writer(state.storage, state.identity, table, list(state.log.arrays), state=state).finish()
    return place


# What may happen to a file


def flipped(path, random):
    data = bytearray(path.read_bytes())
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)


def cut(path, random):
    data = path.read_bytes()
    path.write_bytes(data[: random.randrange(len(data))])


def longer(path, random):
    path.write_bytes(path.read_bytes() + random.randbytes(random.randrange(1, 40)))


def zeroed(path, random):
    """A page that was never written."""
    data = bytearray(path.read_bytes())
    start = random.randrange(len(data))
    data[start : start + 4096] = bytes(len(data[start : start + 4096]))
    path.write_bytes(data)


def swapped(path, random):
    """With a file of its kind."""
    others = [p for p in path.parent.iterdir() if p.is_file() and not p.name.startswith(".")]
    other = random.choice(sorted(others))
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def deleted(path, random):
    path.unlink()


def emptied(path, random):
    path.write_bytes(b"")


def a_folder(path, random):
    path.unlink()
    path.mkdir()


DAMAGES = (flipped, cut, longer, zeroed, swapped, deleted, emptied, a_folder)


def files(store):
    """The files that say something, or hold rows."""
    found = sorted(path for path in Path(store).rglob("*") if path.is_file())
    return [path for path in found if not path.relative_to(store).name.startswith(".")]


def contents(store):
    """Map each file and folder of a store to its bytes, or None."""
    return {
        str(path.relative_to(store)): path.read_bytes() if path.is_file() else None
        for path in sorted(Path(store).rglob("*"))
        if not path.name.startswith(".")
    }


def means_the_same(store, before):
    """Whether nothing has changed but how JSON or Parquet is written."""
    after = contents(store)
    return after.keys() == before.keys() and all(
        after[name] == content or _same(name, after[name], content)
        for name, content in before.items()
    )


def _same(name, one, other):
    if one is None or other is None:
        return False
    try:
        if name.endswith(".json"):
            return json.loads(one) == json.loads(other)
        return name.endswith(".parquet") and _table(one) == _table(other)
    except Exception:
        return False


def _table(raw):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.ParquetFile(pa.BufferReader(raw)).read()
    return table.schema.metadata[b"samtl"], table.to_pydict()
