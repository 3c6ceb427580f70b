"""Pictures of toy studies: who is compared, which images are shown, what is said where something is missing."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import blobs, stripes

from samtl.datasets import resolve
from samtl.experiment.fit import fit_baseline
from samtl.experiment.tables import write_mask
from samtl.images.transforms import IGNORE, mask_square, resized_shape
from samtl.metrics import classification as metrics
from samtl.metrics import segmentation as pixel_metrics
from samtl.metrics.classification import Score
from samtl.report import images as pictures
from samtl.report.content import (
    ImageScores,
    Predictions,
    Study,
    Trial,
)
from samtl.report.load import gather
from samtl.report.overlays import (
    FALSE_ALARM,
    HIT,
    MISSED,
    MIXED_UP,
    UNCOUNTED,
    judged,
    mapped,
)
from samtl.report.sheet import (
    DPI,
    WIDE,
    Cell,
    Row,
    sheet,
    shortened,
)
from samtl.report.style import png

SIZE = 64  # what stands for the encoder's resolution


def rgb(colour):
    return list(bytes.fromhex(colour[1:]))


def trial(name, kind="head", share=0.2, seed=0, digest="d0", untrained=False, **given):
    n = 100
    fields = {
        "path": Path(name),
        "kind": kind,
        "name": name,
        "model": name,
        "features": "pixels" if kind == "baseline" else "grid",
        "seed": seed,
        "split": {"name": "holdout", "share": share, "seed": seed, "digest": digest},
        "n_train": round(n * (1 - share)),
        "n_validation": 0,
        "n_test": round(n * share),
        "n_left_out": 0,
        "metrics": {},
        "floor": None,
        "also": {},
        "confusion": np.eye(3, dtype=np.int64),
        "curves": {},
        "seconds": {},
        "training": {},
        "peak_memory": 0,
        "fingerprint": "",
        "store": "",
        "dataset": "toys",
        "encoder": "tiny" if kind == "head" else "",
        "weights": "untrained (random:0)" if untrained else "",
        "untrained": untrained,
        "note": "",
        "warm_start": "",
        "config": {},
        "predictions": None,
        "images": None,
    }
    return Trial(**{**fields, **given})


def classified(dataset, wrong, name="mlp", **given):
    """Give a trial that was right of every image but the ones named in `wrong`, with what it said of them."""
    truth = np.array(dataset.labels)
    guess = np.array(
        [wrong.get(i, label) for i, label in zip(dataset.sample_ids, truth, strict=True)]
    )
    accuracy = float((truth == guess).mean())
    return trial(
        name,
        metrics={"accuracy": Score(accuracy, accuracy, accuracy)},
        predictions=Predictions(dataset.sample_ids, truth, guess),
        **given,
    )


def segmented(folder, dataset, shifts, name="conv", **given):
    """Give a trial whose masks are the true ones, shifted by so many columns."""
    folder = folder / name
    folder.mkdir()
    matrices, paths = [], []
    for sample_id, shift in zip(dataset.sample_ids, shifts, strict=True):
        mask = dataset.read_mask(sample_id)
        height, width = resized_shape(*mask.shape, SIZE)
        truth = mask_square(mask, SIZE)[:height, :width]
        guess = np.roll(np.where(truth == IGNORE, 0, truth), shift, axis=1).astype(np.uint8)
        matrices.append(pixel_metrics.confusion(truth, guess, len(dataset.classes)))
        paths.append(folder / f"{len(paths)}.png")
        write_mask(paths[-1], guess)
    scores = pixel_metrics.per_image(np.stack(matrices))
    return trial(name, images=ImageScores(dataset.sample_ids, scores, tuple(paths)), **given)


def study(dataset, *trials):
    return Study(dataset.name, dataset.task, dataset.classes, trials)


def texts(drawing):
    return [text.get_text() for text in drawing.figure.texts]


def images_in(drawing):
    return [image for axes in drawing.figure.axes for image in axes.images]


def looks_right(drawing):
    """Check what every picture must be: as wide as a page takes, small, described, with its ids beside."""
    data = png(drawing.figure)
    width = int.from_bytes(data[16:20], "big")
    assert width == round(WIDE * DPI) <= 1600
    assert drawing.picture
    assert drawing.caption
    assert drawing.alt.endswith(".")
    assert drawing.table.name == drawing.name
    assert all(len(row) == len(drawing.table.header) for row in drawing.table.rows)


class TestSamples:
    def test_a_row_for_each_class(self):
        dataset = stripes(60, 3)
        (drawing,) = pictures.samples(dataset).drawings
        looks_right(drawing)
        assert len(images_in(drawing)) == 3 * 8 == len(drawing.table.rows)
        labels = dict(zip(dataset.sample_ids, dataset.labels, strict=True))
        assert all(dataset.classes[labels[i]] == name for name, i in drawing.table.rows)
        assert [line for line in texts(drawing) if line] == ["class0", "class1", "class2"]

    def test_the_choice_hangs_on_the_seed(self):
        dataset = stripes(60, 3)

        def chosen(seed):
            return pictures.samples(dataset, seed).drawings[0].table.rows

        assert chosen(0) == chosen(0) != chosen(1)

    def test_an_image_that_cannot_be_read_is_passed_over_and_named(self):
        dataset = stripes(24, 3)
        dataset.read.content["0/000.png"] = b"no image"
        dataset.read.content["1/001.png"] = OSError("gone")
        found = pictures.samples(dataset)
        shown = [sample_id for _, sample_id in found.drawings[0].table.rows]
        assert len(shown) == 22
        assert not {"0/000.png", "1/001.png"} & set(shown)
        (note,) = found.notes
        assert "2 could not be shown" in note

    def test_only_so_many_classes(self):
        dataset = replace(stripes(4, 4), classes=tuple(f"name{i}" for i in range(30)))
        (drawing,) = pictures.samples(dataset).drawings
        assert "the first 20 of 30 classes" in drawing.caption
        assert "name19" in texts(drawing)
        assert "name20" not in texts(drawing)

    def test_masks_from_as_many_scenes_as_there_are(self):
        dataset = blobs(24)  # 17 of them of one scene
        scenes = tuple("big" if i < 17 else f"scene{i}" for i in range(24))
        (drawing,) = pictures.samples(replace(dataset, groups=scenes)).drawings
        looks_right(drawing)
        assert len(images_in(drawing)) == 2 * 8
        of = dict(zip(dataset.sample_ids, scenes, strict=True))
        assert {of[row[0]] for row in drawing.table.rows} == set(scenes)
        assert all(0 < part < 1 for _, part in drawing.table.rows)

    def test_without_the_dataset(self):
        found = pictures.samples(None)
        assert not found.drawings
        assert "not opened" in found.notes[0]


class TestPanels:
    @pytest.fixture
    def roads(self):
        return blobs(9, classes=2)

    @pytest.fixture
    def three(self, tmp_path, roads):
        """Give models whose masks are off by the image's number of columns, twice that, and not at all."""
        numbers = list(range(9))
        return study(
            roads,
            segmented(tmp_path, roads, numbers, "conv", untrained=True),
            segmented(tmp_path, roads, [2 * n for n in numbers], "vit"),
            segmented(tmp_path, roads, [0] * 9, "unet", kind="baseline"),
        )

    def test_best_median_and_worst(self, three, roads):
        found = pictures.panels(three, roads)
        (drawing,) = found.drawings
        looks_right(drawing)
        assert found.notes == ()
        means = np.mean([t.images.scores["iou"] for t in three.trials], axis=0)
        order = [roads.sample_ids[i] for i in np.argsort(-means, kind="stable")]
        rows = drawing.table.rows
        assert [row[:2] for row in rows[::3]] == [
            ("Best", order[0]),
            ("Median", order[4]),
            ("Worst", order[8]),
        ]
        assert [row[2] for row in rows[:3]] == ["unet", "vit", "conv (untrained)"]
        assert order[0] == roads.sample_ids[0]
        assert [row[3] for row in rows[:3]] == [1.0, 1.0, 1.0]
        assert len(images_in(drawing)) == 3 * 5
        said = texts(drawing)
        assert said[:2] == ["photograph", "truth"]
        assert [line for line in said if line in ("UNet", "SAM-ViT", "SAM-CONV")] == [
            "UNet",
            "SAM-ViT",
            "SAM-CONV",
        ]
        assert "untrained" in said
        assert "ntrained" in drawing.caption
        assert said[-4:] == ["found (class1)", "missed", "false alarm", "not counted"]

    def test_a_perfect_mask_looks_like_the_truth(self, three, roads):
        (drawing,) = pictures.panels(three, roads).drawings
        shown = [image.get_array() for image in images_in(drawing)]
        for photograph, truth, unet in zip(shown[0::5], shown[1::5], shown[2::5], strict=True):
            assert np.array_equal(truth, unet)
            assert not np.array_equal(photograph, truth)

    def test_without_the_dataset_the_masks_alone(self, three):
        (drawing,) = (found := pictures.panels(three, None)).drawings
        assert len(images_in(drawing)) == 3 * 3
        assert "not opened" in found.notes[0]

    def test_another_dataset_is_not_used(self, three):
        found = pictures.panels(three, replace(blobs(9, 2), name="others"))
        assert len(images_in(found.drawings[0])) == 3 * 3
        assert "the study is of blobs, not others" in found.notes[0]

    def test_only_one_split_and_seed(self, tmp_path, roads):
        for part in ("a", "b", "c"):
            (tmp_path / part).mkdir()
        zeros, ones = [0] * 9, [1] * 9
        trials = [
            segmented(tmp_path / "a", roads, ones, "conv", seed=0, digest="a"),
            segmented(tmp_path / "b", roads, ones, "conv", seed=1, digest="b"),
            segmented(tmp_path / "b", roads, zeros, "vit", seed=1, digest="b"),
            segmented(tmp_path / "c", roads, zeros, "unet", share=0.9, digest="c"),
        ]
        (drawing,) = pictures.panels(study(roads, *trials), roads).drawings
        assert {row[2] for row in drawing.table.rows} == {"conv", "vit"}
        assert "seed 1" in drawing.caption

    def test_what_cannot_be_read_leaves_its_place_empty(self, three, roads):
        worst = pictures.panels(three, roads).drawings[0].table.rows[-1][1]
        roads.read.content[worst] = OSError("gone")
        found = pictures.panels(three, roads)
        looks_right(found.drawings[0])
        assert len(images_in(found.drawings[0])) == 3 * 5 - 2
        assert worst in found.notes[0]
        at = roads.sample_ids.index(worst)
        three.trials[0].images.masks[at].write_bytes(b"no mask")
        assert len(images_in(pictures.panels(three, roads).drawings[0])) == 3 * 5 - 3

    def test_masks_of_another_shape_are_not_laid_over(self, three, roads):
        best = pictures.panels(three, roads).drawings[0].table.rows[0][1]
        roads.read_mask.content[best] = np.zeros((7, 32), np.uint8)
        found = pictures.panels(three, roads)
        assert "does not fit" in found.notes[0]

    def test_masks_that_changed_since_are_not_laid_under_the_old_scores(self, three, roads):
        worst = pictures.panels(three, roads).drawings[0].table.rows[-1][1]
        mask = roads.read_mask.content[worst]
        roads.read_mask.content[worst] = np.where(mask == IGNORE, mask, 1 - mask)
        found = pictures.panels(three, roads)
        looks_right(found.drawings[0])
        assert len(images_in(found.drawings[0])) == 3 * 5 - 1
        assert found.notes == (
            f"Masks: 1 could not be shown, such as {worst!r} (its true mask is not the one that it was scored by).",
        )
        roads.read_mask.content[worst] = np.full_like(mask, IGNORE)
        assert "no pixel of a known class" in pictures.panels(three, roads).notes[0]

    def test_masks_of_a_real_run_are_those_that_it_was_scored_by(self, tmp_path):
        data = blobs()
        fit_baseline(data, "unet", 0.25, out=tmp_path, params={"epochs": 1, "image_size": 32})
        (made,) = gather([tmp_path])
        found = pictures.panels(made, data)
        assert found.notes == ()
        assert len(images_in(found.drawings[0])) == 3 * 3

    @pytest.mark.parametrize("n", [1, 2])
    def test_few_images(self, tmp_path, n):
        roads = blobs(n, 2)
        made = study(roads, segmented(tmp_path, roads, range(n)))
        rows = pictures.panels(made, roads).drawings[0].table.rows
        assert [row[0] for row in rows] == ["Best", "Worst"][:n]

    def test_the_floor_alone_gives_a_note(self, tmp_path, roads):
        floor = segmented(tmp_path, roads, [0] * 9, "floor", kind="baseline")
        found = pictures.panels(study(roads, floor), roads)
        assert not found.drawings
        assert found.notes

    def test_a_classification_has_none(self):
        dataset = stripes(6, 3)
        assert not pictures.panels(study(dataset, classified(dataset, {})), dataset).drawings


