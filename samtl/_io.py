"""Files that samtl reads and writes whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from samtl.errors import InputError


def read_object(file: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object; InputError if it is damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} is damaged: expected a JSON object")
    return content
