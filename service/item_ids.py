"""Item ids in this process: by row, and rows by id."""

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Final

import numpy as np

from model_store.arrays import Rows
from service import kernels

UNKNOWN: Final = -1


class ItemIds:
    """Ids of row 0, 1, …, each once. Packed where loops are compiled: a seventh of the memory."""

    def __init__(self, ids: Sequence[str]) -> None:
        self._index = kernels.index_ids(ids)
        self._count = len(ids)
        self._listed: Sequence[str] = () if self._index is not None else ids
        self._row_of = {item: row for row, item in enumerate(self._listed)}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> str:
        if self._index is None:
            return self._listed[row]
        text, ends, _ = self._index
        return text[ends[row] : ends[row + 1]].decode()

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(self._count))

    def __contains__(self, item: str) -> bool:
        return bool(self.rows([item])[0] != UNKNOWN)

    def rows(self, ids: Sequence[str]) -> Rows:
        """(n,) rows of ids, -1 for those that are not there."""
        if self._index is None:
            return np.fromiter(map(self._row_of.get, ids, repeat(UNKNOWN)), np.intp, len(ids))
        return kernels.find_ids(self._index, ids)
