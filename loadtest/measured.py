"""From recorded windows to rows, ratios and knees. Pure: no files, no processes.

A window whose generator was saturated says nothing of the service: it is shown, marked, and enters
no ratio and no knee. Times of the other rounds are pooled (histograms add up); ratios are taken by
round, because the sides of one round ran minutes apart at most, on the same machine.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hdrh.histogram import HdrHistogram

from loadtest import histograms, sides
from loadtest.shapes import Level

GENERATOR_LIMIT: Final = 0.80
LAG_LIMIT_MS: Final = 1.0
FOREIGN_LIMIT: Final = 0.2
FEWEST_FOR_P99: Final = 500  # answers: five of them lie above it
FEWEST_FOR_P999: Final = 5000
KNEE: Final = 3.0
MOST_UNSENT: Final = 0.01
PLAIN: Final = (
    "side",
    "round",
    "seconds",
    "failures",
    "unsent",
    "generator_cpu",
    "service_cpu",
    "foreign_cpu",
)


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some rounds, and their range."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Of one value or more."""
        held = list(values)
        return cls(statistics.median(held), min(held), max(held))


@dataclass(frozen=True, slots=True)
class Measured:
    """One measured window of one side in one round.

    Attributes:
        failures: requests that failed inside the window.
        unsent: arrivals that nobody was free to send before the window ended; ``times`` counts them
            with how long they had waited by then.
        times: from when a request was due until its answer was there.
        after_send: the same from when it really left.
        lag: how late requests left though a user was free.
        generator_cpu: cores that the load generator kept busy.
        service_cpu: cores that the service and its workers kept busy.
        foreign_cpu: cores that everybody else on the machine kept busy.
    """

    side: str
    round: int
    level: Level
    seconds: float
    failures: int
    unsent: int
    times: HdrHistogram
    after_send: HdrHistogram
    lag: HdrHistogram
    generator_cpu: float
    service_cpu: float
    foreign_cpu: float

    @property
    def answered(self) -> int:
        """Requests answered rightly."""
        return int(self.after_send.get_total_count())

    @property
    def rps(self) -> float:
        """The same a second."""
        return self.answered / self.seconds

    @property
    def service_us(self) -> float:
        """CPU microseconds that the service spent on a request."""
        return _divide(self.service_cpu * self.seconds * 1e6, self.answered)

    @property
    def overloaded(self) -> bool:
        """Whether arrivals were left over that nobody was free to send."""
        return self.unsent > MOST_UNSENT * float(self.times.get_total_count())

    @property
    def lag_ms(self) -> float:
        """How late the generator was by itself, 99th percentile."""
        return histograms.ms(self.lag, 99.0)

    @property
    def saturated(self) -> bool:
        """Whether the generator, rather than the service, may be what was measured."""
        return self.generator_cpu > GENERATOR_LIMIT or self.lag_ms > LAG_LIMIT_MS


@dataclass(frozen=True, slots=True)
class Row:
    """One side at one level of load, over its rounds. Times in ms, from unrounded ones.

    Attributes:
        rounds: that the row is made of: those whose generator was fit, or all if none was.
        saturated: whether none was; such a row supports no claim.
        p999_ms: None where fewer than 5000 answers make it a matter of chance.
        after_send_p99_ms: p99 counted from when requests were really sent.
    """

    side: str
    users: int
    rate: float | None
    rounds: int
    saturated: bool
    requests: int
    failures: int
    unsent: int
    rps: Spread
    p50_ms: float
    p99_ms: float
    p999_ms: float | None
    max_ms: float
    after_send_p99_ms: float
    lag_p99_ms: float
    generator_cpu: float
    service_cpu: float
    service_us: float
    foreign_cpu: float

    @property
    def level(self) -> Level:
        """The load."""
        return Level(self.users, self.rate)


@dataclass(frozen=True, slots=True)
class Ratio:
    """A side against dense at one level of load; above 1 it is better, in every field."""

    side: str
    users: int
    rate: float | None
    rps: Spread
    p50: Spread
    p99: Spread
    service_us: Spread

    @property
    def level(self) -> Level:
        """The load."""
        return Level(self.users, self.rate)


