"""The modules of `segment_anything.modeling`, without the rest of that package.

`import segment_anything` imports torchvision for prompting, which samtl never does and which does not load beside every
torch. `modeling` is plain torch, so it is loaded from the installed distribution as a package of its own.
`sys.modules["segment_anything"]` is left alone: whoever imports the real one still gets it.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from samtl.errors import InputError

_NAME = "samtl.encoders._segment_anything_modeling"


def modeling() -> ModuleType:
    """Load `segment_anything.modeling`.

    Raises
    ------
    InputError
        Where the `segment-anything` distribution is not installed.
    """
    if _NAME in sys.modules:
        return sys.modules[_NAME]
    found = importlib.util.find_spec("segment_anything")
    if found is None or not found.submodule_search_locations:
        raise InputError("the package segment-anything is missing: pip install segment-anything")
    folder = Path(found.submodule_search_locations[0]) / "modeling"
    spec = importlib.util.spec_from_file_location(
        _NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None  # a path to a .py file always has a spec
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = module  # its relative imports look it up there
    spec.loader.exec_module(module)
    return module
