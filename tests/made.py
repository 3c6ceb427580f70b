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
KEPT = set(range(ROWS)) - {1, 20}
ARRAYS = ("pooled", "grid", "image_stats")
SPECS = array_specs(
    channels=3, grid=(4, 4), cells=2, square=8, features=list("abcde"), statistics=list("mn")
)
FIELDS = {"encoder": {"name": "stub", "weights_sha256": "0" * 64}, "image_size": 64}


def sha256(image):
    return hashlib.sha256(image.encode()).hexdigest()


def state_of(place):
    return load_state(open_storage(place))


def drawn(array, image):
    """The row that an image has in an array."""
    spec = SPECS[array]
    seed = int(sha256(f"{array} {image}")[:16], 16)
    return (np.random.default_rng(seed).random(spec.row_shape) * 200).astype(spec.dtype)


def begin(place, n=ROWS, arrays=ARRAYS, *, fields=FIELDS, state=None, **columns):
    """Open a writer of rows that are called i0, i1 and so on."""
    given = {
        "dataset": "made", "classes": ("x", "y"), "rows": range(n),
        "samples": [f"i{row}" for row in range(n)], "labels": [row % 2 for row in range(n)],
    }  # fmt: skip
    identity = make_identity(fields, SPECS, {"weights": "none", "untrained": True}, 16)
    table = SampleTable.make(**given | columns)
    return open_writer(open_storage(place), identity, table, arrays, {"device": "cpu"}, state)


def write(writer, block, arrays=None, *, bad=(), images=None):
    """Write arrays of a block, by default those that it lacks.

    `bad` are rows whose images are of no use; `images` has the names of images that are not the sample's.
    """
    names = {row: (images or {}).get(row, f"i{row}") for row in writer.block_rows(block)}
    arrays = writer.missing(block) if arrays is None else arrays
    rows = {
        array: [None if row in bad else drawn(array, name) for row, name in names.items()]
        for array in arrays
    }
    status = ["quarantined:truncated" if row in bad else "ok" for row in names]
    reasons = {row: "cut short" for row in names if row in bad}
    digests = [sha256(name) for name in names.values()]
    masks = digests if "mask" in arrays else ()
    return writer.write_block(block, rows, status, reasons, digests, masks)


def make(place, n=ROWS, arrays=ARRAYS, *, stop=None, task="classification", **options):
    """Write a store, or go on with it, `stop` blocks far as if killed then; gives the path."""
    state = state_of(place)
    known = state.table.images if state and len(state.table) == n else ()
    labels = {"labels": [-1] * n} if task == "segmentation" else {}
    writer = begin(place, n, arrays, state=state, task=task, images=known, **labels)
    for block in writer.pending()[:stop]:
        write(writer, block, **options)
    if stop is None:
        writer.finish()
    return place


def relisted(place, keep):
    """Publish a table that lists some of the rows only."""
    state = state_of(place)
    old = state.table
    at = np.flatnonzero(np.isin(old.rows, list(keep)))
    table = SampleTable(old.about, old.columns.take(at))
    open_writer(state.storage, state.identity, table, list(state.log.arrays), state=state).finish()
    return place


def meanwhile(monkeypatch, owner, name, work):
    """Let something happen when a function has been called for the first time."""
    real, soon = getattr(owner, name), [work]

    def call(*args, **options):
        found = real(*args, **options)
        if soon:
            soon.pop()()
        return found

    monkeypatch.setattr(owner, name, call)


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


def contents(store):
    """Map each file and folder of a store to its bytes, or None."""
    return {
        str(path.relative_to(store)): path.read_bytes() if path.is_file() else None
        for path in sorted(Path(store).rglob("*"))
        if not path.name.startswith(".")
    }


def files(store):
    """The files that say something, or hold rows."""
    return [store / name for name, raw in contents(store).items() if raw is not None]


def stats(store):
    """What shows that a file was written, if only with the same content."""
    return {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in Path(store).rglob("*")}


def means_the_same(store, before):
    """Whether nothing has changed but how JSON is written."""
    after = contents(store)
    return after.keys() == before.keys() and all(
        _meant(after[name]) == _meant(content) for name, content in before.items()
    )


def _meant(raw):
    try:
        return json.loads(raw)
    except (ValueError, TypeError, RecursionError):
        return raw
