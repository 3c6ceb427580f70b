"""The results of a sweep: an append-only CSV file, one row for each cell and metric.

A cell is one training: a model on a split with a seed. Its rows are appended in one piece, under a lock, when it is
done; a cell that came to nothing has one row that says why. A process that is killed while it writes leaves a torn
end at most: it does not count, `mend` drops it, and the cell is done again. Nothing else is ever taken for torn: damage
further up is an error.

The first columns are called as those of torchgeo-bench's results, so that what reads the one can read the other. Text
never holds a line break: a line is a row.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from samtl import _io
from samtl._io import canonical
from samtl.errors import InputError, LockedError, ResourceError
from samtl.experiment.run import Run

Row = dict[str, Any]

FILE = "results.csv"
DONE, FAILED = "done", "failed"

_TEXT, _WHOLE, _REAL, _FLAG = "text", "whole", "real", "flag"
_KINDS = {
    "dataset": _TEXT,
    "method": _TEXT,
    "metric_name": _TEXT,
    "metric_value": _REAL,
    "ci_lower": _REAL,
    "ci_upper": _REAL,
    "n_train": _WHOLE,
    "n_val": _WHOLE,
    "n_test": _WHOLE,
    "seed": _WHOLE,
    "best_c": _REAL,
    "cell": _TEXT,
    "n_metrics": _WHOLE,
    "status": _TEXT,
    "error": _TEXT,
    "task": _TEXT,
    "kind": _TEXT,
    "features": _TEXT,
    "split": _TEXT,
    "split_name": _TEXT,
    "share": _REAL,
    "split_digest": _TEXT,
    "encoder": _TEXT,
    "weights": _TEXT,
    "untrained": _FLAG,
    "store": _TEXT,
    "fingerprint": _TEXT,
    "snapshot": _TEXT,
    "params": _TEXT,
    "epochs": _WHOLE,
    "best_epoch": _WHOLE,
    "warm_start": _TEXT,
    "seconds": _REAL,
    "fit_seconds": _REAL,
    "peak_memory": _WHOLE,
    "run": _TEXT,
    "samtl_version": _TEXT,
    "finished": _TEXT,
}
COLUMNS = tuple(_KINDS)
_HEADER = (",".join(COLUMNS) + "\n").encode()
_WAIT = 60.0  # seconds for another process to append its rows, which takes a moment


class Results:
    """A results file, which need not exist yet.

    Parameters
    ----------
    path : Path
        Its folder is made where it does not exist, once anything is appended.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def read(self) -> list[Row]:
        """Give the rows that count, in the order of the file: those of finished cells, and of failed ones.

        A cell that was done several times counts as it was done last; one that failed first and was done then, as
        done. Values are text, int, float, bool, or None where there is none.

        Raises
        ------
        InputError
            Where the file is none of these, or damaged elsewhere than at its end.
        ResourceError
            Where it cannot be read.
        """
        return [row for attempt in self._counting().values() for row in attempt.rows]

    def cells(self) -> dict[str, list[Row]]:
        """Give the rows that count by cell; see `read`."""
        return {cell: attempt.rows for cell, attempt in self._counting().items()}

    def done(self) -> set[str]:
        """Tell which cells are done, with all of their rows."""
        return {cell for cell, attempt in self._counting().items() if attempt.status == DONE}

    def failed(self) -> dict[str, str]:
        """Tell which cells failed and were not done since, and why."""
        return {
            cell: str(attempt.rows[0]["error"])
            for cell, attempt in self._counting().items()
            if attempt.status == FAILED
        }

    def torn(self) -> list[str]:
        """Say what `mend` would drop, and leave it."""
        return self._scan().notes

    def mend(self) -> list[str]:
        """Drop what is torn: a half-written last line, and the rows of cells that are not complete.

        Returns
        -------
        list of str
            What was dropped, in words; empty where the file is sound, which is then not touched.

        Raises
        ------
        InputError
            As `read`.
        LockedError
            Where another process does not let go of it.
        ResourceError
            Where the disk does not take it.
        """
        if not self.path.exists():
            return []
        with self._locked():
            return self._mend()

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add all the rows of one cell: durable, and whole or not at all.

        Parameters
        ----------
        rows : sequence of mapping
            As `rows_of` and `failed_row` give them; what is not there is left empty.

        Raises
        ------
        InputError
            Where the file is not a results file, or damaged.
        LockedError
            Where another process does not let go of it.
        ResourceError
            Where the disk does not take it; the file is then as it was.
        """
        content = _encoded(rows)
        with self._locked():
            if self.path.exists() and self.path.stat().st_size:
                if not self._ends_well():
                    self._mend()
            else:
                _io.replace(self.path, _HEADER)
            _add(self.path, content)

    def _ends_well(self) -> bool:
        with self.path.open("rb") as file:
            if file.readline() != _HEADER:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"

    def _mend(self) -> list[str]:
        scan = self._scan()
        if scan.notes:
            _io.replace(self.path, b"".join([_HEADER, *scan.kept()]))
        return scan.notes

    def _counting(self) -> dict[str, _Attempt]:
        """Find the attempt at each cell that counts."""
        counting: dict[str, _Attempt] = {}
        for attempt in self._scan().attempts:
            before = counting.get(attempt.cell)
            if attempt.complete and not (
                before and before.status == DONE and attempt.status == FAILED
            ):
                counting[attempt.cell] = attempt
        return counting

    def _scan(self) -> _Scan:
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
        except IsADirectoryError as error:
            raise InputError(f"{self.path} is a folder: expected a results file") from error
        except OSError as error:
            raise ResourceError(f"cannot read {self.path}: {error.strerror or error}") from error
        return _scan(self.path, content)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the file's lock, and turn what the disk refuses into a `ResourceError`."""
        lock = FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=_WAIT)
        try:
            _io.make_folder(self.path.parent)
            with lock:
                yield
        except Timeout as error:
            raise LockedError(
                f"{self.path} is being written by another process; wait for it to end, or stop it"
            ) from error
        except OSError as error:
            raise ResourceError(
                f"cannot write {self.path}: {error.strerror or error}; choose another folder with --out, or make room"
            ) from error


