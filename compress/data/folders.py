"""Folders that several processes may fill, and that may fill up."""

import errno
import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from compress.config import CompressError
from compress.data.base import DataError
from compress.progress import Progress

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class FolderError(CompressError):
    """A run's folder is in use or full; the text says what to do."""


@contextmanager
def locked(folder: Path, key: str) -> Iterator[None]:
    """Let one process at a time fill what a key names; the others wait and find it done."""
    with (folder / f".{key}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make the folder, and keep other processes that ask for it out until the end.

    The kernel drops the lock when its holder dies, so a killed run keeps nobody out.

    Raises:
        FolderError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderError(
                f"another run works in {folder}; wait until it ends and run the same command, "
                "or give this one another `runs` folder"
            ) from None
        yield


@contextmanager
def in_turn(folder: Path, progress: Progress) -> Iterator[None]:
    """As `alone`, but who comes second waits until the first is done."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stage = f"wait for another run in {folder}"
            progress.step(stage, 0, 1)
            fcntl.flock(file, fcntl.LOCK_EX)
            progress.step(stage, 1, 1)
        yield


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Gives a file beside ``path`` to write to: it gets the name if all went well, else it goes.

    Raises:
        FolderError: the disk is full.
    """
    staged = path.with_name(f".{path.name}.part")
    try:
        with spacious(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield staged
            staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


@contextmanager
def spacious(path: Path) -> Iterator[None]:
    """Say where the disk is full, and how to go on.

    Raises:
        FolderError: it is.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save puts a RuntimeError of its own over the system's.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError) or cause.errno not in FULL:
            raise
        raise FolderError(
            f"{path}: the disk is full ({cause.strerror}): free some space and run the same "
            "command: it goes on from the last checkpoint"
        ) from error


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Make the folder; say plainly what is wrong if it cannot be written.

    Raises:
        DataError: the disk is full, or the folder may not be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno in FULL:
            free_mb = shutil.disk_usage(folder).free / 1e6
            raise DataError(
                f"{folder}: the disk is full ({error.strerror}; {free_mb:.0f} MB free): "
                "make room, or choose another folder"
            ) from error
        raise DataError(f"{folder}: cannot be written: {error}") from error
