"""A report's page made by hand, with names that are out to break it."""

import io

import numpy as np
from PIL import Image

from samtl.report.content import (
    Drawing,
    Page,
    Section,
    Table,
)
from samtl.report.style import (
    LOOKS,
    figure,
    styled,
    svg,
)

NASTY = "</title><script>alert('1')</script> & \"quoted\" <b>"


def table(name="scores", rows=None, title="Scores"):
    header = ("model", "accuracy", "interval", "seconds", "note")
    rows = rows or (
        ("mlp", 0.838, "83.8 [82.7, 84.9]", 25.0, "never"),
        ("cnn", 0.9712, "97.1 [96.7, 97.6]", 275.25, ""),
        ("conv", 0.879, "9.5 [8.7, 10.4]", 1640.0, "3"),
        ("floor", 0.712, "\u22121.2 ± 0.5", None, NASTY),
    )
    return Table(name, title, f"Of `tiny`, untrained. {NASTY}", header, tuple(rows))


def chart(name="curves", title="Loss by epoch", panels=2):
    """Draw a chart whose clips and markers have ids, the same ids in each chart."""
    with styled():
        drawn = figure(3.0)
        for axes in drawn.subplots(1, panels, squeeze=False)[0]:
            for i, look in enumerate(LOOKS.values()):
                axes.plot(
                    np.arange(12),
                    1 / (np.arange(12) + 2 + i),
                    color=look.colour,
                    marker=look.marker,
                )
            axes.set_title("Training")
            axes.set_xlabel("epoch")
    return Drawing(
        name, title, f"Each point is one epoch. {NASTY}", f'Loss falls from 0.5 to 0.1. "{NASTY}"', drawn,
        table(f"{name}-table", title=title),
    )  # fmt: skip


def picture(name="samples"):
    with styled():
        drawn = figure(2.0, 10.0)
    return Drawing(name, "Samples", "Eight images.", "Forests.", drawn, table("ids"), picture=True)


def webp():
    pixels = np.random.default_rng(0).integers(0, 255, (40, 200, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP")
    return file.getvalue()


def page():
    """Give a page and its images."""
    wide = Table(
        "wide", "A wide table", "", tuple(f"column {i}" for i in range(20)),
        tuple(tuple(f"{NASTY[:9]} {i} {j}" for i in range(20)) for j in range(4)),
    )  # fmt: skip
    first = Section(
        "found", "What was found", ("vit beats mlp by 1.2 points [0.4, 2.0].", f"`code` {NASTY}"),
        ("The weights are random:0, untrained: they say nothing about SAM.", NASTY), (table(),),
    )  # fmt: skip
    second = Section(
        "training", "Training", parts=(chart("curves"), chart("by-share", NASTY, 1), picture())
    )
    third = Section("provenance", NASTY, parts=(wide, table("other")))
    made = Page(f"Report on {NASTY}", f"Of {NASTY}", (first, second, third))
    drawings = [part for part in second.parts if not part.picture]
    images = {part.name: svg(part.figure).encode() for part in drawings}
    return made, {**images, "samples": webp()}
