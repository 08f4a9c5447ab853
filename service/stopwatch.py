"""The times of one request by stage, and its deadline."""

import math
from time import perf_counter
from typing import Final

from service import kernels
from service.errors import DeadlineExceeded
from service.metrics import STAGES
from service.ranking import Prepared, Ranking

QUEUE, PARSE, FEATURES, SCORE, ENCODE = range(len(STAGES))
TIMINGS: Final = tuple(name.encode() for name in (*STAGES, "total"))


class Stopwatch:
    """Times the stages of one request.

    Attributes:
        started: when it came, on our clock.
        deadline: when its caller's budget is spent.
        laps: the seconds of each of `STAGES`, 0 for those that it has not come to.
        ranking, prepared: what it came to, once that is known.
    """

    __slots__ = ("_last", "deadline", "laps", "prepared", "ranking", "started")

    def __init__(self) -> None:
        self.started = self._last = perf_counter()
        self.deadline = math.inf
        self.laps = [0.0] * len(STAGES)
        self.ranking: Ranking | None = None
        self.prepared: Prepared | None = None

    def lap(self, stage: int) -> None:
        """End a stage, or a further part of one."""
        now = perf_counter()
        self.laps[stage] += now - self._last
        self._last = now

    def check(self) -> None:
        """Let those pass that had time left at the last lap.

        Raises:
            DeadlineExceeded: it had not.
        """
        if self._last >= self.deadline:
            raise DeadlineExceeded("X-Deadline-Ms was over before scoring began")

    def timing_ms(self) -> dict[str, float]:
        """The reply's times, up to its encoding."""
        seconds = [self._last - self.started, *self.laps]
        total, _, parse, features, score, _ = kernels.milliseconds(seconds)
        return {"total": total, "parse": parse, "features": features, "score": score}

    def server_timing(self) -> bytes:
        """The Server-Timing header."""
        return kernels.server_timing(TIMINGS, [*self.laps, self._last - self.started])
