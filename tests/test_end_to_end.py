"""From image files to predictions through the real encoder: the store changes nothing on the way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_encoders_sam import plain, relative_l2
from toys import samples_of

import samtl
from samtl import splits
from samtl.datasets import resolve, shuffled, subset
from samtl.encoders import sam
from samtl.heads import logreg, mlp
from samtl.images.codecs import decode
from samtl.images.transforms import resize_longest_side


def test_the_store_holds_what_segment_anything_computes(tmp_path):
    sizes = {"wide": (40, 100), "tall": (90, 31), "square": (64, 64)}
    for number, (name, size) in enumerate(sizes.items()):
        folder = tmp_path / "images" / ("ab"[number % 2])
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    options = {"checkpoint": "random:11", "dtype": "float32", "device": "cpu", "image_size": 512}
    store = samtl.open(samtl.embed("folder:images", "tiny", tiers=("dense",), **options).store)
    model, _ = sam.load("tiny", "random:11", 512)
    assert len(store) == 3
    for row, sample_id in enumerate(store.sample_ids):
        pixels = np.asarray(Image.open(Path("images") / sample_id))
        reference = plain(model, resize_longest_side(pixels, 512), 512)
        assert relative_l2(store.row("dense", row), reference) < 1e-3, sample_id


def test_a_head_from_the_store_is_a_head_from_the_features():
    """Train on the store, and on features that never saw one: the same predictions."""
    dataset = subset(shuffled(resolve("synthetic:5")))
    size = 128  # which is quick
    encoder = sam.Encoder("tiny", device="cpu", image_size=size)
    pixels = [resize_longest_side(decode(dataset.read(i)), size) for i in dataset.sample_ids]
    features = np.concatenate([encoder.encode([one], ("pooled",))["pooled"] for one in pixels])
    labels = np.array(dataset.labels)
    split = splits.holdout(samples_of(dataset.sample_ids, labels), 0.2, seed=1)

    options = {"device": "cpu", "image_size": size, "tiers": ["pooled"], "batch_size": 1}
    result = samtl.embed("synthetic:5", "tiny", **options)
    assert samtl.open(result.store).sample_ids == dataset.sample_ids
    for name, module in (("logreg", logreg), ("mlp", mlp)):
        run = samtl.fit_head(result.store, head=name, split=0.2, seed=1)
        assert run.split.digest == split.digest
        head = module.Head(random_state=1)
        held = features[split.validation], labels[split.validation]
        head.fit(features[split.train], labels[split.train], held)
        lines = (run.run / "predictions.csv").read_text().splitlines()[1:]
        told = [line.split(",")[2] for line in lines]
        assert told == [dataset.classes[i] for i in head.predict(features[split.test])]


# What the largest process needed, in KiB on Linux. A small process asks: one that these tests start themselves would
# count from the size that they have grown to.
WATCH = """
import pathlib, resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
pathlib.Path(sys.argv[1]).write_text(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""


def samtl_command(*args):
    """Run a verb; gives what it prints, and what it tells programs."""
    main, told = Path(sys.executable).parent / "samtl", Path("told.json")
    command = [sys.executable, "-c", WATCH, "peak.txt", main, *map(str, args), "--json", told]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(told.read_text())


@pytest.mark.slow
def test_the_demo_beats_its_floor_by_more_than_chance():
    """Real images, and weights that are no random numbers: intervals of head and floor lie apart."""
    output, told = samtl_command("demo")
    assert [one["untrained"] for one in told["embed"]] == [False, True]
    assert "untrained" in output
    for fit in told["fits"]:
        assert fit["metrics"]["accuracy"]["low"] > fit["floor"]["accuracy"]["high"]
        assert Path(fit["run"], "head.safetensors").is_file()
        assert f"run: {fit['run']}" in output
    assert 0 < int(Path("peak.txt").read_text()) < 2**20


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(
    not Path(os.environ.get("SAMTL_DATA", ""), "EuroSAT.zip").is_file(),
    reason="SAMTL_DATA is unset or has no EuroSAT.zip: no real images",
)
def test_eurosat_end_to_end():
    """A few real images: the way is whole, and the figures come with their intervals and their floor."""
    archive = Path(os.environ["SAMTL_DATA"]) / "EuroSAT.zip"
    args = ("--dataset", "eurosat", "--root", archive, "--encoder", "tiny", "--per-class", "12")
    _, embedded = samtl_command("embed", *args, "--image-size", "128")
    assert embedded["rows"] == 120
    _, fit = samtl_command("fit-head", "--head", "logreg", "--split", "0.25")
    assert fit["fingerprint"] == embedded["fingerprint"]
    assert fit["n_test"] == 30
    score = fit["metrics"]["accuracy"]
    assert 0.2 < score["low"] <= score["value"] <= score["high"]  # ten classes: chance is 0.1
    assert fit["floor"]["accuracy"]["value"] > 0.2


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_roads_the_whole_way(told):
    """Masks in, masks out: embed, two heads and a baseline on one split, and masks of images from a folder."""

    def verb(*args):
        code, found, output = told(*args)
        assert code == 0
        return output, found

    roads = ("--dataset", "synthetic-roads:36", "--image-size")
    verb("embed", "--encoder", "tiny", *roads, 128)
    store = next(Path("cache").glob("*.zarr"))
    fits = {}
    for head, epochs in (("conv", 30), ("vit", 2)):
        output, fits[head] = verb("fit-head", "--head", head, "--split", "0.25", "--epochs", epochs)
        assert "untrained" in output
    run = fits["conv"]["run"]
    options = ("--baseline", "unet", "--same-split-as", run, "--epochs", "1")
    _, fits["unet"] = verb("fit-baseline", *options, *roads, 64)
    assert len({fit["split"]["digest"] for fit in fits.values()}) == 1
    # Nothing but colour tells generated roads apart for an untrained encoder, and edges of fields look alike.
    assert fits["conv"]["metrics"]["pooled_iou"]["value"] > 0.1
    assert fits["conv"]["floor"]["pooled_iou"]["value"] == 0

    dataset = resolve("synthetic-roads:36")
    Path("new").mkdir()
    names = ("scene_1/1.bmp", "scene_1/2.bmp")
    for number, name in enumerate(names):
        Path("new", f"{number}.png").write_bytes(dataset.read(name))
    verb("predict", "--run", run, "--images", "new")
    verb("predict", "--run", run, "--from-store", "--cache", store, "--out", "all")
    for number, name in enumerate(names):
        mask = np.asarray(Image.open(f"predictions/{number}.png"))
        truth = dataset.read_mask(name)
        assert mask.shape == truth.shape
        assert set(np.unique(mask)) <= {0, 1}
    assert len(list(Path("all").glob("*.png"))) == 36
