"""What was appended is there, whole; what was torn is dropped and nothing else."""

import json
import multiprocessing
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stubs import a_record

from samtl.errors import InputError, LockedError, ResourceError
from samtl.metrics.classification import Score
from samtl.sweep import results
from samtl.sweep.results import (
    COLUMNS,
    Results,
    failed_row,
    rows_of,
)

RUN = a_record(
    metrics={"accuracy": Score(0.1 + 0.2, 1 / 3, 0.5), "ece": Score(1e-17, 0.0, 1.0)},
    also={"knn": {"accuracy": Score(0.25, 0.2, 0.3)}},
    seconds={"read": 0.5, "fit": 2.25, "total": 3.125},
    training={"epochs": 20, "best_epoch": 7},
    params={"lr": 0.005, "epochs": None},
    seed=3,
    n_train=64,
    n_validation=16,
    n_test=20,
)


def rows(cell="c" * 64, **changed):
    return [{**row, "cell": cell, **changed} for row in rows_of(RUN, "0.2")]


def a_file(tmp_path, *cells):
    file = Results(tmp_path / "results.csv")
    for cell in cells:
        file.append(rows(cell))
    return file


def values(found, *names):
    return [tuple(row[name] for name in names) for row in found]


# Rows


def test_rows_hold_every_metric_and_those_of_companions():
    made = rows()
    assert values(made, "method", "metric_name", "metric_value", "ci_lower", "ci_upper") == [
        ("mlp", "accuracy", 0.1 + 0.2, 1 / 3, 0.5),
        ("mlp", "ece", 1e-17, 0.0, 1.0),
        ("mlp/knn", "accuracy", 0.25, 0.2, 0.3),
    ]
    assert {row["n_metrics"] for row in made} == {3}
    first = made[0]
    assert set(first) == set(COLUMNS)
    assert (first["n_train"], first["n_val"], first["n_test"], first["seed"]) == (64, 16, 20, 3)
    assert (first["seconds"], first["fit_seconds"], first["epochs"]) == (3.125, 2.25, 20)
    assert json.loads(first["params"]) == RUN.params
    assert (first["split"], first["split_name"], first["share"]) == ("0.2", "holdout", 0.2)
    assert first["finished"].endswith("+00:00")


def test_the_first_columns_are_those_of_torchgeo_bench():
    assert ",".join(COLUMNS).startswith(
        "dataset,method,metric_name,metric_value,ci_lower,ci_upper,n_train,n_val,n_test,seed,best_c,"
    )


def test_what_is_read_is_what_was_appended(tmp_path):
    made = rows(best_c=0.1, run='a, "b"\\ ü\u2028\'', error="", epochs=None)
    file = Results(tmp_path / "results.csv")
    file.append(made)
    assert file.read() == made
    assert file.cells() == {"c" * 64: made}
    assert file.done() == {"c" * 64}
    assert (file.failed(), file.torn()) == ({}, [])


@given(
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])),
)
def test_values_survive_exactly(tmp_path_factory, value, text):
    file = Results(tmp_path_factory.mktemp("x") / "results.csv")
    file.append(rows(metric_value=value, run=text))
    assert values(file.read(), "metric_value", "run") == [(value, text)] * 3


def test_a_line_break_does_not_break_a_line(tmp_path):
    file = Results(tmp_path / "results.csv")
    file.append([failed_row(cell="c", error="first:\n  a\r\n  b", method="vit", seed=1)])
    assert file.failed() == {"c": "first: a b"}
    assert file.path.read_bytes().count(b"\n") == 2
    assert values(file.read(), "method", "metric_name", "seed", "share") == [("vit", "", 1, None)]


@pytest.mark.parametrize(
    "wrong",
    [
        rows()[:2],
        [*rows(), rows()[0]],
        [rows()[0]] * 3,
        rows(epochs=1.5),
        rows(status="dome"),
        [*rows()[:2], rows("other")[2]],
    ],
)
def test_half_a_cell_is_never_written(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"expected|none of its column|unpack"):
        Results(tmp_path / "results.csv").append(wrong)
    assert list(tmp_path.glob("*.csv")) == []


def test_an_unknown_column_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="accuracy"):
        Results(tmp_path / "results.csv").append(rows(accuracy=1))


# Which attempt counts


def test_a_cell_that_failed_and_is_done_then_is_done(tmp_path):
    file = Results(tmp_path / "results.csv")
    file.append([failed_row(cell="x", error="no room", method="mlp")])
    assert (file.done(), file.failed()) == (set(), {"x": "no room"})
    file.append(rows("x"))
    assert (file.done(), file.failed()) == ({"x"}, {})
    file.append([failed_row(cell="x", error="again", method="mlp")])
    assert (file.done(), file.failed()) == ({"x"}, {})
    assert len(file.read()) == 3


def test_the_last_time_counts(tmp_path):
    file = a_file(tmp_path, "x", "y")
    file.append(rows("x", seconds=9.0))
    file.append(rows("x", seconds=10.0))
    assert {row["seconds"] for row in file.cells()["x"]} == {10.0}
    assert [row["cell"] for row in file.read()] == ["x"] * 3 + ["y"] * 3
    assert file.torn() == []


# Torn ends


