"""The Locust file: many users who rank candidates drawn from the bundle's own items.

    GEVENT_BACKEND=select locust -f loadtest/locustfile.py --headless --host http://127.0.0.1:8000 \
        --bundle store/ctr/versions/1 --levels 1,8 --rates 100,200 --duration 10 --out run.json

``--levels`` are closed loops, ``--rates`` open ones (see shapes.py); either may be ``none``. All
users are there from the beginning and keep their connections; a level of fewer leaves some idle.

GEVENT_BACKEND=select is for the timetable: libev's other backends wake up on whole milliseconds,
about 1 ms late, and that would count against the service.
"""

import argparse
import gc
import itertools
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import gevent
from locust import LoadTestShape, User, events, task
from locust.env import Environment
from locust.exception import StopUser

from loadtest import bounds, client, histograms, server, shapes, traffic
from loadtest.recorder import Cpu, Recorder, Tally

POOL = 512  # different requests, encoded before the test so that their making costs it nothing
PATH = "/rank"
TIMEOUT_S = 30.0
HTTP_PORT = 80


class Clock:
    """Seconds since the test began."""

    def __init__(self) -> None:
        self.began = 0.0

    def start(self) -> None:
        """The test begins now."""
        self.began = time.perf_counter()

    def now(self) -> float:
        """Seconds since then."""
        return time.perf_counter() - self.began

    def sleep_until(self, moment: float) -> None:
        """Let others run until then; return at once if that is past."""
        ahead = moment - self.now()
        if ahead > 0:
            gevent.sleep(ahead)


class Shape(LoadTestShape):
    """All users until the last window is over."""

    clock: ClassVar[Clock] = Clock()
    windows: ClassVar[tuple[shapes.Window, ...]] = ()

    def tick(self) -> tuple[int, float] | None:
        """Users wanted now."""
        if self.clock.began and self.clock.now() >= self.windows[-1].end:
            return None
        users = max(window.level.users for window in self.windows)
        return users, float(users)


class RankUser(User):
    """A caller that ranks over one kept connection and checks every answer."""

    queries: ClassVar[list[traffic.Query]] = []
    messages: ClassVar[list[bytes]] = []
    numbers: ClassVar["itertools.count[int]"] = itertools.count()
    tickets: ClassVar["itertools.count[int]"] = itertools.count()
    clock: ClassVar[Clock] = Shape.clock
    turns: ClassVar[shapes.Turns]
    recorder: ClassVar[Recorder]

    def on_start(self) -> None:
        """Take a number and a connection."""
        self.number = next(self.numbers)
        address = urlsplit(str(self.host))
        self.connection = client.Connection(
            str(address.hostname), address.port or HTTP_PORT, TIMEOUT_S
        )

    @task
    def rank(self) -> None:
        """POST /rank when it is due; anything but 200 with just the ids sent is a failure."""
        turn = self.turns.take(self.number, self.clock.now())
        if turn is None:
            raise StopUser
        self.clock.sleep_until(turn.due)
        place = next(self.tickets) % len(self.queries)
        self.recorder.sent(self.number, turn)
        sent = self.clock.now()
        reply, fault = self._ask(self.messages[place])
        done = self.clock.now()
        if reply is not None:
            fault = traffic.fault_of(self.queries[place], reply.status, reply.body)
        self.environment.events.request.fire(
            request_type="POST",
            name=PATH,
            response_time=(done - turn.due) * 1000,
            response_length=len(reply.body) if reply else 0,
            exception=RuntimeError(fault) if fault else None,
            response=None,
            context={"user": self.number, "turn": turn, "sent": sent, "done": done, "fault": fault},
        )

    def _ask(self, message: bytes) -> tuple[client.Reply | None, str | None]:
        try:
            return self.connection.ask(message), None
        except client.NoAnswer as error:
            gevent.sleep(0)  # a service that refuses at once must not keep the others from running
            return None, str(error)


