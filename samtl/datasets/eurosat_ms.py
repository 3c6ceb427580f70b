"""EuroSAT with the 13 bands of Sentinel-2: 27,000 tiles of 64 x 64 pixels in 10 land-cover classes.

By Helber et al. (arXiv 1709.00029), under the MIT licence. Values are top-of-atmosphere reflectances x 10000. Sample
ids are `<Class>/<file>.tif`.
"""

from __future__ import annotations

from pathlib import Path

from samtl.datasets.base import Dataset
from samtl.datasets.eurosat import Archive, listed
from samtl.images.bands import REFLECTANCE

NAMES = {"eurosat-ms": "EuroSAT with all 13 bands of Sentinel-2 (2 GB)"}

ARCHIVE = Archive(
    name="eurosat-ms",
    sources={
        "https://huggingface.co/datasets/torchgeo/eurosat/resolve/1ce6f1bfb56db63fd91b6ecc466ea67f2509774c/"
        "EuroSATallBands.zip": "sha256:751f070f9bffa2eed48b24ca2dd0b02959280c08837e8c9a5532a67ba611df59",
    },
    size="2 GB",
    suffixes=(".tif", ".tiff"),
    levels=("ds", "images", "remote_sensing", "otherDatasets", "sentinel_2", "tif", "EuroSAT_MS"),
    layout="expected is EuroSATallBands.zip (.../sentinel_2/tif/<Class>/*.tif) or EuroSAT_MS.zip "
    "(EuroSAT_MS/<Class>/*.tif), the zip itself or the folder that it unpacks to",
    # As they are in the files: B8A comes last.
    bands=(
        "B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A",
    ),
    units=REFLECTANCE,
)  # fmt: skip


def open_dataset(argument: str | None, root: Path | None, download: bool = True) -> Dataset:
    """List EuroSAT with 13 bands from `root`, a zip archive or a folder; see `samtl.datasets.eurosat`."""
    return listed(ARCHIVE, argument, root, download)