class TestConfused:
    @pytest.fixture
    def dataset(self):
        return stripes(60, 3)

    def ids(self, dataset, label):
        return [i for i, of in zip(dataset.sample_ids, dataset.labels, strict=True) if of == label]

    def test_the_most_frequent_pairs_of_the_best_of_each_kind(self, dataset):
        zeros, twos = self.ids(dataset, 0), self.ids(dataset, 2)
        wrong = {**dict.fromkeys(zeros[:7], 1), **dict.fromkeys(twos[:2], 0)}
        worse = {**wrong, **dict.fromkeys(twos[2:12], 1)}
        made = study(
            dataset,
            classified(dataset, worse, "mlp"),
            classified(dataset, wrong, "vit", untrained=True),
            classified(dataset, {twos[0]: 1}, "cnn", kind="baseline"),
            classified(dataset, {}, "floor", kind="baseline"),
        )
        head, baseline = pictures.confused(made, dataset).drawings
        looks_right(head)
        looks_right(baseline)
        assert (head.name, baseline.name) == ("confused-head", "confused-baseline")
        assert "vit (untrained)" in head.title
        assert [row[:4] for row in head.table.rows] == [("class0", "class1", 7, 20)] * 4 + [
            ("class2", "class0", 2, 20)
        ] * 2
        assert {row[4] for row in head.table.rows[:4]} <= set(zeros[:7])
        assert [row[4] for row in baseline.table.rows] == [twos[0]]
        assert "class0 taken for class1: 7 of 20" in texts(head)
        assert any("untrained" in text for text in texts(head))
        assert not any("untrained" in text for text in texts(baseline))

    def test_nothing_of_a_model_without_errors(self, dataset):
        found = pictures.confused(study(dataset, classified(dataset, {})), dataset)
        assert found.drawings == ()

    def test_without_the_dataset(self, dataset):
        found = pictures.confused(study(dataset, classified(dataset, {})), None)
        assert not found.drawings
        assert "not opened" in found.notes[0]

    def test_names_may_hold_anything(self):
        dataset = stripes(12, 3)
        classes = ("$\\frac{<b>", "a\nb", "x" * 300)
        wrong = {self.ids(dataset, 0)[0]: 1, self.ids(dataset, 1)[0]: 2}
        made = study(replace(dataset, classes=classes), classified(dataset, wrong))
        for found in (pictures.confused(made, dataset), pictures.samples(dataset)):
            looks_right(found.drawings[0])

    def test_hardest_are_wrong_for_all(self, dataset):
        zeros = self.ids(dataset, 0)
        made = study(
            dataset,
            classified(dataset, dict.fromkeys(zeros[:3], 1), "mlp"),
            classified(dataset, {zeros[1]: 2, zeros[2]: 1, zeros[9]: 1}, "vit"),
        )
        (drawing,) = pictures.hardest(made, dataset).drawings
        looks_right(drawing)
        assert drawing.table.rows[0] == (zeros[2], "class0", "class1", 2, 2)
        assert {row[0] for row in drawing.table.rows} == {zeros[1], zeros[2]}
        assert pictures.hardest(study(dataset, *made.trials[:1]), dataset).drawings == ()


