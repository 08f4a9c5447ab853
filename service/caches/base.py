"""What a cache is: item tables and fresh items by bundle digest, and the signal of changes."""

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

Blob = bytes | memoryview
Blobs = Mapping[str, Blob]


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """What all caches are given.

    Attributes:
        timeout_s: for one round trip.
        ttl_s: how long a table that nobody asks for stays.
        poll_s: how often to look for activations where none are pushed.
        tell_up: told whether the cache answered, each time that it is asked.
    """

    timeout_s: float
    ttl_s: int
    poll_s: float
    tell_up: Callable[[bool], None] = lambda _: None


class TableCache(Protocol):
    """Distributes item tables, fresh items and signals. Never on the path of a request.

    The store stays the truth: a cache that is away costs time at load and at activation, nothing
    else. All that ask it (`get`, `has`, `put`, `fresh`, `put_fresh`, `announce`) raise
    CacheUnavailable then.
    """

    @property
    def up(self) -> bool:
        """Whether it answered when last asked."""
        ...

    async def get(self, digest: str) -> Blobs | None:
        """The blobs put under a digest, None if they are not there, whole and undamaged."""
        ...

    async def has(self, digest: str) -> bool:
        """Whether there are blobs under a digest."""
        ...

    async def put(self, digest: str, blobs: Blobs) -> None:
        """Keep blobs under a digest."""
        ...

    async def fresh(self, digest: str) -> Mapping[str, bytes]:
        """The records of fresh items put under a digest, by id."""
        ...

    async def put_fresh(self, digest: str, records: Mapping[str, bytes]) -> None:
        """Keep records of fresh items under a digest, beside those that are there."""
        ...

    async def announce(self, model: str, version: str) -> None:
        """Tell all who watch that a model has a new version, or a version new items."""
        ...

    def watch(self) -> AsyncGenerator[None]:
        """Yields when something may have been announced, or the cache came back.

        Yields once at the start. Yields may be spurious, but none is lost for good. Never ends.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
