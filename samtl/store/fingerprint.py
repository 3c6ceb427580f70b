"""What makes two stores comparable: everything that decides the values of their rows, and nothing else."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import msgspec

from samtl._io import digest, seal, unseal
from samtl.errors import DamageError, InputError, MismatchError
from samtl.store.format import FORMAT, ArraySpec
from samtl.store.storage import IDENTITY, Storage

IMPORTED = "import:"  # how the names of encoders begin whose features came from a file


class Identity(msgspec.Struct, frozen=True):
    """The content of `fingerprint.json`, written once and first; made by `make_identity`."""

    fingerprint: dict[str, Any]  # `EncoderSpec.fingerprint` and `format`
    sha256: str  # of the fingerprint's canonical JSON
    store_id: str  # random; the sample tables of the store carry it
    block_rows: int
    arrays: dict[str, ArraySpec]  # all that this store may have
    about: dict[str, Any]  # for people: `weights` in words, `untrained`, `model` (a URL), `files`
    checksum: str = ""

    @property
    def encoder(self) -> str:
        """The encoder's name."""
        return str(self.fingerprint["encoder"]["name"])

    @property
    def image_size(self) -> int:
        """Side of the encoder's input in pixels."""
        return int(self.fingerprint["image_size"])

    @property
    def files(self) -> dict[str, str]:
        """Further files that the store was begun with, and the sha256 of each."""
        return dict(self.about.get("files", {}))

    def to_bytes(self) -> bytes:
        """Return the file."""
        return seal(msgspec.to_builtins(self))


def make_identity(
    fields: Mapping[str, object],
    arrays: Mapping[str, ArraySpec],
    about: Mapping[str, object],
    block_rows: int,
) -> Identity:
    """Give a new store its identity, with a random `store_id`; `fields` lack only `format`."""
    fingerprint, store_id = {**fields, "format": FORMAT}, uuid.uuid4().hex
    sha256 = digest(fingerprint)
    made = Identity(fingerprint, sha256, store_id, block_rows, dict(arrays), dict(about))
    return unseal(made.to_bytes(), Identity, IDENTITY)


def read_identity(storage: Storage) -> Identity | None:
    """Read a store's `fingerprint.json`; None if there is none, InputError if the store has another format."""
    where = f"{storage.url}/{IDENTITY}"
    try:
        raw = storage.read(IDENTITY)
        stored = msgspec.json.decode(raw)["fingerprint"]["format"]
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DamageError(f"{where} is damaged: {error}") from error
    if stored != FORMAT:
        raise InputError(
            f"{storage.url} has store format {stored}, this samtl reads format {FORMAT}: embed the images again"
        )
    found = unseal(raw, Identity, where)
    fields = found.fingerprint
    encoder = fields.get("encoder")
    if (
        digest(fields) != found.sha256
        or not (isinstance(encoder, dict) and isinstance(encoder.get("name"), str))
        or not isinstance(fields.get("image_size"), int)
        or found.block_rows < 1
        or any(name != spec.name or "/" in name for name, spec in found.arrays.items())
    ):
        raise DamageError(f"{where} is not the identity of a store: a field is missing or wrong")
    return found


def require_same(identity: Identity, fields: Mapping[str, object], where: str) -> None:
    """Raise MismatchError, naming each field, unless a store has this fingerprint."""
    found = differences(identity.fingerprint, {**fields, "format": FORMAT})
    if found:
        raise MismatchError(
            f"{where} was made in another way; name another store with --out, or ask for the same:",
            found,
        )


def differences(
    stored: Mapping[str, object], wanted: Mapping[str, object], prefix: str = ""
) -> list[tuple[str, str, str]]:
    """List the fields in which two documents differ, as (field, stored, wanted).

    Nested fields are joined by dots, as in `preprocessing.resize`; a missing one is "(none)".
    """
    found: list[tuple[str, str, str]] = []
    for key in sorted({*stored, *wanted}):
        have, want = stored.get(key, "(none)"), wanted.get(key, "(none)")
        if isinstance(have, Mapping) and isinstance(want, Mapping):
            found += differences(have, want, f"{prefix}{key}.")
        elif have != want:
            found.append((f"{prefix}{key}", str(have), str(want)))
    return found


def require_encoder(encoder: str, where: object) -> None:
    """Raise InputError if no encoder of samtl made the features of a store or run."""
    if encoder.startswith(IMPORTED):
        raise InputError(
            f"the features of {where} came from a file ({encoder}), and samtl has no encoder to compute more of them: "
            "import features of all images into a new store with samtl import"
        )
