"""The load test as pictures."""

from pathlib import Path

import pytest

from loadtest import measured as maths
from loadtest import plot
from loadtest.shapes import Level

CLOSED = (Level(1), Level(8))
OPEN = (Level(64, 100.0), Level(64, 200.0))


@pytest.mark.parametrize("levels", [CLOSED, OPEN, CLOSED + OPEN])
def test_plot_is_a_png(measured, tmp_path: Path, levels: tuple[Level, ...]) -> None:
    """Closed loops, open loops or both, of three sides, are drawn into one PNG file."""
    runs = [
        measured(side, [1000, 2000], level)
        for level in levels
        for side in ("dense", "slim", "int8")
    ]
    path = tmp_path / "compare.png"

    plot.draw(maths.rows(runs), maths.ratios(runs), maths.knees(runs), path)

    assert path.read_bytes().startswith(b"\x89PNG")


def test_level_without_an_answer_is_no_point(measured, tmp_path: Path) -> None:
    """No time is 0 ms: there is nothing to draw, and that is no error."""
    runs = [measured("slim", [], OPEN[0])]
    path = tmp_path / "compare.png"

    plot.draw(maths.rows(runs), [], maths.knees(runs), path)

    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("levels", [CLOSED, CLOSED + OPEN])
def test_two_runs_are_one_png(measured, tmp_path: Path, levels: tuple[Level, ...]) -> None:
    """Runs without an open loop have no curves, and that is no error."""
    table = maths.rows([measured("slim", [1000], level) for level in levels])
    path = tmp_path / "against.png"

    plot.draw_against(table, table, path)

    assert path.read_bytes().startswith(b"\x89PNG")
