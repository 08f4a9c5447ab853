"""Redis: distributes item tables and fresh items between replicas, and carries the signal.

Keys, ``<hex>`` being the bundle's digest (the braces keep a bundle's keys on one cluster node):

    slimrank:{<hex>}:3:manifest     JSON: blob → bytes, sha256, chunks. Written last
    slimrank:{<hex>}:3:<blob>:<i>   chunk i of a blob, up to 1 MiB
    slimrank:{<hex>}:fresh          hash: id of a fresh item → its place in the journal, its record
    slimrank:active                 hash: model → version activated last
    slimrank:epoch                  counter of changes: the pointer that watchers compare
    slimrank:activated              channel: a hint to look at the epoch now

The 3 is `FORMAT`, of what tables are packed into: while replicas are replaced by those of another
Slimrank, each kind finds its own tables, and they do not overwrite each other's.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from hashlib import sha256
from typing import Annotated, Any, Final

import msgspec
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from service.caches.base import Blob, Blobs, CacheOptions
from service.errors import CacheUnavailable

CHUNK_BYTES: Final = 1 << 20
CHUNKS_A_READ: Final = 8
FRESH: Final = "fresh"
FRESH_A_READ: Final = 500
FORMAT: Final = 3
ACTIVE: Final = "slimrank:active"
EPOCH: Final = "slimrank:epoch"
CHANNEL: Final = "slimrank:activated"
FIRST_BACKOFF_S: Final = 0.1
LONGEST_BACKOFF_S: Final = 5.0


class Part(msgspec.Struct, frozen=True):
    """A blob in the manifest: its length, its hash, and in how many chunks it lies."""

    bytes: Annotated[int, msgspec.Meta(ge=0)]
    sha256: str
    chunks: int


class RedisCache:
    """A server that may be away: methods then raise, and `watch` waits for it to come back."""

    def __init__(self, url: str, options: CacheOptions) -> None:
        self._options = options
        self._up = False
        self._client: Redis = Redis.from_url(
            url,
            socket_timeout=options.timeout_s,
            socket_connect_timeout=options.timeout_s,
            # One failure is an answer: who asked goes on without, `watch` tries again.
            retry=Retry(NoBackoff(), 0),
            client_name="slimrank",
        )

    @property
    def up(self) -> bool:
        """Whether it answered when last asked."""
        return self._up

    async def get(self, digest: str) -> Blobs | None:
        """The blobs put under a digest, None if they are not there, whole and undamaged."""
        with self._failures():
            manifest = _manifest(await self._client.get(_table_key(digest, "manifest")))
            if manifest is None:
                return None
            blobs: dict[str, bytes] = {}
            for name, part in manifest.items():
                blob = await self._read(digest, name, part)
                if blob is None:
                    return None
                blobs[name] = blob
            await self._touch(digest, manifest)
        return blobs

    async def _read(self, digest: str, name: str, part: Part) -> bytes | None:
        """A blob, None if it is not what its part of the manifest says."""
        chunks: list[Any] = []
        for start in range(0, part.chunks, CHUNKS_A_READ):
            numbers = range(start, min(start + CHUNKS_A_READ, part.chunks))
            chunks += await self._client.mget([_table_key(digest, f"{name}:{i}") for i in numbers])
            # At the first gap: what a manifest claims may be without end.
            if None in chunks[start:]:
                return None
        blob = await asyncio.to_thread(b"".join, chunks)
        intact = len(blob) == part.bytes and await _sha256(blob) == part.sha256
        return blob if intact else None

    async def _touch(self, digest: str, manifest: Mapping[str, Part]) -> None:
        pipe = self._client.pipeline(transaction=False)
        pipe.expire(_table_key(digest, "manifest"), self._options.ttl_s)
        for name, part in manifest.items():
            for i in range(part.chunks):
                pipe.expire(_table_key(digest, f"{name}:{i}"), self._options.ttl_s)
        await pipe.execute()

    async def has(self, digest: str) -> bool:
        """Whether there is a manifest that makes sense under a digest."""
        with self._failures():
            return _manifest(await self._client.get(_table_key(digest, "manifest"))) is not None

    async def put(self, digest: str, blobs: Blobs) -> None:
        """Keep blobs under a digest."""
        manifest: dict[str, Part] = {}
        with self._failures():
            for name, blob in blobs.items():
                view = memoryview(blob)
                for i, start in enumerate(range(0, len(view), CHUNK_BYTES)):
                    chunk = bytes(view[start : start + CHUNK_BYTES])
                    await self._client.set(
                        _table_key(digest, f"{name}:{i}"), chunk, ex=self._options.ttl_s
                    )
                chunks = _chunks(len(view))
                manifest[name] = Part(len(view), await _sha256(view), chunks)
            body = msgspec.json.encode(manifest)
            await self._client.set(_table_key(digest, "manifest"), body, ex=self._options.ttl_s)

    async def fresh(self, digest: str) -> Mapping[str, bytes]:
        """The records of fresh items put under a digest, by id."""
        key = _key(digest, FRESH)
        records: dict[str, bytes] = {}
        with self._failures():
            async for item, record in self._client.hscan_iter(key, count=FRESH_A_READ):
                records[item.decode(errors="replace")] = record
            await self._client.expire(key, self._options.ttl_s)
        return records

    async def put_fresh(self, digest: str, records: Mapping[str, bytes]) -> None:
        """Keep records of fresh items under a digest, beside those that are there."""
        key, items = _key(digest, FRESH), [*records.items()]
        with self._failures():
            for start in range(0, len(items), FRESH_A_READ):
                await self._client.hset(key, mapping=dict(items[start : start + FRESH_A_READ]))
            await self._client.expire(key, self._options.ttl_s)

    async def announce(self, model: str, version: str) -> None:
        """Tell all who watch that a model has a new version, or a version new items."""
        with self._failures():
            pipe = self._client.pipeline(transaction=False)
            pipe.hset(ACTIVE, model, version)
            pipe.incr(EPOCH)
            pipe.publish(CHANNEL, model)
            await pipe.execute()

    async def watch(self) -> AsyncGenerator[None]:
        """Yields at the start, when the epoch has changed, and when Redis came back."""
        yield
        backoff_s = FIRST_BACKOFF_S
        while True:
            try:
                async with aclosing(self._changes()) as changes:
                    async for _ in changes:
                        backoff_s = FIRST_BACKOFF_S
                        yield
            except CacheUnavailable:
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)

    async def _changes(self) -> AsyncGenerator[None]:
        """Yields once connected and on each change of the epoch, until Redis goes away."""
        # A lost connection loses its subscription, and messages with it: each starts anew here.
        async with self._client.pubsub(ignore_subscribe_messages=True) as pubsub:
            with self._failures():
                await pubsub.subscribe(CHANNEL)
                seen = await self._client.get(EPOCH)
            yield
            while True:
                with self._failures():
                    await self._hint(pubsub)
                    epoch = await self._client.get(EPOCH)
                if epoch != seen:
                    seen = epoch
                    yield

    async def _hint(self, pubsub: PubSub) -> None:
        """Wait for a message, or until it is time to look at the epoch anyway."""
        await pubsub.get_message(timeout=self._options.poll_s)

    async def close(self) -> None:
        """Let go of connections."""
        await self._client.aclose()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (RedisError, OSError, TimeoutError) as error:
            self._tell(up=False)
            raise CacheUnavailable(f"Redis does not answer: {error!r}") from error
        self._tell(up=True)

    def _tell(self, *, up: bool) -> None:
        self._up = up
        self._options.tell_up(up)


def _key(digest: str, part: str) -> str:
    return f"slimrank:{{{digest.removeprefix('sha256:')}}}:{part}"


def _table_key(digest: str, part: str) -> str:
    return _key(digest, f"{FORMAT}:{part}")


def _manifest(raw: bytes | str | None) -> dict[str, Part] | None:
    """The parts that a manifest names; None if there is none or it makes no sense."""
    if raw is None:
        return None
    try:
        parts = msgspec.json.decode(raw, type=dict[str, Part])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return parts if all(part.chunks == _chunks(part.bytes) for part in parts.values()) else None


async def _sha256(blob: Blob) -> str:
    """Beside the event loop: a hundred megabytes take a tenth of a second."""
    return (await asyncio.to_thread(sha256, blob)).hexdigest()


def _chunks(size: int) -> int:
    return -(-size // CHUNK_BYTES)
