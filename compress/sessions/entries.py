"""Session rankers as reports list them: floors, uncompressed tables and coded ones, seeds averaged.

Runs that share a teacher repeat its figures, so it is listed once, and so is each floor. Its times
are told apart from run to run only by what else the machine did: the median is taken, and a coded
table's time is that median times its own run's ratio, in which both took turns.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any, Final, Literal

from compress.config import CompressError
from compress.sessions.costs import TABLE
from compress.sessions.metrics import METRICS, Interval
from model_store.bundle import Bundle
from model_store.manifest import SessionCard, SessionQuality

UNCOMPRESSED: Final = "uncompressed"
OF_A_TEACHER: Final = ("seeds", "data", "ranker", "train", "calibrate", "export")
OF_A_TABLE: Final = ("table", "finetune", "distill")
SHOWN_OPTIONS: Final = ("codes", "kept_as")  # the first of these that a table has is in its name


class ReportError(CompressError):
    """Bundles cannot be reported on together; the text says which, why and what to do."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure, and its 95 % interval where that is known."""

    value: float
    interval: Interval | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One ranker with one item table.

    Attributes:
        family: the method of its table, "" unless coded.
        seeds: how many the quality is a mean of; None for a floor, which has none.
        ratios: metric -> multiple of the uncompressed table's, paired.
        bytes: its bundle's, by part.
        smaller: how many times its item table is smaller than the uncompressed one.
        us: microseconds a request.
        speed: requests it answers in the uncompressed table's time for one.
    """

    label: str
    kind: Literal["floor", "dense", "coded"]
    quality: SessionQuality
    family: str = ""
    seeds: int | None = None
    ratios: Mapping[str, Estimate] = field(default_factory=dict)
    bytes: Mapping[str, int] = field(default_factory=dict)
    smaller: float | None = None
    us: float | None = None
    speed: float | None = None

    @property
    def bundle_bytes(self) -> int | None:
        """Of the whole bundle; None if unknown."""
        return sum(self.bytes.values()) or None

    def estimate(self, metric: str) -> Estimate | None:
        """A metric with its interval; None if it was not measured."""
        value = self.quality.metrics.get(metric)
        return None if value is None else Estimate(value, self.quality.intervals.get(metric))


def session_card(bundle: Bundle) -> SessionCard:
    """The card of a session ranker's bundle.

    Raises:
        ReportError: the bundle holds a click-through ranker.
    """
    card = bundle.manifest.card
    if not isinstance(card, SessionCard):
        raise ReportError(
            f"{bundle.root}: holds a click-through ranker, but only session rankers are compared; "
            "report on it alone, as HTML"
        )
    return card


def entries(cards: Sequence[SessionCard]) -> list[Entry]:
    """Floors, then each teacher followed by its coded tables; cards without results add none."""
    floors = {name: floor for card in reversed(cards) for name, floor in card.floors.items()}
    found = [Entry(name, "floor", quality) for name, quality in floors.items()]
    runs = _by_teacher(card for card in cards if card.results)
    prefixes = _prefixes([cards[0] for cards in runs])
    for prefix, cards_of_one in zip(prefixes, runs, strict=True):
        found += _of_teacher(prefix, cards_of_one)
    return found


def distinct(cards: Iterable[SessionCard]) -> list[SessionCard]:
    """Each run once: both its bundles hold its card, and a repeated run finds the same."""
    found: dict[str, SessionCard] = {}
    for card in cards:
        found.setdefault(card.model_dump_json(exclude={"dense", "coded", "achieved"}), card)
    return list(found.values())


def _by_teacher(cards: Iterable[SessionCard]) -> list[list[SessionCard]]:
    runs: dict[str, list[SessionCard]] = {}
    for card in cards:
        seeds = "".join(
            f"{result.seed} {result.dense.model_dump_json()}" for result in card.results
        )
        runs.setdefault(f"{card.ranker} {seeds}", []).append(card)
    return list(runs.values())


def _prefixes(cards: Sequence[SessionCard]) -> list[str]:
    if len(cards) == 1:
        return [""]
    options = [_options(card.config, OF_A_TEACHER) for card in cards]
    return [f"{name}, " for name in told_apart([card.ranker for card in cards], options)]


def _of_teacher(prefix: str, cards: Sequence[SessionCard]) -> list[Entry]:
    first, times = cards[0], [card.dense.us_per_request for card in cards]
    us = median(known) if (known := [time for time in times if time]) else None
    teacher = Entry(
        f"{prefix}{UNCOMPRESSED}",
        "dense",
        mean_quality([result.dense for result in first.results]),
        seeds=len(first.results),
        bytes=first.dense.bytes,
        us=us,
    )
    options = [_options(card.config, OF_A_TABLE) for card in cards]
    names = told_apart([table_name(card) for card in cards], options)
    tables = zip(cards, names, strict=True)
    return [teacher, *(_coded(card, f"{prefix}{name}", us) for card, name in tables)]


def _coded(card: SessionCard, label: str, teacher_us: float | None) -> Entry:
    us, theirs = card.coded.us_per_request, card.dense.us_per_request
    speed = theirs / us if us and theirs else None
    before, after = card.dense.bytes.get(TABLE), card.coded.bytes.get(TABLE)
    return Entry(
        label,
        "coded",
        mean_quality([result.coded for result in card.results]),
        family=card.table,
        seeds=len(card.results),
        ratios=ratios(card),
        bytes=card.coded.bytes,
        smaller=before / after if before and after else None,
        us=teacher_us / speed if teacher_us and speed else us,
        speed=speed,
    )


def table_name(card: SessionCard) -> str:
    """A table's method and the option that tells its size, as "rq 8x256"."""
    options = _options(card.config, ("table",))
    shown = [str(options[key]) for key in SHOWN_OPTIONS if key in options]
    return " ".join([card.table, *shown[:1]])


