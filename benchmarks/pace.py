"""How even a core's pace is: tails also show what else the host of a virtual machine does.

    python -m benchmarks.pace

A loop of Python that does the same each time takes some tenths of a millisecond. What loops take
beyond twice their median, as a share of the time, is what a server loses to its host in bursts: a
request that lasts no longer meets them that often. From a hundredth on, a 99th percentile tells of
the machine, whatever it was measured of.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from loadtest.server import pinned

SECONDS: Final = 3.0
STEPS: Final = 10_000
SLOW: Final = 2.0  # times the median
UNEVEN: Final = 0.01  # of the time: as much as decides a 99th percentile


class Pace(NamedTuple):
    """Of loops that do the same.

    Attributes:
        lost: the share of the time that they took beyond twice the median.
        longest_ms: the longest.
    """

    loops: int
    lost: float
    longest_ms: float

    def __str__(self) -> str:
        """One line."""
        line = (
            f"{self.lost:.1%} of the time was lost beyond {SLOW:g} times the median of "
            f"{self.loops} loops, the longest took {self.longest_ms:.1f} ms"
        )
        return f"{line}: 99th percentiles tell of the machine" if self.is_uneven else line

    @property
    def is_uneven(self) -> bool:
        """Whether 99th percentiles tell of the machine."""
        return self.lost >= UNEVEN


def measure(seconds: float, clock: Callable[[], float] = time.perf_counter) -> Pace:
    """Loop for so long, on this thread's core."""
    taken = []
    last = begun = clock()
    while last - begun < seconds:
        for _ in range(STEPS):
            pass
        now = clock()
        taken.append(now - last)
        last = now
    return of(taken)


def of(taken: list[float]) -> Pace:
    """The pace of loops that took so many seconds."""
    seconds = np.array(taken)
    beyond = (seconds - SLOW * np.median(seconds)).clip(min=0.0)
    return Pace(len(taken), float(beyond.sum() / seconds.sum()), float(seconds.max()) * 1e3)


def on_core(core: int, seconds: float = SECONDS) -> Pace:
    """`measure` on a core; afterwards the process runs where it did before."""
    with pinned(frozenset({core})):
        return measure(seconds)


def main() -> int:
    """Tell of each core for some seconds."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    for core in cores:
        print(f"core {core}: {on_core(core, 5.0)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
