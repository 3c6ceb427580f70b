"""`samtl sweep` as a user meets it: the table at the end, what is refused, what failed, and how it is stopped."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from samtl.heads import logreg

pytestmark = pytest.mark.usefixtures("one_thread")

SWEEP = ("sweep", "--heads", "logreg", "--splits", "0.25,0.5", "--seeds", "2", "--jobs", "1")
OUT = Path("runs/sweep-folder-images.tiny.64")


def test_a_sweep_prints_the_scores_beside_the_floor_and_goes_on(run, embedded):
    code, output, errors = run(*SWEEP, "--json", "s.json", "--table", "t.csv")
    assert code == 0
    assert re.search(r"^ +0\.25 +0\.5$", output, re.MULTILINE)
    for model in ("logreg", "floor"):
        assert re.search(rf"^{model}( +[\d.]+ ± [\d.]+){{2}}$", output, re.MULTILINE)
    for text in ("untrained", f"samtl report {OUT}"):
        assert text in output
    assert "4/4 logreg, split 0." in re.sub(r" on \w+,", ",", errors)
    written = json.loads(Path("s.json").read_text())
    assert (written["done"], written["skipped"], written["failed"]) == (4, 0, {})
    assert [row["split"] for row in written["rows"] if row["metric_name"] == "ece"] == [
        "0.25", "0.25", "0.5", "0.5",
    ]  # fmt: skip
    with Path("t.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(written["rows"])
    code, again, errors = run(*SWEEP, "--json", "s.json")
    assert code == 0
    written = json.loads(Path("s.json").read_text())
    assert (written["done"], written["skipped"]) == (0, 4)
    assert again.splitlines()[:4] == output.splitlines()[:4]
    assert errors == ""


def test_words_say_which_model_is_better(run, embedded):
    code, output, _ = run(
        "sweep", "--heads", "logreg,mlp", "--splits", "0.25", "--jobs", "1", "--set", "mlp.epochs=2"
    )
    assert code == 0
    assert "accuracy on folder-images in %, one seed" in output
    assert re.search(r"(logreg|mlp) \(untrained\) (beats|and)", output)


def test_baselines_need_no_store(run, folder):
    code, output, _ = run(
        *("sweep", "--heads", "none", "--baselines", "floor", "--dataset", f"folder:{folder}"),
        *("--splits", "0.25", "--jobs", "1", "--out", "pixels"),
    )
    assert code == 0
    assert re.search(r"^floor +[\d.]+$", output, re.MULTILINE)
    assert list(Path("pixels/cells").iterdir())


def test_a_cell_that_fails_is_told_of_and_ends_with_1(run, embedded, monkeypatch):
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
    code, output, _ = run(*SWEEP, "--json", "s.json")
    assert code == 0
    written = json.loads(Path("s.json").read_text())
    assert (written["done"], written["skipped"], written["failed"]) == (2, 2, {})


BAD = {
    "no number of seeds": (("--seeds", "many"), "many"),
    "no seeds": (("--seeds", "0"), "seeds"),
    "a seed twice": (("--seeds", "1,1"), "1"),
    "a head twice": (("--heads", "logreg,logreg"), "logreg"),
    "an unknown head": (("--heads", "lgreg"), "logreg"),
    "no name": (("--heads", "logreg,"), "--heads"),
    "an unknown baseline": (("--baselines", "cn", "--dataset", "folder:images"), "cnn"),
    "no pixels": (("--baselines", "floor"), "dataset"),
    "nothing": (("--heads", "none"), "sweep"),
    "a share": (("--splits", "2"), "2"),
    "an unknown split": (("--splits", "half"), "half"),
    "an unknown store": (("--cache", "nowhere"), "nowhere"),
    "unknown columns": (("--features", "depth"), "depth"),
    "no setting": (("--set", "epochs=5"), "epochs=5"),
    "a setting twice": (("--set", "logreg.C=1", "--set", "logreg.C=2"), "logreg.C"),
    "an unknown parameter": (("--set", "logreg.depth=2"), "depth"),
    "out of range": (("--set", "logreg.C=-1"), "-1"),
    "another kind": (("--set", "logreg.C=much"), "much"),
    "a seed as a parameter": (("--set", "logreg.random_state=3"), "seed"),
    "a model that is not there": (("--set", "vit.epochs=5"), "vit"),
    "processes": (("--jobs", "0"), "jobs"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_anything_is_trained(run, embedded, case):
    args, told = BAD[case]
    code, _, errors = run("sweep", "--heads", "logreg", "--splits", "0.25", "--jobs", "1", *args)
    assert code == 2
    assert told in re.sub(r"[\s│]+", " ", errors)
    assert not Path("runs").exists()


def test_a_narrow_table_is_turned_then_told_row_by_row(run, embedded, monkeypatch):
    splits = ",".join(f"0.{i}" for i in range(30, 50))
    many = (*SWEEP[:4], splits, *SWEEP[5:], "--set", "logreg.C=1")
    _, output, _ = run(*many)  # 20 splits are too wide for any terminal
    assert re.search(r"^ +logreg +floor$", output, re.MULTILINE)
    assert re.search(r"^0\.31 +[\d.]+ ± [\d.]+ +[\d.]+ ± [\d.]+$", output, re.MULTILINE)


def start(store, jobs):
    # Long enough that it is never done by itself before the signal comes.
    options = f"""sweep --cache {store} --out o --heads mlp --splits 0.2,0.3,0.4,0.5 --seeds 20 --jobs {jobs}
        --set mlp.epochs=20 --set mlp.patience=20"""
    return subprocess.Popen(
        [sys.executable, "-c", "from samtl.cli import main; main()", *options.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


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
    ("number", "jobs", "expected"),
    [
        (signal.SIGINT, 1, 130),
        pytest.param(signal.SIGTERM, 2, 143, marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_it_and_keeps_what_is_finished(small, number, jobs, expected):
    process = start(small, jobs)
    deadline = time.monotonic() + 120
    while len(list(Path("o/cells").glob("[!.]*"))) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == expected
    assert "Traceback" not in errors
    assert gone(process.pid)
    told = re.search(
        r"stopped with (\d+) of 80 cells finished; they are kept, and the same", output
    )
    assert 1 <= int(told[1]) <= len(list(Path("o/cells").glob("[!.]*")))
    assert not list(Path("o/cells").glob(".tmp-*"))
