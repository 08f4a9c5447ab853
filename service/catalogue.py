"""The catalogue of a session ranker in this process: item id → row → vector, and what follows it.

Rows are those of the bundle, and after them the fresh items. A catalogue never changes: with other
fresh items it is another one, which shares all the rest.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from model_store.arrays import Floats, Rows
from model_store.bundle import Bundle
from model_store.codebooks import CodedTable
from model_store.item_vectors import ItemVectors, Neighbours, load_vectors
from model_store.manifest import CodedVectors, SessionSpec, StoredCodes
from service.caches import Blob, Blobs
from service.fresh import Fresh, FreshForm
from service.item_ids import UNKNOWN, ItemIds
from service.item_scores import Best, ItemScores, LookUps, LookUpScoring, Shuffles, fastest
from service.kernels import Blocks, RankingLoop, Texts, in_blocks, out_of_blocks


class _Form(NamedTuple):
    """What an array in a cache must be."""

    axes: int
    dtypes: frozenset[str]


_NEIGHBOURS: Final = ("offsets", "items", "weights")
ARRAYS: Final[Mapping[str, _Form]] = MappingProxyType(
    {
        "codes": _Form(2, frozenset({"|u1", "<u2"})),
        "blocks": _Form(3, frozenset({"|u1"})),
        "codebooks": _Form(3, frozenset({"<f4"})),
        "offsets": _Form(1, frozenset({"<i4"})),
        "items": _Form(1, frozenset({"<i4"})),
        "weights": _Form(1, frozenset({"<f2", "<f4"})),
    }
)


@dataclass(frozen=True, slots=True)
class Base:
    """What a bundle holds of its items.

    Attributes:
        ids: of row 0, 1, …, and back.
        vectors: None for a ranker without.
        mean: (dim,) the mean item, which stands for one that is unknown; zeros without vectors.
        neighbours: what follows what; None for most rankers.
        form: what it can take for a fresh item.
    """

    ids: ItemIds
    vectors: ItemScores | None
    mean: Floats
    neighbours: Neighbours | None
    form: FreshForm


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The items of a bundle, and the fresh ones.

    Attributes:
        fresh_ids: of the rows after the bundle's.
        fresh_row_of: the same, the other way round.
        fresh_vectors: None while there are no fresh items.
    """

    base: Base
    fresh: Fresh
    fresh_ids: Sequence[str] = ()
    fresh_row_of: dict[str, int] | None = None
    fresh_vectors: ItemScores | None = None

    def __len__(self) -> int:
        return len(self.base.ids) + len(self.fresh_ids)

    @property
    def nbytes(self) -> int:
        """What item vectors take in memory, or map from disk."""
        parts = (self.base.vectors, self.fresh_vectors)
        return sum(part.nbytes for part in parts if part is not None)

    # -- made

    @classmethod
    def read(cls, bundle: Bundle, ids: ItemIds) -> Self:
        """From an opened bundle of a session ranker, and its ids.

        Raises:
            BundleCorrupt: vectors and neighbours do not fit each other.
        """
        spec = bundle.manifest.session
        if spec is None:
            raise ValueError(f"{bundle.root}: the bundle holds no session ranker")
        return cls._of(ids, *bundle.session_items(spec))

    @classmethod
    def _of(
        cls,
        ids: ItemIds,
        vectors: ItemVectors | None,
        neighbours: Neighbours | None,
        blocks: Blocks | None = None,
    ) -> Self:
        base = Base(
            ids=ids,
            vectors=None if vectors is None else fastest(vectors, blocks),
            mean=np.zeros(1, np.float32) if vectors is None else vectors.mean(),
            neighbours=neighbours,
            form=FreshForm(vectors),
        )
        return cls(base, Fresh())

    def with_fresh(self, fresh: Fresh) -> Self:
        """The same catalogue with these fresh items instead."""
        records = [placed.record for placed in fresh.placed.values()]
        if not records:
            return replace(self, fresh=fresh, fresh_ids=(), fresh_row_of=None, fresh_vectors=None)
        ids = [record.id for record in records]
        return replace(
            self,
            fresh=fresh,
            fresh_ids=ids,
            fresh_row_of={item: row for row, item in enumerate(ids, start=len(self.base.ids))},
            fresh_vectors=fastest(self.base.form.table(records)),
        )

    # -- cached

    def pack(self) -> dict[str, Blob]:
        """Named blobs, for the cache: codes and neighbours, as views where they can be.

        Vectors of other forms are in the bundle's files as they are used: they are mapped from
        there, which is cheaper than any network.
        """
        arrays: dict[str, NDArray[Any]] = {}
        vectors, neighbours = self.base.vectors, self.base.neighbours
        if self.base.form.takes_codes:
            if isinstance(vectors, LookUps):
                arrays |= {"codes": vectors.table.codes, "codebooks": vectors.table.codebooks}
            elif isinstance(vectors, Shuffles):
                arrays |= {"blocks": vectors.blocks, "codebooks": vectors.words.codebooks}
        if neighbours is not None:
            arrays |= {name: getattr(neighbours, name) for name in _NEIGHBOURS}
        blobs: dict[str, Blob] = {}
        for name, array in arrays.items():
            shape = "x".join(map(str, array.shape))
            flat = np.ascontiguousarray(array).reshape(-1)
            blobs[f"{name}:{array.dtype.str}:{shape}"] = flat.view(np.uint8).data
        return blobs

    @classmethod
    def unpack(cls, blobs: Blobs, bundle: Bundle, ids: ItemIds) -> Self | None:
        """From what `pack` made of that bundle, None if it is not that."""
        spec = bundle.manifest.session
        try:
            arrays = dict(_array(name, blob) for name, blob in blobs.items())
            if spec is None:
                return None
            vectors, blocks = _vectors(arrays, spec, bundle)
            return cls._of(ids, vectors, _neighbours(arrays, spec), blocks)
        except (LookupError, OverflowError, TypeError, ValueError):
            return None

    # -- asked

    def rows(self, *ids: Texts) -> Rows:
        """(n,) rows of items, one sequence after the other; -1 for unknown ones."""
        rows = self.base.ids.rows(*ids)
        if self.fresh_row_of is not None:
            every = [*chain(*ids)]
            for place in np.flatnonzero(rows < 0).tolist():
                rows[place] = self.fresh_row_of.get(every[place], UNKNOWN)
        return rows

    def ids(self, rows: Rows) -> list[str]:
        """The ids of some rows."""
        own, fresh = self.base.ids, self.fresh_ids
        return [own[row] if row < len(own) else fresh[row - len(own)] for row in rows.tolist()]

    def vectors(self, rows: Rows) -> Floats:
        """(n, dim) for rows (n,) of known items; zeros for a ranker without vectors."""
        if self.fresh_vectors is None and self.base.vectors is not None:
            return self.base.vectors.vectors(rows)
        found = np.zeros((len(rows), len(self.base.mean)), np.float32)
        parts = (self.base.vectors, self.fresh_vectors)
        for part, (places, within) in zip(parts, self.parted(rows), strict=True):
            if part is not None:
                found[places] = part.vectors(within)
        return found

    def scoring(self, query: Floats) -> "CatalogueScoring":
        """What multiplies a query (dim,) with items."""
        return CatalogueScoring(self, query)

    def best(self, query: Floats, count: int) -> Best:
        """The ``count`` best of all items for a query (dim,); all of them if there are fewer."""
        own = len(self.base.ids)
        rows, scores = [], []
        for part, start in ((self.base.vectors, 0), (self.fresh_vectors, own)):
            if part is not None:
                best = part.best(query, count)
                rows.append(best.rows + start)
                scores.append(best.scores)
        if len(rows) == 1:
            return Best(rows[0], scores[0])
        return Best.sorted(np.concatenate(rows), np.concatenate(scores), count)

    def parted(self, rows: Rows) -> Iterator[tuple[Rows, Rows]]:
        """Where rows of the bundle stand, and where fresh ones do; and their rows there."""
        own = len(self.base.ids)
        for start, end in ((0, own), (own, len(self))):
            places = np.flatnonzero((rows >= start) & (rows < end))
            yield places, rows[places] - start


