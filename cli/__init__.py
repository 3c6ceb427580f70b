"""The `samtl` command: parses, calls one function of the library, prints the result."""

from __future__ import annotations

import errno
import io
import sys
import traceback
import warnings
from typing import Annotated

import typer

from samtl._runtime import StopNow, stop_at_once
from samtl.errors import ResourceError, SamtlError

from . import bench, embed, fit, report, stores, sweep
from .options import Verbs
from .render import complain, show_log

EXIT_BUG = 70  # EX_SOFTWARE of sysexits: Python's own 1 would mean "done, with ..."

# Errors of the path that the user named; any other OSError is the fault of the disk or the network.
_WRONG_PATH = ["EACCES", "EPERM", "ENOENT", "ENOTDIR", "EISDIR", "ENAMETOOLONG", "ELOOP"]
app = typer.Typer(
    name="samtl",
    cls=Verbs,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done; 1 done, with quarantined rows or failed cells; 2 bad input or damage; 3 the store has "
    "another fingerprint or dataset; 5 disk, device or network failed; 70 a defect of samtl; 130 stopped by Ctrl-C, "
    "143 by SIGTERM, 129 by SIGHUP.",
)
for name, command in {
    "embed": embed.embed,
    "import": embed.import_features,
    "fit-head": fit.fit_head,
    "fit-baseline": fit.fit_baseline,
    "sweep": sweep.sweep,
    "report": report.report,
    "reproduce": report.reproduce,
    "predict": fit.predict,
    "info": stores.info,
    "verify": stores.verify,
    "compact": stores.compact,
    "ls": stores.ls,
    "demo": report.demo,
}.items():
    app.command(name)(command)
app.add_typer(bench.app, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"samtl {version('samtl')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find out how far a frozen Segment Anything encoder takes you on your remote-sensing images.

    Embed once, then fit any head on any split:

        samtl embed --dataset eurosat --device cuda

        samtl fit-head --head mlp --split 0.2
    """


def main() -> None:
    """Run the command line and exit with the documented code."""
    # Pillow warns of odd metadata in images that it reads all the same.
    warnings.filterwarnings("ignore", module="PIL")
    show_log()
    for stream in (sys.stdout, sys.stderr):
        # A terminal need not have every character of a name.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        with stop_at_once():
            app()
    except SamtlError as error:
        complain(str(error))
        sys.exit(error.exit_code)
    except StopNow as stop:
        complain("stopped; what is finished is kept, and the same command resumes or begins again")
        sys.exit(stop.exit_code)
    except MemoryError:
        complain("out of memory; close other programs or use a smaller encoder")
        sys.exit(ResourceError.exit_code)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        wrong = errno.errorcode.get(error.errno or 0) in _WRONG_PATH
        remedy = "check the path and its permissions" if wrong else "check the disk or the network"
        complain(f"{where}{error.strerror or error}; {remedy}, then run it again")
        sys.exit(SamtlError.exit_code if wrong else ResourceError.exit_code)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException:  # a panic in a library written in Rust is not an Exception
        traceback.print_exc()
        complain("this is a defect of samtl; please report it with the lines above")
        sys.exit(EXIT_BUG)
