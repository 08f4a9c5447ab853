"""Sessions in memory: one array of item rows, and where each session begins in it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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

    def counts(self) -> NDArray[np.int64]:
        """(N,) clicks of each item."""
        return np.bincount(self.rows, minlength=self.items)


@dataclass(frozen=True, slots=True)
class Prefixes:
    """What is judged: prefixes of sessions, and the item that came next.

    Attributes:
        sessions: the prefixes, as `Sessions` (an item outside the catalogue is row -1).
        targets: (prefixes,) int32 item rows; -1 for an item that training never saw.
        owner: (prefixes,) int64, which session each is of: what the bootstrap draws.
    """

    sessions: Sessions
    targets: NDArray[np.int32]
    owner: NDArray[np.int64]