class CatalogueScoring:
    """Multiplies one query with items; what the query alone decides is computed once."""

    __slots__ = ("_catalogue", "_mean", "_parts")

    def __init__(self, catalogue: Catalogue, query: Floats) -> None:
        base = catalogue.base
        self._catalogue = catalogue
        self._parts = [
            None if part is None else part.scoring(query)
            for part in (base.vectors, catalogue.fresh_vectors)
        ]
        self._mean = base.mean @ query

    def loop(self, session: Rows, repeats: Floats) -> RankingLoop | None:
        """What ranks known items by this query and by what a session's own items add, in one go.

        Args:
            session: (L,) rows.
            repeats: (L,) log weights.

        Returns:
            None where it takes more than one loop.
        """
        own, fresh = self._parts
        return (
            own.loop(session, repeats) if isinstance(own, LookUpScoring) and fresh is None else None
        )

    def __call__(self, rows: Rows, *, known: bool) -> Floats:
        """(n,) products with the items of ``rows``; the mean item's for -1.

        ``known``: there is no -1.
        """
        own, fresh = self._parts
        if known and fresh is None and own is not None:
            return own(rows)
        found = np.full(len(rows), self._mean, np.float32)
        for part, (places, within) in zip(self._parts, self._catalogue.parted(rows), strict=True):
            if part is not None:
                found[places] = part(within)
        return found


