"""`samtl sweep` as a user meets it: the table at the end, what is refused, what failed, and how it is stopped."""

import csv
import os
import re
import signal
import time
from pathlib import Path

import forking
import pytest

from samtl.heads import logreg

pytestmark = pytest.mark.usefixtures("one_thread")

SWEEP = ("sweep", "--heads", "logreg", "--splits", "0.25,0.5", "--seeds", "2", "--jobs", "1")
OUT = Path("runs/sweep-folder-images.tiny.64")


def test_a_sweep_prints_the_scores_beside_the_floor_and_goes_on(run, told, embedded):
    code, output, errors = run(*SWEEP, "--table", "t.csv")
    assert code == 0
    assert re.search(r"^ +0\.25 +0\.5$", output, re.MULTILINE)
    for model in ("logreg", r"floor \(image statistics\)"):
        assert re.search(rf"^{model}( +[\d.]+ ± [\d.]+){{2}}$", output, re.MULTILINE)
    for text in ("untrained", f"samtl report {OUT}"):
        assert text in output
    assert "4/4 logreg, split 0." in re.sub(r" on \w+,", ",", errors)
    code, again, output_again = told(*SWEEP)
    assert (code, again["done"], again["skipped"], again["failed"]) == (0, 0, 4, {})
    splits = [row["split"] for row in again["rows"] if row["metric_name"] == "ece"]
    assert splits == ["0.25", "0.25", "0.5", "0.5"]
    with Path("t.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(again["rows"])
    assert output_again.splitlines()[:4] == output.splitlines()[:4]


def test_baselines_need_no_store(run, folder):
    args = ("--heads", "none", "--baselines", "floor", "--dataset", f"folder:{folder}")
    code, output, _ = run("sweep", *args, "--splits", "0.25", "--jobs", "1", "--out", "pixels")
    assert code == 0
    assert "accuracy on folder-images in %, one seed" in output
    assert re.search(r"^floor \(image statistics\) +[\d.]+$", output, re.MULTILINE)
    assert list(Path("pixels/cells").iterdir())


def test_a_cell_that_fails_is_told_of_and_ends_with_1(run, told, embedded, monkeypatch):
    fit = logreg.Head._fit

    def failing(self, X, codes, train, *others):
        if len(train) > 12:
            raise FloatingPointError("no number came out")
        return fit(self, X, codes, train, *others)

    with monkeypatch.context() as patch:
        patch.setattr(logreg.Head, "_fit", failing)
        code, output, errors = run(*SWEEP)
    assert code == 1
    reason = "FloatingPointError: no number came out"
    assert re.search(rf"logreg.*, split 0.25, seed 0: {reason}", output)
    assert output.count(reason) == errors.count(f"failed: {reason}") == 2
    code, again, _ = told(*SWEEP)
    assert (code, again["done"], again["skipped"], again["failed"]) == (0, 2, 2, {})


# What is typed, and what the message names; more is refused by samtl.sweep itself.
BAD = {
    "--seeds many": "many",
    "--heads logreg,": "--heads",
    "--baselines cn --dataset folder:images": "cnn",
    "--set epochs=5": "epochs=5",
    "--set logreg.C=1 --set logreg.C=2": "logreg.C",
    "--set logreg.C=-1": "-1",
    "--set logreg.C=much": "much",
    "--set logreg.random_state=3": "--seeds",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_refused_before_anything_is_trained(run, embedded, line):
    code, _, errors = run(*f"sweep --heads logreg --splits 0.25 --jobs 1 {line}".split())
    assert code == 2
    assert BAD[line] in re.sub(r"[\s│]+", " ", errors)
    assert not Path("runs").exists()


def test_a_wide_table_is_turned_and_words_say_which_model_is_better(run, embedded):
    splits = ",".join(f"0.{i}" for i in range(30, 36))
    args = ("--heads", "logreg,mlp", "--set", "logreg.C=1", "--set", "mlp.epochs=2")
    code, output, _ = run("sweep", *args, "--splits", splits, "--seeds", "2", "--jobs", "1")
    assert code == 0
    assert re.search(r"^ +logreg +mlp +floor \(image statistics\)$", output, re.MULTILINE)
    assert re.search(r"^0\.31( +[\d.]+ ± [\d.]+){3}$", output, re.MULTILINE)
    assert re.search(r"(logreg|mlp|floor \(image statistics\)) (beats|and)", output)
    assert "untrained" in output


def gone(group):
    """Whether no process of a group is left, once they had a moment to end."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("number", "jobs"),
    [(signal.SIGINT, 1), pytest.param(signal.SIGTERM, 2, marks=pytest.mark.slow)],
)
def test_a_signal_stops_it_and_keeps_what_is_finished(small, number, jobs):
    # Long enough that it is never done by itself before the signal comes.
    options = f"""sweep --cache {small} --out o --heads mlp --splits 0.2,0.3,0.4,0.5 --seeds 20 --jobs {jobs}
        --set mlp.epochs=20 --set mlp.patience=20"""
    process = forking.samtl(*options.split(), OMP_NUM_THREADS="1")
    deadline = time.monotonic() + 120
    while len(list(Path("o/cells").glob("[!.]*"))) < 2:
        assert time.monotonic() < deadline
        assert process.is_alive(), Path("errors").read_text()
        time.sleep(0.05)
    os.kill(process.pid, number)
    process.join(60)
    output, errors = Path("output").read_text(), Path("errors").read_text()
    assert process.exitcode == 128 + number
    assert "Traceback" not in errors
    assert gone(process.pid)
    assert "the same command resumes" in errors
    kept = re.search(r"(\d+) of 80 cells are finished", output)
    assert 1 <= int(kept[1]) <= len(list(Path("o/cells").glob("[!.]*")))
    assert not list(Path("o/cells").glob(".tmp-*"))
