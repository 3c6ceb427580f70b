"""Real runs become a folder with a page and its figures; nothing that was there before is lost."""

import csv
import json
import shutil
import sys
from datetime import UTC, datetime, timedelta
from importlib.metadata import entry_points
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from toys import blobs, stripes

import samtl
from samtl.errors import InputError, ResourceError
from samtl.experiment.fit import fit_baseline
from samtl.report.api import make_report
from samtl.report.compare import differences
from samtl.report.encoder_cost import pass_seconds
from samtl.report.folder import MARKER
from samtl.report.load import gather
from samtl.store.documents import seal
from samtl.store.log import Record, record_name

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, one_thread):
    """Two models, two seeds, on labelled images."""
    out = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        fit_baseline(stripes(), "floor", 0.2, seed=seed, out=out)
        # Too short a training to learn anything, so that there is a difference.
        params = {"epochs": 1, "lr": 1e-6}
        fit_baseline(stripes(), "cnn", 0.2, seed=seed, out=out, params=params)
    return out


@pytest.fixture(scope="module")
def masks(tmp_path_factory, one_thread):
    """Two models on images with masks."""
    out = tmp_path_factory.mktemp("masks")
    fit_baseline(blobs(), "floor", 0.25, out=out)
    fit_baseline(blobs(), "unet", 0.25, out=out, params={"epochs": 1, "image_size": 32})
    return out


@pytest.fixture(scope="module")
def made(runs, tmp_path_factory):
    """A report on them."""
    told = []
    out = tmp_path_factory.mktemp("made") / "report"
    return make_report(runs, out, dataset=stripes(), on_event=told.append), told


def test_the_folder_holds_the_page_and_every_figure_in_each_format(made):
    result, told = made
    page = result.page.read_text(encoding="utf-8")
    assert result.page == result.folder / "index.html"
    assert result.bytes == result.page.stat().st_size
    assert (result.studies, result.runs) == (1, 4)
    figures = {path.name for path in (result.folder / "figures").iterdir()}
    assert page.count("<figure") == result.figures == sum(n.endswith(".png") for n in figures)
    assert sum(n.endswith(".csv") for n in figures) == result.figures + result.tables
    for link in {part.split('"')[0] for part in page.split('href="figures/')[1:]}:
        assert link in figures
    assert told[0] == "reading runs"
    with Image.open(result.folder / "figures" / "by-share-accuracy.png") as opened:
        assert min(opened.size) > 200
    assert list(result.folder.parent.iterdir()) == [result.folder]


def test_the_page_has_every_section_that_there_is_something_for(made):
    page = made[0].page.read_text(encoding="utf-8")
    names = "findings scores differences images training mistakes costs provenance"
    for name in names.split():
        assert f'id="section-{name}"' in page, name
    assert 'id="section-masks"' not in page
    assert 'id="section-failures"' not in page


def test_masks_have_their_own_figures(masks, tmp_path):
    result = make_report([masks], tmp_path / "report", dataset=blobs())
    page = result.page.read_text(encoding="utf-8")
    assert "Best, median and worst" in page
    assert result.missing == ()
    assert len(result.lines) == 1
    assert (tmp_path / "report" / "figures" / "panels.png").is_file()


def test_what_is_found_is_said_in_words_and_in_a_table(made, runs):
    result, _ = made
    (study,) = gather([runs])
    scores = {
        model: np.mean([t.metrics["accuracy"].value for t in study.trials if t.model == model])
        for model in study.models
    }
    with (result.folder / "figures" / "differences.csv").open() as file:
        (row,) = csv.DictReader(file)
    better, other = sorted(scores, key=scores.get, reverse=True)
    assert (row["model"], row["other model"], row["seeds"]) == (better, other, "2")
    gap = 100 * (scores[better] - scores[other])
    assert float(row["difference"]) == pytest.approx(gap, abs=0.01)
    assert result.lines == (row["in words"],)
    assert f"<li>{row['in words']}</li>" in result.page.read_text(encoding="utf-8")


def test_models_are_compared_on_the_splits_that_both_have(runs):
    (study,) = gather([runs])
    fewer = tuple(t for t in study.trials if (t.model, t.seed) != ("cnn", 1))
    table, lines = differences(type(study)(study.dataset, study.task, study.classes, fewer))
    assert [row[table.header.index("seeds")] for row in table.rows] == [1]
    assert len(lines) == 1
    apart = tuple(t for t in fewer if (t.model, t.seed) != ("floor", 0))
    assert differences(type(study)(study.dataset, study.task, study.classes, apart)) == (None, ())


def test_without_the_dataset_the_report_says_what_is_missing_and_what_to_do(runs, tmp_path):
    result = make_report(runs, tmp_path / "report")
    assert "Samples of the dataset are missing" in " ".join(result.missing)
    assert "--dataset" in result.missing[-1]
    page = result.page.read_text(encoding="utf-8")
    assert "<code>--dataset</code>" in page
    assert "data:image/" not in page


def test_a_dataset_that_was_named_must_be_there(runs, tmp_path):
    with pytest.raises(InputError, match="no dataset is called"):
        make_report(runs, tmp_path / "report", dataset="eurosta")
    with pytest.raises(InputError, match="--root"):
        make_report(runs, tmp_path / "report", root=tmp_path)
    assert not list(tmp_path.iterdir())


def test_studies_that_cannot_be_compared_stand_apart_or_are_refused(runs, masks, tmp_path):
    with pytest.raises(InputError, match="--separate"):
        make_report([runs, masks], tmp_path / "report")
    result = make_report([runs, masks], tmp_path / "report", separate=True)
    assert result.studies == 2
    page = result.page.read_text(encoding="utf-8")
    assert "1. blobs: what was found" in page
    assert "2. stripes: what was found" in page
    assert any("cannot be compared" in text for text in result.warnings)
    assert 'id="2-stripes-scores"' in page


