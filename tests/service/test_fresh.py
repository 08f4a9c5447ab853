"""Fresh items: how they are placed, kept, and known to every replica within seconds."""

import asyncio
import json
import shutil
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from model_store.codebooks import CodedTable
from model_store.item_vectors import DenseTable, FactoredTable, Int8Table
from model_store.store import Store
from service.errors import ItemsRefused
from service.fresh import Fresh, FreshForm, Placed, Record, nearest_codes
from tests.service.conftest import Client, Serve, until
from tests.service.sessions import DIM, FORMS, IDS, ITEMS, World

pytestmark = pytest.mark.anyio

SESSION = ("session",)


def publish(store: Store, world: World, folder: Path) -> None:
    """Make a ranker the one that ``session`` names."""
    store.publish(world.write(folder / "published").root, "session")
    store.set_alias("session", "prod", "1")


@pytest.fixture
def world(store: Store, tmp_path: Path) -> World:
    """A published ranker over codes of one byte, that has all three ways."""
    world = World(FORMS["8 bits"]())
    publish(store, world, tmp_path)
    return world


async def add(client: Client, *items: dict[str, Any], name: str = "session") -> Any:
    """POST /models/{name}/items."""
    return await client.post(f"/models/{name}/items", json={"items": items})


async def best(client: Client, **body: Any) -> list[str]:
    """The ids that /recommend answers."""
    reply = await client.post("/recommend", json={"model": "session", "top_k": 2000, **body})
    assert reply.status_code == 200, reply.text
    return [item["id"] for item in reply.json()["items"]]


async def knows(client: Client, item: str) -> bool:
    """Whether a worker knows an item."""
    reply = await client.rank([item], model="session")
    assert reply.status_code == 200, reply.text
    return "cold" not in reply.json()["items"][0]


# Placing


def test_codes_beside_each_other_are_nearest_part_by_part() -> None:
    """By hand: (0.9, 5) lies at codeword 1 of the one book and 0 of the other."""
    books = np.array([[[0.0], [1.0]], [[4.0], [9.0]]], np.float32)
    words = CodedTable(np.zeros((0, 2), np.uint8), books, concatenated=True)

    assert nearest_codes(words, np.array([0.9, 5.0], np.float32)).tolist() == [1, 0]


def test_codes_that_add_up_are_chosen_together() -> None:
    """6 is 4 + 2 exactly; whoever takes the 5, which is nearest, and goes on is off by one."""
    books = np.array([[[4.0], [5.0]], [[0.0], [2.0]]], np.float32)
    words = CodedTable(np.zeros((0, 2), np.uint8), books, concatenated=False)

    assert nearest_codes(words, np.array([6.0], np.float32)).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("form", "off"), [("1 bit", 0), ("4 bits", 0), ("4 bits beside", 0), ("8 bits beside", 0),
                      ("8 bits", 0.2)]
)  # fmt: skip
def test_an_item_of_the_bundle_is_placed_where_it_is(form: str, off: float) -> None:
    """Exactly where the beam is as wide as a codebook, else within a fifth of its length."""
    table = FORMS[form]()
    assert isinstance(table, CodedTable)
    vectors = table.vectors(np.arange(ITEMS))
    codes = np.array([nearest_codes(table, vector) for vector in vectors])
    found = CodedTable(codes, table.codebooks, table.concatenated).vectors(np.arange(ITEMS))
    errors = np.linalg.norm(found - vectors, axis=1)

    assert (errors <= off * np.linalg.norm(vectors, axis=1) + 1e-5).mean() > 0.9


@pytest.mark.parametrize("form", ["dense", "float16", "int8"])
def test_a_table_of_vectors_takes_a_vector(form: str) -> None:
    """As it is."""
    table = FORMS[form]()
    assert isinstance(table, DenseTable | Int8Table)
    record = FreshForm(table).record("x", np.array([1.5, 0.0, -2.0, 0.25], np.float32))

    assert record == Record("x", vector=(1.5, 0.0, -2.0, 0.25))
    assert FreshForm(table).table([record]).vectors(np.array([0])).tolist() == [[1.5, 0, -2, 0.25]]


