"""A case study from the images to the page: resumed after every step, and refused where it would mix what differs."""

import dataclasses
import json
import os
import re
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import stubs
from samtl.cli.board import Board
from toys import blobs, stripes

import samtl
from samtl import study as reproducing
from samtl._runtime import Note
from samtl.baselines import vgg19
from samtl.embed.plan import Plan
from samtl.encoders import sam
from samtl.encoders.checkpoints import Official
from samtl.errors import (
    InputError,
    MismatchError,
    ResourceError,
    UnknownName,
)
from samtl.registry import names
from samtl.report.load import read_comparisons
from samtl.splits.spec import parse_many
from samtl.study import CASES, Step, reproduce
from samtl.sweep.api import DEFAULT_HEADS, Progress

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = {name: {"epochs": 1} for name in ("mlp", "conv", "vit", "cnn")}
SHORT_MASKS = {"conv": {"epochs": 1}, "vit": {"epochs": 1}, "unet": {"epochs": 1, "image_size": 32}}


def scenes(n=24, per_scene=4, parts=()):
    """Images with masks, some of each scene."""
    groups = tuple(f"scene{i // per_scene}" for i in range(n))
    return dataclasses.replace(blobs(n), groups=groups, parts=parts)


@contextmanager
def sighted(size, **changed):
    """Stubs whose features tell what is in an image, and studies with fewer splits and seeds."""
    with pytest.MonkeyPatch.context() as patch:
        for name, case in CASES.items():
            patch.setitem(CASES, name, dataclasses.replace(case, **changed.get(name, {})))
        for name in ("SEEDS", "QUICK_SEEDS", "DEFAULT_HEADS"):
            if name in changed:
                patch.setattr(reproducing, name, changed[name])
        yield stubs.install(stubs.SeeingEncoders(size), patch.setattr)


def whole(study, dataset, out, params, **options):
    told = []
    result = reproduce(
        study, dataset=dataset, out=out, params=params, quick=True, on_event=told.append, **options
    )
    return result, told


GRID = 64  # pixels of an image


def test_another_image_size(tmp_path):
    told = []
    few = {"quick_splits": ("0.5",), "baselines": ()}
    with sighted(GRID, eurosat=few, QUICK_SEEDS=1, DEFAULT_HEADS={"classification": ("logreg",)}):
        result = reproduce(
            "eurosat",
            dataset=stripes(60),
            out=tmp_path / "study",
            quick=True,
            image_size=128,
            on_event=told.append,
        )
    assert samtl.open(result.embed.store).identity["image_size"] == 128
    (step,) = [event for event in told if isinstance(event, Step) and event.name == "embed"]
    assert "--image-size 128" in step.command


FEW = {"eurosat": {"quick_splits": ("0.2", "0.5")}, "SEEDS": 2, "QUICK_SEEDS": 1}


@pytest.fixture(scope="module")
def classified(one_thread, tmp_path_factory):
    """A quick study of labelled images, and what it told."""
    with sighted(GRID, **FEW):
        return whole("eurosat", stripes(30), tmp_path_factory.mktemp("made") / "study", SHORT)


@pytest.fixture(scope="module")
def segmented(one_thread, tmp_path_factory):
    """A quick study of images with masks."""
    with sighted(64, QUICK_SEEDS=1):
        return whole("roads", scenes(16), tmp_path_factory.mktemp("made") / "study", SHORT_MASKS)


def models(sweep):
    return {row["method"].partition("/")[0] for row in sweep.rows}


def test_one_folder_holds_store_sweep_and_report(classified):
    result, _ = classified
    assert result.embed.store.parent == result.out / "store"
    assert (result.sweep.out, result.report.folder) == (result.out / "sweep", result.out / "report")
    assert {p.name for p in result.out.iterdir()} == {"store", "sweep", "report"}
    assert set(samtl.open(result.embed.store).arrays) >= {"pooled", "grid"}
    assert "dense" not in samtl.open(result.embed.store).arrays
    assert result.sweep.failed == {}
    assert result.report.runs == result.sweep.done == 2 * 6
    assert models(result.sweep) == {"logreg", "mlp", "conv", "vit", "floor", "cnn"}
    page = result.report.page.read_text(encoding="utf-8")
    assert 'id="section-images"' in page


