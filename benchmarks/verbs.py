"""Wall time of verbs as a user types them: embedding again, and a fit from the command line and from Python."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.paired import Row, against, alone, alternating
from samtl.embed.api import embed
from samtl.errors import ResourceError

_FIT = "import sys, samtl; samtl.fit_head(sys.argv[1], head='mlp', split=0.9, out=sys.argv[2])"


def bench_verbs(
    dataset: str = "synthetic:100",
    root: str | Path | None = None,
    rounds: int = 3,
    out: str | Path | None = None,
    on_row: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Embed a dataset once with the tiny encoder at 64 pixels, then time whole processes on that store.

    Parameters
    ----------
    dataset : str
        Dataset of a classification to embed, as for embed.
    root : path, optional
        Folder or archive with the dataset's files.
    rounds : int
        Rounds of each pair; figures are medians.
    out : path, optional
        Folder to write the store in, by default that for temporary files.
    on_row : callable, optional
        Called with each figure.

    Returns
    -------
    list of Row
        All in seconds: `embed-again/ROWS`, with nothing to do and no image read; `embed-again/ROWS/reading`, with every
        image read; and `fit/cli`, an mlp on 10 % of the samples, against `fit-python`.
    """
    with tempfile.TemporaryDirectory(prefix="samtl-bench-", dir=out) as folder:
        store, runs = Path(folder, "bench.zarr"), Path(folder, "runs")
        rows = embed(
            dataset, "tiny", root=root, image_size=64, tiers=("pooled",), out=store, device="cpu"
        ).rows
        again = ["embed", "--dataset", dataset, "--encoder", "tiny", "--image-size", "64"]
        again += ["--tiers", "pooled", "--out", str(store), "--device", "cpu"]
        again += [] if root is None else ["--root", str(root)]
        fit = ["fit-head", "--head", "mlp", "--split", "0.9"]
        cli = ["-m", "samtl.cli"]
        sides = {
            "again": lambda: _seconds(*cli, *again, "--no-check-images"),
            "reading": lambda: _seconds(*cli, *again),
            "cli": lambda: _seconds(*cli, *fit, "--cache", str(store), "--out", str(runs)),
            "python": lambda: _seconds("-c", _FIT, str(store), str(runs)),
        }
        values = alternating(sides, rounds)
    found = [
        alone(f"embed-again/{rows}", "s", values["again"]),
        alone(f"embed-again/{rows}/reading", "s", values["reading"]),
        against("fit/cli", "s", values["cli"], "fit-python", values["python"]),
    ]
    for row in found:
        if on_row is not None:
            on_row(row)
    return found


def _seconds(*arguments: str) -> float:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ResourceError(f"{' '.join(arguments)} failed: {done.stderr.strip()[-500:]}")
    return time.perf_counter() - began
