"""Feature encoding: raw values → the numbers that a graph takes.

Training and serving both encode through this module, so they cannot drift apart. Rows of an
embedding table: 0 is out of vocabulary, 1 is missing, 2.. are the known tokens.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final, Protocol
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from model_store.errors import BadValue
from model_store.manifest import (
    BucketEncoding,
    FeatureSpec,
    HashEncoding,
    NumericEncoding,
    Transform,
    VocabularyEncoding,
)

OOV: Final = 0
MISSING: Final = 1
FIRST: Final = 2
LARGEST: Final = float(np.finfo(np.float32).max)

Rows = NDArray[np.int32]
Values = Sequence[Any] | NDArray[Any]
Numbers = float | NDArray[np.float64]

_PLAIN_NUMBERS: Final = frozenset({int, float, type(None)})
_NULL: Final = type(None)
_TEXTS: Final = frozenset({str, _NULL})


def token(value: Any) -> str | None:
    """The canonical text of a categorical value, None if it is missing.

    >>> token(24), token(24.0), token("24"), token(True), token(None), token(float("nan"))
    ('24', '24', '24', 'true', None, None)
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        if math.isnan(value):
            return None
        return str(int(value)) if float(value).is_integer() else repr(float(value))
    raise TypeError("a string, a number or a boolean")


def hash_row(text: str, rows: int) -> int:
    """The row of a token in a hashed table of ``rows`` rows."""
    # Half a surrogate pair is no UTF-8, but it can come in JSON; it is a token like any other.
    return FIRST + crc32(text.encode(errors="surrogatepass")) % (rows - FIRST)


class Encoder(Protocol):
    """Encodes values of one feature: (n,) values → (n, length) int32 rows or float32 numbers."""

    @property
    def spec(self) -> FeatureSpec:
        """The feature it encodes."""
        ...

    def encode(self, values: Values) -> NDArray[Any]:
        """Encode values.

        Raises:
            BadValue: a value is of the wrong type or not finite.
        """
        ...


def _number(spec: FeatureSpec, index: int, value: Any, default: float | None) -> float:
    if value is None:
        return math.nan if default is None else default
    if isinstance(value, bool | str) or not isinstance(value, int | float | np.number):
        raise BadValue(spec.name, index, value, "a number or null")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isnan(number) and not isinstance(value, int):
        return math.nan if default is None else default
    if not abs(number) <= LARGEST:
        raise BadValue(spec.name, index, value, "a number within ±3.4e38")
    return number


def _numbers(spec: FeatureSpec, values: Values, default: float | None) -> NDArray[np.float64]:
    # A column of numbers (and nulls) takes the fast way; the slow one names the bad value.
    column: Any = values
    if _PLAIN_NUMBERS.issuperset(map(type, column)):
        with suppress(OverflowError):  # an integer beyond float64
            column = np.array(column, dtype=np.float64)
    if isinstance(column, np.ndarray) and column.dtype.kind in "fiu":
        numbers = column.astype(np.float64)
        if default is not None:
            numbers = np.where(np.isnan(numbers), default, numbers)
        bad = np.flatnonzero(np.abs(numbers) > LARGEST)
        if bad.size:
            raise BadValue(spec.name, int(bad[0]), column[bad[0]].item(), "a number within ±3.4e38")
        return numbers
    return np.array([_number(spec, i, v, default) for i, v in enumerate(values)], dtype=np.float64)


def scaled(
    x: NDArray[np.float64], transform: Transform, mean: Numbers, scale: Numbers
) -> NDArray[np.float64]:
    """Numbers as a graph takes them, yet to be rounded to float32."""
    if transform == "log1p":
        return np.log1p(np.maximum(x, 0.0))
    if transform == "standardize":
        return np.clip((x - mean) / scale, -LARGEST, LARGEST)
    return x


def transformed(
    x: NDArray[np.float64], transform: Transform, mean: Numbers, scale: Numbers
) -> NDArray[np.float32]:
    """Numbers as a graph takes them."""
    return scaled(x, transform, mean, scale).astype(np.float32)


