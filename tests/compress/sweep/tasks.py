"""What launchers' tests have done: functions that another process finds by name."""

import os
import signal
from pathlib import Path

from compress.data.base import DataError
from compress.data.folders import alone


def leave(path: Path, text: str) -> None:
    """Do well."""
    path.write_text(text)


def refuse() -> None:
    """An error of the domain."""
    raise DataError("the table has no rows; choose another")


def stumble() -> None:
    """A mistake in the code."""
    raise ZeroDivisionError("by nought")


def die() -> None:
    """Go without a word, as a process does that runs out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def stay(folder: Path) -> None:
    """Work on a folder until somebody ends it."""
    with alone(folder):
        (folder / "begun").touch()
        signal.pause()
