"""Train one head on a store, or one baseline on a dataset's images: a run folder comes out."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from samtl import registry, splits
from samtl.datasets import Dataset, MapStyle, groups_by, resolve, shuffled, subset
from samtl.embed.changes import image_hashes
from samtl.errors import InputError, UnknownName
from samtl.experiment import tables
from samtl.experiment.clock import Clock, OnEvent
from samtl.experiment.run import Run, read_run, runs_folder
from samtl.experiment.sources import Data, Images, array_for
from samtl.experiment.trial import Trial
from samtl.images.transforms import IMAGE_SIZE
from samtl.splits import Samples, Split, read_split
from samtl.splits.spec import SHIPPED
from samtl.store.reader import Store, open_store

DEFAULT_SHARE = 0.2


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
    same_split_as: str | Path | Run | None = None,
    allow_partial: bool = False,
    on_event: OnEvent | None = None,
) -> Run:
    """Train a head on the features of a store, score it on the held-out samples, write a run folder.

    A fifth of the training part serves as validation part: early stopping and hyper-parameters are decided there.

    Parameters
    ----------
    store : path or Store
    head : str
        A name that `samtl ls heads` shows.
    split : float, str or Split, optional
        The held-out share, in (0, 1): 0.2 is "80-20". Or another split, such as fold:1/5 or label:0.1@0.2: see
        docs/guides/splits.md. By default the split that the dataset comes with, else 0.2.

        Or a `Split` of these samples, made elsewhere.
    seed : int
        For the split and the head; 0 to 2**32 - 1.
    out : path, optional
        The folder in which the run folder is made; by default `$SAMTL_RUNS`, else `./runs`.
    params : mapping, optional
        Parameters of the head that differ from its defaults.
    features : str, optional
        Which columns of `pooled` a head learns from: patterns of their names without the number, separated by commas,
        such as "mean,std" or "block*".
    group_by : str, optional
        A regular expression that finds what an image was cut from in its id; such groups stay together in every
        part. By default those that the store or the dataset knows.
    same_split_as : path or Run, optional
        A run whose held-out, validation and training part are taken over.
    allow_partial : bool
        Whether to go on with a store in which rows are not embedded yet.
    on_event : callable, optional
        Called with each `Stage`, and with each `Epoch` or `Candidate` of the head.

    Raises
    ------
    InputError
        There is no such head, parameter or store, the head is for another task, the store is incomplete or lacks the
        features, no such split is possible, or features are not finite.
    ResourceError
        The run folder cannot be written.
    """
    clock, seed = Clock(on_event), operator.index(seed)
    model = configured("heads", head, params or {}, seed)
    if isinstance(store, (list, tuple)):
        raise InputError("a head learns from one store; samtl.sweep takes several")
    opened = open_store(store) if isinstance(store, (str, Path)) else store
    source = Data(opened, array_for(opened, head, model), features, group_by, allow_partial)
    how, given = (split, seed, same_split_as, group_by), {"allow_partial": allow_partial}
    return _fit(source, head, model, how, given).fit(runs_folder(out), clock)


def fit_baseline(
    dataset: str | Dataset | MapStyle = "eurosat",
    baseline: str = "cnn",
    split: float | str | Split | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    *,
    root: str | Path | None = None,
    limit: int | None = None,
    per_class: int | None = None,
    group_by: str | None = None,
    same_split_as: str | Path | Run | None = None,
    params: Mapping[str, Any] | None = None,
    on_event: OnEvent | None = None,
) -> Run:
    """Train a baseline on the pixels of a dataset, score it on the held-out samples, write a run folder.

    Parameters
    ----------
    dataset : str or Dataset
        As for `samtl.embed`. The images of a store give the same split as the store.
    root, limit, per_class
        As for `samtl.embed`.
    baseline : str
        A name that `samtl ls baselines` shows.
    split, seed, out, group_by, on_event
        As for `samtl.fit_head`.
    same_split_as
        As for `samtl.fit_head`: a run of a head, too. Masks are scored at its resolution, else at 1024 pixels.
    params : mapping, optional
        Parameters of the baseline that differ from its defaults.

    Raises
    ------
    InputError
        There is no such baseline, parameter or dataset, the baseline is for another task, no such split is possible, or
        an image is gone or cannot be used.
    ResourceError
        The run folder cannot be written.
    """
    clock, seed = Clock(on_event), operator.index(seed)
    model = configured("baselines", baseline, params or {}, seed)
    data = subset(shuffled(resolve(dataset, root)), limit=limit, per_class=per_class)
    data.require_outside(runs_folder(out))
    if data.task not in model.tasks:
        raise InputError(
            f"the baseline {baseline} is for {' and '.join(model.tasks)}, and {data.name} is for {data.task}"
        )
    if group_by is not None:
        data = replace(data, groups=groups_by(data.sample_ids, group_by))
    size = 0 if same_split_as is None else read_run(same_split_as).resolution
    given = {"root": root and os.fspath(root), "limit": limit, "per_class": per_class}
    source = Images(data, size or IMAGE_SIZE, images=image_hashes(data))
    how = (split, seed, same_split_as, group_by)
    return _fit(source, baseline, model, how, given).fit(runs_folder(out), clock)


def _fit(
    source: Data | Images, name: str, model: Any, how: Sequence[Any], given: dict[str, Any]
) -> Trial:
    """Make the trial of a verb; `how` are the arguments of `choose`."""
    split, seed, same_split_as, group_by = how
    given |= {
        "split": None if isinstance(split, Split) else split,
        "group_by": group_by,
        "same_split_as": same_split_as and os.fspath(same_split_as),
    }
    chosen = choose(source.samples, *how)
    if same_split_as is not None and not source.samples.groups:
        groups = tables.groups_of(read_run(same_split_as), source.samples.ids)
        source.samples = replace(source.samples, groups=groups)
    return Trial(source, name, model, chosen, seed, given)


def configured(kind: str, name: str, params: Mapping[str, Any], seed: int) -> Any:
    """Make a head or baseline with its parameters.

    Raises InputError if a parameter is unknown (`UnknownName`), or it or the seed is out of range.
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed must lie between 0 and {2**32 - 1}, got {seed}")
    module, what = registry.load(kind, name), f"{kind.removesuffix('s')} {name}"
    made = module.Head if kind == "heads" else module.Baseline
    known = made().get_params()
    for key in params:
        if key not in known:
            raise UnknownName(f"parameter of the {what}", key, known)
    model = made(**{"random_state": seed, **params})
    try:
        model._check()
    except (TypeError, ValueError, InputError) as error:
        told = ", ".join(f"{key} = {value!r}" for key, value in params.items())
        among = f" with {told}" if isinstance(error, TypeError) else ""  # which names no parameter
        raise InputError(f"the {what} cannot be trained{among}: {error}") from error
    return model


def choose(
    samples: Samples,
    split: float | str | Split | None,
    seed: int,
    same_split_as: str | Path | Run | None = None,
    group_by: str | None = None,
) -> Split:
    """Decide who is held out, and which of the others validate; the parameters are those of `fit_head`.

    Raises InputError if no such split of these samples is possible, and ResourceError if lists of samples cannot be
    downloaded.
    """
    if same_split_as is not None:
        for option, value in (("--split", split), ("--group-by", group_by)):
            if value is not None:
                raise InputError(
                    f"{option} and --same-split-as exclude each other: the run's split is taken as it is"
                )
        run = Path(same_split_as)
        return splits.reuse(samples, read_split(run), run)
    if split is None:
        split = SHIPPED if samples.parts else DEFAULT_SHARE
    if isinstance(split, Split):
        return splits.resolve(samples, split, seed)
    spec = splits.parse(split)
    if group_by is not None and not spec.draws:
        raise InputError(
            f"--group-by has no bearing on --split {spec.text}, which takes the samples of {samples.where} as they "
            "are listed: use a share, such as --split 0.2, or leave it out"
        )
    return splits.select(samples, spec, seed)
