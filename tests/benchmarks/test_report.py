"""From windows to rows, ratios and tables."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.peers import plot, report


def _window(
    server: str, case: str, count: int, *, number: int = 0, turn: int = 0, **other: float
) -> report.Window:
    """A window of 2 s with so many answers of 1 ms, 2 ms, 3 ms and so on."""
    given = {"generator_cpu": 0.5, "foreign_cpu": 0.0, "server_s": 1.0} | other
    latencies = np.arange(1, count + 1, dtype=np.int64) * 1_000_000
    return report.Window(
        server=server,
        case=case,
        connections=8,
        at=report.Place(number, turn),
        seconds=2.0,
        latencies_ns=latencies,
        **given,
    )


def test_row_equals_the_sum_done_by_hand() -> None:
    """Two rounds of 4 and 2 answers in 2 s: 2 and 1 a second; the times of all six are pooled."""
    (row,) = report.rows([_window("x", "c", 4), _window("x", "c", 2, number=1)])

    assert row.requests == 6
    assert row.rps == (1.5, 1.0, 2.0)
    assert row.p50_ms == 2.0
    assert row.p99_range_ms == pytest.approx((1.99, 3.97))
    assert row.cpu_us == pytest.approx(2.0 / 6 * 1e6)


def test_ratio_is_against_the_peer_with_the_most_requests() -> None:
    """By round; the yardstick is no peer, and above 1 ours is better."""
    windows = [
        _window("Slimrank", "dense rows", 12),
        _window("Slimrank", "dense rows", 24, number=1),
        _window("slow", "dense rows", 2),
        _window("slow", "dense rows", 2, number=1),
        _window("fast", "dense rows", 4),
        _window("fast", "dense rows", 6, number=1),
        _window("bare", "dense rows", 24),
        _window("bare", "dense rows", 24, number=1),
    ]

    (ratio,) = report.ratios(windows, ["slow", "fast"], "bare")

    assert ratio.best == "fast"
    assert ratio.rps == (3.5, 3.0, 4.0)
    assert ratio.yardstick == 0.75
    assert ratio.p99 == pytest.approx((0.294, 0.25, 0.334), abs=0.04)
    assert ratio.least_p99 < ratio.p99[0] < 1.0  # the slow peer's few answers were quick
    assert not ratio.holds  # its p99 is worse


def test_throughput_is_compared_by_turn_and_percentiles_by_round() -> None:
    """Two turns of a round: two ratios of requests a second, one of all their times together."""
    windows = [
        _window("Slimrank", "dense rows", 20),
        _window("Slimrank", "dense rows", 10, turn=1),
        _window("peer", "dense rows", 10),
        _window("peer", "dense rows", 2, turn=1),
    ]

    (ratio,) = report.ratios(windows, ["peer"], "bare")
    ours = np.percentile([*range(1, 21), *range(1, 11)], 99)
    theirs = np.percentile([*range(1, 11), 1, 2], 99)

    assert ratio.rps == (3.5, 2.0, 5.0)
    assert ratio.p99 == pytest.approx((theirs / ours,) * 3)
    assert ratio.p95[0] == pytest.approx(
        np.percentile([*range(1, 11), 1, 2], 95) / np.percentile([*range(1, 21), *range(1, 11)], 95)
    )
    (row, _) = report.rows(windows)
    assert row.rps == (7.5, 5.0, 10.0)
    assert row.p99_range_ms == pytest.approx((ours, ours))


def test_claim_holds_where_both_its_ratios_are_reached() -> None:
    """Twice the requests at the same p99."""
    theirs = _window("peer", "dense rows", 4)
    ours = replace(theirs, server="Slimrank", seconds=1.0)

    (ratio,) = report.ratios([theirs, ours], ["peer"], "bare")

    assert ratio.holds
    assert ratio.yardstick is None


def test_without_any_peer_there_is_no_ratio() -> None:
    """All may have failed to start."""
    assert report.ratios([_window("Slimrank", "dense rows", 4)], ["peer"], "bare") == []


def test_saturated_generator_and_busy_machine_are_told() -> None:
    """Over nine tenths of a core; over a tenth of one for the others."""
    quiet = report.rows([_window("x", "c", 4)])
    busy = report.rows([_window("x", "c", 4, generator_cpu=0.95, foreign_cpu=0.6)])

    assert report.remarks(quiet) == []
    told = report.remarks(busy)
    assert "the load generator was the limit (95% of a core)" in told[0]
    assert "In 1 of 1 rows other processes kept up to 0.6 cores busy" in told[1]


def test_page_and_json_tell_of_servers_that_failed() -> None:
    """What could not be measured is part of the result."""
    about, servers, failed = {"rounds": 1}, [{"server": "x"}], {"y": "no | such\nthing"}

    page = report.page([], [], about, servers, failed)
    parsed = json.loads(report.as_json([], [], about, servers, failed))

    assert "**y was not measured**: no | such" in page
    assert parsed["failed"] == failed


def test_cells_of_a_table_stay_in_their_line() -> None:
    """A bar or a line break in a value would end the cell."""
    assert report.markdown_table([{"a": "x|y\nz"}]).splitlines()[-1] == "| x\\|y z |"


def test_plot_is_drawn_where_cases_are_missing(tmp_path) -> None:
    """A server that was left out leaves no gap that the picture fails on."""
    rows = report.rows([_window("Slimrank", "dense rows", 4), _window("x", "plain rows", 4)])

    plot.draw(rows, 8, tmp_path / "peers.png")

    assert (tmp_path / "peers.png").stat().st_size > 0
