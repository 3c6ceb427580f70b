"""Whatever is done to a store's files is found, and nothing is found where nothing was done.

`make torture` does 10,000 things; here are some of them.
"""

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from stubs import stub_store
from test_store_verify import ROWS, content

from samtl.errors import InputError, SamtlError
from samtl.store.fingerprint import FILE
from samtl.store.reader import open_store
from samtl.store.verify import check

ALL = bool(os.environ.get("SAMTL_TORTURE"))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return stub_store(tmp_path_factory.mktemp("rot"), ROWS)


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
    other = random.choice(others)
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


DAMAGES = [flipped, cut, longer, zeroed, swapped, deleted, emptied, a_folder]


def state(store):
    return {
        str(path.relative_to(store)): path.read_bytes() if path.is_file() else None
        for path in sorted(store.rglob("*"))
        if not path.name.startswith(".")
    }


def means_the_same(store, before):
    """JSON may be written in more than one way."""
    after = state(store)
    if after.keys() != before.keys():
        return False
    for name in before:
        if after[name] != before[name]:
            try:
                if not name.endswith(".json") or json.loads(after[name]) != json.loads(
                    before[name]
                ):
                    return False
            except (ValueError, TypeError):
                return False
    return True


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_anywhere_is_found(original, tmp_path, damage):
    before = state(original)
    chance = random.Random(damage.__name__)
    for turn in range(1_250 if ALL else 25):
        store = Path(shutil.copytree(original, tmp_path / f"{turn}.zarr"))
        path = chance.choice(content(store))
        damage(path, chance)
        if means_the_same(store, before):
            continue
        found = None
        try:
            found = check(store)
        except InputError:  # no store any more, or one of another format
            assert path.name == FILE
            continue
        told = str(path.relative_to(store))
        assert found.findings or found.missing, told
        if path.name.startswith("c."):
            assert told in {one.path for one in found.findings}
        shutil.rmtree(store)


def test_reading_agrees_with_checking(original, tmp_path):
    """What a check of every row passes can be read, and what can not be read is found."""
    chance = random.Random(1)
    expected = {name: open_store(original).read(name) for name in open_store(original).arrays}
    for turn in range(1_000 if ALL else 40):
        store = Path(shutil.copytree(original, tmp_path / f"{turn}.zarr"))
        path = chance.choice(content(store))
        chance.choice(DAMAGES)(path, chance)
        try:
            opened = open_store(store)
            there = np.flatnonzero(opened.valid())
            rows = {name: opened.read(name, there) for name in opened.arrays}
        except SamtlError:
            try:
                found = check(store)
            except InputError:
                continue
            assert found.findings
            continue
        for name, values in rows.items():
            np.testing.assert_array_equal(values, expected[name][there])
        shutil.rmtree(store)


def test_no_false_alarm(original):
    for _ in range(1_000 if ALL else 10):
        found = check(original, "deep")
        assert (found.findings, found.missing, found.leftovers) == ([], 0, [])
