"""What a run folder holds, ready to predict: the model, its classes, and the encoder that it learnt from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samtl._io import digest
from samtl.baselines.base import PixelBaseline
from samtl.errors import InputError
from samtl.experiment.run import FORMAT, read_run
from samtl.heads.base import PooledHead
from samtl.heads.io import load


@dataclass(frozen=True)
class Trained:
    """A trained head or baseline, and where its features come from.

    Attributes
    ----------
    path : Path
        The run folder.
    kind, name : str
        `head` or `baseline`, and its name.
    task : str
    classes : tuple of str
    model : Head or Baseline
    note : str
        What readers of figures must know about the dataset, or "".
    identity : mapping
        The fields of the fingerprint of the store that a head learnt from; empty for a baseline.
    weights : str
        What the weights of the encoder, or of a pretrained baseline, are; "" where there are none.
    untrained : bool
        Whether they are random numbers.
    """

    path: Path
    kind: str
    name: str
    task: str
    classes: tuple[str, ...]
    model: Any
    note: str
    identity: Mapping[str, Any]
    weights: str
    untrained: bool

    @property
    def encoder(self) -> str:
        """The encoder's name, "" of a baseline."""
        return str(self.identity["encoder"]["name"]) if self.identity else ""

    @property
    def array(self) -> str:
        """The store's array that the head reads."""
        return str(self.model.tiers[self.task])

    @property
    def tier(self) -> str:
        """The tier that this array is of."""
        return self.array

    def chosen(self, columns: Sequence[str]) -> NDArray[np.int64] | None:
        """Tell which of the columns of `pooled` the head reads; None where it is not `pooled`."""
        if not isinstance(self.model, PooledHead):
            return None
        missing = set(self.model.columns_) - set(columns)
        if missing or not self.model.columns_:
            told = f"{min(missing)!r}, which is none of its encoder's" if missing else "none"
            raise InputError(f"the head of {self.path} is damaged: as a column it names {told}")
        return np.array([columns.index(name) for name in self.model.columns_])


def read_trained(run: str | Path) -> Trained:
    """Read a run folder, comparing its files with each other as far as predictions hang on it.

    Raises
    ------
    InputError
        Where the folder is no run, is of another format, or is damaged.
    """
    path = Path(run)
    config = read_run(path)
    if config.get("format") != FORMAT:
        raise InputError(
            f"{path} has run format {config.get('format')!r}, and this samtl reads {FORMAT}: train again, or use the "
            "samtl that wrote it"
        )
    model = load(path)
    try:
        kind = str(config["kind"])
        classes = tuple(str(name) for name in config["classes"])
        of_head = config["store"] if kind == "head" else {}
        trained = Trained(
            path=path,
            kind=kind,
            name=str(config[kind]),
            task=str(config["task"]),
            classes=classes,
            model=model,
            note=str(read_run(path, "metrics.json").get("note", "")),
            identity=of_head.get("identity", {}),
            weights=str(of_head["weights"] if of_head else model.weights),
            untrained=bool(of_head["untrained"] if of_head else model.untrained),
        )
        fits = (
            isinstance(model, PixelBaseline) == (kind == "baseline")
            and trained.task == model.task_
            and list(range(len(classes))) == model.classes_.tolist()
            and (kind == "baseline" or digest(trained.identity) == config["fingerprint"])
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path / 'config.json'} is damaged: {error!r}") from error
    if not fits:
        raise InputError(
            f"{path} is damaged: config.json and head.json tell of different models, or the fingerprint is not that "
            "of the encoder"
        )
    return trained