@pytest.mark.parametrize("form", ["radix", "hashed", "train", None])
def test_forms_without_a_place_for_new_items_say_so(form: str | None) -> None:
    """What follows from the row alone has none; nor has a ranker without vectors."""
    table = None if form is None else FORMS[form]()
    assert table is None or isinstance(table, CodedTable | FactoredTable)

    with pytest.raises(ItemsRefused, match="publish a version that knows the new items"):
        FreshForm(table).check()
    assert not FreshForm(table).fits(Record("x", codes=(0, 0)))


@pytest.mark.parametrize(
    ("form", "record", "fits"),
    [
        ("8 bits", Record("x", codes=(0, 255)), True),
        ("8 bits", Record("x", codes=(0, 256)), False),
        ("8 bits", Record("x", codes=(-1, 0)), False),
        ("8 bits", Record("x", codes=(0,)), False),
        ("8 bits", Record("x", codes=(0, 0), vector=(0.0,) * 4), False),
        ("8 bits", Record("x", vector=(0.0,) * 4), False),
        ("8 bits", Record("x"), False),
        ("dense", Record("x", vector=(0.0,) * 4), True),
        ("dense", Record("x", vector=(0.0,) * 3), False),
        ("dense", Record("x", vector=(0.0, 0.0, 0.0, float("inf"))), False),
        ("dense", Record("x", codes=(0, 0)), False),
        ("dense", Record("x"), False),
    ],
)
def test_a_record_must_be_of_the_form(form: str, record: Record, *, fits: bool) -> None:
    """It came from a disk or over a network, and is looked up by unchecked."""
    assert FreshForm(FORMS[form]()).fits(record) == fits


def test_of_two_records_of_an_item_the_later_counts() -> None:
    """In whatever order they arrive; items are in the order of their ids."""
    old, new = Placed(3, Record("b", codes=(1,))), Placed(9, Record("b", codes=(2,)))
    other = Placed(5, Record("a", codes=(3,)))
    one = Fresh().with_records([old, new, other], 12)
    two = Fresh().with_records([new], 12).with_records([other, old], 4)

    assert one == two
    assert [*one.placed.values()] == [other, new]


def test_a_record_is_packed_with_its_place() -> None:
    """For the cache, as text that people can read."""
    placed = Placed(12, Record("é 1", codes=(1, 2)))

    assert placed.pack() == '12 {"id":"é 1","codes":[1,2]}'.encode()
    assert Placed.unpack(placed.pack()) == placed
    for damaged in (b"", b"x {}", b"1 {", b'1 {"id": 3}', b'1 {"id": "x", "more": 1}', b"1 \xff"):
        with pytest.raises(ValueError):  # noqa: PT011  of several kinds
            Placed.unpack(damaged)


# Adding


@pytest.mark.parametrize("ways", [("query", "repeat", "follow"), ("query", "repeat")])
@pytest.mark.parametrize("form", ["dense", "int8", "4 bits", "8 bits", "9 bits", "8 bits beside"])
async def test_an_item_is_rankable_at_once(
    serve: Serve, store: Store, tmp_path: Path, form: str, ways: tuple[str, ...]
) -> None:
    """By whom it was seen with or by its vector: scored, recommended, and part of sessions."""
    world = World(FORMS[form](), ways)
    publish(store, world, tmp_path)
    vector = world.matrix()[5].tolist()
    async with serve(models=SESSION) as client:
        before = await client.rank(["new", "i5"], session_items=["i1"])
        reply = await add(
            client, {"id": "new", "vector": vector}, {"id": 7, "seen_with": ["i5", "x"]}
        )
        after = await client.rank(["new", "7", "i5", "i1"], session_items=["i1", "new"])
        found = await best(client, session_items=["i1"])
        without = await best(client, exclude=["new"])
        model = (await client.get("/models/session")).json()
        text = (await client.get("/metrics")).text

    assert before.json()["items"][0].get("cold") or before.json()["items"][1].get("cold")
    assert reply.status_code == 200, reply.text
    assert {k: reply.json()[k] for k in ("name", "version", "added", "updated", "fresh_items")} == {
        "name": "session", "version": "1", "added": 2, "updated": 0, "fresh_items": 2,
    }  # fmt: skip
    assert reply.json()["digest"] == model["digest"]
    body = after.json()
    scores = {item["id"]: item["score"] for item in body["items"]}
    assert body["warnings"] == []
    assert not any(item.get("cold") for item in body["items"])
    assert np.isfinite([*scores.values()]).all()
    if form not in {"4 bits", "8 bits", "9 bits"}:  # those are placed near, not exactly
        query = (np.array(world.start) + world.matrix()[[1, 5]].sum(0)) / 4
        generated = float(world.matrix()[5] @ query)
        assert scores["7"] == pytest.approx(generated, abs=0.01)
        assert scores["new"] > scores["7"]  # it is in the session, and may come again
    assert sorted(found) == sorted([*IDS, "7", "new"])
    assert "new" not in without
    assert (model["items"], model["session"]["fresh_items"]) == (ITEMS + 2, 2)
    assert 'slimrank_fresh_items{model="session"} 2.0' in text


