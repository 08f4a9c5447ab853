"""Plots of session rankers: quality, its price in bytes and time, and how they learnt."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from compress.curves import Curve
from compress.report import DENSE, INK, LIMIT, PARTS, SLIM, stacked
from compress.sessions.costs import TABLE
from compress.sessions.entries import Entry
from model_store.manifest import SessionCard

NARROW: Final = 8.4  # inches across one bundle's page
WIDE: Final = 10.4  # and across the page that compares
FAMILIES: Final = (*PARTS, "#1d4ed8", "#9f1239", "#713f12", "#166534")
PANELS: Final = ("NDCG@10", "MRR@20", "P@20")
BESIDE_BYTES: Final = ("NDCG@10", "MRR@20")
FLOOR: Final = "#94a3b8"
FRONTIER: Final = "#94a3b8"
PAPER: Final = "#ffffff"
OCTAVE: Final = 2.0
TWO_DECADES: Final = 100.0
LARGE_PARTS: Final = (TABLE, "item ids", "graph")
POINTS_AN_INCH: Final = 72
RINGS: Final = (7.0, 14.0, 24.0, 36.0, 50.0, 66.0)  # points from a marker to its label
WAYS: Final = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))

Cost = Callable[[Entry], float | None]


@dataclass(frozen=True, slots=True)
class Point:
    """What a ranker costs and what it is worth, in percent.

    Attributes:
        bounds: 95 % interval of ``y``, if known.
    """

    x: float
    y: float
    bounds: tuple[float, float] | None
    label: str
    color: str
    marker: str


def height(rows: int) -> float:
    """Inches for a plot with a line a ranker."""
    return 0.75 + 0.27 * rows


def colors(entries: Sequence[Entry]) -> list[str]:
    """A colour an entry: grey for floors, ink for uncompressed tables, one a table method."""
    families = dict.fromkeys(entry.family for entry in entries if entry.kind == "coded")
    of = dict(zip(families, FAMILIES * len(families), strict=False))
    kinds = {"floor": FLOOR, "dense": INK}
    return [kinds.get(entry.kind) or of[entry.family] for entry in entries]


def quality_plot(figure: Figure, entries: Sequence[Entry]) -> None:
    """A panel a metric, a line a ranker: its quality with the 95 % interval."""
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for axes, metric in zip(panels, PANELS, strict=True):
        for row, (entry, color) in enumerate(zip(entries, colors(entries), strict=True)):
            if (found := entry.estimate(metric)) is None:
                continue
            if found.interval:
                bounds = [100 * bound for bound in found.interval]
                axes.plot(bounds, (row, row), color=color, linewidth=2, alpha=0.55)
            axes.scatter(100 * found.value, row, color=color, s=26, zorder=3)
        axes.set_title(f"{metric}, %")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.margins(x=0.08)
    _name_rows(panels[0], entries)


def split_plot(figure: Figure, entries: Sequence[Entry]) -> None:
    """NDCG@10 and MRR@20 on targets that the session holds already, and on the others."""
    panels = figure.subplots(1, len(BESIDE_BYTES), sharey=True)
    sides = (("repeated", SLIM, -0.19), ("new", "#f59e0b", 0.19))
    for axes, metric in zip(panels, BESIDE_BYTES, strict=True):
        for side, color, shift in sides:
            shares = {
                row + shift: 100 * part[metric]
                for row, entry in enumerate(entries)
                if metric in (part := getattr(entry.quality, side))
            }
            axes.barh(list(shares), list(shares.values()), color=color, height=0.36, label=side)
            for place, share in shares.items():
                axes.text(share, place, f" {share:.1f}", va="center", color=INK, fontsize=7)
        axes.set_title(f"{metric}, %")
        axes.margins(x=0.12)
        axes.grid(visible=False, axis="y")
    _name_rows(panels[0], entries)
    handles, labels = panels[0].get_legend_handles_labels()
    titles = [f"{label} targets" for label in labels]
    figure.legend(handles, titles, loc="outside lower center", ncols=2, handlelength=1)


def _name_rows(axes: Axes, entries: Sequence[Entry]) -> None:
    axes.set_yticks(range(len(entries)), [entry.label for entry in entries])
    axes.set_ylim(len(entries) - 0.5, -0.5)


def bytes_plot(figure: Figure, card: SessionCard) -> None:
    """Both bundles by part, small parts together."""
    bars = {"coded": _gathered(card.coded.bytes), "uncompressed": _gathered(card.dense.bytes)}
    stacked(figure.subplots(), bars, "Bytes of the bundle", "B")


def _gathered(parts: Mapping[str, int]) -> dict[str, int]:
    large = {part: parts[part] for part in LARGE_PARTS if part in parts}
    return {**large, "manifest, golden requests, curves": sum(parts.values()) - sum(large.values())}


def training_plot(figure: Figure, curves: Mapping[str, Curve]) -> None:
    """Loss, and quality on validation prefixes, of the teacher and of the student."""
    sides = (("train", "uncompressed", DENSE), ("finetune", "coded, fine-tuned", SLIM))
    panels = (("loss", "Training loss"), ("ndcg", "Validation NDCG@20"), ("mrr", "… MRR@20"))
    for axes, (key, title) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for name, label, color in sides:
            curve = [row for row in curves.get(name, ()) if row.get(key) is not None]
            if curve:
                epochs, values = [row["epoch"] for row in curve], [row[key] for row in curve]
                axes.plot(epochs, values, marker="o", markersize=3, color=color, label=label)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if axes.lines:
            axes.legend()


def price_height(entries: Sequence[Entry]) -> float:
    """Inches for `price_plot`, a row of panels for each cost that is known; 0 if none is."""
    panels = sum(any(cost(entry) for entry in entries) for cost in _COSTS)
    return panels * max(3.4, 0.28 * len(entries))  # room for the labels


def price_plot(figure: Figure, entries: Sequence[Entry]) -> None:
    """Quality against the bytes of the whole bundle (log scale) and against time a request."""
    known = [cost for cost in _COSTS if any(cost(entry) for entry in entries)]
    grid = figure.subplots(len(known), len(BESIDE_BYTES), squeeze=False)
    drawn = []
    for (row, cost), (column, metric) in product(enumerate(known), enumerate(BESIDE_BYTES)):
        axes, points = grid[row][column], list(_points(entries, cost, metric))
        _draw_points(axes, points)
        if cost is _bundle_bytes:
            _scale_bytes(axes, points)
        else:
            axes.set_xlabel("µs a request")
        axes.set_title(f"{metric}, %")
        drawn.append((axes, points, _draw_floor(axes, entries, metric)))
    figure.draw_without_rendering()  # labels are placed by what stands where
    for axes, points, texts in drawn:
        _label(axes, points, texts)


def _bundle_bytes(entry: Entry) -> float | None:
    return entry.bundle_bytes


def _us(entry: Entry) -> float | None:
    return entry.us


_COSTS: Final[tuple[Cost, ...]] = (_bundle_bytes, _us)


def _points(entries: Sequence[Entry], cost: Cost, metric: str) -> Iterator[Point]:
    for entry, color in zip(entries, colors(entries), strict=True):
        x, found = cost(entry), entry.estimate(metric)
        if x is None or found is None:
            continue
        y, bounds, ratio = 100 * found.value, None, entry.ratios.get(metric)
        if ratio and ratio.interval and ratio.value:
            # Of the comparison with the uncompressed table: what both share is no doubt of either.
            bounds = (y * ratio.interval[0] / ratio.value, y * ratio.interval[1] / ratio.value)
        yield Point(x, y, bounds, entry.label, color, "D" if entry.kind == "dense" else "o")


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of (cost, worth) than which no other costs as little and is worth more; by cost."""
    best: list[tuple[float, float]] = []
    for cost, worth in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or worth > best[-1][1]:
            best.append((cost, worth))
    return best


