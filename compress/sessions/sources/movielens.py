"""MovieLens 100k as sessions: what a user rated, in the order he did, cut into windows.

Nobody rates a film twice there, so no target repeats: what is learned is what follows what. The
ratings are those of `compress.data.movielens`, with its cache, its checks and its terms.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import polars as pl
from pydantic import Field

from compress.config import Frozen
from compress.data.base import Tally, digest
from compress.data.movielens import TIME, MovieLens, MovieLensConfig, Origin
from compress.sessions.data import SessionData
from compress.sessions.sources.log import (
    Count,
    Cut,
    Filters,
    Share,
    data_set,
    filtered,
    split_newest,
)
from compress.sessions.sources.reading import coded, sessions_of


class MovieLensSessionsConfig(Filters, Cut):
    """Options of the source.

    Attributes:
        cache: a folder for downloads.
        window: films of the longest session; longer histories become several.
        test: the newest sessions, how many or which share of them.
    """

    cache: Path = Path("~/.cache/slimrank")
    window: int = Field(default=50, ge=2)
    test: Count | Share = 0.1


class MovieLensSessions:
    """Windows of users' histories, in the order of their last ratings."""

    Config: ClassVar[type[Frozen]] = MovieLensSessionsConfig

    def __init__(
        self, config: MovieLensSessionsConfig, origins: Sequence[Origin] | None = None
    ) -> None:
        self._config = config
        self._ratings = MovieLens(MovieLensConfig(cache=config.cache), origins)

    def parts(self, tally: Tally | None = None) -> SessionData:
        """Cut by the windows' ends; the bootstrap draws users, who have several of them."""
        del tally  # no cell is bad: the bytes are known
        columns = ("user_id", "item_id", TIME)
        rows = pl.concat(frame.select(columns) for _, frame in self._ratings.chunks())
        users, _ = coded(rows["user_id"])
        items, ids = coded(rows["item_id"])
        log = sessions_of(users, items, rows[TIME].to_numpy(), ids, window=self._config.window)
        before, after = split_newest(filtered(log, self._config), self._config.test, "test")
        return data_set(before, after, self._config)

    def fingerprint(self) -> str:
        """Over the ratings, and how they are cut."""
        settings = self._config.model_dump_json(exclude={"cache"})
        return digest("ml-100k-sessions", settings, self._ratings.fingerprint())

    def notice(self) -> str:
        """The terms, and where this copy came from."""
        return self._ratings.notice()
