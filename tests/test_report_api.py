"""Runs become a folder with a page and its figures; nothing that was there before is lost."""

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from itertools import accumulate, product
from types import SimpleNamespace
from unittest.mock import Mock

import pages
import pytest
from fake_runs import a_mask_run, a_run, read_csv, the_one
from markupsafe import escape
from PIL import Image
from toys import blobs, stripes

from samtl.errors import InputError, ResourceError
from samtl.report.api import MARKER, make_report, warnings_of
from samtl.report.figures import pass_seconds
from samtl.report.load import read_comparisons
from samtl.report.page import Section
from samtl.report.summary import summarise
from samtl.sweep.api import SweepResult

FIELDS = stripes(24)
NO_MARKERS = ["", "{", "[]", '{"files": ["a.txt"]}', '{"samtl_report": 1}']


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two models, two seeds, on labelled images."""
    out = tmp_path_factory.mktemp("runs")
    given = {"ids": FIELDS.sample_ids, "classes": FIELDS.classes, "dataset": "stripes"}
    for seed, name in product((0, 1), ("floor", "mlp")):
        a_run(out, name, seed, 0.5, given={"split": "0.5"}, **given)
    return out


@pytest.fixture(scope="module")
def both(runs, tmp_path_factory):
    """Runs that cannot be compared, and a whole report on them, with images."""
    folder, told = tmp_path_factory.mktemp("made"), []
    sources = [runs, a_mask_run(folder / "runs", "conv").parent]
    with pytest.MonkeyPatch.context() as patch:
        found = {"stripes": FIELDS, "blobs": blobs()}
        patch.setattr("samtl.report.api.resolve", lambda name, *_, **__: found[name])
        out = folder / "out" / "report"
        result = make_report(sources, out, on_event=told.append)
    assert told[0] == "reading runs"
    return result, sources


@pytest.fixture
def plain(monkeypatch):
    """Draw one small figure for whatever there is, where the folder is what matters."""
    section = Section("Result", [pages.chart(panels=1)])
    monkeypatch.setattr("samtl.report.api._chapter", lambda *_: [section])


def test_the_folder_holds_the_page_and_every_figure_in_each_format(both):
    result, _ = both
    page = result.page.read_text(encoding="utf-8")
    assert result.page == result.folder / "index.html"
    assert result.bytes == result.page.stat().st_size
    assert (result.studies, result.runs) == (2, 5)
    assert "embeddings of tiny" in " ".join(result.missing)  # whose stores are nowhere
    files = {path.name for path in (result.folder / "figures").iterdir()}
    assert page.count("<figure") == result.figures == sum(n.endswith(".png") for n in files)
    assert sum(n.endswith(".csv") for n in files) == result.figures + result.tables
    assert {part.split('"')[0] for part in page.split('href="figures/')[1:]} <= files
    with Image.open(result.folder / "figures" / "2-stripes-by-share-accuracy.png") as opened:
        assert min(opened.size) > 200
    assert [*result.folder.parent.iterdir()] == [result.folder]
    json.dumps(result.to_json())
    assert "data:image/webp" in page


def test_what_cannot_be_compared_stands_apart(both):
    result, _ = both
    page = result.page.read_text(encoding="utf-8")
    names = ["result", "scores", "classes", "calibration", "images", "training", "mistakes", "cost"]
    shown = (*(f"2-stripes-{name}" for name in (*names, "differences")), "1-blobs-masks")
    for name in (*shown, "1-blobs-failures", "1-blobs-differences", "2-stripes-masks"):
        assert (f'id="section-{name}"' in page) == (name in shown), name
    assert any("cannot be compared" in text for text in result.warnings)


def test_findings_are_in_words_and_in_a_table(both):
    result, _ = both
    (row,) = read_csv(result.folder / "figures" / "2-stripes-differences.csv")
    assert (row["model"], row["other model"]) == ("mlp", "floor (image statistics)")
    assert row["seeds"] == "2"
    assert float(row["low"]) <= float(row["difference, points"]) <= float(row["high"])
    best, floor, difference = result.lines[-3:]
    assert best.startswith("Best head: mlp, accuracy ")
    assert best.endswith(" images held out.")
    assert floor.startswith("Best floor: floor (image statistics)")
    assert row["in words"].split(" by ")[-1] in difference
    page = result.page.read_text(encoding="utf-8")
    assert "<li>Best head: <code>mlp</code>, accuracy" in page
    assert page.count("untrained") == 0


def test_copies_and_few_groups_are_told(tmp_path):
    fields = ({"copies_held_out": 3}, {"n_groups": 2}, {"n_groups": 9})
    for seed, some in enumerate(fields):
        a_run(tmp_path / "runs", "mlp", seed, **some)
    (comparison,) = read_comparisons([tmp_path / "runs"])
    _, copies, groups = warnings_of(comparison)
    assert copies.startswith("Up to 3 held-out images")
    assert "only 2 groups" in groups
    assert "each image" not in groups  # which are shown of masks alone


def test_stores_of_two_image_sizes_are_one_state_of_a_dataset(tmp_path):
    """Although their masks, and so the digests of their samples, differ."""
    a_mask_run(tmp_path / "runs", "conv")
    a_mask_run(tmp_path / "runs", "vit", resolution=128, samples_digest="another")
    (comparison,) = read_comparisons([tmp_path / "runs"])
    assert not any("same state of the dataset" in text for text in warnings_of(comparison))
    assert any("64 and 128 pixels" in text for text in warnings_of(comparison))


def test_warnings_name_what_readers_must_know(both, tmp_path):
    """Untrained weights, random splits, runs of several states of a dataset, notes and damaged runs."""
    assert both[0].warnings[0].startswith("All splits are random")
    a_run(tmp_path / "runs", "vit", untrained=True, weights="untrained (random:0)", note="made up")
    a_run(tmp_path / "runs", "conv", samples_digest="another")
    bad = a_run(tmp_path / "runs", "mlp", split_name="grouped")
    (bad / "metrics.json").write_text("")
    result = make_report(tmp_path / "runs", tmp_path / "report")
    weights, _, state, note, damaged = result.warnings
    assert "vit are untrained (random:0)" in weights
    files = result.folder / "figures"
    assert "untrained" in (files / "by-share-accuracy.svg").read_text(encoding="utf-8").lower()
    assert "same state of the dataset" in state
    assert note == "Made up"
    assert str(bad) in damaged
    assert "--dataset" in result.missing[-1]
    page = result.page.read_text(encoding="utf-8")
    assert page.partition('<section id="section-result"')[2].count("The weights behind") == 1
    assert not [
        text
        for text in page.split("<figure")[1:]
        if "untrained" in text.partition("<details")[0].lower()
    ]
    assert "<code>--dataset</code>" in page
    assert "data:image/" not in page


@pytest.mark.usefixtures("plain")
def test_without_runs_or_the_dataset_that_was_named_nothing_is_written(runs, tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        make_report(tmp_path, tmp_path / "report")
    for given in ({"dataset": "eurosta"}, {"root": tmp_path}):
        with pytest.raises(InputError, match=given.get("dataset", "stripes")):
            make_report(runs, tmp_path / "report", **given)
    assert not list(tmp_path.iterdir())
    other = make_report(runs, tmp_path / "other", dataset=replace(FIELDS, name="other"))
    assert "other" in other.missing[-1]


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("name", ["folder:{images}", "mine"])
def test_a_run_does_not_say_which_files_are_opened(tmp_path, name, monkeypatch):
    """Its dataset is a name to look up, which must be the one that was found."""
    found = Mock(return_value=FIELDS)
    monkeypatch.setattr("samtl.report.api.resolve", found)
    a_run(tmp_path / "runs", dataset=name.format(images=tmp_path))
    result = make_report(tmp_path / "runs", tmp_path / "report")
    assert "--dataset" in result.missing[-1]
    assert [call.args[0] for call in found.mock_calls] == ([] if ":" in name else [name])


@pytest.mark.usefixtures("plain")
def test_an_earlier_report_is_replaced_unless_the_new_one_fails(both, runs, tmp_path, monkeypatch):
    report = shutil.copytree(both[0].folder, tmp_path / "report")

    def files():
        assert [*report.parent.iterdir()] == [report]
        return {path: path.read_bytes() for path in report.rglob("*.*")}

    before = files()
    full = OSError(28, "No space left on device")
    for what, raised, error in (
        ("samtl.report.api.render", ZeroDivisionError, ZeroDivisionError),
        ("pathlib.Path.write_bytes", full, ResourceError),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(what, Mock(side_effect=raised))
            with pytest.raises(error):
                make_report(runs, report)
        assert files() == before
    make_report(runs, report, title="The second one")
    assert "The second one" in (report / "index.html").read_text(encoding="utf-8")
    kept = {"index.html", MARKER, "curves.png", "curves.svg", "curves.csv"}
    assert {path.name for path in files()} == kept


@pytest.mark.usefixtures("plain")
def test_what_others_put_there_is_never_lost(both, runs, tmp_path):
    report = shutil.copytree(both[0].folder, tmp_path / "report")
    mine = {report: report / "figures" / "notes.txt", tmp_path / "file": tmp_path / "file"}
    for place, marker in zip("abcde", NO_MARKERS, strict=True):
        (tmp_path / place).mkdir()
        (tmp_path / place / MARKER).write_text(marker)
        mine[tmp_path / place] = tmp_path / place / "a.txt"
    for out, path in mine.items():
        path.write_text("mine")
        with pytest.raises(InputError, match=path.name):
            make_report(runs, out)
        assert path.read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert make_report(runs, tmp_path / "empty").page.is_file()


@pytest.mark.usefixtures("plain")
def test_the_command_prints_what_was_missing_and_where_the_page_is(
    told, runs, tmp_path, monkeypatch
):
    monkeypatch.setenv("SAMTL_RUNS", str(runs))  # the default
    code, content, output = told("report", "--out", "here")
    assert (code, content["runs"]) == (0, 4)
    assert content["missing"][0] in output
    assert "page: here/index.html" in output
    assert content["bytes"] == (tmp_path / "here" / "index.html").stat().st_size


@pytest.mark.parametrize("module", ["matplotlib", "jinja2"])
def test_a_missing_extra_is_one_line_and_a_sweep_is_summarised_without(module):
    code = f"import sys; sys.modules[{module!r}] = None\nimport samtl, samtl.report.summary\n"
    code += "print('imported'); samtl.make_report('runs')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "imported\n"
    assert "InputError" in done.stderr.splitlines()[-1]
    assert "samtl[report]" in done.stderr.splitlines()[-1]


def swept(out, *seeds, **given):
    """A sweep of two heads on two splits."""
    rows = []
    for split, name, seed in product(("0.5", "0.2"), ("mlp", "logreg"), seeds):
        asked = {"given": {"split": split}, **given}
        run = a_run(out / "cells", name, seed, float(split), **asked)
        rows.append({"split": split, "status": "done", "run": f"cells/{run.name}"})
    return SweepResult(out, len(rows), 0, {}, rows, 1.0, ())


def test_a_summary_has_means_over_seeds_and_the_floor_last_or_why_there_is_none(tmp_path):
    (found,) = summarise(swept(tmp_path / "a", 0, 1, untrained=True, weights="random:0"))
    assert (found.dataset, found.metric.title, found.splits) == ("toy", "accuracy", ("0.5", "0.2"))
    assert list(found.scores) == ["logreg", "mlp", "floor (image statistics)"]
    runs = [run for run in the_one(tmp_path / "a").models["mlp"] if run.split.share == 0.5]
    spread = found.scores["mlp"]["0.5"]
    mean = sum(run.metrics["accuracy"].value for run in runs) / 2
    assert (spread.mean, len(spread.values)) == (pytest.approx(mean), 2)
    assert (found.weights, found.floor_missing, len(found.words)) == (("random:0",), "", 1)
    (found,) = summarise(swept(tmp_path / "b", 0, floor=None, floor_missing="no image_stats"))
    assert (list(found.scores), found.floor_missing) == (["logreg", "mlp"], "no image_stats")
    assert summarise(SweepResult(tmp_path, 0, 0, {}, [], 1.0, ())) == []


def time_of_pass(folder, *stores, fingerprint="f" * 64):
    for i, store in enumerate(stores):
        a_run(folder, "mlp", i, store_path=str(store), fingerprint=fingerprint)
    a_run(folder, "cnn")
    return pass_seconds(the_one(folder))


def test_how_long_the_pass_took_is_read_from_its_commits(tmp_path, monkeypatch):
    gaps = {"a.zarr": [0, 4, 6, 5, 3600, 5], "quick.zarr": [0, 0, 1, 0, 1], "one.zarr": [0]}

    def opened(path):
        name = path.rpartition("/")[2]
        if name not in gaps:
            raise InputError(f"no store at {path}")
        times = (datetime.fromtimestamp(t, UTC).isoformat() for t in accumulate(gaps[name]))
        writers = [{"committed": text} for text in times]
        return SimpleNamespace(fingerprint="f" * 64, writers=lambda: writers)

    monkeypatch.setattr(sys.modules["samtl.report.load"], "open_store", opened)
    store = tmp_path / "a.zarr"
    assert time_of_pass(tmp_path / "1", store, "a.zarr", f"../{tmp_path.name}/a.zarr") == 6 * 5.0
    assert time_of_pass(tmp_path / "2", tmp_path / "quick.zarr") == 5 * 0.5
    assert time_of_pass(tmp_path / "3", store, fingerprint="e" * 64) is None
    unknown = [(), ("gone.zarr",), ("one.zarr",)]
    # A bucket is not even asked, however its address is written.
    unknown += [("s3://bucket/store.zarr",), ("s3:/bucket",), ("s3://",), ("no\0path",)]
    for i, stores in enumerate(unknown):
        assert time_of_pass(tmp_path / f"none{i}", *stores) is None
    a_run(tmp_path / "1", "logreg", store_path="b.zarr", fingerprint="e" * 64)
    assert pass_seconds(the_one(tmp_path / "1")) is None


def test_names_are_no_formulas_in_tables_for_spreadsheets(tmp_path):
    names = ('=HYPERLINK("http://x")', "@sum", "-1+1")
    a_run(tmp_path / "sweep" / "cells", classes=names)
    result = make_report(tmp_path / "sweep", tmp_path / "report")
    rows = read_csv(result.folder / "figures" / "classes.csv")
    assert [row["class"] for row in rows] == [f"'{name}" for name in names]
    assert f"<td>{escape(names[0])}</td>" in result.page.read_text(encoding="utf-8")
    for path in (result.folder / "figures").glob("*.csv"):
        with path.open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell.startswith(("=", "@", "-1+"))], path
    row = {"dataset": names[0], "metric_value": -0.5, "untrained": True, "seed": -1}
    SweepResult(tmp_path, 1, 0, {}, [row], 1.0, ()).write_table(tmp_path / "t.csv")
    (read,) = read_csv(tmp_path / "t.csv")
    assert read == {
        "dataset": f"'{names[0]}",
        "metric_value": "-0.5",
        "untrained": "true",
        "seed": "-1",
    }


def test_a_report_of_a_thousand_classes_is_small(tmp_path):
    classes = tuple(f"class {i:04d}" for i in range(1000))
    for name in ("mlp", "floor"):
        a_run(tmp_path / "runs", name, ids=3000, classes=classes)
    result = make_report(tmp_path / "runs", tmp_path / "report")
    assert result.bytes < 2**20
    files = [path for path in result.folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4 * 2**20
    assert len(read_csv(result.folder / "figures" / "confusions.csv")) == 2 * 20
    assert len(read_csv(result.folder / "figures" / "classes.csv")) == 2 * 1000


def test_the_title_is_no_name_of_a_folder(tmp_path):
    a_run(tmp_path / "runs", dataset="folder-my_own_folder")
    page = make_report(tmp_path / "runs", tmp_path / "report").page.read_text(encoding="utf-8")
    assert "<title>Classification of 3 classes from frozen embeddings</title>" in page


def test_how_much_of_the_dataset_was_used_is_said(tmp_path):
    ids = FIELDS.sample_ids[:12]
    a_run(tmp_path / "runs", share=0.5, ids=ids, classes=FIELDS.classes, dataset="stripes")
    result = make_report(tmp_path / "runs", tmp_path / "report", dataset=FIELDS)
    assert "<p>12 of 24 images of <code>stripes</code>, 3 classes;" in result.page.read_text()
