"""From recorded times to a table, ratios and remarks."""

import json

import numpy as np
import pytest

from loadtest import report


def test_row_equals_the_sum_done_by_hand(measured) -> None:
    """Two rounds of 4 and 2 answers in 2 s: 2 and 1 a second; the times of all six are pooled."""
    rounds = [
        measured("dense", [100, 200, 300, 400]),
        measured("dense", [500, 600], failures=3, generator_cpu=0.7),
    ]

    (row,) = report.rows(rounds)

    assert (row.rounds, row.requests, row.failures) == (2, 6, 3)
    assert (row.rps, row.rps_low, row.rps_high) == (1.5, 1.0, 2.0)
    assert (row.p50_ms, row.p95_ms, row.max_ms) == (0.3, 0.6, 0.6)
    assert row.generator_cpu == 0.7
    assert row.service_us == pytest.approx((0.8 * 2 + 0.8 * 2) / 6 * 1e6)


def test_percentiles_equal_numpys_on_the_raw_times(measured) -> None:
    """Every percentile lies within the histogram's 0.1 % of the raw data's neighbouring ranks."""
    rng = np.random.default_rng(3)
    times = np.exp(rng.normal(8.0, 0.6, 5000)).astype(np.int64)

    (row,) = report.rows([measured("slim", times[:2000]), measured("slim", times[2000:])])

    for percentile, got in ((50, row.p50_ms), (95, row.p95_ms), (99, row.p99_ms)):
        low = np.percentile(times, percentile, method="lower")
        high = np.percentile(times, percentile, method="higher")
        assert low * 0.999 <= got * 1000 <= high * 1.001


def test_times_below_a_millisecond_stay_apart(measured) -> None:
    """410 µs and 430 µs are two different medians: nothing is rounded to milliseconds."""
    (first,) = report.rows([measured("slim", [410] * 9)])
    (second,) = report.rows([measured("slim", [430] * 9)])

    assert (first.p50_ms, second.p50_ms) == (0.41, 0.43)


def test_ratio_is_above_one_where_slim_is_better(measured) -> None:
    """Throughput is slim over dense by round; times and CPU are dense over slim."""
    runs = [
        measured("dense", [4000] * 10),
        measured("slim", [1000] * 30, service_cpu=0.6),
        measured("slim", [1000] * 40, service_cpu=0.6),
        measured("dense", [4000] * 10),
    ]

    (ratio,) = report.ratios(runs)

    assert (ratio.rps, ratio.rps_low, ratio.rps_high) == (3.5, 3.0, 4.0)
    assert ratio.p50 == ratio.p99 == pytest.approx(4.0, rel=0.002)
    assert ratio.service_us == pytest.approx((3.2 / 20) / (2.4 / 70))


def test_levels_are_not_mixed(measured) -> None:
    """Each number of users is a row and a ratio of its own, dense before slim."""
    runs = [
        measured(side, [100] * 10 * users, users=users)
        for users in (8, 1)
        for side in ("slim", "dense")
    ]

    table = report.rows(runs)

    assert [(row.users, row.side) for row in table] == [
        (1, "dense"),
        (1, "slim"),
        (8, "dense"),
        (8, "slim"),
    ]
    assert [(ratio.users, ratio.rps) for ratio in report.ratios(runs)] == [(1, 1.0), (8, 1.0)]


def test_generator_at_its_limit_is_told(measured) -> None:
    """Over 80 % of a core in any round, the row says that the generator was the limit."""
    table = report.rows(
        [
            measured("dense", [100], generator_cpu=0.79),
            measured("slim", [100], generator_cpu=0.5),
            measured("slim", [100], generator_cpu=0.81),
        ]
    )

    (note,) = report.remarks(table, apart=True)

    assert note.startswith("slim at 8 users: the load generator was the limit (81% of a core")


def test_busy_machine_and_shared_cores_are_told(measured) -> None:
    """Foreign load, and a generator on the service's core, stand beside the numbers."""
    shared, foreign = report.remarks(
        report.rows([measured("dense", [100], foreign_cpu=1.5)]), apart=False
    )

    assert shared == "Service and load generator shared their cores."
    assert "other processes kept 1.5 cores busy" in foreign


def test_markdown_holds_the_ratio_under_its_level(measured) -> None:
    """The table reads dense, slim, and by how much slim is better, in columns that fit the head."""
    runs = [measured("dense", [4210] * 10), measured("slim", [1000] * 25)]

    lines = report.markdown(report.rows(runs), report.ratios(runs)).splitlines()

    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "dense",
        "slim",
        "**slim is better by**",
    ]
    assert "4.21" in lines[2]
    assert "**2.50x** (2.50-2.50)" in lines[4]
    assert len({line.count("|") for line in lines}) == 1


def test_nothing_answered_gives_no_ratio_but_a_table(measured) -> None:
    """With no answer at all the report is still JSON, with zeros instead of NaN."""
    runs = [measured("dense", [], failures=5), measured("slim", [], failures=5)]
    table, ratios = report.rows(runs), report.ratios(runs)

    text = report.as_json(table, ratios, [], {"model": "ctr"})

    assert json.loads(text)["ratios"][0]["rps"] == 0.0
    assert "NaN" not in text


def test_what_the_locust_file_wrote_reads_back_the_same(measured) -> None:
    """A histogram survives its journey through JSON."""
    before = measured("slim", [123, 456, 78_900])
    window = {
        name: getattr(before, name)
        for name in ("users", "seconds", "failures", "generator_cpu", "service_cpu", "foreign_cpu")
    }
    result = {"windows": [{**window, "histogram": before.histogram.encode().decode()}]}

    (after,) = report.read("slim", json.loads(json.dumps(result)))

    assert report.rows([after]) == report.rows([before])
