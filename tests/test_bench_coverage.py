"""95 % intervals cover the truth in at least nine of ten draws, which those of a plain bootstrap do not."""

import json

import numpy as np
import pytest

from benchmarks import coverage

NOISE = 0.03  # standard error of the share of 100 draws


@pytest.fixture
def population(monkeypatch):
    """Make a population that is small enough for a test; draws are with replacement, so that nothing is lost."""
    monkeypatch.setattr(coverage, "POPULATION", 4000)
    monkeypatch.setattr(coverage, "RESAMPLES", 40)
    monkeypatch.setattr(coverage, "SLOW_RESAMPLES", 2)
    made = dict(coverage.populations())
    return lambda name: made[name](np.random.default_rng(list(name.encode())))


@pytest.mark.parametrize(
    ("name", "n"),
    [
        ("60%", 120), ("98%", 30), ("99.9%", 120), ("100%", 10), ("two-classes", 10), ("rare-classes", 30),
        ("overconfident", 120), ("underconfident", 1000), ("scenes", 120), ("masks-good", 2), ("masks-middling", 4),
        ("masks-poor", 6), ("masks-mostly-perfect", 10), ("masks-some-empty", 2), ("masks-scenes", 60),
        ("pair-99.9%", 30), ("pair-rare-classes", 1000), ("pair-scenes", 120), ("pair-masks", 20),
        ("tags-1", 120), ("tags-3", 30), ("numbers-1", 120),
    ],
)  # fmt: skip
def test_intervals_cover(population, name, n):
    for metric, (ours, _) in coverage.covered(population(name), n, 100, 0).items():
        assert ours >= 0.9 - NOISE, metric


@pytest.mark.parametrize(
    ("name", "n", "metric"),
    [("98%", 30, "accuracy"), ("60%", 120, "ece"), ("masks-good", 2, "iou"), ("scenes", 120, "log_loss")],
)  # fmt: skip
def test_a_plain_bootstrap_does_not(population, name, n, metric):
    assert coverage.covered(population(name), n, 50, 0)[metric][1] < 0.8


def test_the_worst_population_is_told(run, monkeypatch, population, tmp_path):
    monkeypatch.setattr(coverage, "SAMPLES", (10,))
    arguments = [
        "--only",
        "98%,rare-classes",
        "--repeats",
        "5",
        "--json",
        str(tmp_path / "rows.json"),
    ]
    code, _, errors = run("bench", "coverage", *arguments)
    assert code == 0, errors
    rows = {row["name"]: row for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    accuracy = rows["accuracy/10"]
    assert accuracy["value"] == accuracy["spread"][0] <= accuracy["spread"][1] <= 1
    assert rows["accuracy/10/bootstrap"]["value"] < accuracy["value"]
    code, _, errors = run("bench", "coverage", "--only", "rare-clases")
    assert code == 2
    assert "rare-classes" in errors
