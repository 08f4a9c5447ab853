"""What runs a sweep's cells: many tasks, so many at a time, each in a process of its own."""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from compress.config import CompressError
from model_store.errors import StoreError

DIED: Final = "its process died, most likely for want of memory; use fewer workers and run again"


@dataclass(frozen=True, slots=True)
class Task:
    """A call that leaves its result on disk.

    Attributes:
        name: no other task's.
        function: of a module, so that another process finds it.
    """

    name: str
    function: Callable[..., None]
    args: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a task could not be done.

    Attributes:
        stack: where it happened, if no message of ours says what to do.
    """

    text: str
    stack: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """A task has been begun."""

    task: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A task is over, well unless there is a fault."""

    task: str
    fault: Fault | None


Event = Started | Ended


class Launcher(Protocol):
    """Runs tasks."""

    def launch(self, tasks: Sequence[Task], workers: int, tell: Callable[[Event], None]) -> None:
        """Run all tasks, ``workers`` at a time; one that fails stops no other.

        Args:
            tasks: in the order in which they are begun.
            workers: processes of one thread each.
            tell: hears of every task that begins and ends.

        Raises:
            KeyboardInterrupt: the user stopped it; what ran has been stopped too.
        """
        ...


def attempt(task: Task) -> Fault | None:
    """Do a task here, and say what went wrong."""
    try:
        task.function(*task.args)
    except (CompressError, StoreError, OSError) as error:
        return Fault(str(error))
    except Exception as error:  # noqa: BLE001 - the edge of a process: the others go on
        return Fault(f"{type(error).__name__}: {error}", traceback.format_exc())
    return None
