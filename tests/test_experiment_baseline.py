"""A baseline's run has the split, the scores and the folder of a head's, and reads what is held out last."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import stubs
from PIL import Image
from toys import blobs, stripes

from samtl import splits
from samtl.datasets import shuffled
from samtl.embed.api import embed
from samtl.errors import InputError, UnknownName
from samtl.experiment.baseline_trial import BaselineTrial, samples_of
from samtl.experiment.fit import choose, configured, fit_baseline, fit_head
from samtl.experiment.run import read_run
from samtl.experiment.trial import Clock, Stage
from samtl.heads.io import load
from samtl.images.transforms import mask_square, resized_shape
from samtl.metrics import segmentation as pixel_metrics
from samtl.splits import read_split

pytestmark = pytest.mark.usefixtures("one_thread")

FAST = {"epochs": 2, "image_size": 32}


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_of_classification():
    data = stripes()
    result = fit_baseline(data, "floor", 0.2)
    assert (result.kind, result.name, result.task) == ("baseline", "floor", "classification")
    assert (result.n_train, result.n_validation, result.n_test) == (38, 10, 12)
    assert set(result.also) == {"knn"}
    assert result.floor is None
    assert result.floor_missing == "this is the floor"
    assert result.run.name.startswith("stripes-floor-0.2-s0-")
    rows = table(result.run / "predictions.csv")
    hits = [row["label"] == row["predicted"] for row in rows]
    assert len(hits) == 12
    assert result.metrics["accuracy"].value == np.mean(hits)
    assert result.metrics["accuracy"].value == 1  # colours tell the stripes apart
    run = read_run(result.run, whole=True)
    assert (run.name, run.metrics, run.store, run.fingerprint) == ("floor", result.metrics, "", "")


def test_the_split_is_that_of_any_trial_of_the_same_samples():
    data = stripes()
    ordered = shuffled(data)
    result = fit_baseline(data, "floor", 0.3, seed=4)
    assert result.split == splits.holdout(
        splits.Samples.of(ordered.sample_ids, ordered.labels), 0.3, 4
    )


def test_what_is_held_out_is_read_after_training():
    data = stripes()
    ordered = shuffled(data)
    split = splits.holdout(splits.Samples.of(ordered.sample_ids, ordered.labels), 0.2, 0)
    data.read.forbidden = {ordered.sample_ids[row] for row in split.test}

    def allow(event):
        if event == Stage("score"):
            data.read.forbidden = set()

    fit_baseline(data, "cnn", 0.2, params=FAST, on_event=allow)
    held_out = {ordered.sample_ids[row] for row in split.test}
    assert held_out <= set(data.read.asked)  # else the guard guarded nothing


def test_a_network_has_the_floor_beside_it():
    data = stripes()
    floor = fit_baseline(data, "floor", 0.2)
    result = fit_baseline(data, "cnn", same_split_as=floor.run, params=FAST)
    assert result.floor == floor.metrics
    assert result.also == floor.also
    assert result.split == floor.split
    assert result.training["epochs"] == 2
    assert 0 <= result.training["waiting"] <= 1
    assert result.peak_memory > 10 * 2**20


def test_a_run_of_segmentation():
    data = blobs()
    result = fit_baseline(data, "unet", 0.25, params={**FAST, "width": 4})
    ordered = shuffled(data)
    assert result.task == "segmentation"
    assert result.floor["recall"].value == 0  # all background
    assert "mean-colour" in result.also
    rows = table(result.run / "images.csv")
    assert [row["sample_id"] for row in rows] == [ordered.sample_ids[i] for i in result.split.test]
    for row in rows:
        truth = data.read_mask(row["sample_id"])
        height, width = resized_shape(*truth.shape, 1024)
        guess = np.asarray(Image.open(result.run / row["mask"]))
        assert guess.shape == (height, width)
        matrix = pixel_metrics.confusion(
            mask_square(truth, 1024)[:height, :width], guess, len(data.classes)
        )
        assert float(row["dice"]) == pytest.approx(pixel_metrics.scores(matrix)["dice"], abs=1e-5)
    mean = np.mean([float(row["iou"]) for row in rows])
    assert result.metrics["iou"].value == pytest.approx(mean, abs=1e-5)


def test_masks_are_scored_at_the_resolution_of_the_run_compared_with(tmp_path, monkeypatch):
    data = blobs()
    stubs.install(stubs.SeeingEncoders(64), monkeypatch.setattr)
    store = tmp_path / "small.zarr"
    embed(data, "stub", device="cpu", dtype="float32", tiers=["dense"], out=store)
    head = fit_head(store, "conv", 0.25, params={"width": 4, "epochs": 1})
    result = fit_baseline(data, "floor", same_split_as=head.run)
    again = fit_baseline(data, "floor", same_split_as=result.run)
    for run in (head.run, result.run, again.run):
        masks = (run / "masks").glob("*.png")
        assert {max(np.asarray(Image.open(mask)).shape) for mask in masks} == {64}, run
    assert result.metrics == again.metrics
    # What a head and a baseline were scored against is the same, wherever they read it.
    assert head.comparison_key == result.comparison_key == again.comparison_key
    assert fit_baseline(data, "floor", 0.25).comparison_key != head.comparison_key


def test_scenes_stay_together():
    data = blobs()
    data = replace(data, groups=tuple(f"scene {i // 4}" for i in range(len(data))))
    result = fit_baseline(data, "floor", 0.3)
    ordered = shuffled(data)
    held = {ordered.groups[i] for i in result.split.test}
    assert not held & {ordered.groups[i] for i in result.split.train}


def test_a_saved_baseline_predicts_as_it_did():
    data = stripes()
    result = fit_baseline(data, "cnn", 0.2, params=FAST)
    ordered = shuffled(data)
    again = np.concatenate(list(load(result.run).predict(ordered, result.split.test)))
    written = [
        [float(row[f"p_{name}"]) for name in data.classes]
        for row in table(result.run / "predictions.csv")
    ]
    assert again == pytest.approx(np.array(written), abs=1e-8)


@pytest.mark.parametrize(
    ("data", "baseline", "options", "message"),
    [
        (stripes, "unet", {}, "unet is for segmentation, and stripes is for classification"),
        (blobs, "cnn", {}, "cnn is for classification, and blobs is for segmentation"),
        (stripes, "cnn", {"params": {"depth": 3}}, "'depth'"),
        (stripes, "cn", {}, "did you mean cnn"),
        (stripes, "floor", {"split": 1.5}, "lies between 0 and 1"),
        (stripes, "floor", {"split": "half"}, "no split is called 'half': known are 0.2, shipped"),
        (stripes, "floor", {"split": "shipped"}, "does not come with a split"),
        (stripes, "floor", {"seed": -1}, "--seed must lie between"),
        (stripes, "floor", {"split": 0.2, "same_split_as": "runs/x"}, "exclude each other"),
        (stripes, "floor", {"same_split_as": "runs/x"}, "runs/x is not a run"),
        (stripes, "cnn", {"params": {"epochs": 0}}, "epochs must be a whole number from 1"),
    ],
)
def test_what_cannot_be_is_refused(data, baseline, options, message, tmp_path):
    with pytest.raises((InputError, UnknownName), match=message):
        fit_baseline(data(), baseline, **options)
    assert not list(tmp_path.glob("runs/*"))


def test_images_that_are_gone_are_said(tmp_path):
    data = stripes()
    data.read.content = dict.fromkeys(data.sample_ids, FileNotFoundError(2, "No such file"))
    with pytest.raises(InputError, match="stripes"):
        fit_baseline(data, "cnn", 0.2, params=FAST)
    assert not list(tmp_path.glob("runs/*"))


def test_a_run_of_other_samples_is_no_split_of_these():
    run = fit_baseline(stripes(), "floor", 0.2).run
    with pytest.raises(InputError, match="those of stripes"):
        fit_baseline(stripes(48), "floor", same_split_as=run)


def test_a_class_without_a_training_pixel_cannot_be_learnt(tmp_path):
    data = blobs()
    data = replace(data, classes=(*data.classes, "river"))
    with pytest.raises(InputError, match="no pixel of the training part is of class 'river'"):
        fit_baseline(data, "unet", 0.25, params={**FAST, "width": 4})
    assert not list(tmp_path.glob("runs/*"))


def test_a_held_out_mask_of_another_size_is_refused():
    data = blobs()
    ordered = shuffled(data)
    held = splits.holdout(splits.Samples.of(ordered.sample_ids), 0.25).test
    name = ordered.sample_ids[held[0]]
    data.read_mask.content[name] = np.repeat(data.read_mask.content[name], 2, 0).repeat(2, 1)
    with pytest.raises(InputError, match="its image's shape"):
        fit_baseline(data, "floor", 0.25)


# In a sweep


def tried(folder, data, name, start="", **params):
    """Fit one baseline as a sweep does, without a floor of its own."""
    samples = samples_of(data)
    model = configured("baselines", name, params, 0)
    trial = BaselineTrial(data, samples, name, model, choose(samples, 0.2, 0), 0, {}, start)
    options = {"floor": lambda: ({}, "none"), "splits": folder / "splits"}
    return trial, trial.fit(folder / "cells", Clock(None), **options)


def test_a_trial_of_a_sweep_names_its_split_and_what_it_started_from(tmp_path):
    data = shuffled(stripes())
    cold, first = tried(tmp_path, data, "cnn", **FAST)
    warm, second = tried(tmp_path, data, "cnn", start=first.run.name, **FAST)
    assert (cold.config.warm_start, warm.config.warm_start) == ("", first.run.name)
    assert cold.config.digest != warm.config.digest
    assert read_run(second.run).warm_start == first.run.name
    assert len(list((tmp_path / "splits").iterdir())) == 1
    assert read_split(first.run).digest == first.split.digest
    assert set(table(first.run / "predictions.csv")[0]) == {"sample_id", "label", "predicted"}
    alone = fit_baseline(stripes(), "cnn", 0.2, params=FAST)
    assert (first.metrics, first.digest) == (alone.metrics, alone.digest)


def test_figures_of_a_floor_are_those_beside_others(tmp_path):
    floor, _ = tried(tmp_path, shuffled(stripes()), "floor")
    other, _ = tried(tmp_path, shuffled(stripes()), "cnn", **FAST)
    assert floor.floor() == ({}, "this is the floor")
    assert other.floor() == ({name: found.metrics for name, found in floor.scored.items()}, "")
