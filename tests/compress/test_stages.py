"""What the stages of every run share: a fresh process, cards, publishing once, whole files."""

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from compress.config import PublishConfig
from compress.data.base import DataError
from compress.stages import (
    RunError,
    apart,
    publish,
    publish_faults,
    seal_with_costs,
    tools,
    write_whole,
)
from model_store.bundle import Bundle, open_bundle
from model_store.manifest import Resources, SessionCard
from model_store.store import open_store
from tests.compress.sessions.bundles import session_bundle

IDS = ("a", "b", "c")


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Two bundles that differ, by the alias that is to name them."""
    made: dict[str, Bundle] = {
        kind: session_bundle(tmp_path / kind, IDS, ways=("repeat",), length=length)
        for kind, length in (("dense", 5), ("coded", 6))
    }
    return {kind: bundle.root for kind, bundle in made.items()}


def placed(tmp_path: Path) -> PublishConfig:
    """A store that is not there yet."""
    return PublishConfig(store=str(tmp_path / "store"), alias="prod")


# --- a process of its own --------------------------------------------------------------------


def loaded(name: str) -> tuple[int, bool]:
    """What a process sees of itself."""
    return os.getpid(), name in sys.modules


def refuse(path: Path) -> None:
    """An error of the domain."""
    raise DataError(f"{path}: no rows to evaluate")


def die(status: int) -> None:
    """Go without a word, as a process does that runs out of memory."""
    os.kill(os.getpid(), status)


def handler() -> object:
    """What an interrupt does."""
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.slow
def test_a_function_runs_in_a_fresh_process() -> None:
    """It has its arguments, and nothing else of this one."""
    sys.modules["only_here"] = sys
    process, known = apart("looking", loaded, "only_here")
    del sys.modules["only_here"]

    assert process != os.getpid()
    assert not known


@pytest.mark.slow
def test_what_goes_wrong_there_is_told_here() -> None:
    """The same error, its message too."""
    with pytest.raises(DataError, match=r"test\.parquet: no rows to evaluate"):
        apart("evaluating", refuse, Path("test.parquet"))


@pytest.mark.slow
def test_a_process_that_dies_is_an_error_of_the_run() -> None:
    """It says what it was doing, and what to do."""
    with pytest.raises(RunError, match="evaluating b died, most likely for want of memory"):
        apart("evaluating b", die, signal.SIGKILL)


@pytest.mark.slow
def test_an_interrupt_is_told_once() -> None:
    """By the process that the user started: the other one is deaf to it."""
    assert apart("listening", handler)


# --- cards -----------------------------------------------------------------------------------


def with_sizes(bundles: Mapping[str, Bundle], card: SessionCard) -> SessionCard:
    """The card with the bytes of the folders, its own among them."""
    sizes = {
        kind: Resources(
            flops=0,
            bytes={"all": sum(f.stat().st_size for f in bundle.root.rglob("*") if f.is_file())},
        )
        for kind, bundle in bundles.items()
    }
    return card.model_copy(update=sizes)


def test_bundles_are_sealed_under_a_card_that_tells_what_they_cost(
    folders: dict[str, Path],
) -> None:
    """One card in both, true of the files that it lies in; nothing else of a bundle changes."""
    before = {kind: open_bundle(folder) for kind, folder in folders.items()}
    given = before["dense"].manifest.card
    assert isinstance(given, SessionCard)
    bundles = dict(before)

    card = seal_with_costs(bundles, given, with_sizes)

    assert card == with_sizes(bundles, card) != given
    for kind, folder in folders.items():
        assert open_bundle(folder).manifest == before[kind].manifest.model_copy(
            update={"card": card}
        )
        assert bundles[kind].digest == open_bundle(folder).digest != before[kind].digest


# --- publishing ------------------------------------------------------------------------------


def test_bundles_are_published_in_order(tmp_path: Path, folders: dict[str, Path]) -> None:
    """Each under its own alias; the configured one names the last."""
    versions = publish(placed(tmp_path), "tiny", folders)

    store = open_store(str(tmp_path / "store"))
    assert versions == {"dense": "1", "coded": "2"}
    assert store.aliases("tiny") == {"dense": "1", "coded": "2", "prod": "2"}
    for kind, folder in folders.items():
        assert store.open(f"tiny@{kind}").bundle.digest == open_bundle(folder).digest


def test_no_bundle_is_published_twice(tmp_path: Path, folders: dict[str, Path]) -> None:
    """A run that was killed in between goes on from what is there."""
    dense = {"dense": folders["dense"]}
    publish(placed(tmp_path), "tiny", dense)

    versions = publish(placed(tmp_path), "tiny", folders)

    assert versions == {"dense": "1", "coded": "2"}
    assert publish(placed(tmp_path), "tiny", folders) == versions
    assert len(open_store(str(tmp_path / "store")).list()) == 2


def test_the_same_bundle_may_have_two_names(tmp_path: Path, folders: dict[str, Path]) -> None:
    """Versions are counted by name."""
    publish(placed(tmp_path), "tiny", folders)

    assert publish(placed(tmp_path), "other", folders) == {"dense": "1", "coded": "2"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alias": "coded"}, "publish.alias: 'coded' names a bundle of every run"),
        ({"alias": "a/b"}, "publish.alias: 'a/b' is not an alias"),
        ({"store": ""}, "publish.store: '' is no store"),
        ({"store": "s4://x"}, "publish.store: s4://x: Protocol not known: s4"),
    ],
)
def test_what_the_store_would_refuse_is_told_beforehand(options: dict[str, str], said: str) -> None:
    """In words, and without touching it."""
    faults = publish_faults(PublishConfig(**options), ("dense", "coded"))

    assert len(faults) == 1
    assert said in faults[0]


def test_a_good_place_has_no_faults_and_is_not_made(tmp_path: Path) -> None:
    """Looking leaves no trace."""
    assert publish_faults(placed(tmp_path), ("dense", "coded")) == []
    assert not [*tmp_path.iterdir()]


# --- files -----------------------------------------------------------------------------------


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """The one before stays, and nothing lies beside it."""
    path = tmp_path / "deep" / "metrics.json"
    write_whole(path, "{}")

    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\udcff")

    assert path.read_text() == "{}\n"
    assert [child.name for child in path.parent.iterdir()] == ["metrics.json"]


def test_versions_tell_what_makes_a_bundle() -> None:
    """Python and every package, absent ones too."""
    found = tools()

    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "onnx", "onnxscript", "onnxruntime", "numpy", "polars"} <= set(found)
    assert all(found.values())
