"""One run against an earlier one of the same bundles, settings and machine. Pure.

Each value's ratio is of the rounds' medians; its spread is from the least favourable pair of rounds
to the most favourable. Above 1 the later run is better, in every row. A change whose spread holds 1
may be chance; of one round there is no spread, and so no verdict.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

from loadtest import histograms, measured, sides
from loadtest.measured import Measured, Spread
from loadtest.shapes import Level

WITHIN: Final = "within the spread"
UNKNOWN: Final = "one round"


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one value; above 1 it is better now.

    Attributes:
        side: whose; "slim / dense" of a value relative to dense's, which a machine that is faster
            as a whole leaves alone.
        load: the level's name; empty for the knee.
        value: what is compared.
        rounds: of the run that has fewer.
    """

    side: str
    load: str
    value: str
    ratio: Spread
    rounds: int

    @property
    def verdict(self) -> str:
        """In words."""
        if self.rounds < 2:  # noqa: PLR2004 - of one there is no spread
            return UNKNOWN
        if self.ratio.low > 1:
            return "better"
        return "worse" if self.ratio.high < 1 else WITHIN


def differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """Why two runs cannot be compared, a sentence each; none if they can."""
    found = [
        f"{part}: {name} is {now[part].get(name)}, was {then[part].get(name)}"
        for part in ("machine", "settings")
        for name in sorted({*now[part], *then[part]})
        if now[part].get(name) != then[part].get(name)
    ]
    digests = [
        {side: bundle["digest"] for side, bundle in about["bundles"].items()}
        for about in (now, then)
    ]
    return found + [
        f"bundle {side}: {digests[0].get(side)}, was {digests[1].get(side)}"
        for side in sides.SIDES
        if digests[0].get(side) != digests[1].get(side)
    ]


def changes(now: Sequence[Measured], then: Sequence[Measured]) -> list[Change]:
    """Every value that both runs have, of rounds whose generator was fit."""
    current, earlier = _by_level(now), _by_level(then)
    found = []
    for level in dict.fromkeys(window.level for window in now):
        for value, worth in _values(level):
            for side in sides.SIDES:
                key = (side, level)
                if key in current and key in earlier:
                    found.append(_change(key, value, worth, current[key], earlier[key]))
    return found + _knees(now, then) + _relative(found)


def markdown(found: Sequence[Change], then: str, now: str) -> str:
    """The changes as a table.

    Args:
        found: the changes.
        then: when the earlier run was made.
        now: when the later one was.
    """
    if not found:
        return f"The runs of {then} and {now} have no load in common: give both the same --rates."
    return "\n".join(
        [
            f"# The run of {now} against that of {then}",
            "",
            "Above 1 the later run is better; the spread is over all pairs of rounds.",
            "",
            "| model | load | value | ratio (spread) | |",
            "|---|---|---|---:|---|",
            *(
                f"| {change.side} | {change.load} | {change.value} | {change.ratio.middle:.2f}x "
                f"({change.ratio.low:.2f}-{change.ratio.high:.2f}) | {change.verdict} |"
                for change in found
            ),
        ]
    )


Worth = Callable[[Measured], float]  # the more, the better


def _values(level: Level) -> list[tuple[str, Worth]]:
    times: list[tuple[str, Worth]] = [
        ("p50", lambda window: 1 / histograms.ms(window.times, 50.0)),
        ("p99", lambda window: 1 / histograms.ms(window.times, 99.0)),
    ]
    if level.rate is not None:
        return times
    return [("answers/s", lambda window: window.rps), *times]


def _by_level(windows: Sequence[Measured]) -> dict[tuple[str, Level], list[Measured]]:
    groups: dict[tuple[str, Level], list[Measured]] = {}
    for window in windows:
        if not window.saturated and window.answered:
            groups.setdefault((window.side, window.level), []).append(window)
    return groups


def _change(
    key: tuple[str, Level],
    value: str,
    worth: Worth,
    now: Sequence[Measured],
    then: Sequence[Measured],
) -> Change:
    after, before = [worth(window) for window in now], [worth(window) for window in then]
    pairs = [a / b for a, b in product(after, before)]
    middle = Spread.of(after).middle / Spread.of(before).middle
    side, level = key
    spread = Spread(middle, min(pairs), max(pairs))
    return Change(side, level.name, value, spread, min(len(now), len(then)))


def _knees(now: Sequence[Measured], then: Sequence[Measured]) -> list[Change]:
    # Of a knee that is only a lower bound there is no ratio.
    earlier = {knee.side: knee for knee in measured.knees(then) if not knee.at_least}
    rounds = min(len({window.round for window in run}) for run in (now, then))
    found = []
    for knee in (knee for knee in measured.knees(now) if not knee.at_least):
        was = earlier.get(knee.side)
        if was is not None and knee.rate.low and was.rate.low:
            ratio = Spread(
                knee.rate.middle / was.rate.middle,
                knee.rate.low / was.rate.high,
                knee.rate.high / was.rate.low,
            )
            found.append(Change(knee.side, "", "knee", ratio, rounds))
    return found


def _relative(found: Sequence[Change]) -> list[Change]:
    dense = {(c.load, c.value): (c.ratio, c.rounds) for c in found if c.side == sides.DENSE}
    return [
        Change(
            f"{change.side} / {sides.DENSE}",
            change.load,
            change.value,
            Spread(
                change.ratio.middle / was.middle,
                change.ratio.low / was.high,
                change.ratio.high / was.low,
            ),
            min(change.rounds, rounds),
        )
        for change in found
        if change.side != sides.DENSE and (change.load, change.value) in dense
        for was, rounds in [dense[change.load, change.value]]
    ]
