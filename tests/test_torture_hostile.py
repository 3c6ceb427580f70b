"""Files that would run a program, write elsewhere or fill the memory: at every door, none of it happens."""

import gzip
import io
import json
import os
import pickle
import resource
import shutil
import stat
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import made
import numpy as np
import pytest
import torch
from stubs import png
from zips import Part, packed

from recipes.pretrain import state as _state
from samtl._io import seal
from samtl.datasets import resolve
from samtl.encoders import sam
from samtl.errors import SamtlError
from samtl.experiment.output import Output
from samtl.experiment.tables import mask_name
from samtl.heads import logreg
from samtl.heads.io import load, save
from samtl.images.codecs import prepare
from samtl.splits import read_split_file
from samtl.store.reader import open_store
from samtl.store.verify import check

# ------------------------------------------------------------------------------------------ pickles


class Exploit:
    """Makes a file where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def torched(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def arrayed(content):
    file = io.BytesIO()
    np.save(file, np.array([content], object), allow_pickle=True)
    return file.getvalue()


PICKLES = {
    "protocol 0": lambda exploit: pickle.dumps(exploit, 0),
    "protocol 2": lambda exploit: pickle.dumps({"neck.0.weight": exploit}, 2),
    "protocol 5": lambda exploit: pickle.dumps([exploit], 5),
    "torch": lambda exploit: torched({"neck.0.weight": exploit}),
    "old torch": lambda exploit: torched({"x": exploit}, _use_new_zipfile_serialization=False),
    "numpy": arrayed,
    "gzip": lambda exploit: gzip.compress(pickle.dumps(exploit)),
}


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """A store, a head and a table of results, whole."""
    folder = tmp_path_factory.mktemp("things")
    random = np.random.default_rng(0)
    head = logreg.Head().fit(random.random((60, 5), np.float32), random.integers(0, 3, 60))
    (folder / "head").mkdir()
    save(head, folder / "head", columns=list("abcde"), class_names=["x", "y", "z"])
    return made.make(folder / "a.zarr", 21).parent


def of_store(name):
    """Put it in the place of a file of a store, and use that."""

    def use(folder, content):
        store = folder / "a.zarr"
        (store / name).write_bytes(content)
        check(store)
        opened = open_store(store)
        opened.zarr()
        for row in range(16):
            opened.row("pooled", row)

    return use


def of_head(name):
    def use(folder, content):
        (folder / "head" / name).write_bytes(content)
        load(folder / "head")

    return use


def of_file(name, read):
    def use(folder, content):
        (folder / name).write_bytes(content)
        read(folder / name)

    return use


DOORS = {
    "checkpoint": of_file("a.pth", lambda path: sam.load("tiny", str(path))),
    "safe checkpoint": of_file("a.safetensors", lambda path: sam.load("tiny", str(path))),
    "state": of_file("state.safetensors", _state.read_tensors),
    "split": of_file("split.json", read_split_file),
    "head": of_head("head.json"),
    "head's tensors": of_head("head.safetensors"),
    "identity": of_store("fingerprint.json"),
    "table": of_store("samples/000001.parquet"),
    "record": of_store("log/0.0.json"),
    "metadata": of_store("pooled/zarr.json"),
    "shard": of_store("pooled/c.0.0"),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", PICKLES)
def test_no_pickle_is_run(things, tmp_path, monkeypatch, kind, door):
    """Whatever the environment says."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    place = Path(shutil.copytree(things, tmp_path / "things"))
    mark = tmp_path / "run"
    with pytest.raises(SamtlError):
        DOORS[door](place, PICKLES[kind](Exploit(mark)))
    assert not mark.exists()


def test_these_pickles_do_run_where_they_are_let(tmp_path):
    for number, make in enumerate(PICKLES.values()):
        mark = tmp_path / str(number)
        content = make(Exploit(mark))
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        if content[:4] == b"PK\3\4":
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                content = archive.read("archive/data.pkl")
        if content[:6] == b"\x93NUMPY":
            content = content[10 + struct.unpack_from("<H", content, 8)[0] :]
        stream = io.BytesIO(content)
        while not mark.exists():  # the old kind of torch's begins with numbers
            pickle.load(stream)


