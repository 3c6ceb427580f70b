"""The folder of a report: there whole or not at all, and in the place of an earlier report only."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from samtl._io import replace_folder
from samtl.errors import InputError, ResourceError

MARKER = "report.json"
_FORMAT = 1


class ReportFolder:
    """A report being written in a hidden folder beside its place; nothing is left unless `publish` was reached.

    Parameters
    ----------
    place : Path
        Its parent is made where it does not exist.

    Raises
    ------
    InputError
        Where the place is taken by anything but a report.
    ResourceError
        Where the disk does not take it.
    """

    def __init__(self, place: Path) -> None:
        # Resolved, so that a link to a folder stays and what it points to is replaced.
        self.place = place.resolve()
        self._given = place
        _require_free(place)
        self.path = self.place.parent / f".tmp-{uuid.uuid4().hex}"
        with self._writing():
            self.path.mkdir(parents=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file, by its path below the folder; text as UTF-8."""
        path = self.path / name
        with self._writing():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)

    def publish(self, about: Mapping[str, Any]) -> None:
        """Write the marker, with the names of all files, and move the folder to its place."""
        _require_free(self._given)  # minutes may have passed
        with self._writing():
            files = sorted(_files(self.path))
            marker = {"samtl_report": _FORMAT, **about, "files": files}
            text = json.dumps(marker, indent=1, ensure_ascii=False) + "\n"
            (self.path / MARKER).write_text(text, encoding="utf-8")
            replace_folder(self.path, self.place)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ResourceError(
                f"cannot write a report to {self._given}: {error.strerror or error}; choose another place with --out, "
                "or make room"
            ) from error


def _require_free(place: Path) -> None:
    """Refuse a place that holds anything that this would lose."""
    try:
        if not place.exists():
            return
        held = None if not place.is_dir() else set(_files(place))
    except OSError as error:
        raise InputError(f"--out {place}: {error.strerror or error}") from error
    if held is None:
        raise InputError(f"--out {place}: expected a folder for the report, and this is a file")
    if not held and not any(place.iterdir()):
        return
    others = sorted(held - _written_by_us(place))
    if others or not held:
        told = f", such as {others[0]}" if others else ""
        raise InputError(
            f"{place} holds other things than an earlier report{told}, and is not replaced: name another folder with "
            "--out, or move them away yourself"
        )


def _written_by_us(folder: Path) -> set[str]:
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return {MARKER, *marker["files"]} if "samtl_report" in marker else set()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()


def _files(folder: Path) -> Iterator[str]:
    return (
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if not path.is_dir() or path.is_symlink()
    )
