"""What the service is to the bare endpoint and to the stock one, from windows to the table."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from benchmarks import rank_http
from benchmarks.peers import load, report
from benchmarks.peers.servers import SLIMRANK


def _window(server: str, case: str, milliseconds: list[int]) -> report.Window:
    """A second in which requests took so long."""
    return report.Window(
        server=server,
        case=case,
        connections=1,
        at=report.Place(0),
        seconds=1.0,
        latencies_ns=np.array(milliseconds, np.int64) * 1_000_000,
        server_s=0.5,
        generator_cpu=0.1,
        foreign_cpu=0.0,
    )


def test_table_and_what_columns_gain() -> None:
    """By hand: 4 answers against 8 of null and 1 of stock; columns 4 against 2 of rows."""
    windows = [
        _window("Slimrank", "m columns 200", [2, 2, 2, 2]),
        _window("null", "m columns 200", [1] * 8),
        _window("stock", "m columns 200", [8]),
        _window("Slimrank", "m rows 200", [4, 4]),
        _window("null", "m rows 200", [4] * 2),
    ]

    lines = rank_http.table(windows).splitlines()

    assert lines[2] == (
        "| m columns 200 | 1 | 4 | 2.00 | 2.00 | 125000 (62500) | 0.50 (0.50-0.50) "
        "| 2.00 (2.00-2.00) | 4.00 (4.00-4.00) | 0.25 (0.25-0.25) |"
    )
    assert lines[3].endswith("| 1.00 (1.00-1.00) | 1.00 (1.00-1.00) |  |  |")
    assert [*rank_http.columns_to_rows(windows)] == [
        "m columns 200, 1 connections: 2.00 (2.00-2.00) of the requests/s of rows"
    ]


def test_another_build_is_told_by_round() -> None:
    """By hand: twice the answers in the same time, each in half of it and for half of the CPU."""
    windows = [
        _window("Slimrank", "m ids 200", [2, 2, 2, 2]),
        _window("null", "m ids 200", [1] * 8),
        _window("before", "m ids 200", [4, 4]),
    ]

    half = "0.50 (0.50-0.50)"
    assert [*rank_http.to_before(windows)][2:] == [
        f"| m ids 200 | 1 | 2.00 (2.00-2.00) | {half} | {half} | {half} |"
    ]
    assert [*rank_http.to_before(windows[:2])] == []


def test_a_median_is_compared_whatever_the_tail_is() -> None:
    """By hand: 1 to 2, though the longest are 9 to 3."""
    windows = [_window("Slimrank", "m", [1, 1, 9]), _window("null", "m", [2, 2, 3])]
    ours, null = report.rows(windows[:1])[0], report.rows(windows[1:])[0]

    assert report.p50_ratio(windows, ours, null) == (0.5, 0.5, 0.5)


def test_servers_take_turns_and_five_windows_make_a_percentile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each in each of six rounds, the other way round in every second one."""
    monkeypatch.setattr(
        load, "measure", lambda *_, **__: load.Measured(np.array([1]), 1.0, 0.5, 0.1, 0.0)
    )
    options = argparse.Namespace(rounds=6, connections=[1], warmup=0.0, seconds=0.0)
    some = [rank_http.Case("m", "ids", 200, [b"{}"])]

    seen = rank_http.measure({SLIMRANK: 1, rank_http.NULL: 2}, some, options)

    places = [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0)]
    assert [each.at for each in seen] == [place for place in places for _ in range(2)]
    assert [each.server for each in seen] == ["Slimrank", "null", "null", "Slimrank"] * 3


def test_another_build_must_be_one(tmp_path: Path) -> None:
    """What lacks its loops would be slow for that alone."""
    with pytest.raises(argparse.ArgumentTypeError, match="no checkout of Slimrank"):
        rank_http.checkout(str(tmp_path))
    (tmp_path / "service").mkdir()
    (tmp_path / "service/__main__.py").touch()
    with pytest.raises(argparse.ArgumentTypeError, match="loops are not built"):
        rank_http.checkout(str(tmp_path))
    (tmp_path / "service/_kernels.so").touch()
    assert rank_http.checkout(str(tmp_path)) == tmp_path
