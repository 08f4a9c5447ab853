"""A store behind a URL: what object stores leave to us, and what they cannot give."""

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from model_store.bundle import CHECKSUMS_FILE, Bundle
from model_store.durable import STAGING_FOLDER
from model_store.errors import BundleCorrupt, BundleExists, StoreUnavailable
from model_store.manifest import MANIFEST_FILE
from model_store.remote import UPLOAD_GRACE, RemoteStorage
from model_store.store import Store


class Bucket(MemoryFileSystem):
    """An object store of one's own, that notes writes and lets a test step in between."""

    cachable = False  # codespell:ignore cachable

    def __init__(self) -> None:
        super().__init__()
        self.store = {}
        self.pseudo_dirs = [""]
        self.written: list[str] = []
        self.read_back: list[str] = []
        self.before_put: Callable[[], object] = lambda: None

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        """Upload a file."""
        self.before_put()
        self.written.append(rpath)
        super().put_file(lpath, rpath, **options)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        """Write bytes."""
        super().pipe_file(path, value, mode=mode, **options)
        self.written.append(path)

    def get_file(self, rpath: str, lpath: str, **options: Any) -> None:
        """Download a file."""
        self.read_back.append(rpath)
        super().get_file(rpath, lpath, **options)


class NoCreate(Bucket):
    """A file system without exclusive create."""

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        """Write bytes."""
        if mode == "create":
            raise NotImplementedError
        super().pipe_file(path, value, **options)


class Deaf(Bucket):
    """A file system that takes an exclusive create for an overwrite, and is slow to show it."""

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        """Write bytes, then those of another writer."""
        super().pipe_file(path, value, **options)
        if mode == "create":
            super().pipe_file(path, b"another's", **options)


class Strict(Bucket):
    """A file system that says "exists" in its own words, as some drivers do."""

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        """Write bytes."""
        if mode == "create" and self.exists(path):
            raise OSError("precondition failed")
        super().pipe_file(path, value, mode=mode, **options)


class Foreign(Bucket):
    """A file system whose driver raises errors of its own."""

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        """List a folder."""
        raise LookupError("no credentials")


class NeedsFolders(Bucket):
    """A file system like a disk's: what has no folder cannot be written."""

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        """Write bytes."""
        if self._parent(path) not in self.pseudo_dirs:
            raise FileNotFoundError(path)
        super().pipe_file(path, value, mode=mode, **options)


@pytest.fixture
def bucket() -> Bucket:
    """An empty object store."""
    return Bucket()


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., Store]:
    """A store in a bucket."""

    def make(bucket: Bucket, **options: Any) -> Store:
        storage = RemoteStorage(bucket, "/bucket/store", tmp_path / "cache", **options)
        return Store(storage, "test://bucket/store")

    return make


@pytest.fixture
def store(bucket: Bucket, make_store: Callable[..., Store]) -> Store:
    """A store in the bucket."""
    return make_store(bucket)


@pytest.fixture
def cut_off(store: Store, bucket: Bucket, bundle: Bundle) -> Iterator[None]:
    """The first publisher of ctr@1 died at its third file."""

    def die() -> None:
        if len(bucket.written) == 3:
            raise OSError("the line went dead")

    bucket.before_put = die
    with pytest.raises(StoreUnavailable, match="the line went dead"):
        store.publish(bundle.root, "ctr", "1")
    bucket.before_put = lambda: None
    return


# Uploading


def test_the_claim_comes_first_and_the_manifest_last(
    store: Store, bucket: Bucket, bundle: Bundle
) -> None:
    """A reader that sees a manifest finds all files; a second publisher sees the claim at once."""
    store.publish(bundle.root, "ctr", "1")
    names = [path.removeprefix("/bucket/store/ctr/versions/1/") for path in bucket.written]

    assert names[0] == CHECKSUMS_FILE
    assert names[-1] == MANIFEST_FILE
    assert set(names[1:-1]) == {entry.path for entry in bundle.manifest.files}


@pytest.mark.usefixtures("cut_off")
def test_an_upload_that_was_cut_off_is_no_version(store: Store) -> None:
    """It is listed as half-written, and not opened."""
    assert store.list()[0].problem == "half-written: it has no manifest.json"
    with pytest.raises(BundleCorrupt, match="has not finished, or died"):
        store.open("ctr@1")


@pytest.mark.usefixtures("cut_off")
def test_an_upload_is_taken_up_again(store: Store, bundle: Bundle) -> None:
    """Publishing the same content under the same version completes it."""
    store.publish(bundle.root, "ctr", "1")

    assert store.open("ctr@1").bundle.digest == bundle.digest


