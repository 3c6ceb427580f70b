"""A server that has imported what takes long, and forks: for tests of many processes but not of how they start."""

import functools
import multiprocessing.forkserver
import os
import sys
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


def samtl(
    *arguments,
    streams=("/dev/null", "output", "errors"),
    encoding="utf-8",
    seconds=0.0,
    **environment,
):
    """Begin `samtl ARGUMENTS` in a session of its own; returns the process.

    `streams` are files, or a terminal three times. Encoders are stubs if they are to take `seconds` an image.
    """  # fmt: skip
    given = arguments, streams, encoding, seconds, {**os.environ, **environment}
    process = server().Process(target=_command, args=given)
    process.start()
    return process


def _command(arguments, streams, encoding, seconds, environment):
    os.setsid()  # the first terminal that it opens is its own
    for number, path in enumerate(streams):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", 1, encoding, closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding, closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    if seconds:
        import stubs

        stubs.install(stubs.StubEncoders(seconds=seconds))
    sys.argv = ["samtl", *map(str, arguments)]
    from samtl.cli import main  # looks at the terminal

    main()
