"""Predictions of new images are those of the rows made of them, whole or not there, and from the run's own encoder."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import stubs
import torch
import toys
from fake_runs import read_csv
from PIL import Image
from zips import put

from samtl.embed.api import embed
from samtl.errors import InputError, MismatchError, ResourceError
from samtl.experiment.fit import fit_baseline, fit_head
from samtl.experiment.output import Predicted, Skipped
from samtl.experiment.predict import predict
from samtl.heads import conv
from samtl.images.transforms import resized_shape
from samtl.store.reader import open_store

pytestmark = pytest.mark.usefixtures("one_thread")

BROKEN = {"class0/0003.png": "truncated", "class0/0030.png": "empty"}


class Encoders(stubs.StubEncoders):
    """Has columns of two groups, so that a head can learn from one."""

    features = tuple(f"{group}_{i}" for group in ("mean", "max") for i in range(5))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store of labelled images and one of images with masks, the images themselves, and runs on them."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        stubs.install(Encoders(image_size=256), patch.setattr)
        options = {"device": "cpu", "dtype": "float32"}
        labelled = stubs.small_dataset()
        masked = toys.blobs(12, classes=2, shapes=((32, 32), (16, 40)))
        put(labelled, root / "labelled")
        put(masked, root / "masked")
        embed(labelled, "stub", tiers=["pooled", "grid"], out=root / "labelled.zarr", **options)
        embed(masked, "stub", tiers=["dense"], out=root / "masked.zarr", **options)
        small = {"width": 4, "epochs": 1}
        runs = {
            "logreg": fit_head(root / "labelled.zarr", "logreg", 0.25, out=root),
            "grid": fit_head(root / "labelled.zarr", "conv", 0.25, params=small, out=root),
            "masks": fit_head(root / "masked.zarr", "conv", 0.25, params=small, out=root),
            "columns": fit_head(root / "labelled.zarr", "logreg", 0.25, features="max", out=root),
            "floor": fit_baseline(stubs.toy_dataset(37), "floor", 0.25, out=root),
            "floor masks": fit_baseline(masked, "floor", 0.25, out=root),
        }
    return SimpleNamespace(root=root, runs={name: run.path for name, run in runs.items()})


@pytest.fixture
def encoders(monkeypatch):
    """The stub that the stores of `made` were made with."""
    return stubs.install(Encoders(image_size=256), monkeypatch.setattr)


@pytest.fixture
def say(made, encoders):
    """Predict with a run by its name and images or a store by their place, of those that were made, or of others."""

    def say(run, images=None, from_store=None, **options):
        if isinstance(from_store, str):
            from_store = made.root / from_store
        images = images and made.root / images
        options.setdefault("out", "masks" if run == "masks" else "predictions.csv")
        return predict(made.runs.get(run, run), images, from_store=from_store, **options)

    return say


def picture(path):
    with Image.open(path) as image:
        return np.array(image)


def chances(path):
    """Map each image, or sample, of a table to its probabilities."""
    return {
        next(iter(row.values())): np.array([float(row[n]) for n in row if n.startswith("p_")])
        for row in read_csv(path)
    }


def assert_close(found, expected, tolerance=1e-5):
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=tolerance)


def assert_nothing_left(folder, *names):
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


@pytest.mark.parametrize("head", ["logreg", "columns", "grid"])
def test_images_give_what_their_rows_give_and_what_the_run_gave(say, made, tmp_path, head):
    result = say(head, "labelled", batch_size=5)
    stored = say(head, from_store="labelled.zarr", out="stored.csv")
    by_image, by_row = chances(result.table), chances(stored.table)
    before = chances(made.runs[head] / "predictions.csv")
    assert by_image.keys() == by_row.keys() > before.keys()
    assert len(by_image) == result.rows == stored.rows == 35
    assert_close(by_image, by_row)
    assert_close(before, by_image)
    assert [given.sum() for given in by_image.values()] == pytest.approx([1] * 35, abs=1e-7)
    assert_nothing_left(tmp_path, "predictions.csv", "stored.csv")


def test_the_table_and_the_result_agree(say):
    seen = []
    result = say("logreg", "labelled", on_event=seen.append)
    rows, given = read_csv(result.table), np.stack([*chances(result.table).values()])
    assert list(rows[0]) == ["image", "predicted", "p_class0", "p_class1", "p_class2"]
    assert [row["image"] for row in rows] == sorted(row["image"] for row in rows)
    told = [row["predicted"] for row in rows]
    assert told == [f"class{i}" for i in given.argmax(1)]
    assert result.counts == {name: told.count(name) for name in ("class0", "class1", "class2")}
    assert [*result.means.values()] == pytest.approx(given.mean(0))
    content = json.loads(json.dumps(result.to_json()))
    assert (content["table"], content["encoder"]) == ("predictions.csv", "stub")
    assert (content["weights"], content["untrained"]) == ("untrained (random:0)", True)
    # Bad images are skipped and told of, here as in the store.
    assert {bad.image: bad.code for bad in result.skipped} == BROKEN
    assert [event for event in seen if isinstance(event, Skipped)] == list(result.skipped)
    assert seen[-1] == Predicted(35, 2, 37)
    stored = say("logreg", from_store="labelled.zarr", out="stored.csv")
    assert set(stored.skipped) == set(result.skipped)


def test_only_the_tier_that_is_needed_is_computed(say, encoders, monkeypatch):
    asked, encode = [], stubs.StubEncoder.encode

    def watched(self, pixels, tiers):
        asked.append((len(pixels), *tiers))
        return encode(self, pixels, tiers)

    monkeypatch.setattr(stubs.StubEncoder, "encode", watched)
    say("grid", "labelled/class2", batch_size=5)
    assert asked == [(5, "grid"), (5, "grid"), (2, "grid")]
    result = say("logreg", "labelled/class1/0001.png", out="one.csv")
    assert [row["image"] for row in read_csv(result.table)] == ["0001.png"]
    encoders.spoil = lambda outputs: outputs["pooled"].__setitem__((-1, 3), np.nan)
    result = say("logreg", "labelled/class1", batch_size=4, out="bad.csv")
    assert [bad.code for bad in result.skipped] == ["nonfinite"] * 3
    assert result.rows == 9


def test_from_a_store_no_image_and_no_encoder_is_touched(say, made, monkeypatch, tmp_path):
    monkeypatch.setattr(Encoders, "Encoder", None)
    store = shutil.copytree(made.root / "labelled.zarr", tmp_path / "cache" / "only.zarr")
    result = say("logreg", from_store=True)
    assert (result.rows, result.source) == (35, "cache/only.zarr")
    again = say("logreg", from_store=open_store(made.root / "labelled.zarr"), out="again.csv")
    assert again.table.read_bytes() == result.table.read_bytes()
    (store / "log" / "1.0.json").unlink()
    result = say("logreg", from_store=store, out="part.csv")
    assert sum(bad.code == "missing" for bad in result.skipped) == 16
    assert result.rows + len(result.skipped) == 37


def test_a_store_of_images_without_labels_can_be_predicted_and_not_learnt_from(say, made, tmp_path):
    for place in sorted((made.root / "labelled").glob("class1/*")):
        (tmp_path / "new").mkdir(exist_ok=True)
        shutil.copy(place, tmp_path / "new")
    options = {"device": "cpu", "dtype": "float32", "tiers": ["pooled"], "out": tmp_path}
    result = embed("folder:new", "stub", **options)
    predicted = chances(say("logreg", from_store=open_store(result.store)).table)
    by_image = chances(say("logreg", "labelled/class1", out="images.csv").table)
    assert len(predicted) == 12
    assert_close(predicted, by_image)
    with pytest.raises(InputError, match=r"no image of .* has a label"):
        fit_head(result.store, "logreg", 0.2)
    with pytest.raises(InputError, match=r"no image of .* has a label"):
        fit_baseline("folder:new", "floor", 0.2)


@pytest.mark.parametrize("size", [(16, 40), (40, 16), (33, 100), (300, 700), (256, 256)])
@pytest.mark.parametrize("axis", [0, 1])
def test_masks_lie_where_their_images_do(say, monkeypatch, tmp_path, size, axis):
    """The border at 40 % of the image's height or width stays there, whatever was resized and padded."""
    border = 0.4 * resized_shape(*size, 256)[axis]

    def scores(self, row):  # of class 1, above 0 beyond the border
        side = 4 * row.shape[-1]
        centre = (np.arange(side) + 0.5) * 256 / side
        score = np.broadcast_to(centre - border, (side, side)).astype(np.float32)
        score = score if axis == 1 else score.T
        return torch.from_numpy(np.stack([np.zeros_like(score), score])[None])

    monkeypatch.setattr(conv.Head, "_scores", scores)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(stubs.png(0, size))
    say("masks", tmp_path / "in")
    mask = picture(tmp_path / "masks" / "a.png")
    assert mask.shape == size
    expected = np.arange(size[axis]) + 0.5 > 0.4 * size[axis]
    wrong = mask != (expected[:, None] if axis == 0 else expected[None, :])
    assert wrong.sum() <= mask.size / size[axis]  # one row or column, where the border is


