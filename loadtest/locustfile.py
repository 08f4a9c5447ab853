"""The Locust file: many users who rank candidates drawn from the bundle's own items.

    locust -f loadtest/locustfile.py --headless --host http://127.0.0.1:8000 \
        --bundle store/ctr/1 --levels 8 --duration 10 --out run.json

Locust's own tables round every time (to 1 ms below 100 ms). So each answer's time goes, unrounded,
into an HdrHistogram here, and those of the measured windows are written to ``--out``.

Without ``--rate`` the loop is closed: a user sends when it has its answer, so a stall of the
service hides the requests that would have come meanwhile. With ``--rate`` requests have a schedule
and their times count from when they should have left.
"""

import argparse
import itertools
import json
import logging
import time
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import gevent
import psutil
from locust import FastHttpUser, LoadTestShape, events, task
from locust.env import Environment

from loadtest import report, shapes, traffic

POOL = 512  # different requests, encoded before the test so that their making costs it nothing


class Recorder:
    """Keeps what each measured window saw. Failures count at any time, warm-ups included."""

    def __init__(self, windows: tuple[shapes.Window, ...], service: int | None) -> None:
        self.windows = windows
        self.histograms = [report.new_histogram() for _ in windows]
        self.failed = [0] * len(windows)
        self.requests = 0
        self.failures: Counter[str] = Counter()
        self.cpu: list[dict[str, float]] = []
        self.began = 0.0
        self._generator = psutil.Process()
        self._service = psutil.Process(service) if service else None

    def begin(self, **_: Any) -> None:
        """Start the clock, and a greenlet that reads the CPU counters at the windows' edges."""
        self.began = time.perf_counter()
        gevent.spawn(self._watch)

    def record(
        self,
        response_time: float,
        exception: BaseException | None,
        context: dict[str, float],
        **_: Any,
    ) -> None:
        """Take in one answer; ``response_time`` is Locust's, in ms and not rounded yet."""
        self.requests += 1
        window = shapes.measured_at(self.windows, time.perf_counter() - self.began)
        if exception is not None:
            self.failures[str(exception)[:200]] += 1
            if window is not None:
                self.failed[window] += 1
        elif window is not None:
            micros = round((response_time + context.get("late_ms", 0.0)) * 1000)
            self.histograms[window].record_value(min(max(micros, 1), report.LONGEST_US))

    def result(self) -> dict[str, Any]:
        """Everything as plain JSON, histograms in HdrHistogram's own encoding."""
        rows = zip(self.windows, self.histograms, self.failed, self.cpu, strict=False)
        return {
            "requests": self.requests,
            "failures": dict(self.failures),
            "windows": [
                {
                    "users": window.users,
                    "seconds": window.seconds,
                    "failures": failed,
                    "histogram": histogram.encode().decode(),
                    **cpu,
                }
                for window, histogram, failed, cpu in rows
            ],
        }

    def _watch(self) -> None:
        for window in self.windows:
            gevent.sleep(max(0.0, self.began + window.start - time.perf_counter()))
            before = self._cpu_seconds()
            gevent.sleep(max(0.0, self.began + window.end - time.perf_counter()))
            clock, *cpu = (
                after - was for after, was in zip(self._cpu_seconds(), before, strict=True)
            )
            generator, service, everybody = (seconds / clock for seconds in cpu)
            self.cpu.append(
                {
                    "generator_cpu": generator,
                    "service_cpu": service,
                    "foreign_cpu": max(0.0, everybody - generator - service),
                }
            )

    def _cpu_seconds(self) -> tuple[float, float, float, float]:
        # now, and the CPU seconds of the generator, the service with its workers, and everybody.
        processes = (
            [self._service, *self._service.children(recursive=True)] if self._service else []
        )
        machine = psutil.cpu_times()
        everybody = machine.user + machine.nice + machine.system if self._service else 0.0
        service = sum(map(_seconds, processes))
        return time.perf_counter(), _seconds(self._generator), service, everybody


