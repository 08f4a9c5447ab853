"""Item ids in this process: by row, and rows by id."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from model_store.arrays import Rows
from service import kernels
from service.caches import Blob, Blobs

UNKNOWN: Final = -1
_TEXT: Final = "ids"
_ENDS: Final = "id_ends"
PACKED: Final = frozenset({_TEXT, _ENDS})  # the names of what `pack` makes
MOST_BYTES: Final = np.iinfo(np.uint32).max


class ItemIds:
    """Ids of row 0, 1, …, each once, in some twenty bytes each: as Python texts they take 170.

    Where loops are not compiled, there is a dictionary besides.

    Args:
        text: all ids in UTF-8, one after the other.
        ends: (N + 1,) uint32; id i lies from ``ends[i]`` to ``ends[i + 1]``.
    """

    def __init__(self, text: Blob, ends: NDArray[np.uint32]) -> None:
        self._text, self._ends = text, ends
        self._slots = kernels.index_ids(text, ends) if kernels.COMPILED else None
        listed = () if kernels.COMPILED else self
        self._row_of = {item: row for row, item in enumerate(listed)}

    @classmethod
    def of(cls, ids: Sequence[str]) -> Self:
        """From a list.

        Raises:
            ValueError: they take over 4 GiB, or one has half a surrogate pair.
        """
        texts = [item.encode() for item in ids]
        ends = np.cumsum([0, *map(len, texts)], dtype=np.int64)
        if ends[-1] > MOST_BYTES:
            raise ValueError(f"the ids take {ends[-1]} bytes; expected up to {MOST_BYTES}")
        return cls(b"".join(texts), ends.astype(np.uint32))

    def pack(self) -> dict[str, Blob]:
        """Named blobs, for the cache: views, nothing is copied."""
        return {_TEXT: self._text, _ENDS: self._ends.view(np.uint8).data}

    @classmethod
    def unpack(cls, blobs: Blobs) -> Self:
        """From what `pack` made.

        Raises:
            KeyError, ValueError: it is not that.
        """
        text, ends = blobs[_TEXT], np.frombuffer(blobs[_ENDS], np.uint32)
        if not len(ends) or ends[0] or ends[-1] != len(text) or (ends[1:] < ends[:-1]).any():
            raise ValueError("these are no ids")
        # The whole is UTF-8, and none begins within a character: so each is UTF-8.
        str(text, "utf-8")
        first = np.frombuffer(text, np.uint8)[ends[ends < len(text)]]
        if (first & 0xC0 == 0x80).any():  # noqa: PLR2004  10xxxxxx goes on with a character
            raise ValueError("an id begins within a character")
        return cls(text, ends)

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

    def rows(self, ids: Sequence[str]) -> Rows:
        """(n,) rows of ids, -1 for those that are not there; raises TypeError if one is no text."""
        if self._slots is None:
            if strange := [kind for kind in {*map(type, ids)} if not issubclass(kind, str)]:
                raise TypeError(f"expected texts, got {strange[0].__name__}")
            return np.fromiter(map(self._row_of.get, ids, repeat(UNKNOWN)), np.intp, len(ids))
        return kernels.find_ids(ids, self._text, self._ends, self._slots)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The ids of some rows. One is decoded when it is asked for: most never are."""

    ids: ItemIds
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> str:
        return self.ids[int(self.rows[place])]
