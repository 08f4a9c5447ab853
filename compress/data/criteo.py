"""The Criteo display advertising challenge: its TSV (plain or .gz) or the same as parquet.

Forty columns without a header: the label, 13 counts (I1..I13) and 26 hashed categories (C1..C26),
rows in time order. The challenge names no sides, so the config says which columns a request
carries; the rest are the candidates'.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import ClassVar, Final, Literal

import polars as pl
from pydantic import Field, field_validator

from compress.data.base import (
    PARTS,
    ColumnSpec,
    OnBadCell,
    Part,
    Schema,
    Tally,
    column_kinds,
    digest,
)
from compress.data.cells import Role, Rules
from compress.data.files import Files, Table, find_files
from compress.data.split import Split
from model_store.manifest import DataSpec, Frozen

NUMERIC: Final = tuple(f"I{i}" for i in range(1, 14))
CATEGORICAL: Final = tuple(f"C{i}" for i in range(1, 27))
LABEL: Final = "label"
COLUMNS: Final = (LABEL, *NUMERIC, *CATEGORICAL)


class CriteoConfig(Frozen):
    """Options of the source.

    Attributes:
        path: a file, a folder of files or a glob (.tsv, .txt, .gz of them, .parquet).
        numeric: ``log1p`` as DLRM, or the buckets of the x4 splits as categories.
        request_side: the columns that a request carries once for all its candidates.
        min_count: categories seen less often in training are out of vocabulary.
        hash_buckets: hash the categories into so many rows, instead of a vocabulary.
        split: by boundaries, or by fractions of the rows (in file order without a column).
    """

    path: str
    numeric: Literal["log1p", "x4"] = "log1p"
    request_side: tuple[str, ...] = (*NUMERIC, *CATEGORICAL[:16])
    min_count: int = Field(default=2, ge=1)
    hash_buckets: int | None = Field(default=None, ge=1)
    split: Split = Split()
    on_bad_cell: OnBadCell = "error"

    @field_validator("request_side")
    @classmethod
    def _known(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        if strangers := sorted(set(columns) - set(NUMERIC + CATEGORICAL)):
            raise ValueError(f"no feature {', '.join(strangers)}; the features are I1-I13, C1-C26")
        return columns


class Criteo:
    """Criteo's rows."""

    Config: ClassVar[type[Frozen]] = CriteoConfig

    def __init__(self, config: CriteoConfig) -> None:
        self._config = config

    def schema(self) -> Schema:
        """I1..I13 and C1..C26."""
        return Schema(
            columns=tuple(self._column(name) for name in NUMERIC + CATEGORICAL),
            data=DataSpec(label=LABEL, tsv_columns=COLUMNS, time=self._config.split.column),
        )

    def chunks(
        self, parts: Sequence[Part] = PARTS, tally: Tally | None = None
    ) -> Iterator[tuple[Part, pl.DataFrame]]:
        """Rows in time order."""
        return self._table.chunks(parts, tally)

    def items(self) -> None:
        """None: the challenge does not say what was shown."""
        return

    def fingerprint(self) -> str:
        """Over the files' bytes and the split."""
        return self._fingerprint

    def notice(self) -> str:
        """Criteo's terms."""
        return (
            "Criteo's rows are under the Criteo Labs data terms of use: non-commercial, "
            "no distribution."
        )

    @cached_property
    def _fingerprint(self) -> str:
        settings = self._config.model_dump_json(exclude={"path"})
        return digest("criteo", settings, self._table.files.fingerprint())

    @cached_property
    def _table(self) -> Table:
        config = self._config
        kinds = column_kinds(self.schema())
        time: dict[str, Role] = {config.split.column: "time"} if config.split.column else {}
        files = Files(
            paths=find_files(config.path),
            rules=Rules({LABEL: "label", **kinds, **time}),
            names=COLUMNS,
            separator="\t",
            quote=False,
            on_bad_cell=config.on_bad_cell,
        )
        return Table(files, config.split)

    def _column(self, name: str) -> ColumnSpec:
        config, counts = self._config, name in NUMERIC
        return ColumnSpec(
            name=name,
            kind="numeric" if counts else "categorical",
            side="context" if name in config.request_side else "item",
            column=name,
            transform=config.numeric if counts else "identity",
            hash_buckets=None if counts else config.hash_buckets,
            min_count=config.min_count,
        )
