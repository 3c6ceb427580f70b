"""What the encoder's pass cost, as far as the store that it wrote tells."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from statistics import median

from samtl.errors import SamtlError
from samtl.report.content import Study
from samtl.store.reader import open_store

_PAUSE = 10  # times the usual gap between two commits, above which the pass was not at work


def pass_seconds(study: Study) -> float | None:
    """Give how long the encoder worked on the store that the study's heads read.

    Stores hold no clock, but each commit of a block says when it was, to the second. Pauses between two commands are
    left out.

    Returns
    -------
    float or None
        None where there are several stores, the one does not lie any more where the runs found it, or all of it was
        committed within a second.
    """
    sources = {
        (str(trial.config.get("store", {}).get("path", "")), trial.fingerprint)
        for trial in study.trials
        if trial.store
    }
    if len(sources) != 1:
        return None
    path, fingerprint = sources.pop()
    try:
        store = open_store(path)
        if store.fingerprint != fingerprint:
            return None
        times = sorted(
            datetime.fromisoformat(str(one["committed"])).timestamp() for one in store.writers()
        )
    except (SamtlError, OSError, KeyError, ValueError):
        return None
    gaps = [later - earlier for earlier, later in pairwise(times)]
    if not any(gaps):
        return None
    at_work = [gap for gap in gaps if gap <= _PAUSE * max(median(gaps), 1.0)]
    # The first block has no gap before it, and those after a pause have none that counts.
    return sum(at_work) / len(at_work) * len(times)
