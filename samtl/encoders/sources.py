"""Where an encoder's weights come from: Segment Anything's own checkpoints, a file, or seeded random numbers."""

from __future__ import annotations

from torch import nn

from samtl.encoders import checkpoints as weights
from samtl.encoders.checkpoints import Official as Official
from samtl.encoders.checkpoints import Weights as Weights
from samtl.encoders.checkpoints import check_source as check_source
from samtl.encoders.checkpoints import tensors_digest as tensors_digest

BASE_URL = "https://dl.fbaipublicfiles.com/segment_anything/"


def load_weights(
    encoder: nn.Module, checkpoint: str, official: Official | None, name: str
) -> Weights:
    """Fill an encoder's parameters from `official`, `random:SEED`, or a file with a whole SAM or an encoder alone.

    See `samtl.encoders.checkpoints.load_weights`.
    """
    origin = weights.Origin(BASE_URL, "image_encoder.", "Choose the --encoder it was made for")
    return weights.load_weights(encoder, checkpoint, official, name, origin)