# -------------------------------------------------------------------------------------------- slips

SLIPS = [
    Part("../evil.png"), Part("Forest/../../evil.png"), Part("/evil.png"), Part("//host/evil.png"),
    Part("C:\\evil.png"), Part("C:evil.png"), Part("..\\evil.png"), Part("Forest\\..\\..\\evil.png"),
    Part("Forest/\0/../evil.png"), Part("Forest/..."), Part("./../evil.png"), Part("Forest//../evil.png"),
    Part("Forest/link.png", b"../../evil.png", mode=stat.S_IFLNK | 0o777),
    Part("link/", b"", mode=stat.S_IFLNK | 0o777), Part("Forest/evil.png", local_name=b"../../../evil.p"),
    Part("Forest/device.png", b"", mode=stat.S_IFBLK | 0o666), Part("Forest/pipe.png", b"", mode=stat.S_IFIFO | 0o666),
    Part("~/evil.png"), Part("Forest/%2e%2e/evil.png"), Part("Forest/\u2024\u2024/evil.png"),
]  # fmt: skip


def everything_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("part", SLIPS, ids=lambda part: repr(part.name))
def test_nothing_leaves_an_archive(tmp_path, part):
    """It is refused, or stays a name in it: nothing is ever unpacked to a disk."""
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "evil.png").write_bytes(png(1))
    whole = [Part("Forest/a.png", png(1)), Part("River/b.png", png(2)), part]
    (inner / "a.zip").write_bytes(packed(whole))
    before = everything_below(tmp_path)
    try:
        dataset = resolve("eurosat", inner / "a.zip")
    except SamtlError:
        pass
    else:
        for sample_id in dataset.sample_ids:
            assert dataset.read(sample_id) != png(1) or sample_id == "Forest/a.png"
    assert everything_below(tmp_path) == before


@pytest.mark.parametrize(
    "sample_id",
    ["../../evil", "/evil", "a/../../../evil", "..\\..\\evil", "C:\\evil", "\0", "a" * 5000, "..", ".", "", "~/x"],
)  # fmt: skip
def test_no_mask_is_written_elsewhere(tmp_path, sample_id):
    """Of a store that somebody else made, whose samples are called anything."""
    place = tmp_path / "a" / "b" / "masks"
    place.parent.mkdir(parents=True)
    with Output(place, "segmentation", ("x", "y"), "sample_id", False) as output:
        output.write(sample_id, mask_name(7, sample_id), np.zeros((4, 4), np.uint8))
        output.finish()
    below = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert all(place in path.parents for path in below)
    assert len(below) == 2  # the mask and the table


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


# -------------------------------------------------------------------------------------------- bombs


