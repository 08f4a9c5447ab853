"""Load shapes: how many users, for how long, and which seconds count.

Every level of load opens with a warm-up that is not measured. A server takes in new connections
one a turn while it serves the old ones, so the first seconds of N connections show a ramp of
about N²/2 service times, and not the steady state.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """A level of load: ``users`` from ``begin``, measured from ``start`` until ``end``.

    In seconds since the test began.
    """

    users: int
    begin: float
    start: float
    end: float

    @property
    def seconds(self) -> float:
        """The length of what is measured."""
        return self.end - self.start


def steps(users: Sequence[int], warmup_s: float, seconds: float) -> tuple[Window, ...]:
    """One level after another, each warmed up and then measured for ``seconds``."""
    length = warmup_s + seconds
    return tuple(
        Window(count, place * length, place * length + warmup_s, (place + 1) * length)
        for place, count in enumerate(users)
    )


def users_at(windows: Sequence[Window], now: float) -> int | None:
    """The level of load at a moment; None once the last one is over."""
    return next((window.users for window in windows if now < window.end), None)


def measured_at(windows: Sequence[Window], now: float) -> int | None:
    """The place of the window that counts what ends now; None while none does."""
    inside = (n for n, window in enumerate(windows) if window.start <= now < window.end)
    return next(inside, None)


def intended_start(start: float, ticket: int, rate: float) -> float:
    """When request number ``ticket`` of a fixed schedule should leave, at ``rate`` a second."""
    return start + ticket / rate
