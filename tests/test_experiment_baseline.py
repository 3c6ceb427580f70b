"""A baseline's run has the split, the scores and the folder of a head's, and reads what is held out last."""

from dataclasses import replace

import numpy as np
import pytest
from fake_runs import read_csv
from PIL import Image
from stubs import embedded, holdout
from toys import blobs, stripes

from samtl.datasets import shuffled
from samtl.errors import InputError, UnknownName
from samtl.experiment.clock import Stage
from samtl.experiment.fit import fit_baseline, fit_head
from samtl.experiment.run import read_run
from samtl.heads.io import load
from samtl.images.transforms import mask_square, resized_shape
from samtl.metrics import segmentation as pixel_metrics
from samtl.splits import read_split
from samtl.sweep.api import sweep

pytestmark = pytest.mark.usefixtures("one_thread")

FAST = {"epochs": 2, "image_size": 32}
UNET = {**FAST, "width": 4}


def test_no_run_begins_in_the_folder_that_is_listed(tmp_path):
    """Fault: runs were among the folders of classes, and the same command failed the next time."""
    listed = replace(stripes(), root=tmp_path)
    with pytest.raises(InputError, match="--out"):
        fit_baseline(listed, "floor", 0.2, out=tmp_path / "runs")
    with pytest.raises(InputError, match="--out"):
        sweep([], (), "0.2", baselines=["floor"], dataset=listed, out=tmp_path / "sweep")
    assert not list(tmp_path.iterdir())


def test_a_run_of_the_floor():
    run = fit_baseline(stripes(), "floor", 0.2, seed=4)
    assert (run.kind, run.name, run.task) == ("baseline", "floor", "classification")
    assert (run.n_train, run.n_validation, run.n_test) == (38, 10, 12)
    assert {*run.also} == {"knn"}
    assert (run.floor, run.floor_missing) == (None, "this baseline is the floor")
    assert run.path.name.startswith("stripes-floor-0.2-s4-")
    # The split is that of any trial of the same samples.
    assert run.split.digest == holdout(shuffled(stripes()), 0.2, 4).digest
    hits = [row["label"] == row["predicted"] for row in read_csv(run.path / "predictions.csv")]
    assert (len(hits), np.mean(hits)) == (12, 1)  # colours tell the stripes apart
    again = read_run(run.path, whole=True)
    assert (again.metrics, again.store, again.fingerprint) == (run.metrics, "", "")
    assert run.metrics["accuracy"].value == 1
    with pytest.raises(InputError, match="those of stripes"):
        fit_baseline(stripes(48), "floor", same_split_as=run.path)
    # A network has the floor beside it.
    network = fit_baseline(stripes(), "cnn", seed=4, same_split_as=run.path, params=FAST)
    assert (network.floor, network.also, network.split) == (run.metrics, run.also, run.split)
    assert network.training["epochs"] == 2
    assert 0 <= network.training["waiting"] <= 1


def test_what_is_held_out_is_read_after_training_and_a_saved_baseline_predicts_as_it_did():
    data = stripes()
    ordered = shuffled(data)
    test = holdout(ordered, 0.2).test
    held = {ordered.sample_ids[row] for row in test}

    def guard(event):
        if event == Stage("read"):  # before, images were only hashed, to find copies
            data.read.forbidden, data.read.asked = held, []
        elif event == Stage("score"):
            data.read.forbidden = set()

    run = fit_baseline(data, "cnn", 0.2, params=FAST, on_event=guard)
    assert held <= set(data.read.asked)  # else the guard guarded nothing
    again = np.concatenate([part["cnn"] for part in load(run.path).predict_all(ordered, test)])
    rows = read_csv(run.path / "predictions.csv")
    written = np.array([[float(row[f"p_{name}"]) for name in data.classes] for row in rows])
    assert again == pytest.approx(written, abs=1e-8)


