"""What is told of requests once they are answered: metrics and log lines, many at a time.

Between two rankings, whose code and data push everything else out of the processor's caches, a log
line and seven histograms cost more than parsing and encoding; one after the other they cost little.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from prometheus_client import Counter, Histogram

from service.metrics import Metrics

MOST: Final = 64  # so that settling takes well under a millisecond
DELAY_S: Final = 0.05  # how late a line may be, and what other workers' metrics miss

Write = Callable[[Iterable[Mapping[str, Any]]], None]


@dataclass(frozen=True, slots=True)
class Served:
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


@dataclass(frozen=True, slots=True)
class Answered:
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

    def line(self) -> dict[str, Any]:
        """Its log line."""
        fields: dict[str, Any] = {
            "event": "request",
            "level": "info",
            "timestamp": datetime.fromtimestamp(self.at, UTC),
            "request_id": self.request_id,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "ms": round(self.seconds * 1e3, 3),
        }
        if self.code is not None or self.served is not None:
            fields["code"] = self.code  # null where a ranking went well
        if (served := self.served) is not None:
            fields |= {
                "model": served.model,
                "version": served.version,
                "candidates": served.candidates,
                "cold": served.cold,
            }
            for stage, seconds in served.laps.items():
                fields[f"{stage}_ms"] = round(seconds * 1e3, 3)
        return fields


class Tally:
    """Keeps what was answered for a moment, then counts and logs it.

    Args:
        metrics: where it is counted.
        write: where lines go, and are lost if nothing can be written there; None: nowhere.
    """

    def __init__(self, metrics: Metrics, write: Write | None) -> None:
        self._metrics, self._write = metrics, write
        self._pending: list[Answered] = []
        # Looked up once: labels() costs as much as observe().
        self._requests: dict[tuple[str, int], Counter] = {}
        self._seconds: dict[str, Histogram] = {}

    def add(self, answered: Answered) -> None:
        """Take a request in."""
        self._pending.append(answered)
        if len(self._pending) == 1:
            asyncio.get_running_loop().call_later(DELAY_S, self.settle)
        elif len(self._pending) >= MOST:
            self.settle()

    def settle(self) -> None:
        """Count and log what has come since the last time."""
        settled, self._pending = self._pending, []
        for each in settled:
            self._count(each)
        if self._write is not None and settled:
            # Nobody reads them any more, or the disk is full: requests and scrapes go on.
            with suppress(OSError, ValueError):
                self._write(each.line() for each in settled)

    def _count(self, answered: Answered) -> None:
        route, status = answered.route, answered.status
        if (route, status) not in self._requests:
            self._requests[route, status] = self._metrics.requests.labels(route, str(status))
        if route not in self._seconds:
            self._seconds[route] = self._metrics.request_seconds.labels(route)
        self._requests[route, status].inc()
        self._seconds[route].observe(answered.seconds)
        if answered.served is not None:
            self._count_served(answered.served)

    def _count_served(self, served: Served) -> None:
        metrics = self._metrics
        for stage, seconds in served.laps.items():
            metrics.stages[stage].observe(seconds)
        if served.brought:
            metrics.candidates.observe(served.candidates)
        if served.cold:
            metrics.cold_candidates.labels(served.model).inc(served.cold)
        for code in served.warnings:
            metrics.warnings.labels(code).inc()
