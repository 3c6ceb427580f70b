"""Readers beside a writer: a row is what its image makes it, or not there yet; never torn, never zero.

`make torture` makes 10,000 reads; here are some hundred.
"""

import os
import random
import shutil
import subprocess
import threading
from collections import namedtuple
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import stubs
from chaos import ALL

from samtl.datasets import subset
from samtl.embed.api import embed
from samtl.errors import InputError, ResourceError
from samtl.images.codecs import decode
from samtl.images.transforms import resize_longest_side
from samtl.store.reader import open_store
from samtl.store.verify import check

READS = 10_000 if ALL else 200
IMAGES = stubs.toy_dataset(80)
OPTIONS = {"device": "cpu", "dtype": "float32", "tiers": ["pooled", "dense"]}


def test_readers_beside_a_writer(tmp_path, encoders, record_property):
    """The writer makes stores, and adds images to them, until there were reads enough."""
    encoders.seconds = 0.001
    encoder = encoders.Encoder("stub")

    @cache
    def truth(name):
        pixels = resize_longest_side(decode(IMAGES.read(name)), encoders.IMAGE_SIZE)
        return encoder.encode([pixels], ("pooled", "dense"))

    # Before the threads: an answer of its own for each would be slow.
    for name in IMAGES.sample_ids:
        truth(name)
    reads, early, wrong = [0], [0], []
    over = threading.Event()

    def look(seed):
        chance = random.Random(seed)
        while not over.is_set():
            path = tmp_path / f"{len(list(tmp_path.iterdir())) - 1}.zarr"
            if not list(path.glob("samples/*.parquet")):
                continue
            store = open_store(path)
            for _ in range(20):
                row = chance.randrange(len(store))
                array = chance.choice(("pooled", "dense"))
                try:
                    found = store.row(array, row)
                except InputError:
                    early[0] += 1
                    continue
                reads[0] += 1
                if not np.array_equal(found, truth(store.sample_ids[row])[array][0]):
                    wrong.append((path.name, row, array))

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    number = 0
    try:
        while reads[0] < READS:
            for limit in (30, 50, 80):
                embed(subset(IMAGES, limit), "stub", out=tmp_path / f"{number}.zarr", **OPTIONS)
            number += 1
    finally:
        over.set()
        for thread in threads:
            thread.join()
    record_property("points", reads[0])
    assert (wrong, early[0] > 0) == ([], True)


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for a part of a pass."""
    place = tmp_path / "disk"
    place.mkdir()
    if shutil.which("mount") is None or os.getuid() != 0:
        pytest.skip("a file system can be mounted by root only")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", place], check=False)
    if made.returncode:
        pytest.skip("this machine mounts no tmpfs")
    yield place
    # Files of it may still be mapped.
    subprocess.run(["umount", "--lazy", place], check=True)


def test_a_disk_that_is_full(small_disk, encoders, monkeypatch):
    """What was committed stays, and with room the pass goes on."""
    whole = embed(IMAGES, "stub", out=small_disk.parent / "whole.zarr", **OPTIONS)
    free = namedtuple("free", "free")(2**40)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: free)  # so that it begins
    out = small_disk / "a.zarr"
    kept = -1
    for size in ("600k", "700k"):
        subprocess.run(["mount", "-o", f"remount,size={size}", small_disk], check=True)
        with pytest.raises(ResourceError, match="No space left"):
            embed(IMAGES, "stub", out=out, **OPTIONS)
        store = open_store(out)
        assert 0 < store.missing < len(IMAGES)
        assert check(out).findings == []
        assert list(Path(out).rglob(".tmp-*")) == []
        assert store.valid().sum() >= kept
        kept = store.valid().sum()
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    result = embed(IMAGES, "stub", out=out, **OPTIONS)
    assert result.missing == 0
    assert stubs.everything(open_store(out)) == stubs.everything(open_store(whole.store))
    assert check(out, "deep").findings == []