@dataclass
class _Attempt:
    """Neighbouring rows of one cell that were written together."""

    cell: str
    status: str
    rows: list[Row] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return self.status == FAILED or len(self.rows) == self.rows[0]["n_metrics"]

    def takes(self, row: Row) -> bool:
        """Tell whether a row is one more of this attempt, and not the first of another."""
        return (
            row["cell"] == self.cell
            and row["status"] == self.status == DONE
            and not any(_measured(row) == _measured(other) for other in self.rows)
        )


def _measured(row: Row) -> tuple[str, str]:
    return row["method"], row["metric_name"]


@dataclass
class _Scan:
    """What a file holds, and what is torn about it."""

    attempts: list[_Attempt]
    notes: list[str]

    def kept(self) -> Iterator[bytes]:
        for attempt in self.attempts:
            if attempt.complete:
                yield from attempt.lines


def _scan(path: Path, content: bytes) -> _Scan:
    header, *lines = content.splitlines(keepends=True) if content else [_HEADER]
    if header.rstrip(b"\r\n") != _HEADER.rstrip() or not header.endswith(b"\n"):
        if not lines and _HEADER.startswith(content):
            return _Scan([], [f"the header of {path.name} was half-written and was written anew"])
        raise InputError(
            f"{path} is no results file of samtl: expected the columns {','.join(COLUMNS[:4])},... in its first line, "
            f"got {header[:80].decode(errors='replace').strip()!r}; move it elsewhere, or name another folder"
        )
    attempts: list[_Attempt] = []
    notes = []
    for number, line in enumerate(lines, start=2):
        row = _row(line)
        if row is None and number == len(lines) + 1:
            notes.append(
                f"the last line of {path.name} was half-written and was dropped; its cell is done again"
            )
        elif row is None:
            raise InputError(
                f"line {number} of {path} is damaged: expected the {len(COLUMNS)} values of a row, got "
                f"{line[:80].decode(errors='replace').strip()!r}; restore the file, or take the line out"
            )
        else:
            if not attempts or not attempts[-1].takes(row):
                attempts.append(_Attempt(row["cell"], row["status"]))
            attempts[-1].rows.append(row)
            attempts[-1].lines.append(line)
    notes += [
        f"{len(attempt.rows)} of {attempt.rows[0]['n_metrics']} rows of the cell {attempt.cell[:8]} were in "
        f"{path.name} and were dropped; it is done again"
        for attempt in attempts
        if not attempt.complete
    ]
    return _Scan(attempts, notes)


