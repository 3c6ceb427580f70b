"""Imports go down the list of the house only, and light modules stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the bottom up: a module may import what stands before it.
LAYERS = [
    "errors", "registry", "_io", "_html", "_download", "_runtime", "images", "splits", "metrics", "datasets",
    "encoders", "store", "embed", "heads", "baselines", "experiment", "sweep", "report", "study", "cli",
]  # fmt: skip
STRANGERS = {"datasets", "encoders", "store", "heads"}  # do not know each other


def modules():
    """Each source file with its layer's name."""
    for path in sorted((ROOT / "samtl").rglob("*.py")):
        if path != ROOT / "samtl" / "__init__.py":
            yield path, path.relative_to(ROOT / "samtl").parts[0].removesuffix(".py")
    for path in sorted((ROOT / "cli").glob("*.py")):
        yield path, "cli"


def imported(tree):
    """Dotted names that a file imports, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_has_a_layer():
    assert {layer for _, layer in modules()} == set(LAYERS)


@pytest.mark.parametrize(
    ("path", "layer"), [pytest.param(p, n, id=str(p.relative_to(ROOT))) for p, n in modules()]
)
def test_what_a_module_imports_and_calls(path, layer):
    tree = ast.parse(path.read_text())
    names = list(imported(tree))
    for name in names:
        head, *rest = name.split(".")
        if head != "samtl" or not rest or rest[0] == layer:
            continue
        assert LAYERS.index(rest[0]) < LAYERS.index(layer), f"{path} imports {name}"
        assert not {rest[0], layer} <= STRANGERS, f"{path} imports {name}"
        private = [part for part in rest[1:] if part.startswith("_") and part[:2] != "__"]
        assert not private, f"{path} imports {name}"
    tops = {name.split(".")[0] for name in names}
    if layer != "cli":  # which alone draws
        assert not tops & {"typer", "rich"}
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]
    assert layer != "store" or "torch" not in tops
    assert layer != "encoders" or "zarr" not in tops


IMPORT = """
import samtl, samtl.registry, samtl.errors
for kind in samtl.registry.KINDS: samtl.registry.names(kind)
"""
LIST_AND_DECODE = """
import samtl.images.codecs, samtl.registry
for name in samtl.registry.names('datasets'): samtl.registry.load('datasets', name)
for name in ('synthetic:1', 'synthetic-roads:1'): samtl.datasets.resolve(name)
"""
HELP = """
import contextlib, sys
from importlib.metadata import entry_points
main = next(e for e in entry_points(group='console_scripts') if e.name == 'samtl').load()
sys.argv = ['samtl', '--help']
with contextlib.suppress(SystemExit): main()
"""


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        (IMPORT, {"torch", "sklearn", "zarr", "numpy", "PIL", "rich"}),
        (LIST_AND_DECODE, {"torch", "sklearn", "pooch", "requests", "zarr"}),
        (HELP, {"torch", "sklearn", "zarr", "numpy", "PIL"}),
        ("import samtl.splits, samtl.metrics.paired\n", {"torch", "sklearn", "scipy", "zarr"}),
        ("import samtl.sweep.worker\n", {"sklearn.neighbors", "matplotlib"}),
    ],
)
def test_nothing_heavy_is_loaded(code, heavy):
    code += "import sys; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert "samtl" in loaded
    assert not heavy & {*loaded}
