"""Runs become a folder with a page and its figures; nothing that was there before is lost."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from itertools import accumulate
from types import SimpleNamespace

import pytest
from fake_runs import a_mask_run, a_run, read_csv
from PIL import Image
from toys import blobs, stripes

import samtl
from samtl.errors import InputError, ResourceError
from samtl.report.api import MARKER, make_report
from samtl.report.figures import pass_seconds
from samtl.report.load import read_comparisons
from samtl.report.summary import summarise
from samtl.sweep.api import SweepResult


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two models, two seeds, on labelled images."""
    out, data = tmp_path_factory.mktemp("runs"), stripes()
    given = {"ids": data.sample_ids, "classes": data.classes, "dataset": "stripes"}
    for seed in (0, 1):
        a_run(out, "floor", seed, given={"split": "0.2"}, **given)
        a_run(out, "mlp", seed, given={"split": "0.2"}, **given)
    return out


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    out = tmp_path_factory.mktemp("masks")
    a_mask_run(out, "floor", shift=5)
    a_mask_run(out, "conv")
    return out


@pytest.fixture(scope="module")
def made(runs, tmp_path_factory):
    """A report on them, and what it told."""
    told = []
    out = tmp_path_factory.mktemp("made") / "report"
    return make_report(runs, out, dataset=stripes(), on_event=told.append), told


def test_the_folder_holds_the_page_and_every_figure_in_each_format(made):
    result, told = made
    page = result.page.read_text(encoding="utf-8")
    assert result.page == result.folder / "index.html"
    assert result.bytes == result.page.stat().st_size
    assert (result.studies, result.runs, result.missing) == (1, 4, ())
    files = {path.name for path in (result.folder / "figures").iterdir()}
    assert page.count("<figure") == result.figures == sum(n.endswith(".png") for n in files)
    assert sum(n.endswith(".csv") for n in files) == result.figures + result.tables
    for link in {part.split('"')[0] for part in page.split('href="figures/')[1:]}:
        assert link in files
    with Image.open(result.folder / "figures" / "by-share-accuracy.png") as opened:
        assert min(opened.size) > 200
    assert [*result.folder.parent.iterdir()] == [result.folder]
    assert told[0] == "reading runs"
    for name in [
        "findings",
        "scores",
        "differences",
        "images",
        "training",
        "mistakes",
        "costs",
        "provenance",
    ]:
        assert f'id="section-{name}"' in page, name
    assert 'id="section-masks"' not in page
    assert 'id="section-failures"' not in page
    json.dumps(result.to_json())


def test_masks_have_their_own_figures(masks, tmp_path):
    result = make_report([masks], tmp_path / "report", dataset=blobs())
    page = result.page.read_text(encoding="utf-8")
    assert 'id="panels"' in page
    assert 'id="image-scores"' in page
    assert result.missing == ()
    assert len(result.lines) == 1


def test_findings_are_in_words_and_in_a_table(made):
    result, _ = made
    (row,) = read_csv(result.folder / "figures" / "differences.csv")
    assert (row["model"], row["other model"], row["seeds"]) == ("mlp", "floor", "2")
    scores = {
        r["model"]: float(r["accuracy"]) for r in read_csv(result.folder / "figures" / "scores.csv")
    }
    gap = 100 * (scores["mlp"] - scores["floor"])
    assert float(row["difference"]) == pytest.approx(gap, abs=0.02)
    assert result.lines == (row["in words"],)
    assert f"<li>{row['in words']}</li>" in result.page.read_text(encoding="utf-8")


def test_without_the_dataset_the_report_says_what_is_missing_and_what_to_do(runs, tmp_path):
    result = make_report(runs, tmp_path / "report")
    assert "--dataset" in result.missing[-1]
    page = result.page.read_text(encoding="utf-8")
    assert "<code>--dataset</code>" in page
    assert "data:image/" not in page
    other = make_report(runs, tmp_path / "other", dataset=replace(stripes(), name="other"))
    assert "other" in other.missing[-1]


def test_a_dataset_that_was_named_must_be_there(runs, tmp_path):
    with pytest.raises(InputError, match="eurosta"):
        make_report(runs, tmp_path / "report", dataset="eurosta")
    with pytest.raises(InputError, match="--root"):
        make_report(runs, tmp_path / "report", root=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["folder:{images}", "mine"])
