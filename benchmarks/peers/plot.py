"""The measurement as one picture: a row of bars a case, requests a second and 99th percentiles."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.peers.report import OURS, Row

OURS_COLOUR: Final = "tab:blue"
THEIRS_COLOUR: Final = "tab:gray"
# What ours is compared with, in one panel: the peers' case, then ours.
PANELS: Final = (
    ("same dense graph, same rows", "dense rows", ("dense rows",)),
    ("same slim graph, same rows", "slim rows", ("slim rows",)),
    ("as meant to be used", "plain rows", ("int8 columns", "int8 ids")),
)


def draw(table: Sequence[Row], connections: int, path: Path) -> None:
    """Requests a second and p99 at a number of connections."""
    # A bare Figure draws with Agg whatever the machine's default is, and leaves no global behind.
    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplots(2, len(PANELS), squeeze=False)
    held = [row for row in table if row.connections == connections]
    for column, (title, theirs, ours) in enumerate(PANELS):
        shown = [row for row in held if row.server != OURS and row.case == theirs]
        shown += [row for row in held if row.server == OURS and row.case in ours]
        shown.sort(key=lambda row: row.rps[0])
        names = [_name(row, several=len(ours) > 1) for row in shown]
        colours = [OURS_COLOUR if row.server == OURS else THEIRS_COLOUR for row in shown]
        _bars(axes[0, column], names, [row.rps[0] for row in shown], colours)
        _bars(axes[1, column], names, [row.p99_ms for row in shown], colours)
        axes[0, column].set_title(f"{title}\nrequests/s, {connections} connections")
        axes[1, column].set_title("p99, ms")
    figure.savefig(path, dpi=110)


def _name(row: Row, *, several: bool) -> str:
    return f"{row.server}\n{row.case}" if several else row.server


def _bars(
    axes: Axes, names: Sequence[str], values: Sequence[float], colours: Sequence[str]
) -> None:
    bars = axes.barh(range(len(names)), values, color=colours)
    axes.bar_label(bars, fmt="{:,.4g}", fontsize=8, padding=2)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.margins(x=0.15)
