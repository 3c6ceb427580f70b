"""Runs are found, read as they were written, and only put together where they may be compared."""

import csv
import json
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from stubs import embedded
from toys import blobs, stripes

from samtl.errors import InputError
from samtl.experiment.fit import fit_baseline, fit_head
from samtl.metrics.bootstrap import paired_difference
from samtl.metrics.classification import Score
from samtl.report.load import comparable, gather
from samtl.sweep.results import Results, failed_row, rows_of

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = ("Crop", 'For"est,', "River")
IDS = tuple(f"{CLASSES[i % 3]}/{i:03d}.png" for i in range(100))


def score(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def a_run(parent, model="mlp", seed=0, share=0.2, **changed):
    """Write a run folder as a training would.

    Parameters
    ----------
    parent : Path
    model, seed, share
        Of the configuration.
    **changed
        `kind`, `features`, `columns`, `params`, `fingerprint`, `store`, `dataset`, `split_name`, `samples` (how many
        there are), `untrained`, `weights`, `note`, `warm_start`, `left_out`.
    """
    given = {
        "kind": "head",
        "features": "pooled",
        "columns": "all",
        "params": {"lr": 0.1, "epochs": None},
        "fingerprint": "f" * 64,
        "store": "toy.tiny.64",
        "dataset": "toy",
        "split_name": "holdout",
        "samples": 100,
        "untrained": False,
        "weights": "official",
        "note": "",
        "left_out": 0,
        **changed,
    }
    facts = SimpleNamespace(**given)
    n_test = round(facts.samples * share)
    learnt = facts.samples - n_test - facts.left_out
    split = {
        "name": facts.split_name,
        "share": share,
        "seed": seed,
        "digest": f"{facts.split_name} {share} {seed} {facts.samples} {facts.left_out}",
    }
    config = {
        "format": 2,
        "kind": facts.kind,
        facts.kind: model,
        "params": {**facts.params, "random_state": seed},
        "task": "classification",
        "features": facts.features,
        "columns": facts.columns,
        "seed": seed,
        "split": split,
        "classes": list(CLASSES),
        "versions": {"samtl": "0.1.0"},
        "warm_start": given.get("warm_start"),
    }
    config["digest"] = json.dumps([config, facts.fingerprint, facts.dataset])
    metrics = {
        facts.kind: model,
        "task": "classification",
        "metrics": {"accuracy": score(0.5 + seed / 10)},
        "floor": {"accuracy": score(0.3)} if facts.kind == "head" else None,
        "also": {},
        "split": split,
        "fingerprint": facts.fingerprint,
        "snapshot": "a" * 64,
        "seconds": {"fit": 1.5, "total": 2.0},
        "training": {"epochs": 2, "best_epoch": 1},
        "peak_memory": 1000,
        "store": facts.store,
        "dataset": facts.dataset,
        "encoder": "tiny",
        "weights": facts.weights,
        "untrained": facts.untrained,
        "note": facts.note,
        "counts": {
            "train": learnt - 10,
            "validation": 10,
            "test": n_test,
            "left_out": {"quarantined": 3, "not_in_the_split": facts.left_out},
        },
        "confusion": [[n_test, 0, 0], [0, 0, 0], [0, 0, 0]],
    }
    folder = parent / f"{model}-{len(list(parent.glob('*')))}"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    table(
        folder / "curves.csv",
        ["epoch", "scaling", "train_loss"],
        [(1, "none", 0.5), (2, "x", 0.25)],
    )
    random = np.random.default_rng(seed)
    held_out = [IDS[i % 100] + "x" * (i // 100) for i in random.permutation(facts.samples)[:n_test]]
    guesses = random.integers(0, 3, n_test)
    table(
        folder / "predictions.csv",
        ["sample_id", "label", "predicted"],
        [(name, name.split("/")[0], CLASSES[c]) for name, c in zip(held_out, guesses, strict=True)],
    )
    return folder


def a_baseline(parent, model="cnn", **changed):
    nothing = {"fingerprint": "", "store": "", "weights": ""}
    return a_run(parent, model, **{"kind": "baseline", "features": "pixels", **nothing, **changed})


def table(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# Reading


def test_a_real_run_of_labels_is_read_as_it_was_written(tmp_path):
    run = fit_baseline(stripes(), "floor", 0.2, seed=1, out=tmp_path)
    (study,) = gather([tmp_path])
    (trial,) = study.trials
    assert (study.dataset, study.task, study.classes) == ("stripes", "classification", run.classes)
    assert study.models == ("floor",)
    assert (trial.path, trial.kind, trial.name, trial.model) == (
        run.run,
        "baseline",
        "floor",
        "floor",
    )
    assert (trial.features, trial.seed, trial.split["digest"]) == ("pixels", 1, run.split.digest)
    assert (trial.n_train, trial.n_validation, trial.n_test, trial.n_left_out) == (38, 10, 12, 0)
    assert trial.share == 0.8
    assert trial.metrics == run.metrics
    assert (trial.floor, trial.also) == (None, run.also)
    assert trial.confusion.tolist() == run.confusion.tolist()
    assert trial.seconds["total"] == pytest.approx(run.seconds["total"], abs=1e-3)
    assert "C" in trial.curves
    assert trial.config["given"]["split"] == 0.2
    assert trial.images is None
    hits = trial.predictions.truth == trial.predictions.guess
    assert hits.mean() == run.metrics["accuracy"].value
    assert trial.predictions.ids[0] in stripes().sample_ids


def test_a_real_run_of_masks_is_read_as_it_was_written(tmp_path):
    run = fit_baseline(blobs(), "floor", 0.25, out=tmp_path)
    (study,) = gather([run.run])
    (trial,) = study.trials
    assert (study.task, study.classes) == ("segmentation", run.classes)
    assert trial.predictions is None
    assert len(trial.images.ids) == run.n_test == 6
    assert trial.images.scores.keys() == run.images.keys()
    for name, values in run.images.items():
        assert trial.images.scores[name] == pytest.approx(values, rel=1e-5)
    assert all(mask.is_file() for mask in trial.images.masks)
    assert trial.curves == {}


def test_predictions_are_read_when_they_are_asked_for(tmp_path):
    path = a_run(tmp_path) / "predictions.csv"
    (study,) = gather([tmp_path])
    (trial,) = study.trials
    text = path.read_text()
    path.write_text(text.replace("River\n", "Lake\n"))
    with pytest.raises(InputError, match=r"predictions\.csv is damaged: KeyError\('Lake'\)"):
        _ = trial.predictions
    path.write_text(text)
    found = trial.predictions
    assert trial.predictions is found
    rows = list(csv.reader(text.splitlines()))[1:]
    assert found.ids == tuple(row[0] for row in rows)
    assert [CLASSES[c] for c in found.truth] == [row[1] for row in rows]
    assert [CLASSES[c] for c in found.guess] == [row[2] for row in rows]
    with pytest.raises(AttributeError):
        _ = trial.prediction
    assert replace(trial, model="other").predictions.ids == found.ids


def test_trials_of_one_split_share_their_ids(tmp_path):
    a_run(tmp_path, "mlp")
    a_run(tmp_path, "logreg")
    (study,) = gather([tmp_path])
    a, b = (trial.predictions for trial in study.trials)
    assert a.ids is b.ids
    assert a.truth is b.truth
    assert paired_difference([a], [b], "accuracy").value == 0


def test_what_columns_and_curves_hold(tmp_path):
    a_run(tmp_path, columns=["mean", "std"], left_out=40, warm_start="before", weights="own")
    ((trial,),) = (study.trials for study in gather([tmp_path]))
    assert trial.features == "pooled[mean,std]"
    assert trial.curves == {"epoch": [1, 2], "train_loss": [0.5, 0.25]}
    assert (trial.n_left_out, trial.learnt, trial.share) == (40, 40, 0.4)
    assert (trial.warm_start, trial.weights) == ("before", "own")
    assert trial.floor == {"accuracy": Score(0.3, pytest.approx(0.2), pytest.approx(0.4))}


# Where runs are


def test_sources_are_runs_folders_of_runs_and_sweeps(tmp_path):
    one = a_run(tmp_path / "runs", "mlp")
    a_run(tmp_path / "runs", "logreg")
    sweep = a_sweep(tmp_path / "sweeps" / "first")
    assert [len(study.trials) for study in gather([one])] == [1]
    assert gather([str(tmp_path / "runs")])[0].models == ("logreg", "mlp")
    for source in (sweep, sweep / "results.csv", tmp_path / "sweeps"):
        assert gather([source])[0].models == ("vit",)
    (study,) = gather([tmp_path / "runs", sweep, one])
    assert study.models == ("logreg", "mlp", "vit")
    assert len(study.trials) == 4


def test_hidden_folders_and_other_files_are_passed_over(tmp_path):
    a_run(tmp_path)
    shutil.move(a_run(tmp_path, "vit"), tmp_path / ".tmp-1234")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "empty").mkdir()
    (study,) = gather([tmp_path])
    assert study.models == ("mlp",)
    assert len(study.trials) == 1


def test_of_a_run_that_was_repeated_the_newest_counts(tmp_path):
    old, new = a_run(tmp_path / "a"), a_run(tmp_path / "b")
    os.utime(old / "metrics.json", (1e9, 1e9))
    ((trial,),) = (study.trials for study in gather([tmp_path / "b", tmp_path / "a"]))
    assert trial.path == new


def test_a_damaged_run_is_left_out_with_a_warning(tmp_path):
    kept = a_run(tmp_path, "logreg")
    damages = {
        "metrics.json": ["", "[]", '{"head": "mlp"}'],
        "config.json": ["{", '{"format": 1}', '{"format": 2}'],
        "predictions.csv": ["", "sample_id,label,predicted\n", "a,b\n" * 100],
        "curves.csv": ["epoch,loss\n1\n"],
    }
    for file, contents in damages.items():
        for content in (None, *contents):
            run = a_run(tmp_path)
            (run / file).unlink()
            if content is not None:
                (run / file).write_text(content)
            (study,) = gather([tmp_path])
            assert [trial.path for trial in study.trials] == [kept]
            assert len(study.warnings) == 2
            assert study.warnings[1].startswith(f"A run is left out: {run}")
            with pytest.raises(
                InputError, match=f"no sound run in (?s:.*) A run is left out: {run}"
            ):
                gather([run])
            shutil.rmtree(run)


def test_figures_that_do_not_fit_are_damage(tmp_path):
    run = a_run(tmp_path)
    for change in (
        lambda m: m.update(confusion=[[1]]),
        lambda m: m.update(metrics={}),
        lambda m: m.update(counts={"train": 1}),
        lambda m: m.update(seconds=None),
    ):
        original = (run / "metrics.json").read_text()
        edit(run / "metrics.json", change)
        with pytest.raises(InputError, match="is damaged"):
            gather([run])
        (run / "metrics.json").write_text(original)
    assert gather([run])


def test_a_mask_that_is_gone_is_damage(tmp_path):
    run = fit_baseline(blobs(), "floor", 0.25, out=tmp_path).run
    next((run / "masks").iterdir()).unlink()
    with pytest.raises(InputError, match=r"the mask 0000.* is gone"):
        gather([run])


def test_where_nothing_is_that_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    for source in (tmp_path / "file", tmp_path / "none"):
        with pytest.raises(InputError, match="is no folder"):
            gather([source])
    with pytest.raises(
        InputError, match=r"no sound run in .*: expected folders that samtl fit-head"
    ):
        gather([tmp_path])
    with pytest.raises(InputError, match="no sound run in no folder"):
        gather([])


# Sweeps


def a_sweep(folder, failed=True):
    results = Results(folder / "results.csv")
    for seed in (0, 1):
        run = a_run(folder / "cells", "vit", seed=seed, features="grid")
        contents = (
            json.loads((run / f"{name}.json").read_text()) for name in ("metrics", "config")
        )
        results.append(
            rows_of(*contents, cell=f"cell{seed}", split_spec="0.2", run=f"cells/{run.name}")
        )
    if failed:
        known = {"dataset": "toy", "features": "grid", "split": "0.2", "seed": 2}
        results.append([failed_row(cell="cell2", method="vit", error="no memory", **known)])
    return folder


def test_failed_cells_and_torn_lines_are_told(tmp_path):
    sweep = a_sweep(tmp_path / "sweep")
    with (sweep / "results.csv").open("a") as file:
        file.write("half of a li")
    before = (sweep / "results.csv").read_bytes()
    (study,) = gather([sweep])
    assert study.failed == (("vit on grid, split 0.2, seed 2", "no memory"),)
    assert "the last line of results.csv was half-written" in study.warnings[-1]
    assert (sweep / "results.csv").read_bytes() == before


def test_a_cell_whose_folder_is_gone_is_told(tmp_path):
    sweep = a_sweep(tmp_path / "sweep")
    shutil.rmtree(sweep / "cells" / "vit-1")
    (study,) = gather([sweep])
    assert len(study.trials) == 1
    assert "the run vit-1 is in results.csv, and its folder is gone" in study.warnings[-1]


def test_failures_go_to_the_study_they_are_of(tmp_path):
    sweep = a_sweep(tmp_path / "sweep")
    a_run(tmp_path / "runs", dataset="another")
    another, toy = gather([tmp_path / "runs", sweep])
    assert (another.dataset, another.failed) == ("another", ())
    assert len(toy.failed) == 1


@pytest.mark.parametrize("content", [b"", b"header"])
def test_an_empty_results_file_is_said(tmp_path, content):
    sweep = a_sweep(tmp_path / "sweep")
    results = sweep / "results.csv"
    results.write_bytes(results.read_bytes().splitlines(keepends=True)[0] if content else b"")
    with pytest.raises(InputError, match=r"results\.csv is empty: no cell of this sweep is done"):
        gather([sweep])


def test_a_sweep_of_which_all_failed_says_why(tmp_path):
    Results(tmp_path / "results.csv").append(
        [failed_row(cell="c", method="vit", error="no memory")]
    )
    with pytest.raises(InputError, match="vit, split , seed None: no memory"):
        gather([tmp_path])


# Names and order


def test_models_are_told_apart_by_what_differs(tmp_path):
    a_run(tmp_path, "conv", features="grid")
    a_run(tmp_path, "mlp")
    a_run(tmp_path, "mlp", columns=["mean"])
    a_run(tmp_path, "logreg")
    a_run(tmp_path, "logreg", params={"lr": 0.1, "epochs": 5})
    a_run(tmp_path, "logreg", params={"lr": 0.2, "epochs": 5})
    (study,) = gather([tmp_path])
    assert set(study.models) == {
        "conv",
        "mlp on pooled",
        "mlp on pooled[mean]",
        "logreg (lr 0.1)",
        "logreg (epochs 5, lr 0.1)",
        "logreg (epochs 5, lr 0.2)",
    }


def test_trials_are_in_the_order_of_models_shares_and_seeds(tmp_path):
    for seed in (1, 0):
        for share in (0.2, 0.5):
            a_baseline(tmp_path, "cnn", seed=seed, share=share)
            a_run(tmp_path, "vit", seed=seed, share=share, features="grid")
            a_run(tmp_path, "mlp", seed=seed, share=share)
            a_baseline(tmp_path, "floor", seed=seed, share=share)
    (study,) = gather([tmp_path])
    assert study.models == ("floor", "mlp", "vit", "cnn")
    of_one = [(trial.share, trial.seed) for trial in study.trials if trial.model == "mlp"]
    assert of_one == [(0.5, 0), (0.5, 1), (0.8, 0), (0.8, 1)]


# What a reader must know


def test_untrained_weights_random_splits_and_notes_are_warned_of(tmp_path):
    a_run(tmp_path, "vit", untrained=True, weights="untrained (random:0)", note="made up")
    a_run(tmp_path, "mlp")
    (study,) = gather([tmp_path])
    weights, random, note = study.warnings
    assert weights.startswith("The weights behind vit are untrained (random:0): ")
    assert random.startswith("All splits are random: ")
    assert note == "Made up"


def test_splits_that_keep_places_apart_are_not_warned_of(tmp_path):
    a_run(tmp_path, split_name="grouped")
    (study,) = gather([tmp_path])
    assert study.warnings == ()


# What may be compared


def refused(tmp_path, message):
    studies = gather([tmp_path])
    with pytest.raises(InputError, match=message) as raised:
        comparable(studies)
    assert "--separate" in str(raised.value)
    apart = comparable(studies, separate=True)
    assert [study.trials for study in apart] == [study.trials for study in studies]
    for study in apart:
        assert study.warnings[-1].startswith("Other parts of this report cannot be compared with")
    return apart


def test_one_study_is_left_as_it_is(tmp_path):
    a_run(tmp_path)
    (study,) = gather([tmp_path])
    assert comparable([study]) == comparable([study], separate=True) == [study]


def test_two_datasets_are_refused(tmp_path):
    a_run(tmp_path, dataset="one")
    a_run(tmp_path, dataset="two")
    refused(tmp_path, r"on the datasets one \(classification\) and two")


def test_two_stores_are_refused_and_baselines_stand_beside_each(tmp_path):
    a_run(tmp_path, "mlp")
    a_run(tmp_path, "mlp", fingerprint="e" * 64, store="toy.large.64")
    a_baseline(tmp_path, "cnn")
    apart = refused(
        tmp_path, r"the stores toy\..* \(fingerprint ........\) and toy\..* \(fingerprint"
    )
    assert [study.models for study in apart] == [("mlp", "cnn")] * 2


def test_random_and_grouped_splits_are_refused(tmp_path):
    for model in ("mlp", "vit"):
        for name in ("holdout", "grouped"):
            a_run(tmp_path, model, split_name=name)
    apart = refused(tmp_path, "splits that keep places apart and splits that do not")
    assert [study.models for study in apart] == [("mlp", "vit")] * 2


def test_other_samples_at_the_same_share_and_seed_are_refused(tmp_path):
    for seed in (0, 1):
        a_run(tmp_path, "mlp", seed=seed)
        a_baseline(tmp_path, "cnn", seed=seed)
    a_baseline(tmp_path, "vgg19", samples=40)
    whole, part = refused(tmp_path, r"different held-out samples, .*vgg19")
    assert (whole.models, part.models) == (("mlp", "cnn"), ("vgg19",))


def test_a_set_aside_image_makes_it_another_split(tmp_path):
    a_run(tmp_path, "mlp", samples=199)
    a_baseline(tmp_path, "cnn", samples=200)
    refused(tmp_path, "different held-out samples")


def test_other_shares_seeds_and_label_fractions_are_no_conflict(tmp_path):
    a_run(tmp_path, "mlp", seed=0)
    a_run(tmp_path, "mlp", seed=1, share=0.5)
    a_run(tmp_path, "vit", split_name="label", left_out=60)
    a_baseline(tmp_path, "floor", seed=2)
    a_baseline(tmp_path, "cnn", seed=0)
    (study,) = gather([tmp_path])
    assert set(study.models) == {"mlp", "vit", "floor", "cnn"}


def test_folds_are_one_study(tmp_path):
    for fold in range(3):
        for model in ("mlp", "vit"):
            run = a_run(tmp_path, model, split_name="fold")
            for file in ("config.json", "metrics.json"):
                edit(run / file, lambda c, fold=fold: c["split"].update(digest=f"fold {fold}"))
            edit(
                run / "config.json",
                lambda c, fold=fold, model=model: c.update(digest=f"{model} {fold}"),
            )
    (study,) = gather([tmp_path])
    assert len(study.trials) == 6


def test_baselines_alone_are_a_study(tmp_path):
    a_baseline(tmp_path, "cnn")
    a_baseline(tmp_path, "floor")
    (study,) = gather([tmp_path])
    assert study.models == ("floor", "cnn")


def test_masks_that_were_scored_at_other_resolutions_are_not_compared(tmp_path):
    run = fit_baseline(blobs(), "floor", 0.25, out=tmp_path).run
    smaller = shutil.copytree(run, tmp_path / "smaller")
    edit(smaller / "config.json", lambda config: config.update(image_size=512, digest="another"))
    assert len(gather([tmp_path])) == 2
    refused(tmp_path, r"masks scored at (512 pixels and at 1024|1024 pixels and at 512)")


# While the dataset changes


def a_head(folder, data, head="logreg", split=0.2, tiers=("pooled",), **options):
    """Bring the store up to date with a dataset, and train a head on it."""
    store = embedded(folder, data, 64, tiers)
    params = {} if head == "logreg" else {"epochs": 1}
    return fit_head(store, head, split, params=params, out=folder / "runs", **options).run


def repainted(data, which):
    """Give the dataset with other images under some of its ids."""
    other = stripes(2 * len(data), 2)
    new = dict(zip(data.sample_ids, other.sample_ids[len(data) :], strict=True))
    return replace(
        data,
        read=lambda name: other.read(new[name]) if name in which else data.read(name),
    )


def relabelled(data):
    """Give the dataset with the labels of its last two images changed for each other."""
    *rest, a, b = data.labels
    assert a != b
    return replace(data, labels=(*rest, b, a))


def grouped(data, count):
    return replace(data, groups=tuple(f"place {i // 2 % count}" for i in range(len(data))))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (stripes(40, 2), stripes(60, 2)),
        (stripes(60, 2), repainted(stripes(60, 2), stripes(60, 2).sample_ids[:5])),
        (stripes(60, 2), relabelled(stripes(60, 2))),
        (grouped(stripes(60, 2), 10), grouped(stripes(60, 2), 6)),
    ],
    ids=["grew", "images", "labels", "groups"],
)
def test_runs_of_a_dataset_that_changed_since_are_no_repeats(tmp_path, before, after):
    for head in ("logreg", "mlp"):
        a_head(tmp_path, before, head)
    new = [a_head(tmp_path, after, head) for head in ("logreg", "mlp")]
    (study,) = gather([tmp_path / "runs"])
    assert [trial.path for trial in study.trials] == new
    (said,) = [text for text in study.warnings if "left out" in text]
    assert said.startswith("2 runs are left out: the dataset changed since (its samples, images, ")
    assert "warm start" not in said


@pytest.mark.parametrize(
    "after",
    [
        repainted(stripes(60, 2), stripes(60, 2).sample_ids[:5]),
        relabelled(stripes(60, 2)),
    ],
    ids=["images", "labels"],
)
@pytest.mark.parametrize("split", [0.2, "lists"])
def test_heads_of_the_dataset_before_and_after_it_changed_are_refused(tmp_path, after, split):
    before = stripes(60, 2)
    if split == "lists":
        for part, ids in {"train": slice(40), "val": slice(40, 50), "test": slice(50, 60)}.items():
            named = "".join(f"{name}\n" for name in before.sample_ids[ids])
            (tmp_path / f"lists-{part}.txt").write_text(named)
        split = f"file:{tmp_path / 'lists'}"
    old = a_head(tmp_path, before, "mlp", split)
    new = a_head(tmp_path, after, "logreg", split)
    runs = "|".join(rf"{a} \(\w+\) and {b} \(\w+\)" for a, b in ((old, new), (new, old)))
    refused(
        tmp_path / "runs",
        rf"of a dataset before and after it changed, such as ({runs}): train the older one again; name the runs",
    )


def test_a_tier_that_was_added_changes_no_samples(tmp_path):
    data = stripes(60, 2)
    a_head(tmp_path, data, "logreg")
    a_head(tmp_path, data, "mlp", tiers=("pooled", "grid"))
    a_head(tmp_path, data, "vit", tiers=("pooled", "grid"))
    fit_baseline(data, "floor", 0.2, out=tmp_path / "runs")
    (study,) = gather([tmp_path / "runs"])
    assert study.models == ("floor", "logreg", "mlp", "vit")
    assert len({trial.config["store"]["snapshot"] for trial in study.trials[1:]}) == 2
    assert not [text for text in study.warnings if "left out" in text]


def test_an_image_that_one_tier_lacks_is_no_change(tmp_path):
    """Heads of one store that read other arrays may not have the very same samples."""
    for model, features in (("mlp", "pooled"), ("vit", "grid")):
        run = a_run(tmp_path, model, features=features)
        held = {"pooled": "60 samples", "grid": "59 samples"}
        edit(
            run / "config.json",
            lambda c, held=held: c.update(store={"samples": held}, samples=held[c["features"]]),
        )
    (study,) = gather([tmp_path])
    assert study.models == ("mlp", "vit")


def test_a_baseline_with_other_labels_than_the_heads_is_refused(tmp_path):
    data = stripes(60, 2)
    named = {"train": data.sample_ids[:40], "val": data.sample_ids[40:50]}
    for part, ids in {**named, "test": data.sample_ids[50:]}.items():
        (tmp_path / f"lists-{part}.txt").write_text("".join(f"{name}\n" for name in ids))
    split = f"file:{tmp_path / 'lists'}"
    head = a_head(tmp_path, data, "logreg", split)
    base = fit_baseline(relabelled(data), "floor", split, out=tmp_path / "runs").run
    with pytest.raises(
        InputError, match=r"scored with different labels, such as of '[01]/05"
    ) as told:
        comparable(gather([tmp_path / "runs"]))
    assert str(head) in str(told.value)
    assert str(base) in str(told.value)
    assert len(comparable(gather([tmp_path / "runs"]), separate=True)) == 2


def test_folds_and_other_seeds_of_one_state_all_count(tmp_path):
    for which in (1, 2, 3):
        for seed in (0, 1):
            a_head(tmp_path, stripes(60, 2), split=f"fold:{which}/3", seed=seed)
    (study,) = gather([tmp_path / "runs"])
    assert len(study.trials) == 6


def test_a_baseline_on_the_samples_of_each_of_two_stores_stands_beside_both(tmp_path):
    for n, mark in ((100, "f"), (60, "e")):
        a_run(tmp_path, "mlp", samples=n, fingerprint=mark * 64, store=f"toy.{mark}")
        run = a_baseline(tmp_path, "cnn", samples=n)
        edit(
            run / "config.json",
            lambda c, n=n: c.update(samples=f"{n} samples", given={"split": "0.2"}, digest=str(n)),
        )
    studies = gather([tmp_path])
    assert [study.models for study in studies] == [("mlp", "cnn")] * 2
    assert not [text for study in studies for text in study.warnings if "left out" in text]


def test_baselines_from_before_the_dataset_grew_go_with_the_heads_from_before(tmp_path):
    runs = []
    for data in (stripes(40, 2), stripes(60, 2)):
        run = fit_baseline(data, "floor", 0.2, out=tmp_path / "runs").run
        runs.append({a_head(tmp_path, data), run})
    (study,) = gather([tmp_path / "runs"])
    assert {trial.path for trial in study.trials} == runs[1]
    (said,) = [text for text in study.warnings if "left out" in text]
    assert said.startswith("2 runs are left out: the dataset changed since ")
