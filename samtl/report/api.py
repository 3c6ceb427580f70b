"""Runs in, report out: one page, and its figures as PNG, SVG and CSV files."""

from __future__ import annotations

import csv
import io
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from PIL import Image

from samtl.datasets import Dataset, resolve
from samtl.errors import InputError, SamtlError
from samtl.experiment.run import runs_folder
from samtl.report import figures as charts
from samtl.report import images as pictures
from samtl.report.compare import differences
from samtl.report.content import (
    Drawing,
    Page,
    Section,
    Study,
    Table,
)
from samtl.report.encoder_cost import pass_seconds
from samtl.report.figures.groups import weights_of
from samtl.report.folder import ReportFolder
from samtl.report.load import comparable, gather
from samtl.report.page import render
from samtl.report.style import png, svg
from samtl.store.storage import as_folder

DEFAULT_OUT = "report"
PAGE = "index.html"
FIGURES = "figures"
_QUALITY = 85  # of the photographs in the page; the PNG files beside it lose nothing


@dataclass(frozen=True)
class ReportResult:
    """What a report came to, and where it is.

    Attributes
    ----------
    folder, page : Path
    studies, runs, figures, tables : int
    bytes : int
        Of the page.
    seconds : float
    lines : tuple of str
        What was found, in plain words.
    warnings : tuple of str
        What readers must know.
    missing : tuple of str
        What could not be shown, and why.
    """

    folder: Path
    page: Path
    studies: int
    runs: int
    figures: int
    tables: int
    bytes: int
    seconds: float
    lines: tuple[str, ...]
    warnings: tuple[str, ...]
    missing: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Give the result as JSON values."""
        return {**asdict(self), "folder": str(self.folder), "page": str(self.page)}


def make_report(
    sources: str | Path | Sequence[str | Path] = (),
    out: str | Path = DEFAULT_OUT,
    *,
    dataset: str | Dataset | None = None,
    root: str | Path | None = None,
    separate: bool = False,
    title: str | None = None,
    encoder_seconds: float | None = None,
    on_event: Callable[[str], None] | None = None,
) -> ReportResult:
    """Draw all figures of a study, and write them with what they say as one page that needs no network.

    Parameters
    ----------
    sources : path or sequence of path
        Run folders, sweep folders, and folders that hold such; by default `$SAMTL_RUNS`, else `./runs`.
    out : path
        The report's folder, with `index.html` and `figures/`. An earlier report there is replaced.
    dataset : str or Dataset, optional
        What the runs are on, for figures with images; by default the one that they name, if it is on this machine.
    root : path, optional
        Where its files are.
    separate : bool
        Whether runs that cannot be compared are reported beside each other.
    title : str, optional
    encoder_seconds : float, optional
        Wall time of the encoder's pass; by default what the store tells, if it lies where the runs found it.
    on_event : callable, optional
        Called with a line about each stage.

    Returns
    -------
    ReportResult

    Raises
    ------
    InputError
        Where there are no runs, or some that cannot be compared and `separate` is not given; where a dataset that was
        named cannot be opened; where `out` holds anything else.
    ResourceError
        Where the disk does not take it.
    """
    began = time.perf_counter()
    tell = on_event or (lambda line: None)
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    with ReportFolder(as_folder(out)) as folder:
        tell("reading runs")
        studies = comparable(gather(given or [runs_folder()]), separate)
        chapters = []
        for number, study in enumerate(studies, 1):
            tell(f"drawing {study.dataset}: {len(study.trials)} runs")
            images, why = _dataset(study, dataset, root)
            seconds = encoder_seconds if encoder_seconds is not None else pass_seconds(study)
            chapter = _chapter(study, images, why, seconds)
            chapters.append(_apart(chapter, study, number) if len(studies) > 1 else chapter)
        sections = tuple(section for chapter in chapters for section in chapter.sections)
        page = Page(title or _title(studies), _subtitle(studies), sections)
        runs = sum(len(study.trials) for study in studies)
        made = (
            f"Made by samtl {version('samtl')} on {datetime.now(UTC):%d %B %Y}, from {runs} runs."
        )
        parts = [part for section in sections for part in section.parts]
        drawings = [part for part in parts if isinstance(part, Drawing)]
        tell(f"writing {len(drawings)} figures")
        shown = {}
        for part in parts:
            table = part.table if isinstance(part, Drawing) else part
            folder.write(f"{FIGURES}/{part.name}.csv", _csv(table))
            if isinstance(part, Drawing):
                shown[part.name] = _write_figure(part, folder)
        content = render(page, shown, files=FIGURES, made=made).encode()
        folder.write(PAGE, content)
        folder.publish({"samtl": version("samtl"), "title": page.title, "runs": runs})
    warnings = dict.fromkeys(text for study in studies for text in study.warnings)
    return ReportResult(
        folder=Path(out),
        page=Path(out, PAGE),
        studies=len(studies),
        runs=runs,
        figures=len(drawings),
        tables=len(parts) - len(drawings),
        bytes=len(content),
        seconds=time.perf_counter() - began,
        lines=tuple(line for chapter in chapters for line in chapter.lines),
        warnings=tuple(warnings),
        missing=tuple(dict.fromkeys(note for chapter in chapters for note in chapter.missing)),
    )


def _write_figure(drawing: Drawing, folder: ReportFolder) -> bytes:
    """Write a figure's files; gives what the page shows."""
    bitmap = png(drawing.figure)
    folder.write(f"{FIGURES}/{drawing.name}.png", bitmap)
    if not drawing.picture:
        vectors = svg(drawing.figure)
        folder.write(f"{FIGURES}/{drawing.name}.svg", vectors)
        return vectors.encode()
    with Image.open(io.BytesIO(bitmap)) as opened:
        file = io.BytesIO()
        opened.convert("RGB").save(file, "WEBP", quality=_QUALITY)
    return file.getvalue()


