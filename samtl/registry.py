"""Datasets, encoders, heads and baselines by name: the folder is the list, a new file is a new entry.

A file `samtl/heads/mlp.py` is the head `mlp`, and the first line of its docstring is its description. A file with
several entries has a literal `NAMES = {name: description}`, as `sam.py` does; a name such as `hf:FOLDER` stands for all
that begin with `hf:`. Both are read from the source text, so that `samtl --help` and `samtl ls` do not wait for torch.
"""

from __future__ import annotations

import ast
import functools
import importlib
from pathlib import Path
from types import ModuleType

from samtl.errors import UnknownName

# A module is an entry if it defines this name; the other modules of the folder are what entries share.
_DEFINES = {
    "datasets": "open_dataset",
    "encoders": "Encoder",
    "heads": "Head",
    "baselines": "Baseline",
}
KINDS = tuple(_DEFINES)


@functools.cache
def _entries(kind: str) -> dict[str, tuple[str, str]]:
    """Map each name to (module name, description)."""
    if kind not in KINDS:
        raise UnknownName("kind of entry", kind, KINDS)
    found: dict[str, tuple[str, str]] = {}
    for path in sorted((Path(__file__).parent / kind).glob("[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.stem == "base" or _DEFINES[kind] not in {getattr(n, "name", "") for n in tree.body}:
            continue
        names = {path.stem: (ast.get_docstring(tree) or "").partition("\n")[0]}
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NAMES":
                names = ast.literal_eval(node.value)
        found |= {name: (path.stem, text) for name, text in names.items()}
    return found


def names(kind: str) -> dict[str, str]:
    """Return the names of a kind, of `KINDS`, with their one-line descriptions."""
    return {name: text for name, (_, text) in _entries(kind).items()}


def load(kind: str, name: str) -> ModuleType:
    """Import the module of an entry; raises UnknownName, which offers the nearest names, if there is none."""
    known = _entries(kind)
    beginning, colon, rest = name.partition(":")
    form = next((n for n in known if colon and rest and n.startswith(beginning + colon)), name)
    if form not in known:
        raise UnknownName(kind.removesuffix("s"), name, known)
    return importlib.import_module(f"samtl.{kind}.{known[form][0]}")
