"""Runs are found, read as they were written, and only put together if they may be compared."""

import json
import os
import shutil
from dataclasses import replace

import pytest
from fake_runs import a_mask_run, a_run, the_one
from stubs import edit_run, embedded
from sweeps import FAST, run, runs
from toys import blobs, stripes

from samtl.errors import InputError
from samtl.experiment import fit as fitting
from samtl.experiment.fit import fit_baseline, fit_head
from samtl.experiment.held_out import floor_title
from samtl.experiment.run import read_run
from samtl.experiment.tables import read_curves, read_predictions
from samtl.report.compare import share_of
from samtl.report.figures import score_tables
from samtl.report.findings import compared
from samtl.report.load import read_comparisons, set_apart
from samtl.sweep import plan as planning

pytestmark = pytest.mark.usefixtures("one_thread")


def a_failure(folder):
    (folder / "failed").mkdir(parents=True)
    failure = {"cell": "vit on grid, split 0.2, seed 2", "error": "no memory"}
    (folder / "failed" / "toy-vit.json").write_text(json.dumps(failure))


def counts(comparison):
    return {model: len(runs) for model, runs in comparison.models.items()}


def test_sources_are_runs_folders_of_runs_and_sweeps(tmp_path):
    one = a_run(tmp_path / "runs", "mlp")
    a_run(tmp_path / "runs", "logreg")
    sweep = tmp_path / "sweeps" / "first"
    for seed in (0, 1):
        a_run(sweep / "cells", "vit", seed)
    a_failure(sweep)
    shutil.move(a_run(tmp_path / "runs", "cnn"), tmp_path / "runs" / ".tmp-1234")
    (tmp_path / "runs" / "notes.txt").write_text("")
    (tmp_path / "runs" / "empty").mkdir()
    assert counts(the_one(one)) == {"mlp": 1}
    assert counts(the_one(str(tmp_path / "runs"))) == {"logreg": 1, "mlp": 1}
    for source in (sweep, tmp_path / "sweeps"):
        found = the_one(source)
        assert counts(found) == {"vit": 2}
        assert found.failed == (("vit on grid, split 0.2, seed 2", "no memory"),)
    assert counts(the_one(tmp_path / "runs", sweep, one)) == {"logreg": 1, "mlp": 1, "vit": 2}
    a_run(tmp_path / "others", dataset="another")
    another, toy = read_comparisons([tmp_path / "others", sweep])
    assert (another.dataset, another.failed, len(toy.failed)) == ("another", (), 1)


def test_without_a_run_there_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    for sources in ([tmp_path / "file"], [tmp_path / "none"], [tmp_path], []):
        with pytest.raises(InputError, match=str(sources[0]) if sources else "no folder"):
            read_comparisons(sources)
    a_failure(tmp_path)
    with pytest.raises(InputError, match="no memory"):
        read_comparisons([tmp_path])


@pytest.mark.parametrize("file", ["metrics.json", "config.json", "predictions.csv", "curves.csv"])
def test_a_damaged_run_is_left_out_with_a_warning(tmp_path, file):
    kept, run = a_run(tmp_path, "logreg"), a_run(tmp_path)
    content = (run / file).read_text()
    for damaged in (None, "", content[:-20], content.replace("1", "2", 1)):
        (run / file).unlink(missing_ok=True)
        if damaged is not None:
            (run / file).write_text(damaged)
        found = the_one(tmp_path)
        assert [run.path for run in found.runs] == [kept]
        assert str(run) in found.warnings[-1]
        with pytest.raises(InputError, match=str(run)):
            read_comparisons([run])


def test_a_run_whose_mask_is_gone_or_elsewhere_is_left_out(tmp_path):
    run = a_mask_run(tmp_path)
    mask, outside = next((run / "masks").iterdir()), tmp_path / "mask.png"
    shutil.copy(mask, outside)
    (run / "masks" / "link.png").symlink_to(outside)
    edit_run(run, "metrics.json", lambda c: c | {"files": {}})
    table = (run / "images.csv").read_text()
    for name in ("masks/none.png", "../mask.png", str(outside), "masks/link.png", "masks"):
        assert the_one(run).warnings == ()
        (run / "images.csv").write_text(table.replace(f"masks/{mask.name}", name))
        with pytest.raises(InputError, match=str(run)):
            read_comparisons([run])
        (run / "images.csv").write_text(table)


