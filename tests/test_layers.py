"""Imports go down the list of the house only, and light modules stay light."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the bottom up: a module may import what stands before it.
LAYERS = [
    "errors", "registry", "_io", "_runtime", "images", "splits", "metrics", "datasets", "encoders", "store",
    "embed", "heads", "baselines", "experiment", "sweep", "report", "study", "cli",
]  # fmt: skip
STRANGERS = {"datasets", "encoders", "store", "heads"}  # do not know each other


def modules():
    """Each source file with its layer's name."""
    for path in sorted((ROOT / "samtl").rglob("*.py")):
        if path != ROOT / "samtl" / "__init__.py":
            yield path, path.relative_to(ROOT / "samtl").parts[0].removesuffix(".py")
    for path in sorted((ROOT / "cli").glob("*.py")):
        yield path, "cli"


def imported(path):
    """Dotted names that a file imports, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_has_a_layer():
    assert {layer for _, layer in modules()} == set(LAYERS)


@pytest.mark.parametrize(
    ("path", "layer"), [pytest.param(p, n, id=str(p.relative_to(ROOT))) for p, n in modules()]
)
def test_imports_go_down_only(path, layer):
    for name in imported(path):
        head, _, rest = name.partition(".")
        if head != "samtl" or not rest:
            continue
        other = rest.split(".")[0]
        if other == layer:
            continue
        assert other in LAYERS, f"{path} imports {name}"
        assert LAYERS.index(other) < LAYERS.index(layer), f"{path} imports {name}"
        assert not {other, layer} <= STRANGERS, f"{path} imports {name}"


@pytest.mark.parametrize(
    ("path", "layer"), [pytest.param(p, n, id=str(p.relative_to(ROOT))) for p, n in modules()]
)
def test_no_other_packages_private_module_is_imported(path, layer):
    for name in imported(path):
        parts = name.split(".")
        private = [part for part in parts[2:] if part.startswith("_") and not part.startswith("__")]
        assert parts[0] != "samtl" or layer in parts[1:2] or not private, f"{path} imports {name}"


@pytest.mark.parametrize(
    ("path", "layer"), [pytest.param(p, n, id=str(p.relative_to(ROOT))) for p, n in modules()]
)
def test_only_the_command_line_draws(path, layer):
    if layer == "cli":
        return
    tops = {name.split(".")[0] for name in imported(path)}
    assert not tops & {"typer", "rich"}
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
    if layer == "store":
        assert "torch" not in tops
    if layer == "encoders":
        assert "zarr" not in tops


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ}
    ).stdout


def test_importing_samtl_loads_nothing_heavy():
    code = (
        "import sys, samtl, samtl.registry, samtl.errors\n"
        "for kind in samtl.registry.KINDS: samtl.registry.names(kind)\n"
        "print([m for m in ('torch', 'sklearn', 'zarr', 'numpy', 'PIL', 'rich') if m in sys.modules])"
    )
    assert run(code).strip() == "[]"


def test_help_loads_nothing_heavy():
    code = (
        "import sys\n"
        "from importlib.metadata import entry_points\n"
        "main = next(e for e in entry_points(group='console_scripts') if e.name == 'samtl').load()\n"
        "sys.argv = ['samtl', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'sklearn', 'zarr', 'numpy', 'PIL') if m in sys.modules])"
    )
    assert run(code).strip().endswith("[]")
