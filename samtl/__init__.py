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
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samtl.datasets import Dataset as Dataset
    from samtl.datasets import from_torch as from_torch
    from samtl.embed.api import EmbedResult as EmbedResult
    from samtl.embed.api import embed as embed
    from samtl.embed.imported import ImportResult as ImportResult
    from samtl.embed.imported import import_features as import_features
    from samtl.embed.verify import Verification as Verification
    from samtl.embed.verify import verify as verify
    from samtl.errors import SamtlError as SamtlError
    from samtl.experiment.fit import fit_baseline as fit_baseline
    from samtl.experiment.fit import fit_head as fit_head
    from samtl.experiment.output import PredictResult as PredictResult
    from samtl.experiment.predict import predict as predict
    from samtl.experiment.run import Run
    from samtl.experiment.trained import load_head as load_head
    from samtl.report.api import ReportResult as ReportResult
    from samtl.report.api import make_report as make_report
    from samtl.store.maintenance import Compacted as Compacted
    from samtl.store.maintenance import compact as compact
    from samtl.store.reader import Store as Store
    from samtl.store.reader import open_store
    from samtl.study import ReproduceResult as ReproduceResult
    from samtl.study import reproduce as reproduce
    from samtl.sweep.api import SweepResult as SweepResult
    from samtl.sweep.api import sweep as sweep

    FitResult = Run
    open = open_store

# Read when torch and numpy are loaded. Threads that spin at barriers compete with the decoding thread for the cores:
# with one other busy process the encoder becomes 20 times slower, and training a head several times.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

_PUBLIC = {
    name.partition("=")[0]: (module, name.rpartition("=")[2])
    for module, names in {
        "samtl.datasets": "Dataset from_torch",
        "samtl.embed.api": "embed EmbedResult",
        "samtl.embed.imported": "import_features ImportResult",
        "samtl.embed.verify": "verify Verification",
        "samtl.errors": "SamtlError",
        "samtl.experiment.fit": "fit_head fit_baseline",
        "samtl.experiment.output": "PredictResult",
        "samtl.experiment.predict": "predict",
        "samtl.experiment.run": "FitResult=Run",
        "samtl.experiment.trained": "load_head",
        "samtl.report.api": "make_report ReportResult",
        "samtl.store.maintenance": "compact Compacted",
        "samtl.store.reader": "open=open_store Store",
        "samtl.study": "reproduce ReproduceResult",
        "samtl.sweep.api": "sweep SweepResult",
    }.items()
    for name in names.split()
}
__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("samtl")
    if name not in _PUBLIC:
        module = sys.modules[__name__]  # by which Python finds the nearest name
        raise AttributeError(f"module 'samtl' has no attribute {name!r}", name=name, obj=module)
    place, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(place), attribute)


def __dir__() -> list[str]:
    """List what is public, and the sub-packages that are imported, without what this module imports for itself."""
    inside = (n for n, v in globals().items() if getattr(v, "__name__", "").startswith("samtl."))
    return sorted({*inside, *_PUBLIC, *(n for n in globals() if n.startswith("__")), "__version__"})


class _Samtl(ModuleType):
    """Keeps the functions `embed` and `sweep` from being hidden by the sub-packages of the same names."""

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing `samtl.embed.api` makes Python set the attribute `embed` of this module.
        if not (name in _PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Samtl
