"""The notebooks run from top to bottom on generated images, and are kept without what they put out."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
FIGURES = {"case_study_1_eurosat": 5, "case_study_2_roads": 6, "your_own_data": 2}

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_every_notebook_is_known():
    assert {path.stem for path in NOTEBOOKS} == set(FIGURES)


@each
def test_it_is_valid_and_stripped(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor >= 5) == (4, True)  # cells have ids
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in notebook.cells:
        assert cell.cell_type in ("code", "markdown")
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), cell.id


@pytest.mark.slow
@each
def test_it_runs_and_draws(path, tmp_path, monkeypatch):
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "MPLCONFIGDIR"):
        (tmp_path / "settings" / name).mkdir(parents=True)
        monkeypatch.setenv(name, str(tmp_path / "settings" / name))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9/")  # nothing is to be downloaded
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert [out.text for out in outputs if out.output_type == "stream"] == []  # no warnings, either
    drawn = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(drawn) == FIGURES[path.stem]
