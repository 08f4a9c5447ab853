"""Reads sessions from files: ready lists, prefixes with their targets, or single clicks.

Reading and its errors are those of `compress.data.files`; what is asked here besides is that no
session, item or list is missing. Ids of any type become strings.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, model_validator

from compress.config import Frozen
from compress.data.base import BadCell, DataError, OnBadCell, Tally
from compress.data.cells import Role, Rules, tokens
from compress.data.files import Files
from compress.data.split import ROW
from compress.sessions.data import UNKNOWN, Prefixes, Sessions
from compress.sessions.sources.log import Log
from model_store.encoding import token

AN_ID: Final = "an id"
A_LIST: Final = "a list of at least one item, none of them empty"
_FILE: Final = "__file__"  # which of the files a row is of
_SHOWN: Final = 10  # items of a bad list in a message


class CellOptions(Frozen):
    """How cells are read.

    Attributes:
        separator: between the fields of a text file; None: a comma in .csv, else a tab.
        list_separator: between the items of a list that is kept as text.
        missing: texts that mean a missing value, in text files.
        time_format: how times in text are written (as `strptime`); None: as numbers.
    """

    separator: str | None = Field(default=None, min_length=1, max_length=1)
    list_separator: str = Field(default=" ", min_length=1)
    missing: tuple[str, ...] = ("",)
    time_format: str | None = None
    on_bad_cell: OnBadCell = "error"


class ListColumns(Frozen):
    """The columns of a file of lists.

    Attributes:
        session: the session's id.
        items: its items, oldest first.
        target: the item after them, in a file of prefixes.
        time: when the session ended; None: rows are in the order of time.
    """

    session: str = "session_id"
    items: str = "items"
    target: str = "target"
    time: str | None = None


class EventColumns(Frozen):
    """The columns of a file of clicks, and what a session is.

    Attributes:
        session: the session's id (by default "session"); not with ``user``.
        user: the user's id; a session is what lies between two of his silences.
        silence: how long these are at least, in the unit of ``time`` (of dates: seconds).
        item: the item's id.
        time: the time; clicks of the same time stay in the order of the rows.
    """

    session: str | None = None
    user: str | None = None
    silence: float | None = Field(default=None, gt=0.0)
    item: str = "item"
    time: str = "time"

    @model_validator(mode="after")
    def _consistent(self) -> "EventColumns":
        if (self.user is None) != (self.silence is None):
            raise ValueError("user and silence go together: a silence of a user ends a session")
        if self.user is not None and self.session is not None:
            raise ValueError("give session, or user and silence, not both")
        return self

    @property
    def key(self) -> str:
        """The column that tells whose a click is."""
        return self.user or self.session or "session"


def read_lists(
    paths: Sequence[Path], columns: ListColumns, options: CellOptions, tally: Tally
) -> Log:
    """Whole sessions, a row each.

    Raises:
        DataError: a file cannot be read, or a session stands in two rows; `BadCell`: a cell is
            wrong.
    """
    roles: dict[str, Role] = {columns.session: "categorical", columns.items: "multi"}
    if columns.time is not None:
        roles[columns.time] = "time"
    frame = pl.concat(
        rows.ids(columns.session).lists(columns.items, options.list_separator).frame
        for rows in _rows(paths, roles, options, tally)
    )
    _require_unique(frame, columns.session, paths)
    items, ids = coded(frame[columns.items].explode())
    sessions = Sessions.of(items, _lengths(frame[columns.items]), ids)
    places = np.arange(len(frame))
    ends = places.astype(np.float64) if columns.time is None else frame[columns.time].to_numpy()
    return Log(sessions, places, ends).in_time_order()


def read_prefixes(
    paths: Sequence[Path],
    columns: ListColumns,
    options: CellOptions,
    ids: tuple[str, ...],
    tally: Tally,
) -> Prefixes:
    """Prefixes and what came next, a row each, in the order of the files.

    Args:
        paths: the files.
        columns: their columns; ``time`` is not looked at.
        options: how cells are read.
        ids: of the catalogue; other items are `UNKNOWN`.
        tally: counts the rows left out for a bad cell.

    Raises:
        DataError: a file cannot be read; `BadCell`: a cell is wrong.
    """
    roles: dict[str, Role] = {
        columns.session: "categorical",
        columns.items: "multi",
        columns.target: "categorical",
    }
    frame = pl.concat(
        rows.ids(columns.session)
        .ids(columns.target)
        .lists(columns.items, options.list_separator)
        .frame
        for rows in _rows(paths, roles, options, tally)
    )
    if frame.is_empty():
        raise DataError(f"{paths[0]}: no rows to judge by ({tally.rows} left out for a bad cell)")
    owner, _ = coded(frame[columns.session])
    items = _known(frame[columns.items].explode(), ids)
    sessions = Sessions.of(items, _lengths(frame[columns.items]), ids)
    return Prefixes(sessions, _known(frame[columns.target], ids), owner.astype(np.int64))


def read_events(
    paths: Sequence[Path], columns: EventColumns, options: CellOptions, tally: Tally
) -> Log:
    """Clicks, a row each, put together to sessions.

    Raises:
        DataError: a file cannot be read; `BadCell`: a cell is wrong.
    """
    roles: dict[str, Role] = {
        columns.key: "categorical",
        columns.item: "categorical",
        columns.time: "time",
    }
    frame = pl.concat(
        rows.ids(columns.key).ids(columns.item).frame
        for rows in _rows(paths, roles, options, tally)
    )
    keys, _ = coded(frame[columns.key])
    items, ids = coded(frame[columns.item])
    return sessions_of(keys, items, frame[columns.time].to_numpy(), ids, silence=columns.silence)


def sessions_of(
    keys: NDArray[np.int32],
    items: NDArray[np.int32],
    times: NDArray[np.float64],
    ids: tuple[str, ...],
    *,
    silence: float | None = None,
    window: int | None = None,
) -> Log:
    """Sessions from clicks (clicks,), in the order of their ends.

    Args:
        keys: whose each click is.
        items: its item's row.
        times: its time.
        ids: item ids by row.
        silence: a longer pause of the same key begins a session.
        window: so many clicks after a session's begin, another begins.
    """
    order = np.lexsort((times, keys))  # stable: clicks of one time stay in their order
    keys, times = keys[order], times[order]
    begins = np.ones(len(keys), np.bool_)
    begins[1:] = keys[1:] != keys[:-1]
    if silence is not None:
        begins[1:] |= np.diff(times) > silence
    if window is not None:
        first = np.maximum.accumulate(np.where(begins, np.arange(len(keys)), 0))
        begins |= (np.arange(len(keys)) - first) % window == 0
    starts = np.flatnonzero(begins)
    ends = np.append(starts[1:], len(keys))
    sessions = Sessions.of(items[order], ends - starts, ids)
    return Log(sessions, keys[starts].astype(np.int64), times[ends - 1]).in_time_order()


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of one file, and what happens to bad ones."""

    path: Path
    frame: pl.DataFrame
    on_bad_cell: OnBadCell
    tally: Tally

    def ids(self, column: str) -> "_Rows":
        """The rows that have an id in a column, there as a string."""
        ids = tokens(self.frame[column]).replace("", None)
        return self.require(column, ids.is_not_null(), AN_ID).replaced(column, ids.drop_nulls())

    def lists(self, column: str, separator: str) -> "_Rows":
        """The rows that have a list of items in a column, there as strings."""
        lists = _lists(self.frame[column], separator)
        good = lists.to_frame().select(_is_sound(pl.col(column)))[column]
        return self.require(column, good, A_LIST).replaced(column, lists.filter(good))

    def require(self, column: str, good: pl.Series, expected: str) -> "_Rows":
        """The rows that are good; one that is not is an error, or is left out and counted."""
        if good.all():
            return self
        if self.on_bad_cell == "error":
            index = int(good.arg_min() or 0)
            row = _number(self.path, int(self.frame[ROW][index]))
            raise BadCell(self.path, row, column, _shown(self.frame[column][index]), expected)
        self.tally.add(int((~good).sum()))
        return replace(self, frame=self.frame.filter(good))

    def replaced(self, column: str, values: pl.Series) -> "_Rows":
        """The rows with other values in a column."""
        return replace(self, frame=self.frame.with_columns(values.alias(column)))


