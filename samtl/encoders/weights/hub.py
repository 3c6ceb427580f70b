"""Models in the files of transformers: a folder, or a repository on the Hugging Face hub."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samtl import _download
from samtl.errors import InputError, ResourceError, SamtlError, require_extra

_log = logging.getLogger(__name__)
PREFIX = "hf:"
CONFIG = "config.json"
_ABOUT = (CONFIG, "preprocessor_config.json", "processor_config.json")
# The usual files first; a repository may hold the same weights in others.
_WEIGHTS = (
    ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"),
)
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True)
class Source:
    """Where a model is; its configuration is on this machine."""

    name: str  #: `hf:` and the repository with its revision, or the absolute path of the folder
    folder: Path
    repository: str = ""  #: "" for a folder of the user's

    @property
    def description(self) -> str:
        """What is said of the weights."""
        if self.repository:
            return f"official {self.repository}@{self.folder.name[:12]}"
        return f"folder {self.folder.name}"


def find(name: str) -> Source:
    """Find the model that `hf:FOLDER` or `hf:REPOSITORY[@REVISION]` names; downloads its configuration.

    Raises InputError if there is no such folder or repository, and ResourceError if a download fails.
    """
    text = name.removeprefix(PREFIX)
    folder = Path(text).expanduser()
    if folder.is_dir():
        source = Source(f"{PREFIX}{folder.resolve()}", folder.resolve())
    else:
        repository, _, revision = text.partition("@")
        if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", repository):
            raise InputError(
                f"--encoder {name}: no such folder (expected a folder, or a repository such as facebook/dinov2-small)"
            )
        source = Source(name, _described(repository, revision), repository)
    if not (source.folder / CONFIG).is_file():
        raise InputError(
            f"--encoder {name} has no {CONFIG}: expected a model of transformers, as save_pretrained writes it"
        )
    return source


def with_weights(source: Source) -> Path:
    """Return the folder with a model's weights; a repository's are downloaded.

    Raises InputError if there are none, and ResourceError if a download fails.
    """
    for patterns in _WEIGHTS:
        if source.repository:
            # The commit of the configuration, even if the repository has moved on.
            _fetch(source.repository, source.folder.name, patterns)
        if any(path for pattern in patterns for path in source.folder.glob(pattern)):
            return source.folder
    raise InputError(
        f"{source.name} has no weights: expected {' or '.join(names[0] for names in _WEIGHTS)}; name a file with "
        "--checkpoint, or try without: --checkpoint random:0"
    )


@functools.cache
def _described(repository: str, revision: str) -> Path:
    return _fetch(repository, revision, _ABOUT)


def _fetch(repository: str, revision: str, patterns: Sequence[str]) -> Path:
    """Return the folder of a repository with the files that have such names; what is missing is downloaded."""
    hub = require_extra("huggingface_hub", "hf")
    errors = require_extra("huggingface_hub.errors", "hf")
    local = _download.is_forbidden()
    _log.info("looking for %s of %s on the Hugging Face hub", patterns[0], repository)
    try:
        with _without_bars(require_extra("huggingface_hub.utils", "hf")):
            options = {"revision": revision or None, "allow_patterns": list(patterns)}
            return Path(hub.snapshot_download(repository, **options, local_files_only=local))
    except Exception as error:  # the hub's HTTP client has classes of its own
        causes = [type(one) for one in (error, error.__cause__, error.__context__)]

        def among(kind: type[Exception]) -> bool:
            return any(issubclass(one, kind) for one in causes)

        page = f"https://huggingface.co/{repository}"
        if among(errors.GatedRepoError):
            raise InputError(
                f"{repository} is gated: accept its licence at {page}, then {_LOG_IN}"
            ) from error
        if among(errors.RevisionNotFoundError):
            raise InputError(f"{repository} has no revision {revision!r}: see {page}") from error
        if among(errors.RepositoryNotFoundError) or among(errors.HFValidationError):
            raise InputError(
                f"there is no folder and no repository {repository}, or it is private: check its name at {page}, or "
                f"{_LOG_IN}"
            ) from error
        kind: type[SamtlError] = _download.NotHere if local else ResourceError
        raise kind(
            f"{repository} is not on this machine, and cannot be downloaded ({type(error).__name__}): connect to the "
            f"internet once, or download it elsewhere and name the folder: --encoder {PREFIX}FOLDER"
        ) from error


@contextmanager
def _without_bars(utils: Any) -> Iterator[None]:
    shown = not utils.are_progress_bars_disabled()
    utils.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            utils.enable_progress_bars()
