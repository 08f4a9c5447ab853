"""The loader: bundles in, rankings served; and their replacement while requests run.

One slot for each entry of SLIMRANK_MODELS. The alias in the store is the truth of which version a
slot serves: `activate` moves it, and every worker follows it, by the cache's signal or by polling.
A new version is opened, checked against its golden vectors and warmed in a thread; then one
assignment on the event loop swaps it in. Requests hold the ranking that they began with.
"""

import asyncio
import ctypes
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal, TypeVar

import structlog

from model_store.bundle import Bundle
from model_store.errors import BadReference, BundleNotFound, StoreError, VersionNotFound
from model_store.store import (
    DEFAULT_ALIAS,
    AliasRecord,
    Entry,
    Store,
    parse_ref,
)
from service import errors
from service.additions import Added, Additions, Growing, NewItem, grows
from service.assembly import Table, assemble, kind_of
from service.caches import TableCache
from service.errors import ActivationConflict, BundleRejected, CacheUnavailable, Fault, ItemsRefused
from service.metrics import Metrics
from service.ranking import Ranking
from service.shared_ids import SharedIds

T = TypeVar("T")
State = Literal["loading", "ready", "failed"]
RETRY_S: Final = 30.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A version that was not taken, and when (monotonic seconds)."""

    version: str
    at: float


@dataclass(slots=True, eq=False)
class Slot:
    """What one entry of SLIMRANK_MODELS serves.

    Attributes:
        selector: an alias that is followed, or a pinned version.
        follows: whether it is an alias.
        fault: why the version that the store names is not served.
        refused: the version that was not taken.
        activating: whether somebody asked for another version just now.
        lock: held while a version is built for it.
    """

    ref: str
    name: str
    selector: str
    follows: bool = True
    ranking: Ranking | None = None
    loaded_at: datetime | None = None
    fault: str | None = None
    refused: Refusal | None = None
    activating: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def state(self) -> State:
        """Whether it serves."""
        if self.ranking is not None:
            return "ready"
        return "loading" if self.fault is None else "failed"

    def just_refused(self, version: str) -> bool:
        """Whether that version was tried and refused a moment ago: trying costs seconds."""
        refused = self.refused
        return (
            refused is not None
            and refused.version == version
            and time.monotonic() - refused.at < RETRY_S
        )


@dataclass(frozen=True, slots=True)
class Activated:
    """What an activation did."""

    ranking: Ranking
    previous: str | None


class NothingLoaded(Exception):
    """No configured model could be loaded; the message says why, model by model."""


class Loader:
    """Holds what is served.

    Attributes:
        reads_raw: whether any of it reads features of candidates as they came.

    Args:
        store: where bundles come from.
        ids: theirs.
        cache: where item tables are shared, and activations signalled.
        refs: what to serve; nothing: each bundle of the store that has the alias prod.
        default: the model of requests that name none.
        tolerance: of the golden check.
        max_fresh_items: most items that may be added to a version.
    """

    def __init__(
        self,
        *,
        store: Store,
        ids: SharedIds,
        cache: TableCache,
        refs: Sequence[str],
        default: str | None,
        tolerance: float,
        max_fresh_items: int,
        metrics: Metrics,
    ) -> None:
        self._store, self._ids, self._cache, self._refs = store, ids, cache, refs
        self._default, self._tolerance, self._metrics = default, tolerance, metrics
        self._additions = Additions(store, cache, max_fresh_items)
        self.slots: list[Slot] = []
        # What requests look up: name, name@alias, name@version. Replaced whole, never changed.
        self._served: Mapping[str | None, Ranking] = {}
        self.reads_raw = False

    # -- requests

    def resolve(self, ref: str | None) -> Ranking:
        """What serves a reference; None is the default model.

        Raises:
            ModelNotFound, VersionNotFound, ModelNotReady, InvalidRequest.
        """
        ranking = self._served.get(ref)
        if ranking is None:
            raise self._unserved(ref)
        return ranking

    @property
    def default(self) -> Ranking | None:
        """What serves requests that name no model."""
        return self._served.get(None)

    def _unserved(self, ref: str | None) -> errors.ServiceError:
        names = sorted({slot.name for slot in self.slots})
        if ref is None:
            if self._default is None and len(names) != 1:
                detail = f"name one of the models: {', '.join(names) or 'none is served'}"
                return errors.InvalidRequest(detail, [Fault("/model", detail)])
            ref = self._default or names[0]
        name, at, selector = ref.partition("@")
        mine = [slot for slot in self.slots if slot.name == name]
        if not mine:
            return errors.ModelNotFound(
                f"no model {name!r}; there are: {', '.join(names) or 'none'}"
            )
        if at and selector not in {slot.selector for slot in mine}:
            loaded = sorted(key for key in self._served if key and key.startswith(f"{name}@"))
            return errors.VersionNotFound(f"{ref!r} is not loaded; there are: {', '.join(loaded)}")
        # Why stands in the log and in GET /models: it may name the store's path.
        return errors.ModelNotReady(f"{ref!r} could not be loaded yet; GET /models says why")

    def _publish(self) -> None:
        """Make the slots' rankings what requests see."""
        served: dict[str | None, Ranking] = {}
        for slot in reversed(self.slots):  # the first entry of a name is what the bare name means
            if slot.ranking is not None:
                served[f"{slot.name}@{slot.ranking.version}"] = slot.ranking
                served[f"{slot.name}@{slot.selector}"] = slot.ranking
        for slot in reversed(self.slots):
            if slot.ranking is None:
                served.pop(slot.name, None)
            else:
                served[slot.name] = slot.ranking
        names = {slot.name for slot in self.slots}
        default = self._default or (next(iter(names)) if len(names) == 1 else None)
        if default in served:
            served[None] = served[default]
        self._served = served
        self.reads_raw = any(ranking.reads_raw for ranking in served.values())

    # -- start

    async def load_all(self) -> None:
        """Load every configured model.

        Raises:
            NothingLoaded: not one could be.
        """
        try:
            refs = self._refs or await asyncio.to_thread(self._all_prod)
            self.slots = [self._slot(ref) for ref in refs]
            self._check_default()
        except (StoreError, NothingLoaded) as error:
            raise NothingLoaded(f"no model can be served: {error}") from None
        for slot in self.slots:
            await self._follow_alias(slot)
        if not any(slot.ranking for slot in self.slots):
            reasons = "; ".join(f"{slot.ref}: {slot.fault}" for slot in self.slots)
            raise NothingLoaded(f"no model can be served: {reasons}")

    def _all_prod(self) -> list[str]:
        refs = self._store.with_alias(DEFAULT_ALIAS)
        if not refs:
            raise NothingLoaded(f"{self._store.url} holds no bundle with the alias {DEFAULT_ALIAS}")
        return refs

    @staticmethod
    def _slot(ref: str) -> Slot:
        name, selector = parse_ref(ref)
        return Slot(ref, name, selector)

    def _check_default(self) -> None:
        names = {slot.name for slot in self.slots} | {slot.ref for slot in self.slots}
        if self._default is not None and self._default not in names:
            raise NothingLoaded(
                f"the default model {self._default!r} is not among {', '.join(sorted(names))}"
            )

    # -- following the store

    async def sync(self, *, ask_cache: bool = False) -> None:
        """Take in what the store's aliases name now, and what was added to it.

        Failures are logged and told, never raised.

        Args:
            ask_cache: whether additions may be there that the store does not show.
        """
        for slot in self.slots:
            # Wait, do not pass by: what runs may have read the alias before it was moved.
            async with slot.lock:
                await self._follow_alias(slot)
                await self._catch_up(slot.ranking, ask_cache=ask_cache)

    async def _catch_up(self, ranking: Ranking | None, *, ask_cache: bool) -> None:
        if grows(ranking):
            await self._additions.catch_up(ranking, ask_cache=ask_cache)
            self._count_fresh(ranking)

    def _count_fresh(self, ranking: Growing) -> None:
        fresh = len(ranking.catalogue.fresh.placed)
        self._metrics.fresh_items.labels(ranking.name).set(fresh)

    async def _follow_alias(self, slot: Slot) -> None:
        if slot.ranking is not None and not slot.follows:
            return
        try:
            resolved = await asyncio.to_thread(self._store.resolve, slot.ref)
            slot.follows = resolved.version != slot.selector
            if slot.ranking is not None and slot.ranking.version == resolved.version:
                slot.fault = slot.refused = None
            elif not slot.just_refused(resolved.version):
                await self._take(slot, resolved.version)
        except StoreError as error:
            self._note(slot, f"{error}")

    async def _take(self, slot: Slot, version: str) -> None:
        """Build a version and swap it in; or note why not, and leave what serves."""
        try:
            ranking = await self._build(slot.name, version)
        except (StoreError, BundleRejected) as error:
            slot.refused = Refusal(version, time.monotonic())
            self._note(slot, f"version {version}: {error}")
            self._count(slot.name, "refused")
            return
        self._swap(slot, ranking)

    def _swap(self, slot: Slot, ranking: Ranking) -> None:
        before = slot.ranking
        slot.ranking, slot.fault, slot.refused = ranking, None, None
        slot.loaded_at = datetime.now(UTC)
        self._publish()
        info = self._metrics.model_info
        if before is not None:
            info.labels(before.name, before.version, before.digest).set(0)
            self._count(slot.name, "activated")
        info.labels(ranking.name, ranking.version, ranking.digest).set(1)
        log.info(
            "model loaded",
            model=slot.ref,
            version=ranking.version,
            digest=ranking.digest,
            instead_of=before.version if before else None,
        )

    def _count(self, model: str, outcome: str) -> None:
        self._metrics.activations.labels(model, outcome).inc()

    def _note(self, slot: Slot, fault: str) -> None:
        if slot.fault != fault:
            serving = slot.ranking.version if slot.ranking else None
            log.error("model not loaded", model=slot.ref, reason=fault, still_serving=serving)
        slot.fault = fault

    async def follow_store(self, every_s: float) -> None:
        """Sync every so many seconds, for ever."""
        while True:
            await asyncio.sleep(every_s)
            await self.sync()

    async def follow_cache(self) -> None:
        """Sync when the cache says that something changed, for ever."""
        async with aclosing(self._cache.watch()) as changes:
            async for _ in changes:
                await self.sync(ask_cache=True)
                await self._refill()

    async def _refill(self) -> None:
        """Put the tables that are served into a cache that came back without them."""
        for slot in self.slots:
            if slot.ranking is None or slot.ranking.table is None:
                continue
            try:
                if not await self._cache.has(slot.ranking.digest):
                    await self._put(slot.ranking.digest, slot.ranking.table)
            except CacheUnavailable:
                return  # it is away again; `watch` will say when it is back

    # -- building

    async def _build(self, name: str, version: str) -> Ranking:
        """Open a version, check it and warm it.

        Raises:
            StoreError: it is not there, or damaged.
            BundleRejected: its graph or its golden vectors do not fit, its ids are too long, or a
                file went meanwhile.
        """
        started = time.perf_counter()
        opened = await asyncio.to_thread(self._store.open, f"{name}@{version}")
        try:
            table = await self._table(opened.bundle)
            ranking = await asyncio.to_thread(assemble, opened, table, self._tolerance)
        except (OSError, ValueError) as error:
            raise BundleRejected(f"it cannot be read: {error}") from error
        # Before it serves: what was added to a version stays in it over a restart.
        await self._catch_up(ranking, ask_cache=True)
        await asyncio.to_thread(give_back)
        self._metrics.model_load_seconds.observe(time.perf_counter() - started)
        return ranking

    async def _table(self, bundle: Bundle) -> Table | None:
        """The catalogue: from the cache, else from the bundle, and then into the cache.

        Ids are the bundle's in any case: a network brings them no sooner.
        """
        ids = await asyncio.to_thread(self._ids.of, bundle)
        if ids is None:
            return None
        kind = kind_of(bundle.manifest)
        operations = self._metrics.cache_operations
        try:
            blobs = await self._cache.get(bundle.digest)
        except CacheUnavailable as error:
            operations.labels("error").inc()
            log.warning("cache away, loading from the bundle", reason=error.detail)
            return await asyncio.to_thread(kind.read_table, bundle, ids)
        cached: Table | None = None
        if blobs is not None:
            cached = await asyncio.to_thread(kind.unpack_table, bundle, ids, blobs)
        operations.labels("miss" if cached is None else "hit").inc()
        if cached is not None:
            return cached
        table = await asyncio.to_thread(kind.read_table, bundle, ids)
        with suppress(CacheUnavailable):
            await self._put(bundle.digest, table)
        return table

    async def _put(self, digest: str, table: Table) -> None:
        await self._cache.put(digest, await asyncio.to_thread(table.pack))
        self._metrics.cache_operations.labels("put").inc()

    # -- administration

    def slot_of(self, name: str) -> Slot:
        """The slot that a bare name means.

        Raises:
            ModelNotFound: there is none.
        """
        for slot in self.slots:
            if slot.name == name:
                return slot
        names = ", ".join(sorted({slot.name for slot in self.slots}))
        raise errors.ModelNotFound(f"no model {name!r}; there are: {names or 'none'}")

    async def activate(self, name: str, version: str) -> Activated:
        """Serve another version, and move the alias so that all others follow.

        Raises:
            ModelNotFound, VersionNotFound: there is no such thing in the store.
            ActivationConflict: another activation is running, the slot is pinned, or the version
                was refused; what served before goes on.
        """
        slot = self._movable(name)
        async with _claimed(slot):
            record = await self._record(slot)
            expected = None if record is None else record.version
            ranking = await self._candidate(slot, version)
            await self._move(
                self._store.set_alias, name, slot.selector, ranking.version, expected=expected
            )
            return await self._activated(slot, ranking)

    async def rollback(self, name: str) -> Activated:
        """Serve what the alias named before, and move it back.

        Raises:
            ModelNotFound, ActivationConflict: as `activate`; or nothing to go back to.
        """
        slot = self._movable(name)
        async with _claimed(slot):
            record = await self._record(slot)
            previous = () if record is None else record.previous
            target = await asyncio.to_thread(self._last_existing, name, previous)
            ranking = await self._candidate(slot, target)
            moved = await self._move(self._store.rollback, name, slot.selector)
            if moved != target:
                raise ActivationConflict(f"somebody moved {slot.ref} to {moved} meanwhile")
            return await self._activated(slot, ranking)

    def _movable(self, name: str) -> Slot:
        slot = self.slot_of(name)
        if not slot.follows:
            raise ActivationConflict(
                f"{slot.ref} is pinned by SLIMRANK_MODELS; list {name} with an alias to move it"
            )
        return slot

    async def _record(self, slot: Slot) -> AliasRecord | None:
        try:
            return await asyncio.to_thread(self._store.history, slot.name, slot.selector)
        except StoreError:
            return None  # no alias yet; or a damaged one, and moving it will say so

    def _last_existing(self, name: str, versions: Sequence[str]) -> str:
        for version in reversed(versions):
            with suppress(StoreError):
                return self._store.resolve(f"{name}@{version}").version
        raise ActivationConflict(f"{name}: there is no version to roll back to")

    async def _candidate(self, slot: Slot, version: str) -> Ranking:
        """The ranking of a version, built if it is not what serves already."""
        try:
            resolved = await asyncio.to_thread(self._store.resolve, f"{slot.name}@{version}")
            if slot.ranking is not None and slot.ranking.version == resolved.version:
                return slot.ranking
            return await self._build(slot.name, resolved.version)
        except (VersionNotFound, BundleNotFound, BadReference) as error:
            raise errors.VersionNotFound(f"{error}") from None
        except (StoreError, BundleRejected) as error:
            self._count(slot.name, "refused")
            serving = (
                "nothing serves" if slot.ranking is None else f"{slot.ranking.version} goes on"
            )
            log.warning("activation refused", model=slot.ref, version=version, reason=f"{error}")
            raise ActivationConflict(
                f"version {version} of {slot.name} was not activated, {serving}: {error}"
            ) from None

    async def _move(self, move: Callable[..., T], *arguments: str, **options: str | None) -> T:
        try:
            return await asyncio.to_thread(move, *arguments, **options)
        except StoreError as error:
            raise ActivationConflict(f"the alias was not moved: {error}") from None

    async def _activated(self, slot: Slot, ranking: Ranking) -> Activated:
        previous = slot.ranking.version if slot.ranking else None
        if slot.ranking is not ranking:
            self._swap(slot, ranking)
        with suppress(CacheUnavailable):  # the others poll the store as well
            await self._cache.announce(slot.name, ranking.version)
        return Activated(ranking, previous)

    async def add_items(self, name: str, items: Sequence[NewItem]) -> tuple[Growing, Added]:
        """Make items rankable that the version which serves does not know.

        Raises:
            ModelNotFound, ModelNotReady: there is no such model, or nothing serves.
            ItemsRefused, InvalidRequest: as `Additions.add`.
        """
        slot = self.slot_of(name)
        async with slot.lock:
            ranking = slot.ranking
            if ranking is None:
                raise self._unserved(name)
            if not grows(ranking):
                raise ItemsRefused(
                    f"{name} is a click-through ranker: send its new items' features to /rank"
                )
            added = await self._additions.add(ranking, items)
            self._count_fresh(ranking)
        for other in self.slots:
            if other is not slot and other.ranking is not None and other.name == name:
                async with other.lock:
                    await self._catch_up(other.ranking, ask_cache=False)
        with suppress(CacheUnavailable):  # the others poll the store as well
            await self._cache.announce(ranking.name, ranking.version)
        return ranking, added

    async def versions(self, name: str) -> list[Entry]:
        """All versions of a model in the store; nothing if the store is away."""
        try:
            entries = await asyncio.to_thread(self._store.list)
        except StoreError as error:
            log.warning("the store cannot be listed", reason=f"{error}")
            return []
        return [entry for entry in entries if entry.name == name]


@asynccontextmanager
async def _claimed(slot: Slot) -> AsyncIterator[None]:
    """Keep a second activation out, and wait for a sync that is under way."""
    if slot.activating:
        raise ActivationConflict(f"another activation of {slot.name} is running")
    slot.activating = True
    try:
        async with slot.lock:
            yield
    finally:
        slot.activating = False


def give_back() -> None:
    """Hand freed memory back to the system: loading needs several times what stays.

    GNU's allocator keeps it otherwise; others have no such function, and need none. Meanwhile other
    threads wait for memory: 3 to 30 ms after an activation with a million items, which costs a
    second of pauses anyway (docs/operations.md), against the 50 MB that would stay.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
