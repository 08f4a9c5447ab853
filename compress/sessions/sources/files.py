"""A user's own sessions, in parquet or delimited text.

    [data]                              [data]
    type = "sessions"                   type = "sessions"
    train = "train_sessions.parquet"    train = "clicks.csv"
    test = "test.parquet"               test_from = 2026-05-01
    min_prefix = 2                      min_item_clicks = 5
                                        events = { user = "visitor", silence = 1800 }

Without ``events`` the training file has a row for each session: ``session_id`` and its ``items``,
oldest first, as a list or as text. With ``events`` it has a row for each click. The test is a file
of prefixes (``session_id``, ``items``, ``target``), or else the newest sessions.
"""

from functools import cached_property
from pathlib import Path
from typing import ClassVar

from pydantic import model_validator

from compress.config import Frozen
from compress.data.base import Tally, digest
from compress.data.cells import Rules
from compress.data.files import Files, find_files
from compress.data.split import Moment, seconds
from compress.sessions.data import SessionData
from compress.sessions.sources.log import (
    Count,
    Cut,
    Filters,
    Log,
    Share,
    cut,
    data_set,
    filtered,
    split_from,
    split_newest,
)
from compress.sessions.sources.reading import (
    CellOptions,
    EventColumns,
    ListColumns,
    read_events,
    read_lists,
    read_prefixes,
)

NEWEST = 0.1


class SessionFilesConfig(Filters, Cut, CellOptions, ListColumns):
    """Options of the source.

    Attributes:
        train: a file, a folder of files or a glob (.parquet, .csv, .tsv, .txt, .gz of the texts).
        events: the columns of clicks; None: a row is a session.
        test: file, folder or glob of prefixes with their targets, read as they are.
        test_from: the test is the sessions that end at this time or later.
        test_newest: the test is so many of the newest sessions, or such a share (default 0.1).
    """

    train: str
    events: EventColumns | None = None
    test: str | None = None
    test_from: Moment | None = None
    test_newest: Count | Share | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "SessionFilesConfig":
        given = [k for k in ("test", "test_from", "test_newest") if getattr(self, k) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of {' and '.join(given)}: each says what the test is")
        if self.events is not None and self.time is not None:
            raise ValueError("with events, the time's column is named by events.time")
        if self.test_from is not None and self.events is None and self.time is None:
            raise ValueError("test_from needs time, the column that says when a session ended")
        return self


class SessionFiles:
    """A user's sessions."""

    Config: ClassVar[type[Frozen]] = SessionFilesConfig

    def __init__(self, config: SessionFilesConfig) -> None:
        self._config = config

    def parts(self, tally: Tally | None = None) -> SessionData:
        """Filtered, then cut: a test file's prefixes stay as they are."""
        config, tally = self._config, Tally() if tally is None else tally
        log = filtered(self._log(tally), config)
        if self._test is not None:
            train, whole, validation = cut(log, config)
            test = read_prefixes(self._test, config, config, train.ids, tally)
            return SessionData(train, whole, validation, test)
        if config.test_from is not None:
            return data_set(*split_from(log, seconds(config.test_from)), config)
        return data_set(*split_newest(log, config.test_newest or NEWEST, "test"), config)

    def fingerprint(self) -> str:
        """Over the bytes of all files and how they are read."""
        settings = self._config.model_dump_json(exclude={"train", "test"})
        return digest("sessions", settings, *map(_bytes_of, (self._train, self._test or ())))

    def notice(self) -> None:
        """None: the data are the user's."""
        return

    @cached_property
    def _train(self) -> tuple[Path, ...]:
        return find_files(self._config.train)

    @cached_property
    def _test(self) -> tuple[Path, ...] | None:
        return None if self._config.test is None else find_files(self._config.test)

    def _log(self, tally: Tally) -> Log:
        config = self._config
        if config.events is None:
            return read_lists(self._train, config, config, tally)
        return read_events(self._train, config.events, config, tally)


def _bytes_of(paths: tuple[Path, ...]) -> str:
    return Files(paths, Rules({})).fingerprint()