@events.init_command_line_parser.add_listener
def add_options(parser: argparse.ArgumentParser) -> None:
    """Our own options, beside Locust's."""
    add = parser.add_argument
    add("--bundle", type=Path, help="bundle folder that requests are drawn from")
    add("--candidates", type=bounds.count, default=200, help="candidates a request")
    add("--seed", type=int, default=1, help="the same requests and arrivals again")
    add("--levels", type=bounds.levels, default=[8], help="users of closed loops: 1,8,32 or none")
    add("--rates", type=bounds.rates, default=[], help="arrivals/s of open loops: 100,200 or none")
    add("--connections", type=bounds.users, default=64, help="users of the open loops")
    add("--arrivals", choices=[*shapes.ARRIVALS], default="poisson")
    add("--warmup", type=bounds.seconds, default=2.0, help="seconds before each level")
    add("--duration", type=bounds.seconds, default=10.0, help="measured seconds a level")
    add("--service-pid", type=int, help="whose CPU time to read")
    add("--out", type=Path, default=Path("loadtest.json"), help="result as JSON")


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Draw the requests, lay out the windows, and hang the recorder onto Locust's events."""
    options: Any = environment.parsed_options
    check(str(environment.host), options.out)
    windows = shapes.steps(levels_of(options), options.warmup, options.duration)
    queries = draw(str(environment.host), options)
    host = urlsplit(str(environment.host)).netloc
    Shape.windows = windows
    RankUser.queries = queries
    RankUser.messages = [client.message(host, PATH, query.body) for query in queries]
    RankUser.turns = shapes.Turns(windows, shapes.ARRIVALS[options.arrivals], options.seed)
    RankUser.recorder = Recorder(windows)
    listen(environment, RankUser.recorder, RankUser.turns, Cpu(options.service_pid))


def check(host: str, out: Path) -> None:
    """End the process with a message where the client cannot ask, or the result cannot be kept."""
    address = urlsplit(host)
    if address.scheme != "http" or not address.hostname:
        sys.exit(f"loadtest: expected --host http://NAME:PORT, got {host}")
    if not out.parent.is_dir():
        sys.exit(f"loadtest: expected --out in a folder that is there, got {out}")


def draw(host: str, options: Any) -> list[traffic.Query]:
    """The requests; the process ends with a message where there is nothing to ask or to draw."""
    try:
        server.get_json(f"{host}/readyz")
        pool = traffic.read_pool(options.bundle)
        return traffic.draw(pool, options.candidates, POOL, options.seed)
    except server.ServerFailed as error:
        sys.exit(f"loadtest: no service is ready there; `make serve` starts one ({error})")
    except traffic.BundleUnusable as error:
        sys.exit(f"loadtest: {error}")


def listen(environment: Environment, recorder: Recorder, turns: shapes.Turns, cpu: Cpu) -> None:
    """Start the clock with the test, record its answers, and write the result at its end."""
    cores: list[dict[str, float]] = []

    def begin(**_: Any) -> None:
        gc.collect()
        gc.freeze()  # a collection of what is here for good would stall all users at once
        Shape.clock.start()
        gevent.spawn(watch, recorder, cpu, cores)

    def record(context: dict[str, Any], **_: Any) -> None:
        recorder.answered(
            context["user"], context["turn"], context["sent"], context["done"], context["fault"]
        )

    def finish(**_: Any) -> None:
        for place, _window in enumerate(recorder.windows):
            for due in turns.given_up(place):
                recorder.given_up(place, due)
        recorder.end()
        options: Any = environment.parsed_options
        options.out.write_text(json.dumps(recorder.result(cores)))
        answered = all(tally.after_send.get_total_count() for tally in recorder.tallies)
        complete = len(cores) == len(recorder.windows) and answered
        environment.process_exit_code = 0 if complete and not recorder.failures else 1
        logging.getLogger(__name__).info("%d requests, %s", recorder.requests, recorder.failures)

    environment.events.test_start.add_listener(begin)
    environment.events.request.add_listener(record)
    environment.events.quitting.add_listener(finish)


def levels_of(options: Any) -> list[shapes.Level]:
    """The closed loops and after them the open ones."""
    closed = [shapes.Level(users) for users in options.levels]
    open_loops = [shapes.Level(options.connections, rate) for rate in options.rates]
    if not options.bundle or not closed + open_loops:
        sys.exit("loadtest: expected --bundle FOLDER and --levels or --rates")
    return closed + open_loops


def watch(recorder: Recorder, cpu: Cpu, cores: list[dict[str, float]]) -> None:
    """Read the CPU counters at the windows' edges, and say how far the test is."""
    for window, tally in zip(recorder.windows, recorder.tallies, strict=True):
        Shape.clock.sleep_until(window.start)
        before = cpu.read()
        Shape.clock.sleep_until(window.end)
        cores.append(before.until(cpu.read()))
        print(f"  {window.level.name}: {progress(window, tally)}", flush=True)


def progress(window: shapes.Window, tally: Tally) -> str:
    """A window in a line, as far as its answers are there."""
    answered = tally.after_send.get_total_count()
    if not answered:
        return "no answer yet to what was due in the measured seconds"
    p50, p99 = (histograms.ms(tally.times, percentile) for percentile in (50, 99))
    return f"{answered / window.seconds:.0f} answers/s, p50 {p50:.2f} ms, p99 {p99:.2f} ms"
