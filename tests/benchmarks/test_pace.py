"""How even a core's pace is."""

import itertools

import pytest

from benchmarks import pace


def test_pace_counts_what_took_over_twice_the_median() -> None:
    """Of a hundred loops two did; exactly twice is not over."""
    found = pace.of([1.0] * 97 + [2.0, 2.5, 9.0])

    assert found == pytest.approx((100, 0.02, 9.0))
    assert found.is_uneven
    assert str(found) == (
        "2.0% of 100 loops took over 2 times the median, the longest 9.0 times: "
        "99th percentiles tell of the machine"
    )


def test_loops_go_on_for_as_long_as_they_are_told() -> None:
    """By a clock that gains a quarter of a second each time it is read."""
    clock = itertools.count(step=0.25)

    found = pace.measure(1.0, lambda: next(clock))

    assert found == (4, 0.0, 1.0)
    assert not found.is_uneven
