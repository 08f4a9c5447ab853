"""How far a sweep is: cells done and left, who runs, and how long it may take."""

import time
from collections.abc import Callable
from typing import Final

from compress.progress import Progress
from compress.sweep.launchers.base import Ended, Event, Fault, Started

NAMED: Final = 4  # of the tasks that run
MINUTE_S: Final = 60
HOUR_S: Final = 3600


class Board:
    """Hears a launcher's events and tells progress of them."""

    def __init__(
        self,
        progress: Progress,
        stage: str,
        total: int,
        done: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the stage.

        Args:
            progress: is told of every event.
            stage: what it is told that they belong to.
            total: tasks, with those that are done already.
            done: the latter.
            clock: seconds, to tell how long the rest takes.
        """
        self.faults: dict[str, Fault] = {}
        self._progress, self._stage, self._total, self._done = progress, stage, total, done
        self._clock, self._began, self._found = clock, clock(), done
        self._running: list[str] = []
        if total:
            self._tell()

    def tell(self, event: Event) -> None:
        """As `compress.sweep.launchers.base.Launcher.launch` wants it."""
        match event:
            case Started(task):
                self._running.append(task)
            case Ended(task, fault):
                self._running.remove(task)
                self._done += 1
                if fault is not None:
                    self.faults[task] = fault
        self._tell()

    def _tell(self) -> None:
        numbers: dict[str, float | str] = {}
        if self.faults:
            numbers["failed"] = len(self.faults)
        if (new := self._done - self._found) and self._done < self._total:
            each = (self._clock() - self._began) / new
            numbers["left"] = f"about {duration(each * (self._total - self._done))}"
        if self._running:
            more = [f"{len(self._running) - NAMED} more"] * (len(self._running) > NAMED)
            numbers["running"] = ", ".join(self._running[:NAMED] + more)
        self._progress.step(self._stage, self._done, self._total, **numbers)


def duration(seconds: float) -> str:
    """Seconds in the two largest units that matter.

    >>> duration(42), duration(600), duration(8000)
    ('42 s', '10 min', '2 h 13 min')
    """
    if seconds < MINUTE_S:
        return f"{seconds:.0f} s"
    if seconds < HOUR_S:
        return f"{seconds / MINUTE_S:.0f} min"
    hours, rest = divmod(round(seconds / MINUTE_S), 60)
    return f"{hours} h {rest} min"
