"""The parts of a report made by hand, with names that are out to break the page."""

import io

import numpy as np
from PIL import Image

from samtl.report.content import Drawing, Section, Table
from samtl.report.page import render
from samtl.report.style import LOOKS, figure, styled, svg

NASTY = "</title><script>alert('1')</script> & \"quoted\" <b>"
HEADER = ("model", "accuracy", "interval", "seconds", "note")
ROWS = (
    ("mlp", 0.838, "83.8 [82.7, 84.9]", 25.0, "never"),
    ("cnn", 0.9712, "97.1 [96.7, 97.6]", 275.25, ""),
    ("conv", 0.879, "9.5 [8.7, 10.4]", 1640.0, "3"),
    ("floor", 0.712, "\u22121.2 ± 0.5", None, NASTY),
)


def table(name="scores", header=HEADER, rows=ROWS, title="Scores"):
    return Table(name, title, f"Of `tiny`, untrained. {NASTY}", header, tuple(rows))


def chart(name="curves", title="Loss by epoch", panels=2):
    """Draw a chart whose clips and markers have ids, the same ids in each chart."""
    with styled():
        drawn = figure(3.0)
        for axes in drawn.subplots(1, panels, squeeze=False)[0]:
            for i, look in enumerate(LOOKS.values()):
                x = np.arange(12)
                axes.plot(x, 1 / (x + 2 + i), color=look.colour, marker=look.marker)
            axes.set_title("Training")
            axes.set_xlabel(f"epoch {NASTY}")
    return Drawing(name, title, f"Each point is one epoch. {NASTY}", HEADER, ROWS, drawn)


def picture(name="samples"):
    with styled():
        drawn = figure(2.0, 10.0)
    return Drawing(name, "Samples", "Eight images.", HEADER, ROWS, drawn, picture=True)


def webp():
    pixels = np.random.default_rng(0).integers(0, 255, (320, 1600, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP")
    return file.getvalue()


def page(**options):
    """Return the HTML of a page with tables, charts and a picture."""
    names = tuple(f"column {i}" for i in range(20))
    wide = table("wide", names, [tuple(f"{NASTY[:9]} {i}" for i in range(20))] * 4)
    warnings = ("The weights are random:0, untrained: they say nothing about SAM.", NASTY)
    words = {"paragraphs": (f"`code` {NASTY}",), "bullets": ("vit beats mlp", "`b<`")}
    drawings = (chart("curves"), chart("by-share", NASTY, 1), picture())
    sections = (
        Section("found", "Findings", (table(),), warnings=warnings, **words),
        Section("training", "Training", drawings),
        Section("provenance", NASTY, (wide, table("other"))),
    )
    images = {one.name: svg(one.figure).encode() for one in drawings if not one.picture}
    images["samples"] = webp()
    title, made = f"Report on {NASTY}", f"Made by {NASTY}"
    return render(title, f"Of {NASTY}", sections, images, made=made, **options)
