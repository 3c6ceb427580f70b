"""Pictures: who is compared, which images are shown, what is said if something is missing."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_runs import a_mask_run, a_run, read_csv, the_one
from hypothesis import given
from hypothesis import strategies as st
from toys import blobs, stripes

from samtl.datasets import resolve
from samtl.experiment.tables import read_images
from samtl.images.transforms import IGNORE
from samtl.report.pictures import sheet as sheets
from samtl.report.pictures.album import Album
from samtl.report.pictures.images import confused, hardest, panels, samples
from samtl.report.pictures.sheet import Picture, Row, judged, mapped
from samtl.report.style import png


def texts(drawing):
    return [text.get_text() for text in drawing.figure.axes[0].texts if text.get_text()]


def legend(drawing):
    return [text.get_text() for text in drawing.figure.axes[0].get_legend().get_texts()]


def looks_right(drawing):
    data = png(drawing.figure, tight=True)
    assert int.from_bytes(data[16:20], "big") <= 1700  # pixels wide
    assert drawing.picture
    assert drawing.caption
    assert all(list(row) == drawing.header for row in drawing.rows)


def test_samples_have_a_row_for_each_class():
    dataset = stripes(27, 3)
    (drawing,) = samples(Album(dataset))
    looks_right(drawing)
    labels = dict(zip(dataset.sample_ids, dataset.labels, strict=True))
    assert len(drawing.rows) == 3 * 8
    assert all(dataset.classes[labels[i]] == name for name, i in map(dict.values, drawing.rows))
    assert texts(drawing) == ["class0", "class1", "class2"]
    assert samples(Album(dataset))[0].rows == drawing.rows != samples(Album(dataset), 1)[0].rows
    many = replace(dataset, classes=tuple(f"name{i}" for i in range(30)))
    assert texts(samples(Album(many))[0])[-1] == "name19"


def test_an_image_that_cannot_be_read_is_skipped_and_named():
    dataset = stripes(24, 3)
    broken = {"0/000.png": b"no image", "1/001.png": OSError("gone")}
    dataset.read.content |= broken
    album = Album(dataset)
    shown = {row["sample_id"] for row in samples(album)[0].rows}
    assert shown == {*dataset.sample_ids} - {*broken}
    assert "shown: 2," in album.notes[0]
    assert samples(Album(None)) == []
    assert "not opened" in Album(None).notes[0]


def test_samples_with_masks_are_of_as_many_scenes_as_possible():
    dataset = blobs(24)
    scenes = tuple("big" if i < 17 else f"scene{i}" for i in range(24))
    (drawing,) = samples(Album(replace(dataset, groups=scenes)))
    looks_right(drawing)
    of = dict(zip(dataset.sample_ids, scenes, strict=True))
    assert {of[row["sample_id"]] for row in drawing.rows} == set(scenes)
    assert all(0 < row["part that is not background"] < 1 for row in drawing.rows)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Models whose masks are off by as many columns as the image's place, twice that, and not at all."""
    out, given = tmp_path_factory.mktemp("masks"), {"data": blobs(36, 2)}
    a_mask_run(out, "conv", shift=range(9), untrained=True, weights="untrained", **given)
    a_mask_run(out, "vit", shift=range(0, 18, 2), **given)
    a_mask_run(out, "unet", shift=0, **given)
    a_mask_run(out, "floor", shift=5, **given)
    return the_one(out)


def test_panels_show_the_best_the_median_and_the_worst(three):
    album = Album(blobs(36, 2))
    (drawing,) = panels(three, album)
    looks_right(drawing)
    assert album.notes == []
    found = [read_images(run) for run in three.runs if run.name != "floor"]
    means = np.mean([images.scores["iou"] for images in found], axis=0)
    order = [found[0].ids[i] for i in np.argsort(-means, kind="stable")]
    rows = [tuple(row.values())[:4] for row in drawing.rows]
    places = [("Best", order[0]), ("Median", order[4]), ("Worst", order[8])]
    assert [row[:2] for row in rows[::3]] == places
    assert rows[:3] == [(*places[0], name, 100.0) for name in ("unet", "vit", "conv (untrained)")]
    columns = {"photograph", "truth", "UNet\nunet", "SAM-ViT\nvit", "SAM-CONV\nconv\nuntrained"}
    assert columns <= set(texts(drawing))
    assert legend(drawing) == ["found (class1)", "missed", "false alarm", "not counted"]


