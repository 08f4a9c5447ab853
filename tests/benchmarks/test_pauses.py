"""What the pauses of an event loop are read from."""

import gc

from benchmarks import pauses


def test_each_collection_inside_the_block_is_timed() -> None:
    """None of before or after."""
    gc.disable()
    try:
        gc.collect()
        with pauses.collections() as found:
            gc.collect()
            gc.collect()
        gc.collect()
    finally:
        gc.enable()

    assert len(found) == 2
    assert min(found) > 0


def test_row_tells_median_and_most() -> None:
    """In two digits after the point."""
    assert pauses.row("poll", "2 s", [1.0, 0.125, 9.0]) == "| poll | 2 s | 1.00 | 9.00 |"
