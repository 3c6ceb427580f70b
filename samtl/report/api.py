"""Runs in, report out: one page, and its figures as PNG, SVG and CSV files."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from PIL import Image

from samtl._io import AtomicFolder
from samtl.datasets import Dataset, resolve
from samtl.errors import InputError, ResourceError, SamtlError
from samtl.experiment.run import runs_folder
from samtl.report import figures, images
from samtl.report.album import Album
from samtl.report.compare import Comparison, compared, findings, share_of
from samtl.report.content import Drawing, Section, Table
from samtl.report.load import read_comparisons, require_one
from samtl.report.page import render
from samtl.report.style import png, svg
from samtl.report.words import counted, weights_of
from samtl.store.storage import as_folder

DEFAULT_OUT = "report"
PAGE, MARKER, FIGURES = "index.html", "report.json", "figures"
_QUALITY = 85  # of photographs in the page; the PNG files are lossless


@dataclass(frozen=True)
class ReportResult:
    """What a report contains, and where it is."""

    folder: Path
    page: Path
    studies: int  #: sets of runs that may be compared
    runs: int
    figures: int
    tables: int
    bytes: int  #: of the page
    seconds: float
    lines: tuple[str, ...]  #: the findings in words
    warnings: tuple[str, ...]  #: what readers must know
    missing: tuple[str, ...]  #: what could not be shown, and why

    def to_json(self) -> dict[str, object]:
        """Return the result as JSON values."""
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
    """Draw all figures of a study, and write them with their findings as one page that needs no network.

    Parameters
    ----------
    sources : path or sequence of path
        Run folders, sweep folders, and folders of such; by default `$SAMTL_RUNS`, else `./runs`.
    out : path
        The report's folder, with `index.html` and `figures/`. An earlier report there is replaced.
    dataset : str or Dataset, optional
        The dataset of the runs, for figures with images; by default the one that they name, if it is on this machine.
    root : path, optional
        Where its files are.
    separate : bool
        Whether runs that cannot be compared are reported side by side.
    title : str, optional
        Title of the page.
    encoder_seconds : float, optional
        Wall time of the encoder's pass; by default what the store says, if it is where the runs found it.
    on_event : callable, optional
        Called with a line about each stage.

    Returns
    -------
    ReportResult

    Raises
    ------
    InputError
        If there are no runs, or some cannot be compared and `separate` is not given; if a dataset that was named
        cannot be opened; if `out` holds anything but a report; if the extra `report` is not installed.
    ResourceError
        If the report cannot be written.
    """
    began = time.perf_counter()
    tell = on_event or (lambda line: None)
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    place = as_folder(out).resolve()  # a link to a folder stays, and what it points to is replaced
    with _writing(place), AtomicFolder(place.parent) as folder:
        tell("reading runs")
        comparisons = require_one(read_comparisons(given or [runs_folder()]), separate)
        sections: list[Section] = []
        lines, missing = [], []
        for number, one in enumerate(comparisons, 1):
            tell(f"drawing {one.dataset}: {counted(len(one.runs), 'run')}")
            opened, why = _dataset(one, dataset, root)
            seconds = encoder_seconds if encoder_seconds is not None else figures.pass_seconds(one)
            chapter, notes = _chapter(one, opened, why, seconds)
            lines += [line for section in chapter for line in section.bullets]
            missing += notes
            sections += _numbered(chapter, one, number) if len(comparisons) > 1 else chapter
        parts = [part for section in sections for part in section.parts]
        drawings = [part for part in parts if isinstance(part, Drawing)]
        tell(f"writing {counted(len(drawings), 'figure')}")
        (folder.path / FIGURES).mkdir()
        for part in parts:
            (folder.path / FIGURES / f"{part.name}.csv").write_text(_csv(part), encoding="utf-8")
        shown = {
            drawing.name: _write_figure(drawing, folder.path / FIGURES) for drawing in drawings
        }
        names = " and ".join(dict.fromkeys(one.dataset for one in comparisons))
        runs = sum(len(one.runs) for one in comparisons)
        content = render(
            title or f"How far a frozen encoder gets on {names}",
            _subtitle(comparisons),
            sections,
            shown,
            made=f"Made by samtl {version('samtl')} on {datetime.now(UTC):%d %B %Y}, from {counted(runs, 'run')}.",
        ).encode()
        (folder.path / PAGE).write_bytes(content)
        marker = {
            "samtl_report": 1,
            "samtl": version("samtl"),
            "files": sorted(_files(folder.path)),
        }
        (folder.path / MARKER).write_text(json.dumps(marker, indent=1), encoding="utf-8")
        _require_free(place)  # minutes may have passed
        folder.publish(place.name, replace=True)
    warnings = dict.fromkeys(text for one in comparisons for text in one.warnings)
    return ReportResult(
        folder=Path(out),
        page=Path(out, PAGE),
        studies=len(comparisons),
        runs=runs,
        figures=len(drawings),
        tables=len(parts) - len(drawings),
        bytes=len(content),
        seconds=time.perf_counter() - began,
        lines=tuple(lines),
        warnings=tuple(warnings),
        missing=tuple(dict.fromkeys(missing)),
    )


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    """Refuse a place that is taken, and turn errors of the disk into a `ResourceError`."""
    try:
        _require_free(place)
        yield
    except OSError as error:
        raise ResourceError(
            f"cannot write a report to {place}: {error.strerror or error}; choose another folder with --out, or make "
            "room"
        ) from error


def _require_free(place: Path) -> None:
    """Refuse a place that holds anything but an earlier report."""
    if place.exists() and not place.is_dir():
        raise InputError(f"--out {place}: expected a folder for the report, and this is a file")
    if not place.exists() or not any(place.iterdir()):
        return
    try:
        marker = json.loads((place / MARKER).read_text(encoding="utf-8"))
        ours = {MARKER, *marker["files"]} if "samtl_report" in marker else set()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        ours = set()
    others = sorted(_files(place) - ours)
    if others or not ours:
        raise InputError(
            f"{place} holds other things than an earlier report{', such as ' * bool(others)}{''.join(others[:1])}, and "
            "is not replaced: name another folder with --out, or move them away"
        )


def _files(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if not path.is_dir() or path.is_symlink()
    }


def _write_figure(drawing: Drawing, folder: Path) -> bytes:
    """Write a figure's files and return what the page embeds."""
    bitmap = png(drawing.figure, tight=drawing.picture)
    (folder / f"{drawing.name}.png").write_bytes(bitmap)
    if not drawing.picture:
        vectors = svg(drawing.figure)
        (folder / f"{drawing.name}.svg").write_text(vectors, encoding="utf-8")
        return vectors.encode()
    with Image.open(io.BytesIO(bitmap)) as opened:
        file = io.BytesIO()
        opened.convert("RGB").save(file, "WEBP", quality=_QUALITY)
    return file.getvalue()


