"""Files that would run a program, write elsewhere or fill the memory: at every door, none of it happens."""

import contextlib
import functools
import gzip
import io
import json
import os
import pickle
import resource
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import made
import numpy as np
import pytest
import torch
from chaos import ALL
from forking import server
from stubs import png
from test_images_codecs import chunk
from test_torture_fuzz import save_head
from zips import Part, packed

from recipes.pretrain import state as _state
from samtl._io import seal
from samtl.datasets import resolve
from samtl.encoders import sam
from samtl.errors import SamtlError
from samtl.heads import logreg
from samtl.heads.io import load
from samtl.images.codecs import prepare
from samtl.splits import read_split_file
from samtl.store.reader import open_store
from samtl.store.verify import check


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """A store and a head, whole."""
    folder = tmp_path_factory.mktemp("things")
    save_head(folder / "head", logreg.Head())
    return made.make(folder / "a.zarr", 21).parent


def use_store(folder):
    check(folder / "a.zarr")
    opened = open_store(folder / "a.zarr")
    opened.zarr()
    opened.read("pooled")


def use_archive(folder):
    dataset = resolve("eurosat", folder / "a.zip")
    for sample_id in dataset.sample_ids:
        dataset.read(sample_id)


# Doors: a file, and what reads it.
DOORS = {
    "a.pth": lambda folder: sam.load("tiny", str(folder / "a.pth")),
    "a.safetensors": lambda folder: sam.load("tiny", str(folder / "a.safetensors")),
    "state.safetensors": lambda folder: _state.read_tensors(folder / "state.safetensors"),
    "split.json": lambda folder: read_split_file(folder / "split.json"),
    **dict.fromkeys(["head/head.json", "head/head.safetensors"], lambda folder: load(folder / "head")),
    **dict.fromkeys(
        ["a.zarr/fingerprint.json", "a.zarr/samples/000001.parquet", "a.zarr/log/0.0.json", "a.zarr/pooled/zarr.json",
         "a.zarr/pooled/c.0.0"], use_store,
    ),
}  # fmt: skip
BOMB_DOORS = {
    **DOORS,
    "a.zip": use_archive,
    "a.png": lambda folder: prepare((folder / "a.png").read_bytes(), 64),
}


class Exploit:
    """Makes a file where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def written(write, *args, **options):
    file = io.BytesIO()
    write(*args, file, **options)
    return file.getvalue()


PICKLES = {
    "protocol 0": lambda exploit: pickle.dumps(exploit, 0),
    "protocol 2": lambda exploit: pickle.dumps({"neck.0.weight": exploit}, 2),
    "protocol 5": lambda exploit: pickle.dumps([exploit], 5),
    "torch": lambda exploit: written(torch.save, {"neck.0.weight": exploit}),
    "old torch": lambda exploit: written(torch.save, {"x": exploit}, _use_new_zipfile_serialization=False),
    "numpy": lambda exploit: written(lambda content, file: np.save(file, content), np.array([exploit], object)),
    "gzip": lambda exploit: gzip.compress(pickle.dumps(exploit)),
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", PICKLES)
def test_no_pickle_is_run(things, tmp_path, monkeypatch, kind, door):
    """Whatever the environment says."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    place = Path(shutil.copytree(things, tmp_path / "things"))
    mark = tmp_path / "run"
    (place / door).write_bytes(PICKLES[kind](Exploit(mark)))
    with pytest.raises(SamtlError):
        DOORS[door](place)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("kind", "load"),
    [
        *((f"protocol {n}", pickle.load) for n in (0, 2, 5)),
        *(
            (kind, functools.partial(torch.load, weights_only=False))
            for kind in ("torch", "old torch")
        ),
        ("numpy", functools.partial(np.load, allow_pickle=True)),
    ],
)
def test_these_pickles_do_run_where_they_are_let(tmp_path, kind, load):
    load(io.BytesIO(PICKLES[kind](Exploit(tmp_path / "run"))))
    assert (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "pooled/../../evil"])
