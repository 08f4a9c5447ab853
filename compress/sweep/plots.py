"""The frontier of a sweep: what methods lose, against what is left of FLOPs, bytes and time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from statistics import fmean
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, Formatter, LogLocator, NullLocator, PercentFormatter

from compress.report import INK, PARTS
from compress.sessions.plots import frontier

COLORS: Final = (*PARTS, "#1d4ed8", "#9f1239", "#713f12", "#166534")
MARKERS: Final = "osD^vPX<>h"
WIDE: Final = 12.0
TALL: Final = 4.6
DECADE: Final = 10.0
FINE: Final = 5.0  # of costs that lie nearer, less than two may fall on 1, 2 and 5
GREY: Final = "#94a3b8"


@dataclass(frozen=True, slots=True)
class Point:
    """A method at a budget.

    Attributes:
        costs: of each seed, None if unknown: by the order of `PANELS`.
        lost: AUC, of each seed.
        half: of the 95 % interval of its mean; None for a single seed.
    """

    costs: tuple[Sequence[float] | None, ...]
    lost: Sequence[float]
    half: float | None


PANELS: Final[tuple[tuple[str, Callable[[], Formatter]], ...]] = (
    ("FLOPs left, of the dense ranker's", lambda: PercentFormatter(1.0, symbol=" %")),
    ("bytes of the whole bundle", lambda: EngFormatter("B")),
    ("µs a request", lambda: EngFormatter("")),
)


def frontier_plot(figure: Figure, methods: "dict[str, list[Point]]") -> None:
    """A panel a cost, a colour a method: means with 95 % intervals, seeds faint behind them."""
    shown = [
        panel
        for panel in range(len(PANELS))
        if any(point.costs[panel] for points in methods.values() for point in points)
    ]
    grid = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, panel in zip(grid, shown, strict=True):
        _draw(axes, methods, panel)
    grid[0].set_ylabel("AUC lost (lower is better)")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))


def _draw(axes: Axes, methods: "dict[str, list[Point]]", panel: int) -> None:
    means = []
    for (method, points), color, marker in zip(
        methods.items(), cycle(COLORS), cycle(MARKERS), strict=False
    ):
        places = sorted(
            (fmean(costs), fmean(point.lost), point.half or 0.0)
            for point in points
            if (costs := point.costs[panel])
        )
        for point in points:
            if (costs := point.costs[panel]) and len(point.lost) > 1:
                axes.scatter(costs, point.lost, color=color, marker=marker, s=12, alpha=0.25)
        if not places:
            continue
        x, y, half = zip(*places, strict=True)
        axes.errorbar(
            x, y, yerr=half, color=color, marker=marker, markersize=5, linewidth=1.2,
            capsize=2.5, elinewidth=1, label=method, zorder=3,
        )  # fmt: skip
        means += [(cost, -lost) for cost, lost in zip(x, y, strict=True)]
    best = frontier(means)
    axes.plot(
        [cost for cost, _ in best], [-worth for _, worth in best],
        color=GREY, linestyle="--", linewidth=1, zorder=1,
    )  # fmt: skip
    axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    title, formatter = PANELS[panel]
    _log_scale(axes, [cost for cost, _ in means], formatter())
    axes.set_xlabel(f"{title}, log scale")


def _log_scale(axes: Axes, costs: Sequence[float], formatter: Formatter) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=_subs(max(costs) / min(costs))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(formatter)
    if max(costs) < 2 * min(costs):  # else no tick may fall between them
        axes.set_xlim(min(costs) / 2, max(costs) * 2)
    else:
        axes.margins(x=0.08)


def _subs(spread: float) -> tuple[float, ...]:
    """Where ticks stand in a decade: a few of them, however near each other all costs are."""
    if spread < FINE:
        return (1, 1.5, 2, 3, 4, 5, 6, 8)
    return (1, 2, 5) if spread < DECADE**2 else (1,)
