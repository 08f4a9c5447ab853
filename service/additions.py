"""Additions: fresh items on their way into every catalogue that serves their version.

The journal beside the version in the store is the truth. The cache hands additions to replicas that
do not read the same store, and its signal makes all of them look at once; without it they find them
by polling the store.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol, TypeGuard

import msgspec
import numpy as np
import structlog

from model_store.errors import StoreError
from model_store.store import Store
from service.caches import TableCache
from service.candidates import MAX_FAULTS
from service.catalogue import Catalogue
from service.errors import CacheUnavailable, Fault, InvalidRequest, ItemsRefused
from service.fresh import Placed, Record
from service.ranking import Ranking

LARGEST: Final = 1e6  # of a number in a vector: products with it stay finite

log = structlog.get_logger(__name__)


class Growing(Protocol):
    """A ranking whose catalogue may get fresh items: that of a session ranker."""

    name: str
    version: str
    digest: str
    catalogue: Catalogue


def grows(ranking: Ranking | None) -> TypeGuard[Growing]:
    """Whether a ranking is one of those."""
    return ranking is not None and ranking.manifest.session is not None


@dataclass(frozen=True, slots=True)
class NewItem:
    """An item to add: by the items that were seen with it, or by its vector.

    Exactly one of the two is not None.
    """

    id: str
    seen_with: Sequence[str] | None = None
    vector: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class Added:
    """What became of new items.

    Attributes:
        added: how many were unknown before.
        updated: how many were fresh items already.
        fresh: how many fresh items the version has now.
    """

    added: int
    updated: int
    fresh: int


class Additions:
    """Adds fresh items, and takes in those that others added. One call for a ranking at a time."""

    def __init__(self, store: Store, cache: TableCache, limit: int) -> None:
        self._store, self._cache, self._limit = store, cache, limit

    async def catch_up(self, ranking: Growing, *, ask_cache: bool) -> None:
        """Take in what was added to a version; what cannot be read is logged and left out.

        Args:
            ranking: its catalogue is replaced if there is something new.
            ask_cache: also look there, and put in what it lacks.
        """
        fresh = ranking.catalogue.fresh
        found, read_to = await self._from_store(ranking, fresh.read_to)
        cached: Mapping[str, bytes] = {}
        if ask_cache:
            with suppress(CacheUnavailable):
                cached = await self._cache.fresh(ranking.digest)
        found += _unpacked(cached.values(), ranking)
        await self._take_in(ranking, found, read_to)
        if ask_cache:
            with suppress(CacheUnavailable):
                await self._tell(ranking, cached)

    async def add(self, ranking: Growing, items: Sequence[NewItem]) -> Added:
        """Make items rankable: written to the store, then here, then told to the others.

        Raises:
            ItemsRefused: the ranker cannot take them, or not so many; or the store was not written.
            InvalidRequest: an item is in the bundle, or cannot be placed; nothing was added.
        """
        ranking.catalogue.base.form.check()
        await self.catch_up(ranking, ask_cache=False)
        catalogue = ranking.catalogue
        records = await asyncio.to_thread(_records, items, catalogue)
        known = catalogue.fresh.placed.keys()
        new = {record.id for record in records} - known
        if len(known) + len(new) > self._limit:
            raise ItemsRefused(
                f"{len(known)} items were added to {ranking.name}@{ranking.version} already, and "
                f"{len(new)} more would exceed the limit {self._limit}; publish a version that "
                "knows them"
            )
        placed = await self._write(ranking, records)
        await self._take_in(ranking, placed, catalogue.fresh.read_to)
        with suppress(CacheUnavailable):
            await self._tell(ranking, {}, only={record.id for record in records})
        log.info(
            "items added", model=ranking.name, version=ranking.version, added=len(new),
            updated=len(records) - len(new),
        )  # fmt: skip
        return Added(len(new), len(records) - len(new), len(ranking.catalogue.fresh.placed))

    async def _write(self, ranking: Growing, records: Sequence[Record]) -> list[Placed]:
        lines = [msgspec.json.encode(record) for record in records]
        try:
            journal = await asyncio.to_thread(
                self._store.add_fresh, ranking.name, ranking.version, lines
            )
        except StoreError as error:
            raise ItemsRefused(f"nothing was added: {error}") from None
        places = [place for place, _ in journal.lines]
        return [Placed(place, record) for place, record in zip(places, records, strict=True)]

    async def _from_store(self, ranking: Growing, start: int) -> tuple[list[Placed], int]:
        try:
            journal = await asyncio.to_thread(
                self._store.fresh, ranking.name, ranking.version, start
            )
        except StoreError as error:
            log.warning("fresh items not read", model=ranking.name, reason=f"{error}")
            return [], start
        packed = (b"%d %b" % line for line in journal.lines)
        return _unpacked(packed, ranking), journal.end

    @staticmethod
    async def _take_in(ranking: Growing, found: Iterable[Placed], read_to: int) -> None:
        catalogue = ranking.catalogue
        fresh = catalogue.fresh.with_records(found, read_to)
        if fresh != catalogue.fresh:
            ranking.catalogue = await asyncio.to_thread(catalogue.with_fresh, fresh)

    async def _tell(
        self, ranking: Growing, cached: Mapping[str, bytes], only: set[str] | None = None
    ) -> None:
        """Put the records that a cache lacks into it."""
        packed = {
            item: placed.pack()
            for item, placed in ranking.catalogue.fresh.placed.items()
            if only is None or item in only
        }
        lacking = {item: each for item, each in packed.items() if cached.get(item) != each}
        if lacking:
            await self._cache.put_fresh(ranking.digest, lacking)


def _unpacked(packed: Iterable[bytes], ranking: Growing) -> list[Placed]:
    """The records that make sense and are of this ranker's form; others are logged."""
    base, found, senseless = ranking.catalogue.base, [], 0
    for each in packed:
        try:
            placed = Placed.unpack(each)
        except ValueError:
            senseless += 1
            continue
        if placed.record.id in base.ids or not base.form.fits(placed.record):
            senseless += 1
        else:
            found.append(placed)
    if senseless:
        log.warning("fresh items make no sense", model=ranking.name, records=senseless)
    return found


