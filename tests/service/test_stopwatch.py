"""The times of a request: each stage under its own name, in the reply and in its header."""

import math

import pytest

from service import kernels
from service.stopwatch import ENCODE, FEATURES, PARSE, QUEUE, SCORE, Stopwatch
from tests.service.conftest import by, ways


@ways
def test_each_time_is_told_by_its_name(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a stage add up; the total is all of it, what was before the last lap included."""
    laps = [(QUEUE, 1e-3), (PARSE, 2e-3), (FEATURES, 4e-3), (QUEUE, 2e-3), (SCORE, 16e-3),
            (SCORE, 0.5e-3), (ENCODE, 32.0004e-3)]  # fmt: skip
    now = 100.0
    monkeypatch.setattr("service.stopwatch.perf_counter", lambda: now)
    clock = Stopwatch()
    for stage, seconds in laps:
        now += seconds
        clock.lap(stage)

    with by(compiled):
        timing_ms, header = clock.timing_ms(), clock.server_timing()

    assert timing_ms == {"total": 57.5, "parse": 2.0, "features": 4.0, "score": 16.5}
    assert header == (
        b"queue;dur=3.000, parse;dur=2.000, features;dur=4.000, score;dur=16.500, "
        b"encode;dur=32.000, total;dur=57.500"
    )


@ways
@pytest.mark.parametrize(
    ("seconds", "ms"),
    [(0.0, 0.0), (4e-7, 0.0), (5e-7, 0.001), (-1.0, 0.0), (0.0123454, 12.345), (86400.0, 864e5)],
)
def test_times_are_rounded_to_microseconds(compiled: bool, seconds: float, ms: float) -> None:
    """None is below 0."""
    with by(compiled):
        assert kernels.milliseconds([seconds]) == [ms]
        assert kernels.server_timing((b"a",), [seconds]) == f"a;dur={ms:.3f}".encode()


@ways
@pytest.mark.parametrize("seconds", [[], [1.0, 2.0]])
def test_each_name_has_a_time(compiled: bool, seconds: list[float]) -> None:
    """No more and no fewer."""
    with by(compiled), pytest.raises(ValueError, match=r"seconds for each name|argument 2 is"):
        kernels.server_timing((b"a",), seconds)


@pytest.mark.skipif(not kernels.COMPILED, reason="Python raises as it does")
@pytest.mark.parametrize("wrong", [2, "1", None, math.nan, math.inf, 1e12])
def test_what_is_no_time_is_refused(wrong: object) -> None:
    """By the loop itself."""
    with pytest.raises(TypeError, match="expected seconds"):
        kernels.milliseconds([0.0, wrong])  # type: ignore[list-item]
