"""Dense against slim, Locust really run against the stand-in."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loadtest import compare
from loadtest.measured import Ratio, Spread

Compare = Callable[..., int]
FLAGS = (
    "--users",
    "4",
    "--shares",
    "none",
    "--candidates",
    "20",
    "--duration",
    "1",
    "--warmup",
    "0.5",
    "--rounds",
    "1",
)
DELAYS = ("--dense-ms", "60", "--slim-ms", "20")


@dataclass(frozen=True)
class Compared:
    """What a comparison left."""

    status: int
    out: Path

    @property
    def report(self) -> dict[str, Any]:
        """The report as JSON."""
        return json.loads((self.out / "compare.json").read_text())


@pytest.fixture(scope="module")
def compared(make_store, standin, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """One comparison without trouble: 4 users for a second, answers after 60 ms and 20 ms."""
    folder = tmp_path_factory.mktemp("compared")
    where = ["--store", str(make_store(folder)), "--out", str(folder / "out")]
    return Compared(compare.main([*where, *FLAGS], standin(*DELAYS)), folder / "out")


@pytest.fixture
def run(store: Path, standin, tmp_path: Path) -> Compare:
    """The same with other options, or with a service that misbehaves."""

    def call(*options: str, misbehaviour: tuple[str, ...] = ()) -> int:
        where = ["--store", str(store), "--out", str(tmp_path / "out")]
        return compare.main([*where, *FLAGS, *options], standin(*DELAYS, *misbehaviour))

    return call


def rows(tmp_path: Path) -> list[dict[str, Any]]:
    """The rows of the report."""
    return Compared(0, tmp_path / "out").report["rows"]


@pytest.mark.slow
def test_known_delays_come_out(compared: Compared) -> None:
    """No time is below the server's delay, and 4 users get at most 4 answers a delay.

    In the second that is measured each may get one more, of a request sent before it.
    """
    dense, slim = compared.report["rows"]

    assert compared.status == 0
    assert (dense["side"], slim["side"]) == ("dense", "slim")
    for row, delay_s in ((dense, 0.060), (slim, 0.020)):
        assert row["p50_ms"] >= delay_s * 1000
        assert 0 < row["rps"]["middle"] <= 4 / delay_s + 4
        assert row["max_ms"] >= row["p99_ms"] >= row["p50_ms"]
        assert row["failures"] == 0
    assert compared.report["ratios"][0]["rps"]["middle"] > 1


@pytest.mark.slow
def test_times_are_not_rounded(compared: Compared) -> None:
    """Locust's own tables show whole milliseconds; these medians do not."""
    assert all(row["p50_ms"] % 1 for row in compared.report["rows"])


