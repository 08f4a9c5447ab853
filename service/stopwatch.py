"""The times of one request by stage, and its deadline."""

import math
from time import perf_counter
from typing import Final

from service.errors import DeadlineExceeded
from service.metrics import STAGES
from service.ranking import Prepared, Ranking
from service.tally import milliseconds

TIMING: Final = ", ".join(f"{name};dur=%.3f" for name in (*STAGES, "total"))


class Stopwatch:
    """Times the stages of one request.

    Attributes:
        started: when it came, on our clock.
        deadline: when its caller's budget is spent.
        laps: stage → seconds.
        ranking, prepared: what it came to, once that is known.
    """

    __slots__ = ("_last", "deadline", "laps", "prepared", "ranking", "started")

    def __init__(self) -> None:
        self.started = self._last = perf_counter()
        self.deadline = math.inf
        self.laps: dict[str, float] = {}
        self.ranking: Ranking | None = None
        self.prepared: Prepared | None = None

    def lap(self, stage: str) -> None:
        """End a stage, or a further part of one."""
        now = perf_counter()
        self.laps[stage] = self.laps.get(stage, 0.0) + now - self._last
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
        laps = self.laps
        return {
            "total": milliseconds(self._last - self.started),
            "parse": milliseconds(laps["parse"]),
            "features": milliseconds(laps["features"]),
            "score": milliseconds(laps["score"]),
        }

    def server_timing(self) -> bytes:
        """The Server-Timing header."""
        stages = [1e3 * self.laps[stage] for stage in STAGES]
        text = TIMING % (*stages, (self._last - self.started) * 1e3)
        return text.encode("ascii")  # numbers take twice as long to be put into bytes