def test_panels_without_the_dataset_an_image_or_a_mask_show_what_there_is(three, tmp_path):
    roads = blobs(36, 2)
    (drawing,) = panels(three, Album(None))
    assert "photograph" not in texts(drawing)
    assert "not available" not in texts(drawing)
    assert len(drawing.rows) == 9
    worst = drawing.rows[-1]["sample_id"]
    roads.read.content[worst] = OSError("gone")
    album = Album(roads)
    (drawing,) = panels(three, album)
    assert texts(drawing).count("not available") == 2
    assert worst in album.notes[0]
    run = a_mask_run(tmp_path, data=blobs(4, 2))
    next((run / "masks").iterdir()).write_bytes(b"no mask")
    (drawing,) = panels(the_one(tmp_path), Album(blobs(4, 2)))
    assert texts(drawing).count("not available") == 2  # and the truth, which is drawn at its size
    assert [row["rank"] for row in drawing.rows] == ["Best"]


def test_panels_are_of_one_split_and_seed(tmp_path):
    data = blobs(8, 4)
    a_mask_run(tmp_path, "conv", 0, data=data)
    for name in ("conv", "vit"):
        a_mask_run(tmp_path, name, 1, data=data)
    a_mask_run(tmp_path, "unet", 0, 0.5, data=data)
    (drawing,) = panels(the_one(tmp_path), Album(data))
    assert {row["model"] for row in drawing.rows} == {"conv", "vit"}
    assert [row["rank"] for row in drawing.rows][::2] == ["Best", "Worst"]  # of two images
    assert "seed 1" in drawing.caption
    assert {"taken for another class", "truth: class2"} <= {*legend(drawing)}


def test_masks_that_changed_since_are_not_laid_under_the_old_scores(three):
    roads, images = blobs(36, 2), read_images(three.models["conv"][0])
    name = images.ids[0]
    guess, truth = Album(roads).masks(images, name, 2)
    assert guess.shape == truth.shape
    mask = roads.read_mask.content[name]
    for changed in (1 - mask, np.zeros((7, 32), np.uint8), np.full_like(mask, IGNORE)):
        roads.read_mask.content[name] = np.where(changed > 1, IGNORE, changed).astype(np.uint8)
        album = Album(roads)
        assert album.masks(images, name, 2)[1] is None
        assert f"shown: 1, such as {name!r}" in album.notes[0]


FIELDS = stripes(60, 3)


def said(folder, name, wrong, data=FIELDS, **given):
    about = {"ids": data.sample_ids, "classes": data.classes, "dataset": "stripes"}
    return a_run(folder, name, share=0.5, wrong=wrong, **about, **given)


def test_mistakes_are_the_most_frequent_pairs_of_the_best_and_what_all_models_have_wrong(tmp_path):
    run = said(tmp_path / "first", "mlp", {})
    ids = [row["sample_id"] for row in read_csv(run / "predictions.csv")]
    zeros, ones, twos = ([i for i in ids if i.startswith(f"{label}/")] for label in range(3))
    wrong = {**dict.fromkeys(zeros[:6], 1), **dict.fromkeys(twos[:2], 0)}
    said(tmp_path, "mlp", {**wrong, **dict.fromkeys(ones, 2)})
    said(tmp_path, "vit", wrong, untrained=True, weights="untrained")
    said(tmp_path, "cnn", {zeros[0]: 1, twos[0]: 1})
    said(tmp_path, "floor", {})
    comparison = the_one(tmp_path)
    found = {one.name: one for one in confused(comparison, Album(FIELDS))}
    head, baseline = found["confused-head"], found["confused-baseline"]
    looks_right(head)
    assert "vit (untrained)" in head.title
    first, second = (("class0", "class1", 6, len(zeros)), ("class2", "class0", 2, len(twos)))
    assert [tuple(row.values())[:4] for row in head.rows] == [first] * 4 + [second] * 2
    assert {row["sample_id"] for row in head.rows[:4]} <= set(zeros[:6])
    assert [row["sample_id"] for row in baseline.rows] == [zeros[0], twos[0]]
    (drawing,) = hardest(comparison, Album(FIELDS))
    looks_right(drawing)
    first, second = ((zeros[0], "class0", "class1", 3, 3), (twos[0], "class2", "class0", 2, 3))
    assert [tuple(row.values()) for row in drawing.rows] == [first, second]
    assert confused(comparison, Album(None)) == hardest(comparison, Album(None)) == []


