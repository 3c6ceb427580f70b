"""Every row comes once, with its own target, and two windows are all that is ever in memory."""

import os
import shutil
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stubs import embedded
from toys import blobs, stripes

from samtl.errors import InputError
from samtl.experiment import features as feed
from samtl.experiment.features import Feed, Targets
from samtl.experiment.sources import Data
from samtl.store.format import BLOCK_ROWS
from samtl.store.maintenance import compact
from samtl.store.reader import Store, open_store

SHAPE = (2, 4, 4)
ROW_BYTES = 2 * 2 * 4 * 4


class MemoryStore:
    """What a feed uses of a store: row `i` is full of `i`, and so is its mask."""

    def __init__(self, n, dtype="float16"):
        self.data = np.broadcast_to(np.arange(n)[:, None, None, None], (n, *SHAPE)).astype(dtype)
        self.sample_ids = tuple(f"image{i}" for i in range(n))
        self.reads, self.masks_read = [], []

    def __len__(self):
        return len(self.data)

    def shape(self, array):
        return (len(self.data), 64, 64) if array == "mask" else self.data.shape

    def dtype(self, array):
        return str(self.data.dtype)

    def read(self, array, rows):
        assert array == "dense"
        self.reads.append(rows.tolist())
        return self.data[rows]

    def row(self, array, row):
        assert array == "mask"
        self.masks_read.append(row)
        return np.full((64, 64), row, dtype=np.uint8)


def make(n=100, rows=None, masks=False, held=False, store=None):
    store = store or MemoryStore(n)
    rows = np.arange(n) if rows is None else np.asarray(rows, dtype=np.int64)
    targets = Targets(store, "dense", None if masks else np.arange(len(store.data)))
    return Feed(store, "dense", rows, targets, held)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def windows_of(monkeypatch, rows):
    monkeypatch.setattr(feed, "WINDOW_BYTES", rows * ROW_BYTES)


def order(batches):
    return [row for _, targets in batches for row in targets.tolist()]


def readers():
    return [t for t in threading.enumerate() if t.name.startswith("prefetch")]