def test_cut_anywhere_in_its_last_cell_a_file_keeps_the_others(tmp_path):
    file = a_file(tmp_path, "a")
    length = len(file.path.read_bytes())
    file.append(rows("b"))
    whole = file.path.read_bytes()
    assert len(whole) > length > 100
    cut = Results(tmp_path / "cut.csv")
    kept = file.cells()["a"]
    for size in range(length, len(whole)):
        cut.path.write_bytes(whole[:size])
        assert bool(cut.mend()) == (size > length)
        assert cut.path.read_bytes() == whole[:length]
        assert cut.done() == {"a"}
    assert cut.read() == kept
    cut.path.write_bytes(whole)
    assert cut.mend() == []
    assert cut.path.read_bytes() == whole


def test_cut_anywhere_in_its_header_a_file_is_empty(tmp_path):
    file = a_file(tmp_path, "a")
    whole = file.path.read_bytes()
    header = whole.index(b"\n") + 1
    for size in range(header + 1):
        file.path.write_bytes(whole[:size])
        assert file.read() == []
        assert bool(file.mend()) == (0 < size < header)
        file.append(rows("a"))
        assert file.done() == {"a"}


def test_notes_say_what_was_dropped(tmp_path):
    file = a_file(tmp_path, "a" * 64)
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[:-3])
    torn = file.torn()
    assert file.path.read_bytes() == whole[:-3]
    assert file.done() == set()
    assert file.mend() == torn
    assert torn == [
        "the last line of results.csv was half-written and was dropped; its cell is done again",
        "2 of 3 rows of the cell aaaaaaaa were in results.csv and were dropped; it is done again",
    ]
    file.path.write_bytes(whole + bytes(100))  # as a power cut leaves a file
    assert file.mend() == [
        "the last line of results.csv was half-written and was dropped; its cell is done again"
    ]
    assert file.path.read_bytes() == whole


@pytest.mark.parametrize("cut", [-1, -3, -200])
def test_appending_to_a_torn_file_mends_it_first(tmp_path, cut):
    file = a_file(tmp_path, "a", "b")
    file.path.write_bytes(file.path.read_bytes()[:cut])
    file.append(rows("c"))
    file.append(rows("b"))
    assert file.done() == {"a", "b", "c"}
    assert file.mend() == []


def test_a_cell_that_was_torn_between_lines_is_done_again(tmp_path):
    file = a_file(tmp_path, "a", "b")
    lines = file.path.read_bytes().splitlines(keepends=True)
    file.path.write_bytes(b"".join(lines[:-1]))
    file.append(rows("b"))
    assert file.done() == {"a", "b"}
    assert len(file.read()) == 6
    assert file.mend() == [
        "2 of 3 rows of the cell b were in results.csv and were dropped; it is done again"
    ]
    assert file.path.read_bytes().splitlines()[:4] == [line.strip() for line in lines[:4]]
    assert len(file.path.read_bytes().splitlines()) == 7


# What is not ours


def test_a_file_that_is_not_there_holds_nothing(tmp_path):
    file = Results(tmp_path / "results.csv")
    assert (file.read(), file.done(), file.failed(), file.mend()) == ([], set(), {}, [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"\x00\xff", b"dataset,method\n"])
def test_a_foreign_file_is_left_alone(tmp_path, content):
    file = Results(tmp_path / "results.csv")
    file.path.write_bytes(content)
    for act in (file.read, file.mend, lambda: file.append(rows())):
        with pytest.raises(InputError, match=r"expected the columns dataset,method,.* got"):
            act()
    assert file.path.read_bytes() == content


@pytest.mark.parametrize(
    "damage", [b"", b"\xff" * 20, b"a,b", b"3.x", b'"', b"half of a line" + b"," * len(COLUMNS)]
)
def test_damage_further_up_is_said_with_its_line(tmp_path, damage):
    file = a_file(tmp_path, "a", "b")
    lines = file.path.read_bytes().splitlines()
    lines[3] = damage
    content = b"\n".join(lines) + b"\n"
    file.path.write_bytes(content)
    for act in (file.read, file.mend):
        with pytest.raises(InputError, match=r"line 4 of .*results\.csv is damaged"):
            act()
    assert file.path.read_bytes() == content


def test_a_folder_is_no_results_file(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        Results(tmp_path).read()


# The disk, and others


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    file = a_file(tmp_path, "a")
    before = file.path.read_bytes()
    write = os.write
    monkeypatch.setattr(results.os, "write", lambda fd, data: write(fd, data[:50]))
    with pytest.raises(ResourceError, match=r"cannot write .*results.csv: .*--out"):
        file.append(rows("b"))
    monkeypatch.undo()
    assert file.path.read_bytes() == before
    file.append(rows("b"))
    assert file.done() == {"a", "b"}


def test_a_folder_is_made_or_why_it_cannot_be_is_said(tmp_path):
    assert a_file(tmp_path / "deep" / "er", "a").done() == {"a"}
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot write"):
        a_file(tmp_path / "file", "a")


def test_a_lock_that_is_held_is_said(tmp_path, monkeypatch):
    file = a_file(tmp_path, "a")
    monkeypatch.setattr(results, "_WAIT", 0.01)
    with file._locked(), pytest.raises(LockedError, match="by another process"):
        Results(file.path).append(rows("b"))


def append_some(path, name):
    for i in range(5):
        Results(path).append(rows(f"{name}{i}"))


def test_processes_append_side_by_side(tmp_path):
    path = tmp_path / "results.csv"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=append_some, args=(path, name)) for name in "xyz"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    file = Results(path)
    assert file.done() == {f"{name}{i}" for name in "xyz" for i in range(5)}
    assert file.torn() == []
    assert len(file.read()) == 45
