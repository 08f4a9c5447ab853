"""The list of servers, and what starts and ends one."""

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from benchmarks.peers import bench, bundles, environments, processes
from benchmarks.peers.servers import PEERS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_peer_runs_the_onnx_runtime_that_slimrank_does(peer, monkeypatch) -> None:
    """Another build of it would be part of what is compared."""
    monkeypatch.chdir(ROOT)
    ours = (ROOT / "constraints" / "serve.txt").read_text()

    assert f"onnxruntime=={environments.version_of(peer.name, 'onnxruntime')}\n" in ours


@pytest.mark.parametrize("file", sorted((ROOT / "constraints" / "peers").glob("*.txt")), ids=str)
def test_constraints_are_names_and_versions_only(file: Path) -> None:
    """No addresses, no paths; and each file belongs to a peer."""
    assert all(line.count("==") == 1 and "/" not in line for line in file.read_text().split())
    assert file.stem in {peer.name for peer in PEERS}


def test_settled_means_without_a_break(monkeypatch) -> None:
    """A look that fails starts the time anew."""
    now = iter([0.0, 1.0, 2.0, 3.0, 4.0])
    holds = iter([True, False, True, True, True])
    monkeypatch.setattr(processes.time, "monotonic", lambda: next(now))
    settled = processes.Settled(lambda: next(holds), seconds=2.0)

    assert [settled() for _ in range(5)] == [False, False, False, False, True]


def test_server_that_ends_is_told_with_its_log(tmp_path) -> None:
    """The message carries what it said."""
    command = [sys.executable, "-c", "print('no such port'); raise SystemExit(3)"]

    with (
        pytest.raises(processes.ServerFailed, match=r"ended with 3: no such port"),
        processes.running(command, {}, tmp_path / "log", is_ready=lambda: False, cores=None),
    ):
        pass


def test_server_is_gone_after_its_block(tmp_path) -> None:
    """While it runs it is counted; then nothing is left of it."""
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with _running(command, tmp_path / "log") as tree:
        (child,) = tree.members()
        held = tree.memory()

    assert held.processes == 1
    assert held.pss_bytes > 0
    assert not psutil.pid_exists(child.pid)


# Busy for a minute at most, should nobody end it.
SPIN = "import time; end = time.monotonic() + 60\nwhile time.monotonic() < end: pass"
# A server with a child that forgets its environment, and an orphan.
SERVER = f"""
import subprocess, sys
subprocess.Popen([sys.executable, "-c", {SPIN!r}], env={{}})
middle = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]])"
subprocess.run([sys.executable, "-c", middle, {SPIN!r}], start_new_session=True)
print("ready", flush=True)
exec({SPIN!r})
"""


@pytest.fixture
def orphans() -> Iterator[None]:
    """Whatever loses its parent becomes this process's child."""
    processes.adopt_orphans()
    yield
    processes.adopt_orphans(adopt=False)


@pytest.mark.usefixtures("orphans")
def test_only_the_server_that_is_awake_takes_time(tmp_path) -> None:
    """Of two that are always busy, and neither has the other's processes."""
    command = [sys.executable, "-c", SERVER]
    with _running(command, tmp_path / "one") as one, _running(command, tmp_path / "two") as two:
        assert len(one.members()) == len(two.members()) == 3
        assert not set(one.members()) & set(two.members())
        for tree in (one, two):
            tree.freeze()
        with two.awake():
            before = one.clocks().server_s, two.clocks().server_s
            _until(lambda: two.clocks().server_s > before[1] + 0.1)
            assert one.clocks().server_s == before[0]
            assert {p.status() for p in one.members()} == {psutil.STATUS_STOPPED}
        assert {p.status() for p in two.members()} == {psutil.STATUS_STOPPED}
        all_of_them = [*one.members(), *two.members()]

    assert not any(psutil.pid_exists(process.pid) for process in all_of_them)


def test_a_server_is_frozen_until_it_is_asked(tmp_path, monkeypatch) -> None:
    """From its check on, so that those that start after it have the core to themselves."""
    monkeypatch.setattr(bench, "launch", lambda *_: ([sys.executable, "-c", SPIN], {}, 1))
    monkeypatch.setattr(bench, "asking", lambda *_: lambda: True)
    options = Namespace(out=tmp_path, start=10.0)
    given: Any = SimpleNamespace(
        options=options, cores=None, expected={}, steps=lambda _: [[bench.Case("x", [b""])]]
    )

    with bench.running(given, PEERS[0], Path("python")) as server:
        (process,) = server.tree.members()
        assert process.status() == psutil.STATUS_STOPPED


def _running(command: list[str], log: Path) -> AbstractContextManager[processes.Tree]:
    """A server that is ready when it has said so, or at once where it never does."""

    def ready() -> bool:
        return command[-1] != SERVER or "ready" in log.read_text()

    return processes.running(command, {}, log, is_ready=ready, cores=None, stop_s=5.0)


def _until(holds: Callable[[], bool]) -> None:
    """Look again and again; where the machine never comes to it, ten seconds tell."""
    deadline = time.monotonic() + 10.0
    while not holds():
        assert time.monotonic() < deadline


def test_made_up_clicks_have_criteos_columns_and_are_the_same_again(tmp_path, monkeypatch) -> None:
    """A label, 13 counts, 26 tokens of eight digits; an item's fields are always the item's."""
    monkeypatch.setattr(bundles, "ROWS", 50)
    for name in ("one", "two"):
        bundles.write_clicks(tmp_path / name, np.random.default_rng(1))
    text = (tmp_path / "one").read_text()
    head, *rows = [line.split(",") for line in text.splitlines()]

    assert text == (tmp_path / "two").read_text()
    assert sorted(head) == sorted(["label", *bundles.NUMBERS, *bundles.FIELDS])
    assert len(rows) == 50
    of_items = {row[head.index("C26")]: row[head.index("C14")] for row in rows}
    assert all(of_items[row[head.index("C26")]] == row[head.index("C14")] for row in rows)
