"""A run's files, and the command that compares two."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loadtest import histograms, report
from loadtest.measured import Measured
from loadtest.shapes import Level

ABOUT = {
    "date": "2026-01-02T03:04:05+00:00",
    "model": "ctr",
    "machine": {"cores": 2, "service_cores": [0], "generator_cores": [1]},
    "settings": {"workers": 1},
    "bundles": {"dense": {"digest": "sha256:1"}, "slim": {"digest": "sha256:2"}},
    "rounds": 1,
}


TORN = {
    **dict.fromkeys(("users", "round", "failures", "unsent"), 1),
    **dict.fromkeys(("rate", "seconds", "generator_cpu", "service_cpu", "foreign_cpu"), 1.0),
    **dict.fromkeys(("times", "after_send", "lag"), "HISTFAAA"),
    "side": "slim",
}


def as_written(window: Measured) -> dict[str, Any]:
    """A window as the Locust file writes it."""
    plain = ("side", "round", "seconds", "failures", "unsent")
    cores = ("generator_cpu", "service_cpu", "foreign_cpu")
    held = ("times", "after_send", "lag")
    return {
        "users": window.level.users,
        "rate": window.level.rate,
        **{name: getattr(window, name) for name in (*plain, *cores)},
        **{name: histograms.encoded(getattr(window, name)) for name in held},
    }


@pytest.fixture
def windows(measured) -> list[dict[str, Any]]:
    """Dense and slim with 8 users, and at two rates."""
    return [
        as_written(measured(side, [time_us] * count, level))
        for level in (Level(8), Level(64, 100.0), Level(64, 200.0))
        for side, time_us, count in (("dense", 4210, 10), ("slim", 1000, 25))
    ]


@pytest.fixture
def keep(windows: list[dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    """A folder with what a run keeps; of another machine or bundle where asked for."""

    def make(name: str, **changes: object) -> Path:
        (tmp_path / name).mkdir()
        held = {"format": report.FORMAT, "about": {**ABOUT, **changes}, "windows": windows}
        (tmp_path / name / report.FILE).write_text(json.dumps(held))
        return tmp_path / name

    return make


def test_tables_hold_ratios_under_their_level(windows: list[dict[str, Any]]) -> None:
    """The table reads dense, slim, and by how much slim is better, in columns that fit the head."""
    text = report.tables(report.of_windows(ABOUT, windows))

    closed = text.split("## Users who wait")[1].splitlines()[2:]
    assert [line.split("|")[1].strip() for line in closed[2:]] == [
        "dense",
        "slim",
        "**slim is better by**",
    ]
    assert "4.21" in closed[2]
    assert "**2.50x** (2.50-2.50)" in closed[4]
    assert len({line.count("|") for line in closed}) == 1


def test_times_of_no_answer_are_not_told_as_zero(measured) -> None:
    """A row without answers has empty cells for its times."""
    text = report.tables(report.of_windows(ABOUT, [as_written(measured("dense", []))]))

    (row,) = [line for line in text.splitlines() if line.startswith("| dense")]
    assert row.startswith("| dense | 8 users | 0 (0-0) |  |  |  |  |  | 0 | 0 |")


def test_knee_that_no_rate_reached_says_at_least(windows: list[dict[str, Any]]) -> None:
    """Both sides bear the highest rate: of two lower bounds there is no ratio."""
    text = report.tables(report.of_windows(ABOUT, windows))

    assert "| slim | at least 200 (200-200) | 3.00 |  |" in text


def test_lower_bound_against_denses_knee_is_a_lower_bound(measured) -> None:
    """Dense bends at 100/s and slim not by 200/s: slim bears at least twice as much."""
    times = {("dense", 100): 1000, ("dense", 200): 9000, ("slim", 100): 1000, ("slim", 200): 1000}
    runs = [
        as_written(measured(side, [time_us] * 100, Level(64, float(rate))))
        for (side, rate), time_us in times.items()
    ]

    text = report.tables(report.of_windows(ABOUT, runs))

    assert "| dense | 100 (100-100) | 3.00 |  |" in text
    assert "| slim | at least 200 (200-200) | 3.00 | at least 2.00x |" in text


def test_saturated_generator_is_marked_in_its_row(windows: list[dict[str, Any]]) -> None:
    """Who reads only the table sees that the row supports no claim."""
    text = report.tables(report.of_windows(ABOUT, [{**windows[0], "generator_cpu": 0.9}]))

    assert "| dense (generator saturated) | 8 users |" in text


def test_workers_on_fewer_cores_are_told(windows: list[dict[str, Any]]) -> None:
    """Four workers that shared a core did not run side by side."""
    about = {**ABOUT, "settings": {"workers": 4}}

    assert "4 workers shared 1 core(s)." in report.of_windows(about, windows).notes


def test_run_leaves_files_and_reads_back(windows: list[dict[str, Any]], tmp_path: Path) -> None:
    """Page, PNG, and a .hgrm file a side and level, no stale one; rows and knees from the JSON."""
    stale = tmp_path / "hgrm" / "dense-9-users.hgrm"
    stale.parent.mkdir()
    stale.touch()

    before = report.write(tmp_path, ABOUT, windows)
    after = report.load(tmp_path)

    assert (after.rows, after.ratios, after.knees) == (before.rows, before.ratios, before.knees)
    assert "| slim | 8 users |" in (tmp_path / "compare.md").read_text()
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in stale.parent.iterdir()) == [
        f"{side}-{load}.hgrm"
        for side in ("dense", "slim")
        for load in ("100-per-s", "200-per-s", "8-users")
    ]


def test_distribution_leaves_out_rounds_of_a_saturated_generator(measured, tmp_path: Path) -> None:
    """What enters no row enters no .hgrm file: its longest time is the other round's."""
    rounds = [measured("slim", [1000]), measured("slim", [9000], number=1, lag_us=5000)]

    report.write(tmp_path, ABOUT, [as_written(window) for window in rounds])

    assert "#[Max     =        1.000" in (tmp_path / "hgrm/slim-8-users.hgrm").read_text()


