"""The table of a sweep, derived from its run folders, and the cells that failed."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import Struct

from samtl._io import canonical, read_json, replace
from samtl.errors import DamageError, writing
from samtl.experiment.held_out import FLOOR
from samtl.experiment.run import Config, Run
from samtl.metrics.classification import Score

Row = dict[str, Any]

FAILED = "failed"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a formula may begin with in a spreadsheet
_OF_STORE = ("encoder", "weights", "untrained", "store", "fingerprint", "snapshot")


class Failure(Struct):
    """The content of `failed/NAME.json`: a cell that failed when it was last tried."""

    cell: str
    error: str


@dataclass(frozen=True, eq=False)
class SweepResult:
    """What a sweep came to."""

    out: Path  #: its folder
    done: int  #: cells that were trained now
    skipped: int  #: cells that were finished before
    failed: dict[str, str]  #: reasons by the name of the cell
    #: of the table: one for each metric of each finished cell, and one for each failed cell
    rows: list[Row]
    seconds: float
    notes: tuple[str, ...]

    def write_table(self, path: str | Path) -> None:
        """Write `rows` as a CSV file, replacing an earlier one; ResourceError if that is not possible."""
        place, text = Path(path), io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(self.rows[0])
        table.writerows(
            [
                str(value).lower() if isinstance(value, bool) else no_formula(value)
                for value in row.values()
            ]
            for row in self.rows
        )
        with writing(str(place), "name another file, or make room"):
            replace(place, text.getvalue().encode(errors="backslashreplace"))

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {**vars(self), "out": str(self.out), "seconds": round(self.seconds, 3)}


def no_formula(value: Any) -> Any:
    """Put an apostrophe before a text that a spreadsheet would take for a formula; other values stay."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def failed_cells(folder: Path) -> list[tuple[str, str]]:
    """List the cells of a sweep that failed and were not trained since, with the reasons."""
    found = []
    for path in sorted((folder / FAILED).glob("[!.]*.json")):
        try:
            failure = read_json(path, Failure)
        except DamageError as error:
            failure = Failure(path.stem, str(error))
        found.append((failure.cell, failure.error))
    return found


def rows_of(run: Run, split: str) -> list[Row]:
    """Return the rows of a run, one for each metric; the floor's are followed by those of its companions.

    A companion is another model that is fitted with the floor; its method is `floor/COMPANION`, such as `floor/knn`.

    Parameters
    ----------
    run : Run
    split : str
        The split as it was asked for.
    """
    scores = {run.name: run.metrics}
    if run.name == FLOOR:  # other runs repeat what the floor's companions came to
        scores |= {f"{FLOOR}/{other}": found for other, found in run.also.items()}
    return [
        _row(run, split, method=method, metric=metric, score=score)
        for method, found in scores.items()
        for metric, score in found.items()
    ]


def failed_row(config: Config, split: str, error: str) -> Row:
    """Return the row of a cell that failed; what it lacks is None."""
    return _row(config, split, config.name, error=error)


def _row(
    of: Config,
    split: str,
    method: str,
    metric: str | None = None,
    score: Score | None = None,
    error: str = "",
) -> Row:
    run = of if isinstance(of, Run) else None
    return {
        # Called as in the results of torchgeo-bench
        "dataset": of.dataset,
        "method": method,
        "metric_name": metric,
        "metric_value": score and score.value,
        "ci_lower": score and score.low,
        "ci_upper": score and score.high,
        "n_train": run and run.n_train,
        "n_val": run and run.n_validation,
        "n_test": run and run.n_test,
        "seed": of.seed,
        "best_c": of.recipe.get("C"),
        # samtl's own
        "cell": of.digest,
        "status": "done" if run else FAILED,
        "error": error,
        "task": of.task,
        "kind": of.kind,
        "features": of.inputs,
        "split": split,
        "split_name": of.split.name,
        "share": of.split.share,
        "split_digest": of.split.digest,
        **{name: getattr(of, name) for name in _OF_STORE},
        "params": canonical(of.params).decode(),
        "epochs": run and run.training.get("epochs"),
        "best_epoch": run and run.training.get("best_epoch"),
        "warm_start": of.warm_start,
        "seconds": run and run.seconds["total"],
        "fit_seconds": run and run.seconds.get("fit"),
        "peak_memory": run and run.peak_memory,
        "run": f"{run.path.parent.name}/{run.path.name}" if run else None,
        "samtl_version": of.versions["samtl"],
        "finished": run and run.finished,
    }
