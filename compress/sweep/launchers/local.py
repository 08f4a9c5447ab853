"""Fresh processes on this machine."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from compress.stages import attached
from compress.sweep.launchers.base import DIED, Ended, Event, Fault, Started, Task, attempt


class Local:
    """A process a task: what one leaves in memory, or dies of, no other one meets."""

    def launch(self, tasks: Sequence[Task], workers: int, tell: Callable[[Event], None]) -> None:
        """As `Launcher`."""
        waiting, running = deque(tasks), dict[Connection, tuple[Task, BaseProcess]]()
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    task = waiting.popleft()
                    answer, process = _begun(task)
                    running[answer] = (task, process)
                    tell(Started(task.name))
                ready = wait(list(running))
                for answer in [each for each in running if each in ready]:
                    task, process = running.pop(answer)
                    fault = _answered(answer)
                    process.join()
                    tell(Ended(task.name, fault))
        finally:
            for _, process in running.values():
                process.kill()
                process.join()


def _begun(task: Task) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(task, there))
    process.start()
    there.close()  # the child's is the last one, so its death is the end of the pipe
    return here, process


def _work(task: Task, answer: Connection) -> None:
    attached()
    answer.send(attempt(task))


def _answered(answer: Connection) -> Fault | None:
    with answer:
        try:
            fault: Fault | None = answer.recv()
        except EOFError:
            return Fault(DIED)
    return fault
