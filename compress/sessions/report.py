"""What a run of the session line came to: in words, and as one HTML page with inlined plots."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import matplotlib as mpl

from compress.curves import Curve
from compress.report import STYLE, Plot, Row, history, share, svg, template
from compress.sessions.costs import TABLE
from compress.sessions.entries import (
    Entry,
    Estimate,
    entries,
    mean_quality,
    ratios,
    session_card,
    table_name,
)
from compress.sessions.metrics import METRICS
from compress.sessions.plots import (
    NARROW,
    bytes_plot,
    height,
    quality_plot,
    split_plot,
    training_plot,
)
from model_store.bundle import Bundle
from model_store.manifest import Resources, SessionCard, SessionQuality, SessionSeed

SHOWN: Final = ("P@10", "MRR@10", "NDCG@10", "P@20", "MRR@20", "NDCG@20")
SPLIT: Final = ("P@20", "MRR@20", "NDCG@10")
NOTHING: Final = "-"


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure of a table, and the interval under it."""

    text: str
    note: str = ""


def lines(card: SessionCard) -> Iterator[str]:
    """A table of quality, then what was saved."""
    rankers = {
        **{name: [floor] for name, floor in card.floors.items()},
        card.ranker: [result.dense for result in card.results],
        card.table: [result.coded for result in card.results],
    }
    width = max(map(len, rankers)) + 2
    yield f"{'':{width}}" + "".join(f"{name:>9}" for name in SHOWN)
    for name, qualities in rankers.items():
        if qualities:
            yield f"{name:{width}}" + _figures(mean_quality(qualities))
    for name, value in card.achieved.items():
        yield f"{name}: {value:,.4g}"


def _figures(quality: SessionQuality) -> str:
    shares = (quality.metrics.get(name) for name in SHOWN)
    return "".join(f"{NOTHING if share is None else f'{100 * share:.2f}':>9}" for share in shares)


def page(bundle: Bundle) -> str:
    """The HTML of one bundle's page.

    Raises:
        ReportError: the bundle holds a click-through ranker.
    """
    card, session = session_card(bundle), bundle.manifest.session
    listed = entries([card])
    vectors = session.vectors.type if session and session.vectors else "none"
    with mpl.rc_context(STYLE):
        drawn = plots(card, listed, history(bundle))
    return template("sessions/report.html").render(
        manifest=bundle.manifest,
        card=card,
        table=table_name(card),
        vectors=vectors,
        digest=bundle.digest,
        tiles=tiles(card),
        rankers=[entry.label for entry in listed],
        quality=quality_rows(card, listed),
        split_metrics=SPLIT,
        split=split_rows(listed),
        costs=costs(card),
        codes=codes(card),
        seeds=[seed_row(result) for result in card.results],
        averaged=averaged(listed),
        plots=drawn,
        config=json.dumps(card.config, indent=2),
    )


def tiles(card: SessionCard) -> list[tuple[str, str]]:
    """The figures that lead the page."""
    found, kept = [], ratios(card).get("NDCG@10")
    if kept:
        found.append(("of the uncompressed table's NDCG@10", f"{kept.value:.1%}"))
    sizes = (
        ("smaller item table", card.dense.bytes.get(TABLE), card.coded.bytes.get(TABLE)),
        ("smaller bundle", sum(card.dense.bytes.values()), sum(card.coded.bytes.values())),
        ("the speed, a request", card.dense.us_per_request, card.coded.us_per_request),
    )
    return found + [
        (what, f"{before / after:.3g}x") for what, before, after in sizes if before and after
    ]


def percent(found: Estimate | None) -> Cell:
    """A share as percent."""
    return _cell(found, 100, 2)


def multiple(found: Estimate | None) -> Cell:
    """A ratio as it is."""
    return _cell(found, 1, 3)


def _cell(found: Estimate | None, scale: float, digits: int) -> Cell:
    if found is None:
        return Cell(NOTHING)
    note = ""
    if found.interval:
        low, high = (f"{scale * bound:.{digits}f}" for bound in found.interval)
        note = f"[{low}, {high}]"
    return Cell(f"{scale * found.value:.{digits}f}", note)


def quality_rows(card: SessionCard, listed: Sequence[Entry]) -> list[tuple[str, list[Cell]]]:
    """A metric a row, a ranker a column, and last the coded table's ratio to its teacher's."""
    kept = ratios(card)
    return [
        (
            metric,
            [*(percent(entry.estimate(metric)) for entry in listed), multiple(kept.get(metric))],
        )
        for metric in METRICS
        if any(metric in entry.quality.metrics for entry in listed)
    ]


def _percents(metric: str, listed: Sequence[Entry]) -> list[Cell]:
    return [percent(entry.estimate(metric)) for entry in listed]


