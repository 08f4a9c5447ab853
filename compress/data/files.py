"""Reads parquet and delimited text in bounded memory, cell by cell checked.

Every file becomes frames of raw values: numbers, labels and times as Float64, categories in the
type they came in (strings, from text). A cell that cannot be what its column should hold is an
error that names it, or its row is left out and counted.
"""

import difflib
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from compress.data.base import BadCell, DataError, OnBadCell, Part, Tally
from compress.data.cells import Rules, WrongType
from compress.data.split import ROW, Cut, Split, resolve_cut

CHUNK_ROWS: Final = 1 << 16
# Of text read at once. The reader keeps up to 32 blocks in hand; larger ones measured slower.
BLOCK_BYTES: Final = 1 << 20
SUFFIXES: Final = (".parquet", ".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
_SHOWN: Final = 80  # characters of a bad cell in a message


@dataclass(frozen=True)
class Files:
    """Files of one shape, read as one table.

    Attributes:
        paths: in reading order.
        rules: the columns that are read, and what they should hold.
        names: the columns of text files without a header line; None if they have one.
        separator: between the fields of text; None: a comma in .csv, else a tab.
        quote: whether fields of text may be quoted.
        missing: texts that mean a missing value.
        on_bad_cell: whether a bad cell is an error, or its row is skipped and counted.
    """

    paths: tuple[Path, ...]
    rules: Rules
    names: tuple[str, ...] | None = None
    separator: str | None = None
    quote: bool = True
    missing: tuple[str, ...] = ("",)
    on_bad_cell: OnBadCell = "error"

    def frames(self, tally: Tally | None = None) -> Iterator[pl.DataFrame]:
        """Checked rows, with their number over all files in column `ROW`.

        Raises:
            DataError: a file cannot be read; `BadCell`: a cell is wrong.
        """
        tally = Tally() if tally is None else tally
        start = 0
        for path in self.paths:
            rows = 0
            for frame in self._raw(path, tally):
                if frame.is_empty():  # only blank or skipped lines
                    continue
                rows = int(frame[ROW][-1]) + 1
                yield self._checked(path, frame, tally).with_columns(pl.col(ROW) + start)
            start += rows

    def columns(self) -> list[str]:
        """The columns of the first file."""
        return self._columns(self.paths[0])

    def count(self) -> int:
        """The number of rows in all files, bad ones included."""
        return sum(self._count(path) for path in self.paths)

    def values(self, column: str) -> Iterator[NDArray[np.float64]]:
        """Stream a column of numbers or times, bad cells left out."""
        rules = replace(self.rules, roles={column: self.rules.roles[column]})
        for frame in replace(self, rules=rules, on_bad_cell="skip").frames():
            yield frame[column].drop_nulls().to_numpy()

    def fingerprint(self) -> str:
        """A sha256 over the bytes of all files."""
        whole = hashlib.sha256()
        for path in self.paths:
            with _readable(path), path.open("rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
        return whole.hexdigest()

    def _count(self, path: Path) -> int:
        if path.suffix == ".parquet":
            with _readable(path):
                return int(pq.ParquetFile(path).metadata.num_rows)
        first = self._columns(path)[0]
        narrow = replace(self, rules=Rules({first: "categorical"}), on_bad_cell="skip")
        numbers = (frame[ROW] for frame in narrow._text(path, Tally()))  # noqa: SLF001
        return max((int(rows[-1]) + 1 for rows in numbers if len(rows)), default=0)

    def _raw(self, path: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        return self._parquet(path) if path.suffix == ".parquet" else self._text(path, tally)

    def _parquet(self, path: Path) -> Iterator[pl.DataFrame]:
        with _readable(path):
            self._require(path)
            file = pq.ParquetFile(path, pre_buffer=False)
            start = 0
            for batch in file.iter_batches(CHUNK_ROWS, columns=list(self.rules.roles)):
                rows = np.arange(start, start + len(batch), dtype=np.int64)
                start += len(batch)
                if len(batch):
                    yield _frame(pa.Table.from_batches([batch]), rows)

    def _text(self, path: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        self._require(path)
        ragged = _Ragged(path, self._first_line, self.on_bad_cell, tally)
        columns = list(self.rules.roles)
        options = pa_csv.ConvertOptions(
            # As bytes, since one badly encoded cell would else end the reading.
            column_types=dict.fromkeys(columns, pa.binary()),
            include_columns=columns,
            null_values=list(self.missing),
            strings_can_be_null=True,
        )
        with _readable(path):
            with self._open(path, ragged, options) as reader:
                for table in _gathered(reader):
                    frame = self._decoded(path, table, ragged.rows(len(table)), tally)
                    if ragged.error is not None:  # a cell before it may be bad as well
                        frame = frame.filter(pl.col(ROW) + self._first_line < ragged.error.row)
                    yield frame
                    if ragged.error is not None:
                        raise ragged.error
            if ragged.error is not None:
                raise ragged.error

    def _open(
        self, path: Path, ragged: "_Ragged", options: pa_csv.ConvertOptions | None = None
    ) -> pa_csv.CSVStreamingReader:
        return pa_csv.open_csv(
            pa.input_stream(str(path), compression="detect"),
            # One thread: several give the handler no row numbers (and measured slower).
            pa_csv.ReadOptions(column_names=self.names, block_size=BLOCK_BYTES, use_threads=False),
            pa_csv.ParseOptions(
                delimiter=self.separator or separator_of(path),
                quote_char='"' if self.quote else False,
                newlines_in_values=self.quote,
                ignore_empty_lines=False,
                invalid_row_handler=ragged,
            ),
            options,
        )

    def _columns(self, path: Path) -> list[str]:
        if self.names is not None and path.suffix != ".parquet":
            return list(self.names)
        with _readable(path):
            if path.suffix == ".parquet":
                return list(pq.read_schema(path).names)
            skip = _Ragged(path, self._first_line, "skip", Tally())
            # A reader left open keeps its threads, which abort the process at its end.
            with self._open(path, skip) as reader:
                return list(reader.schema.names)

    def _require(self, path: Path) -> None:
        wanted, found = list(self.rules.roles), self._columns(path)
        absent = [column for column in wanted if column not in found]
        if absent:
            close = {c: difflib.get_close_matches(c, found, n=1, cutoff=0.5) for c in absent}
            named = [f"{c!r}" + "".join(f" (nearest: {n!r})" for n in close[c]) for c in absent]
            raise DataError(
                f"{path}: no column {', '.join(named)}; "
                f"expected {', '.join(wanted)}; found {', '.join(found)}"
            )

    @property
    def _first_line(self) -> int:
        return 1 if self.names is not None else 2

    def _decoded(
        self, path: Path, table: pa.Table, rows: NDArray[np.int64], tally: Tally
    ) -> pl.DataFrame:
        columns = table.column_names
        try:
            frame = _frame(table.cast(pa.schema([(name, pa.string()) for name in columns])), rows)
        except pa.ArrowInvalid:
            frame = self._salvaged(path, _frame(table, rows), tally)
        if len(columns) > 1 and frame[columns[0]].has_nulls():  # blank lines are no rows
            frame = frame.filter(~pl.all_horizontal(pl.col(columns).is_null()))
        return frame

    def _salvaged(self, path: Path, frame: pl.DataFrame, tally: Tally) -> pl.DataFrame:
        """The rows of bytes that are text."""
        columns = list(self.rules.roles)
        good = pl.Series([all(map(_is_utf8, row)) for row in frame.select(columns).rows()])
        if self.on_bad_cell == "error":
            index = int(good.arg_min() or 0)
            column = next(c for c in columns if not _is_utf8(frame[c][index]))
            row = int(frame[ROW][index]) + self._first_line
            raise BadCell(path, row, column, _shown(frame[column][index]), "text in UTF-8")
        tally.add(int((~good).sum()))
        return frame.filter(good).with_columns(pl.col(columns).cast(pl.String))

    def _checked(self, path: Path, frame: pl.DataFrame, tally: Tally) -> pl.DataFrame:
        try:
            typed, bad = self.rules.typed(frame)
        except WrongType as error:
            raise DataError(f"{path}: {error}") from None
        if not bad.any():
            return typed
        if self.on_bad_cell == "error":
            wrong = self.rules.first_wrong(frame)
            first = 1 if path.suffix == ".parquet" else self._first_line
            row = int(frame[ROW][wrong.index]) + first
            raise BadCell(path, row, wrong.column, _shown(wrong.value), wrong.expected)
        tally.add(int(bad.sum()))
        return typed.filter(~bad)


class _Ragged:
    """Handles lines of the wrong number of fields, and numbers the others."""

    def __init__(self, path: Path, first_line: int, on_bad_cell: OnBadCell, tally: Tally) -> None:
        self.error: BadCell | None = None
        self._path, self._first_line = path, first_line
        self._on_bad_cell, self._tally = on_bad_cell, tally
        self._skipped: list[int] = []  # rows from 0 that the reader has dropped, not yet passed
        self._next = 0

    def __call__(self, row: pa_csv.InvalidRow) -> str:
        self._skipped.append(row.number - self._first_line)
        if self._on_bad_cell == "skip":
            self._tally.add(1)
        elif self.error is None:
            expected = f"{row.expected_columns} fields ({row.actual_columns} found)"
            self.error = BadCell(self._path, row.number, None, _shown(row.text), expected)
        return "skip"

    def rows(self, count: int) -> NDArray[np.int64]:
        """The numbers of the next ``count`` rows, from 0."""
        span = np.arange(self._next, self._next + count + len(self._skipped), dtype=np.int64)
        rows = np.setdiff1d(span, self._skipped, assume_unique=True)[:count]
        self._next = int(rows[-1]) + 1
        self._skipped = [row for row in self._skipped if row >= self._next]
        return rows


@dataclass(frozen=True)
class Table:
    """Files and how their rows are split into parts."""

    files: Files
    split: Split

    @cached_property
    def cut(self) -> Cut:
        """The split's boundary values; reading fractions takes a pass over the rows."""
        column = self.split.column
        return resolve_cut(
            self.split, self.files.count, lambda: self.files.values(column) if column else ()
        )

    def chunks(
        self, parts: Sequence[Part], tally: Tally | None
    ) -> Iterator[tuple[Part, pl.DataFrame]]:
        """Rows of some parts, in file order."""
        end = max(self.cut.bounds(part)[1] for part in parts)
        for frame in self.files.frames(tally):
            for part in parts:
                rows = self.cut.select(frame, part).drop(ROW)
                if len(rows):
                    yield part, rows
            if self.cut.column == ROW and len(frame) and frame[ROW][-1] >= end:
                return


def find_files(path: str) -> tuple[Path, ...]:
    """The data files that a path names: a file, a folder of files, or a glob.

    Files of a folder are taken in natural order (day_2 before day_10).

    Raises:
        DataError: there are none.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return (place,)
    found = place.iterdir() if place.is_dir() else map(Path, glob(str(place)))  # noqa: PTH207
    files = sorted((file for file in found if file.name.endswith(SUFFIXES)), key=_natural)
    if not files:
        raise DataError(
            f"{path}: no such file, and no folder or pattern of {', '.join(SUFFIXES)} files"
        )
    return tuple(files)


def separator_of(path: Path) -> str:
    """The separator that a file's name suggests."""
    return "," if ".csv" in path.suffixes else "\t"


def _natural(path: Path) -> list[tuple[int, str]]:
    pieces = re.split(r"(\d+)", path.name)
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in pieces]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _gathered(reader: pa_csv.CSVStreamingReader) -> Iterator[pa.Table]:
    """Small blocks put together to `CHUNK_ROWS` or more, since each chunk has its fixed costs."""
    batches: list[pa.RecordBatch] = []
    for batch in reader:
        batches.append(batch)
        if sum(map(len, batches)) >= CHUNK_ROWS:
            yield pa.Table.from_batches(batches)
            batches = []
    if any(map(len, batches)):
        yield pa.Table.from_batches(batches)


def _frame(table: pa.Table, rows: NDArray[np.int64]) -> pl.DataFrame:
    return pl.DataFrame(table).with_columns(pl.Series(ROW, rows))


def _is_utf8(cell: bytes | None) -> bool:
    try:
        return cell is None or bool(cell.decode()) or True
    except UnicodeDecodeError:
        return False


def _shown(value: Any) -> Any:
    if isinstance(value, bytes):
        value = value.decode(errors="backslashreplace")
    return value[:_SHOWN] + "…" if isinstance(value, str) and len(value) > _SHOWN else value
