"""What the benchmark of told times reports."""

import numpy as np

from benchmarks.latency_holdout import figures


def test_errors_count_whichever_way_they_go() -> None:
    """Told too fast is as wrong as told too slow."""
    found = figures(123.46, np.array([-0.3, 0.1, 0.0, 0.2, -0.1]))

    assert found == {
        "dense_us": 123.5, "rankers": 5, "median": 0.1, "nine_in_ten": 0.26, "worst": 0.3,
    }  # fmt: skip
