"""The table of a sweep as a file, and the cells that failed."""

import csv
import json

import pytest

from samtl.errors import ResourceError
from samtl.sweep.api import SweepResult
from samtl.sweep.results import failed_cells


@pytest.mark.parametrize("text", ["no memory", "a,b", 'says "no"', "\udcff"])
def test_a_table_is_written_and_replaced(tmp_path, text):
    path = tmp_path / "new" / "table.csv"
    row = {"error": text, "metric_value": 0.1 + 0.2, "best_c": None, "untrained": True}
    for n in (2, 1):
        SweepResult(tmp_path, 1, 0, {}, [row] * n, 1.0, ()).write_table(path)
        with path.open(newline="") as file:
            first, *others = csv.DictReader(file)
        assert others == [first] * (n - 1)
        assert tuple(first) == tuple(row)
        assert first["error"] == text.encode(errors="backslashreplace").decode()
        assert float(first["metric_value"]) == row["metric_value"]  # to the last digit
        assert (first["best_c"], first["untrained"]) == ("", "true")
    assert [entry.name for entry in path.parent.iterdir()] == ["table.csv"]
    with pytest.raises(ResourceError):
        SweepResult(tmp_path, 1, 0, {}, [row], 1.0, ()).write_table(path / "table.csv")


def test_failed_cells_are_listed(tmp_path):
    assert failed_cells(tmp_path) == []
    (tmp_path / "failed").mkdir()
    for name, cell in (("b.json", "vit"), ("a.json", "mlp"), (".c.json", "half-written")):
        (tmp_path / "failed" / name).write_text(json.dumps({"cell": cell, "error": "no memory"}))
    assert failed_cells(tmp_path) == [("mlp", "no memory"), ("vit", "no memory")]
    (tmp_path / "failed" / "a.json").write_text("{")
    assert [name for name, _ in failed_cells(tmp_path)] == ["a", "vit"]
