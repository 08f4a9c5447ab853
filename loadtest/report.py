"""From what the load generator recorded to a table and ratios. Pure: no files, no processes.

Times are pooled over the rounds (histograms add up); throughput is taken by round, and so is the
ratio, because the two sides of one round ran minutes apart at most, on the same machine.
"""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from hdrh.histogram import HdrHistogram

LONGEST_US: Final = 600_000_000
GENERATOR_LIMIT: Final = 0.80
FOREIGN_LIMIT: Final = 0.2
DENSE: Final = "dense"
SLIM: Final = "slim"


@dataclass(frozen=True, slots=True)
class Measured:
    """One measured window of one side in one round.

    Attributes:
        failures: requests that failed inside the window.
        generator_cpu: cores that the load generator kept busy.
        service_cpu: cores that the service and its workers kept busy.
        foreign_cpu: cores that everybody else on the machine kept busy.
    """

    side: str
    users: int
    seconds: float
    failures: int
    histogram: HdrHistogram
    generator_cpu: float
    service_cpu: float
    foreign_cpu: float

    @property
    def rps(self) -> float:
        """Requests answered rightly, a second."""
        return float(self.histogram.get_total_count()) / self.seconds


@dataclass(frozen=True, slots=True)
class Row:
    """One side at one level of load, over all rounds. Times in ms, from unrounded ones."""

    side: str
    users: int
    rounds: int
    requests: int
    failures: int
    rps: float
    rps_low: float
    rps_high: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    generator_cpu: float
    service_cpu: float
    service_us: float
    foreign_cpu: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """Slim against dense at one level of load; above 1 slim is better, in every field."""

    users: int
    rps: float
    rps_low: float
    rps_high: float
    p50: float
    p95: float
    p99: float
    service_us: float


def new_histogram() -> HdrHistogram:
    """Microseconds, kept to three significant digits."""
    return HdrHistogram(1, LONGEST_US, 3)


def read(side: str, result: Mapping[str, Any]) -> list[Measured]:
    """The windows that the Locust file wrote."""
    return [
        Measured(
            side=side,
            users=window["users"],
            seconds=window["seconds"],
            failures=window["failures"],
            histogram=HdrHistogram.decode(window["histogram"]),
            generator_cpu=window["generator_cpu"],
            service_cpu=window["service_cpu"],
            foreign_cpu=window["foreign_cpu"],
        )
        for window in result["windows"]
    ]


def rows(measured: Iterable[Measured]) -> list[Row]:
    """One row a side and level, by level, dense before slim."""
    groups: dict[tuple[int, str], list[Measured]] = {}
    for window in measured:
        groups.setdefault((window.users, window.side), []).append(window)
    return [_row(group) for _, group in sorted(groups.items())]


def ratios(measured: Sequence[Measured]) -> list[Ratio]:
    """Slim against dense by level; of throughput the median round, with the range of the rounds."""
    table = {(row.users, row.side): row for row in rows(measured)}
    levels = sorted({users for users, _ in table})
    return [
        _ratio(table[users, DENSE], table[users, SLIM], _by_round(measured, users))
        for users in levels
        if (users, DENSE) in table and (users, SLIM) in table
    ]


def remarks(table: Iterable[Row], *, apart: bool) -> list[str]:
    """What a reader must know before believing the table; one sentence each.

    Args:
        table: the rows.
        apart: whether service and generator had cores of their own.
    """
    notes = [] if apart else ["Service and load generator shared their cores."]
    for row in table:
        where = f"{row.side} at {row.users} users"
        if row.generator_cpu > GENERATOR_LIMIT:
            notes.append(
                f"{where}: the load generator was the limit ({row.generator_cpu:.0%} of a core, "
                f"over {GENERATOR_LIMIT:.0%}): the service can do more than these {row.rps:.0f} "
                "requests/s, and the ratio is a lower bound where this side is slim."
            )
        if row.foreign_cpu > FOREIGN_LIMIT:
            notes.append(
                f"{where}: other processes kept {row.foreign_cpu:.1f} cores busy: measure again "
                "on a quiet machine."
            )
    return notes