@pytest.mark.parametrize(
    ("file", "read"), [("predictions.csv", read_predictions), ("curves.csv", read_curves)]
)
def test_a_table_of_a_run_that_is_no_file_is_refused(tmp_path, file, read):
    run = a_run(tmp_path)
    edit_run(run, "metrics.json", lambda c: c | {"files": {}})
    (run / file).unlink()
    os.mkfifo(run / file)
    with pytest.raises(InputError, match="regular file"):
        read(read_run(run))


def one(name, write=a_run, **options):
    return lambda folder: write(folder, name, **options)


MLP, CNN = one("mlp"), one("cnn")
LR = "epochs 5, lr"
LOGREGS = [one("logreg", params={"lr": lr, "epochs": 5}) for lr in (0.1, 0.2)]
SMALL = {"fingerprint": "e" * 64, "store": "toy.small"}
LARGE = SMALL | {"identity": {"image_size": 128}}
BESIDE = [one("cnn", ids=ids, given={"split": "0.2"}) for ids in (100, 60)]
FOLDS = [{"split_name": "fold", "salt": k, "given": {"split": f"fold:{k}/3"}} for k in "123"]


@pytest.mark.parametrize(
    ("expected", "runs"),
    [
        ("mlp on pooled, mlp on pooled[mean]", [MLP, one("mlp", columns=("mean",))]),
        (f"logreg ({LR} 0.1), logreg ({LR} 0.2), logreg (lr 0.1)", [one("logreg"), *LOGREGS]),
        ("mlp @ toy.small, mlp @ toy.tiny.64, cnn", [CNN, MLP, one("mlp", **SMALL)]),
        ("mlp @ 128 px, mlp @ 64 px", [MLP, one("mlp", **SMALL, identity={"image_size": 128})]),
        (
            "mlp @ sam_vit_b, mlp @ tiny",
            [one("mlp", encoder="sam_vit_b"), one("mlp", **LARGE)],
        ),
        ("mlp @ official, mlp @ random:0", [MLP, one("mlp", **SMALL, weights="random:0")]),
        # Other shares, seeds, label fractions and folds are no conflict.
        (
            "floor (image statistics), mlp, cnn",
            [MLP, one("mlp", seed=1, share=0.5), one("floor", seed=2), CNN],
        ),
        ("mlp, vit", [MLP, one("vit", left_out=60)]),
        ("mlp, vit", [one(name, **fold) for fold in FOLDS for name in ("mlp", "vit")]),
        # Baselines stand beside the heads on their samples.
        ("mlp, cnn | mlp, cnn", [MLP, one("mlp", ids=60, **SMALL), *BESIDE]),
        ("mlp, cnn | vit, cnn", [MLP, CNN, one("vit", salt="x"), one("cnn", salt="x")]),
        ("mlp, cnn | vit", [MLP, one("vit", salt="x"), one("cnn", seed=5)]),
        ("mlp, cnn", [one("mlp", comparison_key="k"), one("cnn", ids=120, comparison_key="k")]),
        # Other samples at the same share and seed
        ("mlp, cnn | vgg19", [MLP, one("cnn", seed=1), CNN, one("vgg19", ids=40)]),
        ("mlp | cnn", [one("mlp", ids=199), one("cnn", ids=200)]),
        # What differs in kind
        ("conv | vit; dataset", [one("conv", dataset="one"), one("vit", dataset="two")]),
        ("conv | vit; Lake", [one("conv"), one("vit", classes=("Crop", "Lake", "River"))]),
        # Masks of several sizes are of the same images if the split is the same.
        (
            "conv, vit",
            [one("conv", a_mask_run), one("vit", a_mask_run, resolution=512, comparison_key="k")],
        ),
        (
            "conv | vit; held-out samples",
            [one("conv", a_mask_run), one("vit", a_mask_run, comparison_key="k")],
        ),
        ("conv | vit; places", [one("conv"), one("vit", split_name="grouped")]),
    ],
)
def test_which_runs_are_compared(tmp_path, expected, runs):
    for write in runs:
        write(tmp_path)
    found = read_comparisons([tmp_path])
    groups, _, named = expected.partition("; ")
    assert " | ".join(", ".join(one.models) for one in found) == groups
    assert {run.path for one in found for run in one.runs} == {*tmp_path.iterdir()}
    for some in (some for one in found for some in one.models.values()):
        order = [(share_of(run), run.seed) for run in some]
        assert order == sorted(order)
    assert not any(one.warnings for one in found)
    apart = set_apart(found)
    assert {len(one.warnings) for one in apart} == {len(found) - 1}
    assert all(named in text for one in apart for text in one.warnings)