@pytest.mark.usefixtures("cut_off")
def test_an_upload_is_not_completed_by_another_content(
    store: Store, make_bundle: Callable[..., Bundle]
) -> None:
    """A claimed version never holds a mixture of two bundles."""
    other = make_bundle("other", graph=b"other")

    with pytest.raises(BundleExists):
        store.publish(other.root, "ctr", "1")
    assert store.publish(other.root, "ctr").version == "2"


@pytest.mark.usefixtures("cut_off")
@pytest.mark.parametrize(
    ("later", "gone"), [(UPLOAD_GRACE / 2, []), (UPLOAD_GRACE * 2, [("ctr", "1")])]
)
def test_gc_gives_an_upload_a_day(
    bucket: Bucket,
    make_store: Callable[..., Store],
    later: timedelta,
    gone: list[tuple[str, str]],
) -> None:
    """Its publisher may be slow; nobody can tell from here whether it lives."""
    store = make_store(bucket, now=lambda: datetime.now(UTC) + later)

    assert store.gc() == gone
    assert [entry.version for entry in store.list()] == ([] if gone else ["1"])


def test_gc_leaves_versions_alone_that_are_complete(
    bucket: Bucket, make_store: Callable[..., Store], bundle: Bundle
) -> None:
    """However old they are."""
    store = make_store(bucket, now=lambda: datetime.now(UTC) + 9 * UPLOAD_GRACE)
    store.publish(bundle.root, "ctr", "1")
    store.set_alias("ctr", "prod", "1")

    assert store.gc() == []


def test_the_second_publisher_of_a_number_takes_the_next(
    store: Store, bucket: Bucket, make_bundle: Callable[..., Bundle]
) -> None:
    """Two that chose the same number at the same time both win, with two numbers."""
    slow, fast = make_bundle("slow"), make_bundle("fast", graph=b"fast")
    versions = []

    def overtake() -> None:
        bucket.before_put = lambda: None
        versions.append(store.publish(fast.root, "ctr").version)

    bucket.before_put = overtake
    versions.append(store.publish(slow.root, "ctr").version)

    assert versions == ["2", "1"]
    assert store.open("ctr@1").bundle.digest == slow.digest
    assert store.open("ctr@2").bundle.digest == fast.digest


def test_the_second_publisher_of_a_version_is_refused(
    store: Store, bucket: Bucket, make_bundle: Callable[..., Bundle]
) -> None:
    """Even while the first one is still uploading."""
    slow, fast = make_bundle("slow"), make_bundle("fast", graph=b"fast")

    def overtake() -> None:
        bucket.before_put = lambda: None
        with pytest.raises(BundleExists):
            store.publish(fast.root, "ctr", "1")

    bucket.before_put = overtake
    store.publish(slow.root, "ctr", "1")

    assert store.open("ctr@1").bundle.digest == slow.digest


@pytest.mark.parametrize("kind", [NoCreate, Strict, NeedsFolders])
def test_versions_are_published_once_on_every_file_system(
    kind: type[Bucket],
    make_store: Callable[..., Store],
    make_bundle: Callable[..., Bundle],
) -> None:
    """Also where there is no exclusive create, or no word for its refusal, or a need of folders."""
    bucket = kind()
    if kind is NeedsFolders:
        bucket.mkdir("/bucket")
    store = make_store(bucket)
    first, second = make_bundle("first"), make_bundle("second", graph=b"second")
    store.publish(first.root, "ctr", "1")

    with pytest.raises(BundleExists):
        store.publish(second.root, "ctr", "1")
    assert store.publish(second.root, "ctr").version == "2"
    assert store.open("ctr@1").bundle.digest == first.digest


@pytest.mark.parametrize("kind", [Bucket, NoCreate, Strict])
def test_a_claim_holds_on_every_file_system(
    kind: type[Bucket], make_store: Callable[..., Store], make_bundle: Callable[..., Bundle]
) -> None:
    """A version that somebody began to upload is not begun again with another content."""
    bucket = kind()
    store = make_store(bucket)
    first, second = make_bundle("first"), make_bundle("second", graph=b"second")
    store.publish(first.root, "ctr", "1")
    bucket.rm_file(f"/bucket/store/ctr/versions/1/{MANIFEST_FILE}")

    with pytest.raises(BundleExists):
        store.publish(second.root, "ctr", "1")


def test_a_writer_who_was_overtaken_sees_it(
    make_store: Callable[..., Store], bundle: Bundle
) -> None:
    """Where creates overwrite, what was written is read back before it counts."""
    with pytest.raises(BundleExists):
        make_store(Deaf()).publish(bundle.root, "ctr", "1")


