"""Functions that run in worker processes, apart from modules that take long to import."""

import os
import signal
import time
from pathlib import Path


def invert(number):
    return 1 / number


def end_worker(task):
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
