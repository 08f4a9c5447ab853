"""A user's own parquet or CSV, described in the config.

    [data]
    type = "table"
    path = "clicks.csv"          # or a folder, or a glob
    label = "clicked"
    time = "day"
    item_id = "product"
    items = "products.parquet"   # optional: the catalogue
    columns = [
      { name = "country", kind = "categorical", side = "user" },
      { name = "product", kind = "categorical", side = "item" },
      { name = "price", kind = "numeric", side = "item", transform = "log1p" },
      { name = "tags", kind = "multi-valued", side = "item", separator = "|" },
    ]

Item columns that the rows lack are joined in from the catalogue. Without a catalogue file, the
catalogue is what the rows say last of each item.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import ClassVar, Final, Literal

import polars as pl
from pydantic import Field, field_validator, model_validator

from compress.data.base import (
    PARTS,
    ColumnSpec,
    DataError,
    OnBadCell,
    Part,
    Schema,
    Tally,
    column_kinds,
    digest,
)
from compress.data.cells import Role, Rules, tokens
from compress.data.files import Files, Table, find_files
from compress.data.split import ROW, Split
from model_store.manifest import DataSpec, Frozen, Kind, Side

MULTI_LENGTH: Final = 8


class TableColumn(Frozen):
    """A feature.

    Attributes:
        column: its column in the file, if that is not its name.
        kind: ``multi-valued`` (or ``multi``) takes lists, or text cut at ``separator``.
        length: values kept of a multi-valued feature (default 8).
        min_count: takes the place of the table's.
    """

    name: str
    kind: Literal["numeric", "categorical", "multi-valued", "multi"]
    side: Side
    column: str | None = None
    transform: Literal["identity", "log1p", "standardize", "x4"] = "identity"
    hash_buckets: int | None = Field(default=None, ge=1)
    min_count: int | None = Field(default=None, ge=1)
    length: int | None = Field(default=None, ge=1)
    separator: str = Field(default="|", min_length=1)
    default: float | str | None = None

    @field_validator("kind")
    @classmethod
    def _one_spelling(cls, kind: str) -> str:
        return "multi" if kind == "multi-valued" else kind

    def spec(self, min_count: int) -> ColumnSpec:
        """The feature with the table's defaults filled in."""
        length = MULTI_LENGTH if self.kind == "multi" else 1
        given = self.model_dump(exclude={"column", "min_count", "length"})
        return ColumnSpec(
            column=self.column or self.name,
            min_count=min_count if self.min_count is None else self.min_count,
            length=length if self.length is None else self.length,
            **given,
        )


class TableConfig(Frozen):
    """Options of the source.

    Attributes:
        path: a file, a folder of files or a glob (.parquet, .csv, .tsv, .txt, .gz of the texts).
        label: its column, 0 or 1 unless ``positive_from`` is given.
        positive_from: labels at or above it are positive.
        item_id: the feature that is the item's own id.
        items: file of the catalogue, with the item id and the item side's columns.
        time: its column: numbers, dates or, with ``time_format``, text. The split's default.
        min_count: tokens seen less often in training are out of vocabulary.
        missing: texts that mean a missing value, in text files.
    """

    path: str
    label: str
    columns: tuple[TableColumn, ...] = Field(min_length=1)
    positive_from: float | None = None
    item_id: str | None = None
    items: str | None = None
    time: str | None = None
    time_format: str | None = None
    split: Split = Split()
    min_count: int = Field(default=1, ge=1)
    separator: str | None = Field(default=None, min_length=1, max_length=1)
    missing: tuple[str, ...] = ("",)
    on_bad_cell: OnBadCell = "error"

    @model_validator(mode="after")
    def _consistent(self) -> "TableConfig":
        schema = self.as_schema()  # raises what is wrong with the columns
        if self.items is not None and self.item_id is None:
            raise ValueError("items needs item_id, the feature that names an item")
        id_side = next((c.side for c in schema.columns if c.name == self.item_id), "item")
        if id_side != "item":
            raise ValueError(f"item_id {self.item_id!r} must be on the item side")
        tokens_ = {c.column for c in schema.columns if c.kind != "numeric"}
        if self.by in tokens_:
            raise ValueError(
                f"{self.by!r} is the time, so it must be a number: as a feature it can be numeric"
            )
        return self

    @property
    def by(self) -> str | None:
        """The column that the rows are split by."""
        return self.split.column or self.time

    def as_schema(self) -> Schema:
        """The features as the rest of the program knows them."""
        return Schema(
            columns=tuple(column.spec(self.min_count) for column in self.columns),
            data=DataSpec(label=self.label, positive_from=self.positive_from, time=self.by),
            item_id=self.item_id,
        )