def test_masks_have_the_images_size_name_and_shares(say, made, tmp_path):
    shutil.copytree(made.root / "masked", tmp_path / "in" / "deep")
    result = say("masks", tmp_path / "in", out="m")
    rows = read_csv(tmp_path / "m" / "predictions.csv")
    assert (str(result.masks), str(result.table)) == ("m", "m/predictions.csv")
    assert list(rows[0]) == ["image", "mask", "share_background", "share_class1"]
    assert len(rows) == result.rows == 12
    for row in rows:
        assert row["mask"] == row["image"]
        classes = picture(tmp_path / "m" / row["mask"])
        assert classes.shape == picture(tmp_path / "in" / row["image"]).shape[:2]
        assert float(row["share_class1"]) == pytest.approx(np.mean(classes == 1), abs=1e-8)
    shares = [float(row["share_class1"]) for row in rows]
    assert result.means["class1"] == pytest.approx(np.mean(shares))
    assert result.counts["class1"] == np.count_nonzero(shares)


def test_masks_of_a_store_are_those_of_the_run(say, made):
    result = say("masks", from_store="masked.zarr")
    mine = {row["sample_id"]: row["mask"] for row in read_csv(result.table)}
    before = read_csv(made.runs["masks"] / "images.csv")
    assert before
    for row in before:
        kept = picture(made.runs["masks"] / row["mask"])
        np.testing.assert_array_equal(picture(result.masks / mine[row["sample_id"]]), kept)