def _records(items: Sequence[NewItem], catalogue: Catalogue) -> list[Record]:
    """A record for each item.

    Raises:
        InvalidRequest: some cannot be placed; the faults say which and why.
    """
    records, faults, seen = [], [], set[str]()
    for number, item in enumerate(items):
        try:
            records.append(_record(item, catalogue, seen))
        except _Unplaceable as error:
            faults.append(Fault(f"/items/{number}/{error.where}", f"{error}"))
        seen.add(item.id)
    if faults:
        detail = f"{len(faults)} of {len(items)} items cannot be added: {faults[0].detail}"
        raise InvalidRequest(detail, faults[:MAX_FAULTS])
    return records


class _Unplaceable(ValueError):
    """An item cannot be added, because of one of its fields."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(why)
        self.where = where


def _record(item: NewItem, catalogue: Catalogue, seen: Set[str]) -> Record:
    if item.id in catalogue.base.ids:
        raise _Unplaceable("id", f"{item.id!r} is an item of the bundle, which never changes")
    if item.id in seen:
        raise _Unplaceable("id", f"{item.id!r} comes twice")
    form = catalogue.base.form
    if item.vector is None:
        rows = catalogue.rows([*(item.seen_with or ())])
        known = rows[rows >= 0]
        if not len(known):
            raise _Unplaceable("seen_with", "expected at least one item that is known")
        vector = catalogue.vectors(known).mean(0, dtype=np.float64)
    else:
        vector = np.array(item.vector, np.float64)
        if len(vector) != form.dim:
            raise _Unplaceable("vector", f"expected {form.dim} numbers, got {len(vector)}")
        if not (np.abs(vector) <= LARGEST).all():
            raise _Unplaceable("vector", f"expected numbers within ±{LARGEST:g}")
    return form.record(item.id, vector.astype(np.float32))