@pytest.mark.parametrize("file", ["log/0.0.json", "fingerprint.json"])
def test_no_name_of_an_array_reads_elsewhere(things, tmp_path, file, name):
    store = Path(shutil.copytree(things / "a.zarr", tmp_path / "a.zarr"))
    content = json.loads((store / file).read_bytes())
    content["arrays"][name] = content["arrays"].pop("pooled")
    if file == "fingerprint.json":
        content["arrays"][name]["name"] = name
    (store / file).write_bytes(seal(content))
    assert check(store).findings[0].path == file
    with pytest.raises(SamtlError):
        open_store(store).read("image_stats", [0])


GIB = 2**30
MIB = 512  # that a bomb may take, beyond the code that meets it


def squeezed(count, line=bytes(2**20), window=-15):
    """So many lines, by default of zeros, in a thousandth of the bytes."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, window)
    return b"".join(squeeze.compress(line) for _ in range(count)) + squeeze.flush()


def large_png(side):
    """A sound image of black pixels, and small on a disk."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", squeezed(side, bytes(1 + 3 * side), 15))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


def zipped(*parts):
    return packed([Part("Forest/a.png", png(1)), Part("River/b.png", png(2)), *parts])


def zeros(size, says=None):
    return Part("River/x.png", payload=squeezed(size >> 20), size=says or size, crc=0)


def tensor(shape, end):
    header = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    return struct.pack("<Q", len(header)) + header


def packed_checkpoint(size=2**28):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(size))
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


# Doors to what is tried there.
BOMBS = {
    "a.zip": [
        lambda: zipped(zeros(GIB)),
        lambda: zipped(zeros(GIB, says=1000)),
        lambda: zipped(zeros(GIB // 2)),  # just what a file may have
    ],
    "a.png": [lambda side=side: large_png(side) for side in (9459, 9460, 30_000)],
    **dict.fromkeys(
        ["a.zarr/fingerprint.json", "a.zarr/log/0.0.json", "a.zarr/pooled/zarr.json", "a.zarr/samples/000001.parquet",
         "head/head.json", "split.json"],
        (lambda: b"[" * 100_000, lambda: b'{"a":' * 50_000, lambda: b'{"a":' + b"9" * 2_000_000 + b"}",
         lambda: b'{"a":1e999999999}'),
    ),
    **dict.fromkeys(
        ["head/head.safetensors", "a.safetensors", "state.safetensors"],
        (lambda: struct.pack("<Q", 2**63 - 1) + b"{}", lambda: struct.pack("<Q", GIB) + b"{}",
         lambda: tensor([2**50], 2**52), lambda: tensor([0, 2**50], 0)),
    ),
    "a.pth": [packed_checkpoint],
    "a.zarr/pooled/c.0.0": [lambda: bytes(2**27)],
}  # fmt: skip


def meet(door, sound, folder, answers):
    """In a process of its own: open a door, and answer how many MiB that took, or its children did."""
    sam.build("tiny")  # the modules that every use of these doors loads
    with contextlib.suppress(SamtlError, OSError):  # not every door has a sound file
        BOMB_DOORS[door](sound)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(SamtlError):
        BOMB_DOORS[door](folder)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    answers.send(max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) >> 10)


@pytest.mark.slow
@pytest.mark.skipif(not ALL, reason="make torture tries them, each in a process of its own")
@pytest.mark.parametrize(
    ("door", "number"), [(d, n) for d, of in BOMBS.items() for n in range(len(of))]
)
def test_no_bomb_takes_the_memory(things, tmp_path, door, number):
    place = Path(shutil.copytree(things, tmp_path / "things"))
    sound = Path(shutil.copytree(things, tmp_path / "sound"))
    (sound / "a.pth").write_bytes(packed_checkpoint(2**10))
    (place / door).write_bytes(BOMBS[door][number]())
    receiver, answers = server().Pipe(duplex=False)
    process = server().Process(target=meet, args=(door, sound, place, answers))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert receiver.recv() < MIB