def _csv(table: Table) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([table.header, *table.rows])
    return text.getvalue()


_HOW_COMPARED = (
    "Two models are compared on the very samples that both were scored on, so a difference can be shown even if the "
    "intervals of their scores overlap."
)
_GROUPS = (
    "Whole groups of images, such as scenes, were held out, but the bootstrap draws single images. Images of a group "
    "are alike, so the intervals are narrower than the variation between groups: with few groups, take them as a lower "
    "bound."
)


def _chapter(
    comparison: Comparison, dataset: Dataset | None, why: str, seconds: float | None
) -> tuple[list[Section], list[str]]:
    """Return the sections of the page on one comparison, and what could not be shown."""
    found = compared(comparison)
    by_share = figures.by_share(comparison)
    grouped = any(run.split.name.startswith("grouped") for run in comparison.runs)
    album = Album(dataset)
    samples, panels = images.samples(album), images.panels(comparison, album)
    mistakes = (*images.confused(comparison, album), *images.hardest(comparison, album))
    missing = [*album.notes, *filter(None, [why])]
    sections = [
        Section(
            "findings",
            "Findings",
            parts=tuple(by_share[:1]),
            paragraphs=(_counted(comparison),),
            bullets=findings(comparison, found),
            warnings=comparison.warnings,
        ),
        Section("scores", "Scores", (*by_share[1:], figures.scores_table(comparison))),
        Section(
            "differences",
            "Differences",
            (figures.differences(comparison, found),) if found else (),
            (_HOW_COMPARED, *([_GROUPS] if grouped else [])) if found else (),
        ),
        Section("images", "Images", tuple(samples), tuple(missing)),
        Section("masks", "Masks", (*panels, *figures.image_scores(comparison))),
        Section("training", "Training", tuple(figures.training_curves(comparison))),
        Section("mistakes", "Mistakes", (*figures.confusions(comparison), *mistakes)),
        Section("costs", "Cost", tuple(figures.costs(comparison, seconds))),
        Section(
            "failures", "Failures", (figures.failures(comparison),) if comparison.failed else ()
        ),
        Section("provenance", "Provenance", tuple(figures.provenance(comparison))),
    ]
    return [section for section in sections if section.parts or section.paragraphs], missing