class UserTable:
    """A user's rows."""

    Config: ClassVar[type[Frozen]] = TableConfig

    def __init__(self, config: TableConfig) -> None:
        self._config = config

    def schema(self) -> Schema:
        """As the config says."""
        return self._config.as_schema()

    def chunks(
        self, parts: Sequence[Part] = PARTS, tally: Tally | None = None
    ) -> Iterator[tuple[Part, pl.DataFrame]]:
        """Rows in file order, with the catalogue's columns where they lack them."""
        for part, rows in self._table.chunks(parts, tally):
            yield part, self._with_item_columns(rows)

    def items(self) -> pl.DataFrame | None:
        """The catalogue's file, or what the rows say last of each item."""
        return self._items

    def fingerprint(self) -> str:
        """Over the bytes of all files and how they are read."""
        return self._fingerprint

    def notice(self) -> None:
        """None: the data are the user's."""
        return

    @cached_property
    def _fingerprint(self) -> str:
        settings = self._config.model_dump_json(exclude={"path", "items"})
        files = [self._table.files, *([self._catalogue_files] if self._config.items else [])]
        return digest("table", settings, *(some.fingerprint() for some in files))

    @cached_property
    def _kinds(self) -> dict[str, Kind]:
        return dict(column_kinds(self.schema()))

    @cached_property
    def _item_columns(self) -> list[str]:
        """The columns of the item side, the id first."""
        columns = [c.column for c in self.schema().columns if c.side == "item"]
        id_ = self._id_column
        return list(dict.fromkeys([id_, *columns])) if id_ is not None else columns

    @cached_property
    def _id_column(self) -> str | None:
        named = (c.column for c in self.schema().columns if c.name == self._config.item_id)
        return next(named, None)

    @cached_property
    def _joined(self) -> list[str]:
        """The item columns that the rows lack and the catalogue has."""
        if self._config.items is None:
            return []
        known = self._files({}).columns()
        return [c for c in self._item_columns if c not in known and c != self._id_column]

    @cached_property
    def _table(self) -> Table:
        config = self._config
        roles: dict[str, Role] = {config.label: "label"}
        roles |= {name: kind for name, kind in self._kinds.items() if name not in self._joined}
        if config.by is not None:
            roles[config.by] = "time"
        return Table(self._files(roles), config.split.model_copy(update={"column": config.by}))

    @cached_property
    def _catalogue_files(self) -> Files:
        roles: dict[str, Role] = {name: self._kinds[name] for name in self._item_columns}
        paths = find_files(self._config.items or "")
        return replace(self._files(roles), paths=paths)

    def _files(self, roles: dict[str, Role]) -> Files:
        config = self._config
        return Files(
            paths=find_files(config.path),
            rules=Rules(roles, config.positive_from, config.time_format),
            separator=config.separator,
            missing=config.missing,
            on_bad_cell=config.on_bad_cell,
        )

    def _with_item_columns(self, rows: pl.DataFrame) -> pl.DataFrame:
        if not self._joined or self._items is None or self._id_column is None:
            return rows
        keyed = rows.with_columns(tokens(rows[self._id_column]).alias(ROW))
        joined = self._items.select(pl.col(self._id_column).alias(ROW), *self._joined)
        return keyed.join(joined, on=ROW, how="left", maintain_order="left").drop(ROW)

    @cached_property
    def _items(self) -> pl.DataFrame | None:
        id_ = self._id_column
        if id_ is None:
            return None
        if self._config.items is not None:
            items = _last_of_each(self._catalogue_files, id_, self._item_columns)
        else:
            roles = {name: self._table.files.rules.roles[name] for name in self._item_columns}
            files = replace(self._files(roles), on_bad_cell="skip")
            items = _last_of_each(files, id_, self._item_columns)
        if items.is_empty():
            raise DataError(f"no row names an item in column {id_!r}")
        return items


def _last_of_each(files: Files, id_: str, columns: Sequence[str]) -> pl.DataFrame:
    """What the files say last of each item, by id; only the distinct items are in memory."""
    seen: pl.DataFrame | None = None
    for frame in files.frames():
        rows = frame.select(columns).with_columns(tokens(frame[id_])).drop_nulls(id_)
        both = rows if seen is None else pl.concat([seen, rows], how="vertical_relaxed")
        seen = both.unique(id_, keep="last", maintain_order=True)
    return pl.DataFrame(schema={id_: pl.String}) if seen is None else seen.sort(id_)
