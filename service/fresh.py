"""Fresh items: added to a version that serves, between two versions that were trained.

An item's record is its codes, chosen from the codebooks that are there, or its vector. Records lie
in the store's journal beside the version, where each has a place, and in the cache; of two records
of one item the one at the later place counts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from model_store.arrays import Floats
from model_store.codebooks import CodedTable
from model_store.item_vectors import DenseTable, Int8Table, ItemVectors
from service.errors import ItemsRefused

BEAM: Final = 32


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A fresh item, as the journal and the cache keep it: by codes or by vector."""

    id: str
    codes: tuple[int, ...] | None = None
    vector: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """A record and its place in the journal."""

    place: int
    record: Record

    def pack(self) -> bytes:
        """For the cache."""
        return f"{self.place} ".encode() + msgspec.json.encode(self.record)

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        """From the cache.

        Raises:
            ValueError: it is no such thing.
        """
        place, _, record = packed.partition(b" ")
        return cls(int(place), msgspec.json.decode(record, type=Record))


@dataclass(frozen=True, slots=True)
class Fresh:
    """The fresh items of a version.

    Attributes:
        placed: by id, sorted, so that every replica has them in the same order.
        read_to: what of the journal is in here.
    """

    placed: Mapping[str, Placed] = field(default_factory=lambda: MappingProxyType({}))
    read_to: int = 0

    def with_records(self, found: Iterable[Placed], read_to: int) -> Self:
        """These and others; of two records of an item the later one."""
        merged = dict(self.placed)
        for each in found:
            known = merged.get(each.record.id)
            if known is None or known.place < each.place:
                merged[each.record.id] = each
        ordered = MappingProxyType(dict(sorted(merged.items())))
        return type(self)(ordered, max(read_to, self.read_to))


class FreshForm:
    """What a catalogue's vectors can take for a fresh item: codes, a vector, or nothing.

    Attributes:
        dim: of vectors.
    """

    def __init__(self, table: ItemVectors | None) -> None:
        self.dim = 0 if table is None else table.dim
        self._words: CodedTable | None = None
        if isinstance(table, CodedTable) and table.codes_spec is None:
            self._words = table.without_items()
        self._refusal = _refusal(table)

    @property
    def takes_codes(self) -> bool:
        """Whether an item is known by codes that were chosen for it."""
        return self._words is not None

    def check(self) -> None:
        """Let fresh items in.

        Raises:
            ItemsRefused: this form has no place for them.
        """
        if self._refusal is not None:
            raise ItemsRefused(f"{self._refusal}; publish a version that knows the new items")

    def record(self, item: str, vector: Floats) -> Record:
        """An item that is as near to a vector (dim,) as this form can say."""
        if self._words is None:
            return Record(item, vector=tuple(vector.tolist()))
        return Record(item, codes=tuple(nearest_codes(self._words, vector).tolist()))

    def fits(self, record: Record) -> bool:
        """Whether a record is one of this form: whoever looks up by its codes checks nothing."""
        if self._refusal is not None:
            return False
        if self._words is None:
            vector = np.array(record.vector or (), np.float32)
            return (
                record.codes is None and len(vector) == self.dim and bool(np.isfinite(vector).all())
            )
        books, size, _ = self._words.codebooks.shape
        codes = record.codes or ()
        return record.vector is None and len(codes) == books and all(0 <= c < size for c in codes)

    def table(self, records: list[Record]) -> ItemVectors:
        """The vectors of some records that fit, row by row."""
        if self._words is None:
            return DenseTable(np.array([record.vector for record in records], np.float32))
        codes = np.array([record.codes for record in records])
        kind = np.uint8 if self._words.codebooks.shape[1] <= 1 << 8 else np.uint16
        return CodedTable(codes.astype(kind), self._words.codebooks, self._words.concatenated)


def _refusal(table: ItemVectors | None) -> str | None:
    """Why a form cannot take fresh items, None if it can."""
    match table:
        case None:
            return "this ranker has no item vectors, it goes by what it counted"
        case CodedTable(codes_spec=None) | DenseTable() | Int8Table():
            return None
    return "this ranker computes an item's vector from its row, and has rows for its own items only"


def nearest_codes(words: CodedTable, vector: Floats) -> NDArray[np.intp]:
    """(M,) codes whose codewords come near to a vector (dim,).

    One after the other each part has its nearest codeword. Where codewords add up, a beam goes
    from codebook to codebook: the 32 choices so far that leave the least of the vector.
    """
    books = words.codebooks.astype(np.float64)
    if words.concatenated:
        parts = vector.reshape(len(books), 1, -1)  # (M, 1, width)
        return np.asarray(((books - parts) ** 2).sum(2).argmin(1))
    rests, codes = vector[None].astype(np.float64), np.empty((1, 0), np.intp)  # (B, dim), (B, m)
    for book in books:
        lengths = (rests**2).sum(1)[:, None] + (book**2).sum(1)
        left = lengths - 2 * rests @ book.T  # (B, K) squared distances
        choices = np.argsort(left, axis=None, kind="stable")[:BEAM]
        before, code = np.divmod(choices, len(book))
        rests = rests[before] - book[code]
        codes = np.column_stack([codes[before], code])
    return np.asarray(codes[0])
