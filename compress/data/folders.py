"""Folders that several processes may fill, and that may fill up."""

import errno
import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compress.data.base import DataError


@contextmanager
def locked(folder: Path, key: str) -> Iterator[None]:
    """Let one process at a time fill what a key names; the others wait and find it done."""
    with (folder / f".{key}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            free_mb = shutil.disk_usage(folder).free / 1e6
            raise DataError(
                f"{folder}: the disk is full ({error.strerror}; {free_mb:.0f} MB free): "
                "make room, or choose another folder"
            ) from error
        raise DataError(f"{folder}: cannot be written: {error}") from error