def _row(line: bytes) -> Row | None:
    """Read one line; None where it is no whole row."""
    try:
        (values,) = csv.reader([line.decode()], strict=True)
        if not line.endswith(b"\n") or len(values) != len(COLUMNS):
            return None
        row = {
            name: _PARSERS[kind](value)
            for (name, kind), value in zip(_KINDS.items(), values, strict=True)
        }
    except (ValueError, KeyError, csv.Error):
        return None
    sound = row["cell"] and row["status"] in (DONE, FAILED)
    return row if sound and (row["status"] == FAILED or row["n_metrics"]) else None


_PARSERS: dict[str, Callable[[str], Any]] = {
    _TEXT: str,
    _WHOLE: lambda value: int(value) if value else None,
    _REAL: lambda value: float(value) if value else None,
    _FLAG: lambda value: {"true": True, "false": False, "": None}[value],
}


def _encoded(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Write rows as lines; what is wrong with them is a defect of the caller."""
    cells = {(row["cell"], row["status"], row["n_metrics"]) for row in rows}
    measured = {(row["method"], row["metric_name"]) for row in rows}
    ((_, status, n),) = cells
    if len(rows) != (1 if status == FAILED else n) or len(measured) != len(rows):
        raise ValueError(f"expected all {n} rows of a cell, each once, got {len(rows)}")
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    table.writerows({name: _plain(value) for name, value in row.items()} for row in rows)
    content = text.getvalue().encode(errors="backslashreplace")
    if not all(map(_row, content.splitlines(keepends=True))):
        raise ValueError(f"a value is none of its column: {content.decode()}")
    return content


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return re.sub(r"[\r\n]+ *", " ", str(value))


def _add(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        before = os.fstat(descriptor).st_size
        try:
            written = os.write(descriptor, content)
            if written < len(content):
                raise OSError(f"only {written} of {len(content)} bytes were taken")
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, before)
            raise
    finally:
        os.close(descriptor)


def rows_of(run: Run, split_spec: str) -> list[Row]:
    """Make the rows of a finished cell: one for each of its metrics, then those of its companions.

    A companion is another model that was scored in the same run; its method is `MODEL/COMPANION`, such as `floor/knn`.

    Parameters
    ----------
    run : Run
    split_spec : str
        The split as it was asked for.
    """
    scores = {run.name: run.metrics}
    scores |= {f"{run.name}/{other}": found for other, found in run.also.items()}
    common = {
        "dataset": run.dataset,
        "n_train": run.n_train,
        "n_val": run.n_validation,
        "n_test": run.n_test,
        "seed": run.seed,
        "best_c": run.recipe.get("C"),
        "cell": run.digest,
        "n_metrics": sum(map(len, scores.values())),
        "status": DONE,
        "error": "",
        "task": run.task,
        "kind": run.kind,
        "features": run.inputs,
        "split": split_spec,
        "split_name": run.split.name,
        "share": run.split.share,
        "split_digest": run.split.digest,
        "encoder": run.encoder,
        "weights": run.weights,
        "untrained": run.untrained,
        "store": run.store,
        "fingerprint": run.fingerprint,
        "snapshot": run.snapshot,
        "params": canonical(run.params).decode(),
        "epochs": run.training.get("epochs"),
        "best_epoch": run.training.get("best_epoch"),
        "warm_start": run.warm_start,
        "seconds": run.seconds["total"],
        "fit_seconds": run.seconds.get("fit"),
        "peak_memory": run.peak_memory,
        "run": f"{run.path.parent.name}/{run.path.name}",
        "samtl_version": run.versions["samtl"],
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


def failed_row(*, cell: str, error: str, method: str, **known: Any) -> Row:
    """Make the row of a cell that came to nothing; `known` are further columns."""
    return {
        **known,
        "method": method,
        "metric_name": "",
        "cell": cell,
        "n_metrics": 0,
        "status": FAILED,
        "error": error,
        "finished": _now(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
