"""How even a core's pace is: tails also show what else the host of a virtual machine does.

    python -m benchmarks.pace

A loop of Python that does the same each time takes about a millisecond. Where some take twice as
long or more, a 99th percentile tells of the machine, whatever it was measured of.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

STEPS: Final = 10_000
SLOW: Final = 2.0  # times the median
UNEVEN: Final = 0.01  # of all loops: as many as decide a 99th percentile


class Pace(NamedTuple):
    """Of loops that do the same.

    Attributes:
        slow: the share of those that took over twice the median.
        worst: the longest, in medians.
    """

    loops: int
    slow: float
    worst: float

    def __str__(self) -> str:
        """One line."""
        line = (
            f"{self.slow:.1%} of {self.loops} loops took over {SLOW:g} times the median, "
            f"the longest {self.worst:.1f} times"
        )
        return f"{line}: 99th percentiles tell of the machine" if self.is_uneven else line

    @property
    def is_uneven(self) -> bool:
        """Whether 99th percentiles tell of the machine."""
        return self.slow >= UNEVEN


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
    medians = np.array(taken) / np.median(taken)
    return Pace(len(taken), float((medians > SLOW).mean()), float(medians.max()))


def on_core(core: int, seconds: float) -> Pace:
    """`measure` on a core; afterwards the process runs where it did before."""
    if not hasattr(os, "sched_setaffinity"):
        return measure(seconds)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        return measure(seconds)
    finally:
        os.sched_setaffinity(0, before)


def main() -> int:
    """Tell of each core for some seconds."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    for core in cores:
        print(f"core {core}: {on_core(core, 5.0)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
