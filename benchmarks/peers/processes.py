"""A server and all that it starts: begun on given cores, watched in /proc, ended by process id."""

import contextlib
import ctypes
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from benchmarks.peers.load import Clocks
from loadtest.server import pinned, tail

POLL_S: Final = 0.1
SUBREAPER: Final = 36  # PR_SET_CHILD_SUBREAPER of linux/prctl.h
LOG_LINES: Final = 12


class ServerFailed(Exception):
    """The server did not start; the message carries the end of its log."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What a process tree holds. PSS counts a page that n processes share as an nth of one."""

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


def adopt_orphans() -> None:
    """Let processes whose parents end become children of this one, so that none is lost."""
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)


def descendants() -> list[psutil.Process]:
    """All processes that this one has started, directly or not."""
    found: list[psutil.Process] = psutil.Process().children(recursive=True)
    return found


def clocks() -> Clocks:
    """CPU seconds so far, in the kernel included: of all descendants, and of the machine."""
    total = 0.0
    for process in descendants():
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    busy = psutil.cpu_times()
    return Clocks(total, busy.user + busy.nice + busy.system + busy.irq + busy.softirq)


def memory() -> Memory:
    """Memory of all descendants."""
    found = []
    for process in descendants():
        with contextlib.suppress(psutil.Error):
            found.append(process.memory_full_info())
    return Memory(sum(m.rss for m in found), sum(m.pss for m in found), len(found))


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
) -> Iterator[None]:
    """A server, ready inside the block and gone after it with all that it started.

    Raises:
        ServerFailed: it ended, or was not ready in time.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    others = descendants()
    with log.open("w", encoding="utf-8") as output, pinned(cores):
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process alone, which ends it in order
        )
    try:
        _await(process, is_ready, log, start_s)
        yield
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(stop_s)
        _kill([each for each in descendants() if each not in others], stop_s)
        process.wait()


def _await(
    process: "subprocess.Popen[bytes]", is_ready: Callable[[], bool], log: Path, start_s: float
) -> None:
    deadline = time.monotonic() + start_s
    while not is_ready():
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
