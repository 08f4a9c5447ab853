"""Two kinds of requests side by side, against a server in a thread; and what is made of it."""

import argparse

import pytest

from benchmarks import fairness
from benchmarks.fairness import Kinds, Rates, Seen, Variant
from benchmarks.peers import load
from benchmarks.steady.driving import Tally, dues
from loadtest import histograms
from tests.benchmarks.test_load import port

__all__ = ["port"]  # a fixture

BUSY = {"service_cpu": 0.5, "foreign_cpu": 0.1, "generator_cpu": 0.2}


def tally(*times_ms: float) -> Tally:
    """One that has seen these times."""
    made = Tally()
    for ms in times_ms:
        histograms.record(made.times, ms / 1e3)
    return made


def test_a_variant_is_a_name_and_settings() -> None:
    """Settings as the service reads them, without their prefix."""
    assert Variant.parsed("two WORKERS=2 CACHE=a=b") == ("two", {"WORKERS": "2", "CACHE": "a=b"})
    assert Variant.parsed("default") == ("default", {})


def test_rates_make_up_the_load() -> None:
    """Half of the load in large requests halves the small ones, whatever either costs."""
    assert fairness.rates_at(0.5, 0.0, small=1000, large=10) == Rates(500, 0)
    assert fairness.rates_at(0.5, 0.5, small=1000, large=10) == Rates(250, 2.5)


def test_each_arrival_is_sent_and_timed_once(port: int) -> None:
    """Every one that is due after the warm-up is in its own kind's tally, and none fails."""
    kinds = Kinds([load.request("/rank", b"a")], [load.request("/rank", b"b" * 100_000)])

    small, large = fairness.open_loop(
        port, kinds, Rates(400, 40), warmup_s=0.1, seconds=0.4, seed=1
    )

    due = [
        len([each for each in dues(rate, 0.5, seed) if each >= 0.1])
        for rate, seed in ((400, 1), (40, 2))
    ]
    assert [t.times.get_total_count() for t in (small, large)] == due
    assert min(due) > 0


def test_an_error_ends_the_run(port: int) -> None:
    """A refusal is no fast answer."""
    kinds = Kinds([load.request("/rank", b"")], [])

    with pytest.raises(load.LoadFailed, match="500"):
        fairness.open_loop(port, kinds, Rates(400, 0), warmup_s=0, seconds=0.1, seed=1)


def test_a_ratio_is_of_the_windows_of_one_round() -> None:
    """Rounds differ by what else the machine did: 2x in one and 4x in the other are 3x."""
    rates = Rates(1, 1)
    seen = [
        Seen("default", number, beside, rates, tally(ms), tally(9.0), BUSY)
        for number, beside, ms in ((0, False, 1.0), (0, True, 2.0), (1, True, 8.0), (1, False, 2.0))
    ]

    table = fairness.report(seen)

    assert "| default |" in table
    assert "3.00x (2.00-4.00)" in table


def test_what_is_written_can_be_read_again() -> None:
    """Histograms go out in their own encoding."""
    seen = Seen("default", 0, True, Rates(3, 4), tally(1.0), tally(9.0), BUSY)

    written = fairness.as_json(Rates(1, 2), [seen], argparse.Namespace(rounds=1))

    assert histograms.ms(histograms.decoded(written["windows"][0]["large"]), 50) == pytest.approx(
        9.0, rel=1e-2
    )
    assert written["capacity"] == {"small": 1, "large": 2}
