"""Splits by time: by boundary values, by fractions of the rows in time order, or in file order."""

from collections.abc import Callable, Iterable, Sequence
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
_DIGITS: Final = 1 << 16
_FIRST_SHIFT: Final = 48
_SIGN: Final = np.uint64(1 << 63)

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
        inside = (values >= low) & (values < high)
        return frame if inside.all() else frame.filter(inside)


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
    return Cut(split.column, *_order_statistics(times, shares))


def _order_statistics(
    times: Callable[[], Iterable[NDArray[np.float64]]], shares: Sequence[float]
) -> list[float]:
    """The values at some shares of the rows in time order, exactly.

    A radix selection: four passes, each counts the next 16 bits of the values that begin as the
    one wanted. Memory does not depend on the rows.
    """
    prefixes = [0] * len(shares)
    ranks: list[int] = []
    for shift in (48, 32, 16, 0):
        counts = np.zeros((len(shares), _DIGITS), np.int64)
        for values in times():
            keys = _ordered(values)
            for count, prefix in zip(counts, prefixes, strict=True):
                inside = keys if shift == _FIRST_SHIFT else keys[keys >> (shift + 16) == prefix]
                digits = inside >> shift & (_DIGITS - 1)
                np.add(count, np.bincount(digits, minlength=_DIGITS), out=count)
        if not ranks:
            rows = int(counts[0].sum())
            if not rows:
                raise DataError("split: the data has no rows")
            ranks = [min(int(share * rows), rows - 1) for share in shares]
        for i, count in enumerate(counts):
            upto = np.cumsum(count)
            digit = int(np.searchsorted(upto, ranks[i], side="right"))
            ranks[i] -= int(upto[digit] - count[digit])
            prefixes[i] = prefixes[i] << 16 | digit
    keys = np.array(prefixes, np.uint64)
    return [float(value) for value in _from_ordered(keys)]


def _ordered(values: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Integers in the order of the numbers: flip the sign bit, of negative ones every bit.

    >>> np.argsort(_ordered(np.array([2.0, -1.0, 0.5, -3.0]))).tolist()
    [3, 1, 2, 0]
    """
    bits = (values + 0.0).view(np.uint64)  # + 0.0 makes -0.0 one with 0.0
    return np.where(bits >> 63, ~bits, bits | _SIGN)


def _from_ordered(keys: NDArray[np.uint64]) -> NDArray[np.float64]:
    return np.where(keys >> 63, keys & ~_SIGN, ~keys).view(np.float64)
