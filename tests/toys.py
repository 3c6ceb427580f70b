"""Small datasets of images that can be told apart: for what learns from pixels."""

from dataclasses import replace

import numpy as np
from zips import encoded

from samtl.datasets import IGNORE, Dataset
from samtl.splits import Samples

COLOURS = np.array([[200, 60, 60], [60, 190, 70], [70, 80, 210], [220, 210, 60]])
SHAPES = ((32, 32), (32, 20), (24, 32))  # square, tall, wide


class Reads:
    """Looks ids up, keeps which were asked for, and refuses those that are forbidden."""

    def __init__(self, content):
        self.content, self.asked, self.forbidden = content, [], set()

    def __call__(self, sample_id):
        assert sample_id not in self.forbidden, f"{sample_id} must not be read"
        self.asked.append(sample_id)
        found = self.content[sample_id]
        if isinstance(found, Exception):
            raise found
        return found


def stripes(n=60, classes=3, shapes=SHAPES):
    """Labelled images: stripes of the class's colour on grey, with noise."""
    random = np.random.default_rng(0)
    files = {}
    for i in range(n):
        shape = shapes[i % len(shapes)]
        pixels = np.full((*shape, 3), 128.0)
        pixels[:, (np.arange(shape[1]) + i) % 8 < 4] = COLOURS[i % classes]
        pixels += random.normal(0, 12, pixels.shape)
        files[f"{i % classes}/{i:03d}.png"] = encoded(pixels.clip(0, 255).astype(np.uint8))
    labels = tuple(i % classes for i in range(n))
    names = tuple(f"class{i}" for i in range(classes))
    return Dataset("stripes", names, tuple(files), labels, Reads(files))


def several(n=60, classes=3, shapes=SHAPES):
    """The images of `stripes`, with one or two classes for each colour."""
    sets = ((0,), (0, 1), (2,), (1, 3))
    labels = tuple(sets[i % classes] for i in range(n))
    return replace(stripes(n, classes, shapes), name="several", labels=labels)


def numbers(n=60, classes=3, shapes=SHAPES):
    """The images of `stripes`, with a number for each colour."""
    labels = tuple((10.0, 20.0, 40.0, 80.0)[i % classes] for i in range(n))
    return replace(stripes(n, classes, shapes), name="numbers", classes=("level",), labels=labels)


def blobs(n=24, classes=3, shapes=SHAPES, noise=10.0):
    """Images with masks: a rectangle of one of the other classes' colours on the background's, one corner ignored."""
    random = np.random.default_rng(0)
    files, masks = {}, {}
    for i in range(n):
        height, width = shapes[i % len(shapes)]
        mask = np.zeros((height, width), dtype=np.uint8)
        top, left = random.integers(0, height - 12), random.integers(0, width - 12)
        mask[top : top + 12, left : left + 12] = 1 + i % (classes - 1)
        pixels = COLOURS[mask] + random.normal(0, noise, (height, width, 3))
        files[f"{i:03d}.png"] = encoded(pixels.clip(0, 255).astype(np.uint8))
        mask[:2, :2] = IGNORE
        masks[f"{i:03d}.png"] = mask
    names = ("background", *(f"class{i}" for i in range(1, classes)))
    return Dataset("blobs", names, tuple(files), (-1,) * n, Reads(files), read_mask=Reads(masks))


def samples_of(ids, labels=None, classes=(), groups=(), parts=()):
    """Samples with these ids and class indices, or with masks."""
    known = np.full(len(ids), -1) if labels is None else np.array(labels, np.int64)
    task, usable = ("segmentation", known < 0) if labels is None else ("classification", known >= 0)
    columns = tuple(groups), tuple(parts)
    return Samples("the samples", task, tuple(ids), tuple(classes), known, usable, *columns)
