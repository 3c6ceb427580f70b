"""JSON documents that notice when they were altered: each carries the sha256 of the rest of itself."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from samtl.errors import DamageError
from samtl.store.remote import RemotePath

# A record of a block is about 5 KB and a list of a million rows about 60 MB; nothing honest is larger.
MAX_BYTES = 1 << 30


def canonical(content: Mapping[str, object]) -> bytes:
    """Write JSON so that equal content gives equal bytes: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(
        content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest(content: Mapping[str, object]) -> str:
    """Compute the sha256 of the canonical JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical(content)).hexdigest()


def seal(content: Mapping[str, object]) -> bytes:
    """Write a document with its own digest under `checksum`."""
    return canonical({**content, "checksum": digest(content)}) + b"\n"


def unseal(path: str | Path) -> dict[str, Any]:
    """Read a sealed document.

    Returns
    -------
    dict
        The content, `checksum` included.

    Raises
    ------
    DamageError
        Where the file is not such a document, or its content does not match its checksum.
    OSError
        Where it cannot be read.
    """
    # A store of a million rows has 62,500 of these: what is done here counts.
    try:
        raw = _read(path)
        content = orjson.loads(raw)
        checksum = content.pop("checksum")
        intact = _is_sealed(raw, checksum) or checksum == digest(content)
    except (
        ValueError, KeyError, AttributeError, TypeError, RecursionError, IsADirectoryError
    ) as error:  # fmt: skip
        raise DamageError(
            f"{path} is not a document of a store: it is damaged or cut short"
        ) from error
    if not intact:
        raise DamageError(f"{path} fails its own checksum: it was altered or is damaged")
    return {**content, "checksum": checksum}


def _read(path: str | Path) -> bytes:
    if isinstance(path, RemotePath):
        return path.read_bytes(MAX_BYTES)
    # A file object for each takes as long again as all that it is asked for.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        if size > MAX_BYTES:
            raise DamageError(f"{path} is larger than any file of its kind: the store is damaged")
        raw = os.read(descriptor, size)
        while len(raw) < size and (more := os.read(descriptor, size - len(raw))):
            raw += more
    finally:
        os.close(descriptor)
    return raw


def _is_sealed(raw: bytes, checksum: object) -> bool:
    """Tell whether these are the bytes that `seal` gives, without writing the document again: a third of the time."""
    mark = f'"checksum":"{checksum}"'.encode()
    before, _, after = raw.partition(mark)
    if before.endswith(b"{"):
        after = after.removeprefix(b",")
    else:
        before = before.removesuffix(b",")
    rest = hashlib.sha256(before)
    rest.update(after.removesuffix(b"\n"))
    return rest.hexdigest() == checksum