def _array(name: str, blob: Blob) -> tuple[str, NDArray[Any]]:
    part, dtype, spelt = name.split(":")
    form, shape = ARRAYS[part], [int(axis) for axis in spelt.split("x")]
    if dtype not in form.dtypes or len(shape) != form.axes:
        raise ValueError(f"{name}: no array of ours")
    return part, np.frombuffer(blob, dtype).reshape(shape)


def _vectors(
    arrays: Mapping[str, NDArray[Any]], spec: SessionSpec, bundle: Bundle
) -> tuple[ItemVectors | None, Blocks | None]:
    """Item vectors, codes from the cache and other forms from the bundle; and the codes in blocks.

    Raises:
        KeyError, ValueError: the cache's do not fit.
    """
    if spec.vectors is None:
        return None, None
    coded = spec.vectors
    if not (isinstance(coded, CodedVectors) and isinstance(coded.codes, StoredCodes)):
        return load_vectors(coded, spec.items, bundle.path), None
    codebooks = arrays["codebooks"]
    books, size, _ = codebooks.shape
    blocks = arrays.get("blocks")
    codes = arrays["codes"] if blocks is None else _unblocked(blocks, spec.items, books)
    table = CodedTable(codes, codebooks, coded.composition == "concatenate")
    # Codes are not checked when they are looked up.
    if codes.shape != (spec.items, books) or int(codes.max()) >= size or table.dim != spec.dim:
        raise ValueError(f"codes {codes.shape} of codebooks {codebooks.shape}")
    if not np.isfinite(codebooks).all():
        raise ValueError("codewords that are no numbers")
    return table, blocks


def _unblocked(blocks: Blocks, items: int, books: int) -> NDArray[np.uint8]:
    """(N, M) codes of blocks that are what `in_blocks` makes of them."""
    codes = out_of_blocks(blocks, np.arange(items), books)
    # What fills blocks up is looked up as well.
    if not np.array_equal(in_blocks(codes), blocks):
        raise ValueError(f"blocks {blocks.shape} of {items} items with {books} codes")
    return codes


def _neighbours(arrays: Mapping[str, NDArray[Any]], spec: SessionSpec) -> Neighbours | None:
    if spec.neighbours is None:
        return None
    neighbours = Neighbours(**{name: arrays[name] for name in _NEIGHBOURS})
    if not neighbours.fit(spec.items):
        raise ValueError(f"no {spec.items} rows of neighbours")
    return neighbours