@dataclass(frozen=True, slots=True)
class NumericEncoder:
    """Numbers → (n, 1) float32, transformed."""

    spec: FeatureSpec
    encoding: NumericEncoding

    def encode(self, values: Values) -> NDArray[np.float32]:
        """Encode numbers; missing ones become the declared default."""
        return self.transformed(_numbers(self.spec, values, self.encoding.default))[:, None]

    def transformed(self, x: NDArray[np.float64]) -> NDArray[np.float32]:
        """(n,) numbers as the graph takes them."""
        encoding = self.encoding
        return transformed(x, encoding.transform, encoding.mean, encoding.scale)


@dataclass(frozen=True, slots=True)
class BucketEncoder:
    """Numbers → (n, 1) rows of a table with one row per bucket."""

    spec: FeatureSpec
    encoding: BucketEncoding

    def encode(self, values: Values) -> Rows:
        """Encode numbers; missing ones take row 1."""
        x = _numbers(self.spec, values, self.encoding.default)
        rows = FIRST + np.searchsorted(np.asarray(self.encoding.edges), x, side="right")
        return np.where(np.isnan(x), MISSING, rows).astype(np.int32)[:, None]

    def row(self, value: Any, index: int = 0) -> int:
        """The row of one value: what `encode` gives, without the cost of arrays."""
        x = _number(self.spec, index, value, self.encoding.default)
        return MISSING if math.isnan(x) else FIRST + bisect_right(self.encoding.edges, x)


@dataclass(frozen=True, slots=True)
class CategoricalEncoder:
    """Tokens → (n, length) rows, by vocabulary or by hash.

    Attributes:
        vocabulary: token -> row; None if the feature is hashed.
    """

    spec: FeatureSpec
    encoding: VocabularyEncoding | HashEncoding
    vocabulary: Mapping[str, int] | None

    def row(self, value: Any, index: int = 0) -> int:
        """The row of one value."""
        if type(value) is str and self.vocabulary is not None:
            return self.vocabulary.get(value, OOV)
        try:
            text = token(value)
        except TypeError as error:
            raise BadValue(self.spec.name, index, value, f"{error}") from None
        if text is None:
            text = self.encoding.default
        if text is None:
            return MISSING
        if self.vocabulary is None:
            return hash_row(text, self.encoding.rows)
        return self.vocabulary.get(text, OOV)

    def encode(self, values: Values) -> Rows:
        """Encode tokens, or lists of tokens if the feature is multi-valued.

        A multi-valued value may also be one text, cut at the feature's separator; lists longer
        than ``length`` keep their first values.
        """
        if self.spec.kind != "multi":
            kinds = set(map(type, values))
            if self.vocabulary is not None and kinds <= _TEXTS:
                each = map(self.vocabulary.get, values, repeat(OOV))
                found = np.fromiter(each, np.int32, len(values))
                if _NULL in kinds:
                    found[[value is None for value in values]] = self.row(None)
                return found[:, None]
            return np.array([self.row(v, i) for i, v in enumerate(values)], np.int32)[:, None]
        length, flat = self.spec.length, list[int]()
        for i, value in enumerate(values):
            rows = [self.row(part, i) for part in self._parts(value, i)[:length]]
            flat += rows
            flat += [MISSING] * (length - len(rows))
        return np.array(flat, dtype=np.int32).reshape(-1, length)

    def _parts(self, value: Any, index: int) -> Sequence[Any]:
        if value is None:
            return []
        if isinstance(value, str):
            return [part for part in value.split(self.spec.separator) if part]
        if isinstance(value, list | tuple | np.ndarray):
            return [part for part in value if part is not None]
        raise BadValue(self.spec.name, index, value, "a list of strings, or null")


def make_encoder(spec: FeatureSpec, tokens: Sequence[str] | None = None) -> Encoder:
    """The encoder of a feature.

    Args:
        spec: the feature.
        tokens: the known tokens in row order (row 2 first), for a vocabulary encoding.
    """
    match spec.encoding:
        case NumericEncoding():
            return NumericEncoder(spec, spec.encoding)
        case BucketEncoding():
            return BucketEncoder(spec, spec.encoding)
        case HashEncoding():
            return CategoricalEncoder(spec, spec.encoding, None)
        case _:
            if tokens is None:
                raise ValueError(f"{spec.name}: a vocabulary encoding needs its tokens")
            vocabulary = {text: row for row, text in enumerate(tokens, start=FIRST)}
            return CategoricalEncoder(spec, spec.encoding, vocabulary)
