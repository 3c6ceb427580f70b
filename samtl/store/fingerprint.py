"""What makes two embeddings comparable: everything that decides their values, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samtl.errors import DamageError, InputError
from samtl.images.transforms import check_image_size
from samtl.store.documents import digest, unseal
from samtl.store.layout import FORMAT

FILE = "fingerprint.json"


@dataclass(frozen=True)
class Fingerprint:
    """The identity of a store's rows. Device, batch size and library versions are not part of it.

    Attributes
    ----------
    encoder : str
        The encoder's name.
    weights_sha256 : str
        Over the encoder's tensors, whatever file they came from.
    preprocessing : mapping
        JSON values, as `Preprocessing.to_dict` gives them.
    image_size : int
        Side of the encoder's input in pixels.
    compute_dtype : str
        What the encoder computed in.
    stored_dtypes : mapping
        The dtype of each tier's array.
    """

    encoder: str
    weights_sha256: str
    preprocessing: Mapping[str, object]
    image_size: int
    compute_dtype: str
    stored_dtypes: Mapping[str, str]
    format: int = FORMAT

    def to_dict(self) -> dict[str, object]:
        """Give the fields as JSON values."""
        return {
            "format": self.format,
            "encoder": {"name": self.encoder, "weights_sha256": self.weights_sha256},
            "preprocessing": dict(self.preprocessing),
            "image_size": self.image_size,
            "compute_dtype": self.compute_dtype,
            "stored_dtypes": dict(self.stored_dtypes),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Fingerprint:
        """Take the fields back from what `to_dict` gave."""
        return cls(
            str(content["encoder"]["name"]),
            str(content["encoder"]["weights_sha256"]),
            content["preprocessing"],
            int(content["image_size"]),
            str(content["compute_dtype"]),
            content["stored_dtypes"],
            int(content["format"]),
        )

    @property
    def sha256(self) -> str:
        """The digest by which everything refers to it."""
        return digest(self.to_dict())


def row_key(fingerprint: str, image_sha256: str) -> str:
    """Name an embedding: the sha256 of the fingerprint's digest followed by that of the image file's bytes."""
    return hashlib.sha256(f"{fingerprint}{image_sha256}".encode()).hexdigest()


def differences(
    stored: Mapping[str, object], wanted: Mapping[str, object], prefix: str = ""
) -> list[tuple[str, str, str]]:
    """List the fields in which two documents differ.

    Returns
    -------
    list of (field, stored, wanted)
        Nested fields are written with dots, as in `preprocessing.resize`; a field that is not there is "(none)".
    """
    found: list[tuple[str, str, str]] = []
    for key in sorted({*stored, *wanted}):
        have, want = stored.get(key, "(none)"), wanted.get(key, "(none)")
        if isinstance(have, Mapping) and isinstance(want, Mapping):
            found += differences(have, want, f"{prefix}{key}.")
        elif have != want:
            found.append((f"{prefix}{key}", str(have), str(want)))
    return found


def read_fingerprint(store: Path) -> dict[str, Any]:
    """Read a store's `fingerprint.json`.

    Returns
    -------
    dict
        `fingerprint` (the fields), `sha256` (their digest), `about` (`weights` in words, `untrained`),
        `columns` (names of the columns of `pooled` and `image_stats`).

    Raises
    ------
    DamageError
        Where it is damaged.
    InputError
        Where the store is of another format.
    """
    path = store / FILE
    content = unseal(path)
    for key in ("fingerprint", "about", "columns"):
        if not isinstance(content.get(key), dict):
            raise DamageError(f"{path} lacks the field {key}")
    fields = content["fingerprint"]
    if fields.get("format") != FORMAT:
        raise InputError(
            f"{store} has store format {fields.get('format')}; this samtl reads format {FORMAT}: "
            "use the version that made it"
        )
    if digest(fields) != content.get("sha256"):
        raise DamageError(f"{path}: its digest is not that of its fields")
    wrong = _wrong_field(content)
    if wrong:
        raise DamageError(
            f"{path} is not the identity of a store: field {wrong} is missing or wrong"
        )
    return content


def _wrong_field(content: Mapping[str, Any]) -> str:
    """Name a field that is not what `Fingerprint.to_dict` and the writer give, or ""."""
    fields, columns = content["fingerprint"], content["columns"]
    try:
        given = Fingerprint.from_dict(fields)
        check_image_size(given.image_size)
        if given.to_dict() != fields:
            return "fingerprint"
    except (KeyError, TypeError, ValueError, OverflowError, InputError) as error:
        return f"fingerprint ({error})"
    if not isinstance(content["about"].get("untrained", True), bool):
        return "about.untrained"
    for array in ("pooled", "image_stats"):
        names = columns.get(array)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return f"columns.{array}"
    return ""