async def test_an_item_seen_with_others_lies_among_them(serve: Serve, world: World) -> None:
    """Alone with one, it scores like it."""
    async with serve(models=SESSION) as client:
        await add(client, {"id": "twin", "seen_with": ["i3", "i3"]})
        body = (await client.rank(["twin", "i3"], session_items=["i9"])).json()
    scores = [item["score"] for item in body["items"]]

    assert scores[0] == pytest.approx(scores[1], abs=0.5)


async def test_a_fresh_item_can_be_updated(serve: Serve, store: Store, world: World) -> None:
    """What was seen with it since may say more; the later word counts, here and after a restart."""
    async with serve(models=SESSION) as client:
        await add(client, {"id": "new", "seen_with": ["i3"]})
        first = await client.rank(["new"], session_items=["i9"])
        again = await add(
            client, {"id": "new", "seen_with": ["i20"]}, {"id": "b", "vector": [0] * 4}
        )
        second = await client.rank(["new"], session_items=["i9"])
    async with serve(models=SESSION) as client:
        restarted = await client.rank(["new"], session_items=["i9"])

    assert {k: again.json()[k] for k in ("added", "updated", "fresh_items")} == {
        "added": 1, "updated": 1, "fresh_items": 2,
    }  # fmt: skip
    assert first.json()["items"] != second.json()["items"] == restarted.json()["items"]


@pytest.mark.parametrize(
    ("items", "pointer", "said"),
    [
        ([{"id": "i3", "seen_with": ["i1"]}], "/items/0/id", "an item of the bundle"),
        ([{"id": "a", "seen_with": ["x"]}], "/items/0/seen_with", "at least one item that is"),
        ([{"id": "a", "seen_with": []}], "/items/0/seen_with", "at least one item that is"),
        ([{"id": "a", "vector": [1.0] * 3}], "/items/0/vector", "expected 4 numbers, got 3"),
        ([{"id": "a", "vector": [1, 2, 3, 1e7]}], "/items/0/vector", "within ±1e+06"),
        ([{"id": "a", "vector": [0] * 4}] * 2, "/items/1/id", "comes twice"),
        ([{"id": "a"}], "/items/0", "either seen_with or vector"),
        ([{"id": "a", "vector": [0] * 4, "seen_with": ["i1"]}], "/items/0", "either"),
        ([{"id": "a", "vectors": [0] * 4}], "/items/0/vectors", "Extra inputs are not permitted"),
        ([{"id": None, "vector": [0] * 4}], "/items/0/id", "valid string"),
        ([{"id": "é" * 129, "vector": [0] * 4}], "/items/0/id", "an id of 258 bytes > 256"),
        (
            [{"id": "a", "seen_with": ["é" * 129]}],
            "/items/0/seen_with/0",
            "an id of 258 bytes > 256",
        ),
        ([{"id": "a", "seen_with": ["i1"] * 201}], "/items/0/seen_with", "201 > 200"),
        ([{"id": f"{i}", "seen_with": ["i1"]} for i in range(11)], "/items", "11 > 10"),
        ([], "/items", "at least 1"),
    ],
)
async def test_items_that_cannot_be_placed_are_refused(
    serve: Serve, world: World, items: list[Any], pointer: str, said: str
) -> None:
    """422 with a pointer to each; then none of the request is added."""
    good = {"id": "good", "vector": [0.0] * DIM}
    async with serve(models=SESSION, max_candidates=10) as client:
        reply = await add(client, *items)
        mixed = await add(client, good, *items[:9]) if items else reply
        known = await knows(client, "good")

    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_request")
    assert reply.json()["errors"][0]["pointer"] == pointer
    assert said in json.dumps(reply.json(), ensure_ascii=False)
    if len(items) < 10:
        assert mixed.status_code == 422
        assert not known


