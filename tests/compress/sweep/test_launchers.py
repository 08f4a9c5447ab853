"""Launchers: every task is done or told why not, whatever the others do."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from compress.config import ConfigError
from compress.data.folders import in_turn
from compress.progress import Silent
from compress.sweep.launchers import LAUNCHERS, make_launcher
from compress.sweep.launchers.base import DIED, Ended, Event, Started, Task
from tests.compress.sweep import tasks

SWEEPER = """
import sys
from pathlib import Path
from compress.sweep.launchers.base import Task
from compress.sweep.launchers.local import Local
from tests.compress.sweep.tasks import stay

if __name__ == "__main__":
    tasks = [Task(name, stay, (Path(sys.argv[1]) / name,)) for name in ("a", "b", "c")]
    Local().launch(tasks, 2, lambda event: None)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of two CPUs on this machine."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_task_that_fails_stops_no_other(name: str, tmp_path: Path, cluster: None) -> None:
    """One's message, another's stack, a process that is gone: all are told, the rest is done."""
    paths = [tmp_path / each for each in "abc"]
    given = [
        *(Task(f"leave {path.name}", tasks.leave, (path, "done")) for path in paths[:2]),
        Task("refuse", tasks.refuse, ()),
        Task("stumble", tasks.stumble, ()),
        Task("die", tasks.die, ()),
        Task("leave c", tasks.leave, (paths[2], "done")),
    ]
    events: list[Event] = []

    make_launcher(name).launch(given, 2, events.append)

    assert [path.read_text() for path in paths] == ["done"] * 3
    faults = {event.task: event.fault for event in events if isinstance(event, Ended)}
    assert faults.keys() == {task.name for task in given}
    assert {task for task, fault in faults.items() if fault is None} == {
        "leave a",
        "leave b",
        "leave c",
    }
    assert faults["refuse"].text == "the table has no rows; choose another"
    assert not faults["refuse"].stack
    assert faults["stumble"].text == "ZeroDivisionError: by nought"
    assert "in stumble" in faults["stumble"].stack
    assert faults["die"].text == DIED
    assert most_at_once(events) <= 2


def most_at_once(events: list[Event]) -> int:
    """How many tasks ran side by side; a task that ends without a start is found out too."""
    running: set[str] = set()
    most = 0
    for event in events:
        if isinstance(event, Started):
            running.add(event.task)
        else:
            running.remove(event.task)
        most = max(most, len(running))
    assert not running
    return most


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_who_is_killed_takes_its_tasks_along(tmp_path: Path, sent: signal.Signals) -> None:
    """None works on behind the back of the next sweep; those that had not begun never do."""
    command = [sys.executable, "-c", SWEEPER, str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as sweeper:
        waits = threading.Event()
        while len(list(tmp_path.glob("*/begun"))) < 2:
            assert sweeper.poll() is None
            waits.wait(0.01)
        sweeper.send_signal(sent)

    for name in ("a", "b"):
        with in_turn(tmp_path / name, Silent()):  # waits until its holder is gone
            pass
    assert not (tmp_path / "c").exists()


def test_a_launcher_that_is_none_is_refused_with_the_nearest() -> None:
    """Before anything is run."""
    with pytest.raises(
        ConfigError, match=r"unknown 'lokal'; did you mean 'local'\?; choose one of"
    ):
        make_launcher("lokal")
