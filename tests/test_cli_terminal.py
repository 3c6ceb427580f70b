"""What is on a real terminal while a pass runs and after Ctrl-C, and on one with few characters."""

import fcntl
import os
import re
import struct
import termios
from pathlib import Path

import forking
import pytest
import stubs

EMBED = (
    *("embed", "--encoder", "tiny", "--image-size", "64", "--checkpoint", "random:0"),
    *("--device", "cpu", "--dtype", "float32", "--out", "a.zarr"),
)


def screen(written, width):
    """Lines of a terminal after what was written to it: as far as the progress needs it."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[^\x1b]", written):
        if token == "\r":
            column = 0
        elif token == "\n":
            row += 1
        elif token == "\x1b[2K":
            lines[row] = ""
        elif token.startswith("\x1b["):
            row -= int(token[2:-1] or 1) if token.endswith("A") else 0
        else:
            row, column = (row + 1, 0) if column == width else (row, column)
            lines += [""] * (row + 1 - len(lines))
            lines[row] = lines[row].ljust(column)[:column] + token + lines[row][column + 1 :]
            column += 1
        lines += [""] * (row + 1 - len(lines))
    return [line.rstrip() for line in lines]


def on_a_terminal(width, *arguments, interrupt=False):
    """Run samtl on a terminal; its exit code, and the screen at the end."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            patch.delenv(name, raising=False)
        process = forking.samtl(*arguments, streams=[os.ttyname(theirs)] * 3, TERM="xterm")
    written = b""
    try:
        while True:
            try:
                found = os.read(ours, 4096)
            except OSError:  # Linux says so when nobody has the other end any more
                break
            if not found:
                break
            written += found
            if theirs is not None:  # the child has opened it
                os.close(theirs)
                theirs = None
            if interrupt and re.search(rb"embedding .*?[1-9]\d*/", written):
                os.write(ours, b"\x03")
                interrupt = False
    finally:
        os.close(ours)
    process.join(60)
    return process.exitcode, screen(written.decode(), width)


@pytest.mark.parametrize("width", [80, 200])
def test_progress_leaves_no_trace(width):
    code, lines = on_a_terminal(width, *EMBED, "--dataset", "synthetic:8")
    assert code == 0
    assert re.match("dataset +synthetic: 64 images", lines[0])
    assert not [line for line in lines if "━" in line or "starting" in line]
    assert any(line.startswith("next: samtl fit-head") for line in lines)


def test_ctrl_c_leaves_no_trace():
    code, lines = on_a_terminal(80, *EMBED, "--dataset", "synthetic:300", interrupt=True)
    assert code == 130
    at = lines.index("stopping after the block in flight; press Ctrl-C again to stop at once")
    assert lines[at - 1].startswith(("time  ", "note  ", "   "))
    assert not [line for line in lines if "━" in line or "^" in line]


def test_a_terminal_without_the_characters_that_are_printed(tmp_path):
    """Scores have no sign that ASCII lacks, or it is replaced; names of classes, too."""
    folder = stubs.image_folder(tmp_path / "images")
    (folder / "field").rename(folder / "Forêt 森林")
    sweep = "sweep --heads logreg --splits 0.25 --seeds 2 --cache a.zarr --jobs 1"
    for verb, code in (
        ([*EMBED, "--dataset", "folder:images"], 0),
        (sweep.split(), 0),
        (["info", "Straße.zarr"], 2),
    ):
        process = forking.samtl(*verb, encoding="ascii", LC_ALL="C")
        process.join(60)
        written = b"".join(Path(name).read_bytes() for name in ("output", "errors"))
        assert process.exitcode == code, written
        assert written.isascii()
        assert written
