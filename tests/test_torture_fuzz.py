"""Files of a store, a head or a run that somebody else wrote or that rotted: every change is found, and is a message.

`make torture` gives each loader a million documents led by the code they reach, or half an hour of them, 20,000 made by
chance to the whole of a store, and does 10,000 things to its files; here are a few hundred.
"""

import hashlib
import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import FILES, damaged, mutated, odd, sealed
from made import ARRAYS, DAMAGES, contents, files, make, means_the_same, relisted
from stubs import edit_run, embedded, toy_dataset

from samtl.errors import InputError, SamtlError
from samtl.experiment.fit import fit_head
from samtl.experiment.predict import read_trained
from samtl.experiment.run import read_run
from samtl.heads import logreg, mlp
from samtl.heads.io import load, save
from samtl.splits import read_split, read_split_file
from samtl.store import samples
from samtl.store.reader import open_store
from samtl.store.verify import check

ALL = bool(os.environ.get("SAMTL_TORTURE"))
MOST, SECONDS = (20_000, 600) if ALL else (25, 20)
RUNS = 1_000_000 if ALL else 300
CHANCE = np.random.default_rng(0)
X, Y = CHANCE.random((60, 5), np.float32), CHANCE.integers(0, 3, 60)


def table(raw, chance):
    """A sample table with something else in it, its digest right."""
    old = pq.ParquetFile(pa.BufferReader(raw)).read()
    about, columns = json.loads(old.schema.metadata[b"samtl"]), old.to_pydict()
    if chance.random() < 0.5:
        about = mutated(about, chance)
    else:
        column = columns[chance.choice(list(columns))]
        column[chance.randrange(len(column))] = odd(chance)
    try:
        new = pa.table(columns, schema=old.schema.remove_metadata())
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        new = old
    if isinstance(about, dict):
        about["digest"] = "0" * 64
    text = json.dumps(about, separators=(",", ":")).encode("utf-8", "replace")
    sink = pa.BufferOutputStream()
    pq.write_table(new.replace_schema_metadata({"samtl": text}), sink, store_schema=False)
    made = bytes(sink.getvalue())
    return samples.signed(made, "0" * 64, hashlib.sha256(made).hexdigest())


def save_head(folder, head):
    folder.mkdir(exist_ok=True)
    save(head.fit(X, Y), folder, columns=list("abcde"), class_names=["x", "y", "z"])


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """A store of two blocks with a pack, heads of two kinds, and a run."""
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("samtl.store.writer.PACK_RECORDS", 2)
        make(folder / "a.zarr", 21, bad=[4])
    save_head(folder / "logreg", logreg.Head())
    save_head(folder / "mlp", mlp.Head(hidden=(4,), epochs=1))
    path = embedded(folder, toy_dataset(60), 64, ["pooled"])
    fit_head(path, "logreg", 0.5, 0, folder / "runs").run.rename(folder / "run")
    return folder


def use_store(folder):
    json.dumps(check(folder).to_json())
    opened = open_store(folder)
    opened.zarr()
    json.dumps(opened.summary().to_json())
    assert len(opened.labels) == len(opened.sample_ids) == len(opened)
    for array in opened.arrays:
        opened.read(array, np.flatnonzero(opened.valid(array)))


def use_run(folder):
    read_run(folder)
    read_split(folder)
    read_split_file(folder / "split.json")
    read_trained(folder)


def use_head(folder):
    load(folder).predict_proba(X)


USES = {"a.zarr": use_store, "run": use_run, "logreg": use_head, "mlp": use_head}


def changed(path, way, raw, chance):
    """Write the file anew, and what vouches for it."""
    if way == "bytes":
        path.write_bytes(damaged(raw, chance))
    elif "run" in path.parts:
        try:
            edit_run(path.parent, path.name, lambda content: mutated(content, chance))
        except (ValueError, TypeError, AttributeError) as error:
            raise SamtlError("that cannot be sealed") from error
    elif path.suffix == ".parquet":
        path.write_bytes(table(raw, chance))
    elif path.suffix == ".json":
        new = mutated(json.loads(raw), chance)
        path.write_bytes(json.dumps(new).encode() if path.name == "head.json" else sealed(new))
    else:  # of the size that was committed
        new = bytearray(raw)
        new[chance.randrange(32, len(raw))] ^= chance.randrange(1, 256)
        path.write_bytes(new)


@pytest.mark.parametrize("way", ["values", "bytes"])
@pytest.mark.parametrize(
    "file",
    [*(f"a.zarr/{name}" for name in (
        "fingerprint.json", "samples/000001.parquet", "log/1.0.json", "log/pack.npz", "zarr.json", "pooled/zarr.json",
        "pooled/c.0.0")),
     *(f"{kind}/head.{suffix}" for kind in ("logreg", "mlp") for suffix in ("json", "safetensors")),
     *(f"run/{name}.json" for name in ("config", "split", "metrics", "head"))],
)  # fmt: skip
def test_whatever_a_document_says_is_read_or_a_message(
    things, tmp_path, record_property, file, way
):
    kind, _, name = file.partition("/")
    folder = Path(shutil.copytree(things / kind, tmp_path / kind))
    if name.startswith("log/1"):  # else it is read from the pack alone
        (folder / "log/pack.npz").unlink()
    raw, metrics = (folder / name).read_bytes(), (things / "run/metrics.json").read_bytes()
    chance, began, done, refused = random.Random(name), time.monotonic(), 0, 0
    while done < MOST and time.monotonic() - began < SECONDS:
        done += 1
        if kind == "run":
            (folder / "metrics.json").write_bytes(metrics)
            (folder / name).write_bytes(raw)
        try:
            changed(folder / name, way, raw, chance)
            USES[kind](folder)
        except SamtlError:
            refused += 1
    record_property("points", done)
    # A damaged pack is passed over; a shard's index is for others; a changed number in a tensor is a number.
    some = ("npz", "c.0.0") if way == "bytes" else ("npz", "c.0.0", "safetensors")
    assert refused > done // 3 or name.endswith(some)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not here")
@pytest.mark.parametrize("target", FILES)
def test_led_by_the_code(tmp_path, record_property, target):
    folder, tests = tmp_path / "a.zarr", Path(__file__).parent
    if target in ("head", "tensors"):
        save_head(folder, logreg.Head())
    else:
        make(folder, 21)
    done = subprocess.run(
        # What traces the comparisons grows by 4 KiB a run; the same runs without it do not.
        [sys.executable, str(tests / "fuzzing.py"), target, str(folder), str(RUNS), "-max_total_time=1800",
         "-rss_limit_mb=8192"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": f"{tests.parent}:{tests}"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    runs = int(re.search(r"Done (\d+) runs", done.stderr)[1])
    record_property("points", runs)
    # One that refuses all at once proves nothing.
    assert (tmp_path / "taken").stat().st_size > 0
    assert runs >= (1 if ALL else RUNS)


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
    """And nothing where there is none; and what can be read all the same is right."""
    found = check(original, "deep")
    assert (found.findings, found.missing, found.leftovers) == ([], 0, [])
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
        # Copies and history, which nothing needs.
        unneeded = not path.exists() and path.name in ("pack.npz", "000001.parquet")
        if not means_the_same(store, before) and not unneeded:
            assert found.findings or found.missing, told
            if path.name.startswith("c.") and path.parent.name in (*ARRAYS, "dense"):
                assert told in {one.path for one in found.findings}
        try:
            opened = open_store(store)
            there = np.flatnonzero(opened.valid())
            for name in opened.arrays:
                np.testing.assert_array_equal(opened.read(name, there), expected[name][there])
        except SamtlError:
            assert found.findings
