"""Stand-ins that are fast and never the same twice: generated images, and encoders that hash their input."""

import dataclasses
import hashlib
import json
import struct
import threading
import time
import zlib

import numpy as np
import pytest
from toys import Reads, samples_of
from zips import encoded, unpack

from samtl import registry, splits
from samtl._io import digest, file_sha256
from samtl.datasets import Dataset
from samtl.embed import api
from samtl.embed.api import embed
from samtl.encoders.base import OWN, EncoderSpec, Weights
from samtl.errors import InputError
from samtl.experiment.run import METRICS, Run, SplitName
from samtl.images.bands import RGB
from samtl.images.transforms import PATCH, check_image_size, grid_cells
from samtl.metrics.classification import Score

SHAPES = ((20, 20), (12, 30), (30, 9))  # square, wide, tall


def png(seed, shape=(20, 20)):
    """Bytes of a PNG with random colours."""
    return encoded(np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8))


def image_folder(root):
    """Write 24 images in two classes; gives the folder."""
    files = {
        f"{name}/{i}.png": png(len(name) * 100 + i) for name in ("field", "town") for i in range(12)
    }
    return unpack(root, files)


def huge_png():
    """A PNG whose header alone says that it has 2.5 gigapixels."""
    data = bytearray(png(0))
    struct.pack_into(">II", data, 16, 50_000, 50_000)
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    return bytes(data)


# What can be wrong with an image file, by the code under which its row is quarantined.
BROKEN = {
    "empty": b"",
    "truncated": png(0)[:200],
    "not_an_image": b"Dear reader, this is no image.\n",
    "too_large": huge_png(),
    "unreadable": OSError("the network drive is gone"),
    "gone": InputError("it was taken out of the archive"),
}


def toy_dataset(n=21, classes=3, bad=None, name="toy"):
    """Make a dataset of small images; `bad` maps numbers of images to bytes, exceptions, or keys of `BROKEN`."""
    files = {f"class{i % classes}/{i:04d}.png": png(i, SHAPES[i % 3]) for i in range(n)}
    ids = tuple(files)
    for number, content in (bad or {}).items():
        files[ids[number]] = BROKEN[content] if isinstance(content, str) else content
    names, labels = tuple(f"class{i}" for i in range(classes)), tuple(i % classes for i in range(n))
    return Dataset(name, names, ids, labels, Reads(files))


def reading(dataset, instead):
    """The same dataset, some of whose images have other bytes, or raise: those that `instead` maps to them."""
    other = Reads(instead)
    return dataclasses.replace(
        dataset, read=lambda name: (other if name in instead else dataset.read)(name)
    )


def masked_dataset(n=37, classes=3, bad=None, unreadable=(), **fields):
    """Small images with masks; `bad` maps a number or an id to what stands in a mask's place."""
    images = toy_dataset(n, classes, dict.fromkeys(unreadable, "unreadable"))
    masks, ids = {}, images.sample_ids
    for number, sample_id in enumerate(ids):
        random = np.random.default_rng(number)
        masks[sample_id] = random.integers(0, classes, SHAPES[number % 3], np.uint8)
        masks[sample_id][0, 0] = 255
    masks |= {ids[at] if isinstance(at, int) else at: other for at, other in (bad or {}).items()}
    fields = {"labels": (-1,) * n, "read_mask": Reads(masks), **fields}
    return dataclasses.replace(images, **fields)


def small_dataset():
    """Images of the `small` fixture: 37, two of them broken."""
    return toy_dataset(37, bad={3: "truncated", 30: "empty"})


class StubEncoders:
    """What the embedding uses of a module in `samtl/encoders`: `Encoder` and `spec`."""

    def __init__(self, image_size=64, seconds=0.0, tally=None):
        self.IMAGE_SIZE = image_size
        self.seconds = seconds
        self.tally = tally  # a file that gets a byte for each image: it outlives the process
        self.images = self.largest_batch = 0  # how many were encoded, and the most at once
        self.counting = threading.Lock()
        self.before_batch = lambda pixels: None  # may raise
        self.spoil = lambda outputs: None  # may alter them

    def Encoder(
        self,
        name,
        checkpoint=None,
        device="auto",
        dtype="auto",
        image_size=None,
        engine="fast",
        bands=OWN,
    ):
        return self.kind(self, self.spec(name, image_size, bands), checkpoint, dtype)

    features = tuple(f"column_{i}" for i in range(10))

    def spec(self, name, image_size=None, bands=OWN):
        size = self.IMAGE_SIZE if image_size is None else image_size
        check_image_size(size)
        return EncoderSpec(
            name,
            size,
            patch=PATCH,
            channels=256,
            features=self.features,
            bands=bands.names or RGB,
            units=bands.units,
            scaling={},
            preprocessing={"resize": "longest side"},
            default_checkpoint="random:0",
        )


