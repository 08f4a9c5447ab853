"""Item ids that processes share in a folder: made by one, mapped by all, damaged ones made anew."""

import gc
import json
import multiprocessing
import os
import resource
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from model_store.bundle import Bundle, open_bundle, seal
from model_store.durable import locked
from model_store.errors import BundleCorrupt
from service import kernels, shared_ids
from service.item_ids import ItemIds
from service.shared_ids import SharedIds
from tests.service.sessions import IDS, World

compiled = pytest.mark.skipif(not kernels.COMPILED, reason="a dictionary cannot be mapped")
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A session ranker's, of 40 ids."""
    return World().write(tmp_path / "bundle")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where they are shared; not made yet."""
    return tmp_path / "cache" / "ids"


@pytest.fixture
def unread(bundle: Bundle) -> Iterator[Callable[[], int]]:
    """Counts how often the ids of a bundle were read."""
    with mock.patch.object(Bundle, "item_ids", autospec=True, side_effect=Bundle.item_ids) as read:
        yield lambda: read.call_count


def held(folder: Path | None, bundle: Bundle) -> ItemIds:
    """The ids as another process has them: nothing is remembered."""
    ids = SharedIds(folder).of(bundle)
    assert ids is not None
    return ids


def right(ids: ItemIds) -> bool:
    """Whether they are the bundle's."""
    rows = ids.rows([*IDS, "no such item"]).tolist()
    return list(ids) == IDS and rows == [*range(len(IDS)), -1]


def with_ids(bundle: Bundle, ids: list[str]) -> Bundle:
    """The same bundle under other ids."""
    (bundle.root / "items/ids.json").write_text(json.dumps(ids))
    return seal(bundle.root, bundle.manifest)


@compiled
def test_one_reads_and_the_others_map(
    bundle: Bundle, folder: Path, unread: Callable[[], int]
) -> None:
    """Text, ends and slots are views of one file, which only its owner may read."""
    first, second = held(folder, bundle), held(folder, bundle)
    (file,) = folder.glob("*.ids")

    assert unread() == 1
    assert right(first)
    assert right(second)
    assert first.index is not None
    assert first.index.key == second.index.key  # type: ignore[union-attr]
    assert not first.index.slots.flags.owndata
    assert not first.packed.ends.flags.owndata
    assert file.stat().st_mode & 0o777 == 0o600


def test_without_a_folder_each_has_its_own(bundle: Bundle, unread: Callable[[], int]) -> None:
    """As one worker has, who has nobody to share with."""
    assert right(held(None, bundle))
    assert right(held(None, bundle))
    assert unread() == 2


def test_without_compiled_loops_each_has_its_own(bundle: Bundle, folder: Path) -> None:
    """A dictionary cannot be mapped; answers are the same."""
    with mock.patch.object(kernels, "COMPILED", False):
        assert right(held(folder, bundle))
    assert not folder.exists()


def _ask(folder: Path, root: Path, answers: "multiprocessing.SimpleQueue[bool]") -> None:
    answers.put(right(held(folder, open_bundle(root))))


@compiled
def test_processes_that_start_at_once_share_one_file(bundle: Bundle, folder: Path) -> None:
    """One makes it while the others wait; all find every id."""
    answers = SPAWN.SimpleQueue()
    workers = [SPAWN.Process(target=_ask, args=(folder, bundle.root, answers)) for _ in range(3)]
    for worker in workers:
        worker.start()
    found = [answers.get() for _ in workers]
    for worker in workers:
        worker.join()

    assert found == [True] * 3
    assert len([*folder.glob("*.ids")]) == 1
    assert not [*folder.glob("*.part")]


Harm = Callable[[Path], object]


def _flip(path: Path, place: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)


@compiled
@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:20]),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        *[lambda path, at=at: _flip(path, at) for at in (0, 33, 45, 60, 90, -150, -1)],
    ],
    ids=["empty", "cut off early", "cut off", "longer", "zeros", "digest", "form", "items", "key",
         "ends", "slots", "text"],
)  # fmt: skip
def test_a_damaged_file_is_made_again(
    harm: Harm, bundle: Bundle, folder: Path, unread: Callable[[], int]
) -> None:
    """As a disk or a power cut leaves it; the answers are right, and so is the file afterwards."""
    held(folder, bundle)
    gc.collect()
    (file,) = folder.glob("*.ids")
    harm(file)
    again, then = held(folder, bundle), held(folder, bundle)

    assert unread() == 2
    assert right(again)
    assert right(then)


