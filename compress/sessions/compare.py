"""Several session rankers' bundles side by side: a page, a Markdown table, a picture.

Only what was judged on the same test prefixes stands on one axis.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from compress.report import STYLE, Plot, svg, template
from compress.sessions import report
from compress.sessions.costs import TABLE
from compress.sessions.entries import Entry, ReportError, distinct, entries, session_card
from compress.sessions.plots import WIDE, price_height, price_plot
from compress.sessions.report import (
    NOTHING,
    SPLIT,
    Cell,
    averaged,
    entry_plots,
    multiple,
    percent,
)
from model_store.bundle import Bundle
from model_store.manifest import SessionCard

DPI: Final = 160
KILO: Final = 1000
JUDGED_ON: Final = ("data hash", "test prefixes")
COSTS: Final = ("bundle", "item table", "smaller", "µs a request", "speed")
PRICED: Final = (
    "Bundle and item table: bytes on disk; smaller: the item table; µs a request: encoding a "
    "session and scoring the candidates; speed: against the uncompressed table, timed in turn. Of "
    "several runs, speeds are applied to the median of the uncompressed table's times."
)


@dataclass(frozen=True, slots=True)
class Line:
    """A ranker's line in the table.

    Attributes:
        cells: by the order of `COSTS`, then quality and ratios by that of `SPLIT`.
    """

    entry: Entry
    cells: tuple[Cell, ...]


def write(bundles: Sequence[Bundle], path: Path) -> None:
    """Write what the file's name asks for: .html, .md, .png or .svg.

    Raises:
        ReportError: the name asks for something else, or the bundles cannot be compared.
    """
    if (writer := WRITERS.get(path.suffix.lower())) is None:
        raise ReportError(
            f"{path}: expected a file that ends in {', '.join(WRITERS)}, not in {path.suffix!r}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    writer(bundles, path)


def write_page(bundles: Sequence[Bundle], path: Path) -> None:
    """One bundle's page, or the page that compares several."""
    path.write_text(report.page(bundles[0]) if len(bundles) == 1 else page(bundles))


def write_markdown(bundles: Sequence[Bundle], path: Path) -> None:
    """The table alone."""
    path.write_text(markdown(entries(comparable(bundles))))


def write_picture(bundles: Sequence[Bundle], path: Path) -> None:
    """Quality against its price, alone."""
    listed = entries(comparable(bundles))
    if not (tall := price_height(listed)):
        raise ReportError(f"{path}: the bundles tell neither bytes nor times, so there is no plot")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDE, tall), layout="constrained")
        price_plot(figure, listed)
        dated = path.suffix.lower() == ".svg"  # the same bundles make the same file
        figure.savefig(path, dpi=DPI, metadata={"Date": None} if dated else None)


WRITERS: Final[Mapping[str, Callable[[Sequence[Bundle], Path], None]]] = MappingProxyType(
    {".html": write_page, ".md": write_markdown, ".png": write_picture, ".svg": write_picture}
)


def comparable(bundles: Sequence[Bundle]) -> list[SessionCard]:
    """The cards of the bundles, each run's once.

    Raises:
        ReportError: a bundle holds a click-through ranker, was not judged, or on other data.
    """
    cards = [session_card(bundle) for bundle in bundles]
    for bundle, card in zip(bundles, cards, strict=True):
        if not card.results:
            raise ReportError(f"{bundle.root}: was not judged, so it compares with nothing")
        for what, ours, theirs in zip(JUDGED_ON, judged_on(card), judged_on(cards[0]), strict=True):
            if ours != theirs:
                raise ReportError(
                    f"{bundle.root}: judged on other data than {bundles[0].root} ({what} {ours}, "
                    f"not {theirs}); compare bundles of one data set only"
                )
    return distinct(cards)


def judged_on(card: SessionCard) -> tuple[str, str]:
    """What must be equal for two cards' figures to be comparable, by `JUDGED_ON`."""
    rows = {quality.rows for result in card.results for quality in (result.dense, result.coded)}
    return card.data_hash[:12], ", ".join(f"{row:,}" for row in sorted(rows))


def page(bundles: Sequence[Bundle]) -> str:
    """The HTML of the page that compares the bundles.

    Raises:
        ReportError: they cannot be compared.
    """
    cards = comparable(bundles)
    listed = entries(cards)
    with mpl.rc_context(STYLE):
        drawn = {**entry_plots(listed, WIDE), **price_plots(listed)}
    return template("sessions/compare.html").render(
        names=list(dict.fromkeys(bundle.manifest.name for bundle in bundles)),
        rankers=list(dict.fromkeys(card.ranker for card in cards)),
        tables=sum(entry.kind == "coded" for entry in listed),
        costs=COSTS,
        metrics=SPLIT,
        lines=[line(entry) for entry in listed],
        averaged=averaged(listed),
        priced=PRICED,
        plots=drawn,
        bundles=bundles,
        notes=list(dict.fromkeys(note for card in cards for note in card.notes)),
        data_hash=cards[0].data_hash,
        tools=cards[0].tools,
    )


def line(entry: Entry) -> Line:
    """A ranker's figures as texts."""
    table = entry.bytes.get(TABLE)
    cells = (
        Cell(size(entry.bundle_bytes)),
        Cell(size(table)),
        Cell(f"{entry.smaller:,.1f}x" if entry.smaller else NOTHING),
        Cell(f"{entry.us:,.0f}" if entry.us else NOTHING),
        Cell(f"{entry.speed:.2f}x" if entry.speed else NOTHING),
        *(percent(entry.estimate(metric)) for metric in SPLIT),
        *(multiple(entry.ratios.get(metric)) for metric in SPLIT),
    )
    return Line(entry, cells)


def size(number: float | None) -> str:
    """Bytes with a prefix, to three digits or more.

    >>> size(4752), size(None)
    ('4.75 kB', '-')
    """
    if number is None:
        return NOTHING
    places = 2 - (len(f"{number:.0f}") - 1) % 3 if number >= KILO else 0
    return EngFormatter("B", places=places)(number)


def price_plots(listed: Sequence[Entry]) -> dict[str, Plot]:
    """Quality against what it costs, if that is known of any."""
    if not (tall := price_height(listed)):
        return {}
    return {
        "price": Plot(
            "Quality and its price",
            svg(price_plot, listed, size=(WIDE, tall)),
            "Up and left is better; the dashed line joins those that no other beats in both. "
            "Bars: 95 % intervals of the paired ratio to the uncompressed table.",
        )
    }


def markdown(listed: Sequence[Entry]) -> str:
    """The comparison as a Markdown table."""
    heads = ["table", *COSTS, *SPLIT, *(f"{metric} ratio" for metric in SPLIT)]
    rows = [[Cell(entry.label), *line(entry).cells] for entry in listed]
    return "\n".join(
        [_row(heads), "|---" * len(heads) + "|", *(_row(map(_inline, row)) for row in rows), ""]
    )


def _row(texts: Iterable[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def _inline(cell: Cell) -> str:
    return f"{cell.text} {cell.note}".rstrip()