def test_a_run_does_not_say_which_files_are_opened(tmp_path, name, monkeypatch):
    """Its dataset is a name to look up, which must be the one that was found."""
    opened = []

    def found(spec, root=None, **options):
        opened.append(spec)
        return replace(stripes(), name="stripes")

    monkeypatch.setattr("samtl.report.api.resolve", found)
    given = {"ids": stripes().sample_ids, "classes": stripes().classes}
    a_run(tmp_path / "runs", dataset=name.format(images=tmp_path), **given)
    result = make_report(tmp_path / "runs", tmp_path / "report")
    assert "--dataset" in result.missing[-1]
    assert opened == ([] if ":" in name else [name])


def test_what_cannot_be_compared_stands_apart_or_is_refused(runs, masks, tmp_path):
    with pytest.raises(InputError, match="--separate"):
        make_report([runs, masks], tmp_path / "report")
    result = make_report([runs, masks], tmp_path / "report", separate=True)
    assert result.studies == 2
    page = result.page.read_text(encoding="utf-8")
    for place in ("1-blobs-section", "2-stripes-scores"):
        assert f'id="{place}' in page.replace("section-1-blobs-", "1-blobs-section-")
    assert any("cannot be compared" in text for text in result.warnings)


def test_nothing_to_report_leaves_nothing_behind(tmp_path, runs, monkeypatch):
    (tmp_path / "runs").mkdir()
    with pytest.raises(InputError, match="no sound run"):
        make_report(tmp_path / "runs", tmp_path / "report")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    monkeypatch.setenv("SAMTL_RUNS", str(runs))  # the default
    assert samtl.make_report(out=tmp_path / "report").runs == 4


@pytest.fixture
def report(made, tmp_path):
    """A copy of the report."""
    return shutil.copytree(made[0].folder, tmp_path / "report")


def test_an_earlier_report_is_replaced(report, runs):
    (report / "index.html").write_text("old")
    make_report(runs, report, title="The second one")
    assert "The second one" in (report / "index.html").read_text(encoding="utf-8")
    assert [*report.parent.iterdir()] == [report]


