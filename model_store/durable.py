"""File operations that survive a kill and a power cut: all or nothing, and on the disk when done.

A rename is atomic but not durable: after a power cut its folder may still show the old name, or
the new name over empty files. So files are fsynced before the rename, and the folder after it.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Final
from uuid import uuid4

LOCK_FILE: Final = ".lock"
STAGING_FOLDER: Final = ".staging"


def sync(path: Path) -> None:
    """Put a file's content, or a folder's list of names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(root: Path) -> None:
    """Put a folder and all in it on the disk."""
    for folder, _, files in os.walk(root):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))


def make_folder(path: Path) -> None:
    """Make a folder and those above it; each new name is put on the disk."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def append_lines(path: Path, lines: bytes) -> int:
    """Add lines to the end of a file that only grows; they are on the disk when this returns.

    What a killed writer left of a line is cut off first. Hold a lock against other writers.

    Returns:
        Where in the file they begin.
    """
    made = not path.exists()
    # Unbuffered: a buffer that the disk had no room for would be written again on closing.
    with path.open("ab+", buffering=0) as file:
        end = _after_last_line(file)
        file.truncate(end)
        try:
            rest = memoryview(lines)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except BaseException:  # an interrupt, too, leaves no part of the lines
            file.truncate(end)
            raise
    if made:
        sync(path.parent)
    return end


def _after_last_line(file: FileIO) -> int:
    size = file.seek(0, os.SEEK_END)
    if size:
        file.seek(size - 1)
        if file.read() != b"\n":
            file.seek(0)
            return file.read().rfind(b"\n") + 1
    return size


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes and threads that write in a folder out.

    The kernel drops the lock when its holder dies, so a kill leaves nothing to clean up.
    """
    make_folder(folder)
    with (folder / LOCK_FILE).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A fresh folder on the file system of ``folder``, removed at the end unless renamed away.

    It is held by a lock for as long as this process lives; `sweep` removes those nobody holds.
    """
    staging = folder / STAGING_FOLDER
    # Under the folder's lock, or a sweep could see the new folder before it is held.
    with locked(folder):
        make_folder(staging)
        stage = staging / uuid4().hex
        stage.mkdir()
        descriptor = os.open(stage, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove what killed processes left in a folder: staged folders, parts of small files."""
    staging = folder / STAGING_FOLDER
    if not staging.is_dir():
        return
    with locked(folder):
        for stage in sorted(staging.iterdir()):
            _remove_unheld(stage)
        # Small files are written under the lock, so nobody is at work on these.
        for part in folder.glob("[!.]*/.*"):
            part.unlink()


def _remove_unheld(stage: Path) -> None:
    descriptor = os.open(stage, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(stage)
    except BlockingIOError:
        return
    finally:
        os.close(descriptor)


def discard(path: Path, folder: Path) -> None:
    """Remove a folder: out of sight at once, then from the disk. Hold the lock of ``folder``."""
    make_folder(folder / STAGING_FOLDER)
    trash = folder / STAGING_FOLDER / uuid4().hex
    path.rename(trash)
    sync(path.parent)
    shutil.rmtree(trash)
