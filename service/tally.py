"""What is told of requests once they are answered: metrics and log lines, many at a time.

Between two rankings, whose code and data push everything else out of the processor's caches, a log
line and seven histograms cost more than parsing and encoding; one after the other they cost little.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from msgspec import UNSET, Struct, UnsetType

from service import kernels
from service.metrics import STAGES, Metrics

MOST: Final = 32  # so that settling takes a fraction of a millisecond
DELAY_S: Final = 0.05  # how late a line may be, and what other workers' metrics miss


class Line(Struct, frozen=True, gc=False):
    """A request's line in the log; what is not set is not there.

    Attributes:
        code: null where a ranking went well.
    """

    event: str
    level: str
    timestamp: datetime
    request_id: str
    method: str
    route: str
    status: int
    ms: float
    code: str | UnsetType | None = UNSET
    model: str | UnsetType = UNSET
    version: str | UnsetType = UNSET
    candidates: int | UnsetType = UNSET
    cold: int | UnsetType = UNSET
    queue_ms: float | UnsetType = UNSET
    parse_ms: float | UnsetType = UNSET
    features_ms: float | UnsetType = UNSET
    score_ms: float | UnsetType = UNSET
    encode_ms: float | UnsetType = UNSET


Write = Callable[[Sequence[Line]], None]


class Served(Struct, frozen=True, gc=False):
    """What a request was answered with.

    Attributes:
        candidates: how many were scored.
        brought: whether the request brought them; /recommend takes the catalogue's.
        cold: how many of them the catalogue does not know.
        warnings: codes.
        laps: the seconds of each of `STAGES`, 0 for those that it did not come to.
    """

    model: str
    version: str
    candidates: int
    brought: bool
    cold: int
    warnings: Sequence[str]
    laps: list[float]


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
        """Its line in the log."""
        at, served = datetime.fromtimestamp(self.at, UTC), self.served
        laps = [] if served is None else served.laps
        ms, *stages = kernels.milliseconds([self.seconds, *laps])
        who = (self.request_id, self.method, self.route, self.status, ms)
        if served is None:
            return Line("request", "info", at, *who, UNSET if self.code is None else self.code)
        what = (served.model, served.version, served.candidates, served.cold)
        taken = [ms if lap else UNSET for ms, lap in zip(stages, laps, strict=True)]
        return Line("request", "info", at, *who, self.code, *what, *taken)


class Tally:
    """Keeps what was answered for a moment, then counts and logs it.

    Args:
        metrics: where it is counted.
        write: where lines go, and are lost if nothing can be written there; None: nowhere.
    """

    def __init__(self, metrics: Metrics, write: Write | None) -> None:
        self._metrics, self._write = metrics, write
        self._pending: list[Answered] = []
        self._later: asyncio.TimerHandle | None = None

    def add(self, answered: Answered) -> None:
        """Take a request in."""
        self._pending.append(answered)
        if len(self._pending) == 1:
            self._later = asyncio.get_running_loop().call_later(DELAY_S, self.settle)
        elif len(self._pending) == MOST:  # not at once: first its answer is to be on its way
            asyncio.get_running_loop().call_soon(self.settle)

    def settle(self) -> None:
        """Count and log what has come since the last time."""
        settled, self._pending = self._pending, []
        if self._later is not None:  # it is for these: the next begin anew
            self._later.cancel()
            self._later = None
        self._count(settled)
        self._count_served([each.served for each in settled if each.served is not None])
        if self._write is not None and settled:
            # Nobody reads them any more, or the disk is full: requests and scrapes go on.
            with suppress(OSError, ValueError):
                self._write([each.line() for each in settled])

    def _count(self, settled: Sequence[Answered]) -> None:
        metrics = self._metrics
        requests: dict[tuple[str, int], list[float]] = defaultdict(list)
        for each in settled:
            requests[each.route, each.status].append(each.seconds)
        for (route, status), seconds in requests.items():
            metrics.requests.labels(route, str(status)).inc(len(seconds))
            metrics.request_seconds.labels(route).observe_all(seconds)

    def _count_served(self, served: Sequence[Served]) -> None:
        metrics = self._metrics
        if not served:
            return
        by_stage = zip(*(each.laps for each in served), strict=True)
        for stage, seconds in zip(STAGES, by_stage, strict=True):
            metrics.stages[stage].observe_all([lap for lap in seconds if lap])
        metrics.candidates.observe_all([each.candidates for each in served if each.brought])
        for each in served:
            if each.cold:
                metrics.cold_candidates.labels(each.model).inc(each.cold)
            for code in each.warnings:
                metrics.warnings.labels(code).inc()
