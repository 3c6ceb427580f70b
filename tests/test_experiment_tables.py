"""Tables of a run folder are read as they were written, and those of earlier versions without what they lack."""

from types import SimpleNamespace

import numpy as np
import pytest
from fake_runs import a_mask_run, a_run
from msgspec.structs import replace
from stubs import edit_run

from samtl._io import file_sha256
from samtl.errors import InputError
from samtl.experiment.run import METRICS, RunFolder, read_run
from samtl.experiment.tables import read_images, read_predictions, write_predictions
from samtl.metrics.classification import Score
from samtl.report.load import read_comparisons


@pytest.mark.parametrize("lean", [True, False])
def test_the_probability_of_the_predicted_class_is_kept(tmp_path, lean):
    chances = np.array([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]])
    labelled = SimpleNamespace(
        task="classification",
        ids=("b", "a"),
        labels=np.array([1, 2]),
        classes=("x", "p_x", "confidence"),
    )
    with RunFolder(tmp_path) as folder:
        write_predictions(folder, labelled, np.array([0, 1]), chances, lean)
        confusion, scores = np.zeros((3, 3), np.int64), {"accuracy": Score(0.5, 0.0, 1.0)}
        confusion[[1, 2], [1, 0]] = 1
        run = read_run(a_run(tmp_path, classes=labelled.classes))
        run = replace(run, n_test=2, confusion=confusion, metrics=scores)
        found = read_predictions(replace(run, path=folder.path))
    assert found.confidence.tolist() == [0.7, 0.5]
    assert (found.truth.tolist(), found.guess.tolist()) == ([1, 2], [1, 0])


def test_runs_without_probabilities_or_counts_are_read(tmp_path):
    run, masks = a_run(tmp_path), a_mask_run(tmp_path, "conv")
    table = [line.rsplit(",", 1)[0] for line in (run / "predictions.csv").read_text().splitlines()]
    (run / "predictions.csv").write_text("\n".join(table) + "\n")
    for path in (run, masks):
        edit_run(path, "metrics.json", lambda c: c | {"files": {}})
    assert read_predictions(read_run(run)).confidence is None
    assert read_images(read_run(masks)).counts is None


def cells(path, change):
    """Change the first line after the header of a table."""
    header, first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([header, ",".join(change(first.split(","))), *rest]) + "\n")


def scored(name, by):
    def change(content):
        for key in ("value", "low", "high"):
            content["metrics"][name][key] += by
        return content

    return lambda run: edit_run(run, METRICS, change)


def counted(content):
    content["confusion"][0][0] += 1
    return content


@pytest.mark.parametrize(
    ("write", "spoil", "named"),
    [
        (a_run, lambda run: cells(run / "predictions.csv", lambda c: [*c[:2], "River"]), "predict"),
        (a_run, lambda run: edit_run(run, METRICS, counted), "predict"),
        (a_run, scored("accuracy", 0.01), "predictions.csv.*accuracy"),
        (a_run, scored("macro_f1", -0.01), "predictions.csv.*macro_f1"),
        (a_mask_run, lambda run: cells(run / "images.csv", lambda c: [*c[:3], "0", *c[4:]]), "iou"),
        (
            a_mask_run,
            lambda run: cells(run / "images.csv", lambda c: [*c[:3], "nan", *c[4:]]),
            "iou",
        ),
        (a_mask_run, scored("dice", 0.01), "images.csv.*dice"),
        (a_mask_run, scored("pooled_iou", 0.01), "images.csv.*pooled_iou"),
        (a_mask_run, lambda run: edit_run(run, METRICS, counted), "csv"),
        (
            a_mask_run,
            lambda run: cells(run / "pixels.csv", lambda c: [*c[:2], "9", "9", "9"]),
            "pixels",
        ),
    ],
)
def test_scores_are_those_of_the_tables(tmp_path, write, spoil, named):
    """Even if the checksums of a run were made anew."""
    run = write(tmp_path, "logreg" if write is a_run else "conv")
    read = read_predictions if write is a_run else read_images
    read(read_run(run))
    spoil(run)
    for file in ("predictions.csv", "images.csv", "pixels.csv"):
        if (run / file).exists():
            seal(run, file)
    with pytest.raises(InputError, match=named):
        read(read_run(run))
    with pytest.raises(InputError, match=str(run)):
        read_comparisons([run])


def seal(run, file):
    sha256 = file_sha256(run / file)
    edit_run(run, METRICS, lambda c: c | {"files": {**c["files"], file: sha256}})
