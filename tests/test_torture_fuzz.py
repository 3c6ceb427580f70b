"""Documents that somebody else wrote, their checksums right: whatever they say, what comes is a message.

`make torture` gives each loader a million documents led by the code they reach, or half an hour of them, and 20,000
made by chance to the whole of a store; here are a few hundred.
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
from made import make
from stubs import edit_run, embedded, toy_dataset

from samtl._io import digest, seal
from samtl.errors import SamtlError
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
RUNS = 1_000_000 if ALL else 1_000
ODD = (
    None, True, False, 0, 1, -1, 15, 16, 17, 2**31, 2**63, 2**70, -(2**40), 1.5, 1e300, "", "x", "0", "-1", "ok",
    "quarantined:", "quarantined:empty", "pooled", "label", "../../../etc/passwd", "/", "\0", "c" * 5000, "\ud800",
    [], {}, [[]], [None], [0], ["x"], [1] * 16, {"x": 1}, {"": []}, [{"name": "x"}],
)  # fmt: skip


def places(content, path=()):
    """Every place in a JSON value."""
    yield path
    if isinstance(content, (dict, list)):
        for key in content if isinstance(content, dict) else range(len(content)):
            yield from places(content[key], (*path, key))


def mutated(content, chance):
    """A copy with something else in one to three places."""
    content = json.loads(json.dumps(content))
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        path = chance.choice(list(places(content)))
        odd = json.loads(json.dumps(chance.choice(ODD)))
        if not path:
            return odd
        inner, key, what = content, path[-1], chance.randrange(5)
        for outer in path[:-1]:
            inner = inner[outer]
        if what == 0:
            del inner[key]
        elif what == 1 and isinstance(inner, list):
            inner.insert(key, inner[key])
        elif what == 2 and isinstance(inner[key], int):
            inner[key] += chance.choice((-1, 1, 16, -16, 256))
        elif what == 3 and isinstance(inner, dict):
            inner[f"{key}x"] = inner.pop(key)
        else:
            inner[key] = odd
    return content


def sealed(content):
    """With a checksum that fits, and an identity's digest, if that can be."""
    if not isinstance(content, dict):
        return json.dumps(content).encode()
    content.pop("checksum", None)
    try:
        if "sha256" in content:
            content["sha256"] = digest(content.get("fingerprint"))
        return seal(content)
    except (ValueError, RecursionError):  # a lone surrogate, say, is no UTF-8
        return json.dumps(content).encode()


def table(raw, chance):
    """A sample table with something else in it, its digest right."""
    old = pq.ParquetFile(pa.BufferReader(raw)).read()
    about, columns = json.loads(old.schema.metadata[b"samtl"]), old.to_pydict()
    if chance.random() < 0.5:
        about = mutated(about, chance)
    else:
        column = columns[chance.choice(list(columns))]
        column[chance.randrange(len(column))] = json.loads(json.dumps(chance.choice(ODD)))
    try:
        new = pa.table(columns, schema=old.schema.remove_metadata())
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        new = old
    if isinstance(about, dict):
        about["digest"] = "0" * 64
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, new.schema, store_schema=False) as writer:
        writer.write_table(new)
        text = json.dumps(about, separators=(",", ":")).encode("utf-8", "replace")
        writer.add_key_value_metadata({"samtl": text})
    made = bytes(sink.getvalue())
    return samples.signed(made, "0" * 64, hashlib.sha256(made).hexdigest())


def damaged(raw, chance):
    """Bytes of a file with some changed, some cut, some doubled."""
    data = bytearray(raw)
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(data) + 1)
        what = chance.randrange(4)
        if what == 0 and at < len(data):
            data[at] = chance.randrange(256)
        elif what == 1:
            del data[at : at + chance.randrange(1, 50)]
        elif what == 2:
            data[at:at] = data[at : at + chance.randrange(1, 50)]
        else:
            data[at:at] = chance.choice((b"[", b"{", b'"', b"\0", b"1e999", b"NaN", b"\xff"))
    return bytes(data)