def test_the_steps_are_told_in_their_order_with_their_commands(classified):
    result, told = classified
    steps = [event for event in told if isinstance(event, Step)]
    assert [step.name for step in steps] == ["embed", "sweep", "report"]
    at = [told.index(step) for step in steps]
    kinds = [Plan, Progress, str]
    for kind, begin, end in zip(kinds, at, [*at[1:], len(told)], strict=True):
        assert any(isinstance(event, kind) for event in told[begin:end])
        assert not any(isinstance(event, kind) for event in told[:begin])
    assert "--tiers pooled,grid --per-class 10" in steps[0].command
    assert "--splits 0.2,0.5 --seeds 1 --baselines floor,cnn" in steps[1].command
    assert "--set mlp.epochs=1" in steps[1].command
    assert steps[2].command.startswith(f"samtl report {result.out / 'sweep'} --dataset stripes")
    assert not re.search("None|auto|jobs", " ".join(step.command for step in steps))


def test_a_quick_study_says_what_it_left_out(classified, segmented):
    (note,) = classified[0].notes
    for told in ("0.2, 0.5 of 0.1, 0.2", "1 of 2 seeds", "not the baseline vgg19", "tiny"):
        assert told in note
    assert "images" not in note  # all were taken
    assert next(str(event) for event in classified[1] if isinstance(event, Note)) == note
    assert "vgg19" not in segmented[0].notes[0]


def test_a_study_of_masks_holds_whole_scenes_out(segmented):
    result, _ = segmented
    assert models(result.sweep) == {"conv", "vit", "floor", "unet"}
    assert {row["split"] for row in result.sweep.rows} == {"0.25", "label:0.5@0.25"}
    assert {row["split_name"] for row in result.sweep.rows} == {"grouped", "grouped-label"}
    assert result.sweep.failed == {}
    assert result.report.missing == ()
    assert len(read_comparisons([result.out])) == 1


@pytest.fixture
def again(classified, tmp_path):
    """A copy of the study, and the function that goes on with it."""
    out = shutil.copytree(classified[0].out, tmp_path / "study")
    return out, lambda **options: whole("eurosat", stripes(30), out, SHORT, **options)


def test_it_goes_on_where_it_was(again):
    """What is lost is done again, and nothing else."""
    out, go_on = again
    lost, *kept = sorted((out / "sweep" / "cells").iterdir())
    shutil.rmtree(lost)
    shutil.rmtree(out / "report")
    before = {path: stubs.contents(path, hidden=False) for path in [out / "store", *kept]}
    with sighted(GRID, **FEW) as encoders:
        result, _ = go_on()
    assert encoders.images == 0
    assert (result.embed.encoded, result.sweep.done, result.sweep.skipped) == (0, 1, 11)
    assert {path: stubs.contents(path, hidden=False) for path in before} == before
    assert result.report.page.is_file()
    assert result.to_json()["report"]["runs"] == 12


def test_it_goes_on_after_a_pass_that_was_stopped(tmp_path):
    asked, params = [], {"mlp": {"epochs": 1}}
    given = ("eurosat", stripes(40), tmp_path / "study", params)
    changed = {"eurosat": {"baselines": (), "quick_splits": ("0.2",)}, "QUICK_SEEDS": 1}
    with sighted(64, **changed, DEFAULT_HEADS={"classification": ("mlp",)}):
        result, told = whole(*given, should_stop=lambda: len(asked) > 1 or asked.append(0))
        assert result.embed.interrupted
        assert (result.sweep, result.report) == (None, None)
        assert [event.name for event in told if isinstance(event, Step)] == ["embed"]
        assert result.to_json()["sweep"] is None
        assert {path.name for path in result.out.iterdir()} == {"store"}
        left = result.embed.missing
        assert 0 < left < result.embed.rows
        result, _ = whole(*given)
    assert result.embed.encoded == left
    assert result.sweep.done == result.report.runs == 1


