"""Splits by time: by boundary values, by fractions of the rows in time order, or in file order."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, model_validator

from compress.data.base import PARTS, DataError, Part
from model_store.manifest import Frozen

ROW: Final = "__row__"  # rows are numbered over all files, from 0
_BINS: Final = 1 << 16
_EXACT: Final = 1 << 20

Moment = float | datetime | date


class Split(Frozen):
    """Where training ends and where the test begins.

    Either ``validation_from`` and ``test_from``, values of ``column``; or the fractions
    ``validation`` and ``test`` of the rows, newest last by ``column`` (in file order without one).
    """

    column: str | None = None
    validation_from: Moment | None = None
    test_from: Moment | None = None
    validation: float = Field(default=0.1, gt=0.0, lt=1.0)
    test: float = Field(default=0.1, gt=0.0, lt=1.0)

    @model_validator(mode="after")
    def _consistent(self) -> "Split":
        given = (self.validation_from is not None) + (self.test_from is not None)
        if given == 1:
            raise ValueError("give both validation_from and test_from, or neither")
        if given and self.column is None:
            raise ValueError("validation_from and test_from need a column")
        if given and {"validation", "test"} & self.model_fields_set:
            raise ValueError("give boundaries or fractions, not both")
        if self.validation + self.test >= 1.0:
            raise ValueError("validation and test leave no rows to train on")
        return self


@dataclass(frozen=True, slots=True)
class Cut:
    """A resolved split: train < validation_from <= validation < test_from <= test."""

    column: str
    validation_from: float
    test_from: float

    def bounds(self, part: Part) -> tuple[float, float]:
        """The part's values: low <= value < high."""
        edges = (-np.inf, self.validation_from, self.test_from, np.inf)
        index = PARTS.index(part)
        return edges[index], edges[index + 1]

    def select(self, frame: pl.DataFrame, part: Part) -> pl.DataFrame:
        """The rows of ``frame`` that belong to the part."""
        low, high = self.bounds(part)
        values = frame[self.column].cast(pl.Float64)
        return frame.filter((values >= low) & (values < high))


def seconds(moment: Moment) -> float:
    """A boundary as a number; dates and times without a zone are UTC.

    >>> seconds(60), seconds(date(1970, 1, 2))
    (60.0, 86400.0)
    """
    if isinstance(moment, datetime):
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if isinstance(moment, date):
        return datetime(moment.year, moment.month, moment.day, tzinfo=UTC).timestamp()
    return float(moment)


def resolve_cut(
    split: Split, rows: Callable[[], int], times: Callable[[], Iterable[NDArray[np.float64]]]
) -> Cut:
    """Turn a split into boundary values.

    Args:
        split: the config's.
        rows: counts the rows of the data.
        times: streams the values of ``split.column``; read a few times over.
    """
    if split.column is None:
        total = rows()
        test = total - round(total * split.test)
        return Cut(ROW, test - round(total * split.validation), test)
    if split.validation_from is not None and split.test_from is not None:
        first, second = seconds(split.validation_from), seconds(split.test_from)
        if first >= second:
            raise DataError(
                f"split: validation_from ({first:g}) must be below test_from ({second:g})"
            )
        return Cut(split.column, first, second)
    shares = (1.0 - split.validation - split.test, 1.0 - split.test)
    return Cut(split.column, *(_quantile(times, share) for share in shares))


def _quantile(times: Callable[[], Iterable[NDArray[np.float64]]], share: float) -> float:
    """The value of the row at ``share`` of the rows in time order, exactly.

    Memory is bounded: a histogram narrows the range until the rows in one bin fit.
    """
    low, high, rows = float(np.inf), float(-np.inf), 0
    for values in times():
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
            rows += values.size
    if not rows:
        raise DataError("split: the data has no rows")
    rank = min(int(share * rows), rows - 1)
    inside = rows
    while inside > _EXACT and low < high:
        counts = np.zeros(_BINS, np.int64)
        edges = np.linspace(low, high, _BINS + 1)
        for values in _between(times(), low, high):
            counts += np.histogram(values, edges)[0]
        before = np.concatenate([[0], np.cumsum(counts)])
        bin_ = int(np.searchsorted(before, rank, side="right")) - 1
        rank, inside = rank - int(before[bin_]), int(counts[bin_])
        last = bin_ == _BINS - 1  # numpy's last bin is closed on the right
        narrowed = (edges[bin_], edges[bin_ + 1] if last else np.nextafter(edges[bin_ + 1], low))
        if narrowed == (low, high):
            break
        low, high = narrowed
    if low == high or inside > _EXACT:
        return float(low)
    kept = np.concatenate(list(_between(times(), low, high)))
    return float(np.partition(kept, rank)[rank])


def _between(
    chunks: Iterable[NDArray[np.float64]], low: float, high: float
) -> Iterator[NDArray[np.float64]]:
    for values in chunks:
        yield values[(values >= low) & (values <= high)]