def play(path, change, use, record_property, refuses=True):
    """Write one odd thing after the other into a file and use it; nothing but `SamtlError` may come."""
    raw, chance = path.read_bytes(), random.Random(path.name)
    began, done, refused = time.monotonic(), 0, 0
    try:
        while done < MOST and time.monotonic() - began < SECONDS:
            done += 1
            try:
                change(raw, chance)
                use()
            except SamtlError:
                refused += 1
    finally:
        path.write_bytes(raw)
    record_property("points", done)
    assert refused > done // 3 or not refuses


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two blocks, and a pack."""
    path = tmp_path_factory.mktemp("fuzz") / "a.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("samtl.store.writer.PACK_RECORDS", 2)
        return make(path, 21, bad=[4])


@pytest.mark.parametrize("way", ["sealed", "bytes"])
@pytest.mark.parametrize(
    "name",
    ["fingerprint.json", "samples/000001.parquet", "log/1.0.json", "log/pack.npz", "zarr.json",
     "pooled/zarr.json", "pooled/c.0.0"],
)  # fmt: skip
def test_documents_of_a_store(store, tmp_path, record_property, name, way):
    if name.startswith("log/1"):  # else it is read from the pack alone
        store = Path(shutil.copytree(store, tmp_path / "a.zarr"))
        (store / "log/pack.npz").unlink()
    path = store / name

    def change(raw, chance):
        if name.endswith("json") and way == "sealed":
            new = sealed(mutated(json.loads(raw), chance))
        elif name.endswith("parquet") and way == "sealed":
            new = table(raw, chance)
        elif way == "sealed":  # of the size that was committed
            new = bytearray(raw)
            new[chance.randrange(32, len(raw))] ^= chance.randrange(1, 256)
        else:
            new = damaged(raw, chance)
        path.write_bytes(new)

    def use():
        json.dumps(check(store).to_json())
        opened = open_store(store)
        if "zarr" in name:
            opened.zarr()
        json.dumps(opened.summary().to_json())
        assert len(opened.labels) == len(opened.sample_ids) == len(opened)
        for array in opened.arrays:
            opened.read(array, np.flatnonzero(opened.valid(array)))

    # A damaged pack is passed over; a shard's index is for others.
    play(path, change, use, record_property, refuses=not name.endswith(("npz", "c.0.0")))


def saved_head(folder, head):
    chance = np.random.default_rng(0)
    X, y = chance.random((60, 5), np.float32), chance.integers(0, 3, 60)
    save(head.fit(X, y), folder, columns=list("abcde"), class_names=["x", "y", "z"])
    return X


@pytest.mark.parametrize("maker", [logreg.Head, lambda: mlp.Head(hidden=(4,), epochs=1)])
@pytest.mark.parametrize(
    ("name", "way"),
    [("head.json", "values"), ("head.json", "bytes"), ("head.safetensors", "bytes")],
)
def test_heads(tmp_path, record_property, maker, name, way):
    X, path = saved_head(tmp_path, maker()), tmp_path / name

    def change(raw, chance):
        values = way == "values"
        path.write_bytes(
            json.dumps(mutated(json.loads(raw), chance)).encode()
            if values
            else damaged(raw, chance)
        )

    play(path, change, lambda: load(tmp_path).predict_proba(X), record_property)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    path = embedded(folder, toy_dataset(60), 64, ["pooled"])
    return fit_head(path, "logreg", 0.5, 0, folder / "runs").run


@pytest.mark.parametrize("name", ["config.json", "split.json", "metrics.json", "head.json"])
def test_runs(run_folder, record_property, name):
    path, metrics = run_folder / name, run_folder / "metrics.json"
    whole = metrics.read_bytes()

    def change(raw, chance):
        metrics.write_bytes(whole)
        path.write_bytes(raw)
        if chance.random() < 0.7:
            try:
                edit_run(run_folder, name, lambda content: mutated(content, chance))
            except (ValueError, TypeError, AttributeError) as error:
                raise SamtlError("that cannot be sealed") from error
        else:
            path.write_bytes(damaged(raw, chance))

    def use():
        read_run(run_folder)
        read_split(run_folder)
        if name == "split.json":
            read_split_file(path)
        read_trained(run_folder)

    try:
        play(path, change, use, record_property)
    finally:
        metrics.write_bytes(whole)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not here")
@pytest.mark.parametrize(
    "target", ["identity", "table", "record", "group", "array", "shard", "head", "tensors"]
)
def test_led_by_the_code(tmp_path, record_property, target):
    folder, tests = tmp_path / "a.zarr", Path(__file__).parent
    if target in ("head", "tensors"):
        folder.mkdir()
        saved_head(folder, logreg.Head())
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
