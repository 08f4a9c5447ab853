"""A log of sessions, filtered and cut by time into a data set, as the published splits are made.

The filters run over all sessions of the log, before the cut, once each and in this order
(papers.md §2.6): sessions that are too short go; then items that are clicked too seldom; then
sessions that this made too short, and those that are too long.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from compress.config import Frozen
from compress.data.base import DataError
from compress.sessions.data import Prefixes, SessionData, Sessions, augmented

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class Filters(Frozen):
    """Which sessions and clicks are left out.

    Attributes:
        drop_repeats: a click on the same item as the click before it is left out.
        min_length: clicks of the shortest session.
        max_length: of the longest; None: any.
        min_item_clicks: items with fewer clicks are left out.
    """

    drop_repeats: bool = False
    min_length: int = Field(default=2, ge=2)
    max_length: int | None = Field(default=None, ge=2)
    min_item_clicks: int = Field(default=1, ge=1)


class Cut(Frozen):
    """What is judged.

    Attributes:
        validation: the newest sessions before the test, how many or which share of them; they are
            not trained on.
        min_prefix: clicks of the shortest prefix that is judged.
    """

    validation: Count | Share = 0.1
    min_prefix: int = Field(default=1, ge=1)


@dataclass(frozen=True, slots=True)
class Log:
    """Sessions, and what is known of each.

    Attributes:
        sessions: in time order.
        owner: (sessions,) whose they are: the bootstrap draws owners.
        ends: (sessions,) the time of the last click; where only the order is known, the place.
    """

    sessions: Sessions
    owner: NDArray[np.int64]
    ends: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.sessions)

    def select(self, chosen: NDArray[np.int64]) -> "Log":
        """Some of the sessions."""
        return Log(self.sessions.select(chosen), self.owner[chosen], self.ends[chosen])

    def in_time_order(self) -> "Log":
        """Sorted by the end of each session; those that end together stay in their order."""
        return self.select(np.argsort(self.ends, kind="stable"))

    def keep(self, clicks: NDArray[np.bool_]) -> "Log":
        """All sessions, with those of their clicks (clicks,) that are marked."""
        return replace(self, sessions=self.sessions.keep(clicks))


def filtered(log: Log, filters: Filters) -> Log:
    """What the filters leave."""
    if filters.drop_repeats:
        log = log.keep(_changes(log.sessions))
    log = log.select(np.flatnonzero(log.sessions.lengths >= filters.min_length))
    often = log.sessions.counts() >= filters.min_item_clicks
    log = log.keep(often[log.sessions.rows])
    lengths = log.sessions.lengths
    fits = lengths >= filters.min_length
    if filters.max_length is not None:
        fits &= lengths <= filters.max_length
    return log.select(np.flatnonzero(fits))


def split_newest(log: Log, newest: int | float, what: str) -> tuple[Log, Log]:
    """The log without its newest sessions, and those.

    Args:
        log: in time order.
        newest: how many, or which share.
        what: the part that the newest are for, in an error.

    Raises:
        DataError: one of the two would be empty.
    """
    total = len(log)
    count = newest if isinstance(newest, int) else round(newest * total)
    if not 0 < count < total:
        raise DataError(
            f"{what}: the newest {newest} of {total} sessions leave one side of the cut empty; "
            "give more sessions, weaken the filters or change the cut"
        )
    every = np.arange(total)
    return log.select(every[:-count]), log.select(every[-count:])


def split_from(log: Log, moment: float) -> tuple[Log, Log]:
    """The sessions that ended before a moment, and the others.

    Raises:
        DataError: one of the two would be empty.
    """
    late = log.ends >= moment
    if late.all() or not late.any():
        low, high = log.ends.min(initial=np.inf), log.ends.max(initial=-np.inf)
        raise DataError(
            f"test_from = {moment:g}: the {len(log)} sessions end from {low:g} to {high:g}; "
            "choose a moment in between"
        )
    return log.select(np.flatnonzero(~late)), log.select(np.flatnonzero(late))


def cut(log: Log, options: Cut) -> tuple[Sessions, Sessions, Prefixes]:
    """The training sessions, those and validation's, and validation's prefixes, in one catalogue.

    The catalogue is in the order of the first clicks.

    Raises:
        DataError: nothing is left of one of them.
    """
    clicked, first = np.unique(log.sessions.rows, return_index=True)
    ids = tuple(log.sessions.ids[row] for row in clicked[np.argsort(first)])
    known = replace(log, sessions=log.sessions.recoded(ids))
    train, validation = split_newest(known, options.validation, "validation")
    return train.sessions, known.sessions, judged(validation, ids, options, "validation")


def judged(log: Log, ids: tuple[str, ...], options: Cut, what: str) -> Prefixes:
    """The prefixes of a log, in a catalogue.

    Raises:
        DataError: there are none.
    """
    prefixes = augmented(log.sessions.recoded(ids), log.owner, options.min_prefix)
    if not len(prefixes):
        raise DataError(
            f"{what}: none of {len(log)} sessions is longer than min_prefix = "
            f"{options.min_prefix}; lower it, or hold out more sessions"
        )
    return prefixes


def data_set(before: Log, after: Log, options: Cut) -> SessionData:
    """A data set of the sessions before the test, and the test's.

    Raises:
        DataError: nothing is left of a part.
    """
    train, whole, validation = cut(before, options)
    return SessionData(train, whole, validation, judged(after, train.ids, options, "test"))


def _changes(sessions: Sessions) -> NDArray[np.bool_]:
    """(clicks,) whether a click is the first of its session or on another item than before."""
    same = np.zeros(len(sessions.rows), np.bool_)
    same[1:] = sessions.rows[1:] == sessions.rows[:-1]
    starts = sessions.offsets[:-1]
    same[starts[starts < len(same)]] = False
    return ~same
