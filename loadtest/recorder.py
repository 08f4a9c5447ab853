"""What the load generator saw and how it fared itself, window by window.

Locust's own tables round every time (to 1 ms below 100 ms), so times go, unrounded, into
HdrHistograms here. A request belongs to the window in which it was due, whenever its answer came.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import psutil
from hdrh.histogram import HdrHistogram

from loadtest import histograms
from loadtest.shapes import Turn, Window

LONGEST_FAULT: Final = 200
UNANSWERED: Final = "no answer by the end of the test"


@dataclass(slots=True)
class Tally:
    """One window's counts.

    Attributes:
        times: from when a request was due until its answer was there.
        after_send: from when it was really sent. Shorter in an open loop where users were busy.
        lag: from when it was due and a user free until it was sent: the generator's own lateness.
        failed: requests that failed.
        unsent: arrivals that nobody was free to send before the window ended.
    """

    times: HdrHistogram = field(default_factory=histograms.new)
    after_send: HdrHistogram = field(default_factory=histograms.new)
    lag: HdrHistogram = field(default_factory=histograms.new)
    failed: int = 0
    unsent: int = 0


class Recorder:
    """Keeps what each measured window saw. Failures count at any time, warm-ups included."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self.windows = windows
        self.tallies = [Tally() for _ in windows]
        self.requests = 0
        self.failures: Counter[str] = Counter()
        self._flying: dict[int, Turn] = {}

    def sent(self, user: int, turn: Turn) -> None:
        """Note that a user waits for an answer."""
        self._flying[user] = turn

    def answered(self, user: int, turn: Turn, sent: float, done: float, fault: str | None) -> None:
        """Take in one answer.

        Args:
            user: who waited for it.
            turn: what was asked.
            sent: when it left, in seconds since the test began.
            done: when its answer was there.
            fault: what was wrong with the answer; None if it is right.
        """
        self._flying.pop(user, None)
        self.requests += 1
        if fault is not None:
            self.failures[fault[:LONGEST_FAULT]] += 1
        if not self._measured(turn.window, turn.due):
            return
        tally = self.tallies[turn.window]
        if fault is not None:
            tally.failed += 1
            return
        histograms.record(tally.times, done - turn.due)
        histograms.record(tally.after_send, done - sent)
        histograms.record(tally.lag, sent - max(turn.due, turn.taken))

    def given_up(self, place: int, due: float) -> None:
        """Take in an arrival that was never sent: it waited at least until the window's end."""
        if self._measured(place, due):
            self.tallies[place].unsent += 1
            histograms.record(self.tallies[place].times, self.windows[place].end - due)

    def end(self) -> None:
        """Count as failed what still waits for its answer."""
        for turn in self._flying.values():
            self.failures[UNANSWERED] += 1
            if self._measured(turn.window, turn.due):
                self.tallies[turn.window].failed += 1
        self._flying.clear()

    def result(self, cpu: Sequence[dict[str, float]]) -> dict[str, Any]:
        """Everything as plain JSON, histograms in HdrHistogram's own encoding.

        Args:
            cpu: who kept how many cores busy, by window; windows after the last one are left out.
        """
        rows = zip(self.windows, self.tallies, cpu, strict=False)
        return {
            "requests": self.requests,
            "failures": dict(self.failures),
            "windows": [
                {
                    "users": window.level.users,
                    "rate": window.level.rate,
                    "seconds": window.seconds,
                    "failures": tally.failed,
                    "unsent": tally.unsent,
                    "times": histograms.encoded(tally.times),
                    "after_send": histograms.encoded(tally.after_send),
                    "lag": histograms.encoded(tally.lag),
                    **cores,
                }
                for window, tally, cores in rows
            ],
        }

    def _measured(self, place: int, due: float) -> bool:
        return due >= self.windows[place].start


@dataclass(frozen=True, slots=True)
class CpuReading:
    """CPU seconds used so far, and when that was read."""

    clock: float
    generator: float
    service: float
    everybody: float

    def until(self, later: "CpuReading") -> dict[str, float]:
        """Cores that each kept busy between two readings."""
        seconds = later.clock - self.clock
        generator = (later.generator - self.generator) / seconds
        service = (later.service - self.service) / seconds
        everybody = (later.everybody - self.everybody) / seconds
        return {
            "generator_cpu": generator,
            "service_cpu": service,
            "foreign_cpu": max(0.0, everybody - generator - service),
        }


class Cpu:
    """Reads the CPU counters of this process, of the service with its workers, and of everybody."""

    def __init__(self, service: int | None) -> None:
        self._generator = psutil.Process()
        self._service = psutil.Process(service) if service else None

    def read(self) -> CpuReading:
        """The counters now. Of a service on another machine nothing is known: zeros."""
        if self._service is None:
            return CpuReading(time.perf_counter(), _seconds(self._generator), 0.0, 0.0)
        machine = psutil.cpu_times()
        processes = [self._service, *self._service.children(recursive=True)]
        return CpuReading(
            clock=time.perf_counter(),
            generator=_seconds(self._generator),
            service=sum(map(_seconds, processes)),
            everybody=machine.user + machine.nice + machine.system,
        )


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