def test_command_compares_with_an_earlier_run(keep, capsys: pytest.CaptureFixture[str]) -> None:
    """A table of ratios with their spread, on the terminal, in a file and as a picture."""
    now, then = keep("now"), keep("then")

    status = report.main([str(now), "--against", str(then)])

    assert status == 0
    assert "| slim | 8 users | answers/s | 1.00x (1.00-1.00) | one round |" in (
        capsys.readouterr().out
    )
    assert "answers/s" in (now / "against.md").read_text()
    assert (now / "against.png").read_bytes().startswith(b"\x89PNG")


def test_command_refuses_what_cannot_be_compared(keep, capsys: pytest.CaptureFixture[str]) -> None:
    """Another machine: 2, 'not comparable' and why, and no table."""
    now, then = keep("now"), keep("then", machine={**ABOUT["machine"], "cores": 8})

    status = report.main([str(now), "--against", str(then)])

    said = capsys.readouterr().err
    assert status == report.UNUSABLE
    assert "not comparable:\n  machine: cores is 2, was 8" in said
    assert not (now / "against.md").exists()


def test_command_without_an_earlier_run_shows_this_one(
    keep, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page is made anew from what the run keeps."""
    run = keep("run")

    assert report.main([str(run)]) == 0
    assert "| dense | 8 users |" in capsys.readouterr().out
    assert (run / "compare.md").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "expected what `python -m loadtest.compare` wrote"),
        ("<html>", "expected JSON"),
        (json.dumps({"rows": []}), "expected a run of format 1"),
        ("[]", "expected a run of format 1"),
        (json.dumps({"format": 1}), "the run is damaged: 'about'"),
        (json.dumps({"format": 1, "about": ABOUT, "windows": [{}]}), "the run is damaged"),
        (json.dumps({"format": 1, "about": ABOUT, "windows": []}), "no measured window"),
        (json.dumps({"format": 1, "about": ABOUT, "windows": [TORN]}), "the run is damaged"),
    ],
)
def test_what_is_no_run_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, told: str
) -> None:
    """A folder without a run, or with one of an earlier build, is 2 with what was expected."""
    if content is not None:
        (tmp_path / "compare.json").write_text(content)

    assert report.main([str(tmp_path)]) == report.UNUSABLE
    assert told in capsys.readouterr().err
