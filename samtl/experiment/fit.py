"""Train one head on one split of a store: a run folder comes out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samtl.errors import InputError
from samtl.experiment.features import Data, array_for
from samtl.experiment.head_trial import head_trial
from samtl.experiment.run import FitResult as FitResult
from samtl.experiment.run import RunFolder, runs_folder
from samtl.experiment.trial import (
    Clock,
    OnEvent,
    Parts,
    choose,
    configured,
)
from samtl.splits import Split
from samtl.store.reader import Store, open_store


def fit_head(
    store: str | Path | Store,
    head: str = "mlp",
    split: float | str | Split | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    *,
    params: Mapping[str, Any] | None = None,
    features: str | None = None,
    group_by: str | None = None,
    same_split_as: str | Path | None = None,
    allow_partial: bool = False,
    on_event: OnEvent | None = None,
) -> FitResult:
    """Train a head on the features of a store, score it on what was held out, write a run folder.

    A fifth of the training part serves as validation part: early stopping and hyper-parameters are decided there.

    Parameters
    ----------
    store : path or Store
    head : str
        A name in `samtl.registry.names("heads")`.
    split : float, str or Split, optional
        The held-out share, in (0, 1): 0.2 is "80-20". Or any other way to hold out: see `samtl.splits.spec`. Or a split
        of this store's rows, made elsewhere. By default the split that the dataset comes with, else 0.2.
    seed : int
        For the split, the head and the intervals; 0 to 2**32 - 1.
    out : path, optional
        The folder in which the run folder is made; by default `$SAMTL_RUNS`, else `./runs`.
    params : mapping, optional
        Parameters of the head that differ from its defaults.
    features : str, optional
        Which columns of `pooled` a head learns from: patterns of their names without the number, separated by commas,
        such as "mean,std" or "block*".
    group_by : str, optional
        A regular expression that finds what an image was cut from in its id; such groups stay together in every
        part. By default those that the store knows of.
    same_split_as : path, optional
        A run whose held-out, validation and training part are taken over.
    allow_partial : bool
        Whether to go on with a store in which rows are not embedded yet.
    on_event : callable, optional
        Called with each `Stage`, and with each `Epoch` or `Candidate` of the head.

    Raises
    ------
    InputError
        Where there is no such head, parameter or store, the head is for another task, the store is incomplete or lacks
        the features, no such split is possible, or features are not finite.
    ResourceError
        Where the run folder cannot be written.
    """
    clock = Clock(on_event)
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed must lie between 0 and {2**32 - 1}, got {seed}")
    estimator = configured("heads", head, params or {}, seed)
    opened = store if not isinstance(store, (str, Path)) else open_store(store)
    data = Data(opened, array_for(opened, head, estimator), features, group_by, allow_partial)
    parts = Parts(*choose(data.samples, split, seed, same_split_as, group_by))
    given = {
        "store": str(store if isinstance(store, (str, Path)) else opened.path),
        "split": None if isinstance(split, Split) else split,
        "group_by": group_by,
        "same_split_as": None if same_split_as is None else str(same_split_as),
        "allow_partial": allow_partial,
    }
    trial = head_trial(data, head, estimator, parts, seed, given)
    with RunFolder(runs_folder(out)) as folder:
        clock.start("read")
        with trial.refusing():
            trial.train(clock)
        clock.start("score")
        scores = trial.score(folder)
        clock.start("floor")
        floor = trial.floor()
        clock.start("write")
        return trial.conclude(folder, clock, scores, *floor)
