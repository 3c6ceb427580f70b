"""The installed packages are the source folders, every requirement is pinned, and public names exist."""

import importlib.metadata
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest

import samtl

ROOT = Path(__file__).parent.parent


def test_every_package_is_listed():
    """`packages` is explicit, since `cli` is installed under another name; a forgotten one would miss the wheel."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"])
    folders = {p.parent for p in (ROOT / "samtl").rglob("__init__.py")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders} | {"samtl.cli"}
    assert listed == found


def test_cli_is_not_importable_under_its_folders_name(tmp_path):
    code = "import importlib.util as u; print(u.find_spec('cli'), u.find_spec('samtl.cli') is None)"
    found = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, text=True)
    assert found.split() == ["None", "False"]


def test_requirements_are_pinned():
    """Each direct requirement has an exact version in the constraints that the Makefile installs with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = sum(project["optional-dependencies"].values(), project["dependencies"])
    names = {re.split(r"[<>=[]", requirement)[0] for requirement in wanted}
    pins = re.findall(r"^([A-Za-z0-9_.-]+)==\S+$", (ROOT / "constraints.txt").read_text(), re.M)
    assert names <= set(pins)


def test_public_names():
    for name in samtl.__all__:
        assert getattr(samtl, name).__module__.startswith("samtl.")
    assert samtl.__version__ == importlib.metadata.version("samtl")
    assert set(samtl.__all__) <= set(dir(samtl))
    # The verbs stay functions also after the modules that hold them were imported.
    assert callable(samtl.embed)
    assert callable(samtl.fit_head)


def test_no_machine_paths():
    """No tracked text file names a place on the machine where it was written."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a git checkout")
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
    files = [ROOT / name for name in listed.split("\0") if name]
    assert {"Makefile", "pyproject.toml"} <= {path.name for path in files}
    places = (str(ROOT), str(Path.home()), tempfile.gettempdir() + "/")
    for path in files:
        if path.suffix not in {".png", ".webp", ".jpg", ".safetensors", ".zip"} and path.is_file():
            text = path.read_text()
            assert not [place for place in places if place in text], path
