"""Where long work says how far it is. Nothing depends on it being shown."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars


class Progress(Protocol):
    """A listener to stages of work."""

    def step(self, stage: str, done: int, total: int | None, **numbers: float) -> None:
        """``done`` of ``total`` units of a stage are done (total None: unknown)."""


class Silent:
    """Says nothing."""

    def step(self, stage: str, done: int, total: int | None, **numbers: float) -> None:
        """Nothing."""


class Terminal:
    """A bar per stage, its numbers beside it."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def step(self, stage: str, done: int, total: int | None, **numbers: float) -> None:
        """Moves the stage's bar."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, numbers="")
        text = "  ".join(f"{name} {_short(value)}" for name, value in numbers.items())
        self._bars.update(self._tasks[stage], completed=done, total=total, numbers=text)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"  # noqa: PLR2004


@contextmanager
def terminal(console: Console | None = None) -> Iterator[Progress]:
    """Progress on the terminal while the block runs."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:,.0f}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[numbers]}"),
    )
    with Bars(*columns, console=console or Console(stderr=True), refresh_per_second=4) as bars:
        yield Terminal(bars)
