"""Checks cells against what their columns should hold. Pure: says what is wrong, does nothing."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import polars as pl

from model_store.encoding import token

Role = Literal["numeric", "categorical", "multi", "label", "time"]

FLOAT32_MAX: Final = float(np.finfo(np.float32).max)


class WrongType(TypeError):
    """A whole column is of a type that its role cannot be read from."""


@dataclass(frozen=True, slots=True)
class Wrong:
    """The first bad cell of a frame.

    Attributes:
        index: its row in the frame.
        column: its column.
        value: what it holds.
        expected: what it should hold, in words.
    """

    index: int
    column: str
    value: Any
    expected: str


@dataclass(frozen=True, slots=True)
class Rules:
    """What columns should hold.

    Attributes:
        roles: of the columns that are looked at.
        positive_from: labels are any numbers, positive from here on; None: they are 0 or 1.
        time_format: how times in text are written (as `strptime`); None: as numbers.
    """

    roles: Mapping[str, Role]
    positive_from: float | None = None
    time_format: str | None = None

    def typed(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
        """Numbers, labels and times as Float64, categories in a type that has tokens.

        Columns without a role stay as they are.

        Returns:
            the typed frame, and which of its rows hold a bad cell.

        Raises:
            WrongType: a column can hold no such cells at all.
        """
        values = frame.with_columns(self._value(name, frame.schema[name]) for name in self.roles)
        bad = pl.repeat(False, len(frame), eager=True)
        for _, faults in self._faults(frame, values):
            bad = bad | faults
        return values.with_columns(pl.col(self._numbers).fill_nan(None)), bad

    def first_wrong(self, frame: pl.DataFrame) -> Wrong:
        """The bad cell that comes first, by row and then by the order of the roles."""
        values = frame.with_columns(self._value(name, frame.schema[name]) for name in self.roles)
        found = [
            (int(f.arg_max() or 0), name) for name, f in self._faults(frame, values) if f.any()
        ]
        index, name = min(found, key=lambda place: place[0])
        return Wrong(index, name, frame[name][index], self.expected(self.roles[name]))

    def expected(self, role: Role) -> str:
        """What a cell of a role should hold, in words."""
        match role:
            case "numeric":
                return "a number within ±3.4e38"
            case "label":
                return "0 or 1" if self.positive_from is None else "a number"
            case "time":
                return "a time" if self.time_format is None else f"a time as {self.time_format}"
            case "multi":
                return "a list, or text"
            case "categorical":
                return "text, a whole number or a boolean"

    def _value(self, name: str, dtype: pl.DataType) -> pl.Expr:
        role, column = self.roles[name], pl.col(name)
        if name in self._numbers:
            return self._number(name, dtype)
        if dtype == pl.Null or isinstance(dtype, pl.Categorical | pl.Enum):
            return column.cast(pl.String)
        if has_tokens(dtype) or (
            role == "multi" and isinstance(dtype, pl.List) and has_tokens(dtype.inner)
        ):
            return column
        raise self._wrong_type(name, dtype)

    def _number(self, name: str, dtype: pl.DataType) -> pl.Expr:
        role, column = self.roles[name], pl.col(name)
        if role == "time" and dtype == pl.String and self.time_format is not None:
            return _epoch(column.str.to_datetime(self.time_format, strict=False))
        if role == "time" and dtype == pl.Date:
            return _epoch(column.cast(pl.Datetime("us")))
        if role == "time" and isinstance(dtype, pl.Datetime):
            return _epoch(column)
        numeric = dtype in {pl.String, pl.Null} or dtype.is_numeric()
        if numeric or (role == "label" and dtype == pl.Boolean):
            return column.cast(pl.Float64, strict=False)
        raise self._wrong_type(name, dtype)

    def _faults(self, raw: pl.DataFrame, values: pl.DataFrame) -> Iterator[tuple[str, pl.Series]]:
        """Which cells are bad, for those columns that hold numbers."""
        for name in self._numbers:
            value = values[name]
            match self.roles[name]:
                case "numeric":
                    lost = value.is_null() & raw[name].is_not_null()
                    large = value.is_not_nan() & (value.abs() > FLOAT32_MAX)
                    yield name, lost | large.fill_null(value=False)
                case "label" if self.positive_from is None:
                    yield name, ~((value == 0.0) | (value == 1.0)).fill_null(value=False)
                case _:
                    yield name, ~value.is_finite().fill_null(value=False)

    @property
    def _numbers(self) -> list[str]:
        return [name for name, role in self.roles.items() if role in {"numeric", "label", "time"}]

    def _wrong_type(self, name: str, dtype: pl.DataType) -> WrongType:
        return WrongType(
            f"column {name!r}: expected {self.expected(self.roles[name])}, its type is {dtype}"
        )


def has_tokens(dtype: Any) -> bool:
    """Whether the values of a type are tokens as they stand."""
    return dtype in {pl.String, pl.Boolean} or dtype.is_integer() or dtype.is_float()


def _epoch(time: pl.Expr) -> pl.Expr:
    return time.dt.epoch("us").cast(pl.Float64) / 1e6


def tokens(series: pl.Series) -> pl.Series:
    """The canonical text of categorical values, as `model_store.encoding.token`."""
    if series.dtype == pl.String:
        return series
    if series.dtype.is_integer():
        return series.cast(pl.String)
    texts = [token(value) for value in series.to_list()]
    return pl.Series(series.name, texts, dtype=pl.String)