def test_masks_that_would_meet_or_lie_among_the_images_are_refused(say, encoders, tmp_path):
    for name in ("a.png", "a.jpg"):
        (tmp_path / name).write_bytes(stubs.png(0))
    with pytest.raises(InputError, match=r"'a.jpg' and 'a.png' would both have the mask 'a.png'"):
        say("masks", tmp_path, out=tmp_path.parent / "m")
    with pytest.raises(InputError, match="lies in the folder of images"):
        say("masks", tmp_path)
    assert encoders.images == 0


def test_a_baseline_predicts_images_that_it_has_not_seen_as_in_its_run(say, made):
    result = say("floor", "labelled")
    assert {bad.image: bad.code for bad in result.skipped} == BROKEN
    before, found = chances(made.runs["floor"] / "predictions.csv"), chances(result.table)
    assert_close({name: given for name, given in before.items() if name not in BROKEN}, found, 1e-8)
    assert (result.kind, result.name, result.encoder) == ("baseline", "floor", "")


def test_a_baseline_gives_masks_at_the_images_size(say, made):
    result = say("floor masks", "masked")
    assert result.rows == 12
    for row in read_csv(result.table):
        guess = picture(result.masks / row["mask"])
        pixels = picture(made.root / "masked" / row["image"]).astype(int)
        assert guess.shape == pixels.shape[:2]
        nearest = ((pixels[:, :, None] - toys.COLOURS[:2]) ** 2).sum(-1).argmin(-1)
        assert (guess == nearest).mean() > 0.95


