"""Where long work says how far it is. Nothing depends on it being shown."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

# Seconds between two lines of one stage where no bar can be drawn.
LINE_EVERY_S: Final = 15.0


class Progress(Protocol):
    """A listener to stages of work."""

    def step(self, stage: str, done: int, total: int | None, **numbers: float | str) -> None:
        """``done`` of ``total`` units of a stage are done (total None: unknown)."""


class Silent:
    """Says nothing."""

    def step(self, stage: str, done: int, total: int | None, **numbers: float | str) -> None:
        """Nothing."""


class Terminal:
    """A bar per stage, its numbers beside it."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def step(self, stage: str, done: int, total: int | None, **numbers: float | str) -> None:
        """Moves the stage's bar."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, numbers="")
        text = _told(numbers)
        self._bars.update(self._tasks[stage], completed=done, total=total, numbers=text)


class Lines:
    """A line when a stage begins and ends and, in between, every ``LINE_EVERY_S``: for logs."""

    def __init__(
        self, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write, self._clock = write, clock
        self._last: dict[str, float] = {}

    def step(self, stage: str, done: int, total: int | None, **numbers: float | str) -> None:
        """Says it where the time has come."""
        now = self._clock()
        if stage in self._last and done != total and now - self._last[stage] < LINE_EVERY_S:
            return
        self._last[stage] = now
        count = f"{done:,}" if total is None else f"{done:,} of {total:,}"
        self._write(f"{stage}: {count}  {_told(numbers)}".rstrip() + "\n")


def _told(numbers: dict[str, float | str]) -> str:
    return "  ".join(f"{name} {_short(value)}" for name, value in numbers.items())


def _short(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"  # noqa: PLR2004


@contextmanager
def terminal(console: Console | None = None) -> Iterator[Progress]:
    """Progress while the block runs: bars on a terminal, lines in a log."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield Lines(_to_stderr)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:,.0f}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[numbers]}"),
    )
    with Bars(*columns, console=console, refresh_per_second=4) as bars:
        yield Terminal(bars)


def _to_stderr(line: str) -> None:
    sys.stderr.write(line)
    sys.stderr.flush()
