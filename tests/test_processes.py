"""Processes that work for this one leave Ctrl-C to it."""

import signal
import subprocess
import sys

from samtl._runtime import deaf_children, ended

ASK = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"


def deaf():
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    return done.stdout.strip() == "True"


def test_children_are_deaf_from_their_first_moment():
    with deaf_children():
        assert deaf()
    assert not deaf()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_how_a_process_ended():
    assert ended(-9) == "by signal 9"
    assert ended(1) == "with code 1"
    assert ended(None) == "with code None"