def _draw_points(axes: Axes, points: Sequence[Point]) -> None:
    best = frontier([(point.x, point.y) for point in points])
    costs, worths = [cost for cost, _ in best], [worth for _, worth in best]
    axes.plot(costs, worths, color=FRONTIER, linewidth=1.4, linestyle="--", zorder=1)
    for point in points:
        if point.bounds:
            axes.plot((point.x,) * 2, point.bounds, color=point.color, linewidth=1.2, alpha=0.45)
        axes.scatter(point.x, point.y, color=point.color, marker=point.marker, s=28, zorder=3)
    axes.margins(x=0.16, y=0.14)


def _scale_bytes(axes: Axes, points: Sequence[Point]) -> None:
    axes.set_xscale("log")
    sizes = [point.x for point in points]
    if max(sizes) < OCTAVE * min(sizes):
        axes.xaxis.set_major_locator(MaxNLocator(4, prune="both"))
    elif max(sizes) < TWO_DECADES * min(sizes):
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    axes.set_xlabel("bytes of the whole bundle, log scale")


def _draw_floor(axes: Axes, entries: Sequence[Entry], metric: str) -> list[Text]:
    """A line where the best parameter-free ranker stands, and its name."""
    floors = [
        (found.value, entry.label)
        for entry in entries
        if entry.kind == "floor" and (found := entry.estimate(metric))
    ]
    if not floors:
        return []
    value, label = max(floors)
    axes.axhline(100 * value, color=LIMIT, linestyle=":", linewidth=1)
    name = axes.annotate(
        f"best floor: {label}",
        (1, 100 * value),
        xycoords=("axes fraction", "data"),
        xytext=(-4, 3),
        textcoords="offset points",
        ha="right",
        color=LIMIT,
        fontsize=7,
    )
    return [name]


