"""The load test as a picture."""

from pathlib import Path

from loadtest import plot, report


def test_plot_is_a_png(measured, tmp_path: Path) -> None:
    """Two levels of both sides are drawn into one PNG file."""
    runs = [
        measured(side, [1000, 2000], users=users) for users in (1, 8) for side in ("dense", "slim")
    ]
    path = tmp_path / "compare.png"

    plot.draw(report.rows(runs), report.ratios(runs), path)

    assert path.read_bytes().startswith(b"\x89PNG")
