"""Baselines in a sweep: the splits of the heads, the same images, and what is computed once for all."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from stubs import embedded
from sweeps import FAST, counts, run, runs
from toys import Reads, blobs, stripes

from samtl.baselines import floor, vgg19
from samtl.errors import InputError, MismatchError
from samtl.experiment.fit import fit_baseline, fit_head
from samtl.experiment.held_out import floor_title
from samtl.experiment.predict import read_trained
from samtl.experiment.run import read_run
from samtl.images.codecs import BadImage
from samtl.report.summary import summarise
from samtl.splits import read_split

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return embedded(tmp_path_factory.mktemp("store"), stripes(), 64, ("pooled",))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "sweep"


def test_baselines_have_the_splits_of_the_heads(store, out, monkeypatch):
    fits, fit = [], floor.Baseline.fit
    monkeypatch.setattr(floor.Baseline, "fit", lambda self, *a: fits.append(1) or fit(self, *a))
    options = {"baselines": ("cnn", "floor"), "dataset": stripes()}
    result = run(store, out, ["logreg"], "0.4,0.2", **options)
    assert counts(result) == (6, 0, 0)
    assert len(fits) == 2  # once for each split, whatever it is held against
    digests = {(row["split"], row["split_digest"]) for row in result.rows}
    assert len(digests) == len(list((out / "splits").iterdir())) == 2
    models = {"logreg", "cnn", "floor", "floor/knn"}
    assert {row["method"] for row in result.rows} == models
    titles = {floor_title("classification", name) for name in ("", "knn")}
    assert set(summarise(result)[0].scores) == {"logreg", "cnn"} | titles
    by_model = {(one.name, one.given["split"]): one for one in runs(out)}
    for split in ("0.4", "0.2"):
        assert by_model["cnn", split].floor == by_model["floor", split].metrics
    assert counts(run(store, out, ["logreg"], "0.4,0.2", **options)) == (0, 6, 0)


def changed(data, **others):
    """What reads the dataset with other files for some of its images, given by their place in it."""
    files = {data.sample_ids[int(place[1:])]: content for place, content in others.items()}
    return Reads({**data.read.content, **files})


@pytest.mark.parametrize("alone", [True, False])
def test_cells_of_other_images_are_other_cells_with_their_own_floor(store, out, tmp_path, alone):
    """Names, labels and split are the same."""
    data, n, figures = stripes(), 1 if alone else 2, []
    content = dict(zip(data.sample_ids, sorted(data.read.content.values()), strict=True))
    for source in (data, replace(data, read=Reads(content))):
        path = [] if alone else embedded(tmp_path, source, 64, ("pooled",))
        options = {"baselines": ("floor",), "dataset": source}
        result = run(path, out, () if alone else ("logreg",), "0.4", **options)
        assert counts(result) == (n, 0, 0)
        found = {row["method"]: read_run(out / row["run"]) for row in result.rows}
        single = fit_baseline(source, "floor", 0.4, out=tmp_path / "runs")
        figures.append(found["floor"].metrics["accuracy"].value)
        assert figures[-1] == single.metrics["accuracy"].value
        assert found["floor"].split.digest == single.split.digest
        if not alone:
            head = fit_head(path, "logreg", 0.4, out=tmp_path / "runs", params=FAST["logreg"])
            assert found["logreg"].floor == head.floor
    assert figures[0] != figures[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: {"read": changed(d, i3=d.read(d.sample_ids[0]))}, "image of '0/003.png'"),
        (lambda d: {"labels": (1, *d.labels[1:])}, "label of '0/000.png': .* class0, .* class1"),
        (lambda d: {"labels": (-1, *d.labels[1:])}, "label of '0/000.png': .* class0, .* none"),
        (lambda d: {"classes": ("class1", "class0", "class2")}, "classes: .* is class1, class0"),
    ],
)
def test_baselines_of_other_images_than_the_heads_are_refused(store, out, change, said):
    other = replace(stripes(), **change(stripes()))
    with pytest.raises(MismatchError, match=f"(?s)run samtl embed.*{said}"):
        run(store, out, ["logreg"], "0.4", baselines=("floor",), dataset=other)
    assert not out.exists()


def test_baselines_of_other_masks_than_the_heads_are_refused(out, tmp_path):
    data = blobs(12, classes=2)
    path = embedded(tmp_path, data, 64, ("dense",))
    name = data.sample_ids[5]
    bad = BadImage("mask_values", "it has values that no class has")
    for mask in (np.roll(data.read_mask(name), 3, 1), bad):
        other = replace(data, read_mask=Reads({**data.read_mask.content, name: mask}))
        with pytest.raises(MismatchError, match=r"mask of '005\.png'"):
            run(path, out, ("conv",), "0.25", baselines=("floor",), dataset=other)
    wrong = replace(stripes(12, 2), sample_ids=data.sample_ids)
    with pytest.raises(MismatchError, match="task"):
        run(path, out, ("conv",), "0.25", baselines=("floor",), dataset=wrong)


def test_only_images_that_take_part_are_needed(out, tmp_path):
    data = stripes()
    path = embedded(tmp_path, replace(data, read=changed(data, i7=b"")), 64, ("pooled",))
    options = {"baselines": ("floor",), "heads": ["logreg"], "splits": "0.4"}
    assert counts(run(path, out, **options, dataset=data)) == (2, 0, 0)
    gone = replace(data, read=changed(data, i8=FileNotFoundError(2, "No such file")))
    assert counts(run(path, out, **options, dataset=gone, seeds=[1])) == (1, 0, 1)
    assert counts(run(path, out, **options, dataset=data, seeds=[1])) == (1, 1, 0)


def test_baselines_alone_keep_groups_together(out):
    options = {"baselines": ("floor",), "dataset": stripes(), "group_by": r"(\d)\.png"}
    result = run([], out, (), "0.3", **options)
    (folder,) = (out / "cells").iterdir()
    split = read_split(folder)
    held = {name[-5] for name in split.held_out}
    rest = {name[-5] for name in stripes().sample_ids if name not in split.held_out}
    assert (result.done, split.name) == (1, "grouped")
    assert held
    assert not held & rest


def test_frozen_features_are_computed_once_for_all_splits(out, tmp_path, monkeypatch):
    monkeypatch.setattr(vgg19, "BLOCKS", ((4,), (4,), (4,), (4,), (8,)))
    monkeypatch.setattr(vgg19, "N_FEATURES", 16)
    images, spared = [], []
    forward, ask = vgg19.Baseline._run, vgg19.Baseline.cached_seconds

    def run_counted(self, inputs, dtype):
        images.append(len(inputs))
        return forward(self, inputs, dtype)

    def asked(self):
        spared.append(ask(self))
        return spared[-1]

    monkeypatch.setattr(vgg19.Baseline, "_run", run_counted)
    monkeypatch.setattr(vgg19.Baseline, "cached_seconds", asked)
    data, params = stripes(), {"checkpoint": "random:0", "image_size": 32}
    given = {"baselines": ("vgg19",), "dataset": data, "params": {"vgg19": params}}
    result = run([], out, (), "0.5,0.3", seeds=2, **given)
    assert counts(result) == (4, 0, 0)
    assert sum(images) == 60
    found = runs(out)
    one, total = found[0], sum(spared)
    how = {"split": one.given["split"], "seed": one.seed, "out": tmp_path / "alone"}
    alone = fit_baseline(data, "vgg19", params=params, **how)
    assert one.metrics == alone.metrics
    # What was found ready counts all the same.
    assert total > 0
    for run_ in found:
        assert run_.seconds["total"] >= run_.seconds["fit"] + run_.seconds["score"] > total / 16


def test_a_sweep_of_masks(out, tmp_path):
    data = blobs(12, classes=2)
    path = embedded(tmp_path, data, 64, ("dense",))
    options = {"heads": ["conv"], "splits": "0.25", "baselines": ("floor",), "dataset": data}
    result = run(path, out, **options)
    assert counts(result) == (2, 0, 0)
    assert {row["features"] for row in result.rows if row["method"] == "conv"} == {"dense"}
    assert "pooled_iou" in {row["metric_name"] for row in result.rows}
    for folder in (out / "cells").iterdir():
        assert read_trained(folder).task == "segmentation"
        assert (folder / "images.csv").is_file()
        masks = sorted((folder / "masks").glob("*.png"))
        # Of heads and baselines alike, at the encoder's resolution
        assert {max(np.asarray(Image.open(mask)).shape) for mask in masks} == {64}
    # Other masks of the same images are other cells.
    turned = {name: np.roll(mask, 3, 1) for name, mask in data.read_mask.content.items()}
    other = replace(data, read_mask=turned.__getitem__)
    assert embedded(tmp_path, other, 64, ("dense",)) == path
    assert counts(run(path, out, **options | {"dataset": other})) == (2, 0, 0)


def test_masks_of_several_resolutions_have_no_baseline_in_common(out, tmp_path):
    data = blobs(12, classes=2)
    stores = [embedded(tmp_path / str(size), data, size, ("dense",)) for size in (64, 128)]
    options = {"splits": "0.25", "baselines": ("floor",), "dataset": data}
    with pytest.raises(InputError, match="images of 64 and 128 pixels: sweep each by itself"):
        run(stores, out, ["conv"], **options)


def test_several_stores(store, out, tmp_path):
    with pytest.raises(InputError, match="would be trained twice"):
        run([store, store], out, ["logreg"], "0.4")
    other = embedded(tmp_path, replace(stripes(45), name="few"), 64, ("pooled",))
    result = run([store, other], out, ["logreg"], "0.4")
    assert result.done == 2
    for column in ("store", "dataset"):
        assert {row[column] for row in result.rows} == {"stripes", "few"}