def _counted(comparison: Comparison) -> str:
    """Describe what was compared."""
    shares = [share_of(run) for run in comparison.runs]
    span = dict.fromkeys(f"{100 * share:.0f} %" for share in (min(shares), max(shares)))
    seeds = len({run.seed for run in comparison.runs})
    return (
        f"{counted(len(comparison.runs), 'run')} of {counted(len(comparison.models), 'model')} on {comparison.dataset} "
        f"({', '.join(comparison.models)}), {counted(seeds, 'seed')}, trained on {' to '.join(span)} of the images."
        + " At the share nearest to 80 %, from the best model down:"
        * (len(comparison.models) > 1)
    )


def _subtitle(comparisons: Sequence[Comparison]) -> str:
    runs = [run for one in comparisons for run in one.runs]
    encoders = dict.fromkeys(weights_of(run) for run in runs if run.encoder)
    kinds = dict.fromkeys(
        f"{one.task.capitalize()}, {counted(len(one.classes), 'class')}" for one in comparisons
    )
    return f"{'; '.join(kinds)}.{' Encoder ' * bool(encoders)}{', '.join(encoders)}{'.' * bool(encoders)}"


def _numbered(chapter: Sequence[Section], comparison: Comparison, number: int) -> list[Section]:
    """Give the parts of one of several comparisons names and titles of their own."""
    name = re.sub(r"[^a-z0-9]+", "-", comparison.dataset.lower()).strip("-")
    prefix = f"{number}-{name}"[:40]
    return [
        replace(
            section,
            name=f"{prefix}-{section.name}",
            title=f"{number}. {comparison.dataset}: {section.title.lower()}",
            parts=tuple(replace(part, name=f"{prefix}-{part.name}") for part in section.parts),
        )
        for section in chapter
    ]


def _dataset(
    comparison: Comparison, given: str | Dataset | None, root: str | Path | None
) -> tuple[Dataset | None, str]:
    """Open the dataset whose images are shown; else say how to get it."""
    if given is not None:
        found = resolve(given, root)
        if found.name == comparison.dataset:
            return found, ""
        return None, f"The runs are on {comparison.dataset}, not on {found.name}."
    try:
        if ":" in comparison.dataset:  # a run must not say which files are opened
            raise InputError(f"{comparison.dataset!a} is not the name of a dataset")
        found = resolve(comparison.dataset, root, download=False)
        if found.name != comparison.dataset:
            raise InputError(f"the runs are on {comparison.dataset}, not on {found.name}")
        return found, ""
    except SamtlError as error:
        if root is not None:
            raise InputError(f"--root {root}: {error}; name the dataset with --dataset") from error
        return None, (
            "To see them, name the dataset as it was embedded, and where its files are, with `--dataset` and `--root`."
        )