STORE, IMAGES = {"from_store": "labelled.zarr"}, {"images": "labelled"}


@pytest.mark.parametrize(
    ("run", "given", "told"),
    [
        ("logreg", {"images": "labelled", "from_store": True}, "--images, --from-store"),
        ("logreg", STORE | {"checkpoint": "random:0"}, "--checkpoint has no effect"),
        ("logreg", STORE | {"device": "cpu"}, "--device has no effect"),
        ("logreg", STORE | {"batch_size": 4}, "--batch-size has no effect"),
        ("floor", IMAGES | {"checkpoint": "random:0"}, "--checkpoint has no effect"),
        ("floor", IMAGES | {"device": "cpu"}, "--device has no effect"),
        ("floor", IMAGES | {"batch_size": 4}, "--batch-size has no effect"),
        ("floor", STORE, "reads pixels and no store"),
        ("logreg", {"from_store": "masked.zarr"}, "needs the tier pooled, and .* has dense"),
        ("logreg", {"images": "labelled.zarr"}, "there is no image in"),
        ("logreg", {"images": "nowhere"}, "does not exist; expected a folder of images"),
    ],
)
def test_what_cannot_be_is_refused(say, encoders, tmp_path, run, given, told):
    with pytest.raises(InputError, match=told):
        say(run, **given)
    assert encoders.images == 0
    assert_nothing_left(tmp_path)


def test_another_encoder_is_refused_field_by_field(say, encoders, tmp_path, monkeypatch, small):
    with pytest.raises(MismatchError, match="was not made with the encoder") as caught:
        say("logreg", from_store=small)
    assert ("image_size", "64", "256") in caught.value.differences
    other = stubs.StubEncoder(encoders, encoders.spec("stub", 64), None, "float32")
    monkeypatch.setattr(encoders, "Encoder", lambda *asked, **more: other)
    with pytest.raises(MismatchError) as caught:
        say("logreg", "labelled")
    assert [field for field, _, _ in caught.value.differences] == ["image_size"]
    assert encoders.images == 0
    assert_nothing_left(tmp_path, "small.zarr")


def test_the_weights_are_found_again_by_what_the_run_says_of_them(
    say, made, encoders, monkeypatch, tmp_path
):
    run, wanted, make = tmp_path / "run", [], encoders.Encoder
    shutil.copytree(made.runs["logreg"], run)

    def asked(name, checkpoint, *others, **more):
        wanted.append(checkpoint)
        return make(name, "random:0", *others, **more)

    monkeypatch.setattr(encoders, "Encoder", asked)
    for weights, option, checkpoint in (
        ("untrained (random:3)", None, "random:3"),
        ("official sam_vit_b_01ec64.pth", None, "official"),
        ("file mine.pth", "elsewhere.pth", "elsewhere.pth"),
    ):
        stubs.edit_run(run, "config.json", lambda content, of=weights: content | {"weights": of})
        result = say(run, "labelled/class1", checkpoint=option, overwrite=True)
        assert (result.weights, wanted.pop()) == (weights, checkpoint)
    with pytest.raises(InputError, match=r"weights of a file \(mine.pth\): name it with"):
        say(run, "labelled/class1", overwrite=True)


def test_a_damaged_run_is_refused(say, made, tmp_path):
    run = shutil.copytree(made.runs["logreg"], tmp_path / "run")
    (run / "head.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match=r"head\.safetensors"):
        say(run, "labelled")
    assert_nothing_left(tmp_path, "run")


def test_a_table_is_replaced_only_when_asked(say, tmp_path):
    place = tmp_path / "predictions.csv"
    place.write_text("mine")
    images = "labelled/class1"
    for count in (2, 3):
        result = say("logreg", images)
        assert (result.table, result.beside) == (Path(f"predictions.{count}.csv"), Path(place.name))
        assert len(read_csv(result.table)) == 12
    assert place.read_text() == "mine"
    result = say("logreg", images, overwrite=True)
    assert (result.table, result.beside) == (Path(place.name), None)
    assert len(read_csv(place)) == 12
    names = ["predictions.2.csv", "predictions.3.csv", "predictions.csv"]
    (tmp_path / "file").write_text("")
    for wrong, told in (
        ("file", "is a file"),
        ("file/a", "is a file"),
        ("file/a.csv", "is a file"),
        ("d.csv", "expected a f"),
        ("s3://bucket/a", "in a bucket"),
    ):
        (tmp_path / "d.csv").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=told):
            say("logreg", images, out=wrong, overwrite=True)
    assert_nothing_left(tmp_path, "file", "d.csv", *names)


