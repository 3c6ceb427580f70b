"""samtl: how far a frozen Segment Anything encoder takes you on your remote-sensing images.

The same verbs as on the command line::

    import samtl

    result = samtl.embed("eurosat", "sam_vit_b", device="cuda")
    store = samtl.open(result.store)
    run = samtl.fit_head(store, head="mlp", split=0.2)

Names are imported when they are first used: `import samtl` loads neither torch nor scikit-learn.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samtl.baseline_fit import fit_baseline as fit_baseline
    from samtl.datasets import Dataset as Dataset
    from samtl.embedding import EmbedResult as EmbedResult
    from samtl.embedding import embed as embed
    from samtl.errors import SamtlError as SamtlError
    from samtl.fit import FitResult as FitResult
    from samtl.fit import fit_head as fit_head
    from samtl.predicting import PredictResult as PredictResult
    from samtl.predicting import predict as predict
    from samtl.report.making import ReportResult as ReportResult
    from samtl.report.making import make_report as make_report
    from samtl.reproducing import ReproduceResult as ReproduceResult
    from samtl.reproducing import reproduce as reproduce
    from samtl.store.compact import Compacted as Compacted
    from samtl.store.compact import compact as compact
    from samtl.store.reader import Store as Store
    from samtl.store.reader import open_store as open
    from samtl.sweeping import SweepResult as SweepResult
    from samtl.sweeping import sweep as sweep
    from samtl.verifying import Verification as Verification
    from samtl.verifying import verify as verify

_PUBLIC = {
    "embed": ("samtl.embedding", "embed"),
    "open": ("samtl.store.reader", "open_store"),
    "fit_head": ("samtl.fit", "fit_head"),
    "fit_baseline": ("samtl.baseline_fit", "fit_baseline"),
    "predict": ("samtl.predicting", "predict"),
    "sweep": ("samtl.sweeping", "sweep"),
    "verify": ("samtl.verifying", "verify"),
    "compact": ("samtl.store.compact", "compact"),
    "make_report": ("samtl.report.making", "make_report"),
    "reproduce": ("samtl.reproducing", "reproduce"),
    "Dataset": ("samtl.datasets", "Dataset"),
    "Store": ("samtl.store.reader", "Store"),
    "EmbedResult": ("samtl.embedding", "EmbedResult"),
    "FitResult": ("samtl.fit", "FitResult"),
    "PredictResult": ("samtl.predicting", "PredictResult"),
    "ReportResult": ("samtl.report.making", "ReportResult"),
    "ReproduceResult": ("samtl.reproducing", "ReproduceResult"),
    "SweepResult": ("samtl.sweeping", "SweepResult"),
    "Compacted": ("samtl.store.compact", "Compacted"),
    "Verification": ("samtl.verifying", "Verification"),
    "SamtlError": ("samtl.errors", "SamtlError"),
}
__all__ = [
    "Compacted",
    "Dataset",
    "EmbedResult",
    "FitResult",
    "PredictResult",
    "ReportResult",
    "ReproduceResult",
    "SamtlError",
    "Store",
    "SweepResult",
    "Verification",
    "compact",
    "embed",
    "fit_baseline",
    "fit_head",
    "make_report",
    "open",
    "predict",
    "reproduce",
    "sweep",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("samtl")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'samtl' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC, "__version__"])
