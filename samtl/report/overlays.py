"""Masks laid over photographs: what is where, and where a prediction is right or wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from samtl.experiment.tables import PALETTE
from samtl.images.transforms import IGNORE

Pixels = NDArray[np.uint8]
Mask = NDArray[np.uint8]

# Of Okabe and Ito's colours, which colour-blind readers can tell apart; these differ in lightness, too.
HIT, MISSED, FALSE_ALARM, MIXED_UP = "#56b4e9", "#d55e00", "#f0e442", "#cc79a7"
UNCOUNTED = "#000000"
_DIM = 0.55  # of a photograph's brightness: enough to know the place by, and colours stand out
_STRENGTH = 0.85


def of_classes(classes: Sequence[str]) -> dict[str, str]:
    """Give the colour of each class but the background; of a single one it is that of hits."""
    if len(classes) == 2:
        return {classes[1]: HIT}
    return {name: "#" + PALETTE[3 * i : 3 * i + 3].hex() for i, name in enumerate(classes) if i > 0}


def mapped(pixels: Pixels | None, mask: Mask, classes: Sequence[str]) -> Pixels:
    """Show a mask in the colours of its classes.

    Parameters
    ----------
    pixels : (height, width, 3) uint8, or None
        What it is laid over; None for black.
    mask : (height, width) uint8
        Class indices, 255 where they are not known.
    classes : sequence of str

    Returns
    -------
    (height, width, 3) uint8
    """
    colours = list(of_classes(classes).values())
    marks = [(mask == i, colour) for i, colour in enumerate(colours, start=1)]
    return _tinted(pixels, mask, [*marks, (mask == IGNORE, UNCOUNTED)])


def of_errors(classes: Sequence[str]) -> dict[str, str]:
    """Name what `judged` shows, with the colour of each; of several classes those that `mapped` shows of the truth."""
    if len(classes) == 2:
        return {f"found ({classes[1]})": HIT, "missed": MISSED, "false alarm": FALSE_ALARM}
    errors = {"found": HIT, "missed": MISSED, "false alarm": FALSE_ALARM}
    truth = {f"truth: {name}": colour for name, colour in of_classes(classes).items()}
    return {**errors, "taken for another class": MIXED_UP, **truth}


def judged(pixels: Pixels, truth: Mask, guess: Mask) -> Pixels:
    """Show where a predicted mask is right and where it is wrong, over the dimmed photograph.

    Parameters
    ----------
    pixels : (height, width, 3) uint8
    truth, guess : (height, width) uint8
        Class indices, 0 the background; 255 in `truth` where nobody knows.

    Returns
    -------
    (height, width, 3) uint8
    """
    known = truth != IGNORE
    there, claimed = known & (truth > 0), known & (guess > 0)
    marks = [
        (there & (truth == guess), HIT),
        (there & ~claimed, MISSED),
        (claimed & ~there, FALSE_ALARM),
        (there & claimed & (truth != guess), MIXED_UP),
        (~known, UNCOUNTED),
    ]
    return _tinted(pixels, truth, marks)


def _tinted(
    pixels: Pixels | None, like: Mask, marks: Sequence[tuple[NDArray[np.bool_], str]]
) -> Pixels:
    ground = np.zeros((*like.shape, 3))
    if pixels is not None:
        ground += _DIM * pixels.mean(axis=2, keepdims=True)
    for where, colour in marks:
        tint = np.array(list(bytes.fromhex(colour[1:])), dtype=np.float64)
        strength = _STRENGTH if pixels is not None else 1.0
        ground[where] = strength * tint + (1 - strength) * ground[where]
    return ground.round().astype(np.uint8)
