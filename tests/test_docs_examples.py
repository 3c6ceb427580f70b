"""The examples of the guide to Python run as they stand, one after the other."""

import re
import warnings
from pathlib import Path

import pytest

GUIDE = Path(__file__).parent.parent / "docs" / "guides" / "python.md"


@pytest.mark.usefixtures("one_thread")
def test_the_guide_to_python_runs():
    for module in ("xarray", "dask", "pandas", "geopandas"):
        pytest.importorskip(module)
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) > 8
    names = {"__name__": "guide"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torch")  # a loader without an accelerator
        for block in blocks:
            exec(compile(block, str(GUIDE), "exec"), names)
    assert names["head"].predict_proba(names["store"]).shape == (96, 8)
    assert tuple(names["inputs"].shape[1:]) == (256, 4, 4)
    assert names["X_train"].shape[0] + names["X_test"].shape[0] == len(names["y"]) == 96
    assert Path("pooled.nc").stat().st_size > 0