class TestOverlays:
    def test_each_kind_of_error_has_its_colour(self):
        truth = np.array([[1, 1, 0, 1, IGNORE, 0]], np.uint8)
        guess = np.array([[1, 0, 1, 2, 1, 0]], np.uint8)
        black = np.zeros((1, 6, 3), np.uint8)
        shown = judged(black, truth, guess)[0]
        colours = [HIT, MISSED, FALSE_ALARM, MIXED_UP, UNCOUNTED, "#000000"]
        for pixel, colour in zip(shown, colours, strict=True):
            assert np.abs(pixel / 0.85 - rgb(colour)).max() < 1

    @given(st.integers(2, 5), st.integers(0, 2**31))
    def test_a_mask_on_black_keeps_its_colours(self, classes, seed):
        mask = np.random.default_rng(seed).integers(0, classes, (4, 5), dtype=np.uint8)
        shown = mapped(None, mask, [str(i) for i in range(classes)])
        pairs = {
            (int(i), tuple(p)) for i, p in zip(mask.ravel(), shown.reshape(-1, 3), strict=True)
        }
        assert len(pairs) == len({colour for _, colour in pairs}) == len(np.unique(mask))

    @given(st.integers(0, 2**31))
    def test_hits_are_what_the_confusion_counts(self, seed):
        random = np.random.default_rng(seed)
        truth, guess = random.integers(0, 2, (2, 6, 7), dtype=np.uint8)
        shown = judged(np.zeros((6, 7, 3), np.uint8), truth, guess)
        matrix = metrics.confusion(truth.ravel(), guess.ravel(), 2)
        counted = np.unique(shown.reshape(-1, 3), axis=0, return_counts=True)[1]
        assert sorted(counted) == sorted(matrix[matrix > 0])