def test_of_a_fit_that_was_repeated_the_one_that_finished_last_counts(tmp_path):
    new = a_run(tmp_path / "a", finished="2026-02-02T00:00:00+00:00")
    a_run(tmp_path / "b", finished="2026-01-01T00:00:00+00:00")
    found = the_one(tmp_path / "a", tmp_path / "b")
    assert [run.path for run in found.runs] == [new]
    assert not [text for text in found.warnings if "left out" in text]
    warm = a_run(tmp_path / "a", warm_start="before", finished="2026-03-03T00:00:00+00:00")
    found = the_one(tmp_path / "a")
    assert [run.path for run in found.runs] == [warm]
    assert found.warnings[-1].startswith("1 older runs are left out")


def a_head(folder, data, head="logreg", split=0.2, tiers=("pooled",)):
    """Bring the store up to date with a dataset, and train a head on it."""
    params = {} if head == "logreg" else {"epochs": 1}
    store = embedded(folder, data, 64, tiers)
    return fit_head(store, head, split, params=params, out=folder / "runs").path


def relabelled(data):
    """Exchange the labels of the last two images."""
    *rest, a, b = data.labels
    assert a != b
    return replace(data, labels=(*rest, b, a))


def grouped(data, count):
    return replace(data, groups=tuple(f"place {i // 2 % count}" for i in range(len(data))))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (stripes(20, 2), stripes(30, 2)),
        (stripes(30, 2), relabelled(stripes(30, 2))),
        (grouped(stripes(30, 2), 10), grouped(stripes(30, 2), 6)),
    ],
    ids=["grew", "labels", "groups"],
)
def test_runs_from_before_the_dataset_changed_are_left_out(tmp_path, before, after):
    for data in (before, after):
        floor = fit_baseline(data, "floor", 0.2, out=tmp_path / "runs")
        new = {a_head(tmp_path, data), floor.path}
    found = the_one(tmp_path / "runs")
    assert {run.path for run in found.runs} == new
    assert any("left out" in text for text in found.warnings)


def test_heads_from_before_and_after_other_labels_stand_apart(tmp_path):
    data = stripes(60, 2)
    parts = {"train": slice(40), "val": slice(40, 50), "test": slice(50, 60)}
    for part, ids in parts.items():
        named = "".join(f"{name}\n" for name in data.sample_ids[ids])
        (tmp_path / f"lists-{part}.txt").write_text(named)
    split = f"file:{tmp_path / 'lists'}"
    old = a_head(tmp_path, data, "mlp", split)
    new = fit_baseline(relabelled(data), "floor", split, out=tmp_path / "runs").path
    said = [
        text for one in set_apart(read_comparisons([tmp_path / "runs"])) for text in one.warnings
    ]
    assert any(str(old) in text and str(new) in text for text in said)


