"""A server that has imported what takes long, and forks: for tests of many processes but not of how they start."""

import functools
import multiprocessing.forkserver
import os
from pathlib import Path

import pytest


@functools.cache
def server():
    """Start the server; returns what makes its children, which have the environment of this moment."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["chaos", "samtl.sweep.worker"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        multiprocessing.forkserver.ensure_running()
    return context
