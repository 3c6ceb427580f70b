"""The parts of a report made by hand, with names that are out to break the page."""

import io

import numpy as np
from PIL import Image

from samtl.report.page import Part, Section, render
from samtl.report.style import LOOKS, new_figure, svg

NASTY = "</title><script>alert('1')</script> & \"quoted\" <b>"
RECORDS = [
    {"model": "mlp", "accuracy": 0.838, "low": 82.7, "seconds": 25.0, "note": "never"},
    {"model": "cnn", "accuracy": 0.9712, "low": 97.1, "seconds": 275.25, "note": ""},
    {"model": "conv", "accuracy": 0.879, "low": 9.5, "seconds": 1640.0, "note": "3"},
    {"model": "floor", "accuracy": 0.712, "low": -1.25, "seconds": None, "note": NASTY},
]


def table(name="scores", rows=RECORDS):
    return Part(name, "Scores", f"Of `tiny`. {NASTY}", rows, NASTY)


def chart(name="curves", title="Loss by epoch", panels=2):
    """Draw a chart whose clips and markers have ids, the same ids in each chart."""
    with new_figure(3.0) as drawn:
        for axes in drawn.subplots(1, panels, squeeze=False)[0]:
            for i, look in enumerate(LOOKS.values(), 2):
                axes.plot(1 / (np.arange(12) + i), color=look.colour, marker=look.marker)
            axes.set(title="Training", xlabel=f"epoch {NASTY}")
    return Part(name, title, f"Each point is one epoch. {NASTY}", RECORDS, figure=drawn)


def webp():
    pixels = np.random.default_rng(0).integers(0, 255, (320, 1600, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP")
    return file.getvalue()


def page():
    """Return the HTML of a page with tables, charts and a picture."""
    wide = table("wide", [{f"column {i}": f"{NASTY[:9]} {i}" for i in range(20)}] * 4)
    warnings = ("The weights are random:0, untrained: they say nothing about SAM.", NASTY)
    words = {"texts": (f"`code` {NASTY}",), "bullets": ("vit beats mlp", "`b<`")}
    charts = (chart("curves"), chart("by-share", NASTY, 1))
    picture = Part("samples", "Samples", "Eight images.", RECORDS, picture=True)
    sections = (
        Section("Found", (table(),), warnings=warnings, **words),
        Section("Training", (*charts, picture)),
        Section(NASTY, (wide, table("other"))),
    )
    images = {one.name: svg(one.figure).encode() for one in charts} | {"samples": webp()}
    return render(f"Report on {NASTY}", f"Of {NASTY}", sections, images, f"Made by {NASTY}")
