"""Load for minutes, in one thread over raw keep-alive sockets; whoever asks is told of each answer.

In a closed loop a connection asks again when it has its answer. In an open one requests fall due by
a timetable that does not look at answers, and times count from then: a pause of the service counts
for every request that would have come meanwhile, as it does for callers.
"""

import contextlib
import heapq
import itertools
import selectors
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from hdrh.histogram import HdrHistogram

from benchmarks.peers.load import PATIENCE_S, Connection, LoadFailed
from loadtest import histograms
from loadtest.shapes import poisson

Draw = Callable[[], bytes]


@dataclass(slots=True)
class Tally:
    """What a stretch of an open loop saw.

    Attributes:
        times: from when requests were due until their answers were there.
        lag: how late requests left though a connection was free: the generator's own lateness.
    """

    times: HdrHistogram = field(default_factory=histograms.new)
    lag: HdrHistogram = field(default_factory=histograms.new)


def closed(
    port: int,
    connections: int,
    draw: Draw,
    answered: Callable[[float], None],
    is_over: Callable[[], bool],
) -> None:
    """Keep connections busy until it is over, then wait for what is under way.

    Args:
        port: of the server.
        connections: each waits for its answer before it asks again.
        draw: the next request.
        answered: told each answer's seconds.
        is_over: asked after each answer.

    Raises:
        LoadFailed, OSError: a request was not answered with 200.
    """
    with _opened(port, connections) as (opened, selector):
        for connection in opened:
            connection.send(draw())
        under_way = len(opened)
        while under_way:
            for connection in _ready(selector, None):
                taken_ns = connection.receive()
                if taken_ns is None:
                    continue
                answered(taken_ns / 1e9)
                if is_over():
                    under_way -= 1
                else:
                    connection.send(draw())


def dues(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """When requests of many independent callers are due, in seconds from the start."""
    if not rate:
        return iter(())
    return itertools.takewhile(lambda due: due < seconds, poisson(rate, seed))


@dataclass(frozen=True, slots=True)
class Lane:
    """Requests of one kind.

    Attributes:
        connections: most of them under way at once; what falls due meanwhile waits, and counts.
        draw: the next one.
        timetable: when they are due, in seconds from the start, in order.
    """

    connections: int
    draw: Draw
    timetable: Iterator[float]


@dataclass(slots=True)
class _Stand:
    """A lane at work.

    Attributes:
        idle: connections with the time since which they have been free.
        waiting: when those were due that have not left.
        following: drawn ahead, so that drawing makes none late.
    """

    draw: Draw
    idle: deque[tuple[Connection, float]]
    waiting: deque[float] = field(default_factory=deque)
    following: bytes | None = None
    tally: Tally = field(default_factory=Tally)


def by_timetable(port: int, lanes: Sequence[Lane], *, warmup_s: float = 0.0) -> list[Tally]:
    """Ask when the timetables say so, then wait for what is under way.

    Returns:
        What each lane saw of the requests that were due after ``warmup_s``.

    Raises:
        LoadFailed, OSError: a request was not answered with 200.
    """
    with _opened(port, sum(lane.connections for lane in lanes)) as (opened, selector):
        own = iter(opened)
        stands = [
            _Stand(lane.draw, deque((next(own), 0.0) for _ in range(lane.connections)))
            for lane in lanes
        ]
        timetables = [zip(lane.timetable, itertools.repeat(n)) for n, lane in enumerate(lanes)]
        arrivals = heapq.merge(*timetables)
        flying: dict[Connection, tuple[_Stand, float]] = {}
        coming = next(arrivals, None)
        begun = time.perf_counter()
        while coming is not None or flying or any(stand.waiting for stand in stands):
            now = time.perf_counter() - begun
            while coming is not None and coming[0] <= now:
                stands[coming[1]].waiting.append(coming[0])
                coming = next(arrivals, None)
            for stand in stands:
                flying |= _sent(stand, begun, warmup_s)
            now = time.perf_counter() - begun
            for connection in _ready(selector, None if coming is None else coming[0] - now):
                if connection.receive() is None:
                    continue
                stand, due = flying.pop(connection)
                now = time.perf_counter() - begun
                if due >= warmup_s:
                    histograms.record(stand.tally.times, now - due)
                stand.idle.append((connection, now))
    return [stand.tally for stand in stands]


def _sent(stand: _Stand, begun: float, warmup_s: float) -> dict[Connection, tuple[_Stand, float]]:
    """Send what waits as far as connections are free; by connection, and when each was due."""
    sent = {}
    while stand.waiting and stand.idle:
        (connection, since), due = stand.idle.popleft(), stand.waiting.popleft()
        connection.send(stand.following or stand.draw())
        if due >= warmup_s:
            histograms.record(stand.tally.lag, time.perf_counter() - begun - max(due, since))
        sent[connection] = stand, due
        stand.following = None
    if stand.following is None:
        stand.following = stand.draw()
    return sent


@contextlib.contextmanager
def _opened(
    port: int, connections: int
) -> Iterator[tuple[list[Connection], selectors.BaseSelector]]:
    """Connections that are closed in the end, and what tells which have something to read."""
    with contextlib.ExitStack() as stack:
        # select(2) wakes up within microseconds of a time, epoll on whole milliseconds.
        selector = stack.enter_context(selectors.SelectSelector())
        opened = []
        for _ in range(connections):
            connection = Connection(port)
            stack.callback(connection.socket.close)
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            opened.append(connection)
        yield opened, selector


def _ready(selector: selectors.BaseSelector, until_s: float | None) -> list[Connection]:
    """Connections with something to read, by the time that the next request is due at the latest.

    Raises:
        LoadFailed: nothing is due, and nothing came for too long.
    """
    timeout = PATIENCE_S if until_s is None else max(0.0, until_s)
    ready = selector.select(timeout)
    if not ready and until_s is None:
        raise LoadFailed(f"no answer in {PATIENCE_S:g} s")
    return [key.data for key, _ in ready]