def told_apart(names: Sequence[str], options: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names; equal ones with the options in which they differ, or else with a number."""
    labels: list[str] = []
    for name, own in zip(names, options, strict=True):
        same = [other for called, other in zip(names, options, strict=True) if called == name]
        differ = [key for key in own if any(other.get(key) != own[key] for other in same)]
        label = ", ".join([name, *(f"{key} {own[key]}" for key in differ)])
        again = sum(earlier == label or earlier.startswith(f"{label} #") for earlier in labels)
        labels.append(f"{label} #{again + 1}" if again else label)
    return labels


def _options(config: Mapping[str, Any], sections: Iterable[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for section in sections:
        value = config.get(section)
        if isinstance(value, Mapping):
            dotted = "" if section in {"ranker", "table"} else f"{section}."
            found |= {f"{dotted}{key}": option for key, option in value.items()}
        elif value is not None:
            found[section] = value
    return found


def mean_quality(qualities: Sequence[SessionQuality]) -> SessionQuality:
    """Means over seeds, of the bounds of intervals too; what some seed lacks is left out.

    All seeds meet the same test sessions, whose choice the intervals are about, so more seeds make
    them no narrower.
    """
    intervals = [quality.intervals for quality in qualities]
    low = _means([{name: bounds[0] for name, bounds in one.items()} for one in intervals])
    high = _means([{name: bounds[1] for name, bounds in one.items()} for one in intervals])
    return SessionQuality(
        metrics=_means([quality.metrics for quality in qualities]),
        intervals={name: (low[name], high[name]) for name in low},
        repeated=_means([quality.repeated for quality in qualities]),
        new=_means([quality.new for quality in qualities]),
        rows=qualities[0].rows,
        sessions=qualities[0].sessions,
    )


def _means(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    shared = [name for name in figures[0] if all(name in one for one in figures)]
    return {name: fmean(one[name] for one in figures) for name in shared}


def ratios(card: SessionCard) -> dict[str, Estimate]:
    """Metric -> coded over uncompressed; with an interval where the card tells it."""
    if not card.results:
        return {}
    coded = _means([result.coded.metrics for result in card.results])
    dense = _means([result.dense.metrics for result in card.results])
    found = {
        metric: Estimate(coded[metric] / dense[metric])
        for metric in METRICS
        if coded.get(metric) is not None and dense.get(metric)
    }
    for metric in METRICS:
        told = [card.achieved.get(f"{metric} ratio{part}") for part in ("", ", low", ", high")]
        match told:
            case [float(value), float(low), float(high)]:
                found[metric] = Estimate(value, (low, high))
    return found