@pytest.mark.slow
def test_report_has_table_plot_and_how_it_was_measured(compared: Compared) -> None:
    """One command leaves a Markdown page, a PNG, and JSON that names both bundles and the load."""
    about = compared.report["about"]

    assert "| slim | 4 users |" in (compared.out / "compare.md").read_text()
    assert (compared.out / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert about["bundles"] == {
        "dense": {"version": "1", "digest": "sha256:1", "numerics": "fp32"},
        "slim": {"version": "2", "digest": "sha256:2", "numerics": "fp32"},
    }
    assert (about["settings"]["candidates"], about["users"]) == (20, [4])


@pytest.mark.slow
def test_failed_requests_fail_the_comparison(
    run: Compare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Requests refused with 503 are counted and named, and the exit status is 1."""
    status = run(misbehaviour=("--fail-every", "5"))

    assert status == compare.FAILED
    assert "x 503 overloaded" in capsys.readouterr().err
    assert all(row["failures"] > 0 for row in rows(tmp_path))


@pytest.mark.slow
def test_answers_for_other_ids_fail_the_comparison(
    run: Compare, capsys: pytest.CaptureFixture[str]
) -> None:
    """A 200 with an id that nobody sent is no answer."""
    status = run(misbehaviour=("--forget-last",))

    assert status == compare.FAILED
    assert "x 200 with other ids than were sent" in capsys.readouterr().err


@pytest.mark.slow
def test_timetable_paces_the_load(run: Compare, tmp_path: Path) -> None:
    """At --rates, requests come at that rate, however fast the service answers."""
    status = run("--users", "none", "--rates", "40", "--arrivals", "even", "--duration", "1.5")

    assert status == 0
    assert [row["requests"] for row in rows(tmp_path)] == [60, 60]


@pytest.mark.slow
def test_stall_shows_in_the_times_of_a_timetable(run: Compare, tmp_path: Path) -> None:
    """4 connections with answers of 60 ms bear 67 requests/s, not 200: the wait counts."""
    run("--users", "none", "--rates", "200", "--connections", "4", "--duration", "1.5")

    dense, _ = rows(tmp_path)
    assert dense["p50_ms"] > 500
    assert dense["after_send_p99_ms"] < dense["p50_ms"]
    assert dense["unsent"] > 0


@pytest.mark.slow
def test_level_without_an_answer_fails_the_comparison(
    run: Compare, capsys: pytest.CaptureFixture[str]
) -> None:
    """At one arrival in ten seconds none comes in a second: nothing was measured, and that is 1."""
    status = run("--users", "none", "--rates", "0.1", "--arrivals", "even")

    assert status == compare.FAILED
    said = capsys.readouterr().err
    assert "no request was answered:\n  dense at 0.1/s\n  slim at 0.1/s" in said


@pytest.mark.slow
def test_rates_follow_the_capacity(run: Compare, tmp_path: Path) -> None:
    """Without --rates each side is driven at shares of what it can do, dense's low one included."""
    status = run("--users", "none", "--shares", "0.1,0.9", "--arrivals", "even")

    about = Compared(status, tmp_path / "out").report["about"]
    dense, slim = about["rates"]["dense"], about["rates"]["slim"]
    assert status == 0
    assert dense[0] == slim[0]
    assert dense[0] < dense[1] < slim[1]


@pytest.mark.slow
def test_levels_are_measured_one_by_one(run: Compare, tmp_path: Path) -> None:
    """--users 1,4 gives a row for each, with more answers at 4."""
    status = run("--users", "1,4", "--duration", "1.5", "--warmup", "1.5")

    rps = {(row["side"], row["users"]): row["rps"]["middle"] for row in rows(tmp_path)}
    assert status == 0
    assert rps["dense", 4] > 2 * rps["dense", 1]


def test_no_store_names_the_command_that_makes_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a store the exit status is 2, and the message names `make demo` and --prepare."""
    status = compare.main(["--store", str(tmp_path / "none"), "--out", str(tmp_path / "out")])

    assert status == compare.NOTHING_TO_COMPARE
    said = capsys.readouterr().err
    assert "make demo" in said
    assert "--prepare" in said


def test_model_that_the_store_lacks_is_told(
    run: Compare, capsys: pytest.CaptureFixture[str]
) -> None:
    """A misspelt --model is 2, with what there is, before any service is started."""
    status = run("--model", "nope")

    assert status == compare.NOTHING_TO_COMPARE
    assert "no bundle 'nope'" in capsys.readouterr().err


def test_folder_that_cannot_be_written_is_told_first(
    run: Compare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is trained or served, not after minutes of it."""
    (tmp_path / "taken").touch()

    status = run("--out", str(tmp_path / "taken"), "--prepare", "nowhere.toml")

    assert status == compare.NOTHING_TO_COMPARE
    assert "taken is no folder to write to: Not a directory" in capsys.readouterr().err


def test_service_that_does_not_start_is_told(
    run: Compare, capsys: pytest.CaptureFixture[str]
) -> None:
    """The end of the service's log reaches the person who ran the load test."""
    status = run(misbehaviour=("--exit-at-start",))

    assert status == compare.FAILED
    assert "no such store" in capsys.readouterr().err


def test_service_and_generator_get_cores_of_their_own() -> None:
    """The last core drives, the others serve, a core a worker; one core alone is shared."""
    assert compare.split_cores([0, 1], 1) == compare.Cores(frozenset({0}), frozenset({1}))
    assert compare.split_cores([0, 1, 2, 3], 2) == compare.Cores(frozenset({0, 1}), frozenset({3}))
    assert compare.split_cores([0, 1], 4) == compare.Cores(frozenset({0}), frozenset({1}))
    assert compare.split_cores([0], 1) == compare.Cores(None, None)


@pytest.mark.parametrize(
    "flags",
    [
        ["--users", "0"],
        ["--users", "999"],
        ["--duration", "9999"],
        ["--candidates", "0"],
        ["--candidates", "-3"],
        ["--workers", "0"],
        ["--users", "1.5"],
        ["--users", "many"],
        ["--rates", "-5"],
        ["--rates", "nan"],
        ["--rates", "99999"],
        ["--shares", "0"],
        ["--shares", "9"],
        ["--connections", "999"],
        ["--users", "none", "--shares", "none"],
        ["--min-ratio", "nan"],
        ["--min-ratio", "much"],
        ["--min-ratio", "0.8", "--users", "none"],
        ["--candidates", "many"],
        ["--duration", "long"],
    ],
)
def test_load_is_bounded(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What makes no load is refused before anything starts."""
    with pytest.raises(SystemExit, match="2"):
        compare.parse(flags)

    assert "expected" in capsys.readouterr().err


def ratio(best: float, **of: Any) -> Ratio:
    """A ratio whose judged value is at best that."""
    even, judged = Spread(1.0, 1.0, 1.0), Spread(best, 0.1, best)
    values = {"side": "slim", "users": 8, "rate": None, "rps": judged, "p50": even}
    return Ratio(**{**values, "p99": even, "service_us": even, **of})


def test_gate_is_off_unless_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """Without --min-ratio any ratio passes; with it the best round of the worst level decides."""
    ratios = [ratio(1.4, users=1), ratio(0.9)]

    assert compare.judge(ratios, None) == 0
    assert compare.judge(ratios, 0.9) == 0
    assert compare.judge(ratios, 1.0) == compare.BELOW_RATIO
    said = capsys.readouterr().err
    assert "slim reaches 0.90x of dense at 8 users, --min-ratio asks for 1x" in said


@pytest.mark.parametrize("ratios", [[], [ratio(9.0, rate=100.0)]])
def test_gate_with_nothing_to_judge_does_not_pass(
    ratios: list[Ratio], capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a closed loop whose generator was fit, nothing is proved of slim."""
    assert compare.judge(ratios, 0.8) == compare.NOTHING_TO_JUDGE
    assert "no closed loop to judge" in capsys.readouterr().err
