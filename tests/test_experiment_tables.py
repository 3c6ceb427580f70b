"""Tables of a run folder are read as they were written, and those of earlier versions without what they lack."""

from types import SimpleNamespace

import numpy as np
import pytest
from fake_runs import a_mask_run, a_run
from msgspec.structs import replace
from stubs import edit_run

from samtl.experiment.run import RunFolder, read_run
from samtl.experiment.tables import read_images, read_predictions, write_predictions


@pytest.mark.parametrize("lean", [True, False])
def test_the_probability_of_the_predicted_class_is_kept(tmp_path, lean):
    chances = np.array([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]])
    labelled = SimpleNamespace(
        ids=("b", "a"), labels=np.array([1, 2]), classes=("x", "p_x", "confidence")
    )
    with RunFolder(tmp_path) as folder:
        write_predictions(folder, labelled, np.array([0, 1]), chances, lean)
        run = replace(read_run(a_run(tmp_path, classes=labelled.classes)), n_test=2)
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