def _csv(table: Table) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.header)
    writer.writerows(table.rows)
    return text.getvalue()


@dataclass(frozen=True)
class _Chapter:
    """What a page says about one study."""

    sections: tuple[Section, ...]
    lines: tuple[str, ...]
    missing: tuple[str, ...]


def _chapter(study: Study, dataset: Dataset | None, why: str, seconds: float | None) -> _Chapter:
    table, lines = differences(study)
    by_share = charts.by_share(study)
    of_dataset, of_masks, mistakes, hardest = (
        pictures.samples(dataset),
        pictures.panels(study, dataset),
        pictures.confused(study, dataset),
        pictures.hardest(study, dataset),
    )
    notes = dict.fromkeys(
        note for some in (of_dataset, of_masks, mistakes, hardest) for note in some.notes
    )
    missing = (*notes, *([why] if notes and why else []))
    failed = Table("failed", "Fits that came to nothing", "", ("fit", "why"), tuple(study.failed))
    sections = [
        Section(
            "findings", "What was found", (_counted(study), *(f"- {line}" for line in lines)),
            study.warnings, tuple(by_share[:1]),
        ),
        Section("scores", "Scores", parts=(*by_share[1:], charts.scores_table(study))),
        Section(
            "differences", "Which differences are shown",
            _how_compared(study) if table else (), parts=(table,) if table else (),
        ),
        Section("images", "The images", missing, parts=of_dataset.drawings),
        Section("masks", "Masks", parts=(*of_masks.drawings, *charts.image_scores(study))),
        Section("training", "Training", parts=tuple(charts.training_curves(study))),
        Section(
            "mistakes", "Mistakes",
            parts=(*charts.confusions(study), *mistakes.drawings, *hardest.drawings),
        ),
        Section("costs", "What it cost", parts=tuple(charts.costs(study, seconds))),
        Section("failures", "What failed", parts=(failed,) if failed.rows else ()),
        Section("provenance", "Where the figures come from", parts=tuple(charts.provenance(study))),
    ]  # fmt: skip
    kept = tuple(s for s in sections if s.parts or s.paragraphs)
    return _Chapter(kept, lines, missing)


_DIFFERENCES = (
    "Two models are compared on the very samples that both were scored on, so that a difference can be told apart "
    "although the intervals of their scores overlap."
)


_GROUPS = (
    "Whole groups of images (such as scenes) were held out, and the bootstrap draws images. Those of a group are "
    "alike, so intervals are narrower than what other groups would show: with few groups, take them for a lower bound."
)


def _how_compared(study: Study) -> tuple[str, ...]:
    grouped = any(trial.split["name"].startswith("grouped") for trial in study.trials)
    return (_DIFFERENCES, _GROUPS) if grouped else (_DIFFERENCES,)


def _counted(study: Study) -> str:
    """Say what was compared."""
    shares = sorted({round(trial.share, 2) for trial in study.trials})
    first, last = (f"{100 * share:.0f} %" for share in (shares[0], shares[-1]))
    span = first if first == last else f"{first} to {last}"
    seeds = len({trial.seed for trial in study.trials})
    return (
        f"{_many(len(study.trials), 'run')} of {_many(len(study.models), 'model')} on {study.dataset} "
        f"({', '.join(study.models)}), {_many(seeds, 'seed')}, learning from {span} of the images. "
        + (
            "At the share nearest to 80 %, from the best model down:"
            if len(study.models) > 1
            else ""
        )
    ).strip()


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _title(studies: Sequence[Study]) -> str:
    names = " and ".join(dict.fromkeys(study.dataset for study in studies))
    return f"How far a frozen encoder gets on {names}"


def _subtitle(studies: Sequence[Study]) -> str:
    trials = [trial for study in studies for trial in study.trials]
    encoders = dict.fromkeys(weights_of(trial) for trial in trials if trial.encoder)
    kinds = dict.fromkeys(
        f"{study.task.capitalize()}, {_many(len(study.classes), 'class').replace('classs', 'classes')}"
        for study in studies
    )
    return (
        f"{'; '.join(kinds)}. {'Encoder ' + ', '.join(encoders) + '.' if encoders else ''}".strip()
    )


def _apart(chapter: _Chapter, study: Study, number: int) -> _Chapter:
    """Give the parts of one of several studies names and titles of their own."""
    name = re.sub(r"[^a-z0-9]+", "-", study.dataset.lower()).strip("-")
    prefix = f"{number}-{name}"[:40]
    sections = []
    for section in chapter.sections:
        parts = tuple(replace(part, name=f"{prefix}-{part.name}") for part in section.parts)
        title = f"{number}. {study.dataset}: {section.title[0].lower()}{section.title[1:]}"
        sections.append(replace(section, name=f"{prefix}-{section.name}", title=title, parts=parts))
    return replace(chapter, sections=tuple(sections))


def _dataset(
    study: Study, given: str | Dataset | None, root: str | Path | None
) -> tuple[Dataset | None, str]:
    """Open the dataset that images are shown of; else say how it can be had."""
    if given is not None:
        return resolve(given, root), ""
    try:
        return resolve(study.dataset, root, download=False), ""
    except SamtlError as error:
        if root is not None:
            raise InputError(f"--root {root}: {error}; name the dataset with --dataset") from error
        return None, (
            "To have them shown, name the dataset as it was embedded, and where its files are, with `--dataset` and "
            "`--root`."
        )
