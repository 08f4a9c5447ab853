"""What every cache must hold to, over the registry; and Redis coming and going."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from model_store.store import Store
from service.caches import CACHES, CacheOptions, TableCache, UnknownCache, open_cache
from service.caches import redis as redis_cache
from service.caches.memory import KEPT
from service.caches.redis import CHUNK_BYTES, FORMAT
from service.errors import CacheUnavailable
from tests.service.conftest import Serve, until
from tests.service.sessions import FORMS, World

pytestmark = pytest.mark.anyio

OPTIONS = CacheOptions(timeout_s=2.0, ttl_s=60, poll_s=0.02)
ONE, TWO = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"
PLAIN = sorted(set(CACHES) - {"rediss"})  # TLS is Redis with another socket


@pytest.fixture(params=PLAIN)
def url(request: pytest.FixtureRequest) -> str:
    """Where a cache of each scheme is."""
    if request.param == "redis":
        return str(request.getfixturevalue("empty_redis").url)
    return f"{request.param}://"


@asynccontextmanager
async def opened(url: str, options: CacheOptions = OPTIONS) -> AsyncIterator[TableCache]:
    """A cache, closed afterwards."""
    cache = open_cache(url, options)
    try:
        yield cache
    finally:
        await cache.close()


async def test_what_is_put_is_got_back(url: str) -> None:
    """Whole, of any size, with its names; also what is empty."""
    blobs = {"values": b"{}", "empty": b"", "tensor:x:<i4": bytes(range(256)) * 10_000}
    async with opened(url) as cache:
        assert not await cache.has(ONE)
        await cache.put(ONE, blobs)

        assert await cache.has(ONE)
        assert {k: bytes(v) for k, v in (await cache.get(ONE) or {}).items()} == blobs
        assert cache.up


async def test_what_was_not_put_is_a_miss(url: str) -> None:
    """None, not an error."""
    async with opened(url) as cache:
        assert await cache.get(ONE) is None


async def test_two_digests_live_side_by_side(url: str) -> None:
    """A swap invalidates nothing."""
    async with opened(url) as cache:
        await cache.put(ONE, {"a": b"1"})
        await cache.put(TWO, {"a": b"2"})

        assert bytes((await cache.get(ONE) or {})["a"]) == b"1"
        assert bytes((await cache.get(TWO) or {})["a"]) == b"2"


async def test_views_may_be_put(url: str) -> None:
    """Tensors come as views of memory that is never copied by the service."""
    async with opened(url) as cache:
        await cache.put(ONE, {"a": memoryview(b"abc")})

        assert bytes((await cache.get(ONE) or {})["a"]) == b"abc"


async def test_fresh_items_are_kept_by_digest(url: str) -> None:
    """Beside those that are there; the later record of an item replaces the one before."""
    many = {f"é{number}": b"%d" % number for number in range(1200)}
    async with opened(url) as cache:
        assert await cache.fresh(ONE) == {}
        await cache.put_fresh(ONE, {"a": b"1", "b": b"2"})
        await cache.put_fresh(ONE, {"b": b"3"})
        await cache.put_fresh(TWO, many)

        assert await cache.fresh(ONE) == {"a": b"1", "b": b"3"}
        assert await cache.fresh(TWO) == many
        assert not await cache.has(ONE)


async def test_watching_wakes_at_the_start_and_on_every_activation(url: str) -> None:
    """No announcement is lost to who watches."""
    async with opened(url) as cache, aclosing(cache.watch()) as changes, asyncio.timeout(20):
        await anext(changes)
        if url.startswith("redis"):
            await anext(changes)  # connected
        for version in ("1", "2"):
            await cache.announce("ctr", version)
            await anext(changes)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("http://host", "no cache for http"),
        ("memory://host", "expected memory://"),
        ("redis://host:port", "a redis:// cache"),
    ],
)
def test_a_url_that_makes_no_sense_is_refused(bad: str, said: str) -> None:
    """Before anything is served, naming what there is."""
    with pytest.raises(UnknownCache, match=said):
        open_cache(bad, OPTIONS)


async def test_memory_keeps_the_last_few_bundles() -> None:
    """Those asked for longest ago go first."""
    async with opened("memory://") as cache:
        for number in range(KEPT):
            await cache.put(f"sha256:{number}", {})
            await cache.put_fresh(f"sha256:{number}", {"a": b"1"})
        await cache.get("sha256:0")
        await cache.put("sha256:new", {})
        await cache.put_fresh("sha256:new", {"a": b"1"})

        assert await cache.has("sha256:0")
        assert not await cache.has("sha256:1")
        assert await cache.fresh("sha256:0") == {}
        assert await cache.fresh("sha256:1") == {"a": b"1"}


@pytest.mark.parametrize("harm", ["chunk", "manifest", "lost"])
async def test_a_damaged_table_in_redis_is_a_miss(empty_redis: Any, harm: str) -> None:
    """Sizes and sha256 are checked: what does not fit is loaded from the bundle again."""
    key = f"slimrank:{{{'1' * 64}}}:{FORMAT}"
    async with opened(empty_redis.url) as cache:
        await cache.put(ONE, {"a": b"x" * (CHUNK_BYTES + 1)})
        with empty_redis.client() as client:
            match harm:
                case "chunk":
                    client.set(f"{key}:a:1", b"y")
                case "lost":
                    client.delete(f"{key}:a:0")
                case "manifest":
                    client.set(f"{key}:manifest", b"{")

        assert await cache.get(ONE) is None


async def test_tables_of_another_format_live_beside_ours_in_redis(
    empty_redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old and new replicas find their own while one is replaced by the other, and share additions.

    Formats 1 and 2 had ids in them.
    """
    async with opened(empty_redis.url) as cache:
        with monkeypatch.context() as before:
            before.setattr(redis_cache, "FORMAT", 2)
            await cache.put(ONE, {"ids": b"", "id_ends": b""})
            await cache.put_fresh(ONE, {"a": b"1"})
        missing = await cache.get(ONE)
        await cache.put(ONE, {"values": b"{}"})
        with monkeypatch.context() as before:
            before.setattr(redis_cache, "FORMAT", 2)
            old = await cache.get(ONE)

        assert missing is None
        assert old == {"ids": b"", "id_ends": b""}
        assert await cache.get(ONE) == {"values": b"{}"}
        assert await cache.fresh(ONE) == {"a": b"1"}


