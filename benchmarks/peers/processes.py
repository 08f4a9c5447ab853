"""A server and all that it starts: begun on given cores, watched in /proc, ended by process id."""

import contextlib
import ctypes
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from benchmarks.peers.load import Clocks
from loadtest.server import pinned, tail

POLL_S: Final = 0.1
STOP_S: Final = 2.0  # that frozen processes have to stop in
SUBREAPER: Final = 36  # PR_SET_CHILD_SUBREAPER of linux/prctl.h
LOG_LINES: Final = 12
MARK: Final = "BENCHMARKED_SERVER"  # a variable of the environment


class ServerFailed(Exception):
    """The server did not start; the message carries the end of its log."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What a process tree holds. PSS counts a page that n processes share as an nth of one.

    These may be other servers' that run meanwhile, of which pages of the interpreter's files count.
    """

    rss_bytes: int
    pss_bytes: int
    processes: int


class Settled:
    """Whether something has held without a break for so many seconds."""

    def __init__(self, holds: Callable[[], bool], seconds: float) -> None:
        self._holds, self._seconds = holds, seconds
        self._since: float | None = None

    def __call__(self) -> bool:
        """Look again."""
        now = time.monotonic()
        if not self._holds():
            self._since = None
            return False
        self._since = now if self._since is None else self._since
        return now - self._since >= self._seconds


def adopt_orphans(*, adopt: bool = True) -> None:
    """Let processes whose parents end become children of this one, so that none is lost."""
    ctypes.CDLL(None).prctl(SUBREAPER, int(adopt), 0, 0, 0)


def descendants() -> list[psutil.Process]:
    """All processes that this one has started, directly or not."""
    found: list[psutil.Process] = psutil.Process().children(recursive=True)
    return found


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() not in {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE}
    return False


def clocks(of: Iterable[psutil.Process] | None = None) -> Clocks:
    """CPU seconds so far, in the kernel included: of processes, or all descendants; of all."""
    total = 0.0
    for process in descendants() if of is None else of:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    busy = psutil.cpu_times()
    return Clocks(total, busy.user + busy.nice + busy.system + busy.irq + busy.softirq)


class Tree:
    """A server and all that it started, orphans too.

    Frozen, it keeps its memory and its connections, and takes no time from others.

    Attributes:
        mark: what tells its processes from those of other servers, in their environments.
    """

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self._told: dict[psutil.Process, bool] = {}

    def members(self) -> list[psutil.Process]:
        """Those that run now, or are frozen."""
        return [process for process in descendants() if self._is_member(process)]

    def _is_member(self, process: psutil.Process) -> bool:
        if process not in self._told:
            with contextlib.suppress(psutil.Error):
                # Who names itself may write over its environment: then its parent tells.
                parent = process.parent()
                self._told[process] = self._bears_mark(process) or (
                    parent is not None and self._told.get(parent, False)
                )
        return self._told.get(process, False)

    def _bears_mark(self, process: psutil.Process) -> bool:
        return bool(process.environ().get(MARK) == self.mark)

    def clocks(self) -> Clocks:
        """CPU seconds so far: of its processes, and of all on the machine."""
        return clocks(self.members())

    def memory(self) -> Memory:
        """What its processes hold."""
        found = []
        for process in self.members():
            with contextlib.suppress(psutil.Error):
                found.append(process.memory_full_info())
        return Memory(sum(m.rss for m in found), sum(m.pss for m in found), len(found))

    def freeze(self) -> None:
        """Stop it, and what it starts meanwhile; a process only stops when it would run."""
        deadline = time.monotonic() + STOP_S
        while (left := [*filter(_runs, self.members())]) and time.monotonic() < deadline:
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.suspend()

    def thaw(self) -> None:
        """Let it go on."""
        for process in self.members():
            with contextlib.suppress(psutil.Error):
                process.resume()

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """It runs inside the block, and is frozen after it."""
        self.thaw()
        try:
            yield
        finally:
            self.freeze()


@contextlib.contextmanager
def running(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    *,
    is_ready: Callable[[], bool],
    cores: frozenset[int] | None,
    start_s: float = 90.0,
    stop_s: float = 10.0,
) -> Iterator[Tree]:
    """A server, ready inside the block and gone after it with all that it started.

    Raises:
        ServerFailed: it ended, or was not ready in time.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    tree = Tree(uuid.uuid4().hex)
    with log.open("w", encoding="utf-8") as output, pinned(cores):
        process = subprocess.Popen(
            command,
            env={**environment, MARK: tree.mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process alone, which ends it in order
        )
    try:
        _await(process, tree, is_ready, log, start_s)
        yield tree
    finally:
        try:
            tree.thaw()
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(stop_s)
        finally:  # also where a second signal comes
            _kill(tree.members(), stop_s)
            process.wait()


def _await(
    process: "subprocess.Popen[bytes]",
    tree: Tree,
    is_ready: Callable[[], bool],
    log: Path,
    start_s: float,
) -> None:
    deadline = time.monotonic() + start_s
    while not is_ready():
        tree.members()  # seen before their parents end
        if process.poll() is not None:
            raise ServerFailed(f"it ended with {process.returncode}: {tail(log, LOG_LINES)}")
        if time.monotonic() > deadline:
            raise ServerFailed(f"not ready after {start_s:g} s: {tail(log, LOG_LINES)}")
        time.sleep(POLL_S)


def _kill(left: Sequence[psutil.Process], patience_s: float) -> None:
    """End what a server leaves behind, or what would not end when it was asked to."""
    for each in left:
        with contextlib.suppress(psutil.Error):
            each.kill()
    psutil.wait_procs(left, patience_s)
