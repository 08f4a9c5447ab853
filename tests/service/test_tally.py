"""What is told of answered requests: counted once, logged once, whether many came or one."""

import asyncio
import json
import os
import sys
from collections.abc import Iterable
from select import PIPE_BUF
from typing import Any

import msgspec
import pytest

from service.log import lines_of_requests
from service.metrics import Metrics
from service.tally import MOST, Answered, Served, Tally

pytestmark = pytest.mark.anyio

SERVED = Served(
    model="ctr",
    version="3",
    candidates=200,
    brought=True,
    cold=2,
    warnings=["duplicate_candidates"],
    laps=[0.0, 0.0001, 0.0, 0.0021, 0.0],
)


def answered(number: int = 0, served: Served | None = None, code: str | None = None) -> Answered:
    """A request, told from others by its number."""
    return Answered(1e9 + number, f"id-{number}", "POST", "/rank", 200, code, 0.003, served)


async def test_what_waits_is_told_after_a_moment_or_when_it_is_much() -> None:
    """A lone request is told by the clock, a burst by its size; each once."""
    told: list[Any] = []
    all_told = asyncio.Event()

    def write(lines: Iterable[Any]) -> None:
        told.extend(lines)
        if len(told) > MOST:
            all_told.set()

    metrics = Metrics()
    tally = Tally(metrics, write)

    for number in range(MOST):
        tally.add(answered(number))
    before_the_answer_is_sent = len(told)
    await asyncio.sleep(0)
    at_once = len(told)
    tally.add(answered(MOST))
    await asyncio.wait_for(all_told.wait(), 10)

    assert (before_the_answer_is_sent, at_once) == (0, MOST)
    assert [line.request_id for line in told] == [f"id-{n}" for n in range(MOST + 1)]
    assert f'slimrank_requests_total{{route="/rank",status="200"}} {MOST + 1}.0' in text(metrics)


@pytest.mark.parametrize("error", [BrokenPipeError(), ValueError("I/O operation on closed file")])
async def test_a_log_that_cannot_be_written_costs_its_lines_alone(error: Exception) -> None:
    """Neither requests nor scrapes fail, all is counted, and lines come again when they can."""
    told: list[Any] = []
    is_broken = True

    def write(lines: Iterable[Any]) -> None:
        if is_broken:
            raise error
        told.extend(lines)

    metrics = Metrics()
    tally = Tally(metrics, write)
    for number in range(MOST):
        tally.add(answered(number))
    await asyncio.sleep(0)
    is_broken = False
    tally.add(answered(MOST))
    tally.settle()

    assert f'slimrank_requests_total{{route="/rank",status="200"}} {MOST + 1}.0' in text(metrics)
    assert [line.request_id for line in told] == [f"id-{MOST}"]


async def test_a_ranking_is_counted_in_full() -> None:
    """Stages, candidates, cold ones and warnings, each in its own instrument."""
    metrics = Metrics()
    tally = Tally(metrics, None)

    tally.add(answered(served=SERVED))
    tally.settle()

    lines = text(metrics)
    for expected in (
        'slimrank_request_seconds_sum{route="/rank"} 0.003',
        'slimrank_stage_seconds_sum{stage="score"} 0.0021',
        "slimrank_candidates_sum 200.0",
        'slimrank_cold_candidates_total{model="ctr"} 2.0',
        'slimrank_warnings_total{code="duplicate_candidates"} 1.0',
    ):
        assert expected in lines


async def test_stages_that_a_request_did_not_come_to_are_not_counted() -> None:
    """Where ranking failed, nothing was encoded, not even in no time."""
    metrics = Metrics()
    tally = Tally(metrics, None)

    tally.add(answered(served=SERVED))
    tally.add(answered(served=msgspec.structs.replace(SERVED, laps=[0.1, 0.1, 0.1, 0.1, 0.1])))
    tally.settle()

    lines = text(metrics)
    counts = {"queue": 1, "parse": 2, "features": 1, "score": 2, "encode": 1}
    for stage, count in counts.items():
        assert f'slimrank_stage_seconds_count{{stage="{stage}"}} {count}.0' in lines


