"""The parts of a report made by hand, with names that are out to break the page."""

import numpy as np
from zips import encoded

from samtl.report.page import Part, Section, render
from samtl.report.style import LOOKS, new_figure, svg

NASTY = "</title><script>alert('1')</script> & \"quoted\" <b>"
RECORDS = [
    {"model": "mlp", "accuracy": 0.838, "low": 82.7, "seconds": 25.0, "note": "never"},
    {"model": "cnn", "accuracy": 0.9712, "low": 97.1, "seconds": 275.25, "note": ""},
    {"model": "conv", "accuracy": 0.879, "low": 9.5, "seconds": 1640.0, "note": "3"},
    {"model": "floor", "accuracy": 0.712, "low": -1.25, "seconds": None, "note": NASTY},
]
PICTURE = encoded(np.zeros((320, 1600, 3), np.uint8))


def chart(name="curves", title="Loss by epoch", panels=2):
    """Draw a chart whose clips and markers have ids, the same ids in each chart."""
    with new_figure(3.0) as drawn:
        for axes in drawn.subplots(1, panels, squeeze=False)[0]:
            for i, look in enumerate(LOOKS.values(), 2):
                axes.plot(1 / (np.arange(12) + i), color=look.colour, marker=look.marker)
            axes.set(title="Training", xlabel=f"epoch {NASTY}")
    return Part(name, title, f"Each point is one epoch. {NASTY}", RECORDS, figure=drawn)


def page():
    """Return the HTML of a page with tables, charts and a picture."""
    wide = [dict.fromkeys(map(str, range(20)), NASTY)]
    rows = {"scores": RECORDS, "other": RECORDS, "wide": wide}
    scores, *others = (Part(k, "Scores", f"Of `tiny`. {NASTY}", v, NASTY) for k, v in rows.items())
    words = {"texts": (f"`code` {NASTY}",), "bullets": ("vit beats mlp", "`b<`")}
    charts = (chart("curves"), chart("by-share", NASTY, 1))
    picture = Part("samples", "Samples", "Eight images.", RECORDS, picture=True)
    sections = (
        Section("Found", (scores,), warnings=("The weights are untrained.", NASTY), **words),
        Section("Training", (*charts, picture)),
        Section(NASTY, others),
    )
    images = {one.name: svg(one.figure).encode() for one in charts} | {"samples": PICTURE}
    return render(f"Report on {NASTY}", f"Of {NASTY}", sections, images, f"Made by {NASTY}")
