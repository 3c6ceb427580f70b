"""A case study from the images to the page: resumed after every step, and refused where it would mix what differs."""

import json
import os
import re
import shutil
import signal
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

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
from samtl.encoders.weights.checkpoints import Official
from samtl.errors import InputError, MismatchError, ResourceError, UnknownName
from samtl.registry import names
from samtl.report.load import read_comparisons
from samtl.report.page import Part, Section
from samtl.report.pictures.album import Album
from samtl.report.pictures.images import panels
from samtl.splits.spec import parse_many
from samtl.study import CASES, Step, reproduce
from samtl.sweep.api import DEFAULT_HEADS, Progress

pytestmark = pytest.mark.usefixtures("one_thread")

FEW = {
    "eurosat": {"quick_splits": ("0.25", "0.5"), "baselines": ("floor", "vgg19")},
    "roads": {"quick_splits": ("0.25", "label:0.5@0.25"), "baselines": ("floor",)},
    "DEFAULT_HEADS": {"classification": ("mlp",), "segmentation": ("conv",)},
    "SEEDS": 2,
    "QUICK_SEEDS": 1,
}


def scenes(n=16, per_scene=4, parts=()):
    """Images with masks, some of each scene."""
    groups = tuple(f"scene{i // per_scene}" for i in range(n))
    return replace(blobs(n), groups=groups, parts=parts)


