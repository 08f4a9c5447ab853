"""A local store: kills, races, full disks."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Barrier
from typing import Any

import pytest

from model_store.bundle import Bundle
from model_store.durable import STAGING_FOLDER
from model_store.errors import AliasConflict, BundleExists, StoreError, StoreUnavailable
from model_store.local import LocalStorage
from model_store.store import Store, open_store

ROOT = Path(__file__).parents[2]
MEMORY = Path("/dev/shm")  # noqa: S108 - where the disk costs nothing: a kill, unlike a power cut, spares it
WRITERS = 8


@pytest.fixture
def store(three_versions: Path) -> Store:
    """The store with three versions. Read only."""
    return open_store(f"{three_versions}")


@pytest.fixture
def empty(tmp_path: Path) -> Store:
    """A store without bundles."""
    return open_store(f"{tmp_path}/store")


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Path]:
    """A folder, in memory where there is one."""
    with TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else tmp_path) as folder:
        yield Path(folder)


def at_once(call: Callable[[int], object]) -> list[object]:
    """What many callers get who start together: results, or the store's errors."""
    start = Barrier(WRITERS)

    def one(index: int) -> object:
        start.wait()
        try:
            return call(index)
        except StoreError as error:
            return type(error)

    with ThreadPoolExecutor(WRITERS) as pool:
        return list(pool.map(one, range(WRITERS)))


# Kills


@pytest.mark.parametrize(
    ("action", "points"),
    [
        ("alias", 10),
        ("rollback", 10),
        ("fresh", 10),
        ("delete", 30),
        ("gc", 30),
        ("publish", 80),
        pytest.param("first", 80, marks=pytest.mark.slow),
    ],
)
def test_a_kill_at_any_point_leaves_the_store_valid(
    action: str, points: int, three_versions: Path, sealed: Path, quick: Path
) -> None:
    """A writer killed before any of its file operations leaves the state before it, or after.

    Every version listed verifies, the alias opens, the next writer succeeds, gc removes the rest.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.model_store.kill_points", action, three_versions, sealed,
         quick],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= points


def test_gc_leaves_living_publishers_alone(empty: Store, bundle: Bundle, tmp_path: Path) -> None:
    """What another process is staging right now is not litter."""
    storage = LocalStorage(tmp_path / "store")
    empty.publish(bundle.root, "ctr")
    with storage.staged(bundle, "ctr") as commit:
        empty.gc()
        committed = commit("ctr/versions/2")

    assert committed
    assert empty.open("ctr@2").bundle.digest == bundle.digest


def test_gc_removes_what_dead_publishers_left(empty: Store, tmp_path: Path) -> None:
    """Even if a name was never published."""
    left = tmp_path / "store/ctr" / STAGING_FOLDER / "0123"
    left.mkdir(parents=True)
    (left / "model.onnx").write_bytes(b"half")

    assert empty.gc() == []
    assert not left.exists()


# Races


def test_one_of_many_publishers_of_a_version_wins(
    empty: Store, make_bundle: Callable[..., Bundle]
) -> None:
    """The others are refused, and the version holds the winner's files only."""
    bundles = [make_bundle(f"{i}", graph=f"{i}".encode()) for i in range(WRITERS)]
    results = at_once(lambda i: empty.publish(bundles[i].root, "ctr", "1"))

    assert results.count(BundleExists) == WRITERS - 1
    winner = next(i for i, result in enumerate(results) if result is not BundleExists)
    assert empty.open("ctr@1").bundle.digest == bundles[winner].digest


def test_publishers_without_a_version_get_one_each(
    empty: Store, make_bundle: Callable[..., Bundle]
) -> None:
    """Numbers are given in turn, none twice, none left out, each with its own files."""
    bundles = [make_bundle(f"{i}", graph=f"{i}".encode()) for i in range(WRITERS)]
    results = at_once(lambda i: empty.publish(bundles[i].root, "ctr"))
    digests = {entry.version: entry.digest for entry in empty.list()}

    assert {p.version: p.digest for p in results if not isinstance(p, type)} == digests
    assert sorted(digests) == [f"{number}" for number in range(1, WRITERS + 1)]


