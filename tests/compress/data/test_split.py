"""Splits by time: where the boundaries fall."""

from collections.abc import Iterator
from datetime import UTC, date, datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from compress.data.base import PARTS, DataError
from compress.data.split import ROW, Cut, Split, resolve_cut, seconds


def chunked(values: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """A stream in unequal chunks, an empty one among them."""
    yield values[:3]
    yield values[3:3]
    yield values[3:]


def no_rows() -> int:
    """The number of rows of a source that must not be asked for it."""
    raise AssertionError


def test_each_row_is_in_exactly_one_part() -> None:
    """A boundary value itself belongs to the later part."""
    frame = pl.DataFrame({"t": [1, 5, 6, 7, 8, 9]})
    cut = Cut("t", 6, 8)

    parts = {part: cut.select(frame, part)["t"].to_list() for part in PARTS}

    assert parts == {"train": [1, 5], "validation": [6, 7], "test": [8, 9]}


def test_without_a_column_rows_are_cut_in_file_order() -> None:
    """The last tenth is the test, the tenth before it the validation."""
    assert resolve_cut(Split(), lambda: 100, lambda: ()) == Cut(ROW, 80, 90)


def test_boundaries_are_taken_as_they_are() -> None:
    """No row is read for them."""
    split = Split(column="t", validation_from=60, test_from=66)

    assert resolve_cut(split, no_rows, lambda: ()) == Cut("t", 60.0, 66.0)


@given(st.lists(st.integers(-50, 50) | st.floats(-1e300, 1e300), min_size=4, max_size=60))
def test_fractions_cut_at_the_exact_order_statistic(times: list[float]) -> None:
    """The boundary is the value that sorting all rows would give."""
    values = np.array(times, np.float64)

    cut = resolve_cut(
        Split(column="t", validation=0.25, test=0.25), no_rows, lambda: chunked(values)
    )

    ordered = np.sort(values)
    assert cut.validation_from == ordered[int(0.5 * len(values))]
    assert cut.test_from == ordered[int(0.75 * len(values))]


def test_fractions_of_no_rows_are_refused() -> None:
    """An empty file has no time to split at."""
    with pytest.raises(DataError, match="no rows"):
        resolve_cut(Split(column="t"), no_rows, lambda: ())


def test_dates_are_seconds_since_1970_in_utc() -> None:
    """A time without a zone is UTC; one with a zone is converted."""
    assert seconds(date(2020, 1, 1)) == seconds(datetime(2020, 1, 1, tzinfo=UTC)) == 1577836800
    assert seconds(datetime(2020, 1, 1)) == 1577836800  # noqa: DTZ001


def test_boundaries_in_the_wrong_order_are_refused() -> None:
    """Validation cannot begin after the test."""
    with pytest.raises(DataError, match="must be below"):
        resolve_cut(Split(column="t", validation_from=9, test_from=3), no_rows, lambda: ())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"column": "t", "validation_from": 1}, "both"),
        ({"validation_from": 1, "test_from": 2}, "need a column"),
        ({"column": "t", "validation_from": 1, "test_from": 2, "test": 0.2}, "not both"),
        ({"validation": 0.5, "test": 0.5}, "no rows to train on"),
    ],
)
def test_a_split_that_means_nothing_is_refused(options: dict[str, object], message: str) -> None:
    """Half a pair of boundaries, both ways at once, or nothing left to train on."""
    with pytest.raises(ValidationError, match=message):
        Split.model_validate(options)
