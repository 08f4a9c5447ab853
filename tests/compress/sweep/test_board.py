"""How far a sweep is, told at every event."""

import doctest

from compress.progress import Silent
from compress.sweep import board
from compress.sweep.board import Board
from compress.sweep.launchers.base import Ended, Fault, Started


class Noted(Silent):
    """Keeps what was said last."""

    def step(self, stage: str, done: int, total: int | None, **numbers: float | str) -> None:
        """Kept."""
        self.last = (stage, done, total, numbers)


def test_cells_done_running_and_left_are_told() -> None:
    """What was found done counts as done, and not for the time that the rest takes."""
    noted, now = Noted(), [0.0]
    told = Board(noted, "cells", 10, 6, clock=lambda: now[0])
    assert noted.last == ("cells", 6, 10, {})

    told.tell(Started("a"))
    told.tell(Started("b"))
    assert noted.last == ("cells", 6, 10, {"running": "a, b"})

    now[0] = 120.0
    told.tell(Ended("a", Fault("no rows")))

    assert noted.last == ("cells", 7, 10, {"failed": 1, "left": "about 6 min", "running": "b"})
    assert told.faults == {"a": Fault("no rows")}


def test_of_many_only_some_are_named() -> None:
    """A line of a terminal holds no more."""
    noted = Noted()
    told = Board(noted, "cells", 10, 0)
    for task in "abcdef":
        told.tell(Started(task))

    assert noted.last == ("cells", 0, 10, {"running": "a, b, c, d, 2 more"})


def test_a_wave_without_tasks_is_not_told() -> None:
    """Where nothing is to be done, there is no bar that says so."""
    noted = Noted()
    Board(noted, "dense rankers", 0, 0)

    assert not hasattr(noted, "last")


def test_durations_are_told_in_the_units_that_matter() -> None:
    """The example in the code."""
    assert doctest.testmod(board).failed == 0