@dataclass(frozen=True, slots=True)
class Knee:
    """The highest arrival rate that a side bears.

    Attributes:
        rate: of each round the last rate, from the lowest up, at which p99 (from when requests were
            due) is within ``limit_ms``, no request failed and hardly an arrival was left over; 0
            where not even the lowest was borne.
        limit_ms: ``KNEE`` times the p99 at the lowest rate, rounds pooled whose generator was fit.
        at_least: whether in half of the rounds or more it was not the service that set an end: no
            rate was too high, or the generator gave out first, or nothing was asked.
    """

    side: str
    rate: Spread
    limit_ms: float
    at_least: bool


def read(windows: Iterable[Mapping[str, Any]]) -> list[Measured]:
    """The windows that the Locust file wrote, each with its side and round."""
    return [
        Measured(
            level=Level(window["users"], window["rate"]),
            times=histograms.decoded(window["times"]),
            after_send=histograms.decoded(window["after_send"]),
            lag=histograms.decoded(window["lag"]),
            **{name: window[name] for name in PLAIN},
        )
        for window in windows
    ]


def rows(measured: Iterable[Measured]) -> list[Row]:
    """One row a side and level: closed loops before open ones, dense before slim before int8."""
    groups: dict[tuple[Level, str], list[Measured]] = {}
    for window in measured:
        groups.setdefault((window.level, window.side), []).append(window)
    return [_row(groups[key]) for key in sorted(groups, key=_order)]


def ratios(measured: Iterable[Measured]) -> list[Ratio]:
    """The other sides against dense by level; of each field the median round, with the range."""
    windows = [window for window in measured if window.answered and not window.saturated]
    dense = {(w.level, w.round): w for w in windows if w.side == sides.DENSE}
    pairs: dict[tuple[Level, str], list[tuple[Measured, Measured]]] = {}
    for window in windows:
        partner = dense.get((window.level, window.round))
        if partner is not None and window.side != sides.DENSE:
            pairs.setdefault((window.level, window.side), []).append((partner, window))
    return [_ratio(pairs[key]) for key in sorted(pairs, key=_order)]


def knees(measured: Sequence[Measured], multiple: float = KNEE) -> list[Knee]:
    """The knee of every side that was driven by a timetable; see ``Knee``."""
    found = []
    for side in sides.SIDES:
        windows = [w for w in measured if w.side == side and w.level.rate is not None]
        if windows:
            found.append(_knee(side, windows, multiple))
    return found


def remarks(table: Iterable[Row], *, apart: bool) -> list[str]:
    """What a reader must know before believing the table, a sentence or two each.

    Args:
        table: the rows.
        apart: whether service and generator had cores of their own.
    """
    held = list(table)
    notes = [] if apart else ["Service and load generator shared their cores."]
    marked = [row for row in held if row.saturated]
    if marked:
        named = ", ".join(f"{row.side} at {row.level.name}" for row in marked)
        notes.append(
            f"The load generator was the limit (over {GENERATOR_LIMIT:.0%} of a core, or more than "
            f"{LAG_LIMIT_MS:g} ms late at its p99) in {named}: these rows say nothing of "
            "the service and enter no ratio and no knee."
        )
    failed = [row for row in held if row.failures]
    if failed:
        named = ", ".join(f"{row.side} at {row.level.name}" for row in failed)
        notes.append(
            f"Requests failed in {named}: no time counts them, so that these may look faster than "
            "they are."
        )
    few = [row for row in held if row.requests + row.unsent < FEWEST_FOR_P99]
    if few:
        notes.append(
            f"In {len(few)} of {len(held)} rows p99 is of fewer than {FEWEST_FOR_P99} answers, a "
            "matter of chance, and so is a knee that rests on it: measure longer."
        )
    disturbed = [row for row in held if row.foreign_cpu > FOREIGN_LIMIT]
    if disturbed:
        most = max(row.foreign_cpu for row in disturbed)
        notes.append(
            f"Other processes kept up to {most:.1f} cores busy in {len(disturbed)} of {len(held)} "
            "rows: measure again on a quiet machine."
        )
    return notes


