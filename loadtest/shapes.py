"""Load shapes: closed and open loops, whose turn it is to send, and which seconds count.

In a closed loop a user sends when it has its answer, so a stall of the service hides the requests
that would have come meanwhile. In an open loop requests arrive by a timetable that does not look at
answers, and are due when the timetable says so, whether or not a connection is free then.

Every level of load opens with a warm-up that is not measured. A server takes in new connections
one a turn while it serves the old ones, so the first seconds of N connections show a ramp of
about N²/2 service times, and not the steady state.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

STEPS_A_DECADE: Final = 20
HALF: Final = 0.5

Arrivals = Callable[[float, int], Iterator[float]]  # (rate, seed) -> seconds since the level began


@dataclass(frozen=True, slots=True)
class Level:
    """A load.

    Attributes:
        users: of a closed loop; the connections of an open one.
        rate: arrivals a second of an open loop; None makes it a closed one.
    """

    users: int
    rate: float | None = None

    @property
    def name(self) -> str:
        """What a reader calls it."""
        if self.rate is None:
            return f"{self.users} user{'s' if self.users > 1 else ''}"
        return f"{self.rate:g}/s"


@dataclass(frozen=True, slots=True)
class Window:
    """A level of load from ``begin``, measured from ``start`` until ``end``.

    In seconds since the test began.
    """

    level: Level
    begin: float
    start: float
    end: float

    @property
    def seconds(self) -> float:
        """The length of what is measured."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Turn:
    """One request to be sent.

    Attributes:
        window: the place of the window that it belongs to.
        due: when it should leave, in seconds since the test began; its time counts from here.
        taken: when a user became free for it; later than ``due`` where all were busy.
    """

    window: int
    due: float
    taken: float


class Turns:
    """Hands out requests in the order in which they are due; each only once."""

    def __init__(self, windows: Sequence[Window], arrivals: Arrivals, seed: int) -> None:
        self._windows = windows
        self._dues = [_dues(window, arrivals, seed) for window in windows]

    def take(self, user: int, now: float) -> Turn | None:
        """The next request for a user who is free now; None if no level has one left.

        Args:
            user: its number, from 0; a level of N users leaves out those from N on.
            now: seconds since the test began.
        """
        for place, window in enumerate(self._windows):
            if window.end <= now or user >= window.level.users:
                continue
            if window.level.rate is None:
                return Turn(place, max(now, window.begin), now)
            due = next(self._dues[place], None)
            if due is not None:
                return Turn(place, due, now)
        return None

    def given_up(self, place: int) -> Iterator[float]:
        """When those arrivals of a window were due that nobody was free to send before its end."""
        return self._dues[place]


def even(rate: float, seed: int) -> Iterator[float]:  # noqa: ARG001 - nothing is drawn
    """One arrival every 1/rate seconds."""
    return (place / rate for place in itertools.count())


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Arrivals that know nothing of each other, as those of many callers; the same for a seed."""
    rng = random.Random(seed)  # noqa: S311 - a load, no secret
    return itertools.accumulate(rng.expovariate(rate) for _ in itertools.count())


ARRIVALS: Final[Mapping[str, Arrivals]] = MappingProxyType({"poisson": poisson, "even": even})


def steps(levels: Sequence[Level], warmup_s: float, seconds: float) -> tuple[Window, ...]:
    """One level after another, each warmed up and then measured for ``seconds``."""
    length = warmup_s + seconds
    return tuple(
        Window(level, place * length, place * length + warmup_s, (place + 1) * length)
        for place, level in enumerate(levels)
    )


def rates_for(capacity: float, reference: float, shares: Sequence[float]) -> list[float]:
    """Rates that climb to what a side can do, the low ones the same for all sides.

    Args:
        capacity: answers a second of this side in a closed loop.
        reference: of the side that the others are compared with.
        shares: of the capacity. Up to a half they are of the reference's, so that there are rates
            at which all sides were driven, and the lowest is every side's low load.
    """
    low = [share * reference for share in shares if share <= HALF]
    high = [share * capacity for share in shares if share >= HALF]
    return sorted({snapped(rate) for rate in low + high if rate > 0})


def snapped(rate: float) -> float:
    """The nearest of 20 rates a decade (100, 112, 126, ...): so sides and later runs share them."""
    return float(f"{10 ** (round(STEPS_A_DECADE * math.log10(rate)) / STEPS_A_DECADE):.3g}")


def _dues(window: Window, arrivals: Arrivals, seed: int) -> Iterator[float]:
    if window.level.rate is None:
        return iter(())
    dues = (window.begin + offset for offset in arrivals(window.level.rate, seed))
    return itertools.takewhile(lambda due: due < window.end, dues)
