"""What is told of requests once they are answered: metrics and log lines, many at a time.

Between two rankings, whose code and data push everything else out of the processor's caches, a log
line and seven histograms cost more than parsing and encoding; one after the other they cost little.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

from msgspec import UNSET, Struct

from service.log import Line, Write
from service.metrics import Metrics

MOST: Final = 64  # so that settling takes well under a millisecond
DELAY_S: Final = 0.05  # how late a line may be, and what other workers' metrics miss


def milliseconds(seconds: float) -> float:
    """Rounded to microseconds, in half of the time that `round` takes."""
    return int(seconds * 1e6 + 0.5) / 1e3


class Served(Struct, frozen=True, gc=False):
    """What a request was answered with.

    Attributes:
        candidates: how many were scored.
        brought: whether the request brought them; /recommend takes the catalogue's.
        cold: how many of them the catalogue does not know.
        warnings: codes.
        laps: stage → seconds.
    """

    model: str
    version: str
    candidates: int
    brought: bool
    cold: int
    warnings: Sequence[str]
    laps: Mapping[str, float]


class Answered(Struct, frozen=True, gc=False):
    """A request that was answered.

    Attributes:
        at: seconds since 1970, when it was.
        route: its template.
        code: of the problem that it was answered with.
        seconds: that it took.
    """

    at: float
    request_id: str
    method: str
    route: str
    status: int
    code: str | None
    seconds: float
    served: Served | None = None

    def line(self) -> Line:
        """Its log line."""
        at = datetime.fromtimestamp(self.at, UTC)
        who = (self.request_id, self.method, self.route, self.status, milliseconds(self.seconds))
        if (served := self.served) is None:
            return Line("request", "info", at, *who, UNSET if self.code is None else self.code)
        stages: Any = {f"{stage}_ms": milliseconds(lap) for stage, lap in served.laps.items()}
        return Line(
            "request",
            "info",
            at,
            *who,
            self.code,
            served.model,
            served.version,
            served.candidates,
            served.cold,
            **stages,
        )


class Tally:
    """Keeps what was answered for a moment, then counts and logs it.

    Args:
        metrics: where it is counted.
        in_flight: tells how many requests the worker holds.
        write: where lines go, and are lost if nothing can be written there; None: nowhere.
    """

    def __init__(self, metrics: Metrics, in_flight: Callable[[], int], write: Write | None) -> None:
        self._metrics, self._in_flight, self._write = metrics, in_flight, write
        self._pending: list[Answered] = []
        self._settling: asyncio.TimerHandle | None = None  # in a moment, whatever comes

    def soon(self) -> None:
        """Something changes: count it in a moment."""
        if self._settling is None:
            loop = asyncio.get_running_loop()
            self._settling = loop.call_later(DELAY_S, self._settle_in_time)

    def add(self, answered: Answered) -> None:
        """Take a request in."""
        self._pending.append(answered)
        self.soon()
        if len(self._pending) >= MOST:
            self.settle()

    def _settle_in_time(self) -> None:
        self._settling = None
        self.settle()

    def close(self) -> None:
        """Settle for the last time before the event loop ends; another one may begin."""
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        self.settle()

    def settle(self) -> None:
        """Count and log what has come since the last time."""
        self._metrics.in_flight.set(self._in_flight())
        settled, self._pending = self._pending, []
        self._count(settled)
        self._count_served([each.served for each in settled if each.served is not None])
        if self._write is not None and settled:
            # Nobody reads them any more, or the disk is full: requests and scrapes go on.
            with suppress(OSError, ValueError):
                self._write(each.line() for each in settled)

    def _count(self, settled: Sequence[Answered]) -> None:
        metrics = self._metrics
        requests = Counter((each.route, each.status) for each in settled)
        for (route, status), count in requests.items():
            metrics.requests.labels(route, str(status)).inc(count)
        for route, seconds in _grouped((each.route, each.seconds) for each in settled).items():
            metrics.request_seconds.labels(route).observe_all(seconds)

    def _count_served(self, served: Sequence[Served]) -> None:
        metrics = self._metrics
        for stage, seconds in _grouped(lap for each in served for lap in each.laps.items()).items():
            metrics.stages[stage].observe_all(seconds)
        metrics.candidates.observe_all([each.candidates for each in served if each.brought])
        for each in served:
            if each.cold:
                metrics.cold_candidates.labels(each.model).inc(each.cold)
            for code in each.warnings:
                metrics.warnings.labels(code).inc()


def _grouped(pairs: Iterable[tuple[str, float]]) -> Mapping[str, list[float]]:
    groups: dict[str, list[float]] = defaultdict(list)
    for name, value in pairs:
        groups[name].append(value)
    return groups
