"""A batch is encoded before a pass: its time is told, and a pass that would come to nothing does not begin."""

import math
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stubs import everything, toy_dataset

from samtl import registry
from samtl.datasets import Dataset
from samtl.embed import api, devices, trial
from samtl.embed.copies import count_copies
from samtl.embed.plan import EmbedConfig, Plan, prepare
from samtl.encoders import sam
from samtl.errors import InputError, MismatchError, ResourceError
from samtl.store.reader import open_store

LOAD = registry.load


@pytest.fixture(autouse=True)
def timed_stubs(encoders, monkeypatch):
    monkeypatch.setattr(api, "timed", trial.timed)


def embed(dataset, **options):
    return api.embed(dataset, "stub", out="a.zarr", device="cpu", **options)


def plan(dataset, **options):
    return api.plan(dataset, "stub", out="a.zarr", device="cpu", **options)


def test_the_time_is_known_before_the_pass(encoders, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    encoders.seconds, events = 0.02, []
    dataset = toy_dataset(40, bad={7: "empty"})
    planned = plan(dataset, batch_size=5)
    assert planned.seconds > 40 * 0.02
    assert planned.memory > 10 * 2**20
    assert (encoders.images, Path("a.zarr").exists()) == (6, False)  # twice, since it is fast
    result = embed(dataset, batch_size=5, on_event=events.append)
    assert isinstance(events[0], Plan)
    assert events[0].seconds > 40 * 0.02
    assert encoders.images == 6 + 6 + 39 - 3  # what was tried is not encoded again
    assert (result.missing, result.plan.seconds) == (0, events[0].seconds)
    assert plan(dataset).seconds == 0
    assert encoders.images == 48
    monkeypatch.setattr(api, "timed", lambda job, encoder: job)
    untried = api.embed(dataset, "stub", out="b.zarr", device="cpu", batch_size=7)
    rows = [everything(open_store(one.store)) for one in (result, untried)]
    assert rows[0] == rows[1]
    assert result.quarantined == untried.quarantined


def test_an_image_that_the_trial_found_bad_is_put_aside(encoders, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    encoders.spoil = lambda outputs: outputs["pooled"].__setitem__((0, 1), np.nan)
    found = embed(toy_dataset(3), batch_size=8)
    assert [one.code for one in found.quarantined] == ["nonfinite"]
    assert encoders.images == 2 * 3


@pytest.mark.parametrize("rows", [9, 150])
def test_a_pass_of_which_no_image_can_be_used_does_not_begin(rows):
    kinds = ["not_an_image", "not_an_image", "empty"]
    dataset = toy_dataset(rows, bad={i: kinds[i % 3] for i in range(rows)})
    dataset.read.asked.clear()
    for verb in (plan, embed):
        with pytest.raises(
            InputError, match=r"\d+ are not_an_image, such as .*convert or remove it"
        ):
            verb(dataset)
    assert not Path("a.zarr").exists()
    with pytest.raises(ResourceError, match="can be read"):
        embed(toy_dataset(rows, bad=dict.fromkeys(range(rows), "unreadable")))
    # One that can be used is enough, and a store that has rows goes on.
    few = toy_dataset(9, bad=dict.fromkeys(range(8), "empty"))
    assert len(embed(few).quarantined) == 8
    worse = toy_dataset(12, bad=dict.fromkeys([*range(8), 9, 10, 11], "empty"))
    assert len(embed(worse).quarantined) == 11


def test_an_encoder_that_gives_nan_makes_no_store(encoders):
    encoders.spoil = lambda outputs: [array.fill(np.nan) for array in outputs.values()]
    with pytest.raises(InputError, match="NaN or infinity"):
        embed(toy_dataset(20))
    assert not Path("a.zarr").exists()


def test_weights_that_are_not_here_are_replaced_by_random_ones_for_a_plan(monkeypatch):
    monkeypatch.setattr(registry, "load", LOAD)
    monkeypatch.setenv("SAMTL_WEIGHTS", "nowhere")
    monkeypatch.setitem(
        sam.VARIANTS,
        "tiny",
        replace(sam.VARIANTS["tiny"], official=sam.VARIANTS["sam_vit_b"].official),
    )
    options = {"image_size": 64, "device": "cpu", "out": "a.zarr", "checkpoint": "official"}
    found = api.plan(toy_dataset(8), "tiny", **options)
    assert re.search(r"sam_vit_b_01ec64.pth \(375 MB\)", found.weights_missing)
    assert (found.weights, found.seconds > 0) == ("official", True)
    assert list(Path().iterdir()) == []


def test_other_weights_than_those_of_the_store_are_found_by_a_plan():
    embed(toy_dataset(20))
    with pytest.raises(MismatchError, match="weights_sha256"):
        plan(toy_dataset(20), checkpoint="random:1")


def test_copies_are_counted_before_and_after_the_pass():
    dataset = toy_dataset(12)
    twice = [*dataset.sample_ids[:9], *dataset.sample_ids[:3]]
    files = dict(zip(dataset.sample_ids, map(dataset.read, twice), strict=True))
    dataset = replace(dataset, read=files.__getitem__, labels=(*dataset.labels[:10], 0, 0))
    planned, result = plan(dataset).copies, embed(dataset)
    assert (planned.compared, planned.copies, planned.relabelled) == (12, 3, 2)
    assert result.copies == plan(dataset).copies == planned
    assert count_copies("0111", ["a", "a", "", ""]) == count_copies("10", ["a", "a"])


def test_images_without_a_number_are_no_copies_with_another_label():
    """Fault: NaN is not NaN."""
    dataset = toy_dataset(6)
    same = replace(dataset, read=lambda name: dataset.read(dataset.sample_ids[0]))
    unknown = replace(same, classes=("height",), labels=(math.nan,) * 5 + (1.0,))
    planned, result = plan(unknown).copies, embed(unknown)
    assert (planned.copies, planned.relabelled) == (5, 1)
    assert result.copies == planned


def test_the_plan_reads_no_image_twice_and_stops_when_asked(monkeypatch):
    embed(toy_dataset(20))
    now = toy_dataset(23)
    gone = now.sample_ids[0]
    now = replace(now, sample_ids=now.sample_ids[1:], labels=now.labels[1:])
    monkeypatch.setattr(Dataset, "understood", lambda self: None)
    prepare(EmbedConfig(now, "stub", device="cpu", out="a.zarr"))
    assert sorted(now.read.asked) == sorted(set(now.read.asked))
    assert gone not in now.read.asked
    now.read.asked.clear()
    assert embed(now, should_stop=lambda: True).interrupted
    assert len(now.read.asked) < 20


def test_worker_processes_are_not_sent_what_was_tried(encoders, monkeypatch):
    sent = []

    def run_tasks(work, *given, **options):
        sent.extend(work.args)
        raise KeyboardInterrupt

    monkeypatch.setattr(devices, "run_tasks", run_tasks)
    with pytest.raises(KeyboardInterrupt):
        api.embed(toy_dataset(20), "stub", out="a.zarr", device="cpu,cpu")
    assert (encoders.images > 0, sent[0].tried, len(sent[0].pending)) == (True, {}, 0)


def test_a_tier_is_not_bad_because_another_one_is(encoders):
    encoders.spoil = lambda outputs: [
        array.put(0, np.nan) for array in [*outputs.get("pooled", [])]
    ]
    for tiers in (["pooled"], ["pooled", "grid"]):
        assert len(embed(toy_dataset(9), tiers=tiers).quarantined) == 9
    store = open_store("a.zarr")
    assert [bool(store.valid(tier).any()) for tier in ("pooled", "grid")] == [False, True]
    assert store.valid("grid").all()
