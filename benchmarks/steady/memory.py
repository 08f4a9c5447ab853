"""Memory of processes as the kernel counts it, and whether it grew."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

BLOCKS: Final = 20  # of the second half: neighbouring samples are no independent witnesses
NEAR: Final = 0.025  # of the run, on either side of a moment
CONFIDENCE: Final = 0.95
TOLERANCE: Final = 0.01

Word = Literal["flat", "grew", "unclear"]


class Memory(NamedTuple):
    """Memory of a process in bytes.

    Attributes:
        rss: all its pages that are in memory.
        pss: the same, where a page that n processes share counts as an nth.
        private: pages that are its alone (USS), files that nobody else maps included.
        anonymous: what it allocated. Alone in not depending on which of the pages of files the
            kernel has dropped and not read again: by this, growth is judged.
    """

    rss: int
    pss: int
    private: int
    anonymous: int


def memory(process: int) -> Memory:
    """Memory of a process now; raises OSError where it has gone."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    found = {name.rstrip(":"): int(value) for name, value, _ in map(str.split, lines)}  # KiB
    private = found["Private_Clean"] + found["Private_Dirty"]
    values = (found["Rss"], found["Pss"], private, found["Anonymous"])
    return Memory(*(1024 * value for value in values))


@dataclass(frozen=True, slots=True)
class Growth:
    """What became of an amount of memory. All in MB.

    Attributes:
        tenth, half, end: around 10 % and 50 % of the run, and at the end.
        second_half: what the straight line through the second half gains over it.
        low, high: the interval of that which holds it 95 times in 100.
        allowed: what "flat" may gain at most.
    """

    tenth: float
    half: float
    end: float
    second_half: float
    low: float
    high: float
    allowed: float

    @property
    def word(self) -> Word:
        """Flat: surely at most what is allowed. Grew: surely something, and more than allowed."""
        if self.high <= self.allowed:
            return "flat"
        return "grew" if self.low > 0 and self.second_half > self.allowed else "unclear"


def growth(requests: Sequence[float], megabytes: Sequence[float]) -> Growth:
    """Judge samples of memory against how many requests had been answered by then.

    The line is fitted to means of blocks, since one sample tells nearly what the one before did.

    Args:
        requests: (n,) answered so far, rising.
        megabytes: (n,) at those moments.

    Raises:
        ValueError: there are too few samples in the second half to tell.
    """
    done, held = np.asarray(requests, float), np.asarray(megabytes, float)
    later = slice(len(held) // 2, None)
    if len(held[later]) < 2 * BLOCKS:
        raise ValueError(
            f"{len(held[later])} samples in the second half; expected {2 * BLOCKS} or more"
        )
    xs, ys = _means(done[later]), _means(held[later])
    slope, error = _line(xs, ys)
    span = float(done[-1] - done[later][0])
    spread = float(stats.t.ppf((1 + CONFIDENCE) / 2, BLOCKS - 2)) * error * span
    gained = slope * span
    half = _around(held, 0.5)
    return Growth(
        tenth=_around(held, 0.1),
        half=half,
        end=_around(held, 1.0),
        second_half=gained,
        low=gained - spread,
        high=gained + spread,
        allowed=TOLERANCE * half,
    )


def _line(xs: NDArray[np.float64], ys: NDArray[np.float64]) -> tuple[float, float]:
    """The slope of the straight line nearest to points, and its standard error."""
    from_x, from_y = xs - xs.mean(), ys - ys.mean()
    squares = float(from_x @ from_x)
    slope = float(from_x @ from_y) / squares
    rest = from_y - slope * from_x
    return slope, math.sqrt(float(rest @ rest) / (len(xs) - 2) / squares)


def _means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([block.mean() for block in np.array_split(values, BLOCKS)])


def _around(held: NDArray[np.float64], share: float) -> float:
    """The median near a share of the run."""
    middle, width = share * len(held), math.ceil(NEAR * len(held))
    return float(np.median(held[max(0, int(middle) - width) : int(middle) + width]))