def test_other_embeddings_are_refused_before_anything_is_done(again):
    out, go_on = again
    before = stubs.contents(out)
    with sighted(GRID, **FEW):
        for other in ({"encoder": "sam_vit_b"}, {"checkpoint": "random:7"}):
            with pytest.raises(InputError, match=r"holds a study of .* choose another folder"):
                go_on(**other)
        same = stripes(30)
        others = dataclasses.replace(
            same,
            sample_ids=tuple(f"x{name}" for name in same.sample_ids),
            read=lambda name: same.read(name[1:]),
        )
        with pytest.raises(MismatchError):
            whole("eurosat", others, out, SHORT)
    assert stubs.contents(out) == before


def test_vgg19_takes_part_where_there_are_weights(tmp_path, monkeypatch):
    away = dataclasses.replace(vgg19.OFFICIAL, url="http://127.0.0.1:9/vgg19.pth")
    monkeypatch.setattr(vgg19, "OFFICIAL", away)
    monkeypatch.setenv("SAMTL_WEIGHTS", str(tmp_path / "weights"))
    changed = {"eurosat": {"splits": ("0.5",), "baselines": ("vgg19",)}, "SEEDS": 1}
    given = {
        "dataset": stripes(30),
        "out": tmp_path / "study",
        "params": {"vgg19": {"image_size": 32}},
    }
    with sighted(64, **changed, DEFAULT_HEADS={"classification": ("logreg",)}):
        result = reproduce("eurosat", **given, should_stop=lambda: True)
        assert result.embed.plan.encoder == "sam_vit_b"
        (note,) = result.notes
        assert "vgg19 is left out: could not download" in note
        assert reproduce("eurosat", **given, vgg19=None, should_stop=lambda: True).notes == ()
        told = []
        result = reproduce("eurosat", **given, vgg19="random:0", device="cpu", on_event=told.append)
    assert result.notes == ()
    assert models(result.sweep) == {"logreg", "vgg19"}
    assert result.sweep.failed == {}
    (command,) = (e.command for e in told if isinstance(e, Step) and e.name == "sweep")
    assert "--set vgg19.checkpoint=random:0 --set vgg19.device=cpu" in command
    assert "vgg19" in result.report.warnings[0]  # untrained


def test_a_shipped_split_is_used_where_there_is_one():
    case = CASES["roads"]
    parts = ("train",) * 16 + ("validation",) * 4 + ("test",) * 4
    assert case.planned(scenes(parts=parts), False)[-1] == "shipped"
    assert case.planned(scenes(), False)[0] == "0.25"
    assert CASES["eurosat"].planned(dataclasses.replace(stripes(24), parts=parts), False) == (
        tuple(f"0.{i}" for i in range(1, 10))
    )


def test_what_cannot_be_split_off_is_left_out(tmp_path):
    """Three scenes: one to train on, one to validate, one to hold out, and no more."""
    splits = ("0.25", "label:0.5@0.25", "0.75")
    changed = {"roads": {"quick_splits": splits, "baselines": ()}, "QUICK_SEEDS": 1}
    params = {"conv": {"epochs": 1}}
    with sighted(64, **changed, DEFAULT_HEADS={"segmentation": ("conv",)}):
        result, _ = whole("roads", scenes(12), tmp_path / "three", params)
        assert len(result.notes) == 3
        assert result.notes[1].endswith(
            "label:0.5@0.25 is left out: with these images it is the same as 0.25"
        )
        assert result.notes[2].startswith("the split 0.75 is left out")
        assert {row["split"] for row in result.sweep.rows} == {"0.25"}
        with pytest.raises(InputError, match="cannot be split"):
            whole("roads", scenes(8, 8), tmp_path / "one", params)


def test_every_name_and_split_of_a_study_is_one():
    for case in CASES.values():
        assert set(case.baselines) <= set(names("baselines"))
        assert case.dataset in names("datasets")
        for specs in (case.splits, case.quick_splits, case.shipped, case.quick_shipped):
            assert [p.text for p in parse_many(",".join(specs or ("0.2",)))]
        assert set(case.quick_splits) <= set(case.splits)
        assert set(case.quick_shipped) <= set(case.shipped)
        assert case.task in DEFAULT_HEADS