def test_an_upload_that_came_out_short_is_no_version(
    make_store: Callable[..., Store], bundle: Bundle
) -> None:
    """Sizes are compared before the manifest goes up."""

    class Short(Bucket):
        def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
            super().pipe_file(rpath, Path(lpath).read_bytes()[:-1])

    with pytest.raises(StoreUnavailable, match="bytes after the upload"):
        make_store(Short()).publish(bundle.root, "ctr")


def test_a_driver_that_cannot_write_is_told(
    make_store: Callable[..., Store], bundle: Bundle
) -> None:
    """An error that is not about an existing file is not taken for one."""

    class ReadOnly(Bucket):
        def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
            raise PermissionError(13, "read-only")

    with pytest.raises(StoreUnavailable, match=r"read-only.*give this user access"):
        make_store(ReadOnly()).publish(bundle.root, "ctr")


def test_errors_of_drivers_are_errors_of_the_store(make_store: Callable[..., Store]) -> None:
    """Drivers raise what their libraries do; callers see one kind."""
    with pytest.raises(StoreUnavailable, match="listing failed: LookupError: no credentials"):
        make_store(Foreign()).list()


def test_a_folders_own_marker_is_no_child(store: Store, bucket: Bucket, bundle: Bundle) -> None:
    """Consoles of object stores make an empty object for a folder."""
    store.publish(bundle.root, "ctr", "1")
    listed = bucket.ls

    def with_marker(path: str, **options: Any) -> Any:
        return [*listed(path, **options), f"{path}/"]

    bucket.ls = with_marker

    assert [entry.version for entry in store.list()] == ["1"]


# Downloading


def test_a_bundle_is_downloaded_once(store: Store, bucket: Bucket, bundle: Bundle) -> None:
    """The cache is by digest: the same content under another version is there already."""
    store.publish(bundle.root, "ctr", "1")
    store.publish(bundle.root, "ctr", "2")
    roots = [store.open(ref).bundle.root for ref in ("ctr@1", "ctr@1", "ctr@2")]

    assert len(set(roots)) == 1
    assert len(bucket.read_back) == len(bundle.manifest.files) + 1


def test_a_damaged_cache_is_replaced(store: Store, bundle: Bundle) -> None:
    """Damage on this machine is repaired from the store, once and in silence."""
    store.publish(bundle.root, "ctr", "1")
    cached = store.open("ctr@1").bundle.root
    os.truncate(cached / "model.onnx", 1)

    assert store.open("ctr@1").bundle.root == cached
    assert (cached / "model.onnx").stat().st_size > 1


def test_damage_in_the_store_does_not_reach_the_cache(
    store: Store, bucket: Bucket, bundle: Bundle, tmp_path: Path
) -> None:
    """A download that does not verify is thrown away."""
    store.publish(bundle.root, "ctr", "1")
    bucket.pipe_file("/bucket/store/ctr/versions/1/model.onnx", b"\0 no real grapH\n")

    with pytest.raises(BundleCorrupt, match=r"versions/1, as downloaded: .*sha256"):
        store.open("ctr@1")
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [
        STAGING_FOLDER
    ]
    assert list((tmp_path / "cache" / STAGING_FOLDER).iterdir()) == []


def test_a_download_that_another_process_finished_first_is_dropped(
    store: Store, bucket: Bucket, bundle: Bundle, make_store: Callable[..., Store]
) -> None:
    """Both have the same, verified bytes."""
    store.publish(bundle.root, "ctr", "1")
    download = bucket.get_file

    def overtake(rpath: str, lpath: str, **options: Any) -> None:
        bucket.get_file = download
        make_store(bucket).open("ctr@1")
        download(rpath, lpath, **options)

    bucket.get_file = overtake

    assert store.open("ctr@1").bundle.digest == bundle.digest


def test_a_download_sweeps_what_killed_ones_left(
    store: Store, bundle: Bundle, tmp_path: Path
) -> None:
    """The cache does not fill up with halves."""
    left = tmp_path / "cache" / STAGING_FOLDER / "0123"
    left.mkdir(parents=True)
    store.publish(bundle.root, "ctr", "1")
    store.open("ctr@1")

    assert not left.exists()


# Deleting


def test_the_manifest_goes_first(store: Store, bucket: Bucket, bundle: Bundle) -> None:
    """A delete that is cut off leaves no version that looks whole."""
    store.publish(bundle.root, "ctr", "1")
    removed = []
    remove = bucket.rm_file

    def note(path: str) -> None:
        removed.append(path)
        remove(path)

    bucket.rm_file = note
    store.delete("ctr", "1")

    assert removed[0].endswith(MANIFEST_FILE)
    assert store.list() == []
