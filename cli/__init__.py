"""The `samtl` command: parses, calls one function of the library, draws what comes back."""

from __future__ import annotations

import errno
import sys
import traceback
import warnings
from typing import Annotated

import typer

from samtl._runtime import StopNow
from samtl.errors import ResourceError, SamtlError

from . import bench, compact, demo, embed, fit, listing, predict, report, reproduce, sweep, verify
from ._render import complain, show_log

EXIT_BUG = 70  # sysexits' EX_SOFTWARE: Python's own 1 would pass for "done, with ..."

# What a path that the user gave can be wrong in; anything else is the disk's or the network's fault.
_WRONG_PATH = {
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}

_REMEDIES = {
    errno.EACCES: "whoever runs samtl must have the right to that",
    errno.EROFS: "mount that drive for writing, or work on a copy elsewhere",
    errno.ENOSPC: "make room there and start again",
    errno.EDQUOT: "make room there and start again",
    errno.EMFILE: "let a process open more files (ulimit -n) and start again",
}

app = typer.Typer(
    name="samtl",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done; 1 done, with quarantined rows or failed cells; 2 bad input or damage; 3 the store was "
    "made in another way; 4 another process writes to it; 5 disk, device or network gave out; 70 a defect of samtl; "
    "130 stopped by Ctrl-C, 143 by SIGTERM.",
)
app.command("embed")(embed.embed)
app.command("fit-head")(fit.fit_head)
app.command("fit-baseline")(fit.fit_baseline)
app.command("predict")(predict.predict)
app.command("sweep")(sweep.sweep)
app.command("report")(report.report)
app.command("reproduce")(reproduce.reproduce)
app.command("info")(listing.info)
app.command("ls")(listing.ls)
app.command("verify")(verify.verify)
app.command("compact")(compact.compact)
app.add_typer(bench.app, name="bench")
app.command("demo")(demo.demo)


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
    try:
        app()
    except SamtlError as error:
        complain(str(error))
        sys.exit(error.exit_code)
    except StopNow as stop:
        complain(
            "stopped; what was committed before is kept, and the same command goes on from there"
        )
        sys.exit(stop.exit_code)
    except MemoryError:
        complain("this machine's memory gave out; close other programs or use a smaller encoder")
        sys.exit(ResourceError.exit_code)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        remedy = f"; {_REMEDIES[error.errno]}" if error.errno in _REMEDIES else ""
        complain(f"{error.strerror or error}{where}{remedy}")
        sys.exit(SamtlError.exit_code if error.errno in _WRONG_PATH else ResourceError.exit_code)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException:  # what a library written in Rust panics with is no Exception
        traceback.print_exc()
        complain(
            "this is a defect of samtl, not of your input; please report it with the lines above"
        )
        sys.exit(EXIT_BUG)
