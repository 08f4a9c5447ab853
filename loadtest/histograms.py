"""Histograms of times: microseconds to three significant digits, in HdrHistogram's own forms."""

import io
import zlib
from collections.abc import Iterable
from typing import Final

from hdrh.codec import HdrCookieException, HdrLengthException
from hdrh.histogram import HdrHistogram

LONGEST_US: Final = 600_000_000


def new() -> HdrHistogram:
    """An empty one, from 1 µs to ten minutes."""
    return HdrHistogram(1, LONGEST_US, 3)


def record(histogram: HdrHistogram, seconds: float) -> None:
    """Take in one time; what lies outside of the histogram counts as its border."""
    histogram.record_value(min(max(round(seconds * 1e6), 1), LONGEST_US))


def ms(histogram: HdrHistogram, percentile: float) -> float:
    """A percentile in milliseconds; 0 of an empty histogram."""
    return float(histogram.get_value_at_percentile(percentile)) / 1000


def pooled(histograms: Iterable[HdrHistogram]) -> HdrHistogram:
    """All times in one, as if they had been recorded there."""
    pool = new()
    for histogram in histograms:
        pool.add(histogram)
    return pool


def encoded(histogram: HdrHistogram) -> str:
    """HdrHistogram's compressed form (V2, base64), which other tools read."""
    text: str = histogram.encode().decode()
    return text


def decoded(text: str) -> HdrHistogram:
    """What ``encoded`` wrote.

    Raises:
        ValueError: it is not that.
    """
    try:
        return HdrHistogram.decode(text)
    except (HdrCookieException, HdrLengthException, TypeError, zlib.error) as error:
        raise ValueError(f"no histogram: {error}") from None


def hgrm(histogram: HdrHistogram) -> str:
    """The percentile distribution in ms as a .hgrm file, which HdrHistogram's plotters read."""
    out = io.BytesIO()
    histogram.output_percentile_distribution(out, 1000)
    return out.getvalue().decode()
