"""Item ids that processes share: packed and indexed by the first, mapped by all.

They lie in a folder of this machine, in a file each, named by the digest of the ids' file in the
bundle: versions of one catalogue have one. A file is written once, under a name of its own, and
holds, in this machine's byte order,

    digest  (32,)     SHA-256 of all that follows
    header            `_HEADER`: the format, how many ids and slots, the hash's key
    ends    (N + 1,)  uint32
    slots   (S,)      uint32, as of `kernels.index_ids`
    text              UTF-8

Whoever maps a file holds a lock on it, and files that nobody holds go when another one is made. So
a kill at any moment leaves nothing that is not put right, or taken away, later.
"""

import fcntl
import hashlib
import mmap
import os
from contextlib import suppress
from pathlib import Path
from struct import Struct
from typing import Final
from weakref import WeakValueDictionary

import numpy as np
import structlog

from model_store.bundle import Bundle
from model_store.durable import locked
from model_store.errors import BundleCorrupt
from model_store.packed_ids import PackedIds
from service import kernels
from service.item_ids import Index, ItemIds

log = structlog.get_logger(__name__)

SUFFIX: Final = ".ids"
PART: Final = ".part"
_DIGEST: Final = hashlib.sha256().digest_size
_HEADER: Final = Struct("=8sQQ16s")
_FORMAT: Final = b"slimids1"
_START: Final = _DIGEST + _HEADER.size  # of the ends
_WIDTH: Final = np.dtype(np.uint32).itemsize


class SharedIds:
    """The item ids of bundles, once on this machine.

    Args:
        folder: where processes share them; None: this process has them for itself. So it has
            where loops are not compiled: a dictionary cannot be mapped.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder if kernels.COMPILED else None
        # Two versions of one catalogue have the same ids.
        self._held = WeakValueDictionary[str, ItemIds]()

    def of(self, bundle: Bundle) -> ItemIds | None:
        """The ids of a bundle's catalogue, None if it has none.

        Raises:
            BundleCorrupt: they are no ids, not as many as the manifest says, or one is there twice.
        """
        spec = bundle.manifest.session or bundle.manifest.items
        if spec is None:
            return None
        digests = {entry.path: entry.sha256 for entry in bundle.manifest.files}
        # With their number: a manifest that says another one is found out where they are read.
        name = f"{digests[spec.ids]}-{spec.items}"
        ids = self._held.get(name)
        if ids is None and self._folder is not None:
            ids = _shared(self._folder / f"{name}{SUFFIX}", bundle)
        if ids is None:
            ids = _indexed(bundle)
        self._held[name] = ids
        return ids


def _indexed(bundle: Bundle) -> ItemIds:
    try:
        return ItemIds(bundle.item_ids())
    except ValueError as error:
        raise BundleCorrupt(f"{bundle.root}: its item ids: {error}") from None


def _shared(path: Path, bundle: Bundle) -> ItemIds | None:
    """What a file holds, which is made if it is not there or damaged; None if it cannot be made."""
    made: ItemIds | None = None
    try:
        # Whoever comes first makes it, the others wait for it.
        with locked(path.parent):
            ids = _mapped(path)
            if ids is None:
                made = _indexed(bundle)
                _write(path, made)
                ids = _mapped(path)
                _remove_unheld(path)
            return ids
    except OSError as error:
        log.warning("item ids are not shared between workers", reason=f"{error}")
        return made


def _mapped(path: Path) -> ItemIds | None:
    """What a file holds, None if it is missing or damaged.

    Raises:
        OSError: it cannot be read or mapped, or another user has made it.
    """
    try:
        with path.open("rb") as file:
            # The mapping copies this descriptor, and so holds the lock for as long as it is there.
            fcntl.flock(file, fcntl.LOCK_SH)
            if os.fstat(file.fileno()).st_uid != os.geteuid():
                raise PermissionError(f"{path} is another user's")  # who may have put it there
            whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (FileNotFoundError, ValueError):  # not there, or empty
        return None
    if hashlib.sha256(whole[_DIGEST:]).digest() != whole[:_DIGEST] or len(whole) < _START:
        log.warning("shared item ids are damaged; making them again", file=str(path))
        return None
    form, items, places, key = _HEADER.unpack_from(whole, _DIGEST)
    if form != _FORMAT:
        return None
    slots = _START + _WIDTH * (items + 1)
    ids = PackedIds(
        whole[slots + _WIDTH * places :], np.frombuffer(whole, np.uint32, items + 1, _START)
    )
    return ItemIds(ids, Index(key, np.frombuffer(whole, np.uint32, places, slots)))


def _write(path: Path, ids: ItemIds) -> None:
    if ids.index is None:
        raise ValueError("expected ids with an index")
    key, slots = ids.index
    header = _HEADER.pack(_FORMAT, len(ids), len(slots), key)
    parts = (header, ids.packed.ends.data, slots.data, ids.packed.text)
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    # Under the folder's lock; what a killed process left is written over. Mapped files are not:
    # a rename leaves them to those who have them.
    partial = path.with_suffix(PART)
    partial.unlink(missing_ok=True)
    try:
        # "x" follows no link that somebody puts there.
        with open(partial, "xb", opener=_private) as file:
            for part in (digest.digest(), *parts):
                file.write(part)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)  # the key is nobody else's


def _remove_unheld(kept: Path) -> None:
    """Remove the other files that no process maps, and what killed processes left, if it can be."""
    for partial in kept.parent.glob(f"*{PART}"):
        with suppress(OSError):
            partial.unlink()
    for path in kept.parent.glob(f"*{SUFFIX}"):
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
