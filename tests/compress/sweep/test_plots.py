"""What the frontier shows can be read."""

import pytest
from matplotlib.figure import Figure

from compress.sweep.plots import TALL, WIDE, Point, frontier_plot


@pytest.mark.parametrize("spread", [1.01, 2.1, 4.9, 5.1, 99.0, 5000.0])
@pytest.mark.parametrize("least", [10.1, 20.5, 55.0])
def test_every_axis_has_ticks_to_read_it_by(least: float, spread: float) -> None:
    """At least two with a label, however near each other the costs are; and no crowd."""
    figure = Figure(figsize=(WIDE, TALL), layout="constrained")
    points = [Point(([c], [c], [c]), [0.01], None) for c in (least, least * spread)]

    frontier_plot(figure, {"umec": points})
    figure.draw_without_rendering()

    for axes in figure.axes:
        low, high = axes.get_xlim()
        ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
        labels = [label.get_text() for at, label in ticks if low <= at <= high]
        assert 2 <= len({label for label in labels if label}) <= 12