def test_arguments_that_are_wrong_leave_nothing_behind(tmp_path):
    out = tmp_path / "study"
    with pytest.raises(UnknownName, match="did you mean eurosat"):
        reproduce("eurosta", out=out)
    with pytest.raises(InputError, match="name another --dataset, or reproduce roads"):
        reproduce("eurosat", dataset="synthetic-roads:6", out=out)
    with pytest.raises(InputError, match="roads cannot be downloaded"):
        reproduce("roads", out=out)
    with pytest.raises(InputError, match="no such file"):
        reproduce("eurosat", dataset="synthetic:2", encoder="tiny", vgg19="gone.pth", out=out)
    assert not out.exists()


def test_weights_that_cannot_be_had_are_not_replaced(tmp_path, monkeypatch):
    away = Official("http://127.0.0.1:9/sam.pth", 1, "0" * 64)
    variant = dataclasses.replace(sam.VARIANTS["sam_vit_b"], official=away)
    monkeypatch.setitem(sam.VARIANTS, "sam_vit_b", variant)
    monkeypatch.setenv("SAMTL_WEIGHTS", str(tmp_path / "weights"))
    with pytest.raises(ResourceError, match=r"could not download .* --checkpoint random:0"):
        reproduce("eurosat", dataset="synthetic:2", vgg19=None, out=tmp_path / "study")
    assert not (tmp_path / "study" / "sweep").exists()


POOLED = {
    "eurosat": {"quick_splits": ("0.25", "0.5"), "baselines": ("floor",)},
    "QUICK_SEEDS": 1,
    "DEFAULT_HEADS": {"classification": ("logreg", "mlp")},
}
COMMAND = ("reproduce", "eurosat", "--dataset", "synthetic:4", "--quick", "--jobs", 1)


def test_the_command_draws_every_step_under_its_own(run, monkeypatch):
    """Interrupted in the pass, then in the sweep, the same command goes on."""
    shown = Board.tell

    def interrupt(*_):
        os.kill(os.getpid(), signal.SIGINT)

    with sighted(64, **POOLED) as encoders:
        encoders.before_batch = lambda pixels: encoders.images == 2 and interrupt()
        code, output, errors = run(*COMMAND)
        assert code == 130
        assert "16 of 32 rows" in output
        with monkeypatch.context() as patch:
            patch.setattr(
                Board, "tell", lambda b, e: interrupt() if e.what == "done" else shown(b, e)
            )
            code, output, errors = run(*COMMAND)
        assert code == 130
        assert "resumes" in output + errors
        code, output, errors = run(*COMMAND, "--json", "told.json")
    assert code == 0
    told = json.loads(Path("told.json").read_text())
    assert told["embed"]["missing"] == told["embed"]["encoded"] == 0
    assert (told["sweep"]["done"], told["sweep"]["skipped"]) == (5, 1)
    places = [output.index(line) for line in (
        "a quick study: ", "samtl embed --dataset synthetic:4 --encoder tiny", "untrained (random:0)",
        "32 rows are in eurosat-quick/store", "samtl sweep --cache eurosat-quick/store",
        "samtl report eurosat-quick/sweep", "page: eurosat-quick/report/index.html",
    )]  # fmt: skip
    assert places == sorted(places)


def test_the_command_ends_with_1_where_something_failed(run, folder):
    """A grid of 1 x 1 is too small for conv; an image is none."""
    args = ("reproduce", "eurosat", "--dataset", f"folder:{folder}", "--quick", "--jobs", 1)
    changed = POOLED | {"DEFAULT_HEADS": {"classification": ("logreg", "conv")}}
    with sighted(16, **changed):
        code, output, _ = run(*args, "--out", "failed")
    assert code == 1
    assert "2 cells failed" in output
    assert "page: failed/report/index.html" in output
    for number in range(12):
        (folder / "town" / f"more{number}.png").write_bytes(b"no image" * (number == 0))
    (folder / "field" / "none.png").write_bytes(b"no image")
    with sighted(64, **POOLED):
        code, output, _ = run(*args, "--out", "bad")
    assert code == 1
    assert "quarantined" in output
    assert Path("bad/report/index.html").is_file()


def test_the_command_refuses_in_one_line(run):
    for args, told in (
        (("eurosta",), "did you mean eurosat"),
        (("roads",), "with --root"),
        (("roads", "--dataset", "synthetic:4"), "reproduce eurosat"),
    ):
        code, output, errors = run("reproduce", *args)
        assert (code, output) == (2, "")
        assert told in errors
