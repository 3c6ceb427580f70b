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
import pytest
from made import make
from stubs import edit_run

from samtl._io import digest, seal
from samtl.errors import SamtlError
from samtl.experiment.predict import read_trained
from samtl.experiment.run import read_run
from samtl.heads import logreg, mlp
from samtl.heads.io import load, save
from samtl.splits import read_split, read_split_file
from samtl.store.reader import open_store
from samtl.store.verify import check

ALL = bool(os.environ.get("SAMTL_TORTURE"))
MOST, SECONDS = (20_000, 600) if ALL else (40, 20)
RUNS = 1_000_000 if ALL else 2_000
ODD = (
    None, True, False, 0, 1, -1, 15, 16, 17, 2**31, 2**63, 2**70, -(2**40), 1.5, 1e300, "", "x", "0", "-1", "ok",
    "quarantined:", "quarantined:empty", "pooled", "label", "../../../etc/passwd", "/", "\0", "c" * 5000, "\ud800",
    [], {}, [[]], [None], [0], ["x"], [1] * 16, {"x": 1}, {"": []}, [{"name": "x"}],
)  # fmt: skip


def odd(chance):
    """One that nobody else has."""
    return json.loads(json.dumps(chance.choice(ODD)))


def places(content, path=()):
    """Every place in a JSON value."""
    yield path
    items = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    for key, value in items:
        yield from places(value, (*path, key))


def mutated(content, chance):
    """A copy with something else in one to three places."""
    content = json.loads(json.dumps(content))
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        path = chance.choice(list(places(content)))
        if not path:
            return odd(chance)
        inner = content
        for key in path[:-1]:
            inner = inner[key]
        what = chance.randrange(5)
        if what == 0:
            del inner[path[-1]]
        elif what == 1 and isinstance(inner, list):
            inner.insert(path[-1], inner[path[-1]])
        elif what == 2 and isinstance(inner[path[-1]], int):
            inner[path[-1]] += chance.choice((-1, 1, 16, -16, 256))
        elif what == 3 and isinstance(inner, dict):
            inner[f"{path[-1]}x"] = inner.pop(path[-1])
        else:
            inner[path[-1]] = odd(chance)
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
    import pyarrow as pa
    import pyarrow.parquet as pq

    from samtl.store import samples

    old = pq.ParquetFile(pa.BufferReader(raw)).read()
    columns = {
        name: column.to_pylist() for name, column in zip(old.column_names, old.columns, strict=True)
    }
    about = json.loads(old.schema.metadata[b"samtl"])
    if chance.random() < 0.5:
        about = mutated(about, chance)
    else:
        column = columns[chance.choice(list(columns))]
        column[chance.randrange(len(column))] = odd(chance)
    try:
        fields = [pa.field(field.name, field.type) for field in old.schema]
        new = pa.table(columns, schema=pa.schema(fields))
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        new = old
    if isinstance(about, dict):
        about["digest"] = "0" * 64
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, new.schema, store_schema=False) as writer:
        writer.write_table(new)
        text = json.dumps(about, separators=(",", ":")).encode("utf-8", "replace")
        writer.add_key_value_metadata({"samtl": text})
    raw = bytes(sink.getvalue())
    return samples.signed(raw, "0" * 64, hashlib.sha256(raw).hexdigest())


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