def test_nothing_to_report_leaves_nothing_behind(tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(InputError, match="no sound run"):
        make_report(tmp_path / "runs", tmp_path / "report")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_sources_are_the_users_runs_by_default(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("SAMTL_RUNS", str(runs))
    assert make_report(out=tmp_path / "report").runs == 4
    assert samtl.make_report is make_report


@pytest.fixture
def report(made, tmp_path):
    """A copy of the report."""
    return shutil.copytree(made[0].folder, tmp_path / "report")


def test_an_earlier_report_is_replaced(report, runs):
    (report / "index.html").write_text("old")
    make_report(runs, report, title="The second one")
    assert "The second one" in (report / "index.html").read_text(encoding="utf-8")
    assert json.loads((report / MARKER).read_text())["title"] == "The second one"
    assert list(report.parent.iterdir()) == [report]


def test_a_report_that_fails_leaves_the_earlier_one(report, runs, monkeypatch):
    before = (report / "index.html").read_bytes()
    monkeypatch.setattr("samtl.report.api.render", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_report(runs, report)
    assert (report / "index.html").read_bytes() == before
    assert list(report.parent.iterdir()) == [report]


def test_what_others_put_there_is_never_lost(report, runs):
    (report / "figures" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"other things .* such as figures/notes.txt"):
        make_report(runs, report)
    assert (report / "figures" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": ["a.txt"]}', '{"samtl_report": 1}'])
def test_a_folder_without_a_sound_marker_is_no_report(tmp_path, runs, content):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a.txt").write_text("mine")
    (tmp_path / "there" / MARKER).write_text(content)
    with pytest.raises(InputError, match="is not replaced"):
        make_report(runs, tmp_path / "there")
    assert (tmp_path / "there" / "a.txt").read_text() == "mine"


def test_an_empty_folder_is_taken_and_a_file_is_not(tmp_path, runs):
    (tmp_path / "empty").mkdir()
    assert make_report(runs, tmp_path / "empty").page.is_file()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="this is a file"):
        make_report(runs, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_place_that_takes_no_files_is_said_before_anything_is_read(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(ResourceError, match=r"cannot write a report to .*Permission denied"):
        make_report(tmp_path / "nothing", tmp_path / "report")


def test_a_disk_that_is_full_leaves_the_earlier_report(report, runs, monkeypatch):
    before = sorted(report.rglob("*"))

    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(ResourceError, match="No space left"):
        make_report(runs, report)
    assert sorted(report.rglob("*")) == before
    assert list(report.parent.iterdir()) == [report]


def test_the_command_prints_what_was_found_and_where_the_page_is(
    runs, tmp_path, monkeypatch, capsys
):
    main = next(e for e in entry_points(group="console_scripts") if e.name == "samtl").load()
    monkeypatch.setenv("COLUMNS", "200")
    told = tmp_path / "told.json"
    monkeypatch.setattr(
        sys, "argv", ["samtl", "report", str(runs), "--out", "here", "--json", str(told)]
    )
    with pytest.raises(SystemExit, match="0"):
        main()
    output = capsys.readouterr().out
    content = json.loads(told.read_text())
    assert content["lines"][0] in output
    assert "page: here/index.html" in output
    assert content["bytes"] == (tmp_path / "here" / "index.html").stat().st_size


def committed(store, seconds):
    """Write a log whose blocks were committed so many seconds after one another."""
    (store / "log").mkdir(parents=True)
    clock = datetime(2026, 1, 1, tzinfo=UTC)
    for block, gap in enumerate(seconds):
        clock += timedelta(seconds=gap)
        record = Record(
            block,
            0,
            "f",
            ("ok",),
            {},
            ("",),
            {},
            {"committed": clock.isoformat(timespec="seconds")},
        )
        (store / record_name(block, 0)).write_bytes(seal(record.to_dict()))
    return store


def read_from(*stores, fingerprint="f"):
    trials = [
        SimpleNamespace(config={"store": {"path": str(store)}}, store="s", fingerprint=fingerprint)
        for store in stores
    ]
    pixels = SimpleNamespace(config={}, store="", fingerprint="")
    return pass_seconds(SimpleNamespace(trials=(*trials, pixels)))


def test_how_long_the_pass_took_is_read_from_its_commits(tmp_path, monkeypatch):
    store = committed(tmp_path / "a.zarr", [0, 4, 6, 5, 3600, 5])
    assert read_from(store) == 6 * 5.0
    assert read_from(store, store) == 30.0
    monkeypatch.chdir(tmp_path)
    assert read_from(store, "a.zarr", "../" + tmp_path.name + "/a.zarr") == 30.0
    assert read_from(committed(tmp_path / "quick.zarr", [0, 0, 1, 0, 1])) == 5 * 0.5


def test_how_long_the_pass_took_is_not_known_without_its_store(tmp_path):
    store = committed(tmp_path / "a.zarr", [0, 4])
    assert read_from(tmp_path / "gone.zarr") is None
    assert read_from(store, committed(tmp_path / "b.zarr", [0, 4])) is None
    assert read_from(store, fingerprint="other") is None
    assert read_from(committed(tmp_path / "one.zarr", [0])) is None
    assert read_from(committed(tmp_path / "at-once.zarr", [0, 0, 0])) is None
    assert read_from() is None
    (store / "log" / "1.json").write_text("{")
    assert read_from(store) is None
