"""What the load generator keeps of a test."""

import json

import pytest

from loadtest import histograms, measured, shapes
from loadtest.recorder import UNANSWERED, CpuReading, Recorder
from loadtest.shapes import Level, Turn

CALM = {"generator_cpu": 0.1, "service_cpu": 0.5, "foreign_cpu": 0.0}


@pytest.fixture
def recorder() -> Recorder:
    """Of one open loop, 1 s of warm-up and 4 s measured."""
    return Recorder(shapes.steps([Level(4, rate=10.0)], warmup_s=1.0, seconds=4.0))


def test_time_counts_from_when_a_request_was_due(recorder: Recorder) -> None:
    """Due at 2 s, sent at 2.5 s since all were busy, answered at 2.6 s: 600 ms, not 100."""
    recorder.answered(0, Turn(0, due=2.0, taken=2.5), sent=2.5, done=2.6, fault=None)

    (tally,) = recorder.tallies
    assert histograms.ms(tally.times, 50) == pytest.approx(600, rel=0.001)
    assert histograms.ms(tally.after_send, 50) == pytest.approx(100, rel=0.001)


def test_lag_is_the_generators_own_lateness(recorder: Recorder) -> None:
    """Late because no user was free is the service's doing; late though one was, is not."""
    recorder.answered(0, Turn(0, due=2.0, taken=2.5), sent=2.501, done=2.6, fault=None)
    recorder.answered(0, Turn(0, due=3.0, taken=2.9), sent=3.004, done=3.1, fault=None)

    lag = recorder.tallies[0].lag
    assert histograms.ms(lag, 50) == pytest.approx(1.0, rel=0.001)
    assert histograms.ms(lag, 100) == pytest.approx(4.0, rel=0.001)


def test_request_belongs_to_the_window_it_was_due_in(recorder: Recorder) -> None:
    """What was due in the warm-up counts nowhere, what was due in time counts however late."""
    recorder.answered(0, Turn(0, due=0.9, taken=0.9), sent=0.9, done=2.0, fault=None)
    recorder.answered(0, Turn(0, due=4.9, taken=4.9), sent=4.9, done=9.0, fault=None)

    assert recorder.requests == 2
    assert recorder.tallies[0].times.get_total_count() == 1


def test_arrival_that_was_never_sent_counts_as_waiting_until_the_end(recorder: Recorder) -> None:
    """Leaving it out would make an overloaded service look fast."""
    recorder.given_up(0, due=0.5)
    recorder.given_up(0, due=2.0)

    (tally,) = recorder.tallies
    assert tally.unsent == 1
    assert histograms.ms(tally.times, 100) == pytest.approx(3000, rel=0.001)


def test_request_without_an_answer_at_the_end_is_a_failure(recorder: Recorder) -> None:
    """A service that stops answering does not get away with the answers that it gave before."""
    recorder.sent(0, Turn(0, due=2.0, taken=2.0))
    recorder.sent(1, Turn(0, due=3.0, taken=3.0))
    recorder.answered(1, Turn(0, due=3.0, taken=3.0), sent=3.0, done=3.1, fault=None)

    recorder.end()

    assert recorder.failures == {UNANSWERED: 1}
    assert recorder.tallies[0].failed == 1


def test_failures_count_in_the_warm_up_too(recorder: Recorder) -> None:
    """A fault is counted by its text whenever it comes, and its time enters no histogram."""
    for due in (0.5, 2.0):
        recorder.answered(0, Turn(0, due, due), sent=due, done=due + 0.1, fault="503 overloaded")

    assert recorder.failures == {"503 overloaded": 2}
    assert recorder.tallies[0].failed == 1
    assert recorder.tallies[0].times.get_total_count() == 0


def test_result_reads_back_as_what_was_measured(recorder: Recorder) -> None:
    """Through JSON and back: level, counts, histograms and cores are the same."""
    recorder.answered(0, Turn(0, due=2.0, taken=2.0), sent=2.001, done=2.1, fault=None)
    result = json.loads(json.dumps(recorder.result([CALM])))

    (window,) = measured.read({"side": "slim", "round": 2, **each} for each in result["windows"])

    assert (window.side, window.round, window.level) == ("slim", 2, Level(4, rate=10.0))
    assert (window.answered, window.rps, window.generator_cpu) == (1, 0.25, 0.1)
    assert window.lag_ms == pytest.approx(1.0, rel=0.001)
    assert histograms.hgrm(window.times) == histograms.hgrm(recorder.tallies[0].times)


def test_cores_are_cpu_seconds_by_seconds() -> None:
    """In 2 s: 1 s of the generator, 1.5 s of the service, and the rest of 4 s is others'."""
    before = CpuReading(clock=10.0, generator=1.0, service=1.0, everybody=5.0)
    after = CpuReading(clock=12.0, generator=2.0, service=2.5, everybody=9.0)

    assert before.until(after) == {
        "generator_cpu": 0.5,
        "service_cpu": 0.75,
        "foreign_cpu": 0.75,
    }
