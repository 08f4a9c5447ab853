"""What a data source is: typed columns, a split by time, and chunks of raw rows.

A source never holds its rows: it yields polars frames of bounded size, so memory does not grow
with the data. Frames carry the columns of the data file under the file's own names.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Protocol

import polars as pl
from pydantic import Field, model_validator

from compress.config import CompressError, nearest
from model_store.manifest import DataSpec, Frozen, Kind, Side

Part = Literal["train", "validation", "test"]
PARTS: Final[tuple[Part, ...]] = ("train", "validation", "test")
OnBadCell = Literal["error", "skip"]


class DataError(CompressError):
    """The data cannot be used; the text says what was expected, what came and what to do."""


class BadCell(DataError):
    """A cell that is not what its column should hold.

    Attributes:
        path: the file.
        row: its row in the file, from 1, a header line counted.
        column: the column's name; None if the whole row is at fault.
        value: what came.
        expected: what would have been right, in words.
    """

    def __init__(self, path: Path, row: int, column: str | None, value: Any, expected: str) -> None:
        where = f"column {column!r}: " if column is not None else ""
        super().__init__(
            f"{path}: row {row}: {where}expected {expected}, got {value!r} "
            '(on_bad_cell = "skip", or --skip-bad, leaves such rows out and counts them)'
        )
        self.path, self.row, self.column, self.value = path, row, column, value
        self.expected = expected


@dataclass(slots=True)
class Tally:
    """Counts the rows that were left out for a bad cell."""

    rows: int = field(default=0)

    def add(self, rows: int) -> None:
        """Count ``rows`` more."""
        self.rows += rows


class ColumnSpec(Frozen):
    """One feature: where it comes from and how it wants to be encoded.

    Attributes:
        transform: for numbers; ``x4`` makes a categorical feature of them, see `x4_bucket`.
        hash_buckets: rows of a hashed table; None keeps a vocabulary of the training rows.
        min_count: tokens (or x4 buckets) seen less often in training are out of vocabulary.
        length: values kept of a multi-valued feature.
        default: takes the place of a missing value.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")
    kind: Kind
    side: Side
    column: str
    transform: Literal["identity", "log1p", "standardize", "x4"] = "identity"
    hash_buckets: int | None = Field(default=None, ge=1)
    min_count: int = Field(default=1, ge=1)
    length: int = Field(default=1, ge=1)
    separator: str = Field(default="|", min_length=1)
    default: float | str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "ColumnSpec":
        if self.kind != "multi" and self.length != 1:
            raise ValueError(f"{self.name}: only a multi-valued feature has a length over 1")
        if self.kind != "numeric" and self.transform != "identity":
            raise ValueError(f"{self.name}: only a numeric feature takes a transform")
        if self.kind == "numeric" and self.hash_buckets is not None:
            raise ValueError(f"{self.name}: a numeric feature cannot be hashed")
        if self.kind == "numeric" and isinstance(self.default, str):
            raise ValueError(f"{self.name}: the default of a numeric feature is a number")
        return self


class Schema(Frozen):
    """The features of a source and how its files are read.

    Attributes:
        item_id: the feature that is the candidate's own id, if any.
    """

    columns: tuple[ColumnSpec, ...] = Field(min_length=1)
    data: DataSpec
    item_id: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "Schema":
        names = [column.name for column in self.columns]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"features named twice: {', '.join(twice)}")
        if self.label in {column.column for column in self.columns}:
            raise ValueError(
                f"the label {self.label!r} cannot be a feature as well; name another label, or "
                "take that column out of the features"
            )
        if self.item_id is not None and self.item_id not in names:
            hint = nearest(self.item_id, names) or f"; they are {', '.join(names)}"
            raise ValueError(f"item_id {self.item_id!r} is none of the features{hint}")
        return self

    @property
    def label(self) -> str:
        """The label's column."""
        return self.data.label


class Source(Protocol):
    """A data set: registered in `SOURCES`, configured by the ``[data]`` section."""

    Config: ClassVar[type[Frozen]]

    def schema(self) -> Schema:
        """The features; cheap, reads no rows."""
        ...

    def chunks(
        self, parts: Sequence[Part] = PARTS, tally: Tally | None = None
    ) -> Iterator[tuple[Part, pl.DataFrame]]:
        """Raw rows, each frame of one part and of bounded size, in the order of the data.

        Args:
            parts: of the split; the others are left out.
            tally: counts the rows left out for a bad cell.

        Raises:
            DataError: the data cannot be read; `BadCell` names row, column and value.
        """
        ...

    def items(self) -> pl.DataFrame | None:
        """The catalogue: one row per item, the item side's columns; None if there is none."""
        ...

    def fingerprint(self) -> str:
        """A hash over the data and over how it is read and split."""
        ...

    def notice(self) -> str | None:
        """Terms and origin that the user should be shown, if any."""
        ...


def column_kinds(schema: Schema) -> Mapping[str, Kind]:
    """The kind of each column of the data file (several features may share a column)."""
    kinds: dict[str, Kind] = {}
    for column in schema.columns:
        if kinds.setdefault(column.column, column.kind) != column.kind:
            raise DataError(f"column {column.column!r} is declared with two kinds")
    return kinds


def digest(*parts: str) -> str:
    """One sha256 over texts."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(f"{len(part)}:{part}".encode())
    return whole.hexdigest()
