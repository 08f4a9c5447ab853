"""Redis: distributes item tables between replicas and carries the activation signal.

Keys, ``<hex>`` being the bundle's digest (the braces keep a bundle's keys on one cluster node):

    slimrank:{<hex>}:manifest     JSON: blob → bytes, sha256, chunks. Written last
    slimrank:{<hex>}:<blob>:<i>   chunk i of a blob, up to 1 MiB
    slimrank:active               hash: model → version activated last
    slimrank:epoch                counter of activations: the pointer that watchers compare
    slimrank:activated            channel: a hint to look at the epoch now
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from hashlib import sha256
from typing import Any, Final

import orjson
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from service.caches.base import Blobs, CacheOptions
from service.errors import CacheUnavailable

CHUNK_BYTES: Final = 1 << 20
CHUNKS_A_READ: Final = 8
FORMAT: Final = 1
ACTIVE: Final = "slimrank:active"
EPOCH: Final = "slimrank:epoch"
CHANNEL: Final = "slimrank:activated"
FIRST_BACKOFF_S: Final = 0.1
LONGEST_BACKOFF_S: Final = 5.0


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
            raw = await self._client.get(_key(digest, "manifest"))
            manifest = _manifest(raw)
            if manifest is None:
                return None
            blobs: dict[str, bytes] = {}
            for name, entry in manifest.items():
                keys = [_key(digest, f"{name}:{i}") for i in range(entry["chunks"])]
                blob = await self._read(keys)
                if len(blob) != entry["bytes"] or sha256(blob).hexdigest() != entry["sha256"]:
                    return None
                blobs[name] = blob
            await self._touch(digest, manifest)
        return blobs

    async def _read(self, keys: list[str]) -> bytes:
        chunks: list[Any] = []
        for start in range(0, len(keys), CHUNKS_A_READ):
            found = await self._client.mget(keys[start : start + CHUNKS_A_READ])
            chunks += (chunk or b"" for chunk in found)
        return b"".join(chunks)

    async def _touch(self, digest: str, manifest: dict[str, Any]) -> None:
        pipe = self._client.pipeline(transaction=False)
        pipe.expire(_key(digest, "manifest"), self._options.ttl_s)
        for name, entry in manifest.items():
            for i in range(entry["chunks"]):
                pipe.expire(_key(digest, f"{name}:{i}"), self._options.ttl_s)
        await pipe.execute()

    async def has(self, digest: str) -> bool:
        """Whether there are blobs under a digest."""
        with self._failures():
            return bool(await self._client.exists(_key(digest, "manifest")))

    async def put(self, digest: str, blobs: Blobs) -> None:
        """Keep blobs under a digest."""
        manifest = {}
        with self._failures():
            for name, blob in blobs.items():
                view = memoryview(blob)
                starts = range(0, len(view), CHUNK_BYTES)
                for i, start in enumerate(starts):
                    chunk = bytes(view[start : start + CHUNK_BYTES])
                    await self._client.set(
                        _key(digest, f"{name}:{i}"), chunk, ex=self._options.ttl_s
                    )
                manifest[name] = {
                    "bytes": len(view), "sha256": sha256(view).hexdigest(), "chunks": len(starts)
                }  # fmt: skip
            body = orjson.dumps({"format": FORMAT, "blobs": manifest})
            await self._client.set(_key(digest, "manifest"), body, ex=self._options.ttl_s)

    async def announce(self, model: str, version: str) -> None:
        """Tell all who watch that a model has a new version."""
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
            self._up = False
            raise CacheUnavailable(f"Redis does not answer: {error!r}") from error
        self._up = True


def _key(digest: str, part: str) -> str:
    return f"slimrank:{{{digest.removeprefix('sha256:')}}}:{part}"


def _manifest(raw: bytes | str | None) -> dict[str, Any] | None:
    if raw is None:
        return None
    try:
        manifest = orjson.loads(raw)
        return dict(manifest["blobs"]) if manifest["format"] == FORMAT else None
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
