"""The table of a sweep as a file, and the cells that failed."""

import csv
import json

import pytest

from samtl.errors import ResourceError
from samtl.sweep.api import SweepResult
from samtl.sweep.results import failed_cells

ROW = {
    "method": "floor/knn",
    "metric_name": "ece",
    "metric_value": 0.1 + 0.2,
    "best_c": None,
    "untrained": True,
}


def result(tmp_path, *rows):
    return SweepResult(tmp_path, 1, 0, {}, list(rows), 1.0, ())


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_is_written_and_replaced(tmp_path):
    path = tmp_path / "new" / "table.csv"
    result(tmp_path, ROW, ROW).write_table(path)
    first, second = read(path)
    assert first == second
    assert tuple(first) == tuple(ROW)
    assert float(first["metric_value"]) == ROW["metric_value"]  # to the last digit
    assert (first["best_c"], first["untrained"], first["method"]) == ("", "true", "floor/knn")
    result(tmp_path, ROW).write_table(path)
    assert len(read(path)) == 1
    assert [entry.name for entry in path.parent.iterdir()] == ["table.csv"]


@pytest.mark.parametrize("text", ["a,b", 'says "no"', "\udcff"])
def test_any_text_can_be_written(tmp_path, text):
    path = tmp_path / "table.csv"
    result(tmp_path, {"error": text, "method": "mlp"}).write_table(path)
    assert read(path) == [
        {"error": text.encode(errors="backslashreplace").decode(), "method": "mlp"}
    ]


def test_where_no_table_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError):
        result(tmp_path, ROW).write_table(tmp_path / "file" / "table.csv")


def test_failed_cells_are_listed(tmp_path):
    assert failed_cells(tmp_path) == []
    (tmp_path / "failed").mkdir()
    for name, cell in (("b.json", "vit"), ("a.json", "mlp"), (".c.json", "half-written")):
        (tmp_path / "failed" / name).write_text(json.dumps({"cell": cell, "error": "no memory"}))
    assert failed_cells(tmp_path) == [("mlp", "no memory"), ("vit", "no memory")]
    (tmp_path / "failed" / "a.json").write_text("{")
    assert [name for name, _ in failed_cells(tmp_path)] == ["a", "vit"]