def _rows(
    paths: Sequence[Path], roles: Mapping[str, Role], options: CellOptions, tally: Tally
) -> Iterator[_Rows]:
    empty = True
    for number, path in enumerate(paths):
        files = Files(
            paths=(path,),
            rules=Rules(roles, time_format=options.time_format),
            separator=options.separator,
            missing=options.missing,
            on_bad_cell=options.on_bad_cell,
        )
        for frame in files.frames(tally):
            empty = False
            numbered = frame.with_columns(pl.lit(number).alias(_FILE))
            yield _Rows(path, numbered, options.on_bad_cell, tally)
    if empty:
        raise DataError(f"{paths[0]}: no rows")


def _require_unique(frame: pl.DataFrame, column: str, paths: Sequence[Path]) -> None:
    twice = frame.filter(~frame[column].is_first_distinct())
    if len(twice):
        path = paths[int(twice[_FILE][0])]
        raise DataError(
            f"{path}: row {_number(path, int(twice[ROW][0]))}: column {column!r}: expected a row "
            f"for each whole session, got {twice[column][0]!r} again (prefixes of sessions are "
            "made from them, and are read only as the test)"
        )


def _number(path: Path, row: int) -> int:
    """A row's number as a reader counts: from 1, the header line of text among them."""
    return row + (1 if path.suffix == ".parquet" else 2)


def _lists(column: pl.Series, separator: str) -> pl.Series:
    if not isinstance(column.dtype, pl.List):
        return tokens(column).str.strip_chars().str.split(separator)
    if column.dtype.inner == pl.String or column.dtype.inner.is_integer():
        return column.cast(pl.List(pl.String))
    texts = [cell and [token(value) for value in cell] for cell in column.to_list()]
    return pl.Series(column.name, texts, dtype=pl.List(pl.String))


def _is_sound(lists: pl.Expr) -> pl.Expr:
    known = pl.element().is_not_null() & (pl.element() != "")
    return ((lists.list.len() > 0) & lists.list.eval(known).list.all()).fill_null(value=False)


def _shown(value: Any) -> Any:
    return value.head(_SHOWN).to_list() if isinstance(value, pl.Series) else value


def _lengths(lists: pl.Series) -> NDArray[np.int64]:
    return lists.list.len().cast(pl.Int64).to_numpy()


def coded(texts: pl.Series) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Rows in the order of first appearance, and the texts by row."""
    ids = tuple(texts.unique(maintain_order=True))
    return _known(texts, ids), ids


def _known(texts: pl.Series, ids: tuple[str, ...]) -> NDArray[np.int32]:
    """The rows of texts in a catalogue, `UNKNOWN` outside of it."""
    rows = pl.DataFrame({"id": pl.Series(ids, dtype=pl.String), "row": np.arange(len(ids))})
    found = texts.alias("id").to_frame().join(rows, on="id", how="left", maintain_order="left")
    return found["row"].fill_null(UNKNOWN).cast(pl.Int32).to_numpy()
