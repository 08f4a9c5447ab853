"""From recorded windows to rows, ratios and knees."""

from collections.abc import Callable, Mapping

import pytest

from loadtest import measured as subject
from loadtest.measured import Measured, Spread
from loadtest.shapes import Level

Climb = Callable[..., list[Measured]]


@pytest.fixture
def climb(measured) -> Climb:
    """One round's windows of a side: rate -> p99 in µs, with 100 answers each."""

    def make(side: str, p99_us: Mapping[float, int], number: int = 0, **of: int) -> list[Measured]:
        return [
            measured(side, [time_us] * 100, Level(64, rate), number, **of)
            for rate, time_us in p99_us.items()
        ]

    return make


def test_row_equals_the_sum_done_by_hand(measured) -> None:
    """Two rounds of 4 and 2 answers in 2 s: 2 and 1 a second; the times of all six are pooled."""
    rounds = [
        measured("dense", [100, 200, 300, 400]),
        measured("dense", [500, 600], number=1, failures=3, generator_cpu=0.7, unsent=2),
    ]

    (row,) = subject.rows(rounds)

    assert (row.rounds, row.requests, row.failures, row.unsent) == (2, 6, 3, 2)
    assert row.rps == Spread(1.5, 1.0, 2.0)
    assert (row.p50_ms, row.p99_ms, row.max_ms) == (0.3, 0.6, 0.6)
    assert row.generator_cpu == 0.7
    assert row.service_us == pytest.approx((0.8 * 2 / 4 + 0.8 * 2 / 2) / 2 * 1e6)


def test_p999_of_few_answers_is_not_told(measured) -> None:
    """Of 4999 answers p99.9 is a matter of five at most, and is left out."""
    few, enough = (
        subject.rows([measured("slim", [100] * count)])[0].p999_ms for count in (4999, 5000)
    )

    assert few is None
    assert enough == 0.1


def test_rows_are_in_reading_order(measured) -> None:
    """Closed loops by users, then open ones by rate; dense, slim, int8 under each."""
    levels = [Level(64, 200.0), Level(64, 50.0), Level(8), Level(1)]
    runs = [measured(side, [100], level) for level in levels for side in ("int8", "slim", "dense")]

    table = subject.rows(runs)

    assert [row.level for row in table[::3]] == [Level(1), Level(8), levels[1], levels[0]]
    assert [row.side for row in table[:3]] == ["dense", "slim", "int8"]


def test_ratio_is_above_one_where_the_other_side_is_better(measured) -> None:
    """Throughput is over dense's by round; times and CPU are dense's over the other's."""
    runs = [
        measured("dense", [4000] * 10),
        measured("slim", [1000] * 30, service_cpu=0.6),
        measured("slim", [2000] * 40, number=1, service_cpu=0.6),
        measured("dense", [4000] * 10, number=1),
    ]

    (ratio,) = subject.ratios(runs)

    assert ratio.rps == Spread(3.5, 3.0, 4.0)
    assert (ratio.p50.low, ratio.p50.high) == pytest.approx((2.0, 4.0), rel=0.002)
    assert ratio.service_us.low == pytest.approx((1.6 / 10) / (1.2 / 30))


def test_each_side_is_held_against_dense(measured) -> None:
    """Slim and int8 get a ratio each, at every level of their own."""
    runs = [
        measured(side, [100] * 10 * level.users, level)
        for level in (Level(8), Level(1))
        for side in ("int8", "slim", "dense")
    ]

    told = [(ratio.users, ratio.side, ratio.rps.middle) for ratio in subject.ratios(runs)]

    assert told == [(1, "slim", 1.0), (1, "int8", 1.0), (8, "slim", 1.0), (8, "int8", 1.0)]


@pytest.mark.parametrize("unfit", [{"generator_cpu": 0.81}, {"lag_us": 1200}])
def test_saturated_generator_supports_no_claim(measured, unfit: dict[str, float]) -> None:
    """A round over 80 % of a core, or over 1 ms late, enters no pool and no ratio."""
    runs = [
        measured("dense", [4000] * 10),
        measured("slim", [1000] * 10),
        measured("dense", [4000] * 10, number=1),
        measured("slim", [9000] * 10, number=1, **unfit),
    ]

    row = subject.rows(runs)[1]
    (ratio,) = subject.ratios(runs)

    assert (row.saturated, row.rounds, row.max_ms) == (False, 1, pytest.approx(1, rel=0.001))
    assert ratio.p50.low == ratio.p50.high
    assert subject.ratios(runs[2:]) == []


def test_row_of_saturated_rounds_only_is_marked(measured) -> None:
    """It is shown for what it is, and the note names the level."""
    table = subject.rows([measured("slim", [100] * 9, generator_cpu=0.9)])

    assert table[0].saturated
    assert "limit" in subject.remarks(table, apart=True)[0]
    assert "slim at 8 users" in subject.remarks(table, apart=True)[0]


def test_generator_at_its_limits_is_fit(measured) -> None:
    """80 % of a core and 1 ms are still within them; then there is nothing to remark."""
    table = subject.rows([measured("dense", [100] * 500, generator_cpu=0.8, lag_us=1000)])

    assert not table[0].saturated
    assert subject.remarks(table, apart=True) == []