PART = {"bytes": 1, "sha256": "0" * 64, "chunks": 1}
MANIFEST = f"slimrank:{{{'1' * 64}}}:{FORMAT}:manifest"


@pytest.mark.parametrize(
    "blobs",
    [
        None,
        [PART],
        {"a": 3},
        {"a": {}},
        {"a": {**PART, "bytes": -1}},
        {"a": {**PART, "bytes": "1"}},
        {"a": {**PART, "sha256": 7}},
        {"a": {**PART, "chunks": -1}},
        {"a": {**PART, "chunks": 1_000_000_000}},
    ],
)
async def test_a_manifest_in_redis_that_makes_no_sense_is_a_miss(
    empty_redis: Any, blobs: Any
) -> None:
    """It is as if nothing were there, so that somebody puts the table anew."""
    async with opened(empty_redis.url) as cache:
        with empty_redis.client() as client:
            client.set(MANIFEST, json.dumps(blobs))

        assert await cache.get(ONE) is None
        assert not await cache.has(ONE)


async def test_a_table_in_redis_is_read_up_to_its_first_gap(empty_redis: Any) -> None:
    """A manifest may claim any size; its chunks are believed as they come."""
    part = {**PART, "bytes": CHUNK_BYTES * 10**12, "chunks": 10**12}
    async with opened(empty_redis.url) as cache, asyncio.timeout(10):
        with empty_redis.client() as client:
            client.set(MANIFEST, json.dumps({"a": part}))

        assert await cache.get(ONE) is None


async def test_tables_in_redis_expire_unless_they_are_used(empty_redis: Any) -> None:
    """Every key has a time to live, renewed on each read."""
    async with opened(empty_redis.url) as cache:
        await cache.put(ONE, {"a": b"x"})
        await cache.put_fresh(ONE, {"a": b"x"})
        with empty_redis.client() as client:
            for key in client.keys("slimrank:*"):
                client.expire(key, 5)
            await cache.get(ONE)
            await cache.fresh(ONE)

            assert {client.ttl(key) > 5 for key in client.keys("slimrank:*")} == {True}


async def test_redis_away_is_told_by_every_operation(free_port: int) -> None:
    """CacheUnavailable, at once, and not up."""
    async with opened(f"redis://127.0.0.1:{free_port}") as cache:
        for operation in (
            cache.get(ONE),
            cache.has(ONE),
            cache.put(ONE, {}),
            cache.fresh(ONE),
            cache.put_fresh(ONE, {"a": b""}),
            cache.announce("m", "1"),
        ):
            with pytest.raises(CacheUnavailable):
                await operation

        assert not cache.up


async def test_watching_survives_an_outage(empty_redis: Any) -> None:
    """It wakes when Redis is back: something may have been missed."""
    async with opened(empty_redis.url) as cache, aclosing(cache.watch()) as changes:
        async with asyncio.timeout(20):
            await anext(changes)
            await anext(changes)
            waiting = asyncio.ensure_future(anext(changes))
            await asyncio.to_thread(empty_redis.stop)
            while cache.up:
                with suppress(CacheUnavailable):
                    await cache.has(ONE)
            await asyncio.to_thread(empty_redis.start)
            await waiting

        assert cache.up