class Shape(LoadTestShape):
    """The levels of ``--levels``, one after another."""

    windows: ClassVar[tuple[shapes.Window, ...]] = ()

    def tick(self) -> tuple[int, float] | None:
        """Users wanted now; all of a level start together, in its warm-up."""
        users = shapes.users_at(self.windows, self.get_run_time())
        return None if users is None else (users, float(users))


class RankUser(FastHttpUser):
    """A caller that ranks over one kept connection and checks every answer."""

    queries: ClassVar[list[traffic.Query]] = []
    rate: ClassVar[float] = 0.0
    began: ClassVar[float] = 0.0
    tickets: ClassVar["itertools.count[int]"] = itertools.count()
    network_timeout = 30.0
    connection_timeout = 5.0

    @task
    def rank(self) -> None:
        """POST /rank; anything but 200 with just the ids that were sent is a failure."""
        ticket = next(self.tickets)
        query = self.queries[ticket % len(self.queries)]
        with self.client.post(
            "/rank",
            data=query.body,  # type: ignore[arg-type]  # bytes, as geventhttpclient sends
            headers={"Content-Type": "application/json"},
            catch_response=True,
            context={"late_ms": self._wait_for_turn(ticket)},
        ) as response:
            fault = traffic.fault_of(query, response.status_code, response.content)
            if fault:
                response.failure(fault)

    def _wait_for_turn(self, ticket: int) -> float:
        # ms that this request leaves late because every user was busy; a timer's own lateness
        # is the generator's, not the service's, and so it does not count.
        if not self.rate:
            return 0.0
        ahead = shapes.intended_start(self.began, ticket, self.rate) - time.perf_counter()
        if ahead > 0:
            gevent.sleep(ahead)
        return max(0.0, -ahead) * 1000


@events.init_command_line_parser.add_listener
def add_options(parser: argparse.ArgumentParser) -> None:
    """Our own options, beside Locust's."""
    parser.add_argument("--bundle", type=Path, help="bundle folder that requests are drawn from")
    parser.add_argument("--candidates", type=int, default=200, help="candidates a request")
    parser.add_argument("--seed", type=int, default=1, help="draws the same requests again")
    parser.add_argument("--levels", default="8", help="users, one level after another: 1,8,32")
    parser.add_argument("--warmup", type=float, default=2.0, help="seconds before each level")
    parser.add_argument("--duration", type=float, default=10.0, help="measured seconds a level")
    parser.add_argument("--rate", type=float, default=0.0, help="requests/s by a schedule, 0: none")
    parser.add_argument("--service-pid", type=int, help="whose CPU time to read")
    parser.add_argument("--out", type=Path, default=Path("loadtest.json"), help="result as JSON")


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Draw the requests and hang the recorder onto Locust's events."""
    options: Any = environment.parsed_options
    levels = [int(level) for level in options.levels.split(",")]
    Shape.windows = shapes.steps(levels, options.warmup, options.duration)
    pool = traffic.read_pool(options.bundle)
    RankUser.queries = traffic.draw(pool, options.candidates, POOL, options.seed)
    RankUser.rate = options.rate
    recorder = Recorder(Shape.windows, options.service_pid)

    def begin(**_: Any) -> None:
        recorder.begin()
        RankUser.began = recorder.began

    def finish(**_: Any) -> None:
        result = recorder.result()
        options.out.write_text(json.dumps(result))
        complete = len(result["windows"]) == len(levels)
        answered = complete and all(h.get_total_count() for h in recorder.histograms)
        environment.process_exit_code = 0 if answered and not recorder.failures else 1
        logging.getLogger(__name__).info("%d requests, %s", recorder.requests, recorder.failures)

    environment.events.test_start.add_listener(begin)
    environment.events.request.add_listener(recorder.record)
    environment.events.quitting.add_listener(finish)


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
