"""From what was measured to rows, ratios and their tables. Pure: no files, no processes."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

GENERATOR_LIMIT: Final = 0.9
FOREIGN_LIMIT: Final = 0.1
OURS: Final = "Slimrank"

By = Mapping[Any, float]


class Place(NamedTuple):
    """When a window was: ratios of throughput are taken by turn, those of tails by round.

    Attributes:
        round: some turns, together long enough for a percentile.
        turn: within a round; windows of one turn are seconds apart.
    """

    round: int
    turn: int = 0


@dataclass(frozen=True, slots=True)
class Window:
    """One measured window.

    Attributes:
        case: which graph on which form of body, as "dense rows".
        latencies_ns: (requests,), unrounded.
        generator_cpu: cores that the load generator kept busy.
        foreign_cpu: cores that neither it nor the server did.
    """

    server: str
    case: str
    connections: int
    at: Place
    seconds: float
    latencies_ns: NDArray[np.int64]
    server_s: float
    generator_cpu: float
    foreign_cpu: float

    @property
    def rps(self) -> float:
        """Requests answered a second."""
        return len(self.latencies_ns) / self.seconds


@dataclass(frozen=True, slots=True)
class Row:
    """A server on a case at a number of connections, over all rounds.

    Attributes:
        rps: of the turns: the median, the least and the greatest.
        p50_ms: of all rounds' requests together, as ``p99_ms``.
        p99_range_ms: the least and the greatest of the rounds.
        cpu_us: of the server's processes, a request.
    """

    server: str
    case: str
    connections: int
    requests: int
    rps: tuple[float, float, float]
    p50_ms: float
    p99_ms: float
    p99_range_ms: tuple[float, float]
    cpu_us: float
    generator_cpu: float
    foreign_cpu: float

    @property
    def is_saturated(self) -> bool:
        """Whether the generator was at its limit, so that the server can do more."""
        return self.generator_cpu > GENERATOR_LIMIT


@dataclass(frozen=True, slots=True)
class Claim:
    """A comparison that was wanted: one case of ours against one of the peers'.

    Attributes:
        rps: least ratio of requests a second.
        p99: least ratio of the peers' 99th percentile to ours.
    """

    name: str
    ours: str
    theirs: str
    rps: float
    p99: float | None = None


CLAIMS: Final = (
    Claim("a: same dense graph, same rows", "dense rows", "dense rows", 1.1, 1.0),
    Claim("b: same slim graph, same rows", "slim rows", "slim rows", 1.4, 2.0),
    Claim("c: slim int8 columns; dense plain rows", "int8 columns", "plain rows", 6.0),
    Claim("c: slim int8 ids; dense plain rows", "int8 ids", "plain rows", 6.0),
    Claim("c: slim int8 columns; dense split rows", "int8 columns", "dense rows", 6.0),
    Claim("c: slim int8 ids; dense split rows", "int8 ids", "dense rows", 6.0),
)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours against the best of the peers at a number of connections; above 1 ours is better.

    Attributes:
        best: the peer with the most requests a second, which all but ``least_p99`` are against.
        rps: by turn: the median, the least and the greatest.
        p95: its 95th percentile to ours, by round.
        p99: its 99th percentile to ours, by round; a host's pauses decide that of short requests.
        least_p99: the lowest 99th percentile of any peer to ours, by round, the median.
        yardstick: our requests a second to the bare endpoint's, by turn, the median.
    """

    claim: str
    connections: int
    best: str
    rps: tuple[float, float, float]
    p95: tuple[float, float, float]
    p99: tuple[float, float, float]
    least_p99: float
    yardstick: float | None
    wanted_rps: float
    wanted_p99: float | None

    @property
    def holds(self) -> bool:
        """Whether what was wanted was reached."""
        slow_enough = self.wanted_p99 is None or self.least_p99 >= self.wanted_p99
        return self.rps[0] >= self.wanted_rps and slow_enough


def rows(windows: Iterable[Window]) -> list[Row]:
    """One row a server, case and number of connections."""
    groups: dict[tuple[str, int, str], list[Window]] = {}
    for window in windows:
        key = (window.case, window.connections, window.server)
        groups.setdefault(key, []).append(window)
    return [_row(group) for _, group in sorted(groups.items())]


