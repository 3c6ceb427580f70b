"""The grid of a sweep as it fills up: what it shows, and that it fits wherever it is shown."""

import io
import itertools
from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from samtl.cli import render
from samtl.cli.board import Board

from samtl._runtime import Note
from samtl.sweep.api import Progress
from samtl.sweep.plan import Cell


def cells(models, splits, seeds, task="classification"):
    """Cells with what the grid asks of them."""
    rows = SimpleNamespace(seen=range(100))
    config = SimpleNamespace(task=task, inputs="pooled", run_name="")
    asked = enumerate(itertools.product(models, splits, range(seeds)))
    return [
        Cell(model, "s.zarr", "", None, split, seed, rows, number=number, config=config)
        for number, (model, split, seed) in asked
    ]


def board(some, width=140, height=30, terminal=True):
    plain = {"color_system": None, "legacy_windows": False, "_environ": {"TERM": "xterm"}}
    size = {"width": width, "height": height, "force_terminal": terminal}
    made = Board(Console(file=io.StringIO(), **size, **plain))
    for cell in some:
        made.tell(Progress(cell, "planned"))
    return made


def drawn(made):
    """Lines of the table as it is now."""
    with made.console.capture() as capture:
        made.console.print(made._draw())
    return [line.rstrip() for line in capture.get().splitlines()]


def half(**size):
    """A grid of 2 models x 2 splits x 3 seeds to which everything has happened."""
    some = cells(["logreg", "vit"], ["0.1", "0.2"], 3)
    made = board(some, **size)
    for event in (
        *(Progress(some[i], "skipped", figures={"accuracy": 0.80 + 0.01 * i}) for i in range(3)),
        Progress(some[3], "done", figures={"accuracy": 0.7, "macro_f1": 0.1}),
        Progress(some[6], "started"),
        Progress(some[6], "event", "epoch 3 of 20: validation accuracy 51.0%"),
        Progress(some[9], "failed", "no memory"),
    ):
        made.tell(event)
    return made


def test_each_place_shows_how_far_it_is():
    lines = drawn(half())
    assert lines[0].split() == ["0.1", "0.2"]
    assert lines[1].split() == ["logreg,", "s", "81.0", "1/3"]
    assert lines[2].split() == ["vit,", "s", "*0/3", "!0/3"]
    assert lines[3].startswith("4/12 cells, 1 failed, 1 running, ")
    assert lines[4] == "* vit, split 0.1, seed 0: epoch 3 of 20: validation accuracy 51.0%"


def test_splits_that_do_not_fit_share_a_column():
    some = cells(["logreg"], [f"0.{i}" for i in range(10, 40)], 2, "segmentation")
    made = board(some, width=80)
    made.tell(Progress(some[5], "done", figures={"pooled_iou": 0.5, "accuracy": 0.9}))
    lines = drawn(made)
    assert lines[0].split() == ["30", "splits"]
    assert lines[1].split() == ["logreg,", "s", "1/60"]


@settings(max_examples=15)
@given(st.data())
def test_it_fits_any_terminal(data):
    def draw(least, most):
        return data.draw(st.integers(least, most))

    names = [f"a-model-of-a-long-name-{i}" for i in range(draw(1, 12))]
    some = cells(names, [f"label:0.{i + 1}@0.2" for i in range(draw(1, 12))], draw(1, 3))
    width, height = draw(30, 200), draw(10, 50)
    made = board(some, width, height)
    for _ in range(draw(0, 20)):
        what = data.draw(st.sampled_from(["started", "event", "done"]))
        figures = {"accuracy": 1.0} if what == "done" else None
        made.tell(Progress(data.draw(st.sampled_from(some)), what, "epoch 1 of 2", figures))
    lines = drawn(made)
    assert len(lines) < height
    assert max(map(len, lines)) <= width


def test_a_log_has_a_line_for_each_cell_that_ended(monkeypatch):
    assert "epoch" not in half(terminal=False).console.file.getvalue()
    monkeypatch.setattr(render, "SECONDS_BETWEEN_LINES", -1)
    made = half(terminal=False)
    made.tell(Note("the last line was half-written"))
    lines = made.console.file.getvalue().splitlines()
    assert lines[0] == "4/12 logreg, split 0.2, seed 0: accuracy 70.0 %"
    assert lines[1].startswith("4/12 cells, 1 running, ")
    assert lines[1].endswith("; vit, split 0.1, seed 0: epoch 3 of 20: validation accuracy 51.0%")
    assert lines[2] == "5/12 vit, split 0.2, seed 0: failed: no memory"
    assert lines[3:] == ["the last line was half-written"]


def test_the_time_that_is_left_is_estimated():
    some = cells(["mlp"], ["0.2"], 5)
    made = board(some)
    made.tell(Progress(some[0], "skipped"))
    assert " left" not in made._status()
    made.tell(Progress(some[1], "done"))
    made._began -= 60  # for a quarter of the work
    assert "about 3 min left" in made._status()
