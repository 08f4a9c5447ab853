"""The registry of caches, by the scheme of their URL. A new one is a new file and a line here."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

from service.caches.base import Blob, Blobs, CacheOptions, TableCache
from service.caches.memory import MemoryCache
from service.caches.redis import RedisCache

__all__ = ["CACHES", "Blob", "Blobs", "CacheOptions", "TableCache", "UnknownCache", "open_cache"]

CACHES: Final[Mapping[str, Callable[[str, CacheOptions], TableCache]]] = MappingProxyType(
    {"memory": MemoryCache, "redis": RedisCache, "rediss": RedisCache}
)


class UnknownCache(ValueError):
    """No cache has that scheme."""


def open_cache(url: str, options: CacheOptions) -> TableCache:
    """The cache at a URL. Nothing is connected yet.

    Raises:
        UnknownCache: the URL is of no known scheme, or not a URL of it.
    """
    scheme = urlsplit(url).scheme
    if scheme not in CACHES:
        raise UnknownCache(f"no cache for {scheme}://, expected one of {', '.join(CACHES)}")
    try:
        return CACHES[scheme](url, options)
    except ValueError as error:
        raise UnknownCache(f"a {scheme}:// cache: {error}") from None