def ratios(windows: Sequence[Window], peers: Sequence[str], yardstick: str) -> list[Ratio]:
    """The claims, at every number of connections where both sides were measured."""
    table = {(row.server, row.case, row.connections): row for row in rows(windows)}
    found = []
    for claim in CLAIMS:
        for connections in sorted({row.connections for row in table.values()}):
            ours = table.get((OURS, claim.ours, connections))
            keys = [(peer, claim.theirs, connections) for peer in peers]
            theirs = [table[key] for key in keys if key in table]
            if ours is None or not theirs:
                continue
            best = max(theirs, key=lambda row: row.rps[0])
            bare = table.get((yardstick, claim.theirs, connections))
            found.append(
                Ratio(
                    claim=claim.name,
                    connections=connections,
                    best=best.server,
                    rps=rps_ratio(windows, ours, best),
                    p95=percentile_ratio(windows, best, ours, 95),
                    p99=percentile_ratio(windows, best, ours, 99),
                    least_p99=_least_p99_ratio(windows, theirs, ours),
                    yardstick=None if bare is None else rps_ratio(windows, ours, bare)[0],
                    wanted_rps=claim.rps,
                    wanted_p99=claim.p99,
                )
            )
    return found


def remarks(table: Iterable[Row]) -> list[str]:
    """What a reader must know before believing the table; one sentence each."""
    table = list(table)
    notes = [
        f"{row.server}, {row.case}, {row.connections} connections: the load generator was the "
        f"limit ({row.generator_cpu:.0%} of a core): the server can do more."
        for row in table
        if row.is_saturated
    ]
    busy = [row.foreign_cpu for row in table if row.foreign_cpu > FOREIGN_LIMIT]
    if busy:
        notes.append(
            f"In {len(busy)} of {len(table)} rows other processes kept up to {max(busy):.1f} cores "
            "busy: measure again on a quiet machine."
        )
    return notes


def _row(group: Sequence[Window]) -> Row:
    pooled = _pooled(group)
    p99 = list(_percentiles(group, 99).values())
    return Row(
        server=group[0].server,
        case=group[0].case,
        connections=group[0].connections,
        requests=len(pooled),
        rps=_spread([window.rps for window in group]),
        p50_ms=_percentile_ms(pooled, 50),
        p99_ms=_percentile_ms(pooled, 99),
        p99_range_ms=(min(p99), max(p99)),
        cpu_us=sum(window.server_s for window in group) / len(pooled) * 1e6,
        generator_cpu=max(window.generator_cpu for window in group),
        foreign_cpu=statistics.median(window.foreign_cpu for window in group),
    )


def rps_ratio(windows: Sequence[Window], first: Row, second: Row) -> tuple[float, float, float]:
    """Requests a second of one to those of the other, by turn: the median, least and greatest."""
    return _compared(_rps(windows, first), _rps(windows, second))


def cpu_ratio(windows: Sequence[Window], first: Row, second: Row) -> tuple[float, float, float]:
    """The same of CPU time a request."""
    return _compared(_cpu(windows, first), _cpu(windows, second))


def p50_ratio(windows: Sequence[Window], first: Row, second: Row) -> tuple[float, float, float]:
    """The same of medians."""
    return _compared(_medians(windows, first), _medians(windows, second))


def percentile_ratio(
    windows: Sequence[Window], first: Row, second: Row, percent: float
) -> tuple[float, float, float]:
    """The same of what so many of a hundred requests took at most, by round."""
    return _compared(*(_percentiles(_of(windows, row), percent) for row in (first, second)))


def _compared(first: By, second: By) -> tuple[float, float, float]:
    """The ratios of what both have: the median, the least and the greatest."""
    return _spread([first[at] / second[at] for at in sorted(first.keys() & second.keys())])


def _of(windows: Sequence[Window], row: Row) -> list[Window]:
    key = (row.server, row.case, row.connections)
    return [w for w in windows if (w.server, w.case, w.connections) == key]


def _rps(windows: Sequence[Window], row: Row) -> By:
    return {window.at: window.rps for window in _of(windows, row)}


def _cpu(windows: Sequence[Window], row: Row) -> By:
    return {window.at: window.server_s / len(window.latencies_ns) for window in _of(windows, row)}


def _medians(windows: Sequence[Window], row: Row) -> By:
    return {window.at: _percentile_ms(window.latencies_ns, 50) for window in _of(windows, row)}


def _percentiles(group: Sequence[Window], percent: float) -> By:
    """By round, of all its turns together."""
    rounds = sorted({window.at.round for window in group})
    return {
        number: _percentile_ms(_pooled([w for w in group if w.at.round == number]), percent)
        for number in rounds
    }


def _pooled(group: Sequence[Window]) -> NDArray[np.int64]:
    return np.concatenate([window.latencies_ns for window in group])


def _percentile_ms(latencies_ns: NDArray[np.int64], percent: float) -> float:
    """How long so many of a hundred took at most."""
    return float(np.percentile(latencies_ns, percent)) / 1e6