@pytest.mark.parametrize(
    ("item", "pointer"),
    [
        ({"id": "\ud800", "seen_with": ["i1"]}, "/items/0/id"),
        ({"id": "\udfff" * 300, "seen_with": ["i1"]}, "/items/0/id"),
        ({"id": "a", "seen_with": ["i1", "a\udc00"]}, "/items/0/seen_with/1"),
    ],
    ids=["id", "long id", "seen with"],
)
async def test_half_a_character_is_refused(
    serve: Serve, world: World, item: dict[str, Any], pointer: str
) -> None:
    """JSON can spell half a surrogate pair; the journal, the cache and replies cannot."""
    headers, body = {"Content-Type": "application/json"}, json.dumps({"items": [item]})
    async with serve(models=SESSION) as client:
        reply = await client.post("/models/session/items", content=body, headers=headers)

    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_request")
    assert reply.json()["errors"][0]["pointer"] == pointer
    assert "half a surrogate pair" in reply.json()["detail"]


async def test_all_faults_are_told(serve: Serve, world: World) -> None:
    """Not only the first: each with its place."""
    async with serve(models=SESSION) as client:
        reply = await add(
            client,
            {"id": "i1", "vector": [0] * 4},
            {"id": "a", "vector": [0] * 4},
            {"id": "b", "vector": []},
        )

    assert [fault["pointer"] for fault in reply.json()["errors"]] == [
        "/items/0/id",
        "/items/2/vector",
    ]


async def test_a_version_takes_so_many_and_no_more(serve: Serve, world: World) -> None:
    """409 beyond the limit; updates go on."""
    async with serve(models=SESSION, max_fresh_items=2) as client:
        await add(client, {"id": "a", "vector": [0] * 4}, {"id": "b", "vector": [1] * 4})
        more = await add(client, {"id": "c", "vector": [0] * 4})
        same = await add(client, {"id": "b", "vector": [2] * 4})

    assert (more.status_code, more.json()["code"]) == (409, "items_refused")
    assert "exceed the limit 2" in more.json()["detail"]
    assert same.json()["updated"] == 1


async def test_only_session_rankers_of_some_forms_take_fresh_items(
    serve: Serve, store: Store, tmp_path: Path
) -> None:
    """409 says why not; an unknown model is 404, one that could not be loaded 503."""
    publish(store, World(FORMS["train"]()), tmp_path)
    async with serve(models=("ctr", "session", "late")) as client:
        replies = [
            await add(client, {"id": "a", "vector": [0] * 4}, name=name)
            for name in ("ctr", "session", "other", "late")
        ]

    found = [(reply.status_code, reply.json()["code"]) for reply in replies]
    assert found == [
        (409, "items_refused"),
        (409, "items_refused"),
        (404, "model_not_found"),
        (503, "model_not_ready"),
    ]
    assert "click-through" in replies[0].json()["detail"]


async def test_adding_is_for_admins(serve: Serve, world: World) -> None:
    """A key that may rank may not change what is ranked; and bodies are declared."""
    keys = '{"r": ["rank"], "a": ["admin"]}'
    async with serve(models=SESSION, keys=keys) as client:
        url, body = "/models/session/items", {"items": [{"id": "a", "vector": [0] * 4}]}
        without = await client.post(url, json=body)
        rank = await client.post(url, json=body, headers={"Authorization": "Bearer r"})
        undeclared = await client.post(
            url, content=json.dumps(body), headers={"Authorization": "Bearer a"}
        )
        admin = await client.post(url, json=body, headers={"Authorization": "Bearer a"})

    assert [r.status_code for r in (without, rank, undeclared, admin)] == [401, 403, 415, 200]


# Keeping


