"""From windows to rows, ratios and the order of what happens."""

from types import SimpleNamespace

import pytest

from benchmarks import disturb
from benchmarks.steady.driving import Tally
from loadtest import histograms


def _window(condition: str, number: int, ms: float, **other: float) -> disturb.Window:
    """A window of a hundred requests, each of so many ms."""
    tally = Tally()
    for _ in range(100):
        histograms.record(tally.times, ms / 1000)
        histograms.record(tally.lag, other.pop("lag_ms", 0.01) / 1000)
    given = {"rate": 10.0, "server_cpu": 0.5, "foreign_cpu": 0.0} | other
    return disturb.Window(condition=condition, round=number, tally=tally, **given)


def test_ratio_is_to_the_quiet_windows_of_the_same_round() -> None:
    """A machine that is slow for a round is slow for both."""
    windows = [
        _window("quiet", 0, 10), _window("swap", 0, 20),
        _window("quiet", 1, 30), _window("swap", 1, 30),
        _window("quiet", 2, 10), _window("swap", 2, 40),
    ]  # fmt: skip

    quiet, swap = disturb.rows(windows)

    assert (quiet.condition, swap.condition) == ("quiet", "swap")
    assert swap.ratio == pytest.approx((2.0, 1.0, 4.0), rel=0.01)
    assert quiet.ratio == (1.0, 1.0, 1.0)
    assert (swap.windows, swap.requests, swap.p999_ms) == (3, 300, None)
    assert swap.p50_ms == pytest.approx(30, rel=0.01)


def test_limit_is_judged_where_there_is_one() -> None:
    """A swap may take 1.5 times as long as quiet, the median round's; what is only altered may."""
    windows = [_window("quiet", 0, 10), _window("swap", 0, 20), _window("gc-off", 0, 20)]
    options = SimpleNamespace(
        model="m@a", candidates=200, form="ids", connections=32, rounds=1, window=10.0
    )

    page = disturb.page(options, 10.0, disturb.rows(windows))

    (swap,) = [line for line in page.splitlines() if line.startswith("| swap ")]
    (off,) = [line for line in page.splitlines() if line.startswith("| gc-off ")]
    assert "2.00x (2.00-2.00) | NO |" in swap
    assert "2.00x (2.00-2.00) |  |" in off


def test_late_generator_and_busy_machine_are_told() -> None:
    """Both say that the row is not the service's."""
    fit = disturb.rows([_window("quiet", 0, 10)])
    unfit = disturb.rows([_window("quiet", 0, 10, foreign_cpu=0.4, lag_ms=5.0)])

    assert disturb.remarks(fit) == []
    busy = disturb.remarks(unfit)
    assert "Others kept up to 0.4 cores busy in: quiet." in busy[-1]


def test_turned_begins_elsewhere_each_round() -> None:
    """None is left out, and none is always first."""
    assert [disturb.turned("abc", n) for n in range(3)] == [
        ["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"],
    ]  # fmt: skip
    assert disturb.turned([], 2) == []


def test_unknown_conditions_and_models_without_an_alias_are_refused(capsys) -> None:
    """Before minutes of load."""
    for arguments, said in (
        (["store", "m@a", "--only", "nap"], "no nap; there are: new-version"),
        (["store", "m"], "expected NAME@ALIAS, got 'm'"),
    ):
        with pytest.raises(SystemExit):
            disturb.parse(arguments)
        assert said in capsys.readouterr().err


def test_plot_is_drawn_without_p999(tmp_path) -> None:
    """Windows of few requests have none."""
    disturb.draw_plot(disturb.rows([_window("quiet", 0, 10)]), tmp_path / "disturb.png")

    assert (tmp_path / "disturb.png").stat().st_size > 0
