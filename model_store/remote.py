"""A store behind a URL: whatever fsspec reaches. Object stores rename nothing and lock nothing.

A version's files go up in this order: ``SHA256SUMS``, which claims the version for one content;
the files; ``manifest.json``, which makes it a version. Claim and commit are exclusive creates
where the file system has them (S3 and GCS do). Aliases are plain overwrites: the last writer wins.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import fsspec

from model_store.bundle import (
    CHECKSUMS_FILE,
    Bundle,
    checksums,
    digest_of,
    open_bundle,
    parse_manifest,
)
from model_store.durable import discard, locked, make_folder, staged, sweep
from model_store.errors import BundleCorrupt, StoreError, StoreUnavailable
from model_store.manifest import MANIFEST_FILE

UPLOAD_GRACE: Final = timedelta(days=1)  # an upload without a sign of life for so long is dead


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """Make what a driver raises an OSError."""
    try:
        yield
    except (OSError, StoreError):
        raise
    # Drivers raise what their libraries do: botocore's NoCredentialsError is no OSError.
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _now() -> datetime:
    return datetime.now(UTC)


class RemoteStorage:
    """Bundles below a path of an fsspec file system; they are read from a local cache.

    Attributes:
        fs: the file system.
        root: the store's path on it.
        cache: a local folder of downloaded bundles by digest.
        now: the clock that an upload's age is told by.
    """

    def __init__(self, fs: Any, root: str, cache: Path, now: Callable[[], datetime] = _now) -> None:
        self._fs: Final = fs
        self._root: Final = root.rstrip("/")
        self._cache: Final = cache
        self._now: Final = now

    @_as_os_errors()
    def children(self, path: str) -> list[str]:
        """The names in a folder; none if there is no such folder."""
        self._fs.invalidate_cache()
        folder = self._at(path).rstrip("/")
        try:
            found = [entry.rstrip("/") for entry in self._fs.ls(folder, detail=False)]
        except FileNotFoundError:
            return []
        # Object stores may list a folder's own marker in it.
        names = (entry.rpartition("/")[2] for entry in found if entry != folder)
        return sorted(name for name in names if not name.startswith("."))

    @_as_os_errors()
    def read(self, path: str) -> bytes | None:
        """A file's bytes, None if there is no such file."""
        try:
            return bytes(self._fs.cat_file(self._at(path)))
        except FileNotFoundError:
            return None

    @_as_os_errors()
    def write(self, path: str, data: bytes) -> None:
        """Write a small file; all or nothing where a put is (object stores)."""
        self._make_parent(path)
        self._fs.pipe_file(self._at(path), data)

    @_as_os_errors()
    def read_from(self, path: str, start: int) -> bytes:
        """A file's bytes from a place on, none if there is no such file."""
        self._fs.invalidate_cache()
        try:
            # Some drivers call a range beyond the end an error.
            if self._fs.size(self._at(path)) <= start:
                return b""
            return bytes(self._fs.cat_file(self._at(path), start=start))
        except FileNotFoundError:
            return b""

    def append(self, path: str, lines: bytes) -> int:
        """Add whole lines to a file, and tell where they begin; of two writers the last wins."""
        before = self.read(path) or b""
        self.write(path, before + lines)
        return len(before)

    def locked(self, name: str) -> AbstractContextManager[None]:  # noqa: ARG002
        """Object stores have no locks: keeps nobody out."""
        return nullcontext()

    @contextmanager
    def staged(self, bundle: Bundle, name: str) -> Iterator[Callable[[str], bool]]:  # noqa: ARG002
        """Gives the function that uploads the bundle; it returns False if the path is taken."""
        yield lambda path: self._upload(bundle, path)

    @_as_os_errors()
    def _upload(self, bundle: Bundle, path: str) -> bool:
        if self.read(f"{path}/{MANIFEST_FILE}") is not None:
            return False
        claim, sums = f"{path}/{CHECKSUMS_FILE}", checksums(bundle.manifest, bundle.digest)
        # An upload of the same content that was cut off is taken up again.
        if self.read(claim) != sums and not self._create(claim, sums):
            return False
        for entry in bundle.manifest.files:
            self._make_parent(f"{path}/{entry.path}")
            target = self._at(f"{path}/{entry.path}")
            self._fs.put_file(str(bundle.path(entry.path)), target)
            if (size := self._fs.size(target)) != entry.bytes:
                raise OSError(f"{target} has {size} bytes after the upload, not {entry.bytes}")
        manifest = (bundle.root / MANIFEST_FILE).read_bytes()
        return self._create(f"{path}/{MANIFEST_FILE}", manifest)

    def _create(self, path: str, data: bytes) -> bool:
        """Write a file that must not exist; False if it does, or another writer overtook us."""
        self._make_parent(path)
        try:
            self._fs.pipe_file(self._at(path), data, mode="create")
        except OSError:
            # FileExistsError, or what this driver makes of "precondition failed".
            if self.read(path) is None:
                raise
            return False
        except (NotImplementedError, TypeError, ValueError):
            # This driver cannot. Between the look and the write, another may come.
            if self.read(path) is not None:
                return False
            self._fs.pipe_file(self._at(path), data)
        # Others take "create" for an overwrite, in silence.
        return self.read(path) == data

    @_as_os_errors()
    def fetch(self, path: str, *, verify: bool) -> Bundle:
        """Open the bundle at a path: from the cache, or downloaded into it."""
        raw = self.read(f"{path}/{MANIFEST_FILE}")
        if raw is None:
            raise BundleCorrupt(
                f"{self._at(path)}: no {MANIFEST_FILE}; its publisher has not finished, or died: "
                "publish it again"
            )
        cached = self._cache / digest_of(raw).replace(":", "-")
        if cached.is_dir():
            try:
                return open_bundle(cached, verify=verify)
            except StoreError:
                # The cache was damaged, not the store: what we download is checked anew.
                with locked(self._cache):
                    discard(cached, self._cache)
        self._download(path, raw, cached)
        return open_bundle(cached, verify=False)

    def _download(self, path: str, raw: bytes, cached: Path) -> None:
        make_folder(self._cache)
        sweep(self._cache)
        with staged(self._cache) as stage:
            bundle = Bundle(stage, parse_manifest(raw, self._at(path)), digest_of(raw))
            for file in [*(entry.path for entry in bundle.manifest.files), CHECKSUMS_FILE]:
                target = bundle.path(file)
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    self._fs.get_file(self._at(f"{path}/{file}"), str(target))
                except FileNotFoundError:
                    raise BundleCorrupt(
                        f"{self._at(path)}/{file}: missing; publish the bundle again"
                    ) from None
            (stage / MANIFEST_FILE).write_bytes(raw)
            try:
                open_bundle(stage)
            except BundleCorrupt as error:
                raise BundleCorrupt(f"{self._at(path)}, as downloaded: {error}") from None
            with locked(self._cache):
                if not cached.exists():
                    stage.rename(cached)

    @_as_os_errors()
    def remove(self, path: str, name: str) -> None:  # noqa: ARG002
        """Remove the bundle at a path: the manifest first, so that it stops being one at once."""
        manifest = self._at(f"{path}/{MANIFEST_FILE}")
        if self._fs.exists(manifest):
            self._fs.rm_file(manifest)
        self._fs.rm(self._at(path), recursive=True)

    @_as_os_errors()
    def sweep(self, name: str) -> list[str]:
        """Remove versions without a manifest that nobody has written to for a day."""
        dead = [
            version
            for version in self.children(f"{name}/versions")
            if self._is_dead(f"{name}/versions/{version}")
        ]
        for version in dead:
            self.remove(f"{name}/versions/{version}", name)
        return dead

    def _is_dead(self, path: str) -> bool:
        if self.read(f"{path}/{MANIFEST_FILE}") is not None:
            return False
        files = self._fs.find(self._at(path))
        return all(self._now() - self._fs.modified(file) > UPLOAD_GRACE for file in files)

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _make_parent(self, path: str) -> None:
        self._make_folder(self._at(path).rpartition("/")[0])

    def _make_folder(self, folder: str) -> None:
        parent = folder.rpartition("/")[0]
        # The first part may be a bucket. One that is not there is a mistyped one.
        if not parent or self._fs.isdir(folder):
            return
        self._make_folder(parent)
        with suppress(FileExistsError):
            self._fs.mkdir(folder, create_parents=False)


def open_remote(url: str, cache: Path) -> RemoteStorage:
    """The storage at a URL.

    Raises:
        StoreUnavailable: fsspec has no such file system, or its driver is not installed.
    """
    try:
        fs, root = fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise StoreUnavailable(f"{url}: {error}") from None
    return RemoteStorage(fs, root, cache)
