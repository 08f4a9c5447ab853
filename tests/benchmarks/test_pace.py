"""How even a core's pace is."""

import itertools

import pytest

from benchmarks import pace


def test_pace_sums_what_loops_took_beyond_twice_the_median() -> None:
    """Of 114 s eleven were lost, by a loop of three seconds and one of twelve."""
    found = pace.of([1.0] * 96 + [2.0, 3.0, 12.0, 0.5, 0.5])

    assert found == pytest.approx((101, 11 / 114, 12_000.0))
    assert found.is_uneven
    assert str(found) == (
        "9.6% of the time was lost beyond 2 times the median of 101 loops, "
        "the longest took 12000.0 ms: 99th percentiles tell of the machine"
    )


def test_loops_go_on_for_as_long_as_they_are_told() -> None:
    """By a clock that gains a quarter of a second each time it is read."""
    clock = itertools.count(step=0.25)

    found = pace.measure(1.0, lambda: next(clock))

    assert found == (4, 0.0, 250.0)
    assert not found.is_uneven
