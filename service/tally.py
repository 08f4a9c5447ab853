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

from msgspec import Struct

from service.metrics import Metrics

MOST: Final = 64  # so that settling takes well under a millisecond
DELAY_S: Final = 0.05  # how late a line may be, and what other workers' metrics miss

Write = Callable[[Iterable[Mapping[str, Any]]], None]


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
            "ms": milliseconds(self.seconds),
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
                fields[f"{stage}_ms"] = milliseconds(seconds)
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