def test_a_report_that_fails_leaves_the_earlier_one(report, runs, monkeypatch):
    before = {path: path.read_bytes() for path in report.rglob("*.*")}

    def full(self, content):
        raise OSError(28, "No space left on device")

    for what, error in (
        ("samtl.report.api.render", ZeroDivisionError),
        ("pathlib.Path.write_bytes", ResourceError),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(what, full if error is ResourceError else lambda *_, **__: 1 / 0)
            with pytest.raises(error):
                make_report(runs, report)
        assert {path: path.read_bytes() for path in report.rglob("*.*")} == before
        assert [*report.parent.iterdir()] == [report]


def test_what_others_put_there_is_never_lost(report, runs, tmp_path):
    (report / "figures" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"figures/notes\.txt"):
        make_report(runs, report)
    assert (report / "figures" / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file"):
        make_report(runs, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert make_report(runs, tmp_path / "empty").page.is_file()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": ["a.txt"]}', '{"samtl_report": 1}'])
def test_a_folder_without_a_sound_marker_is_no_report(tmp_path, runs, content):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a.txt").write_text("mine")
    (tmp_path / "there" / MARKER).write_text(content)
    with pytest.raises(InputError, match="there"):
        make_report(runs, tmp_path / "there")
    assert (tmp_path / "there" / "a.txt").read_text() == "mine"


@pytest.mark.parametrize("module", ["matplotlib", "jinja2"])
def test_a_missing_extra_is_one_line(module):
    code = f"import sys; sys.modules[{module!r}] = None\nimport samtl\nsamtl.make_report('runs')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "InputError" in done.stderr.splitlines()[-1]
    assert "samtl[report]" in done.stderr.splitlines()[-1]


def test_a_sweep_is_summarised_without_matplotlib():
    code = "import sys; sys.modules['matplotlib'] = None\nimport samtl.report.summary"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_prints_the_findings_and_where_the_page_is(run, runs, tmp_path):
    code, output, _ = run("report", runs, "--out", "here", "--json", "told.json")
    content = json.loads((tmp_path / "told.json").read_text())
    assert code == 0
    assert content["lines"][0] in output
    assert "page: here/index.html" in output
    assert content["bytes"] == (tmp_path / "here" / "index.html").stat().st_size


# Sweeps in a few lines


def swept(out, *seeds, **given):
    rows = [
        {
            "split": split,
            "status": "done",
            "run": f"cells/{a_run(out / 'cells', name, seed, float(split), given={'split': split}, **given).name}",
        }
        for split in ("0.5", "0.2")
        for name in ("mlp", "logreg")
        for seed in seeds
    ]
    return SweepResult(out, len(rows), 0, {}, rows, 1.0, ())


def test_a_summary_has_means_over_seeds_and_the_floor_last(tmp_path):
    (found,) = summarise(swept(tmp_path, 0, 1, untrained=True, weights="random:0"))
    assert (found.dataset, found.title, found.splits) == ("toy", "accuracy", ("0.5", "0.2"))
    assert [(line.model, line.floor) for line in found.lines] == [
        ("logreg", False),
        ("mlp", False),
        ("floor", True),
    ]
    (comparison,) = read_comparisons([tmp_path])
    values = [r.metrics["accuracy"].value for r in comparison.models["mlp"] if r.split.share == 0.5]
    spread = found.lines[1].scores["0.5"]
    assert (spread.mean, spread.n) == (pytest.approx(sum(values) / 2), 2)
    assert (found.weights, found.floor_missing) == (("random:0",), "")
    assert len(found.words) == 1


def test_a_summary_says_why_there_is_no_floor(tmp_path):
    (found,) = summarise(swept(tmp_path, 0, floor=None, floor_missing="no image_stats"))
    assert [line.model for line in found.lines] == ["logreg", "mlp"]
    assert found.floor_missing == "no image_stats"
    a_run(tmp_path / "more", "floor")
    assert summarise(SweepResult(tmp_path, 0, 0, {}, [], 1.0, ())) == []


# The encoder's pass


@pytest.fixture
def commits(monkeypatch):
    """Let stores by name have committed their blocks so many seconds after one another."""
    found = {"a.zarr": [0, 4, 6, 5, 3600, 5], "quick.zarr": [0, 0, 1, 0, 1], "one.zarr": [0]}

    def opened(path):
        if path.name not in found:
            raise InputError(f"no store at {path}")
        times = accumulate(found[path.name], initial=datetime(2026, 1, 1, tzinfo=UTC).timestamp())
        texts = [datetime.fromtimestamp(t, UTC).isoformat() for t in [*times][1:]]
        return SimpleNamespace(
            fingerprint="f" * 64, writers=lambda: [{"committed": t} for t in texts]
        )

    monkeypatch.setattr(sys.modules["samtl.report.figures.costs"], "open_store", opened)


def read_from(folder, *stores, fingerprint="f" * 64):
    for i, store in enumerate(stores):
        a_run(folder, "mlp", i, store_path=str(store), fingerprint=fingerprint)
    a_run(folder, "cnn")
    (comparison,) = read_comparisons([folder])
    return pass_seconds(comparison)


@pytest.mark.usefixtures("commits")
def test_how_long_the_pass_took_is_read_from_its_commits(tmp_path):
    store = tmp_path / "a.zarr"
    assert read_from(tmp_path / "1", store, "a.zarr", f"../{tmp_path.name}/a.zarr") == 6 * 5.0
    assert read_from(tmp_path / "2", tmp_path / "quick.zarr") == 5 * 0.5
    for i, stores in enumerate((["gone.zarr"], ["a.zarr", "b.zarr"], ["one.zarr"], [])):
        assert read_from(tmp_path / f"none{i}", *stores) is None
    assert read_from(tmp_path / "3", store, fingerprint="e" * 64) is None


@pytest.mark.parametrize("place", ["s3://bucket/store.zarr", "s3:/bucket", "s3://", "no\0path"])
def test_a_report_opens_no_store_in_a_bucket(tmp_path, monkeypatch, place):
    costs = sys.modules["samtl.report.figures.costs"]
    monkeypatch.setattr(costs, "open_store", lambda path: pytest.fail(str(path)))
    a_run(tmp_path, store_path=place)
    (comparison,) = read_comparisons([tmp_path])
    assert pass_seconds(comparison) is None