def _least_p99_ratio(windows: Sequence[Window], some: Sequence[Row], ours: Row) -> float:
    """By round: whichever of them was the luckiest in it."""
    least: dict[int, float] = {}
    for row in some:
        for number, p99_ms in _percentiles(_of(windows, row), 99).items():
            least[number] = min(p99_ms, least.get(number, p99_ms))
    return _compared(least, _percentiles(_of(windows, ours), 99))[0]


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and greatest; nothing in common is zero, as JSON knows no NaN."""
    return (statistics.median(values), min(values), max(values)) if values else (0.0, 0.0, 0.0)


def markdown_rows(table: Sequence[Row]) -> str:
    """The rows, a table a case."""
    blocks = []
    for case in sorted({row.case for row in table}):
        lines = [
            f"### {case}",
            "",
            "| server | connections | requests/s (min-max of turns) | p50 ms "
            "| p99 ms (min-max of rounds) | CPU µs/request | generator CPU |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        chosen = [row for row in table if row.case == case]
        for row in sorted(chosen, key=lambda row: (row.connections, -row.rps[0])):
            mark = " (its limit)" if row.is_saturated else ""
            lines.append(
                f"| {row.server} | {row.connections} "
                f"| {row.rps[0]:.0f} ({row.rps[1]:.0f}-{row.rps[2]:.0f}) | {row.p50_ms:.2f} "
                f"| {row.p99_ms:.2f} ({row.p99_range_ms[0]:.2f}-{row.p99_range_ms[1]:.2f}) "
                f"| {row.cpu_us:.0f} | {row.generator_cpu:.0%}{mark} |"
            )
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def markdown_ratios(compared: Sequence[Ratio]) -> str:
    """The claims as a table; above 1 ours is better."""
    lines = [
        "| ours; theirs | connections | best peer | requests/s (min-max of turns) | wanted "
        "| p95 of the best peer | its p99 (min-max of rounds) | lowest p99 of a peer | wanted "
        "| to bare ASGI | reached |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for ratio in compared:
        wanted = "" if ratio.wanted_p99 is None else f"{ratio.wanted_p99:g}x"
        bare = "" if ratio.yardstick is None else f"{ratio.yardstick:.2f}x"
        lines.append(
            f"| {ratio.claim} | {ratio.connections} | {ratio.best} | **{ratio.rps[0]:.2f}x** "
            f"({ratio.rps[1]:.2f}-{ratio.rps[2]:.2f}) | {ratio.wanted_rps:g}x "
            f"| {ratio.p95[0]:.2f}x | {ratio.p99[0]:.2f}x ({ratio.p99[1]:.2f}-{ratio.p99[2]:.2f}) "
            f"| {ratio.least_p99:.2f}x | {wanted} | {bare} | {'yes' if ratio.holds else 'no'} |"
        )
    return "\n".join(lines)


def markdown_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Entries with the same keys as a table with those for its head."""
    if not entries:
        return "(none)"
    head = list(entries[0])
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_cell(entry[key]) for key in head) + " |" for entry in entries]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def page(
    table: Sequence[Row],
    compared: Sequence[Ratio],
    about: Mapping[str, Any],
    servers: Sequence[Mapping[str, Any]],
    failed: Mapping[str, str],
) -> str:
    """Everything as one page of Markdown."""
    picture = "![requests a second and 99th percentiles](peers.png)" if table else ""
    sections = [
        "# Peers, side by side",
        markdown_ratios(compared),
        "Above 1 Slimrank is better. Medians of ratios: of throughput by turn, of percentiles by "
        "round.",
        "\n".join(f"- {note}" for note in remarks(table)),
        picture,
        "## What each is and does",
        markdown_table(servers),
        "\n".join(f"- **{name} was not measured**: {why}" for name, why in failed.items()),
        "## Measurements",
        markdown_rows(table),
        "## How",
        markdown_table([{"": key, "value": value} for key, value in about.items()]),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def as_json(
    table: Sequence[Row],
    compared: Sequence[Ratio],
    about: Mapping[str, Any],
    servers: Sequence[Mapping[str, Any]],
    failed: Mapping[str, str],
) -> str:
    """The same for machines."""
    found = {
        "about": dict(about),
        "ratios": [asdict(ratio) | {"holds": ratio.holds} for ratio in compared],
        "rows": [asdict(row) | {"is_saturated": row.is_saturated} for row in table],
        "servers": list(servers),
        "failed": dict(failed),
        "notes": remarks(table),
    }
    return json.dumps(found, indent=1)