@contextmanager
def sighted(size=64, **changed):
    """Stubs whose features tell what is in an image, and studies with fewer models, splits, seeds and figures."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in (FEW | changed).items():
            if key in CASES:
                patch.setitem(CASES, key, replace(CASES[key], **FEW[key] | value))
            else:
                patch.setattr(reproducing, key, value)
        section = Section("Findings", [Part("scores", "Scores", "", [{"model": "mlp"}])])
        patch.setattr("samtl.report.api._chapter", lambda *_: [section])
        yield stubs.install(stubs.SeeingEncoders(size), patch.setattr)


def quick(study, dataset, out, **options):
    told = []
    options |= {"quick": True, "params": {"mlp" if study == "eurosat" else "conv": {"epochs": 1}}}
    return reproduce(study, dataset=dataset, out=out, on_event=told.append, **options), told


@pytest.fixture(scope="module")
def classified(one_thread, tmp_path_factory):
    """A quick study of labelled images, and what it told."""
    with sighted():
        return quick("eurosat", stripes(30), tmp_path_factory.mktemp("made") / "study")


def steps(told):
    return [event for event in told if isinstance(event, Step)]


def test_one_folder_holds_store_sweep_and_report_whose_commands_are_told(classified):
    result, told = classified
    places = [result.embed.store.parent, result.sweep.out, result.report.folder]
    assert places == [result.out / name for name in ("store", "sweep", "report")]
    assert {*result.out.iterdir()} == {*places}
    arrays = {*samtl.open(result.embed.store).arrays}
    assert arrays & {"pooled", "grid", "dense"} == {"pooled", "grid"}
    assert result.sweep.failed == {}
    assert result.report.runs == result.sweep.done == 2 * 2
    json.dumps(result.to_json())
    embed, sweep, report = steps(told)
    at = [told.index(step) for step in (embed, sweep, report)]
    for kind, begin, end in zip([Plan, Progress, str], at, [*at[1:], len(told)], strict=True):
        places = [i for i, event in enumerate(told) if isinstance(event, kind)]
        assert begin < min(places) < end
    assert "--tiers pooled,grid --per-class 10" in embed.command
    assert "--heads mlp --splits 0.25,0.5 --seeds 1 --baselines floor" in sweep.command
    assert "--set mlp.epochs=1" in sweep.command
    assert report.command.startswith(f"samtl report {result.out / 'sweep'} --dataset stripes")
    assert not re.search("None|auto|jobs", embed.command + sweep.command + report.command)
    (note,) = result.notes
    facts = r"per_class 10.* 0\.25, 0\.5.* seeds 1.* tiny.* 0\.1, 0\.2, 0\.3.* seeds 2.* vgg19"
    assert re.search(facts, note)
    assert Note(note) in told


def test_a_study_of_masks_holds_whole_scenes_out_and_shows_masks(tmp_path):
    with sighted():
        result, _ = quick("roads", scenes(), tmp_path / "study")
    assert result.sweep.failed == {}
    assert {row["method"].partition("/")[0] for row in result.sweep.rows} == {"conv", "floor"}
    splits = {(row["split"], row["split_name"]) for row in result.sweep.rows}
    assert splits == {("0.25", "grouped"), ("label:0.5@0.25", "grouped-label")}
    album = Album(scenes())
    assert len(panels(*read_comparisons([result.out]), album)) == 1
    assert album.notes == []  # masks are those that runs were scored with


def test_it_goes_on_where_it_was_and_other_embeddings_are_refused(classified, tmp_path):
    """What is lost is done again, and nothing else."""
    out, data = shutil.copytree(classified[0].out, tmp_path / "study"), stripes(30)
    other_ids = tuple(f"x{name}" for name in data.sample_ids)
    read = lambda name: data.read(name[1:])  # noqa: E731
    before = stubs.contents(out)
    with sighted() as encoders:
        for other in ({"encoder": "sam_vit_b"}, {"checkpoint": "random:7"}):
            with pytest.raises(InputError, match=r"holds a study of .* choose another folder"):
                quick("eurosat", data, out, **other)
        with pytest.raises(MismatchError):
            quick("eurosat", replace(data, sample_ids=other_ids, read=read), out)
        assert stubs.contents(out) == before
        lost, *kept = sorted((out / "sweep" / "cells").iterdir())
        shutil.rmtree(lost)
        shutil.rmtree(out / "report")
        before = {path: stubs.contents(path, hidden=False) for path in [out / "store", *kept]}
        result, _ = quick("eurosat", data, out)
    assert encoders.images == 0
    assert (result.embed.encoded, result.sweep.done, result.sweep.skipped) == (0, 1, 3)
    assert {path: stubs.contents(path, hidden=False) for path in before} == before
    assert result.report.runs == 4


def test_vgg19_takes_part_where_there_are_weights(tmp_path, monkeypatch):
    away = replace(vgg19.OFFICIAL, url="http://127.0.0.1:9/vgg19.pth")
    monkeypatch.setattr(vgg19, "OFFICIAL", away)
    monkeypatch.setenv("SAMTL_WEIGHTS", str(tmp_path / "weights"))
    given = {"study": "eurosat", "dataset": stripes(30), "out": tmp_path / "study"}
    with sighted(eurosat={"splits": ("0.5",)}):
        result = reproduce(**given, should_stop=lambda: True)
        assert result.embed.plan.encoder == "sam_vit_b"
        (note,) = result.notes
        assert "vgg19 is left out: could not download" in note
        assert reproduce(**given, vgg19=None, should_stop=lambda: True).notes == ()
        told, sweep = [], Mock(side_effect=KeyboardInterrupt)
        monkeypatch.setattr(reproducing, "sweep", sweep)
        with pytest.raises(KeyboardInterrupt):
            reproduce(**given, vgg19="random:0", device="cpu", on_event=told.append)
    asked = sweep.call_args.kwargs
    assert asked["baselines"] == ["floor", "vgg19"]
    assert asked["params"]["vgg19"] == {"checkpoint": "random:0", "device": "cpu"}
    assert "--set vgg19.checkpoint=random:0 --set vgg19.device=cpu" in steps(told)[-1].command


def test_what_cannot_be_split_off_is_left_out(tmp_path):
    """Three scenes: one to train on, one to validate, one to hold out, and no more."""
    splits = ("0.25", "label:0.5@0.25", "0.75")
    with sighted(roads={"quick_splits": splits, "baselines": ()}):
        result, _ = quick("roads", scenes(12), tmp_path / "three")
        for split, note in zip(splits[1:], result.notes[1:], strict=True):
            assert f"the split {split} is left out" in note
        assert {row["split"] for row in result.sweep.rows} == {"0.25"}
        with pytest.raises(InputError, match="cannot be split"):
            quick("roads", scenes(8, 8), tmp_path / "one")


def test_every_name_and_split_of_a_study_is_one():
    for case in CASES.values():
        assert set(case.baselines) <= set(names("baselines"))
        assert case.dataset in names("datasets")
        for specs in (case.splits, case.quick_splits, case.shipped, case.quick_shipped):
            assert [p.text for p in parse_many(",".join(specs or ("0.2",)))]
        assert set(case.quick_splits) <= set(case.splits)
        assert set(case.quick_shipped) <= set(case.shipped)
        assert case.task in DEFAULT_HEADS
    parts = ("train",) * 8 + ("validation",) * 4 + ("test",) * 4
    assert CASES["roads"].planned(scenes(parts=parts), False)[-1] == "shipped"
    assert CASES["roads"].planned(scenes(), False)[0] == "0.25"
    shipped = replace(stripes(16), parts=parts)
    assert CASES["eurosat"].planned(shipped, False) == tuple(f"0.{i}" for i in range(1, 10))


def test_arguments_that_are_wrong_leave_nothing_behind(tmp_path, run, monkeypatch):
    out = tmp_path / "study"
    with pytest.raises(UnknownName, match="did you mean eurosat"):
        reproduce("eurosta", out=out)
    with pytest.raises(InputError, match="name another --dataset, or reproduce roads"):
        reproduce("eurosat", dataset="synthetic-roads:6", out=out)
    with pytest.raises(InputError, match="no such file"):
        reproduce("eurosat", dataset="synthetic:2", encoder="tiny", vgg19="gone.pth", out=out)
    code, output, errors = run("reproduce", "roads", "--out", out)
    assert (code, output) == (2, "")
    assert "with --root" in errors
    assert not out.exists()
    away = Official("http://127.0.0.1:9/sam.pth", 1, "0" * 64)
    variant = replace(sam.VARIANTS["sam_vit_b"], official=away)
    monkeypatch.setitem(sam.VARIANTS, "sam_vit_b", variant)
    monkeypatch.setenv("SAMTL_WEIGHTS", str(tmp_path / "weights"))
    with pytest.raises(ResourceError, match=r"could not download .* --checkpoint random:0"):
        reproduce("eurosat", dataset="synthetic:2", vgg19=None, out=out)
    assert not (out / "sweep").exists()


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def test_the_command_draws_every_step_under_its_own(run, monkeypatch):
    """Interrupted in the pass, then in the sweep, the same command goes on."""
    command = ["reproduce", "eurosat", "--dataset", "synthetic:4", "--quick", "--jobs", 1]
    command += ["--image-size", 128, "--json", "told.json"]
    shown = Board.tell
    with sighted() as encoders:
        encoders.before_batch = lambda pixels: encoders.images == 2 and interrupt()
        code, output, errors = run(*command)
        assert code == 130
        assert "16 of 32 rows" in output
        assert "samtl sweep" not in output
        told = json.loads(Path("told.json").read_text())
        assert (told["embed"]["interrupted"], told["sweep"], told["report"]) == (True, None, None)
        assert [path.name for path in Path("eurosat-quick").iterdir()] == ["store"]
        with monkeypatch.context() as patch:
            told = lambda b, e: interrupt() if e.what == "done" else shown(b, e)  # noqa: E731
            patch.setattr(Board, "tell", told)
            code, output, errors = run(*command)
        assert code == 130
        assert "resumes" in output + errors
        code, output, errors = run(*command)
    assert (code, encoders.images) == (0, 32)
    told = json.loads(Path("told.json").read_text())
    assert told["embed"]["missing"] == told["embed"]["encoded"] == 0
    assert samtl.open(told["embed"]["store"]).identity["image_size"] == 128
    assert (told["sweep"]["done"], told["sweep"]["skipped"]) == (3, 1)
    lines = r"a quick study: .*samtl embed --dataset synthetic:4 --encoder tiny --image-size 128.*"
    lines += r"untrained \(random:0\).*32 rows are in eurosat-quick/store.*"
    lines += r"samtl sweep --cache eurosat-quick/store.*samtl report eurosat-quick/sweep.*"
    assert re.search(lines + "page: eurosat-quick/report/index.html", output, re.DOTALL)


def test_the_command_ends_with_1_where_something_failed(run, folder):
    """A grid of 1 x 1 is too small for conv; an image is none."""
    args = ("reproduce", "eurosat", "--dataset", f"folder:{folder}", "--quick", "--jobs", 1)
    few, heads = {"quick_splits": ("0.5",)}, {"classification": ("logreg", "conv")}
    with sighted(size=16, DEFAULT_HEADS=heads, eurosat=few):
        code, output, _ = run(*args, "--out", "failed")
    assert code == 1
    assert "1 cells failed" in output
    assert "page: failed/report/index.html" in output
    (folder / "field" / "none.png").write_bytes(b"no image")
    (folder / "town" / "more.png").write_bytes((folder / "town" / "0.png").read_bytes())
    with sighted(eurosat=few):
        code, output, _ = run(*args, "--out", "bad")
    assert code == 1
    assert "quarantined" in output
    assert Path("bad/report/index.html").is_file()
