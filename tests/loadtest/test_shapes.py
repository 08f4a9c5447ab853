"""Load shapes."""

import itertools
import statistics

import pytest

from loadtest import shapes
from loadtest.shapes import Level


def test_each_level_is_warmed_up_before_it_is_measured() -> None:
    """Levels follow each other; each is measured for its whole length after its own warm-up."""
    windows = shapes.steps([Level(1), Level(8)], warmup_s=2.0, seconds=10.0)

    assert windows == (
        shapes.Window(Level(1), begin=0.0, start=2.0, end=12.0),
        shapes.Window(Level(8), begin=12.0, start=14.0, end=24.0),
    )
    assert [window.seconds for window in windows] == [10.0, 10.0]


def test_closed_loop_is_due_when_its_user_is_free() -> None:
    """Users of a level send at once; those beyond it wait for the level that has room for them."""
    windows = shapes.steps([Level(1), Level(2)], warmup_s=1.0, seconds=4.0)
    turns = shapes.Turns(windows, shapes.even, seed=1)

    assert turns.take(0, now=1.5) == shapes.Turn(window=0, due=1.5, taken=1.5)
    assert turns.take(1, now=1.5) == shapes.Turn(window=1, due=5.0, taken=1.5)
    assert turns.take(0, now=10.0) is None


def test_timetable_does_not_wait_for_answers() -> None:
    """An arrival is due by the rate alone; a user who is late for it gets it as it was due."""
    windows = shapes.steps([Level(9, rate=4.0)], warmup_s=0.0, seconds=10.0)
    turns = shapes.Turns(windows, shapes.even, seed=1)

    taken = [turns.take(0, now=3.0) for _ in range(3)]

    assert [turn.due for turn in taken] == [0.0, 0.25, 0.5]
    assert {turn.taken for turn in taken} == {3.0}


def test_arrival_is_given_out_once_or_given_up() -> None:
    """What all users together did not take before a window's end is left over, all of it."""
    windows = shapes.steps([Level(9, rate=4.0), Level(1)], warmup_s=0.0, seconds=2.0)
    turns = shapes.Turns(windows, shapes.even, seed=1)

    taken = [turns.take(user, now=0.1).due for user in (0, 1, 2)]
    later = turns.take(0, now=2.5)

    assert later.window == 1
    assert taken + list(turns.given_up(0)) == [k / 4 for k in range(8)]
    assert list(turns.given_up(1)) == []


def test_connections_bound_an_open_loop() -> None:
    """A user beyond an open loop's connections takes none of its arrivals."""
    windows = shapes.steps([Level(2, rate=4.0)], warmup_s=0.0, seconds=1.0)
    turns = shapes.Turns(windows, shapes.even, seed=1)

    assert turns.take(2, now=0.0) is None
    assert turns.take(1, now=0.0) is not None


def test_poisson_arrivals_have_the_rate_and_no_memory() -> None:
    """Gaps are exponential: their mean is 1/rate and so is their deviation; a seed repeats them."""
    arrivals = list(itertools.islice(shapes.poisson(50.0, 3), 20_000))
    gaps = [after - before for before, after in itertools.pairwise(arrivals)]

    assert statistics.fmean(gaps) == pytest.approx(1 / 50, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.03)
    assert arrivals == list(itertools.islice(shapes.poisson(50.0, 3), 20_000))
    assert arrivals != list(itertools.islice(shapes.poisson(50.0, 4), 20_000))


def test_rates_climb_to_the_capacity_and_share_the_low_ones() -> None:
    """Low rates are the reference's for all; high ones are each side's own, on one grid."""
    shares = (0.25, 0.5, 0.8, 1.0)

    dense = shapes.rates_for(400.0, 400.0, shares)
    slim = shapes.rates_for(1000.0, 400.0, shares)

    assert dense == [100.0, 200.0, 316.0, 398.0]
    assert slim == [100.0, 200.0, 501.0, 794.0, 1000.0]


@pytest.mark.parametrize(("rate", "nearest"), [(100, 100), (105, 100), (106.5, 112), (0.97, 1)])
def test_rates_lie_on_a_grid_that_runs_share(rate: float, nearest: float) -> None:
    """Of twenty steps a decade the nearest is taken, so two runs' rates meet."""
    assert shapes.snapped(rate) == nearest


def test_levels_are_called_by_what_drives_them() -> None:
    """Closed loops are known by their users, open ones by their rate."""
    assert [Level(1).name, Level(8).name, Level(64, 250.0).name] == ["1 user", "8 users", "250/s"]