async def test_a_settled_batch_leaves_no_timer() -> None:
    """It would settle the next one before that is large enough."""
    told: list[int] = []
    tally = Tally(Metrics(), lambda lines: told.append(len(lines)))
    timers: list[asyncio.TimerHandle] = []
    loop = asyncio.get_running_loop()
    with pytest.MonkeyPatch.context() as patch:
        later = loop.call_later
        patch.setattr(loop, "call_later", lambda *a: timers.append(later(*a)) or timers[-1])
        for batch in range(3):
            for number in range(MOST):
                tally.add(answered(batch * MOST + number))
            await asyncio.sleep(0)

    assert told == [MOST] * 3
    assert len(timers) == len(told)
    assert all(timer.cancelled() for timer in timers)


@pytest.mark.parametrize("style", ["json", "text"])
def test_lines_say_what_happened(style: Any, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """As JSON, a line a request with its own time; as text, for people."""
    write = lines_of_requests("info", style)

    write([answered(1, SERVED).line(), answered(2, code="overloaded").line(), answered(3).line()])
    lines = capfdbinary.readouterr().out.splitlines()

    assert len(lines) == 3
    if style == "text":
        assert b"overloaded" in lines[1]
        return
    first, second, third = map(json.loads, lines)
    assert first == {
        "event": "request",
        "level": "info",
        "timestamp": "2001-09-09T01:46:41Z",
        "request_id": "id-1",
        "method": "POST",
        "route": "/rank",
        "status": 200,
        "ms": 3.0,
        "code": None,
        "model": "ctr",
        "version": "3",
        "candidates": 200,
        "cold": 2,
        "parse_ms": 0.1,
        "score_ms": 2.1,
    }
    assert second["code"] == "overloaded"
    assert "code" not in third


def test_a_line_is_written_as_it_always_was(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Whoever reads logs relies on its order, on its null and on its microseconds."""
    laps = [1e-6, 2e-6, 3e-6, 0.0123454, 1.0]
    served = Served("größe", "3", 200, True, 0, [], laps)

    lines_of_requests("info", "json")(
        [Answered(1e9 + 0.25, "id", "POST", "/rank", 200, None, 0.003, served).line()]
    )

    assert capfdbinary.readouterr().out.decode() == (
        '{"event":"request","level":"info","timestamp":"2001-09-09T01:46:40.250000Z",'
        '"request_id":"id","method":"POST","route":"/rank","status":200,"ms":3.0,"code":null,'
        '"model":"größe","version":"3","candidates":200,"cold":0,"queue_ms":0.001,'
        '"parse_ms":0.002,"features_ms":0.003,"score_ms":12.345,"encode_ms":1000.0}\n'
    )


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere pipes do not tell writes apart")
def test_workers_do_not_cut_each_others_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written to a pipe at once is whole lines, no more than it takes whole."""
    receiver, sender = os.pipe2(os.O_DIRECT)  # it keeps writes apart
    expected = [answered(number, SERVED).line() for number in range(MOST)]
    with os.fdopen(receiver, "rb", buffering=0) as pipe:
        with os.fdopen(sender, "w") as stdout, monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", stdout)
            lines_of_requests("info", "json")(expected)
        written = [*iter(lambda: pipe.read(2 * PIPE_BUF), b"")]

    assert all(some.endswith(b"\n") and len(some) <= PIPE_BUF for some in written)
    assert len(written) < len(expected) / 4
    lines = [json.loads(line) for line in b"".join(written).splitlines()]
    assert [line["request_id"] for line in lines] == [f"id-{n}" for n in range(MOST)]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere pipes do not tell writes apart")
def test_a_line_that_is_longer_than_a_pipe_takes_stands_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may be cut; those before and behind it are not."""
    long = Answered(1e9, "long", "POST", "x" * PIPE_BUF, 200, None, 0.003).line()
    short = answered(1, SERVED).line()
    receiver, sender = os.pipe2(os.O_DIRECT)
    with os.fdopen(receiver, "rb", buffering=0) as pipe:
        with os.fdopen(sender, "w") as stdout, monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", stdout)
            lines_of_requests("info", "json")([short, long, short, long])
        written = [*iter(lambda: pipe.read(2 * PIPE_BUF), b"")]

    whole = [some for some in written if b'"id-1"' in some]
    assert [json.loads(some)["request_id"] for some in whole] == ["id-1", "id-1"]
    assert b"".join(written).count(b"\n") == 4


def test_no_lines_above_their_level(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Who asks for warnings only gets none of them."""
    lines_of_requests("warning", "json")([answered().line()])

    assert capfdbinary.readouterr().out == b""


def text(metrics: Metrics) -> str:
    """What a scrape shows."""
    return metrics.render().decode()