@compiled
def test_a_file_of_another_format_is_made_again(
    bundle: Bundle, folder: Path, unread: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another Slimrank left it."""
    with monkeypatch.context() as before:
        before.setattr(shared_ids, "_FORMAT", b"slimids0")
        held(folder, bundle)
    again, then = held(folder, bundle), held(folder, bundle)

    assert unread() == 2
    assert right(again)
    assert right(then)


@compiled
def test_what_nobody_holds_is_removed(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    """When another file is made; who holds one may go on with it, and others find it."""
    kept = held(folder, bundle)
    held(folder, with_ids(bundle, IDS[::-1]))
    gc.collect()
    last = held(folder, with_ids(bundle, [f"{item}x" for item in IDS]))
    names = {path.stem.split("-")[0] for path in folder.glob("*.ids")}

    assert len(names) == 2
    assert digest_of(bundle) in names
    assert right(kept)
    assert last[0] == "i0x"


@compiled
def test_what_cannot_be_removed_is_in_nobodys_way(bundle: Bundle, folder: Path) -> None:
    """Such as another user's: ids are shared all the same."""
    folder.mkdir(parents=True)
    (folder / "0.part").mkdir()
    (folder / "0.ids").mkdir()
    with capture_logs() as logs:
        ids = held(folder, bundle)

    assert right(ids)
    assert not ids.packed.ends.flags.owndata
    assert not logs


@compiled
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file another user's")
def test_another_users_file_is_not_believed(
    bundle: Bundle, folder: Path, unread: Callable[[], int]
) -> None:
    """Whatever its digest: it could give ids other rows."""
    held(folder, bundle)
    gc.collect()
    (file,) = folder.glob("*.ids")
    os.chown(file, 12345, -1)
    with capture_logs() as logs:
        ids = held(folder, bundle)

    assert right(ids)
    assert unread() == 2
    assert [line["event"] for line in logs] == ["item ids are not shared between workers"]


@compiled
def test_a_link_that_is_put_there_is_not_followed(bundle: Bundle, folder: Path) -> None:
    """Between what was left there is removed and the new file is made."""
    folder.mkdir(parents=True)
    precious = folder / "precious"
    precious.write_text("kept")
    path = folder / "x.ids"
    with (
        mock.patch.object(Path, "unlink", lambda part, **_: part.symlink_to(precious)),
        pytest.raises(FileExistsError),
    ):
        shared_ids._write(path, held(None, bundle))

    assert precious.read_text() == "kept"


def digest_of(bundle: Bundle) -> str:
    """The digest of the ids that a bundle was sealed with."""
    return {entry.path: entry.sha256 for entry in bundle.manifest.files}["items/ids.json"]


def _die_at_work(folder: Path, ready: "multiprocessing.SimpleQueue[None]") -> None:
    with locked(folder):
        (folder / "0.part").write_bytes(b"half")
        ready.put(None)
        signal.pause()


@compiled
def test_a_killed_maker_is_in_nobodys_way(bundle: Bundle, folder: Path) -> None:
    """Its lock goes with it, and what it left is removed."""
    ready = SPAWN.SimpleQueue()
    maker = SPAWN.Process(target=_die_at_work, args=(folder, ready))
    maker.start()
    ready.get()
    maker.kill()
    maker.join()

    assert right(held(folder, bundle))
    assert not [*folder.glob("*.part")]


@compiled
def test_where_no_folder_can_be_made_each_has_its_own(bundle: Bundle, tmp_path: Path) -> None:
    """A place that nothing can be written to costs memory, not answers; the log says so."""
    (tmp_path / "file").write_bytes(b"")
    with capture_logs() as logs:
        ids = held(tmp_path / "file" / "ids", bundle)

    assert right(ids)
    assert [line["event"] for line in logs] == ["item ids are not shared between workers"]


@compiled
def test_a_full_disk_costs_memory_and_no_answers(
    bundle: Bundle, folder: Path, unread: Callable[[], int]
) -> None:
    """What was made is used, and half a file is not left; once there is room it is shared."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with capture_logs() as logs:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            ids = held(folder, bundle)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert right(ids)
    assert unread() == 1
    assert [line["event"] for line in logs] == ["item ids are not shared between workers"]
    assert [path.name for path in folder.iterdir()] == [".lock"]
    assert right(held(folder, bundle))
    assert len([*folder.glob("*.ids")]) == 1


@pytest.mark.parametrize("is_compiled", [True, False], ids=["compiled", "python"])
@pytest.mark.parametrize("shared", [True, False])
def test_an_id_that_appears_twice_is_no_catalogue(
    bundle: Bundle, folder: Path, shared: bool, is_compiled: bool
) -> None:
    """Whoever shares with whom, and nothing of it is left for others."""
    twice = with_ids(bundle, [*IDS[:-1], IDS[3]])
    with (
        mock.patch.object(kernels, "COMPILED", is_compiled and kernels.COMPILED),
        pytest.raises(BundleCorrupt, match="appears twice"),
    ):
        held(folder if shared else None, twice)

    assert not [*folder.glob("*.ids")]


@pytest.mark.parametrize("shared", [True, False])
def test_as_many_ids_as_the_manifest_says(bundle: Bundle, folder: Path, shared: bool) -> None:
    """Also where the right number of the same ids is in use already."""
    ids = SharedIds(folder if shared else None)
    first = ids.of(bundle)
    session = bundle.manifest.session
    assert session is not None
    manifest = bundle.manifest.model_copy(
        update={"session": session.model_copy(update={"items": 39})}
    )

    with pytest.raises(BundleCorrupt, match="holds 40 items, the manifest says 39"):
        ids.of(seal(bundle.root, manifest))
    assert first is not None


def test_ids_in_use_are_not_read_again(bundle: Bundle, unread: Callable[[], int]) -> None:
    """Nor kept once nobody uses them."""
    ids = SharedIds(None)
    first = ids.of(bundle)

    assert ids.of(bundle) is first
    assert unread() == 1
    del first
    gc.collect()
    ids.of(bundle)
    assert unread() == 2


@compiled
@given(st.lists(texts, unique=True, max_size=40), st.lists(texts, max_size=10))
@example([], [""])
@example([""], ["", "a"])
def test_any_ids_come_back_from_a_file(ids: list[str], others: list[str]) -> None:
    """As a dictionary has them."""
    rows = {item: row for row, item in enumerate(ids)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.ids")
        shared_ids._write(path, ItemIds.of(ids))
        found = shared_ids._mapped(path)

    assert found is not None
    assert list(found) == ids
    assert found.rows([*ids, *others]).tolist() == [rows.get(i, -1) for i in [*ids, *others]]