@pytest.fixture(params=["ctr", "8 bits", "4 bits", "dense"])
def model(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> str:
    """A click-through ranker, or a session ranker over vectors of some form; two versions."""
    if request.param == "ctr":
        return "ctr"
    for number in (1, 2):
        world = World(FORMS[request.param](), start=(float(number), 0.0, 0.0, 0.0))
        store.publish(world.write(tmp_path / f"{number}").root, "session")
    store.set_alias("session", "prod", "1")
    return "session"


async def test_the_service_fills_redis_and_loads_from_it(
    serve: Serve, empty_redis: Any, model: str
) -> None:
    """The first replica misses and puts; the second one hits, and ranks the same."""
    body = {"session_items": ["i3", "i4"]}
    async with serve(cache=empty_redis.url, models=(model,)) as client:
        first = (await client.rank(["i1", "x"], **body)).json()["items"]
        filled = (await client.get("/metrics")).text
    async with serve(cache=empty_redis.url, models=(model,)) as client:
        second = (await client.rank(["i1", "x"], **body)).json()["items"]
        loaded = (await client.get("/metrics")).text

    assert 'slimrank_cache_operations_total{outcome="miss"} 1.0' in filled
    assert 'slimrank_cache_operations_total{outcome="put"} 1.0' in filled
    assert 'slimrank_cache_operations_total{outcome="hit"} 1.0' in loaded
    assert first == second


async def test_raw_values_come_from_redis_as_well(serve: Serve, empty_redis: Any) -> None:
    """For explaining."""
    async with serve(cache=empty_redis.url):
        pass
    async with serve(cache=empty_redis.url) as client:
        body = (await client.rank(["i1"], explain="features")).json()

    assert body["items"][0]["features"]["price"] == {"value": 1.0, "source": "store"}


async def test_the_service_replaces_a_manifest_that_makes_no_sense(
    serve: Serve, empty_redis: Any, store: Store, model: str
) -> None:
    """It starts, activates, and leaves tables that the next one finds."""
    digests = [store.open(f"{model}@{version}").bundle.digest[7:] for version in ("1", "2")]
    keys = [f"slimrank:{{{digest}}}:{FORMAT}:manifest" for digest in digests]
    with empty_redis.client() as redis:
        for key in keys:
            redis.set(key, b'{"values": 3}')
        async with serve(cache=empty_redis.url, models=(model,)) as client:
            activated = await client.post(f"/models/{model}/activate", json={"version": "2"})

        assert activated.status_code == 200
        assert all(b"sha256" in redis.get(key) for key in keys)


async def test_a_table_in_redis_that_makes_no_sense_is_not_used(
    serve: Serve, empty_redis: Any, store: Store, model: str
) -> None:
    """Right checksums over nonsense: the bundle's own is loaded, and put in its place."""
    digest = store.open(f"{model}@1").bundle.digest
    async with opened(empty_redis.url) as cache:
        await cache.put(digest, {"values": b"3"})
    async with serve(cache=empty_redis.url, models=(model,)) as client:
        reply = await client.rank(["i1"])
    async with opened(empty_redis.url) as cache:
        blobs = await cache.get(digest)

    assert blobs is not None
    assert bytes(blobs.get("values", b"")) != b"3"
    assert "cold" not in reply.json()["items"][0]


async def test_an_activation_reaches_other_replicas_through_redis(
    serve: Serve, empty_redis: Any
) -> None:
    """With the store's polling off, the signal alone makes the other one follow."""
    async with serve(cache=empty_redis.url) as one, serve(cache=empty_redis.url) as other:
        await one.post("/models/ctr/activate", json={"version": "2"})

        async def followed() -> bool:
            return await other.version() == "2"

        await until(followed)


async def test_the_service_starts_and_goes_on_without_redis(
    serve: Serve, empty_redis: Any, model: str
) -> None:
    """No request fails while Redis is away; it is noted, and filled again once it is back."""
    await asyncio.to_thread(empty_redis.stop)
    settings = {"cache": empty_redis.url, "cache_poll_s": 0.02, "store_poll_s": 0.02}
    async with serve(**settings, models=(model,)) as client:
        statuses = {(await client.rank(["i1"])).status_code}
        ready = await client.get("/readyz")
        activated = await client.post(f"/models/{model}/activate", json={"version": "2"})
        await asyncio.to_thread(empty_redis.start)
        with empty_redis.client() as redis:

            async def filled() -> bool:
                statuses.add((await client.rank(["i1"])).status_code)
                noted = (await client.get("/readyz")).json()["notes"]
                return bool(redis.keys("slimrank:*:manifest")) and not noted

            await until(filled)

    assert statuses == {200}
    assert (ready.status_code, [n["code"] for n in ready.json()["notes"]]) == (200, ["cache_down"])
    assert activated.status_code == 200


async def test_the_metrics_follow_redis_whether_or_not_the_store_is_polled(
    serve: Serve, empty_redis: Any
) -> None:
    """The cache itself tells: an outage shows as soon as it has been noticed."""
    async with serve(cache=empty_redis.url, cache_poll_s=0.02, store_poll_s=0) as client:

        async def shown(value: str) -> bool:
            return f"slimrank_cache_up {value}" in (await client.get("/metrics")).text

        await until(lambda: shown("1.0"))
        await asyncio.to_thread(empty_redis.stop)
        await until(lambda: shown("0.0"))
        await asyncio.to_thread(empty_redis.start)
        await until(lambda: shown("1.0"))
