"""Histograms of times."""

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram

from loadtest import histograms


def filled(seconds: list[float]) -> HdrHistogram:
    """A histogram of these times."""
    histogram = histograms.new()
    for each in seconds:
        histograms.record(histogram, each)
    return histogram


@pytest.mark.parametrize("percentile", [50, 99, 99.9])
def test_percentiles_equal_numpys_on_the_raw_times(percentile: float) -> None:
    """Every percentile lies within the histogram's 0.1 % of the raw data's neighbouring ranks."""
    times = np.exp(np.random.default_rng(3).normal(-7.0, 0.6, 20_000))

    got = histograms.ms(filled(list(times)), percentile)

    low = np.percentile(times, percentile, method="lower") * 1000
    high = np.percentile(times, percentile, method="higher") * 1000
    assert low * 0.999 <= got <= high * 1.001


def test_times_below_a_millisecond_stay_apart() -> None:
    """410 µs and 430 µs are two different medians: nothing is rounded to milliseconds."""
    medians = [histograms.ms(filled([seconds]), 50) for seconds in (410e-6, 430e-6)]

    assert medians == [0.41, 0.43]


def test_pool_is_as_if_recorded_there() -> None:
    """Percentiles do not average: the pool of 1..9 ms and of 100 ms has both."""
    pool = histograms.pooled([filled([k / 1000 for k in range(1, 10)]), filled([0.1])])

    assert pool.get_total_count() == 10
    assert histograms.ms(pool, 50) == pytest.approx(5.0, rel=0.001)
    assert histograms.ms(pool, 100) == pytest.approx(100.0, rel=0.001)


def test_what_lies_outside_counts_as_the_border() -> None:
    """No time is lost: 0 counts as 1 µs, an hour as ten minutes."""
    histogram = filled([0.0, 3600.0])

    assert histogram.get_total_count() == 2
    assert histograms.ms(histogram, 100) == pytest.approx(600_000, rel=0.001)


def test_encoded_form_and_hgrm_say_the_same() -> None:
    """A histogram survives its encoding, and its .hgrm file ends with its maximum in ms."""
    histogram = filled([0.001, 0.002, 0.25])

    again = histograms.decoded(histograms.encoded(histogram))

    assert histograms.hgrm(again) == histograms.hgrm(histogram)
    assert "#[Max     =      250.111, TotalCount     =        3.000]" in histograms.hgrm(again)
