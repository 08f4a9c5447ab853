"""The embedded cache: within one process."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping
from typing import Final

from service.caches.base import Blobs, CacheOptions

KEPT: Final = 4


class MemoryCache:
    """Keeps the blobs of the last few bundles; a rollback finds its table here.

    Other processes learn of an activation from the store's aliases, which all of them read.
    """

    up: Final = True

    def __init__(self, url: str, options: CacheOptions) -> None:
        if url != "memory://":
            raise ValueError(f"expected memory://, got {url!r}")
        self._tables: OrderedDict[str, Blobs] = OrderedDict()
        self._fresh: OrderedDict[str, dict[str, bytes]] = OrderedDict()
        self._activated = asyncio.Event()
        options.tell_up(self.up)

    async def get(self, digest: str) -> Blobs | None:
        """The blobs put under a digest."""
        if digest in self._tables:
            self._tables.move_to_end(digest)
        return self._tables.get(digest)

    async def has(self, digest: str) -> bool:
        """Whether there are blobs under a digest."""
        return digest in self._tables

    async def put(self, digest: str, blobs: Blobs) -> None:
        """Keep blobs under a digest, in place of those asked for longest ago."""
        self._tables[digest] = dict(blobs)
        if len(self._tables) > KEPT:
            self._tables.popitem(last=False)

    async def fresh(self, digest: str) -> Mapping[str, bytes]:
        """The records of fresh items put under a digest, by id."""
        return dict(self._fresh.get(digest, {}))

    async def put_fresh(self, digest: str, records: Mapping[str, bytes]) -> None:
        """Keep records of fresh items under a digest, beside those that are there."""
        self._fresh.setdefault(digest, {}).update(records)
        self._fresh.move_to_end(digest)
        if len(self._fresh) > KEPT:
            self._fresh.popitem(last=False)

    async def announce(self, model: str, version: str) -> None:  # noqa: ARG002  all wake
        """Wake those who watch."""
        self._activated.set()

    async def watch(self) -> AsyncGenerator[None]:
        """Yields at the start and after each activation in this process."""
        while True:
            yield
            await self._activated.wait()
            self._activated.clear()

    async def close(self) -> None:
        """Forget everything."""
        self._tables.clear()
        self._fresh.clear()
