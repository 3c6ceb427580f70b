"""`samtl demo`: the whole workflow on generated images, offline, in under a minute."""

from __future__ import annotations

from pathlib import Path

from . import embed, fit, render
from .options import Outcome, verb

IMAGES_PER_CLASS = 25
IMAGE_SIZE = 512  # much faster than 1024


@verb()
def demo(out: Path | None = None, runs: Path | None = None) -> Outcome:
    """Generate land-cover images, embed them with the encoder that needs no download, and fit two heads.

    Parameters
    ----------
    out
        Folder for the store; demo in $SAMTL_CACHE or ./cache by default.
    runs
        Folder for the runs; $SAMTL_RUNS or ./runs by default.
    """
    from samtl.store.storage import below, cache_folder

    dataset = f"synthetic:{IMAGES_PER_CLASS}"
    render.say(f"samtl embed --dataset {dataset} --encoder tiny --image-size {IMAGE_SIZE}", "bold")
    # A folder of its own keeps the demo's store apart from the user's.
    place = out or below(cache_folder(), "demo")
    options = {"dataset": dataset, "encoder": "tiny", "image_size": IMAGE_SIZE, "out": place}
    result, stopped_by = embed.run(options)
    embed.draw_result(result)
    fits = []
    for head in () if stopped_by else ("logreg", "mlp"):
        render.say("")
        render.say(f"samtl fit-head --head {head} --split 0.2 --cache {result.store}", "bold")
        fits.append(fit.run({"store": result.store, "head": head, "split": 0.2, "out": runs}))
        fit.draw(fits[-1])
    return {"embed": result.to_json(), "fits": [one.to_json() for one in fits]}, stopped_by
