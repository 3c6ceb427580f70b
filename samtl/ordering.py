"""The order that the rows of a store are in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def hash_order(sample_ids: Sequence[str]) -> list[int]:
    """Put samples in an order that mixes classes and depends on nothing but their ids: that of their sha256."""
    return sorted(
        range(len(sample_ids)), key=lambda i: hashlib.sha256(sample_ids[i].encode()).digest()
    )
