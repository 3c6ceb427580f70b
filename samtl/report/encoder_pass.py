"""How long the encoder worked on a store, as far as its commits tell."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median

from samtl.errors import SamtlError
from samtl.report.compare import Comparison
from samtl.store.reader import open_store

_PAUSE = 10  # times the usual gap between two commits, above which the encoder was not working


def pass_seconds(comparison: Comparison) -> float | None:
    """Return how long the encoder worked on the store that the comparison's heads read.

    Commits of blocks carry their time in seconds. Pauses between two commands are left out.

    Returns
    -------
    float or None
        None if there are several stores, the store is no longer where the runs found it, or all of it was committed
        within a second.
    """
    heads = [run for run in comparison.runs if run.store]
    # Resolved, since the same store may have been named from several folders.
    sources = {(Path(run.store_path).resolve(), run.fingerprint) for run in heads}
    if len(sources) != 1:
        return None
    path, fingerprint = sources.pop()
    try:
        store = open_store(path)
        if store.fingerprint != fingerprint:
            return None
        times = sorted(
            datetime.fromisoformat(str(writer["committed"])).timestamp()
            for writer in store.writers()
        )
    except (SamtlError, OSError, KeyError, ValueError):
        return None
    gaps = [later - earlier for earlier, later in pairwise(times)]
    if not any(gaps):
        return None
    working = [gap for gap in gaps if gap <= _PAUSE * max(median(gaps), 1.0)]
    # The first block has no gap before it, and those after a pause have none that counts.
    return sum(working) / len(working) * len(times)