def markdown(table: Sequence[Row], compared: Sequence[Ratio]) -> str:
    """The table as Markdown, a line of ratios under each level."""
    head = (
        "| model | users | requests/s (min-max of rounds) | p50 ms | p95 ms | p99 ms | max ms "
        "| service CPU µs/request | generator CPU | failed |"
    )
    lines = [head, "|---|" + "---:|" * (head.count("|") - 2)]
    for row in table:
        lines.append(
            f"| {row.side} | {row.users} | {row.rps:.0f} ({row.rps_low:.0f}-{row.rps_high:.0f}) "
            f"| {row.p50_ms:.2f} | {row.p95_ms:.2f} | {row.p99_ms:.2f} | {row.max_ms:.2f} "
            f"| {row.service_us:.0f} | {row.generator_cpu:.0%} | {row.failures} |"
        )
        lines += [
            f"| **slim is better by** | {ratio.users} | **{ratio.rps:.2f}x** "
            f"({ratio.rps_low:.2f}-{ratio.rps_high:.2f}) | {ratio.p50:.2f}x | {ratio.p95:.2f}x "
            f"| {ratio.p99:.2f}x | | {ratio.service_us:.2f}x | | |"
            for ratio in compared
            if row.side == SLIM and ratio.users == row.users
        ]
    return "\n".join(lines)


def page(
    table: Sequence[Row], compared: Sequence[Ratio], notes: Sequence[str], about: Mapping[str, Any]
) -> str:
    """The table with its plot, what to know about it and how it was measured."""
    return "\n".join(
        [
            f"# Dense against slim: {about['model']}",
            "",
            markdown(table, compared),
            "",
            "Times are unrounded and pooled over the rounds; requests/s and its ratio are the "
            "median round's.",
            *(f"- {note}" for note in notes),
            "",
            "![throughput, times and ratios](compare.png)",
            "",
            "| how | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in about.items()),
            "",
        ]
    )


def as_json(
    table: Sequence[Row], compared: Sequence[Ratio], notes: Sequence[str], about: Mapping[str, Any]
) -> str:
    """The same for machines, with how it was measured."""
    return json.dumps(
        {
            "about": dict(about),
            "rows": [asdict(row) for row in table],
            "ratios": [asdict(ratio) for ratio in compared],
            "notes": list(notes),
        },
        indent=2,
    )


def _row(group: Sequence[Measured]) -> Row:
    pooled = new_histogram()
    for window in group:
        pooled.add(window.histogram)
    throughput = [window.rps for window in group]
    requests = pooled.get_total_count()
    service = sum(window.service_cpu * window.seconds for window in group)
    return Row(
        side=group[0].side,
        users=group[0].users,
        rounds=len(group),
        requests=requests,
        failures=sum(window.failures for window in group),
        rps=statistics.median(throughput),
        rps_low=min(throughput),
        rps_high=max(throughput),
        p50_ms=pooled.get_value_at_percentile(50.0) / 1000,
        p95_ms=pooled.get_value_at_percentile(95.0) / 1000,
        p99_ms=pooled.get_value_at_percentile(99.0) / 1000,
        max_ms=pooled.get_max_value() / 1000,
        generator_cpu=max(window.generator_cpu for window in group),
        service_cpu=statistics.median(window.service_cpu for window in group),
        service_us=_divide(service * 1e6, requests),
        foreign_cpu=statistics.median(window.foreign_cpu for window in group),
    )


def _by_round(measured: Sequence[Measured], users: int) -> list[float]:
    rps = {
        side: [window.rps for window in measured if (window.users, window.side) == (users, side)]
        for side in (DENSE, SLIM)
    }
    return [_divide(slim, dense) for dense, slim in zip(rps[DENSE], rps[SLIM], strict=False)]


def _ratio(dense: Row, slim: Row, rounds: Sequence[float]) -> Ratio:
    return Ratio(
        users=dense.users,
        rps=statistics.median(rounds),
        rps_low=min(rounds),
        rps_high=max(rounds),
        p50=_divide(dense.p50_ms, slim.p50_ms),
        p95=_divide(dense.p95_ms, slim.p95_ms),
        p99=_divide(dense.p99_ms, slim.p99_ms),
        service_us=_divide(dense.service_us, slim.service_us),
    )


def _divide(above: float, below: float) -> float:
    # Nothing answered, or no CPU time seen: there is no ratio, and JSON knows no NaN.
    return above / below if below else 0.0