def squeezed(count):
    """So many zeros in a thousandth of the bytes."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = bytes(2**20)
    out = b"".join(squeeze.compress(piece) for _ in range(count // 2**20))
    return out + squeeze.flush()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def large_png(side):
    """A sound image of black pixels, and small on a disk."""
    squeeze = zlib.compressobj(9)
    line = bytes(1 + 3 * side)
    data = b"".join(squeeze.compress(line) for _ in range(side)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def zipped(*parts):
    return packed([Part("Forest/a.png", png(1)), Part("River/b.png", png(2)), *parts])


def safe(header):
    content = json.dumps(header).encode()
    return struct.pack("<Q", len(content)) + content


def tensor(shape, end):
    return safe({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}})


def packed_checkpoint():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**28))
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def inflating(kind, begin):
    """An image with a part that unpacks to 256 MiB."""
    return png(0)[:33] + chunk(kind, begin + zlib.compress(bytes(2**28))) + png(0)[33:]


GIB = 2**30
OF_ARCHIVES = {
    "a gibibyte of zeros": lambda: zipped(Part("River/x.png", payload=squeezed(GIB), size=GIB, crc=0)),
    "one that says it is small": lambda: zipped(Part("River/x.png", payload=squeezed(GIB), size=1000, crc=0)),
    "just what a file may have": lambda: zipped(Part("River/x.png", payload=squeezed(GIB // 2), size=GIB // 2, crc=0)),
    "many that share their bytes": lambda: zipped(
        *(Part(f"River/{i}.png", payload=b"" if i else squeezed(2**28), size=2**28, offset=60) for i in range(50))
    ),
    "more than there is to be": lambda: zipped(
        *(Part(f"River/{i}.png", b"", size=2**29, packed_size=2**24) for i in range(200))
    ),
    "a directory of a gibibyte": lambda: (
        zipped()[:-22] + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 60000, 60000, GIB, 100, 0)
    ),
    "an archive in an archive": lambda: zipped(Part("River/x.png", zipped(Part("x", bytes(2**20))))),
}  # fmt: skip
OF_IMAGES = {
    "as large as can be": lambda: large_png(9459),
    "a little larger": lambda: large_png(9460),
    "far larger": lambda: large_png(30_000),
    "with a long text": lambda: inflating(b"zTXt", b"k\0\0"),
    "with a long profile": lambda: inflating(b"iCCP", b"k\0\0"),
}
OF_DOCUMENTS = {
    "a hundred thousand brackets": lambda: b"[" * 100_000,
    "a deep tree": lambda: b'{"a":' * 50_000,
    "a long number": lambda: b'{"a":' + b"9" * 2_000_000 + b"}",
    "a large power": lambda: b'{"a":1e999999999}',
}
OF_TENSORS = {
    "a header of 2^63 bytes": lambda: struct.pack("<Q", 2**63 - 1) + b"{}",
    "a header of a gibibyte": lambda: struct.pack("<Q", GIB) + b"{}",
    "2^50 numbers": lambda: tensor([2**50], 2**52),
    "2^50 times nothing": lambda: tensor([0, 2**50], 0),
}


def bombs():
    """Give each one's name, door and bytes."""
    for doors, bombs_of in (
        (["archive"], OF_ARCHIVES),
        (["image"], OF_IMAGES),
        (["identity", "record", "metadata", "table", "head", "split"], OF_DOCUMENTS),
        (["head's tensors", "safe checkpoint", "state"], OF_TENSORS),
        (["checkpoint"], {"a packed checkpoint": packed_checkpoint}),
        (["shard"], {"a large shard": lambda: bytes(2**27)}),
    ):
        for door in doors:
            for name, make in bombs_of.items():
                yield name, door, make()


USE = """
import resource, sys
sys.path[:0] = [sys.argv[1], str(__import__("pathlib").Path(sys.argv[1]).parent)]
from pathlib import Path
import numpy, torch, zarr
from test_torture_hostile import BOMB_DOORS, peak
from samtl.errors import SamtlError
from samtl.encoders import sam
sam.build("tiny")  # the modules that every use of these doors loads
door, folder, content = sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]).read_bytes()
before = peak()
try:
    BOMB_DOORS[door](folder, content)
    print("taken", end=" ")
except SamtlError as error:
    print("refused", end=" ")
children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
print((peak() - before) // 2**20, children // 2**20)
"""


def peak():
    """The most memory that this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def of_archive(folder, content):
    path = folder / "a.zip"
    path.write_bytes(content)
    dataset = resolve("eurosat", path)
    for sample_id in dataset.sample_ids:
        dataset.read(sample_id)


def of_image(folder, content):
    prepare(content, 64)


MIB = 512  # that a bomb may take, beyond the code that meets it
BOMB_DOORS = {**DOORS, "archive": of_archive, "image": of_image}


@pytest.mark.slow
def test_no_bomb_takes_half_a_gibibyte(things, tmp_path, record_property):
    if not os.environ.get("SAMTL_TORTURE"):
        pytest.skip("make torture tries them, each in a process of its own")
    tried, large = 0, []
    for number, (name, door, content) in enumerate(bombs()):
        place = Path(shutil.copytree(things, tmp_path / str(number)))
        (place / "bomb").write_bytes(content)
        done = subprocess.run(
            [sys.executable, "-c", USE, str(Path(__file__).parent), door, str(place), str(place / "bomb")],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (name, door, done.stderr[-2000:])
        said, own, children = done.stdout.split()
        if max(int(own), int(children)) > MIB:
            large.append((name, door, said, own, children))
        tried += 1
        shutil.rmtree(place)
    record_property("points", tried)
    assert large == []
    assert tried >= 40
