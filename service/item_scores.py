"""Scores of item vectors, by the fastest way that their form has: look-up, shuffle or product.

Each way gives the same score for an item whatever else is asked, so that what /recommend finds is
what /rank scores; products alone may differ between the two in the last bit.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from model_store.arrays import Floats, Rows
from model_store.codebooks import CodedTable
from model_store.item_vectors import ItemVectors
from service import kernels

Scoring = Callable[[Rows], Floats]  # rows (n,) to their items' products (n,) with one query
# By the kernels: in C order; and what came over the network may lie anywhere.
READABLE: Final = ("C_CONTIGUOUS", "ALIGNED")


class Best(NamedTuple):
    """Items, best first; of equal scores the first row."""

    rows: Rows
    scores: Floats

    @classmethod
    def of(cls, heap: kernels.Heap) -> Self:
        """A kernel's heap in order, without its free places."""
        scores, rows = heap
        filled = rows != kernels.NO_ROW
        return cls.sorted(rows[filled], scores[filled], len(rows))

    @classmethod
    def sorted(cls, rows: Rows, scores: Floats, count: int) -> Self:
        """The ``count`` best of some."""
        order = np.lexsort((rows, -scores))[:count]
        return cls(rows[order], scores[order])


class ItemScores(Protocol):
    """The vectors (N, dim) of some items, to be multiplied with queries."""

    @property
    def nbytes(self) -> int:
        """What it takes in memory, or maps from disk."""
        ...

    @property
    def query_bytes(self) -> int:
        """What `scoring` holds besides."""
        ...

    def __len__(self) -> int: ...

    def vectors(self, rows: Rows) -> Floats:
        """(n, dim) for rows (n,)."""
        ...

    def scoring(self, query: Floats) -> Scoring:
        """What multiplies a query (dim,) with items; it holds all that the query alone decides."""
        ...

    def best(self, query: Floats, count: int) -> Best:
        """The ``count`` best of all items for a query (dim,); all of them if there are fewer."""
        ...


@dataclass(frozen=True, slots=True)
class Products:
    """Vectors that are multiplied as they are: dense, in eight bits, or expanded from a train."""

    table: ItemVectors

    @property
    def nbytes(self) -> int:
        """What it takes in memory, or maps from disk."""
        return self.table.nbytes

    @property
    def query_bytes(self) -> int:
        """The query alone, which is counted nowhere."""
        return 0

    def __len__(self) -> int:
        return len(self.table)

    def vectors(self, rows: Rows) -> Floats:
        """(n, dim) for rows (n,)."""
        return self.table.vectors(rows)

    def scoring(self, query: Floats) -> Scoring:
        """What multiplies a query (dim,) with items."""
        return partial(self.table.scores, query)

    def best(self, query: Floats, count: int) -> Best:
        """The ``count`` best of all items for a query (dim,)."""
        return Best.of(kernels.best_of(self.table.all_scores(query), min(count, len(self))))


@dataclass(frozen=True, slots=True)
class LookUpScoring:
    """What multiplies a query with items, by its products with the codewords.

    Attributes:
        codes: (N, M) of one or two bytes.
        tables: (M, K) the products.
    """

    codes: kernels.Codes
    tables: Floats

    def __call__(self, rows: Rows) -> Floats:
        """(n,) for rows (n,)."""
        return kernels.taken(self.codes, rows, self.tables)

    def loop(self, session: Rows, repeats: Floats) -> kernels.RankingLoop | None:
        """As `CatalogueScoring.loop`; None where loops are not compiled."""
        if not kernels.COMPILED:
            return None
        return kernels.RankingLoop(self.codes, self.tables, session, repeats)


@dataclass(frozen=True, slots=True)
class LookUps:
    """Codes of one or two bytes, looked up item by item."""

    table: CodedTable

    @property
    def nbytes(self) -> int:
        """What it takes in memory, or maps from disk."""
        return self.table.nbytes

    @property
    def query_bytes(self) -> int:
        """A query's products with the codewords."""
        return _products_bytes(self.table)

    def __len__(self) -> int:
        return len(self.table)

    def vectors(self, rows: Rows) -> Floats:
        """(n, dim) for rows (n,)."""
        table = self.table
        return kernels.vectors(table.codes, rows, table.codebooks, concatenated=table.concatenated)

    def scoring(self, query: Floats) -> Scoring:
        """What multiplies a query (dim,) with items: its products with the codewords."""
        return LookUpScoring(self.table.codes, self.table.sub_scores(query))

    def best(self, query: Floats, count: int) -> Best:
        """The ``count`` best of all items for a query (dim,)."""
        tables = self.table.sub_scores(query)
        return Best.of(kernels.scanned(self.table.codes, tables, min(count, len(self))))


@dataclass(frozen=True, slots=True)
class Shuffles:
    """Codes of four bits, two in a byte, looked up 32 items at once.

    Attributes:
        blocks: as `kernels.in_blocks` lays them out: half the memory of a byte for each.
        items: N.
        words: the codebooks, with no codes.
    """

    blocks: kernels.Blocks
    items: int
    words: CodedTable

    @classmethod
    def of(cls, table: CodedTable, blocks: kernels.Blocks | None = None) -> Self:
        """A table with up to 16 codewords a codebook; its codes in blocks, where they lie so."""
        laid = kernels.in_blocks(table.codes) if blocks is None else blocks
        return cls(laid, len(table), table.without_items())

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return self.blocks.nbytes + self.words.nbytes

    @property
    def query_bytes(self) -> int:
        """A query's products with the codewords."""
        return _products_bytes(self.words)

    def __len__(self) -> int:
        return self.items

    def codes(self, rows: Rows) -> NDArray[np.uint8]:
        """(n, M) for rows (n,)."""
        return kernels.out_of_blocks(self.blocks, rows, len(self.words.codebooks))

    def vectors(self, rows: Rows) -> Floats:
        """(n, dim) for rows (n,)."""
        words, each = self.words, np.arange(len(rows))
        return kernels.vectors(
            self.codes(rows), each, words.codebooks, concatenated=words.concatenated
        )

    def scoring(self, query: Floats) -> Scoring:
        """What multiplies a query (dim,) with items: its products with the codewords."""
        return partial(kernels.taken_from_blocks, self.blocks, tables=self._tables(query))

    def best(self, query: Floats, count: int) -> Best:
        """The ``count`` best of all items for a query (dim,)."""
        tables, most = self._tables(query), min(count, self.items)
        return Best.of(kernels.scanned_blocks(self.blocks, tables, self.items, most))

    def _tables(self, query: Floats) -> Floats:
        """(M, K), filled up to an even M with zeros."""
        tables = self.words.sub_scores(query)
        return np.concatenate([tables, np.zeros_like(tables[:1])]) if len(tables) % 2 else tables


def _products_bytes(table: CodedTable) -> int:
    books, words, _ = table.codebooks.shape
    return int(books) * int(words) * np.dtype(np.float32).itemsize


def fastest(table: ItemVectors, blocks: kernels.Blocks | None = None) -> ItemScores:
    """The fastest way to score with a table; ``blocks``: its codes, where they lie so already."""
    if not isinstance(table, CodedTable):
        return Products(table)
    books, size, _ = table.codebooks.shape
    table = replace(table, codebooks=np.require(table.codebooks, requirements=READABLE))
    # Without compiled loops numpy would take the blocks apart in every request.
    if size <= kernels.HALF_BYTE and books <= kernels.MOST_BOOKS and kernels.COMPILED:
        return Shuffles.of(table, blocks)
    return LookUps(replace(table, codes=np.require(table.codes, requirements=READABLE)))
