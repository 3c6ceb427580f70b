"""Paired figures are medians, and the first round, which warms up, does not count."""

import json

import pytest

from benchmarks.paired import Row, against, alone, alternating, machine, paired, to_json
from samtl._runtime import probe


def test_medians_of_both_sides_without_the_first_round():
    ours, theirs = iter([99.0, 10.0, 30.0, 20.0]), iter([1.0, 5.0, 5.0, 40.0])
    row = paired("a", "samples/s", lambda: next(ours), "plain", lambda: next(theirs), rounds=3)
    assert row == Row("a", 20.0, "samples/s", "plain", 2.0, (0.5, 6.0))  # ratios 2, 6, 0.5


def test_several_sides_take_turns():
    order = []
    sides = {name: lambda name=name: float(order.append(name) or len(order)) for name in "abc"}
    values = alternating(sides, rounds=2)
    assert "".join(order) == "abccbaabc"
    assert values == {"a": [6.0, 7.0], "b": [5.0, 8.0], "c": [4.0, 9.0]}
    assert alone("a", "s", values["a"]) == Row("a", 6.5, "s", spread=(6.0, 7.0))
    row = against("a", "s", values["a"], "c", values["c"])
    assert (row.vs, row.ratio) == ("c", pytest.approx((6 / 4 + 7 / 9) / 2))


def test_a_round_beside_other_load_is_told(monkeypatch, caplog):
    loads = iter([0.0, 1.5])
    monkeypatch.setattr(probe, "busy_elsewhere", lambda: lambda: next(loads))
    alternating({"a": lambda: 1.0}, rounds=2)
    assert [record.args for record in caplog.records] == [(2, 2, 1.5)]


def test_what_is_written_is_json():
    content = json.loads(json.dumps(to_json([Row("waiting", 0.1, "share")])))
    assert content["rows"] == [
        {"name": "waiting", "value": 0.1, "unit": "share", "vs": "", "ratio": None, "spread": None}
    ]
    assert content["machine"].keys() == machine().keys()
    assert content["machine"]["cores"] == pytest.approx(machine()["cores"])
