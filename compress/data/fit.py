"""Fits encodings on training rows, a chunk at a time."""

from typing import Final, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from compress.data.base import ColumnSpec
from compress.data.cells import tokens
from model_store.encoding import FIRST, token
from model_store.manifest import (
    BucketEncoding,
    Encoding,
    HashEncoding,
    NumericEncoding,
    VocabularyEncoding,
)

Fitted = tuple[Encoding, list[str] | None]

_PENDING: Final = 1 << 20
_LOWEST_BUCKET: Final = -64


class Fitter(Protocol):
    """Sees the training rows of one column and names its encoding."""

    def update(self, series: pl.Series) -> None:
        """Take in a chunk."""
        ...

    def result(self) -> Fitted:
        """The encoding, and the known tokens if it is a vocabulary."""
        ...


def make_fitter(column: ColumnSpec) -> Fitter:
    """The fitter of a feature."""
    if column.transform == "x4":
        return BucketFitter(column)
    if column.transform == "standardize":
        return MomentsFitter(column)
    if column.kind == "numeric":
        return NumericFitter(column)
    if column.hash_buckets is not None:
        return HashFitter(column)
    return VocabularyFitter(column)


class NumericFitter:
    """Numbers whose transform has nothing to learn."""

    def __init__(self, column: ColumnSpec) -> None:
        self._column = column

    def update(self, series: pl.Series) -> None:
        """Learn nothing."""

    def result(self) -> Fitted:
        """The transform by name."""
        transform = "log1p" if self._column.transform == "log1p" else "identity"
        return NumericEncoding(transform=transform, default=_number(self._column, 0.0)), None


class HashFitter:
    """Hashed tokens: nothing to learn."""

    def __init__(self, column: ColumnSpec) -> None:
        self._column = column

    def update(self, series: pl.Series) -> None:
        """Learn nothing."""

    def result(self) -> Fitted:
        """So many rows."""
        buckets = self._column.hash_buckets or 0
        return HashEncoding(rows=FIRST + buckets, default=_text(self._column)), None


class MomentsFitter:
    """Mean and standard deviation, merged chunk by chunk (Chan et al.); missing ones apart."""

    def __init__(self, column: ColumnSpec) -> None:
        self._column = column
        self._count, self._mean, self._square = 0, 0.0, 0.0

    def update(self, series: pl.Series) -> None:
        """Merge a chunk's moments into those so far."""
        values = _values(series)
        if not values.size:
            return
        mean, total = float(values.mean()), self._count + values.size
        delta = mean - self._mean
        self._square += float(((values - mean) ** 2).sum())
        self._square += delta**2 * self._count * values.size / total
        self._mean += delta * values.size / total
        self._count = total

    def result(self) -> Fitted:
        """(x - mean) / scale; a missing value becomes 0, one of a constant column too."""
        scale = (self._square / self._count) ** 0.5 if self._count else 0.0
        default = _number(self._column, self._mean)
        encoding = NumericEncoding(
            transform="standardize", mean=self._mean, scale=scale or 1.0, default=default
        )
        return encoding, None


class BucketFitter:
    """The buckets of Criteo x4: floor(ln(x)²) above 2, whole numbers up to it.

    An embedding table finds a bucket by edges, so buckets must be intervals. In x4's own code they
    are not quite: 3 and 4 share a number with 1, and 5 one with 2. Here they stay apart,
    which only makes the buckets finer. A bucket seen less than ``min_count`` times joins the one
    below it.
    """

    def __init__(self, column: ColumnSpec) -> None:
        self._column = column
        self._counts: dict[int, int] = {}

    def update(self, series: pl.Series) -> None:
        """Count a chunk's buckets."""
        buckets, counts = np.unique(x4_bucket(_values(series)), return_counts=True)
        for bucket, count in zip(buckets.tolist(), counts.tolist(), strict=True):
            self._counts[bucket] = self._counts.get(bucket, 0) + count

    def result(self) -> Fitted:
        """An edge at the lower end of each bucket but the first."""
        kept = sorted(b for b, count in self._counts.items() if count >= self._column.min_count)
        edges = tuple(_lower_end(bucket) for bucket in kept[1:])
        default = self._column.default
        return BucketEncoding(
            edges=edges, default=None if default is None else float(default)
        ), None


def x4_bucket(x: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number the x4 intervals in rising order: floor(x) up to 2, then 2 + floor(ln(x)²).

    >>> x4_bucket(np.array([-1.0, 0.0, 2.0, 3.0, 4.0, 5.0, 100.0])).tolist()
    [-1, 0, 2, 3, 3, 4, 23]
    """
    low = np.maximum(np.floor(x), _LOWEST_BUCKET)
    high = 2 + np.floor(np.log(np.maximum(x, 1.0)) ** 2)
    return np.where(x < np.e, low, high).astype(np.int64)


def _lower_end(bucket: int) -> float:
    return float(bucket) if bucket <= 2 else float(np.exp(np.sqrt(bucket - 2)))  # noqa: PLR2004


class VocabularyFitter:
    """Counts tokens; those seen often enough are known, the most frequent first."""

    def __init__(self, column: ColumnSpec) -> None:
        self._column = column
        self._counts = _no_counts()
        self._pending: list[pl.DataFrame] = []
        self._waiting = 0

    def update(self, series: pl.Series) -> None:
        """Count a chunk's tokens."""
        self._pending.append(_token_counts(series, self._column))
        self._waiting += len(self._pending[-1])
        # Merging costs as much as what is already there: wait until it is worth it.
        if self._waiting > max(_PENDING, len(self._counts)):
            self._merge()

    def result(self) -> Fitted:
        """Tokens by falling count, then by text, so the same rows always give the same table."""
        self._merge()
        kept = self._counts.filter(pl.col("count") >= self._column.min_count)
        tokens = kept.sort("count", "token", descending=[True, False])["token"].to_list()
        encoding = VocabularyEncoding(
            file=f"vocab/{self._column.name}.json",
            rows=FIRST + len(tokens),
            default=_text(self._column),
        )
        return encoding, tokens

    def _merge(self) -> None:
        whole = pl.concat([self._counts, *self._pending])
        self._counts = whole.group_by("token").agg(pl.col("count").sum())
        self._pending, self._waiting = [], 0


def _token_counts(series: pl.Series, column: ColumnSpec) -> pl.DataFrame:
    if column.kind == "multi":
        lists = series.str.split(column.separator) if series.dtype == pl.String else series
        values = lists.explode()
        values = values.filter(values != "") if series.dtype == pl.String else values
    else:
        values = series
    counts = values.drop_nulls().alias("token").value_counts()
    counts = counts.with_columns(tokens(counts["token"])).drop_nulls("token")
    return counts.cast({"count": pl.Int64})


def _no_counts() -> pl.DataFrame:
    return pl.DataFrame(schema={"token": pl.String, "count": pl.Int64})


def _values(series: pl.Series) -> NDArray[np.float64]:
    return series.cast(pl.Float64).fill_nan(None).drop_nulls().to_numpy()


def _number(column: ColumnSpec, otherwise: float) -> float:
    return otherwise if column.default is None else float(column.default)


def _text(column: ColumnSpec) -> str | None:
    return None if column.default is None else token(column.default)