class TestSheet:
    @given(st.text(max_size=60), st.integers(3, 40))
    def test_shortened_keeps_both_ends(self, text, most):
        found = shortened(text, most)
        assert len(found) <= max(most, 3)
        assert found == text or (found[0], found[-1]) == (text[0], text[-1])

    def test_large_images_are_not_held(self):
        pixels = np.zeros((2000, 3000, 3), np.uint8)
        drawn = sheet([Row("", (Cell(pixels), Cell(None)))], 2)
        (image,) = [image for axes in drawn.axes for image in axes.images]
        assert max(image.get_array().shape) <= WIDE * DPI / 2

    def test_pictures_do_not_touch(self):
        tall, wide = np.zeros((300, 30, 3), np.uint8), np.zeros((20, 200, 3), np.uint8)
        rows = [Row("a", (Cell(tall, "x\ny"), Cell(wide))), Row("b", (Cell(wide, "z"), Cell(tall)))]
        legend = {f"{'long ' * i}{i}": "#123456" for i in range(30)}
        drawn = sheet(rows, 2, ("p", "q"), legend)
        boxes = [axes.get_position() for axes in drawn.axes]
        boxes += [
            box.get_window_extent().transformed(drawn.transFigure.inverted())
            for box in drawn.artists
        ]
        assert len(boxes) == 4 + 30
        for i, box in enumerate(boxes):
            assert 0 <= box.x0 < box.x1 <= 1
            assert 0 <= box.y0 < box.y1 <= 1
            assert not any(box.overlaps(other) for other in boxes[i + 1 :])


@pytest.mark.parametrize("classes", [2, 4])
def test_other_classes_are_an_error_of_their_own(tmp_path, classes):
    roads = blobs(1, classes)
    made = segmented(tmp_path, roads, [0], "unet", kind="baseline")
    (drawing,) = pictures.panels(study(roads, made), roads).drawings
    assert ("taken for another class" in texts(drawing)) == (classes > 2)
    assert ("truth: class2" in texts(drawing)) == (classes > 2)


@pytest.mark.data
def test_real_images_weigh_little():
    if "SAMTL_DATA" not in os.environ:
        pytest.skip("SAMTL_DATA is unset: no folder with EuroSAT.zip to read")
    dataset = resolve("eurosat", Path(os.environ["SAMTL_DATA"]) / "EuroSAT.zip")
    (drawing,) = pictures.samples(dataset).drawings
    assert len(drawing.table.rows) == 80
    assert len(png(drawing.figure)) < 3 * 2**20
