"""The load test as one picture: throughput, times and ratios side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtest.report import Ratio, Row

PERCENTILES: Final = ("p50", "p95", "p99")


def draw(table: Sequence[Row], compared: Sequence[Ratio], path: Path) -> None:
    """Throughput, times and ratios as one PNG."""
    # A bare Figure draws with Agg whatever the machine's default is, and leaves no global behind.
    figure = Figure(figsize=(12, 4), layout="constrained")
    axes: Sequence[Axes] = figure.subplots(1, 3)
    levels = sorted({row.users for row in table})
    sides = sorted({row.side for row in table})
    cells = {(row.users, row.side): row for row in table}
    _bars(
        axes[0],
        [f"{users} users" for users in levels],
        {side: [cells[users, side].rps for users in levels] for side in sides},
    )
    axes[0].set_title("throughput, requests/s")
    names = [(users, name) for users in levels for name in PERCENTILES]
    _bars(
        axes[1],
        [f"{name}\n{users} users" for users, name in names],
        {side: [getattr(cells[users, side], f"{n}_ms") for users, n in names] for side in sides},
    )
    axes[1].set_title("time to answer, ms")
    fields = [(ratio, name) for ratio in compared for name in ("rps", *PERCENTILES)]
    _bars(
        axes[2],
        [f"{name}\n{ratio.users} users" for ratio, name in fields],
        {"slim against dense": [getattr(ratio, name) for ratio, name in fields]},
    )
    axes[2].axhline(1.0, color="black", linewidth=1)
    axes[2].set_title("ratio (above 1 slim is better)")
    figure.savefig(path, dpi=110)


def _bars(axes: Axes, labels: Sequence[str], series: Mapping[str, Sequence[float]]) -> None:
    width = 0.8 / max(len(series), 1)
    for place, (name, values) in enumerate(series.items()):
        shifted = [n + (place - (len(series) - 1) / 2) * width for n in range(len(values))]
        bars = axes.bar(shifted, values, width, label=name)
        axes.bar_label(bars, fmt=_short, fontsize=7)
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
    axes.margins(y=0.2)  # room for the legend above the bars
    axes.legend(fontsize=8)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"  # noqa: PLR2004