class StubEncoder:
    """Returns random numbers, seeded by the weights, the array's name and the image: equal input, equal output."""

    def __init__(self, owner, spec, checkpoint, dtype):
        self.owner, self.spec, self.compute_dtype = owner, spec, dtype
        checkpoint = checkpoint or spec.default_checkpoint
        digest = hashlib.sha256(f"{spec.name} {checkpoint}".encode()).hexdigest()
        self.weights = Weights(f"untrained ({checkpoint})", untrained=True, sha256=digest)

    def fingerprint(self):
        return self.spec.fingerprint(self.weights.sha256, self.compute_dtype)

    def best_batch(self, most):
        return max(1, min(most, 8))

    def encode(self, pixels, tiers):
        self.owner.before_batch(pixels)
        outputs = {}
        for name in tiers:
            shape, dtype = self.spec.shape(name), self.spec.stored_dtypes[name]
            outputs[name] = np.stack([self._draw(name, image, shape, dtype) for image in pixels])
        time.sleep(self.owner.seconds * len(pixels))
        with self.owner.counting:
            self.owner.images += len(pixels)
        self.owner.largest_batch = max(self.owner.largest_batch, len(pixels))
        if self.owner.tally:
            with self.owner.tally.open("ab") as file:
                file.write(b"." * len(pixels))
        self.owner.spoil(outputs)
        return outputs

    def _draw(self, array, image, shape, dtype):
        key = f"{self.weights.sha256} {array} {image.shape} {zlib.crc32(image)}"
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
        return np.random.default_rng(seed).random(shape, np.float32).astype(dtype)


class SeeingEncoders(StubEncoders):
    """Stubs whose features tell what is in the image, so that heads can learn from them."""

    features = (*(f"{what}_{i}" for what in ("mean", "std", "block3") for i in range(3)), "max_0")


class SeeingEncoder(StubEncoder):
    """A token has the colours of its 4 x 4 cells of pixels, in the first 48 channels; the others hold nothing."""

    def _draw(self, array, image, shape, dtype):
        if array == "pooled":
            flat = image.reshape(-1, 3) / 255
            features = [flat.mean(0), flat.std(0), image[0, 0] / 255, flat.max()]
            return np.hstack(features).astype(dtype)
        side = self.spec.grid[0]
        square = np.zeros((side * PATCH, side * PATCH, 3))
        square[: image.shape[0], : image.shape[1]] = image / 255
        cells = square.reshape(side, 4, 4, side, 4, 4, 3).mean((2, 5))  # y, cell, x, cell, colour
        grid = np.zeros((256, side, side))
        grid[:48] = cells.transpose(1, 3, 4, 0, 2).reshape(48, side, side)
        if array == "grid":
            cells = grid_cells(side)
            grid = grid.reshape(256, cells, side // cells, cells, side // cells).mean((2, 4))
        return grid.astype(dtype)


StubEncoders.kind, SeeingEncoders.kind = StubEncoder, SeeingEncoder


def install(encoders, setattr_=setattr):
    """Put a stub in the place of all encoders, and return it; tests give `monkeypatch.setattr`.

    Stubs are not timed before a pass, so that what they count is the pass.
    """
    load = registry.load

    def load_or_stub(kind, name):
        return encoders if kind == "encoders" else load(kind, name)

    setattr_(registry, "load", load_or_stub)
    setattr_(api, "timed", lambda job, encoder, missing="": job)
    return encoders


def contents(folder, hidden=True):
    """Map every file of a folder to what shows any change to it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (hidden or not path.name.startswith(".")):
            stat = path.stat()
            found[str(path.relative_to(folder))] = stat.st_mtime_ns, stat.st_ino, path.read_bytes()
    return found


def everything(store):
    """Map each array of a store to its rows: bytes of numbers, so that NaN equals NaN, and a list of strings."""
    rows = {name: store.read(name) for name in store.arrays}
    return {name: r.tolist() if r.dtype == object else r.tobytes() for name, r in rows.items()}


def embedded(folder, dataset, image_size, tiers, **options):
    """Write a store of seeing stubs' features, and return its path."""
    with pytest.MonkeyPatch.context() as patch:
        install(SeeingEncoders(image_size), patch.setattr)
        out = folder / f"{dataset.name}.zarr"
        options = {"device": "cpu", "dtype": "float32", "tiers": tiers, **options}
        return embed(dataset, "stub", out=out, **options).store


def holdout(data, share, seed=0):
    """Split a dataset's samples, or a store's, as a fit does."""
    labels = data.labels if data.task == "classification" else None
    return splits.holdout(samples_of(data.sample_ids, labels), share, seed)


def a_record(**fields):
    """Make the record of a fit that never was: `Run` with some fields of your choice."""
    parts = [SplitName("holdout", 0.2, seed, str(seed) * 64) for seed in (0, 1)]
    scores = dict.fromkeys(("accuracy", "macro_f1"), Score(0.75, 0.5, 1.0))
    known = {
        "kind": "head", "name": "mlp", "task": "classification", "classes": ("a", "b"),
        "features": "pooled", "params": {}, "seed": 0, "split": parts[0], "validation": parts[1],
        "samples_digest": "s" * 64, "dataset": "toy", "store": "toy.stub.64", "digest": "d" * 64,
        "versions": {"samtl": "0.1.0"}, "metrics": scores, "floor": None, "floor_missing": "",
        "also": {}, "confusion": np.array([[2, 1], [0, 1]]), "n_train": 12, "n_validation": 4,
        "n_test": 4, "left_out_because": {}, "training": {}, "seconds": {"total": 1.0},
        "peak_memory": 1, "finished": "2026-01-01T00:00:00.000+00:00", "comparison_key": "c" * 64,
    }  # fmt: skip
    return Run(**{**known, **fields})


def edit_run(run, file, change):
    """Change a JSON file of a run and seal the run again, as if it had been written so."""
    content = json.loads((run / file).read_text())
    (run / file).write_text(json.dumps(change(content)))
    metrics = json.loads((run / METRICS).read_text())
    if file != METRICS:
        metrics["files"][file] = file_sha256(run / file)
    metrics.pop("checksum", None)
    (run / METRICS).write_text(json.dumps({**metrics, "checksum": digest(metrics)}))
