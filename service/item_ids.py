"""Item ids in this process: by row, and rows by id."""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Final, NamedTuple, Self

import numpy as np

from model_store.arrays import Rows
from model_store.packed_ids import PackedIds
from service import kernels
from service.kernels import Slots

UNKNOWN: Final = -1
KEY_BYTES: Final = 16


class Index(NamedTuple):
    """What finds packed ids.

    Attributes:
        key: of their hash; who knows it can choose ids that are slow to look up.
        slots: of `kernels.index_ids`.
    """

    key: bytes
    slots: Slots

    @classmethod
    def of(cls, ids: PackedIds) -> Self:
        """Under a new key.

        Raises:
            ValueError: an id appears twice.
        """
        key = secrets.token_bytes(KEY_BYTES)
        return cls(key, kernels.index_ids(ids.text, ids.ends, key))


class ItemIds:
    """Ids of row 0, 1, …, each once, in ten bytes each beyond their own: as Python texts, 170.

    Up to `kernels.FEW` take 28, and are found sooner.

    Where loops are not compiled, there is a dictionary besides, and no index.

    Args:
        ids: packed; whole characters each.
        index: of these ids; None: it is made here.

    Raises:
        ValueError: an id appears twice.
    """

    def __init__(self, ids: PackedIds, index: Index | None = None) -> None:
        self.packed = ids
        self._text, self._ends = ids.text, ids.ends
        self.index = (index or Index.of(ids)) if kernels.COMPILED else None
        self._rows = self.index and kernels.IdRows(self._text, self._ends, *self.index)
        listed = () if kernels.COMPILED else self
        self._row_of = {item: row for row, item in enumerate(listed)}
        if not kernels.COMPILED and len(self._row_of) < len(self):
            raise ValueError("an id appears twice")

    @classmethod
    def of(cls, ids: Sequence[str]) -> Self:
        """From a list; raises as `PackedIds.of`."""
        return cls(PackedIds.of(ids))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> str:
        if row < 0:  # such as `UNKNOWN`: nothing is meant from the end
            raise IndexError(f"expected a row from 0 to {len(self) - 1}, got {row}")
        return str(self._text[self._ends[row] : self._ends[row + 1]], "utf-8")

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))

    def __contains__(self, item: str) -> bool:
        return bool(self.rows([item])[0] != UNKNOWN)

    def rows(self, *ids: kernels.Texts) -> Rows:
        """(n,) rows of ids, one sequence after the other, -1 for those that are not there.

        Raises:
            TypeError: one is no text.
        """
        if self._rows is not None:
            return self._rows(*ids)
        every = [*chain(*ids)]
        if strange := [kind for kind in {*map(type, every)} if not issubclass(kind, str)]:
            raise TypeError(f"expected texts, got {strange[0].__name__}")
        return np.fromiter(map(self._row_of.get, every, repeat(UNKNOWN)), np.intp, len(every))


@dataclass(frozen=True, slots=True)
class Chosen:
    """The ids of some rows. One is decoded when it is asked for: most never are."""

    ids: ItemIds
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> str:
        return self.ids[int(self.rows[place])]
