"""Load shapes."""

from loadtest import shapes


def test_each_level_is_warmed_up_before_it_is_measured() -> None:
    """Levels follow each other; each is measured for its whole length after its own warm-up."""
    windows = shapes.steps([1, 8], warmup_s=2.0, seconds=10.0)

    assert windows == (
        shapes.Window(users=1, begin=0.0, start=2.0, end=12.0),
        shapes.Window(users=8, begin=12.0, start=14.0, end=24.0),
    )
    assert [window.seconds for window in windows] == [10.0, 10.0]


def test_users_follow_the_levels_and_then_the_test_is_over() -> None:
    """A level's users are there from its warm-up's first second; after the last there is None."""
    windows = shapes.steps([1, 8], warmup_s=2.0, seconds=10.0)

    users = [shapes.users_at(windows, now) for now in (0.0, 11.9, 12.0, 23.9, 24.0)]
    assert users == [1, 1, 8, 8, None]


def test_warm_up_counts_nowhere() -> None:
    """What ends in a warm-up, or after the end, belongs to no window."""
    windows = shapes.steps([1, 8], warmup_s=2.0, seconds=10.0)

    places = [shapes.measured_at(windows, now) for now in (1.9, 2.0, 11.9, 12.0, 14.0, 24.0)]
    assert places == [None, 0, 0, None, 1, None]


def test_schedule_does_not_wait_for_answers() -> None:
    """Request k of a schedule is due k / rate after the start, whatever came before."""
    assert [shapes.intended_start(100.0, k, rate=4.0) for k in (0, 1, 8)] == [100.0, 100.25, 102.0]
