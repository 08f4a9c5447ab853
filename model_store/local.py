"""A store in a local folder: published by rename, guarded by the kernel's file locks."""

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from model_store.bundle import CHECKSUMS_FILE, Bundle, open_bundle
from model_store.durable import (
    append_lines,
    discard,
    locked,
    make_folder,
    staged,
    sweep,
    sync,
    sync_tree,
    write_atomic,
)
from model_store.manifest import MANIFEST_FILE


class LocalStorage:
    """Bundles in folders below a root. Paths are relative to it; the first part is a name."""

    def __init__(self, root: Path) -> None:
        self._root: Final = root

    def children(self, path: str) -> list[str]:
        """The names in a folder; none if there is no such folder."""
        folder = self._root / path
        if not folder.is_dir():
            return []
        # Dots hide what is being written, by us or by an editor.
        return sorted(child.name for child in folder.iterdir() if not child.name.startswith("."))

    def read(self, path: str) -> bytes | None:
        """A file's bytes, None if there is no such file."""
        try:
            return (self._root / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, path: str, data: bytes) -> None:
        """Write a small file, all or nothing."""
        target = self._root / path
        make_folder(target.parent)
        write_atomic(target, data)

    def read_from(self, path: str, start: int) -> bytes:
        """A file's bytes from a place on, none if there is no such file."""
        try:
            with (self._root / path).open("rb") as file:
                file.seek(start)
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return b""

    def append(self, path: str, lines: bytes) -> int:
        """Add whole lines to a file, and tell where they begin. Call it under the lock."""
        target = self._root / path
        make_folder(target.parent)
        return append_lines(target, lines)

    def locked(self, name: str) -> AbstractContextManager[None]:
        """Keep other writers of that bundle's versions and aliases out."""
        return locked(self._root / name)

    @contextmanager
    def staged(self, bundle: Bundle, name: str) -> Iterator[Callable[[str], bool]]:
        """Copy a bundle beside its target; the function given renames it to a path.

        Call it under the lock. It returns False if the path is taken.
        """
        with staged(self._root / name) as stage:
            for file in [*(entry.path for entry in bundle.manifest.files), CHECKSUMS_FILE]:
                (stage / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(bundle.path(file), stage / file)
            shutil.copyfile(bundle.root / MANIFEST_FILE, stage / MANIFEST_FILE)
            open_bundle(stage)
            sync_tree(stage)

            def commit(path: str) -> bool:
                target = self._root / path
                make_folder(target.parent)
                try:
                    stage.rename(target)
                except OSError as error:
                    # The rename itself decides who wins: it never replaces a folder with files.
                    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                        return False
                    raise
                sync(target.parent)
                return True

            yield commit

    def fetch(self, path: str, *, verify: bool) -> Bundle:
        """Open the bundle at a path."""
        return open_bundle(self._root / path, verify=verify)

    def remove(self, path: str, name: str) -> None:
        """Remove the bundle at a path; it disappears at once. Call it under the lock."""
        discard(self._root / path, self._root / name)

    def sweep(self, name: str) -> list[str]:
        """Remove what dead publishers left; no version, as none is ever half there."""
        sweep(self._root / name)
        return []
