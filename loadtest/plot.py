"""The load test as pictures: times by arrival rate, throughput, and how the generator fared."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from loadtest import measured, sides
from loadtest.measured import Knee, Ratio, Row

COLOURS: Final[Mapping[str, str]] = MappingProxyType(
    {sides.DENSE: "#64748b", sides.SLIM: "#0d9488", sides.INT8: "#8b5cf6"}
)
PERCENTILES: Final = ("p50_ms", "p99_ms", "p999_ms")
RATIOS: Final = ("rps", "p50", "p99")
MOST_SHOWN: Final = 2.0  # times the limit: how much more does not matter
THOUSAND: Final = 1000


def draw(table: Sequence[Row], ratios: Sequence[Ratio], knees: Sequence[Knee], path: Path) -> None:
    """One PNG: open loops above with their generator's health, closed loops below."""
    open_rows = [row for row in table if row.rate is not None]
    closed = [row for row in table if row.rate is None]
    parts = [part for part in (open_rows, closed) if part]
    # A bare Figure draws with Agg whatever the machine's default is, and leaves no global behind.
    figure = Figure(figsize=(16, 4.2 * len(parts)), layout="constrained")
    grid = figure.subplots(len(parts), 4, squeeze=False)
    for axes, part in zip(grid, parts, strict=True):
        if part is open_rows:
            _draw_open(axes, part, knees)
        else:
            _draw_closed(axes, part, [ratio for ratio in ratios if ratio.rate is None])
    figure.savefig(path, dpi=110)


def draw_against(now: Sequence[Row], then: Sequence[Row], path: Path) -> None:
    """Both runs' times by arrival rate in one PNG, the earlier one dashed."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    axes: Sequence[Axes] = figure.subplots(1, 2)
    earlier, later = ([row for row in run if row.rate is not None] for run in (then, now))
    for each, name in zip(axes, ("p50_ms", "p99_ms"), strict=True):
        _curves(each, earlier, name, "--", " earlier")
        _curves(each, later, name, "-", "")
        _by_rate(each, [*earlier, *later], name)
    figure.savefig(path, dpi=110)


def _draw_open(axes: Sequence[Axes], table: Sequence[Row], knees: Sequence[Knee]) -> None:
    for each, name in zip(axes, PERCENTILES, strict=False):
        _curves(each, table, name, "-", "")
        _by_rate(each, table, name)
        for knee in knees:
            if knee.rate.high and each.lines:
                each.axvline(knee.rate.middle, color=COLOURS[knee.side], linestyle=":")
    _draw_health(axes[3], table)


def _draw_health(axes: Axes, table: Sequence[Row]) -> None:
    for side, rows in _by_side(table).items():
        rates = [row.rate or 0.0 for row in rows]
        shares = [row.generator_cpu / measured.GENERATOR_LIMIT for row in rows]
        late = [row.lag_p99_ms / measured.LAG_LIMIT_MS for row in rows]
        axes.plot(rates, shares, "o-", color=COLOURS[side], label=f"{side}: CPU")
        axes.plot(rates, late, "x--", color=COLOURS[side], label=f"{side}: late by itself, p99")
    axes.axhline(1.0, color="#e11d48", linewidth=1)
    _rate_axis(axes, table)
    axes.set_ylim(0, MOST_SHOWN)
    axes.set_xlabel("arrivals/s")
    axes.set_title("generator, share of what marks a run")
    axes.legend(fontsize=7)


def _draw_closed(axes: Sequence[Axes], table: Sequence[Row], ratios: Sequence[Ratio]) -> None:
    labels = [level.name for level in dict.fromkeys(row.level for row in table)]
    by_side = _by_side(table)
    panels = (
        ("answers/s", {side: [row.rps.middle for row in rows] for side, rows in by_side.items()}),
        ("p50, ms", {side: [row.p50_ms for row in rows] for side, rows in by_side.items()}),
        ("p99, ms", {side: [row.p99_ms for row in rows] for side, rows in by_side.items()}),
    )
    for each, (title, series) in zip(axes, panels, strict=False):
        _bars(each, labels, series)
        each.set_title(f"{title}, users who wait")
    fields = [(ratio, name) for ratio in ratios for name in RATIOS]
    _bars(
        axes[3],
        [f"{ratio.side}\n{name}\n{ratio.level.users}" for ratio, name in fields],
        {"against dense": [getattr(ratio, name).middle for ratio, name in fields]},
    )
    axes[3].axhline(1.0, color="black", linewidth=1)
    axes[3].set_title("ratio by users (above 1 is better)")


def _curves(axes: Axes, table: Sequence[Row], name: str, style: str, suffix: str) -> None:
    for side, rows in _by_side(table).items():
        points = [(row, getattr(row, name)) for row in rows if getattr(row, name)]
        if not points:
            continue
        colour = COLOURS[side]
        xs, ys = [row.rate or 0.0 for row, _ in points], [value for _, value in points]
        axes.plot(xs, ys, style, color=colour, label=f"{side}{suffix}")
        for row, value in points:
            face = "white" if row.saturated else colour  # hollow: supports no claim
            axes.plot([row.rate or 0.0], [value], "o", color=colour, markerfacecolor=face)


def _by_rate(axes: Axes, table: Sequence[Row], name: str) -> None:
    axes.set_title(f"{_label(name)} from when a request was due, ms")
    if not axes.get_legend_handles_labels()[1]:
        axes.text(0.5, 0.5, "too few answers", transform=axes.transAxes, ha="center")
        return
    axes.set_xlabel("arrivals/s (dotted: the knee; hollow: generator saturated)")
    _rate_axis(axes, table)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)


def _rate_axis(axes: Axes, table: Sequence[Row]) -> None:
    rates = sorted({row.rate for row in table if row.rate is not None})
    axes.set_xscale("log")
    axes.set_xticks(rates, [_short(rate) for rate in rates], rotation=60, fontsize=7)
    axes.xaxis.set_minor_locator(NullLocator())


def _by_side(table: Sequence[Row]) -> dict[str, list[Row]]:
    rows = {side: [row for row in table if row.side == side] for side in sides.SIDES}
    return {side: held for side, held in rows.items() if held}


def _bars(axes: Axes, labels: Sequence[str], series: Mapping[str, Sequence[float]]) -> None:
    width = 0.8 / max(len(series), 1)
    for place, (name, values) in enumerate(series.items()):
        shifted = [n + (place - (len(series) - 1) / 2) * width for n in range(len(values))]
        bars = axes.bar(shifted, values, width, label=name, color=COLOURS.get(name, "#0d9488"))
        axes.bar_label(bars, fmt=_short, fontsize=7)
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
    axes.margins(y=0.2)  # room for the legend above the bars
    axes.legend(fontsize=8)


def _label(name: str) -> str:
    return {"p50_ms": "p50", "p99_ms": "p99", "p999_ms": "p99.9"}[name]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= THOUSAND else f"{value:.3g}"