def test_one_dataset_is_compared_whichever_verb_read_it_and_tier_was_added(tmp_path):
    images = stripes(30, 2)
    a_head(tmp_path, images, "logreg")
    a_head(tmp_path, images, "mlp", tiers=("pooled", "grid"))
    fit_baseline(images, "floor", 0.2, out=tmp_path / "runs")
    found = the_one(tmp_path / "runs")
    assert [*found.models] == ["floor (image statistics)", "logreg", "mlp"]
    assert len({run.snapshot for run in found.runs}) == 3
    assert found.warnings == ()
    assert found.one_state
    run = fit_baseline(blobs(12), "floor", 0.25, out=tmp_path / "masks")
    (read,) = the_one(tmp_path / "masks").runs
    assert (read.path, read.metrics) == (run.path, run.metrics)
    assert json.loads((run.path / "config.json").read_text())["given"]["split"] == 0.25


def repainted(data):
    """Give the image of the first row the bytes of the second, and its mask, if it has one, that one's."""
    first, second = data.sample_ids[:2]
    swap = {first: second}
    masks = data.read_mask and (lambda name: data.read_mask(swap.get(name, name)))
    return replace(data, read=lambda name: data.read(swap.get(name, name)), read_mask=masks)


@pytest.mark.parametrize(
    ("data", "head", "tiers"),
    [(stripes(30, 2), "logreg", ("pooled",)), (blobs(24, 2), "conv", ("dense",))],
    ids=["labels", "masks"],
)
def test_one_state_of_a_dataset_is_known_as_such_whichever_verb_read_it(
    tmp_path, monkeypatch, data, head, tiers
):
    """A sweep, a head and a baseline that are fitted alone, and a sweep without a store."""
    for module in (fitting, planning):
        monkeypatch.setattr(module, "IMAGE_SIZE", 64)  # else masks have another resolution
    store, out = embedded(tmp_path, data, 64, tiers), tmp_path / "runs"
    with_store = {"heads": (head,), "baselines": ("floor",), "splits": "0.25", "dataset": data}
    swept = runs(run([store], tmp_path / "with", **with_store).out)
    swept += runs(run([], tmp_path / "without", **{**with_store, "heads": ()}).out)
    swept += [fit_head(store, head, 0.25, params=FAST[head], out=out)]
    swept += [fit_baseline(data, "floor", 0.25, out=out)]
    assert len({one.samples_digest for one in swept}) == 1
    assert [one.digest for one in swept if one.name == "floor"] == 3 * [swept[-1].digest]
    sources = tmp_path / "with", tmp_path / "without", out
    found = the_one(*sources)
    assert ([*found.models], found.warnings, found.one_state) == (
        [floor_title(found.task), head],
        (),
        True,
    )
    fit_baseline(repainted(data), "floor", 0.25, seed=1, out=out)
    assert not the_one(*sources).one_state


def test_a_sweep_over_stores_of_two_image_sizes_is_one_comparison(tmp_path):
    data = blobs(24, 2)
    stores = [embedded(tmp_path / str(size), data, size, ("dense",)) for size in (64, 96)]
    asked = {"heads": ("conv",), "splits": "0.25"}
    found = the_one(run(stores, tmp_path / "sweep", **asked).out)
    assert [name for name in found.models if name.startswith("conv")] == [
        "conv @ 64 px",
        "conv @ 96 px",
    ]
    assert {run.resolution for run in found.runs} == {64, 96}
    pairs = {(pair.better.model, pair.other.model) for pair in compared(found)}
    assert {"conv @ 64 px", "conv @ 96 px"} in map(set, pairs)


def test_encoders_and_heads_have_a_table(tmp_path):
    for name in ("mlp", "logreg"):
        a_run(tmp_path, name, encoder="hf:/folder/dinov2")
        a_run(tmp_path, name, encoder="rcf", fingerprint="e" * 64, store="toy.rcf")
    parts = score_tables(the_one(tmp_path))
    (part,) = [part for part in parts if part.name == "scores-by-encoder"]
    assert sorted(row["encoder"] for row in part.shown) == ["dinov2", "rcf"]
    assert {*part.shown[0]} == {"encoder", "mlp", "logreg"}