async def test_fresh_items_survive_a_restart(serve: Serve, store: Store, world: World) -> None:
    """They lie beside the version, whose bundle is what it was."""
    digest = store.open("session").bundle.digest
    async with serve(models=SESSION) as client:
        await add(client, {"id": "new", "seen_with": ["i3"]})
        before = await client.rank(["new"], session_items=["i3"])
    async with serve(models=SESSION) as client:
        after = await client.rank(["new"], session_items=["i3"])
        found = await best(client)

    assert after.json()["items"] == before.json()["items"]
    assert "new" in found
    assert store.open("session").bundle.digest == digest
    journal = (Path(store.url) / "session/fresh/1/items.jsonl").read_text()
    assert [json.loads(line)["id"] for line in journal.splitlines()] == ["new"]


async def test_fresh_items_belong_to_a_version(
    serve: Serve, store: Store, world: World, tmp_path: Path
) -> None:
    """Another one has other codes: there they are unknown, and after a rollback known again."""
    other = World(FORMS["4 bits"]()).write(tmp_path / "other").root
    store.publish(other, "session")
    async with serve(models=SESSION) as client:
        await add(client, {"id": "new", "seen_with": ["i3"]})
        known = [await knows(client, "new")]
        await client.post("/models/session/activate", json={"version": "2"})
        known.append(await knows(client, "new"))
        await client.post("/models/session/rollback")
        known.append(await knows(client, "new"))

    assert known == [True, False, True]


async def test_a_store_that_cannot_be_written_refuses(
    serve: Serve, store: Store, world: World
) -> None:
    """409: what is not on the disk is not served either."""
    async with serve(models=SESSION) as client:
        (Path(store.url) / "session/fresh").write_text("in the way")
        reply = await add(client, {"id": "new", "seen_with": ["i3"]})
        known = await knows(client, "new")

    assert (reply.status_code, reply.json()["code"]) == (409, "items_refused")
    assert "nothing was added" in reply.json()["detail"]
    assert not known


async def test_a_store_that_goes_away_leaves_fresh_items_served(
    serve: Serve, store: Store, world: World
) -> None:
    """What was read is kept; it is logged, and read on once the store is back."""
    async with serve(models=SESSION) as client:
        await add(client, {"id": "new", "seen_with": ["i3"]})
        fresh = Path(store.url) / "session/fresh/1/items.jsonl"
        kept = fresh.rename(fresh.with_name("kept"))
        fresh.mkdir()
        await client.service.parts.loader.sync()
        known = [await knows(client, "new")]
        fresh.rmdir()
        kept.rename(fresh)
        store.add_fresh("session", "1", [b'{"id": "more", "codes": [0, 0]}'])
        await client.service.parts.loader.sync()
        known += [await knows(client, "new"), await knows(client, "more")]

    assert known == [True, True, True]


@pytest.mark.parametrize(
    "line",
    [b"{", b"\xff", b'{"id": "new", "codes": [0, 256]}', b'{"id": "i3", "codes": [0, 0]}',
     b'{"id": "new", "vector": [0, 0, 0, 0]}'],
)  # fmt: skip
async def test_a_damaged_record_is_passed_over(
    serve: Serve, store: Store, world: World, line: bytes
) -> None:
    """It is logged; the others are served, and what it named is unknown."""
    good = msgspec.json.encode(Record("good", codes=(1, 2)))
    store.add_fresh("session", "1", [line, good])
    async with serve(models=SESSION) as client:
        assert await knows(client, "good")
        assert not await knows(client, "new")
        assert (await client.get("/models/session")).json()["session"]["fresh_items"] == 1


async def test_requests_never_notice_an_addition(serve: Serve, world: World) -> None:
    """Rankings run while items come: each sees the catalogue before or after, and is answered."""
    async with serve(models=SESSION) as client:
        adding = True
        replies: list[Any] = []

        async def ask() -> None:
            while adding:
                reply = await client.rank(["new7", "i1"], session_items=["i3", "new2"])
                replies.append(reply)

        askers = [asyncio.create_task(ask()) for _ in range(3)]
        for number in range(10):
            await add(client, {"id": f"new{number}", "seen_with": [f"i{number}"]})
        adding = False
        await asyncio.gather(*askers)

    assert {reply.status_code for reply in replies} == {200}


# Replicas


