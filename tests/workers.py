"""Functions that run in worker processes, apart from modules that take long to import."""

import os
import signal
import time
from pathlib import Path


def invert(number, link):
    link.send(number)
    if number > 1:  # the first ones have ended, and the stop that follows is told of
        while not link.stopped():
            time.sleep(0.01)
        link.send("stopped")
    return 1 / number


def hears_ctrl_c(seconds, link):
    time.sleep(seconds)
    heard = signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return heard or signal.getsignal(signal.SIGINT) != signal.SIG_IGN


def end_worker(task, link):
    """Kill the worker for a negative task; for a path, only if no earlier worker was killed by it."""
    if isinstance(task, Path):
        if task.exists():
            return "second"
        task.touch()
    elif task >= 0:
        time.sleep(0.05)
        return task
    os.kill(os.getpid(), signal.SIGKILL)
    return None