def test_the_rename_decides_even_without_the_lock(
    make_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    """Where locks do not work, as on some network disks, a version still has one publisher."""
    first, second = make_bundle("one"), make_bundle("two", graph=b"other")
    storage = LocalStorage(tmp_path / "store")
    with storage.staged(first, "ctr") as one, storage.staged(second, "ctr") as two:
        committed = [one("ctr/versions/1"), two("ctr/versions/1")]

    assert committed == [True, False]
    assert storage.fetch("ctr/versions/1", verify=True).digest == first.digest


def test_many_alias_writers_lose_no_move(empty: Store, bundle: Bundle) -> None:
    """Every move is in the history: none read the alias before another wrote it."""
    for _ in range(WRITERS):
        empty.publish(bundle.root, "ctr")
    at_once(lambda i: empty.set_alias("ctr", "prod", f"{i + 1}"))
    record = empty.history("ctr", "prod")

    assert sorted([record.version, *record.previous]) == [f"{i + 1}" for i in range(WRITERS)]


def test_one_of_many_who_expect_the_same_wins(empty: Store, bundle: Bundle) -> None:
    """Compare-and-set holds between processes and threads."""
    for _ in range(WRITERS + 1):
        empty.publish(bundle.root, "ctr")
    empty.set_alias("ctr", "prod", f"{WRITERS + 1}")
    results = at_once(
        lambda i: empty.set_alias("ctr", "prod", f"{i + 1}", expected=f"{WRITERS + 1}")
    )

    assert results.count(AliasConflict) == WRITERS - 1
    assert empty.aliases("ctr")["prod"] == f"{results.index(None) + 1}"


# Full disks and other refusals


def test_a_file_too_large_for_the_disk_leaves_no_trace(
    make_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    """Publishing that runs out of room ends in one line, adds nothing and leaves nothing behind."""
    small, large = make_bundle("small"), make_bundle("large", graph=bytes(50_000))
    store = open_store(f"{tmp_path}/store")
    store.publish(small.root, "ctr")
    done = subprocess.run(
        ["/bin/sh", "-c", 'ulimit -f 16 && exec "$0" "$@"', sys.executable, "-B", "-m",
         "model_store", "--store", tmp_path / "store", "publish", large.root, "ctr"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 1
    assert done.stdout == ""
    assert "publishing ctr failed: File too large; what was published before is" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [entry.version for entry in store.list()] == ["1"]
    assert list((tmp_path / "store/ctr" / STAGING_FOLDER).iterdir()) == []
    assert store.open("ctr@1").bundle.digest == small.digest


def disk_full(_: int) -> None:
    """Fails as fsync does when there is no room."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_loses_nothing(
    empty: Store, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the versions nor the alias change, and the error says what to do."""
    for _ in range(2):
        empty.publish(bundle.root, "ctr")
    empty.set_alias("ctr", "prod", "1")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(os, "fsync", disk_full)

    with pytest.raises(StoreUnavailable, match=r"No space left on device.*free some space"):
        empty.publish(bundle.root, "ctr")
    with pytest.raises(StoreUnavailable, match="No space left"):
        empty.set_alias("ctr", "prod", "2")
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_a_file_in_the_way_ends_publishing(empty: Store, bundle: Bundle, tmp_path: Path) -> None:
    """Where a folder should be and something else is, the store does not try for ever."""
    (tmp_path / "store/ctr").mkdir(parents=True)
    (tmp_path / "store/ctr/versions").write_text("mine")

    with pytest.raises(StoreUnavailable, match="File exists"):
        empty.publish(bundle.root, "ctr")


def test_a_version_that_cannot_be_renamed_in_is_told(
    empty: Store, bundle: Bundle, tmp_path: Path
) -> None:
    """A file that has the version's name is not taken for a version."""
    (tmp_path / "store/ctr/versions").mkdir(parents=True)
    (tmp_path / "store/ctr/versions/1").write_text("mine")

    with pytest.raises(StoreUnavailable, match="Not a directory"):
        empty.publish(bundle.root, "ctr", "1")


def test_reading_writes_nothing(store: Store, three_versions: Path) -> None:
    """A service may mount a store read-only."""
    before = {path: path.stat().st_mtime_ns for path in three_versions.rglob("*")}
    store.open("ctr")
    store.list()
    store.history("ctr", "prod")

    assert {path: path.stat().st_mtime_ns for path in three_versions.rglob("*")} == before


# Durability


class Recorder:
    """Passes file operations on, and notes them."""

    def __init__(self) -> None:
        self.synced: set[int] = set()
        self.events: list[tuple[str, set[int]]] = []
        self._rename = os.rename

    def fsync(self, descriptor: int) -> None:
        """Note what was put on the disk, by inode."""
        self.synced.add(os.fstat(descriptor).st_ino)

    def rename(self, source: Any, target: Any) -> None:
        """Note what was on the disk when a name appeared."""
        self.events.append((str(target), set(self.synced)))
        self.synced.clear()
        self._rename(source, target)


def test_all_is_on_the_disk_before_a_version_appears(
    empty: Store, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file and folder is fsynced before the rename, and the parent folder after it."""
    recorder = Recorder()
    monkeypatch.setattr(os, "fsync", recorder.fsync)
    monkeypatch.setattr(os, "rename", recorder.rename)
    empty.publish(bundle.root, "ctr")
    target = tmp_path / "store/ctr/versions/1"
    inodes = {path.stat().st_ino for path in [target, *target.rglob("*")]}

    assert [name for name, _ in recorder.events] == [f"{target}"]
    assert inodes <= recorder.events[0][1]
    assert target.parent.stat().st_ino in recorder.synced


def test_published_files_are_readable_by_others(empty: Store, bundle: Bundle) -> None:
    """The service runs as another user than the publisher: modes follow the umask, as elsewhere."""
    mask = os.umask(0o022)
    try:
        empty.publish(bundle.root, "ctr")
    finally:
        os.umask(mask)
    root = empty.open("ctr@1").bundle.root

    assert {path.stat().st_mode & 0o777 for path in [root, *root.rglob("*")]} == {0o755, 0o644}


def test_a_deleted_version_leaves_its_number_behind(
    empty: Store, bundle: Bundle, tmp_path: Path
) -> None:
    """An empty file per deleted version is all that stays."""
    empty.publish(bundle.root, "ctr")
    empty.delete("ctr", "1")
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]

    assert sorted(path.name for path in files) == [".lock", "1"]