async def test_another_replica_learns_of_items_through_redis(
    serve: Serve, world: World, empty_redis: Any
) -> None:
    """At once, by the signal: neither polls the store. One that starts later has them too."""
    shared = {"models": SESSION, "cache": empty_redis.url, "store_poll_s": 0, "cache_poll_s": 30}
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(serve(**shared)) for _ in range(2)]
        await add(one, {"id": "new", "seen_with": ["i3"]})
        await until(lambda: knows(two, "new"))
        three = await stack.enter_async_context(serve(**shared))

        answers = [(await c.rank(["new"], session_items=["i3"])).json() for c in (one, two, three)]
        assert answers[0]["items"] == answers[1]["items"] == answers[2]["items"]
        assert await best(one) == await best(two) == await best(three)


async def test_replicas_without_a_common_store_share_items_through_redis(
    serve: Serve, store: Store, world: World, empty_redis: Any, tmp_path: Path
) -> None:
    """A store is copied as files; what is added to one copy reaches who serves the other."""
    copy = shutil.copytree(store.url, tmp_path / "copy")
    shared = {"models": SESSION, "cache": empty_redis.url}
    async with serve(**shared) as one, serve(**shared, store=f"{copy}") as two:
        await add(one, {"id": "new", "seen_with": ["i3"]})
        await until(lambda: knows(two, "new"))

        assert await best(one) == await best(two)
    assert not (copy / "session/fresh").exists()


async def test_with_redis_down_replicas_find_items_in_the_store(
    serve: Serve, world: World, redis_server: Any
) -> None:
    """By polling; and when Redis comes back, what it lost is put in again."""
    redis_server.start()
    shared = {"models": SESSION, "cache": redis_server.url, "cache_poll_s": 0.02}
    async with serve(**shared) as one, serve(**shared, store_poll_s=0.02) as two:
        digest = (await one.get("/models/session")).json()["digest"].removeprefix("sha256:")
        redis_server.stop()
        reply = await add(one, {"id": "new", "seen_with": ["i3"]})
        await until(lambda: knows(two, "new"))
        redis_server.start()

        async def put_again() -> bool:
            with redis_server.client() as redis:
                return bool(redis.hexists(f"slimrank:{{{digest}}}:fresh", "new"))

        await until(put_again)

    assert reply.status_code == 200


async def test_without_redis_workers_find_items_in_the_store(serve: Serve, world: World) -> None:
    """Within a poll; two that add at the same time lose nothing."""
    shared = {"models": SESSION, "store_poll_s": 0.02}
    async with serve(**shared) as one, serve(**shared) as two:
        await asyncio.gather(
            *(
                add(client, {"id": f"{name}{n}", "seen_with": [f"i{n}"]})
                for n in range(5)
                for name, client in (("one", one), ("two", two))
            )
        )

        async def has_all(client: Client) -> bool:
            return len(await best(client)) == ITEMS + 10

        await until(lambda: has_all(one))
        await until(lambda: has_all(two))

        assert await best(one) == await best(two)


async def test_damaged_records_in_redis_are_passed_over(
    serve: Serve, world: World, empty_redis: Any
) -> None:
    """Whatever somebody put there; a hash that is none counts as a cache that is away."""
    shared = {"models": SESSION, "cache": empty_redis.url}
    async with serve(**shared) as client:
        digest = (await client.get("/models/session")).json()["digest"].removeprefix("sha256:")
    key = f"slimrank:{{{digest}}}:fresh"
    with empty_redis.client() as redis:
        redis.hset(
            key, mapping={"a": b"x", "b": b'0 {"id":"b","codes":[9999,0]}', b"\xff": b"\xff"}
        )
        redis.hset(key, "good", Placed(0, Record("good", codes=(1, 2))).pack())
        async with serve(**shared) as client:
            known = [await knows(client, item) for item in ("good", "a", "b")]
        redis.set(key, b"no hash")
        async with serve(**shared) as client:
            reply = await add(client, {"id": "new", "seen_with": ["i3"]})

    assert known == [True, False, False]
    assert reply.status_code == 200


async def test_several_entries_of_one_version_have_the_same_items(
    serve: Serve, store: Store, world: World
) -> None:
    """An alias and its version are one model."""
    store.set_alias("session", "best", "1")
    async with serve(models=("session@best", "session@prod")) as client:
        await add(client, {"id": "new", "seen_with": ["i3"]})
        replies = [await client.rank(["new"], model=f"session@{a}") for a in ("best", "prod")]

    assert [reply.json()["items"][0].get("cold") for reply in replies] == [None, None]