def test_names_may_hold_anything_and_a_model_without_errors_confuses_nothing(tmp_path):
    said(tmp_path, "mlp", {})
    assert confused(the_one(tmp_path), Album(FIELDS)) == []
    assert hardest(the_one(tmp_path), Album(FIELDS)) == []
    data = replace(stripes(12, 3), classes=("$\\frac{<b>", "a & b", "x" * 300))
    tmp_path /= "names"
    said(tmp_path, "mlp", dict.fromkeys(data.sample_ids, 1), data)
    for drawing in (*confused(the_one(tmp_path), Album(data)), *samples(Album(data))):
        looks_right(drawing)


def test_each_kind_of_error_has_its_colour():
    truth = np.array([[1, 1, 0, 1, IGNORE, 0]], np.uint8)
    guess = np.array([[1, 0, 1, 2, 1, 0]], np.uint8)
    shown = judged(np.zeros((1, 6, 3), np.uint8), truth, guess)[0]
    colours = [sheets.HIT, sheets.MISSED, sheets.FALSE_ALARM, sheets.MIXED_UP, sheets.UNCOUNTED]
    colours.append("#000000")
    for pixel, colour in zip(shown, colours, strict=True):
        assert np.abs(pixel / 0.85 - list(bytes.fromhex(colour[1:]))).max() < 1


@given(st.integers(2, 5), st.integers(0, 2**31))
def test_a_mask_on_black_keeps_its_colours(classes, seed):
    mask = np.random.default_rng(seed).integers(0, classes, (4, 5), dtype=np.uint8)
    shown = mapped(None, mask, [str(i) for i in range(classes)]).reshape(-1, 3)
    pairs = {(int(i), tuple(p)) for i, p in zip(mask.ravel(), shown, strict=True)}
    assert len(pairs) == len({colour for _, colour in pairs}) == len(np.unique(mask))


@given(st.text(max_size=60), st.integers(3, 40))
def test_shortened_keeps_both_ends(text, most):
    found = sheets.shortened(text, most)
    assert len(found) <= most
    assert found == text or (found[0], found[-1]) == (text[0], text[-1])


def test_text_of_a_sheet_does_not_touch():
    tall, wide = np.zeros((300, 30, 3), np.uint8), np.zeros((20, 200, 3), np.uint8)
    first, second = ([Picture(tall, "x\ny"), Picture(wide)], [Picture(None, "z"), Picture(tall)])
    colours = {f"{'long ' * i}{i}": "#123456" for i in range(12)}
    rows, titles = [Row("a " * 30, first), Row("b", second)], ("p" * 200, "x\ny\nz")
    drawn = sheets.sheet(rows, 2, titles, colours, "weights " * 12)
    texts = [text for text in drawn.axes[0].texts if text.get_text()]
    boxes = [text.get_window_extent() for text in (*texts, drawn.axes[0].get_legend())]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


@pytest.mark.data
def test_real_images_weigh_little():
    if "SAMTL_DATA" not in os.environ:
        pytest.skip("SAMTL_DATA is unset: no folder with EuroSAT.zip to read")
    dataset = resolve("eurosat", Path(os.environ["SAMTL_DATA"]) / "EuroSAT.zip")
    (drawing,) = samples(Album(dataset))
    assert len(drawing.rows) == 80
    assert len(png(drawing.figure, tight=True)) < 3 * 2**20
