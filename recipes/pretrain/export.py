"""The result of a run: an encoder's weights in float16, and a model card."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from recipes.pretrain.state import write_tensors
from recipes.pretrain.training import LOG, Training
from samtl._runtime import duration, size
from samtl.errors import ResourceError, SamtlError

CARD = "MODEL_CARD.md"
_ATTRIBUTIONS = {
    "eurosat": "EuroSAT RGB, Helber et al. (arXiv 1709.00029), MIT licence, Copyright (c) 2023 Patrick Helber",
}


@dataclass(frozen=True)
class Exported:
    """The exported weights: a safetensors file that `samtl embed --checkpoint` takes, and its sha256."""

    weights: Path
    card: Path
    bytes: int
    sha256: str


def export(training: Training, dataset: str, limit: int | None) -> Exported:
    """Write the encoder of a run as it is now, and its card, which says so where the run is not at its end.

    Parameters
    ----------
    training : Training
    dataset : str
        As it was named.
    limit : int or None
        How many of its images at most.

    Raises
    ------
    SamtlError
        If a weight does not fit in float16.
    ResourceError
        If the disk fails.
    """
    recipe = training.recipe
    tensors = {
        name: tensor.detach().cpu().to(torch.float16)
        for name, tensor in training.learner.network.encoder.state_dict().items()
    }
    beyond = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if beyond:
        raise SamtlError(
            f"{beyond[0]} has values that float16 does not: begin anew with a smaller --learning-rate"
        )
    path = training.out / f"{recipe.encoder}.safetensors"
    write_tensors(path, tensors, training.about)
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    card = training.out / CARD
    try:
        card.write_text(_card(training, dataset, limit, len(content), sha256), encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"{card} could not be written: {error.strerror}") from error
    return Exported(path, card, len(content), sha256)


def _card(training: Training, dataset: str, limit: int | None, count: int, sha256: str) -> str:
    recipe, name = training.recipe, dataset.partition(":")[0]
    data = _ATTRIBUTIONS.get(name, f"the dataset `{name}`; its licence is its owner's")
    last = _last_line(training.out / LOG)
    facts = [
        ("Architecture", f"SAM's image encoder, `{recipe.encoder}`; 1024 x 1024 pixels to 256 x 64 x 64"),
        ("File", f"`{recipe.encoder}.safetensors`, float16, {size(count)}, sha256 `{sha256}`"),
        ("Images", f"{len(training.images)} of {data}{f' (--limit {limit})' * (limit is not None)}"),
        ("Digest of the images", f"`{training.about['images']}`"),
        ("Labels", "none: the script never reads them"),
        ("Training", f"{_steps(training)}, {duration(training.seconds)} on {training.device.type}"),
        ("Last step", ", ".join(f"{key} {last[key]}" for key in _TOLD if key in last)),
    ]  # fmt: skip
    table = "\n".join(f"| {key} | {value} |" for key, value in facts)
    return f"""# {recipe.encoder}, trained by itself

| | |
| --- | --- |
{table}

## Recipe

Two views of each image (crops, flips, right-angle turns, colours) are described alike by VICReg's loss (Bardes et al.
2022) on the pooled output, and so are places that both views show, by the same loss on the tokens; squares of tokens
are hidden from half of the views. What the losses need beside the encoder is thrown away.

```json
{json.dumps(recipe.to_dict(), indent=2)}
```

`python -m recipes.pretrain --help` says how to repeat it.

## Limits

- It is not SAM: it has SAM's architecture at another size, and has never seen what SAM was trained on.
- It has seen the pixels of the images above, those that a split holds out included, and never their labels. Figures on
  these images are transductive; say so where they are printed.
- No accuracy is claimed here: this script does not measure any. `samtl embed --encoder {recipe.encoder}
  --checkpoint FILE`, then `samtl fit-head`, does; compare with `--checkpoint random:0`.
"""


_TOLD = (
    "loss",
    "global_invariance",
    "global_variance",
    "dense_invariance",
    "dense_variance",
    "rank",
)


def _steps(training: Training) -> str:
    if training.done:
        return f"{training.step} steps"
    return f"UNFINISHED, {training.step} steps of {training.recipe.steps}"


def _last_line(path: Path) -> dict[str, object]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found: dict[str, object] = json.loads(lines[-1]) if lines else {}
    return found