@given(
    n=st.integers(1, 150),
    part=st.floats(0.05, 1),
    size=st.integers(1, 40),
    window=st.integers(1, 90),
    held=st.booleans(),
    shuffled=st.booleans(),
    masks=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_every_row_comes_once_with_its_target(n, part, size, window, held, shuffled, masks, seed):
    random = np.random.default_rng(seed)
    rows = random.permutation(n)[: max(1, round(part * n))]
    with pytest.MonkeyPatch.context() as patch:
        windows_of(patch, window)
        source = make(n, rows, masks, held)
        batches = list(source.batches(size, generator(seed) if shuffled else None))
    assert len(source) == len(rows)
    lengths = [len(targets) for _, targets in batches]
    assert lengths[:-1] == [size] * (len(batches) - 1)
    assert 1 <= lengths[-1] <= size
    inputs, targets = map(torch.cat, zip(*batches, strict=True))
    assert targets.dtype == torch.int64
    assert (inputs.dtype, inputs.shape) == (torch.float16, (len(rows), *SHAPE))
    if masks:
        assert targets.shape == (len(rows), 16, 16)
        targets = targets[:, 5, 7]
    assert targets.tolist() == inputs[:, 1, 2, 3].tolist()
    expected = rows.tolist()
    assert sorted(targets.tolist()) == sorted(expected)
    with pytest.MonkeyPatch.context() as patch:
        windows_of(patch, window)
        other = make(n, rows, masks, not held)
        again = other.batches(size, generator(seed) if shuffled else None)
        assert all(torch.equal(a, b) for a, (b, _) in zip(inputs.split(size), again, strict=True))
    read = [row for rows in source.store.reads for row in rows]
    assert sorted(read) == sorted(expected)  # each once, and no other
    assert sorted(source.store.masks_read) == (sorted(expected) if masks else [])
    assert readers() == []


@pytest.mark.parametrize("held", [True, False])
def test_an_order_follows_from_the_seed_and_is_another_in_each_pass(held, monkeypatch):
    windows_of(monkeypatch, 32)
    passes = []
    for seed in (1, 1, 2):
        source, random = make(held=held), generator(seed)
        passes.append([order(source.batches(8, random)) for _ in range(3)])
        # What is held is read once, what is streamed in each pass.
        assert len(source.store.reads) == (1 if held else 12)
    assert passes[0] == passes[1]
    first, second, third = passes[0]
    assert len({tuple(p) for p in (first, second, third, passes[2][0], range(100))}) == 5


def test_windows_take_whole_blocks_in_random_order(monkeypatch):
    """Blocks of a file are read together; what a window holds is mixed from several of them."""
    windows_of(monkeypatch, 3 * BLOCK_ROWS)
    source = make(16 * BLOCK_ROWS)
    seen = order(source.batches(8, generator()))
    blocks = []
    for rows in source.store.reads:
        counts = np.bincount(np.array(rows) // BLOCK_ROWS, minlength=16)
        assert set(counts.tolist()) <= {0, BLOCK_ROWS}
        blocks.append(np.flatnonzero(counts).tolist())
    assert [len(b) for b in blocks] == [3, 3, 3, 3, 3, 1]
    assert np.concatenate(blocks).tolist() != list(range(16))
    assert len({row // BLOCK_ROWS for row in seen[:8]}) > 1
    windows_of(monkeypatch, 0)  # a window is never less than a block
    source = make(64)
    list(source.batches(8, None))
    assert [len(rows) for rows in source.store.reads] == [BLOCK_ROWS] * 4


@pytest.mark.parametrize(("size", "windows"), [(8, 10), (11, 10), (100, 10)])
def test_two_windows_are_all_that_is_in_memory(size, windows, monkeypatch):
    """What batches are taken from is a copy; beside it are the next window and, while it is copied, the one before."""
    windows_of(monkeypatch, 32)
    given = []

    class Store(MemoryStore):
        def read(self, array, rows):
            values = super().read(array, rows)
            given.append(weakref.ref(values))
            return values

    source = make(store=Store(10 * 32), rows=np.arange(10 * 32))
    alive = []
    for _batch in source.batches(size, generator()):  # as the training loop does
        time.sleep(0.005)  # time to read the next
        alive.append(sum(window() is not None for window in given))
    assert len(given) == windows
    assert 1 <= max(alive) <= 2
    batches = source.batches(size, generator())
    next(batches)
    assert readers()
    del batches  # the reader ends with its consumer
    assert readers() == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("held", [True, False])
def test_features_that_are_no_numbers_are_named(held, bad):
    store = MemoryStore(100)
    store.data[41, 1, 2, 3] = bad
    with pytest.raises(InputError, match="dense of sample 'image41' is not finite"):
        list(make(store=store, held=held).batches(8, None))
    rows = np.delete(np.arange(100), 41)
    assert sorted(order(make(store=store, rows=rows).batches(8, None))) == rows.tolist()
    store = MemoryStore(20, "float32")
    store.data[:] = 1e38  # large numbers, whose sum is none in float32
    assert len(order(make(20, store=store).batches(8, None))) == 20


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A small store whose features tell what is to be told."""
    return embedded(tmp_path_factory.mktemp("store"), stripes(60), 64, ("pooled", "grid"))


@pytest.mark.parametrize("features", [None, "mean,block*"])
def test_held_features_are_those_that_are_read(path, features, monkeypatch):
    held, plain = (Data(open_store(path), "pooled", features) for _ in range(2))
    held.hold()
    rows = np.array([41, 3, 3, 17])
    expected = plain.read(rows)
    monkeypatch.setattr(Store, "read", None)  # nothing is read again
    held.hold()
    found = held.read(rows)
    np.testing.assert_array_equal(found, expected)
    # Products of other layouts differ in the last digit.
    assert found.flags.c_contiguous
    assert expected.flags.c_contiguous
    held._held[:, -1] = np.nan
    with pytest.raises(InputError, match=r"pooled of sample '.*' is not finite"):
        held.read(rows)


def test_what_is_too_large_or_not_there_yet_is_not_held(path, tmp_path, monkeypatch):
    copy = shutil.copytree(path, tmp_path / "copy.zarr")
    for record in (copy / "log").glob("3*.json"):
        record.unlink()
    data = Data(open_store(copy), "pooled", allow_partial=True)
    data.hold()
    rows = np.flatnonzero(data.samples.usable)
    assert len(rows) == 48
    np.testing.assert_array_equal(data.read(rows), open_store(copy).read("pooled", rows))
    monkeypatch.setattr(feed, "HELD_BYTES", 100)
    data = Data(open_store(path), "pooled")
    data.hold()
    assert data._held is None


def test_samples_are_named_by_labels_and_masks_and_fed_as_they_are(path, tmp_path, monkeypatch):
    lean = embedded(tmp_path, stripes(60), 64, ("pooled",))
    stores = [(path, "pooled"), (path, "grid"), (lean, "pooled")]
    assert len({Data(open_store(p), array).digest for p, array in stores}) == 1

    def named(dataset):
        path = embedded(tmp_path, dataset, 64, ("dense",))
        return Data(open_store(path), "dense").digest

    data = blobs(20, classes=2)
    masks, one = data.read_mask, data.sample_ids[3]
    first = named(data)
    other = {**masks.content, one: np.roll(masks.content[one], 3, 1)}
    assert named(replace(data, read_mask=other.__getitem__)) != first
    assert named(data) == first
    # What changes no sample does not change their name.
    fewer = replace(data, sample_ids=data.sample_ids[:-1], labels=data.labels[:-1])
    third = named(fewer)
    compact(tmp_path / "blobs.zarr")
    assert named(fewer) == third
    grouped = replace(fewer, groups=tuple(name[:1] for name in fewer.sample_ids))
    assert named(grouped) == third

    store = open_store(tmp_path / "blobs.zarr")
    monkeypatch.setattr(feed, "WINDOW_BYTES", 1)
    rows = np.flatnonzero(store.valid())[::2]
    for held in (True, False):
        source = Feed(store, "dense", rows, Targets(store, "dense"), held)
        inputs, targets = map(torch.cat, zip(*source.batches(6, None), strict=True))
        np.testing.assert_array_equal(inputs.numpy(), store.read("dense", rows))
        np.testing.assert_array_equal(targets.numpy(), store.read("mask", rows)[:, 2::4, 2::4])


STREAM = """
import sys
import numpy as np
import torch
from samtl.experiment import features
from samtl.experiment.features import Feed, Targets
from samtl.heads.conv import Head
from samtl._runtime import peak_memory
from samtl.store import reader
from samtl.store.reader import shards

features.WINDOW_BYTES = 8 * 2**20
shards.OPEN_BYTES = 16 * 2**20
store = reader.open_store(sys.argv[1])
n = len(store)

def train(rows):
    source = Feed(store, "dense", rows, Targets(store, "dense"), held=False)
    head = Head(width=16, epochs=1)
    shape = store.shape("dense")[1:]
    statistics = torch.stack([*features.moments_of(store, "dense", rows)]).mean(0)
    return head.fit(source, source, statistics, task="segmentation", n_classes=2, shape=shape)

train(np.arange(16))
before = peak_memory()
head = train(np.arange(n))
print(before, peak_memory(), head.curves_["train_loss"][0])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_store(tmp_path):
    """224 rows of 512 KiB with masks of 256 KiB, 168 MiB in all: a run over all needs little more than over 16."""
    store = embedded(tmp_path, blobs(224, classes=2), 512, ("dense",))
    # Large blocks are given back at once, else what is measured is how the allocator divides them among threads.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run(
        [sys.executable, "-c", STREAM, str(store)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    before, after, loss = map(float, done.stdout.split())
    size = sum(path.stat().st_size for path in store.rglob("c.*"))
    assert size > 160 * 2**20
    # A second window of 16 rows, a second batch of 16, and of either array as many open shards as OPEN_BYTES allows:
    # 8 + 8 + 8 + 12 MiB.
    assert after - before < 80 * 2**20 < size / 2
    assert after < 2 * 2**30  # the promise, and torch itself is within it
    assert np.isfinite(loss)