def test_a_folder_of_masks_is_replaced_as_a_whole_and_nothing_else_is(say, tmp_path):
    one = "masked/000.png"
    (tmp_path / "masks").mkdir()
    say("masks", "masked")  # an empty folder is no obstacle
    result = say("masks", one)
    assert (result.masks, result.beside) == (Path("masks.2"), Path("masks"))
    assert_nothing_left(tmp_path / "masks.2", "000.png", "predictions.csv")
    say("masks", one, overwrite=True)
    assert_nothing_left(tmp_path / "masks", "000.png", "predictions.csv")
    (tmp_path / "masks" / "thesis.txt").write_text("months of work")
    (tmp_path / "other").mkdir()
    say("logreg", "labelled", out=tmp_path / "other" / "predictions.csv")
    for place in ("masks", "other"):
        for _ in range(2):
            assert say("masks", one, out=place, overwrite=True).masks == Path(place, "masks")
        assert_nothing_left(tmp_path / place / "masks", "000.png", "predictions.csv")
    assert (tmp_path / "masks" / "thesis.txt").exists()
    assert_nothing_left(tmp_path, "masks", "masks.2", "other")


@pytest.mark.parametrize("run", ["logreg", "masks"])
def test_nothing_half_written_stays_and_an_earlier_prediction_does(say, encoders, tmp_path, run):
    images = "labelled/class1" if run == "logreg" else "masked"

    works, seen = encoders.before_batch, []
    stop = {"on_event": seen.append, "should_stop": lambda: len(seen) >= 2}

    def fail(event):
        if isinstance(event, Predicted) and event.done == 7:
            raise KeyboardInterrupt

    def give_out(pixels):
        raise ResourceError("the device gave out")

    def there():
        return sorted(tmp_path.rglob("*")), stubs.contents(tmp_path)

    for earlier in (False, True):
        if earlier:
            say(run, images)
        before = there()
        for before_batch, error in ((give_out, ResourceError), (works, KeyboardInterrupt)):
            encoders.before_batch = before_batch
            with pytest.raises(error):
                say(run, images, overwrite=True, on_event=fail)
            assert there() == before
        seen.clear()
        already = encoders.images
        result = say(run, images, overwrite=True, batch_size=1, **stop)
        assert (result.interrupted, result.table, result.masks) == (True, None, None)
        assert encoders.images - already < 12
        assert there() == before
        assert bool(before[0]) == earlier


def test_a_disk_that_gives_out_is_no_defect(say, tmp_path, monkeypatch):
    def full(path, classes):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("samtl.experiment.output.write_mask", full)
    with pytest.raises(ResourceError, match=r"cannot write predictions to masks: No space left"):
        say("masks", "masked")
    assert_nothing_left(tmp_path)


def test_the_real_encoder_gives_the_features_of_the_store(tmp_path):
    put(stubs.toy_dataset(6, classes=2), tmp_path / "in")
    options = {"tiers": ["pooled"], "device": "cpu", "image_size": 64}
    store = embed(f"folder:{tmp_path / 'in'}", "tiny", **options).store
    run = fit_head(store, "logreg", 0.34).path
    held = chances(run / "predictions.csv")
    (tmp_path / "new").mkdir()
    for number, name in enumerate(held):
        shutil.copy(tmp_path / "in" / name, tmp_path / "new" / f"{number}.png")
    result = predict(run, tmp_path / "new", device="cpu")
    assert len(held) == result.rows == 2
    found = dict(zip(held, chances(result.table).values(), strict=True))
    assert_close(held, found)
