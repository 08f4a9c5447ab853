"""What the command measures, and in which order."""

import os

import pytest

from benchmarks.peers import __main__ as peers
from benchmarks.peers.servers import PEERS, SLIMRANK


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
