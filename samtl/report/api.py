"""Runs in, report out: one page, and its figures as PNG, SVG and CSV files."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from PIL import Image

from samtl._io import AtomicFolder
from samtl.datasets import Dataset, resolve
from samtl.errors import InputError, SamtlError, writing
from samtl.experiment.run import runs_folder
from samtl.report import figures
from samtl.report.compare import Comparison, samples_of, weights_of
from samtl.report.findings import compared, findings, headline
from samtl.report.load import read_comparisons, read_stores, set_apart
from samtl.report.page import Part, Section, caption, render, slug
from samtl.report.pictures import images
from samtl.report.pictures.album import Album
from samtl.report.pictures.stores import embeddings
from samtl.report.style import capital, png, svg
from samtl.splits.spec import leaks
from samtl.store.storage import as_output
from samtl.sweep.results import no_formula

DEFAULT_OUT = "report"
PAGE, MARKER, FIGURES = "index.html", "report.json", "figures"
RESULT, STORES = "Result", "Embeddings"
FEW_GROUPS = 5  # held-out groups: an interval of fewer is nearly as wide as the scale
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
    title: str | None = None,
    encoder_seconds: float | None = None,
    on_event: Callable[[str], None] | None = None,
) -> ReportResult:
    """Draw all figures of a study, and write them with their findings as one page that needs no network.

    Runs that cannot be compared, such as those of several datasets, are reported one set after the other.

    Parameters
    ----------
    sources : path or sequence of path
        Run folders, sweep folders, and folders of such; by default `$SAMTL_RUNS`, else `./runs`.
    out : path
        The report's folder, with `index.html` and `figures/`. An earlier report there is replaced. If the folder holds
        other things, the report is `report` in it.
    dataset : str or Dataset, optional
        The dataset of the runs, for figures with images; by default the one that they name, if it is on this machine.
    root : path, optional
        Where its files are.
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
        If there are no runs; if a dataset that was named cannot be opened; if `out` holds anything but a report; if
        the extra `report` is not installed.
    ResourceError
        If the report cannot be written.
    """
    began = time.perf_counter()
    tell = on_event or (lambda line: None)
    given = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    out = _folder(as_output(out))
    place = out.resolve()  # a link to a folder stays, and what it points to is replaced
    with writing(f"a report into {place}"), AtomicFolder(place.parent) as folder:
        _require_free(place)
        tell("reading runs")
        comparisons = set_apart(read_comparisons(given or [runs_folder()]))
        sections: list[Section] = []
        missing: dict[str, None] = {}
        for number, one in enumerate(comparisons, 1):
            tell(f"drawing {one.dataset}, runs: {len(one.runs)}")
            album = Album(*_dataset(one, dataset, root))
            chapter = _chapter(one, album, encoder_seconds)
            unseen = [text for part in chapter if part.title == STORES for text in part.texts]
            missing |= dict.fromkeys([*unseen, *album.notes])
            sections += _numbered(chapter, one, number) if len(comparisons) > 1 else chapter
        parts = [part for section in sections for part in section.parts]
        (folder.path / FIGURES).mkdir()
        tell("writing figures")
        written = {part.name: _write(part, folder.path / FIGURES) for part in parts}
        shown = {name: image for name, image in written.items() if image is not None}
        runs = [run for one in comparisons for run in one.runs]
        encoders: dict[str, set[int]] = defaultdict(set)
        for run in runs:
            if run.encoder:
                encoders[weights_of(run)] |= {
                    size for key, size in run.identity.items() if key == "image_size" and size
                }
        content = render(
            title or caption("title", comparisons=comparisons),
            caption("subtitle", comparisons=comparisons, encoders=encoders),
            sections,
            shown,
            f"Made by samtl {version('samtl')} on {datetime.now(UTC):%d %B %Y}. Runs: {len(runs)}.",
        ).encode()
        (folder.path / PAGE).write_bytes(content)
        files = sorted(_files(folder.path))
        marker = {"samtl_report": 1, "samtl": version("samtl"), "files": files}
        (folder.path / MARKER).write_text(json.dumps(marker, indent=1), encoding="utf-8")
        _require_free(place)  # minutes may have passed
        folder.publish(place.name, replace=True)
    return ReportResult(
        folder=out,
        page=out / PAGE,
        studies=len(comparisons),
        runs=len(runs),
        figures=len(shown),
        tables=len(parts) - len(shown),
        bytes=len(content),
        seconds=time.perf_counter() - began,
        lines=tuple(line.replace("`", "") for section in sections for line in section.bullets),
        warnings=tuple(dict.fromkeys(text for section in sections for text in section.warnings)),
        missing=tuple(missing),
    )


def _folder(out: Path) -> Path:
    """Return the folder of a report: `out`, or `report` in it if it holds other things and no report."""
    others = out.is_dir() and any(out.iterdir()) and not (out / MARKER).exists()
    return out / DEFAULT_OUT if others else out


def _require_free(place: Path) -> None:
    """Refuse a place that holds anything but an earlier report."""
    if not place.exists() or not any(place.iterdir()):
        return
    try:
        marker = json.loads((place / MARKER).read_text(encoding="utf-8"))
        ours = {MARKER, *marker["files"]} if marker["samtl_report"] else set()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        ours = set()
    others = sorted(_files(place) - ours)
    if others or not ours:
        raise InputError(
            f"{place} holds other things than an earlier report, such as {(others or [MARKER])[0]}, and is not "
            "replaced: name another folder with --out, or move them away"
        )


def _files(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if not path.is_dir() or path.is_symlink()
    }


def _write(part: Part, folder: Path) -> bytes | None:
    """Write the files of a part, and return the image that the page embeds; None for a table."""
    with (folder / f"{part.name}.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(map(no_formula, part.header))
        for row in part.rows:
            table.writerow(
                f"{v:.6g}" if isinstance(v, float) else no_formula(v) for v in row.values()
            )
    if part.figure is None:
        return None
    bitmap = png(part.figure, tight=part.picture)
    (folder / f"{part.name}.png").write_bytes(bitmap)
    if not part.picture:
        vectors = svg(part.figure).encode()
        (folder / f"{part.name}.svg").write_bytes(vectors)
        return vectors
    with Image.open(io.BytesIO(bitmap)) as opened:
        small = io.BytesIO()
        opened.convert("RGB").save(small, "WEBP", quality=_QUALITY)
    return small.getvalue()


def _chapter(comparison: Comparison, album: Album, encoder_seconds: float | None) -> list[Section]:
    """Return the sections of the page on one comparison."""
    pairs, runs = compared(comparison), comparison.runs
    if encoder_seconds is None:
        encoder_seconds = figures.pass_seconds(comparison)
    samples, panels = images.samples(album), images.panels(comparison, album)
    mistakes = (*images.confused(comparison, album), *images.hardest(comparison, album))
    stores, absent = read_stores(comparison)
    pictures, notes = embeddings(stores, album)
    if absent:
        notes.insert(0, caption("no_store", names=absent))
    lines = [*headline(comparison), *findings(comparison, pairs)]
    paired = [caption("paired")] if pairs else []
    if pairs and any(run.split.name.startswith("grouped") for run in runs):
        paired.append(caption("grouped"))
    sections = [
        Section(
            RESULT,
            figures.score_tables(comparison),
            [_counts(comparison, album), caption("reading", comparison=comparison)],
            lines,
            warnings_of(comparison),
        ),
        Section("Scores", figures.by_share(comparison)),
        Section("Differences", figures.differences(comparison, pairs), paired),
        Section("Classes", figures.per_class(comparison)),
        Section("Calibration", figures.reliability(comparison)),
        Section("Predictions", figures.predicted_numbers(comparison)),
        Section("Images", samples, album.notes),
        Section(STORES, pictures, notes),
        Section("Masks", [*panels, *figures.image_scores(comparison)]),
        Section("Mistakes", [*figures.confusions(comparison), *mistakes]),
        Section("Training", figures.training_curves(comparison)),
        Section(
            "Cost",
            [
                *figures.encoder_costs(comparison, stores),
                figures.costs(comparison, encoder_seconds),
            ],
        ),
        Section("Failures", figures.failures(comparison)),
        Section("Provenance", figures.provenance(comparison)),
    ]
    return [section for section in sections if section.parts or section.texts]


def _counts(comparison: Comparison, album: Album) -> str:
    """Say how much of the dataset was used, and what the figures are of."""
    sizes = sorted({run.n_test for run in comparison.standard[0].runs})
    return caption(
        "counts",
        comparison=comparison,
        used=max(map(samples_of, comparison.runs)),
        whole=0 if album.dataset is None else len(album.dataset),
        shares=[
            f"{share:g}"
            for share in sorted({float(f"{100 * one.share:.3g}") for one in comparison.series})
        ],
        held_out=" to ".join(f"{n:,}" for n in dict.fromkeys((sizes[0], sizes[-1]))),
    )


def warnings_of(comparison: Comparison) -> list[str]:
    """Return what a reader must know before comparing."""
    runs, found = comparison.runs, []
    if models := dict.fromkeys(model for model, run in comparison.pairs if run.untrained):
        weights = sorted({run.weights for run in runs if run.untrained})
        found.append(caption("untrained_models", models=models, weights=weights))
    if all(leaks(run.split.name) for run in runs):
        found.append(caption("random_splits"))
    if not comparison.one_state:
        found.append(caption("other_state"))
    if most := max(run.copies_held_out for run in runs):
        found.append(caption("copies", most=most))
    groups = min((run.n_groups for run in runs if run.n_groups), default=FEW_GROUPS)
    if groups < FEW_GROUPS:
        masks = comparison.task == "segmentation"
        found.append(caption("few_groups", groups=groups, masks=masks))
    if comparison.task == "segmentation":
        if not any(run.confusion[1:].any() for one in comparison.standard for run in one.runs):
            found.append(caption("no_foreground", names=" or ".join(comparison.classes[1:])))
        if len(sizes := sorted({run.resolution for run in runs})) > 1:
            found.append(caption("resolutions", sizes=sizes))
    notes = dict.fromkeys(run.note for run in runs if run.note)
    return [*found, *map(capital, notes), *comparison.warnings]


def _numbered(chapter: Sequence[Section], comparison: Comparison, number: int) -> list[Section]:
    """Give the parts of one of several comparisons names and titles of their own."""
    prefix = slug(f"{number} {comparison.dataset}")[:40]
    return [
        replace(
            section,
            title=f"{number}. {comparison.dataset}: {section.title.lower()}",
            parts=[replace(part, name=f"{prefix}-{part.name}") for part in section.parts],
        )
        for section in chapter
    ]


def _dataset(
    comparison: Comparison, given: str | Dataset | None, root: str | Path | None
) -> tuple[Dataset | None, str]:
    """Open the dataset whose images are shown, or say how to name it."""
    if given is None and ":" in comparison.dataset:
        return None, caption("name_dataset")  # a run must not say which files are opened
    try:
        chosen = comparison.dataset if given is None else given
        found = resolve(chosen, root, download=given is not None)
    except SamtlError:
        if given is not None or root is not None:
            raise
        return None, caption("name_dataset")
    if found.name != comparison.dataset:
        return None, caption("name_dataset", runs=comparison.dataset, given=found.name)
    return found, ""
