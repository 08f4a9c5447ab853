"""One run against an earlier one."""

import copy

import pytest

from loadtest import against
from loadtest.measured import Spread
from loadtest.shapes import Level

ABOUT = {
    "machine": {"cores": 2, "python": "3.11.7"},
    "settings": {"candidates": 200, "seed": 1},
    "bundles": {"dense": {"digest": "sha256:1"}, "slim": {"digest": "sha256:2"}},
}


@pytest.mark.parametrize(
    ("part", "name", "value", "told"),
    [
        ("machine", "cores", 4, "machine: cores is 4, was 2"),
        ("settings", "candidates", 50, "settings: candidates is 50, was 200"),
        ("settings", "new", True, "settings: new is True, was None"),
        ("bundles", "slim", {"digest": "sha256:3"}, "bundle slim: sha256:3, was sha256:2"),
        ("bundles", "int8", {"digest": "sha256:4"}, "bundle int8: sha256:4, was None"),
    ],
)
def test_each_difference_is_named(part: str, name: str, value: object, told: str) -> None:
    """Another machine, setting or bundle makes runs incomparable, and says which it is."""
    now = copy.deepcopy(ABOUT)
    now[part][name] = value

    assert against.differences(now, ABOUT) == [told]


def test_runs_alike_can_be_compared() -> None:
    """Version numbers and what else is told of a run do not matter."""
    now = {**copy.deepcopy(ABOUT), "date": "later", "rounds": 9}
    now["bundles"]["slim"]["version"] = "7"

    assert against.differences(now, ABOUT) == []


def found(now: list, then: list) -> dict[tuple[str, str, str], against.Change]:
    """The changes by side, load and value."""
    return {(c.side, c.load, c.value): c for c in against.changes(now, then)}


def test_ratio_is_of_medians_with_the_spread_of_all_pairs(measured) -> None:
    """20 and 40 answers against 10 and 20: 2x, and from 1x to 4x over the pairs of rounds."""
    now = [measured("slim", [1000] * 20), measured("slim", [1000] * 40, number=1)]
    then = [measured("slim", [1000] * 10), measured("slim", [1000] * 20, number=1)]

    change = found(now, then)["slim", "8 users", "answers/s"]

    assert change.ratio == Spread(2.0, 1.0, 4.0)
    assert change.verdict == "within the spread"


@pytest.mark.parametrize(("time_us", "verdict"), [(500, "better"), (4000, "worse")])
def test_shorter_times_are_better(measured, time_us: int, verdict: str) -> None:
    """Above 1 is better in every row; a spread without 1 gives a verdict."""
    now, then = (
        [measured("slim", [each] * 9, number=number) for number in (0, 1)]
        for each in (time_us, 2000)
    )

    change = found(now, then)["slim", "8 users", "p99"]

    assert change.ratio.middle == pytest.approx(2000 / time_us, rel=0.002)
    assert change.verdict == verdict


def test_one_round_supports_no_verdict(measured) -> None:
    """How far rounds lie apart is not known of either run then: any change may be chance."""
    one = [
        measured(side, [t] * 9, Level(64, r))
        for side in ("dense", "slim")
        for r, t in ((100.0, 100), (200.0, 900))
    ]
    faster = [
        measured(side, [t] * 9, Level(64, r), number)
        for number in (0, 1)
        for side in ("dense", "slim")
        for r, t in ((100.0, 50), (200.0, 60), (400.0, 900))
    ]

    changes = against.changes(faster, one)

    assert {change.value for change in changes} == {"p50", "p99", "knee"}
    assert {change.verdict for change in changes} == {"one round"}


def test_machine_that_is_faster_as_a_whole_leaves_the_relative_rows_alone(measured) -> None:
    """Both sides at half the time: twice as good by themselves, 1x relative to dense."""
    then = [measured(side, [2000] * 9) for side in ("dense", "slim")]
    now = [measured(side, [1000] * 9) for side in ("dense", "slim")]

    changes = found(now, then)

    assert changes["slim", "8 users", "p50"].ratio.middle == pytest.approx(2.0, rel=0.002)
    assert changes["slim / dense", "8 users", "p50"].ratio.middle == pytest.approx(1.0)


def test_only_common_loads_of_fit_generators_are_compared(measured) -> None:
    """A load of one run only, or one whose generator was saturated, has no row."""
    now = [measured("slim", [100], Level(1)), measured("slim", [100], lag_us=5000)]
    then = [measured("slim", [100], Level(4)), measured("slim", [100])]

    assert against.changes(now, then) == []
    assert "--rates" in against.markdown([], "then", "now")


def test_open_loops_have_times_and_a_knee_but_no_throughput(measured) -> None:
    """Answers a second are the timetable's; the knee went from 100/s to 200/s."""
    then = [measured("slim", [t] * 9, Level(64, r)) for r, t in ((100.0, 100), (200.0, 900))]
    now = [
        measured("slim", [t] * 9, Level(64, r))
        for r, t in ((100.0, 100), (200.0, 100), (400.0, 900))
    ]

    changes = found(now, then)

    assert ("slim", "100/s", "answers/s") not in changes
    assert changes["slim", "100/s", "p50"].ratio.middle == pytest.approx(1.0)
    assert changes["slim", "", "knee"].ratio == Spread(2.0, 2.0, 2.0)


def test_knee_that_is_a_lower_bound_has_no_ratio(measured) -> None:
    """What never bent cannot be said to have moved, neither from there nor to there."""
    bent = [measured("slim", [t] * 9, Level(64, r)) for r, t in ((100.0, 100), (200.0, 900))]
    straight = [measured("slim", [100] * 9, Level(64, 100.0))]

    assert ("slim", "", "knee") not in found(straight, bent)
    assert ("slim", "", "knee") not in found(bent, straight)