def test_a_run_of_segmentation():
    data = blobs(16)
    run = fit_baseline(data, "unet", 0.25, params=UNET)
    assert (run.task, run.resolution) == ("segmentation", 1024)
    assert run.floor["recall"].value == 0  # all background
    assert "mean-colour" in run.also
    rows = read_csv(run.path / "images.csv")
    assert [row["sample_id"] for row in rows] == read_split(run.path).held_out
    for row in rows:
        truth = data.read_mask(row["sample_id"])
        height, width = resized_shape(*truth.shape, 1024)
        guess = np.asarray(Image.open(run.path / row["mask"]))
        truth = mask_square(truth, 1024)[:height, :width]
        matrix = pixel_metrics.confusion(truth, guess, len(data.classes))
        assert float(row["dice"]) == pytest.approx(pixel_metrics.scores(matrix)["dice"], abs=1e-5)
    mean = np.mean([float(row["iou"]) for row in rows])
    assert run.metrics["iou"].value == pytest.approx(mean, abs=1e-5)


def test_groups_of_the_run_compared_with_widen_intervals_too(tmp_path):
    """Groups that only the store knows hold for a baseline on its split: images of a scene are not independent."""
    data = blobs(16)
    scenes = replace(data, groups=tuple(f"scene{i // 2}" for i in range(16)))
    head = fit_head(
        embedded(tmp_path, scenes, 64, ["dense"]), "conv", 0.25, params={"width": 4, "epochs": 1}
    )
    floor = fit_baseline(data, "floor", same_split_as=head.path)
    assert floor.n_groups == head.n_groups == 2
    assert floor.also["all-background"] == head.floor
    again = fit_baseline(data, "floor", same_split_as=floor.path)
    assert (again.n_groups, again.metrics) == (floor.n_groups, floor.metrics)


def test_masks_are_scored_at_the_resolution_of_the_run_compared_with(tmp_path):
    data = blobs(16)
    store = embedded(tmp_path, data, 64, ["dense"])
    head = fit_head(store, "conv", 0.25, params={"width": 4, "epochs": 1})
    floor = fit_baseline(data, "floor", same_split_as=head.path)
    again = fit_baseline(data, "floor", same_split_as=floor.path)
    for run in (head, floor, again):
        masks = (run.path / "masks").glob("*.png")
        assert {max(np.asarray(Image.open(mask)).shape) for mask in masks} == {64}, run.path
    assert floor.metrics == again.metrics
    # What a head and a baseline were scored against is the same, wherever they read it.
    assert head.comparison_key == floor.comparison_key == again.comparison_key
    larger = fit_baseline(data, "floor", 0.25)
    assert (larger.split, larger.resolution) == (head.split, 1024)
    assert larger.comparison_key != head.comparison_key


def test_scenes_stay_together():
    run = fit_baseline(stripes(), "floor", 0.3, group_by=r"(\d)\.png")
    held = {*read_split(run.path).held_out}
    assert {name for name in stripes().sample_ids if name[-5] in {n[-5] for n in held}} == held


@pytest.mark.parametrize(
    ("baseline", "options", "message"),
    [
        ("unet", {}, "unet is for segmentation, and stripes is for classification"),
        ("cn", {}, "did you mean cnn"),
        ("floor", {"same_split_as": "runs/x"}, "runs/x is no run"),
        ("cnn", {"params": {"epochs": 0}}, "epochs must be a whole number from 1"),
    ],
)
def test_what_cannot_be_is_refused(baseline, options, message, tmp_path):
    with pytest.raises((InputError, UnknownName), match=message):
        fit_baseline(stripes(), baseline, **options)
    assert not list(tmp_path.glob("runs/*"))


def test_masks_that_cannot_be_used_are_refused(tmp_path):
    data = blobs(16)
    with pytest.raises(InputError, match="no pixel of the training part is of class 'river'"):
        fit_baseline(replace(data, classes=(*data.classes, "river")), "unet", 0.25, params=UNET)
    ordered = shuffled(data)
    name, masks = ordered.sample_ids[holdout(ordered, 0.25).test[0]], data.read_mask.content
    masks[name] = np.repeat(masks[name], 2, 0).repeat(2, 1)
    with pytest.raises(InputError, match="the image's size"):
        fit_baseline(data, "floor", 0.25)
    assert not list(tmp_path.glob("runs/*"))