def believed(group: Sequence[Measured]) -> Sequence[Measured]:
    """The windows that a row is made of: those whose generator was fit, or all if none was."""
    return [window for window in group if not window.saturated] or group


def _row(group: Sequence[Measured]) -> Row:
    used = believed(group)
    times = histograms.pooled(window.times for window in used)
    after_send = histograms.pooled(window.after_send for window in used)
    enough = times.get_total_count() >= FEWEST_FOR_P999
    return Row(
        side=group[0].side,
        users=group[0].level.users,
        rate=group[0].level.rate,
        rounds=len(used),
        saturated=all(window.saturated for window in group),
        requests=sum(window.answered for window in used),
        failures=sum(window.failures for window in group),
        unsent=sum(window.unsent for window in used),
        rps=Spread.of(window.rps for window in used),
        p50_ms=histograms.ms(times, 50.0),
        p99_ms=histograms.ms(times, 99.0),
        p999_ms=histograms.ms(times, 99.9) if enough else None,
        max_ms=float(times.get_max_value()) / 1000,
        after_send_p99_ms=histograms.ms(after_send, 99.0),
        lag_p99_ms=max(window.lag_ms for window in used),
        generator_cpu=max(window.generator_cpu for window in used),
        service_cpu=statistics.median(window.service_cpu for window in used),
        service_us=statistics.median(window.service_us for window in used),
        foreign_cpu=statistics.median(window.foreign_cpu for window in used),
    )


def _ratio(pairs: Sequence[tuple[Measured, Measured]]) -> Ratio:
    level = pairs[0][1].level

    def times_better(value: Callable[[Measured], float]) -> Spread:
        return Spread.of(_divide(value(dense), value(other)) for dense, other in pairs)

    return Ratio(
        side=pairs[0][1].side,
        users=level.users,
        rate=level.rate,
        rps=Spread.of(_divide(other.rps, dense.rps) for dense, other in pairs),
        p50=times_better(lambda window: histograms.ms(window.times, 50.0)),
        p99=times_better(lambda window: histograms.ms(window.times, 99.0)),
        service_us=times_better(lambda window: window.service_us),
    )


def _knee(side: str, windows: Sequence[Measured], multiple: float) -> Knee:
    lowest = min(_rate(window) for window in windows)
    fit = [w for w in windows if _rate(w) == lowest and not w.saturated]
    limit_ms = multiple * histograms.ms(histograms.pooled(w.times for w in fit), 99.0)
    climbs = [
        _climb([w for w in windows if w.round == number], limit_ms)
        for number in sorted({window.round for window in windows})
    ]
    open_ends = sum(open_end for _, open_end in climbs)
    return Knee(
        side=side,
        rate=Spread.of(rate for rate, _ in climbs),
        limit_ms=limit_ms,
        at_least=2 * open_ends >= len(climbs),
    )


def _climb(windows: Sequence[Measured], limit_ms: float) -> tuple[float, bool]:
    # The last rate within the limit, and whether it was not the service that set it.
    last = 0.0
    for window in sorted(windows, key=_rate):
        if window.saturated or not window.times.get_total_count():
            return last, True
        if window.failures or window.overloaded or histograms.ms(window.times, 99.0) > limit_ms:
            return last, False
        last = _rate(window)
    return last, True


def _rate(window: Measured) -> float:
    return window.level.rate or 0.0


def _order(key: tuple[Level, str]) -> tuple[bool, float, int]:
    level, side = key
    of_level = level.users if level.rate is None else level.rate
    return level.rate is not None, of_level, sides.SIDES.index(side)


def _divide(above: float, below: float) -> float:
    # Nothing answered, or no CPU time seen: there is no ratio, and JSON knows no NaN.
    return above / below if below else 0.0
