"""Sessions in memory: one array of item rows, and where each session begins in it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UNKNOWN = -1  # the row of an item outside the catalogue


@dataclass(frozen=True, slots=True)
class Sessions:
    """Sessions in time order, each oldest item first.

    Attributes:
        rows: (clicks,) int32, item rows.
        offsets: (sessions + 1,) int64: session i is rows[offsets[i]:offsets[i + 1]].
        ids: item ids by row.
    """

    rows: NDArray[np.int32]
    offsets: NDArray[np.int64]
    ids: tuple[str, ...]

    @classmethod
    def of(
        cls, rows: NDArray[np.int32], lengths: NDArray[np.int64], ids: tuple[str, ...]
    ) -> "Sessions":
        """Sessions one after the other, by how many clicks each has."""
        return cls(rows, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), ids)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, session: int) -> NDArray[np.int32]:
        return self.rows[self.offsets[session] : self.offsets[session + 1]]

    def __iter__(self) -> Iterator[NDArray[np.int32]]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(sessions,) clicks of each."""
        return np.diff(self.offsets)

    @property
    def items(self) -> int:
        """N, items of the catalogue."""
        return len(self.ids)

    @property
    def session_of(self) -> NDArray[np.int64]:
        """(clicks,) which session each click is of."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.lengths)

    def counts(self) -> NDArray[np.int64]:
        """(N,) clicks of each item."""
        return np.bincount(self.rows, minlength=self.items)

    def select(self, chosen: NDArray[np.int64]) -> "Sessions":
        """Some of the sessions, in the order they are named."""
        lengths = self.lengths[chosen]
        return Sessions.of(self.rows[spans(self.offsets[chosen], lengths)], lengths, self.ids)

    def keep(self, clicks: NDArray[np.bool_]) -> "Sessions":
        """All sessions, with those of their clicks (clicks,) that are marked."""
        lengths = np.bincount(self.session_of[clicks], minlength=len(self))
        return Sessions.of(self.rows[clicks], lengths, self.ids)

    def recoded(self, ids: tuple[str, ...]) -> "Sessions":
        """The same sessions by the rows of another catalogue, `UNKNOWN` outside of it."""
        return Sessions(_moved(self.ids, ids)[self.rows], self.offsets, ids)


@dataclass(frozen=True, slots=True)
class Prefixes:
    """What is judged: prefixes of sessions, and the item that came next.

    Attributes:
        sessions: the prefixes, as `Sessions` (an item outside the catalogue is row -1).
        targets: (prefixes,) int32 item rows; -1 for an item outside the catalogue.
        owner: (prefixes,) int64, which session (or user, where known) each is of: what the
            bootstrap draws.
    """

    sessions: Sessions
    targets: NDArray[np.int32]
    owner: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def repeated(self) -> NDArray[np.bool_]:
        """(prefixes,) whether the target stands in its prefix already."""
        of = self.sessions.session_of
        again = (self.sessions.rows == self.targets[of]) & (self.targets[of] != UNKNOWN)
        return np.bincount(of[again], minlength=len(self)) > 0

    def select(self, chosen: NDArray[np.int64]) -> "Prefixes":
        """Some of the prefixes, in the order they are named."""
        return Prefixes(self.sessions.select(chosen), self.targets[chosen], self.owner[chosen])

    def recoded(self, ids: tuple[str, ...]) -> "Prefixes":
        """The same prefixes by the rows of another catalogue, `UNKNOWN` outside of it."""
        moved = _moved(self.sessions.ids, ids)
        return Prefixes(self.sessions.recoded(ids), moved[self.targets], self.owner)


@dataclass(frozen=True, slots=True)
class SessionData:
    """A data set: all parts name items by the rows of one catalogue.

    The catalogue is what the sessions before the test clicked, those of validation included: how
    many of them are held out does not change what is ranked.

    Attributes:
        train: what choices are made with, judged on ``validation``.
        whole: those and validation's: what the test may be met with once all is chosen.
    """

    train: Sessions
    whole: Sessions
    validation: Prefixes
    test: Prefixes


def augmented(sessions: Sessions, owner: NDArray[np.int64], min_prefix: int) -> Prefixes:
    """Every prefix of every session, with the item after it.

    Args:
        sessions: whole ones.
        owner: (sessions,) whose they are.
        min_prefix: clicks of the shortest prefix.
    """
    each = np.maximum(sessions.lengths - min_prefix, 0)  # prefixes of each session
    of = np.repeat(np.arange(len(sessions)), each)
    lengths = spans(np.full(len(sessions), min_prefix), each)
    starts = sessions.offsets[of]
    prefixes = Sessions.of(sessions.rows[spans(starts, lengths)], lengths, sessions.ids)
    return Prefixes(prefixes, sessions.rows[starts + lengths], owner[of])


def spans(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of spans, one after the other.

    >>> spans(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def stranger(ids: Sequence[str]) -> str:
    """What `UNKNOWN` is called in a file of prefixes: an id that no item of a catalogue has.

    >>> stranger(["a", "b"]), stranger(["unknown", "a"])
    ('unknown', 'unknown_')
    """
    name, taken = "unknown", set(ids)
    while name in taken:
        name += "_"
    return name


def _moved(old: Sequence[str], new: Sequence[str]) -> NDArray[np.int32]:
    """(old + 1,) new rows by old ones; the last stands for `UNKNOWN`, which stays so."""
    rows = {id_: row for row, id_ in enumerate(new)}
    return np.array([*(rows.get(id_, UNKNOWN) for id_ in old), UNKNOWN], np.int32)
