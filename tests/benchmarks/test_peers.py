"""What the command measures, and in which order."""

import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.peers import __main__ as peers
from benchmarks.peers import load, processes, report
from benchmarks.peers.servers import PEERS, SLIMRANK, Peer


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (
            ["--peers", "fastapi,nobody"],
            "bentoml,litserve,mlserver,kserve,ray,fastapi,bare, or none",
        ),
        (["--peers", ""], "expected some of bentoml"),
        (["--connections", "none"], "expected numbers of --connections"),
        (["--connections", "1,x"], "expected up to 40 numbers of users"),
        (["--rounds", "0"], "expected a whole number from 1 on"),
        (["--seconds", "-1"], "expected seconds"),
        (["--candidates", "many"], "expected a whole number from 1 on"),
        (["--cores", "0"], "expected two cores"),
        (["--cores", "0,0"], "expected two cores"),
        (["--cores", "0,4096"], "expected two cores of 0"),
        (["--store", "s", "--dense", "d@1"], "--store needs --slim, --int8 too"),
        (["--slim", "d@1"], "expected --store with --slim"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    flags: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before an environment is made; a wrong name with the right ones."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    with pytest.raises(SystemExit, match="2"):
        peers.parse(flags)

    assert told in capsys.readouterr().err


def test_peers_are_those_that_were_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them if none is; of none Slimrank is measured alone."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)

    assert peers.parse([]).peers == PEERS
    assert [peer.name for peer in peers.parse(["--peers", "bare,ray"]).peers] == ["ray", "bare"]
    assert peers.parse(["--peers", "none"]).peers == ()


@pytest.mark.parametrize("count", range(2, 9))
def test_no_server_always_follows_the_same_one(count: int) -> None:
    """Whatever warms or clutters the machine does so to another one in the next round."""
    servers = (SLIMRANK, *PEERS)[:count]
    rounds = [peers.turned(servers, number) for number in range(3)]

    assert all(
        sorted(peer.name for peer in each) == sorted(p.name for p in servers) for each in rounds
    )
    for peer in servers:
        before = {each[place - 1].name if (place := each.index(peer)) else None for each in rounds}
        assert len(before) > 1


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--store", "nowhere", "--dense", "d@1", "--slim", "s@1", "--int8", "i@1"], "nowhere"),
        (["--out", "taken/report"], "Not a directory"),
    ],
)
def test_what_is_not_there_is_told_in_words(
    flags: list[str], told: str, tmp_path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    """A store without the bundles, a folder that is a file: 1, and no traceback."""
    (tmp_path / "taken").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(peers.processes, "adopt_orphans", lambda: None)
    monkeypatch.setattr(peers, "unwind_when_told_to_end", lambda: None)

    assert peers.main([*flags, "--peers", "none"]) == 1
    assert told in capsys.readouterr().err


class Servers:
    """In place of processes: what is started, asked and told, in its order.

    Args:
        broken: titles of servers that do not start.
        failing: titles of those that answer no request.
    """

    def __init__(self, broken: tuple[str, ...] = (), failing: tuple[str, ...] = ()) -> None:
        self.broken, self.failing = broken, failing
        self.up: list[str] = []
        self.asked: list[tuple[report.Place, int, int, str]] = []
        self.told: list[str] = []

    @contextmanager
    def running(self, _bench: Any, peer: Peer, _python: Path) -> Iterator[Any]:
        """A server that is up inside the block."""
        if peer.title in self.broken:
            raise processes.ServerFailed("no such port")
        self.up.append(peer.title)
        yield SimpleNamespace(peer=peer)
        self.up.remove(peer.title)

    def measured(
        self, _bench: Any, server: Any, step: int, connections: int, at: report.Place
    ) -> Iterator[report.Window]:
        """One answer."""
        title = server.peer.title
        assert title in self.up
        self.asked.append((at, connections, step, title))
        if title in self.failing:
            raise load.LoadFailed("closed")
        times = np.array([1_000_000])
        yield report.Window(title, f"case {step}", connections, at, 1.0, times, 0.5, 0.1, 0.0)

    def facts(self, _bench: Any, server: Any) -> dict[str, Any]:
        """Those of servers that answer."""
        self.told.append(server.peer.title)
        return {}


def _measure(monkeypatch: pytest.MonkeyPatch, servers: Servers, *some: Peer) -> peers.Seen:
    """Two rounds of three turns, three steps each, at 1 and 8 connections."""
    for name in ("running", "measured", "facts"):
        monkeypatch.setattr(peers, name, getattr(servers, name))
    options = Namespace(rounds=2, turns=3, connections=[1, 8])
    bench: Any = SimpleNamespace(options=options, ours=[[], [], []])
    return peers.measure(bench, {peer: Path("python") for peer in some})


def test_servers_are_asked_in_turn_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """All at each step before any at the next, in another order each turn; each is told once."""
    servers = Servers()
    seen = _measure(monkeypatch, servers, SLIMRANK, *PEERS[:2])

    assert len(seen.windows) == len(servers.asked) == 2 * 3 * 2 * 3 * 3
    orders = set()
    for first in range(0, len(servers.asked), 3):
        step = servers.asked[first : first + 3]
        assert len({each[:3] for each in step}) == 1
        orders.add(tuple(title for *_, title in step))
    assert len(orders) == 6
    assert all(set(order) == {"Slimrank", "BentoML", "LitServe"} for order in orders)
    assert [each.at for each in seen.windows] == sorted(each.at for each in seen.windows)
    assert sorted(servers.told) == ["BentoML", "LitServe", "Slimrank"]
    assert servers.up == []


def test_a_server_that_fails_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor started in the next round, nor told of; the others go on."""
    servers = Servers(broken=("LitServe",), failing=("BentoML",))
    seen = _measure(monkeypatch, servers, SLIMRANK, *PEERS[:2])

    assert seen.failed == {"LitServe": "no such port", "BentoML": "closed"}
    assert [title for *_, title in servers.asked].count("BentoML") == 1
    assert {each.server for each in seen.windows} == {"Slimrank"}
    assert servers.told == ["Slimrank"]


def test_that_no_server_starts_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then there is nothing to measure, and the report says why."""
    seen = _measure(monkeypatch, Servers(broken=("Slimrank",)), SLIMRANK)

    assert seen.failed == {"Slimrank": "no such port"}
    assert seen.windows == []
