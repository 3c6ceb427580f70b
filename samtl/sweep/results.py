"""The table of a sweep, derived from its run folders, and the cells that failed."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from samtl._io import canonical, make_folder, read_json, replace
from samtl.errors import ResourceError
from samtl.experiment.run import Config, Run

Row = dict[str, Any]

FAILED = "failed"
# The first are called as in the results of torchgeo-bench.
COLUMNS = (
    "dataset", "method", "metric_name", "metric_value", "ci_lower", "ci_upper", "n_train", "n_val", "n_test", "seed",
    "best_c", "cell", "status", "error", "task", "kind", "features", "split", "split_name", "share", "split_digest",
    "encoder", "weights", "untrained", "store", "fingerprint", "snapshot", "params", "epochs", "best_epoch",
    "warm_start", "seconds", "fit_seconds", "peak_memory", "run", "samtl_version", "finished",
)  # fmt: skip


class Failure(msgspec.Struct):
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
        table = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows({name: _plain(value) for name, value in row.items()} for row in self.rows)
        try:
            make_folder(place.absolute().parent)
            replace(place, text.getvalue().encode(errors="backslashreplace"))
        except OSError as error:
            raise ResourceError(
                f"cannot write {place}: {error.strerror or error}; name another file, or make room"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "out": str(self.out),
            "done": self.done,
            "skipped": self.skipped,
            "failed": self.failed,
            "rows": self.rows,
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
        }


def failed_cells(folder: Path) -> list[tuple[str, str]]:
    """List the cells of a sweep that failed and were not trained since, with the reasons."""
    found = [read_json(path, Failure) for path in sorted((folder / FAILED).glob("[!.]*.json"))]
    return [(failure.cell, failure.error) for failure in found]


def rows_of(run: Run, split: str) -> list[Row]:
    """Return the rows of a run, one for each metric: the model's, then those of its companions.

    A companion is another model that was scored in the same run; its method is `MODEL/COMPANION`, such as `floor/knn`.

    Parameters
    ----------
    run : Run
    split : str
        The split as it was asked for.
    """
    scores = {run.name: run.metrics}
    scores |= {f"{run.name}/{other}": found for other, found in run.also.items()}
    common = _about(run, split) | {
        "status": "done",
        "error": "",
        "n_train": run.n_train,
        "n_val": run.n_validation,
        "n_test": run.n_test,
        "best_c": run.recipe.get("C"),
        "epochs": run.training.get("epochs"),
        "best_epoch": run.training.get("best_epoch"),
        "seconds": run.seconds["total"],
        "fit_seconds": run.seconds.get("fit"),
        "peak_memory": run.peak_memory,
        "run": f"{run.path.parent.name}/{run.path.name}",
        "finished": run.finished,
    }
    return [
        {
            **common,
            "method": method,
            "metric_name": metric,
            "metric_value": score.value,
            "ci_lower": score.low,
            "ci_upper": score.high,
        }
        for method, found in scores.items()
        for metric, score in found.items()
    ]


def failed_row(config: Config, split: str, error: str) -> Row:
    """Return the row of a cell that failed; columns that it lacks are empty."""
    return _about(config, split) | {"status": FAILED, "error": error}


def _about(config: Config, split: str) -> Row:
    return {
        "dataset": config.dataset,
        "method": config.name,
        "seed": config.seed,
        "cell": config.digest,
        "task": config.task,
        "kind": config.kind,
        "features": config.inputs,
        "split": split,
        "split_name": config.split.name,
        "share": config.split.share,
        "split_digest": config.split.digest,
        "encoder": config.encoder,
        "weights": config.weights,
        "untrained": config.untrained,
        "store": config.store,
        "fingerprint": config.fingerprint,
        "snapshot": config.snapshot,
        "params": canonical(config.params).decode(),
        "warm_start": config.warm_start,
        "samtl_version": config.versions["samtl"],
    }


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return re.sub(r"[\r\n]+ *", " ", str(value))
