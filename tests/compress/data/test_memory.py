"""Data of any size in flat memory."""

import pytest

from benchmarks import memory


@pytest.mark.slow
@pytest.mark.e2e
def test_memory_does_not_grow_with_the_rows() -> None:
    """Three times the rows peak within 15 %; `python -m benchmarks.memory` shows it up to 8 M."""
    small, large = memory.apart(600_000), memory.apart(1_800_000)

    assert large["peak_mb"] <= memory.LIMIT * small["peak_mb"]
