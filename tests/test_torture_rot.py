"""Whatever is done to a store's files is found, and nothing is found where nothing was done.

`make torture` does 10,000 things; here are some of them.
"""

import os
import random
import shutil

import numpy as np
import pytest
from made import ARRAYS, DAMAGES, contents, files, make, means_the_same, relisted

from samtl.errors import InputError, SamtlError
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
def test_every_damage_anywhere_is_found(original, ram, damage):
    """And what can be read all the same is right."""
    before, chance, store = contents(original), random.Random(damage.__name__), ram / "rot.zarr"
    expected = {name: open_store(original).read(name) for name in open_store(original).arrays}
    for _ in range(1_250 if ALL else 10):
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(original, store)
        path = chance.choice(files(store))
        damage(path, chance)
        told = str(path.relative_to(store))
        try:
            found = check(store)
        except InputError:  # another format, as its identity says now
            assert path.name == "fingerprint.json"
            continue
        older = path.parent.name == "samples" and "000002" not in path.name
        # Copies and history, which nothing needs.
        unneeded = not path.exists() and (path.suffix == ".npz" or older)
        if not means_the_same(store, before) and not unneeded:
            assert found.findings or found.missing, told
            if path.name.startswith("c.") and path.parent.name in (*ARRAYS, "dense"):
                assert told in {one.path for one in found.findings}
        try:
            opened = open_store(store)
            there = np.flatnonzero(opened.valid())
            rows = {name: opened.read(name, there) for name in opened.arrays}
        except SamtlError:
            assert found.findings
        else:
            for name, values in rows.items():
                np.testing.assert_array_equal(values, expected[name][there])


def test_no_false_alarm(original):
    for _ in range(1_000 if ALL else 5):
        found = check(original, "deep")
        assert (found.findings, found.missing, found.leftovers) == ([], 0, [])