def split_rows(listed: Sequence[Entry]) -> list[tuple[str, list[Cell]]]:
    """A ranker a row: its quality on repeated targets, then on new ones."""
    return [
        (entry.label, [_share(part, metric) for part in _parts(entry) for metric in SPLIT])
        for entry in listed
        if any(_parts(entry))
    ]


def _parts(entry: Entry) -> tuple[Mapping[str, float], Mapping[str, float]]:
    return entry.quality.repeated, entry.quality.new


def _share(part: Mapping[str, float], metric: str) -> Cell:
    return percent(Estimate(part[metric]) if metric in part else None)


def costs(card: SessionCard) -> list[Row]:
    """Uncompressed beside coded: bytes by part, then what it takes to answer."""
    dense, coded = card.dense, card.coded
    parts = sorted(_both(dense.bytes, coded.bytes), key=lambda part: -max(part[1:]))
    figures = [
        *((f"bytes: {part}", a, b) for part, a, b in parts),
        ("bytes of the whole bundle", sum(dense.bytes.values()), sum(coded.bytes.values())),
        ("numbers in table and graph", dense.parameters, coded.parameters),
        *((f"FLOPs: {part}", a, b) for part, a, b in _both(dense.flops_parts, coded.flops_parts)),
    ]
    rows = [Row(what, f"{a:,}", f"{b:,}", share(a, b)) for what, a, b in figures if a or b]
    return [*rows, *_time(dense, coded)]


def _both(dense: Mapping[str, int], coded: Mapping[str, int]) -> list[tuple[str, int, int]]:
    return [(part, dense.get(part, 0), coded.get(part, 0)) for part in {**dense, **coded}]


def _time(dense: Resources, coded: Resources) -> Iterator[Row]:
    a, b = dense.us_per_request, coded.us_per_request
    if a and b:
        yield Row("µs a request", f"{a:,.1f}", f"{b:,.1f}", f"{a / b:.2f}x the speed")


def codes(card: SessionCard) -> list[tuple[str, str]]:
    """What is to be known of the coded table; ratios of quality and time stand elsewhere."""
    return [
        (name, _achieved(name, value))
        for name, value in card.achieved.items()
        if name != "speedup" and not name.startswith(METRICS)
    ]


def _achieved(name: str, value: float) -> str:
    if "compression" in name:
        return f"{value:,.2f}x"
    if name == "code usage":
        return f"{value:.1%} of the entropy of equal use"
    return f"{value:,.4g}" if value % 1 else f"{value:,.0f}"


def seed_row(result: SessionSeed) -> tuple[str, list[str]]:
    """A seed's (rows, uncompressed and coded quality by metric), as texts."""
    figures = [
        _share(quality.metrics, metric).text
        for metric in SPLIT
        for quality in (result.dense, result.coded)
    ]
    return str(result.seed), [f"{result.dense.rows:,}", *figures]


def averaged(listed: Sequence[Entry]) -> str:
    """What the tables' figures are means and intervals of, as a sentence."""
    counts = sorted({entry.seeds for entry in listed if entry.seeds})
    if not counts:
        return "Nothing was judged."
    several = " or ".join(map(str, counts))
    seeds = "one seed" if counts == [1] else f"means over {several} seeds"
    rows = listed[-1].quality
    return (
        f"In percent; {seeds}, {rows.rows:,} test prefixes of {rows.sessions:,} sessions. In "
        "brackets: 95 % intervals by bootstrap over sessions, the seeds as they are."
    )


def plots(
    card: SessionCard, listed: Sequence[Entry], curves: Mapping[str, Curve]
) -> dict[str, Plot]:
    """Every plot that there are figures for, by the place it takes in the page."""
    found = entry_plots(listed, NARROW)
    if card.dense.bytes or card.coded.bytes:
        found["bytes"] = Plot(
            "Bytes by part", svg(bytes_plot, card, size=(NARROW, 2.0)), "As they lie on disk."
        )
    if curves.get("train") or curves.get("finetune"):
        found["training"] = Plot(
            "Training",
            svg(training_plot, curves, size=(NARROW, 2.5)),
            "The published seed's. The weights kept are those of the best validation NDCG@20. The "
            "student's loss has the teacher's part in it and compares with its own only.",
        )
    return found


def entry_plots(listed: Sequence[Entry], wide: float) -> dict[str, Plot]:
    """Quality by ranker, and on repeated and new targets, so many inches wide."""
    if not listed:
        return {}
    found = {
        "quality": Plot(
            "Quality by ranker",
            svg(quality_plot, listed, size=(wide, height(len(listed)))),
            "Bars: 95 % intervals by bootstrap over sessions. All rankers answered the same "
            "sessions, so bars of two that differ for certain can overlap.",
        )
    }
    split = [entry for entry in listed if any(_parts(entry))]
    if split:
        found["split"] = Plot(
            "Repeated and new targets",
            svg(split_plot, split, size=(wide, height(len(split)) + 0.35)),
            "A target is repeated if it stands in its session already.",
        )
    return found