def play(use, record_property, seed, refuses=True):
    """Do something with one odd thing after the other; nothing but `SamtlError` may come."""
    chance = random.Random(seed)
    began, done, refused = time.monotonic(), 0, 0
    while done < MOST and time.monotonic() - began < SECONDS:
        done += 1
        try:
            use(chance)
        except SamtlError:
            refused += 1
    record_property("points", done)
    assert refused > done // 3 or not refuses


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two blocks, and a pack."""
    path = tmp_path_factory.mktemp("fuzz") / "a.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("samtl.store.writer.PACK_RECORDS", 2)
        return make(path, 21, bad=[4])


def use_store(path):
    opened = open_store(path)
    summary = opened.summary()
    json.dumps(summary.to_json())
    assert summary.ok + summary.missing + len(summary.quarantined) >= 0
    assert len(opened.labels) == len(opened.sample_ids) == len(opened)
    for array in opened.arrays:
        there = np.flatnonzero(opened.valid(array))
        assert len(opened.read(array, there[:3])) == min(3, len(there))


FILES = ("fingerprint.json", "samples/000001.parquet", "log/1.0.json", "log/pack.npz", "zarr.json",
         "pooled/zarr.json")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "way"),
    [
        (name, way)
        for name in FILES
        for way in ("sealed", "bytes")
        if (name[-3:], way) != ("npz", "sealed")
    ],
)
def test_documents_of_a_store(store, tmp_path, record_property, name, way):
    if name.startswith("log/1"):  # else it is read from the pack alone
        store = Path(shutil.copytree(store, tmp_path / "a.zarr"))
        (store / "log/pack.npz").unlink()
    raw = (store / name).read_bytes()

    def use(chance):
        if way == "bytes":
            new = damaged(raw, chance)
        elif name.endswith("parquet"):
            new = table(raw, chance)
        else:
            new = sealed(mutated(json.loads(raw), chance))
        (store / name).write_bytes(new)
        found = check(store)
        json.dumps([str(finding) for finding in found.findings])
        if "zarr" in name:
            open_store(store).zarr()
        else:
            use_store(store)

    try:
        # A damaged pack is passed over.
        play(use, record_property, f"{name} {way}", refuses=not name.endswith("npz"))
    finally:
        (store / name).write_bytes(raw)
    use_store(store)


@pytest.mark.parametrize("way", ["shard", "index"])
def test_shards_of_a_store(store, record_property, way):
    """With the record's checksum of the file's size alone, as of a file that was exchanged."""
    path = store / "pooled" / "c.0.0"
    raw = path.read_bytes()

    def use(chance):
        data = bytearray(raw)
        start = len(raw) - 260 if way == "index" else 32
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(start, len(raw))
            data[at] = (data[at] + chance.randrange(1, 256)) % 256
        path.write_bytes(data)
        assert check(store).findings
        open_store(store).read("pooled")

    try:
        # The index is for others: rows are where their positions say.
        play(use, record_property, way, refuses=way == "shard")
    finally:
        path.write_bytes(raw)


@pytest.mark.parametrize("maker", [logreg.Head, lambda: mlp.Head(hidden=(4,), epochs=1)])
@pytest.mark.parametrize("name", ["head.json", "head.safetensors"])
@pytest.mark.parametrize("way", ["values", "bytes"])
def test_heads(tmp_path, record_property, maker, name, way):
    random_ = np.random.default_rng(0)
    X, y = random_.random((60, 5), np.float32), random_.integers(0, 3, 60)
    save(maker().fit(X, y), tmp_path, columns=list("abcde"), class_names=["x", "y", "z"])
    path = tmp_path / name
    raw = path.read_bytes()
    if way == "values" and name.endswith("safetensors"):
        pytest.skip("it has no JSON but its header, which the bytes cover")

    def use(chance):
        if way == "values":
            content = mutated(json.loads(raw), chance)
            path.write_text(json.dumps(content))
        else:
            path.write_bytes(damaged(raw, chance))
        load(tmp_path).predict_proba(X)

    play(use, record_property, f"{name} {way}")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    from stubs import embedded, toy_dataset

    from samtl.experiment.fit import fit_head

    folder = tmp_path_factory.mktemp("runs")
    path = embedded(folder, toy_dataset(60), 64, ["pooled"])
    return fit_head(path, "logreg", 0.5, 0, folder / "runs").run


@pytest.mark.parametrize("name", ["config.json", "split.json", "metrics.json", "head.json"])
def test_runs(run_folder, record_property, name):
    path, metrics = run_folder / name, run_folder / "metrics.json"
    raw, sealed = path.read_bytes(), metrics.read_bytes()

    def use(chance):
        metrics.write_bytes(sealed)
        path.write_bytes(raw)
        if chance.random() < 0.7:
            try:
                edit_run(run_folder, name, lambda content: mutated(content, chance))
            except (ValueError, TypeError, AttributeError) as error:
                raise SamtlError("that cannot be sealed") from error
        else:
            path.write_bytes(damaged(raw, chance))
        if name == "split.json":
            read_split(run_folder)
            read_split_file(path)
        read_run(run_folder)
        read_trained(run_folder)

    try:
        play(use, record_property, name)
    finally:
        metrics.write_bytes(sealed)
        path.write_bytes(raw)


def saved_head(folder):
    random_ = np.random.default_rng(0)
    X, y = random_.random((60, 5), np.float32), random_.integers(0, 3, 60)
    save(logreg.Head().fit(X, y), folder, columns=list("abcde"), class_names=["x", "y", "z"])
    return folder


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not here")
@pytest.mark.parametrize(
    "target", ["identity", "table", "record", "group", "array", "shard", "head", "tensors"]
)
def test_led_by_the_code(tmp_path, record_property, target):
    (tmp_path / "head").mkdir()
    folder = (
        saved_head(tmp_path / "head")
        if target in ("head", "tensors")
        else make(tmp_path / "a.zarr", 21)
    )
    tests = Path(__file__).parent
    done = subprocess.run(
        # What traces the comparisons grows by 4 KiB a run; the same runs without it do not.
        [sys.executable, str(tests / "fuzzing.py"), target, str(folder), f"-runs={RUNS}", "-max_total_time=1800",
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
