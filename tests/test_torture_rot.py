"""Whatever is done to a store's files is found, and nothing is found where nothing was done.

`make torture` does 10,000 things; here are some of them.
"""

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from made import ARRAYS, DAMAGES, contents, files, make, means_the_same, relisted

from samtl.errors import DamageError, InputError, SamtlError
from samtl.store.reader import open_store
from samtl.store.verify import check

ALL = bool(os.environ.get("SAMTL_TORTURE"))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A store of two passes, two rows of which are not listed any more, with a pack."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("samtl.store.writer.PACK_RECORDS", 2)
        store = make(tmp_path_factory.mktemp("rot") / "a.zarr", bad=[7])
        make(store, arrays=["dense"], bad=[7])
    return relisted(store, set(range(40)) - {3, 20})


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_anywhere_is_found(original, tmp_path, damage):
    before = contents(original)
    chance = random.Random(damage.__name__)
    for turn in range(1_250 if ALL else 12):
        store = Path(shutil.copytree(original, tmp_path / f"{turn}.zarr"))
        path = chance.choice(files(store))
        damage(path, chance)
        if means_the_same(store, before):
            continue
        told = str(path.relative_to(store))
        older = path.parent.name == "samples" and "000002" not in path.name
        if not path.exists() and (path.suffix == ".npz" or older):
            continue  # copies and history, which nothing needs
        try:
            found = check(store)
        except DamageError:
            raise
        except InputError:  # another format, as its identity says now
            assert path.name == "fingerprint.json"
            continue
        assert found.findings or found.missing, told
        if path.name.startswith("c.") and path.parent.name in (*ARRAYS, "dense"):
            assert told in {one.path for one in found.findings}
        shutil.rmtree(store)


def test_reading_agrees_with_checking(original, tmp_path):
    """What a check of every row passes can be read, and what can not be read is found."""
    chance = random.Random(1)
    expected = {name: open_store(original).read(name) for name in open_store(original).arrays}
    for turn in range(1_000 if ALL else 20):
        store = Path(shutil.copytree(original, tmp_path / f"{turn}.zarr"))
        path = chance.choice(files(store))
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
    for _ in range(1_000 if ALL else 5):
        found = check(original, "deep")
        assert (found.findings, found.missing, found.leftovers) == ([], 0, [])