def test_busy_machine_and_shared_cores_are_told(measured) -> None:
    """Foreign load, and a generator on the service's core, stand beside the numbers."""
    enough = [100] * 500
    table = subject.rows([measured("dense", enough, foreign_cpu=1.5), measured("slim", enough)])

    shared, foreign = subject.remarks(table, apart=False)

    assert shared == "Service and load generator shared their cores."
    assert "up to 1.5 cores busy in 1 of 2 rows" in foreign


def test_p99_of_few_answers_is_told_to_be_chance(measured) -> None:
    """Of 499 answers it lies among the five longest; arrivals that were not sent count as waits."""
    few = [measured("dense", [100] * 499)]
    enough = [measured("slim", [100] * 250, number=number) for number in (0, 1)]
    waiting = [measured("int8", [100] * 500, unsent=1)]

    (note,) = subject.remarks(subject.rows(few + enough + waiting), apart=True)

    assert note.startswith("In 1 of 3 rows p99 is of fewer than 500 answers")


def test_nothing_answered_gives_no_ratio_but_a_row(measured) -> None:
    """With no answer at all there are zeros instead of NaN, and no ratio."""
    runs = [measured("dense", [], failures=5), measured("slim", [], failures=5)]

    assert [row.rps.middle for row in subject.rows(runs)] == [0.0, 0.0]
    assert subject.ratios(runs) == []


def test_knee_is_the_last_rate_within_the_limit(climb: Climb) -> None:
    """1 ms at low load allows 3 ms: 400/s with 2.9 ms is borne, 800/s with 3.2 ms is not."""
    (knee,) = subject.knees(climb("slim", {100: 1000, 200: 1500, 400: 2900, 800: 3200}))

    assert knee.rate == Spread(400, 400, 400)
    assert knee.limit_ms == pytest.approx(3.0, rel=0.001)
    assert not knee.at_least


def test_climb_ends_at_the_first_rate_that_is_not_borne(climb: Climb) -> None:
    """A higher rate that happens to go well again does not move the knee."""
    (knee,) = subject.knees(climb("slim", {100: 1000, 200: 9000, 400: 2000, 800: 9000}))

    assert knee.rate.middle == 100


def test_knee_without_an_end_is_a_lower_bound(climb: Climb) -> None:
    """Where the highest rate is still borne, the knee is at least that."""
    (knee,) = subject.knees(climb("slim", {100: 1000, 200: 1100}))

    assert (knee.rate.middle, knee.at_least) == (200, True)


def test_generator_that_gives_out_makes_a_lower_bound(climb: Climb) -> None:
    """A saturated generator ends the climb, but is no limit of the service."""
    fit = climb("slim", {100: 1000, 200: 1100})
    unfit = climb("slim", {400: 9000}, lag_us=2000)

    (knee,) = subject.knees(fit + unfit)

    assert (knee.rate.middle, knee.at_least) == (200, True)


def test_rate_at_which_nothing_was_asked_is_not_borne(measured, climb: Climb) -> None:
    """Of a level too short for its rate nothing is known: no limit follows from it, no knee."""
    nothing = measured("slim", [], Level(64, 0.1))

    (knee,) = subject.knees([nothing, *climb("slim", {100: 1000})])

    assert knee.rate == Spread(0, 0, 0)
    assert knee.at_least


def test_overloaded_rate_is_not_borne_whatever_the_times(measured, climb: Climb) -> None:
    """Arrivals left over end the climb, at the lowest rate too, which would else allow anything."""
    left_over = measured("slim", [1000] * 100, Level(64, 200.0), unsent=2)
    low = measured("slim", [900_000] * 100, Level(64, 100.0), unsent=50)

    (knee,) = subject.knees([*climb("slim", {100: 1000}), left_over])
    (none,) = subject.knees([low, *climb("slim", {200: 900_000})])

    assert (knee.rate.middle, knee.at_least) == (100, False)
    assert none.rate == Spread(0, 0, 0)


def test_rate_with_failed_requests_is_not_borne(measured, climb: Climb) -> None:
    """A service that refuses what is too much for it keeps its times short: that is no capacity."""
    refusing = measured("slim", [1000] * 100, Level(64, 200.0), failures=30)

    (knee,) = subject.knees([*climb("slim", {100: 1000}), refusing])

    assert (knee.rate.middle, knee.at_least) == (100, False)


def test_failed_requests_are_told(measured) -> None:
    """No time counts them, and who reads the times must know."""
    enough = [100] * 500
    table = subject.rows([measured("dense", enough), measured("slim", enough, failures=2)])

    (note,) = subject.remarks(table, apart=True)

    assert note.startswith("Requests failed in slim at 8 users")


def test_knee_of_rounds_is_their_median_with_the_range(climb: Climb) -> None:
    """Each round climbs by itself against one limit."""
    rounds = [{100: 1000, 200: 9000}, {100: 1000, 200: 2000, 400: 9000}]
    windows = [w for number, each in enumerate(rounds) for w in climb("slim", each, number)]

    (knee,) = subject.knees(windows)

    assert knee.rate == Spread(150, 100, 200)


def test_sides_have_knees_of_their_own(measured, climb: Climb) -> None:
    """Dense first; closed loops have none."""
    windows = climb("slim", {100: 1000}) + climb("dense", {100: 1000}) + [measured("int8", [100])]

    assert [knee.side for knee in subject.knees(windows)] == ["dense", "slim"]