def _label(axes: Axes, points: Sequence[Point], texts: Sequence[Text]) -> None:
    """Name the points, each at the nearest place where nothing else stands."""
    pixels = axes.figure.dpi / POINTS_AN_INCH
    at = [axes.transData.transform((point.x, point.y)) for point in points]
    taken = [text.get_window_extent().padded(pixels) for text in texts]
    taken += [Bbox.from_extents(*(place - 4 * pixels), *(place + 4 * pixels)) for place in at]
    for point, place in sorted(zip(points, at, strict=True), key=lambda pair: -pair[0].y):
        text = axes.annotate(
            point.label,
            (point.x, point.y),
            xytext=(0, 0),
            textcoords="offset points",
            color=point.color,
            fontsize=7,
            path_effects=[withStroke(linewidth=2, foreground=PAPER)],
            arrowprops={"arrowstyle": "-", "color": point.color, "linewidth": 0.6, "alpha": 0.5},
        )
        text.set_in_layout(False)
        size = Text.get_window_extent(text)  # without its line to the marker
        boxes = list(_boxes(place, (size.width, size.height), pixels))
        free = (box for box in boxes if _fits(box, axes.bbox, taken))
        box = next(free, boxes[0])
        text.set_position(((box.x0 - place[0]) / pixels, (box.y0 - place[1]) / pixels))
        taken.append(box.padded(pixels))


def _boxes(at: NDArray[np.float64], size: tuple[float, float], pixels: float) -> Iterator[Bbox]:
    """Where a label may stand around its marker, nearest first; all in pixels."""
    width, tall = size
    for ring, (right, up) in product(RINGS, WAYS):
        x = at[0] + ring * pixels * right - (1 - right) * width / 2
        y = at[1] + ring * pixels * up - (1 - up) * tall / 2
        yield Bbox.from_bounds(x, y, width, tall)


def _fits(box: Bbox, within: Bbox, taken: Sequence[Bbox]) -> bool:
    inside = within.contains(box.x0, box.y0) and within.contains(box.x1, box.y1)
    return inside and not any(box.overlaps(other) for other in taken)
