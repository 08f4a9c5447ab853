"""Reads parquet and delimited text in bounded memory, cell by cell checked.

Every file becomes frames of raw values: numbers, labels and times as Float64, categories in the
type they came in (strings, from text). A cell that cannot be what its column should hold is an
error that names it, or its row is left out and counted.
"""

import difflib
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from compress.data.base import BadCell, DataError, OnBadCell, Tally
from compress.data.split import ROW

CHUNK_ROWS: Final = 1 << 16
BLOCK_BYTES: Final = 1 << 23  # of text read at once: about 32 k rows of Criteo
SUFFIXES: Final = (".parquet", ".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
FLOAT32_MAX: Final = float(np.finfo(np.float32).max)

Role = Literal["numeric", "categorical", "multi", "label", "time"]

_EXPECTED: Final[Mapping[Role, str]] = {
    "numeric": "a number within ±3.4e38",
    "categorical": "text",
    "multi": "a list, or text",
    "label": "0 or 1",
    "time": "a time",
}


@dataclass(frozen=True, slots=True)
class Files:
    """Files of one shape, read as one table.

    Attributes:
        paths: in reading order.
        roles: what each column that is read should hold.
        names: the columns of text files without a header line; None if they have one.
        separator: between the fields of text; None: a comma in .csv, else a tab.
        quote: whether fields of text may be quoted.
        missing: texts that mean a missing value.
        positive_from: labels are any numbers, positive from here on; None: they are 0 or 1.
        time_format: how times in text are written (as `strptime`); None: as numbers.
    """

    paths: tuple[Path, ...]
    roles: Mapping[str, Role]
    names: tuple[str, ...] | None = None
    separator: str | None = None
    quote: bool = True
    missing: tuple[str, ...] = ("",)
    positive_from: float | None = None
    time_format: str | None = None
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
                rows = int(frame[ROW][-1]) + 1
                yield self._checked(path, frame, tally).with_columns(pl.col(ROW) + start)
            start += rows

    def count(self) -> int:
        """The number of rows in all files, bad ones included."""
        return sum(self._count(path) for path in self.paths)

    def values(self, column: str) -> Iterator[NDArray[np.float64]]:
        """Stream a column of numbers or times, bad cells left out."""
        only = replace(self, roles={column: self.roles[column]}, on_bad_cell="skip")
        for frame in only.frames():
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
        first = self.names[0] if self.names is not None else self._header(path)[0]
        narrow = replace(self, roles={first: "categorical"}, on_bad_cell="skip")
        last = -1
        for frame in narrow._raw(path, Tally()):  # noqa: SLF001
            last = int(frame[ROW][-1])
        return last + 1

    def _raw(self, path: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        return self._parquet(path) if path.suffix == ".parquet" else self._text(path, tally)

    def _parquet(self, path: Path) -> Iterator[pl.DataFrame]:
        with _readable(path):
            file = pq.ParquetFile(path, pre_buffer=False)
            _require(path, self.roles, file.schema_arrow.names)
            start = 0
            for batch in file.iter_batches(CHUNK_ROWS, columns=list(self.roles)):
                rows = np.arange(start, start + len(batch), dtype=np.int64)
                start += len(batch)
                if len(batch):
                    yield _frame(batch, rows)

    def _text(self, path: Path, tally: Tally) -> Iterator[pl.DataFrame]:
        if self.names is None:
            _require(path, self.roles, self._header(path))
        ragged = _Ragged(path, self._first_line, self.on_bad_cell, tally)
        options = pa_csv.ConvertOptions(
            # Bytes, since one badly encoded cell would else end the whole file.
            column_types=dict.fromkeys(self.roles, pa.binary()),
            include_columns=list(self.roles),
            null_values=list(self.missing),
            strings_can_be_null=True,
        )
        with _readable(path):
            try:
                for batch in self._open(path, ragged, options):
                    if len(batch):
                        yield _frame(batch, ragged.rows(len(batch)))
            except pa.ArrowInvalid:
                if ragged.error is not None:
                    raise ragged.error from None
                raise

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

    def _header(self, path: Path) -> list[str]:
        with _readable(path):
            skip = _Ragged(path, self._first_line, "skip", Tally())
            return list(self._open(path, skip).schema.names)

    @property
    def _first_line(self) -> int:
        return 1 if self.names is not None else 2

    def _checked(self, path: Path, frame: pl.DataFrame, tally: Tally) -> pl.DataFrame:
        text = path.suffix != ".parquet"
        if text and "label" in self.roles.values():
            # Blank lines are no rows.
            frame = frame.filter(~pl.all_horizontal(pl.col(list(self.roles)).is_null()))
        columns, bad = [frame[ROW]], pl.repeat(False, len(frame), eager=True)
        for name, role in self.roles.items():
            series = self._typed(path, frame[name], role)
            wrong = self._wrong(frame[name], series, role)
            if wrong.any() and self.on_bad_cell == "error":
                index = int(wrong.arg_max() or 0)
                row = int(frame[ROW][index]) + (self._first_line if text else 1)
                raise BadCell(path, row, name, _shown(frame[name][index]), self._expected(role))
            columns.append(series)
            bad = bad | wrong
        tally.add(int(bad.sum()))
        return pl.DataFrame(columns).filter(~bad)

    def _typed(self, path: Path, series: pl.Series, role: Role) -> pl.Series:
        dtype = series.dtype
        if dtype == pl.Binary:
            series, dtype = _text(series), pl.String()
        if role in {"numeric", "label"} or (role == "time" and not dtype.is_temporal()):
            if role == "time" and self.time_format is not None:
                return _epoch(series.str.to_datetime(self.time_format, strict=False))
            if (
                dtype.is_numeric()
                or dtype == pl.String
                or (dtype == pl.Boolean and role == "label")
            ):
                return series.cast(pl.Float64, strict=False).fill_nan(None)
        elif role == "time" and dtype in {pl.Date, pl.Datetime}:
            return _epoch(series)
        elif isinstance(dtype, pl.Categorical | pl.Enum):
            return series.cast(pl.String)
        elif _is_token(dtype) or (
            role == "multi" and isinstance(dtype, pl.List) and _is_token(dtype.inner)
        ):
            return series
        raise DataError(
            f"{path}: column {series.name!r}: expected {self._expected(role)}, its type is {dtype}"
        )

    def _wrong(self, raw: pl.Series, series: pl.Series, role: Role) -> pl.Series:
        missing = raw.is_null()
        if raw.dtype.is_float():
            missing = missing | raw.is_nan()
        lost = series.is_null() & ~missing
        match role:
            case "numeric":
                return (lost | (series.abs() > FLOAT32_MAX)).fill_null(value=False)
            case "label":
                allowed = (
                    series.is_finite()
                    if self.positive_from is not None
                    else (series == 0.0) | (series == 1.0)
                )
                return ~allowed.fill_null(value=False)
            case "time":
                return ~series.is_finite().fill_null(value=False)
            case _:
                return lost

    def _expected(self, role: Role) -> str:
        if role == "label" and self.positive_from is not None:
            return "a number"
        if role == "time" and self.time_format is not None:
            return f"a time as {self.time_format}"
        return _EXPECTED[role]


class _Ragged:
    """Handles lines of the wrong number of fields, and numbers the others."""

    def __init__(self, path: Path, first_line: int, on_bad_cell: OnBadCell, tally: Tally) -> None:
        self.error: BadCell | None = None
        self._path, self._first_line = path, first_line
        self._on_bad_cell, self._tally = on_bad_cell, tally
        self._skipped: list[int] = []  # rows from 0 that the reader has dropped, not yet passed
        self._next = 0

    def __call__(self, row: pa_csv.InvalidRow) -> str:
        if self._on_bad_cell == "skip":
            self._tally.add(1)
            self._skipped.append(row.number - self._first_line)
            return "skip"
        expected = f"{row.expected_columns} fields ({row.actual_columns} found)"
        self.error = BadCell(self._path, row.number, None, _shown(row.text), expected)
        return "error"

    def rows(self, count: int) -> NDArray[np.int64]:
        """The numbers of the next ``count`` rows, from 0."""
        span = np.arange(self._next, self._next + count + len(self._skipped), dtype=np.int64)
        rows = np.setdiff1d(span, self._skipped, assume_unique=True)[:count]
        self._next = int(rows[-1]) + 1
        self._skipped = [row for row in self._skipped if row >= self._next]
        return rows


def find_files(path: str) -> tuple[Path, ...]:
    """The data files that a path names: a file, a folder of files, or a glob.

    Files of a folder are taken in natural order (day_2 before day_10).

    Raises:
        DataError: there are none.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return (place,)
    found = place.iterdir() if place.is_dir() else (Path(name) for name in glob(str(place)))  # noqa: PTH207
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
    return [
        (int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)
    ]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _require(path: Path, wanted: Mapping[str, Role], found: Sequence[str]) -> None:
    absent = [column for column in wanted if column not in found]
    if not absent:
        return
    hints = []
    for column in absent:
        close = difflib.get_close_matches(column, found, n=1, cutoff=0.5)
        hints.append(f"{column!r}" + (f" (did you mean {close[0]!r}?)" if close else ""))
    raise DataError(
        f"{path}: no column {', '.join(hints)}; expected {', '.join(wanted)}; "
        f"found {', '.join(found)}"
    )


def _frame(batch: pa.RecordBatch, rows: NDArray[np.int64]) -> pl.DataFrame:
    frame = pl.DataFrame(pa.Table.from_batches([batch]))
    return frame.with_columns(pl.Series(ROW, rows))


def _text(series: pl.Series) -> pl.Series:
    try:
        return series.cast(pl.String)
    except pl.exceptions.ComputeError:
        return pl.Series(series.name, [_decoded(cell) for cell in series], dtype=pl.String)


def _decoded(cell: bytes | None) -> str | None:
    try:
        return None if cell is None else cell.decode()
    except UnicodeDecodeError:
        return None


def _epoch(series: pl.Series) -> pl.Series:
    return series.cast(pl.Datetime("us")).dt.epoch("us").cast(pl.Float64) / 1e6


def _is_token(dtype: Any) -> bool:
    return dtype in {pl.String, pl.Boolean} or dtype.is_integer() or dtype.is_float()


def _shown(value: Any) -> Any:
    if isinstance(value, bytes):
        value = value.decode(errors="backslashreplace")
    return value[:80] + "…" if isinstance(value, str) and len(value) > 80 else value  # noqa: PLR2004
