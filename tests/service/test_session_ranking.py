"""POST /rank and /recommend with session rankers, over real bundles of every form."""

import asyncio
import gc
import itertools
import json
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import httpx2
import numpy as np
import pytest
from structlog.testing import capture_logs

from model_store.bundle import seal
from model_store.manifest import UNREACHED, Manifest
from model_store.store import Store
from service import encodings, kernels, session_ranking
from service.candidates import NO_LIMITS
from service.errors import BadScores
from service.item_ids import ItemIds
from service.ranking import SHORT_US, Costs, Ranking
from service.schemas import RecommendRequest, convert_rank
from service.scorer import OrtEncoder, Ways
from service.session_ranking import SessionPrepared, SessionRanking, reached
from tests.service.conftest import Client, Serve
from tests.service.sessions import FORMS, IDS, ITEMS, LENGTH, World, neighbours

pytestmark = pytest.mark.anyio

SESSION = ("session",)
ALL = ("query", "repeat", "follow")
ONE_LOOP = ("query", "repeat")  # by which codes of bytes are ranked at once


def publish(store: Store, world: World, tmp_path: Path, **fields: Any) -> None:
    """Make a ranker the one that ``session`` names."""
    folder = tmp_path / f"session-{len(list(tmp_path.iterdir()))}"
    published = store.publish(world.write(folder, **fields).root, "session")
    store.set_alias("session", "prod", published.version)


@pytest.fixture
def world(store: Store, tmp_path: Path) -> World:
    """A published ranker over dense vectors, that has all three ways."""
    world = World()
    publish(store, world, tmp_path)
    return world


async def ask(client: Client, path: str = "/recommend", **body: Any) -> dict[str, Any]:
    """The body of a reply that is 200."""
    reply = await client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def scored(body: dict[str, Any]) -> dict[str, float]:
    """Score by id, in the reply's order."""
    return {item["id"]: item["score"] for item in body["items"]}


def best_of(scores: Sequence[float], count: int, without: Sequence[int] = ()) -> list[str]:
    """Ids by score descending, then by row."""
    rows = sorted(set(range(ITEMS)) - {*without}, key=lambda row: (-scores[row], row))
    return [IDS[row] for row in rows[:count]]


def codes_of(body: dict[str, Any]) -> dict[str, int]:
    """Warnings, by code."""
    return {warning["code"]: warning["count"] for warning in body["warnings"]}


# Scores


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("session", [[], [7], [3, 9, 9]], ids=["empty", "one", "repeated"])
async def test_scores_are_the_arithmetic_in_every_form(
    serve: Serve, store: Store, tmp_path: Path, form: str, session: list[int]
) -> None:
    """Queries, repeats and what follows add up, by whatever way vectors are multiplied."""
    world = World(FORMS[form]())
    publish(store, world, tmp_path)
    expected = world.scores(session)
    items = [IDS[row] for row in session]
    async with serve(models=SESSION) as client:
        ranked = await ask(client, "/rank", candidates=IDS, session_items=items)
        best = await ask(client, session_items=items, top_k=ITEMS)

    assert scored(ranked) == pytest.approx(dict(zip(IDS, expected, strict=True)), abs=2e-5)
    assert scored(best) == pytest.approx(scored(ranked), abs=1e-6)
    assert list(scored(best).values()) == sorted(scored(best).values(), reverse=True)
    assert best["method"] == "exact"


async def test_a_service_without_compiled_loops_says_so_and_scores_the_same(
    serve: Serve, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warning for those who keep it up; nothing that a caller would see."""
    publish(store, World(FORMS["4 bits"]()), tmp_path)
    answers = []
    for compiled in (True, False):
        monkeypatch.setattr(kernels, "COMPILED", compiled)
        with capture_logs() as logs:
            async with serve(models=SESSION) as client:
                answers.append(scored(await ask(client, session_items=[IDS[7]], top_k=ITEMS)))
        said = [line for line in logs if "numpy" in line["event"]]
        assert bool(said) is not compiled

    assert answers[0] == answers[1]


@pytest.mark.parametrize("ways", [
    ways for n in (1, 2, 3) for ways in itertools.combinations(("query", "repeat", "follow"), n)
], ids="+".join)  # fmt: skip
async def test_a_ranker_has_the_ways_that_its_graph_has(
    serve: Serve, store: Store, tmp_path: Path, ways: tuple[str, ...]
) -> None:
    """What the graph has no output for adds nothing; what nothing reaches comes last, in order."""
    world = World(FORMS["8 bits"]() if "query" in ways else None, ways)
    publish(store, world, tmp_path)
    expected = world.scores([3, 30, 3])
    async with serve(models=SESSION) as client:
        body = await ask(client, session_items=["i3", "i30", "i3"], top_k=12)
        ranked = await ask(client, "/rank", candidates=["i39", "i3"], session_items=["i3"])

    assert list(scored(body)) == best_of(np.float32(expected).tolist(), 12)
    assert list(scored(body).values()) == pytest.approx(
        sorted(expected, reverse=True)[:12], abs=1e-5
    )
    assert (scored(ranked)["i39"] == UNREACHED) == ("query" not in ways)


def aged(ways: Ways) -> Ways:
    """The same, but that a session's later items weigh more: those of the graph weigh the same."""
    if ways.repeat is None:
        return ways
    return ways._replace(repeat=ways.repeat + np.arange(len(ways.repeat), dtype=np.float32))


@pytest.mark.skipif(not kernels.COMPILED, reason="numpy takes one way")
@pytest.mark.parametrize("form", ["8 bits", "9 bits", "4 bits", "dense"])
@pytest.mark.parametrize("ways", [ONE_LOOP, ("query",), ("query", "follow")])
async def test_one_loop_ranks_as_the_steps_do(
    serve: Serve,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    form: str,
    ways: tuple[str, ...],
) -> None:
    """To the bit; codes of a byte or two have one, where no other items than its own are led to."""
    publish(store, World(FORMS[form](), ways), tmp_path)
    steps = mock.Mock(side_effect=session_ranking._scores)
    async with serve(models=SESSION) as client:
        ranking, encoder = counted(client)
        encode = encoder.encode
        monkeypatch.setattr(encoder, "encode", lambda given: [*map(aged, encode(given))])
        for session, top_k in itertools.product(([], ["i3"], ["i3", "i30", "i30"]), (None, 4, 99)):
            body = {"session_items": session, "candidates": IDS[::-1], "top_k": top_k}
            prepared = ranking.prepare(convert_rank(body), NO_LIMITS)
            in_steps = Ranking.rank(ranking, prepared)

            has_loop = form in {"8 bits", "9 bits"} and "follow" not in ways
            with mock.patch.object(session_ranking, "_scores", steps):
                ranked = ranking.rank(prepared)
            assert steps.called != has_loop
            assert ranked.ids == in_steps.ids
            np.testing.assert_array_equal(ranked.scores, in_steps.scores)
            np.testing.assert_array_equal(ranked.places, in_steps.places)


@pytest.mark.skipif(not kernels.COMPILED, reason="numpy takes one way")
async def test_what_the_loop_does_not_rank_the_steps_do(
    serve: Serve, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They tell what is wrong with a score."""
    publish(store, World(FORMS["8 bits"](), ONE_LOOP), tmp_path)
    async with serve(models=SESSION) as client:
        expected = await ask(client, "/rank", candidates=IDS)
        monkeypatch.setattr(kernels.RankingLoop, "ranked", lambda *_: None)
        found = await ask(client, "/rank", candidates=IDS)
        monkeypatch.setattr(kernels, "taken", lambda *_, **__: np.full(len(IDS), np.nan, "f4"))
        reply = await client.rank(IDS)

    assert scored(found) == scored(expected)
    assert (reply.status_code, reply.json()["code"]) == (500, "internal")


async def test_the_same_request_gets_the_same_bytes(serve: Serve, world: World) -> None:
    """The reply is a pure function of request and version, id and times apart."""
    async with serve(models=SESSION) as client:
        replies = [
            await ask(client, session_items=["i3", "i3", "i4"], exclude=["i9"]) for _ in range(3)
        ]

    for reply in replies:
        del reply["timing_ms"], reply["id"]
    assert replies[0] == replies[1] == replies[2]


async def test_rows_of_one_score_keep_their_order(
    serve: Serve, store: Store, tmp_path: Path
) -> None:
    """Input order in /rank, the catalogue's in /recommend; a start of nothing scores all alike."""
    publish(store, World(ways=("query",), start=(0.0,) * 4), tmp_path)
    async with serve(models=SESSION) as client:
        ranked = await ask(client, "/rank", candidates=["i9", "i2", "i5"])
        best = await ask(client, top_k=3)

    assert list(scored(ranked)) == ["i9", "i2", "i5"]
    assert list(scored(best)) == ["i0", "i1", "i2"]


# Bad and odd input


async def test_unknown_session_items_are_left_out_and_told(serve: Serve, world: World) -> None:
    """Before the newest are taken: strangers push no known item out of the session."""
    expected = world.scores([1, 2, 3])
    async with serve(models=SESSION) as client:
        body = await ask(
            client, "/rank", candidates=IDS, session_items=["i1", "x", "i2", "y", "i3", "z"]
        )
        nobody = await ask(client, "/rank", candidates=IDS, session_items=["x"])
        empty = await ask(client, "/rank", candidates=IDS)

    assert scored(body) == pytest.approx(dict(zip(IDS, expected, strict=True)), abs=2e-5)
    assert codes_of(body) == {"unknown_session_items": 3}
    assert codes_of(nobody) == {"unknown_session_items": 1}
    assert scored(nobody) == scored(empty)
    assert codes_of(empty) == {}


async def test_a_session_that_is_too_long_keeps_its_newest(serve: Serve, world: World) -> None:
    """The warning counts those that were not taken."""
    async with serve(models=SESSION) as client:
        long = await ask(client, session_items=["i1", "i2", "i3", "i4", "i5"])
        cut = await ask(client, session_items=["i3", "i4", "i5"])

    assert LENGTH == 3
    assert codes_of(long) == {"session_truncated": 2}
    assert scored(long) == scored(cut)


async def test_more_session_items_than_the_limit_are_refused(serve: Serve, world: World) -> None:
    """By both routes, with a pointer."""
    async with serve(models=SESSION, max_session_items=4) as client:
        for path, body in (("/rank", {"candidates": []}), ("/recommend", {})):
            reply = await client.post(path, json={"session_items": ["i1"] * 5, **body})

            assert (reply.status_code, reply.json()["code"]) == (422, "invalid_request")
            assert reply.json()["errors"][0]["pointer"] == "/session_items"


@pytest.mark.parametrize(
    ("form", "ways"),
    [("dense", ALL), ("4 bits", ALL), ("8 bits", ALL), ("8 bits", ONE_LOOP), ("train", ALL)],
)
async def test_an_unknown_candidate_scores_as_the_mean_item(
    serve: Serve, store: Store, tmp_path: Path, form: str, ways: tuple[str, ...]
) -> None:
    """Flagged as cold, dropped or refused, as for click-through rankers."""
    world = World(FORMS[form](), ways)
    publish(store, world, tmp_path)
    matrix = world.matrix()
    query = (np.array(world.start) + matrix[4]) / 4
    async with serve(models=SESSION) as client:
        body = await ask(client, "/rank", candidates=["x", "i4"], session_items=["i4", "x"])
        dropped = await ask(client, "/rank", candidates=["x", "i4"], unknown_items="drop")
        refused = await client.rank(["i4", "x"], unknown_items="reject")

    assert scored(body)["x"] == pytest.approx(float(matrix.mean(0) @ query), abs=2e-5)
    assert [item["id"] for item in body["items"] if item.get("cold")] == ["x"]
    assert dropped["excluded"] == [{"id": "x", "reason": "unknown_item"}]
    assert list(scored(dropped)) == ["i4"]
    assert (refused.status_code, refused.json()["code"]) == (422, "unknown_item")
    assert refused.json()["errors"][0]["pointer"] == "/candidates/1"


async def test_an_item_twice_counts_twice_in_a_session_and_once_as_a_candidate(
    serve: Serve, world: World
) -> None:
    """A session may come back to an item; a list of candidates names each once."""
    expected = world.scores([4, 4])
    async with serve(models=SESSION) as client:
        body = await ask(client, "/rank", candidates=["i4", "i1", "i4"], session_items=["i4", "i4"])

    assert scored(body) == pytest.approx({"i4": expected[4], "i1": expected[1]}, abs=2e-5)
    assert len(body["items"]) == 2
    assert codes_of(body) == {"duplicate_candidates": 1}


async def test_ids_that_look_like_numbers_are_texts(
    serve: Serve, store: Store, tmp_path: Path
) -> None:
    """7 and 7.0 are "7", in sessions, candidates and exclusions."""
    folder = World().write(tmp_path / "numbers").root
    (folder / "items/ids.json").write_text(json.dumps([str(row) for row in range(ITEMS)]))
    golden = [{"request": {"candidates": {"ids": []}}, "scores": []}]
    (folder / "golden.json").write_text(json.dumps(golden))
    _seal_again(folder)
    store.publish(folder, "session")
    store.set_alias("session", "prod", "1")
    expected = World().scores([7, 7])
    async with serve(models=SESSION) as client:
        body = await ask(client, "/rank", candidates=[7, 8.0], session_items=[7.0, "7"])
        best = await ask(client, exclude=[7, 8.0, 9.5], top_k=ITEMS)

    assert scored(body) == pytest.approx({"7": expected[7], "8": expected[8]}, abs=2e-5)
    assert len(best["items"]) == ITEMS - 2


async def test_features_are_ignored_and_told(serve: Serve, world: World) -> None:
    """A session ranker takes none, on any side; there is nothing to explain."""
    async with serve(models=SESSION) as client:
        body = await ask(
            client,
            "/rank",
            candidates=[{"id": "i1", "features": {"price": 3}}],
            user={"age": 3},
            context={"hour": 4, "day": None},
            explain="features",
        )
        columns = await ask(
            client, "/rank", candidates=["i1", "i2"], explain="features", shape="columns"
        )

    assert [warning["code"] for warning in body["warnings"]] == ["undeclared_feature"] * 3
    assert (body["request_features"], body["items"][0]["features"]) == ({}, {})
    assert columns["features"] == [{}, {}]


async def test_no_candidates_are_ranked_as_none(serve: Serve, world: World) -> None:
    """An empty list is a list."""
    async with serve(models=SESSION) as client:
        body = await ask(client, "/rank", candidates=[], session_items=["i1"])

    assert body["items"] == []


# The whole catalogue


@pytest.mark.parametrize("form", ["dense", "4 bits", "8 bits", "9 bits", "int8"])
async def test_the_best_are_exact(serve: Serve, store: Store, tmp_path: Path, form: str) -> None:
    """What is recommended is what ranking the whole catalogue puts first, without the excluded."""
    world = World(FORMS[form](), ("query", "repeat", "follow"))
    publish(store, world, tmp_path)
    async with serve(models=SESSION) as client:
        for session in (["i3"], ["i12", "i39", "i38"]):
            ranked = await ask(client, "/rank", candidates=IDS, session_items=session)
            first = list(scored(ranked))
            for without, count in ([], 1), ([], 7), (first[:3], 5), ([*IDS[1:], "x"], 9):
                best = await ask(client, session_items=session, exclude=without, top_k=count)

                assert list(scored(best)) == [i for i in first if i not in without][:count]


async def test_excluded_items_never_appear(serve: Serve, world: World) -> None:
    """However well they score; unknown ones are no matter; all may be excluded."""
    async with serve(models=SESSION) as client:
        before = await ask(client, session_items=["i1"], top_k=5)
        first = before["items"][0]["id"]
        after = await ask(client, session_items=["i1"], top_k=5, exclude=[first, first, "x"])
        none = await ask(client, exclude=IDS)

    assert list(scored(after))[:4] == list(scored(before))[1:]
    assert after["warnings"] == []
    assert none["items"] == []


async def test_the_number_of_items_is_bounded(serve: Serve, world: World) -> None:
    """50 if the request does not say; never more than candidates may be, or than there are."""
    async with serve(models=SESSION) as client:
        without = await ask(client)
        many = await ask(client, top_k=10**9)
    async with serve(models=SESSION, max_candidates=7) as client:
        limited = await ask(client, top_k=10**9)

    assert len(without["items"]) == len(many["items"]) == ITEMS
    assert len(limited["items"]) == 7


async def test_a_recommendation_comes_in_columns_too(serve: Serve, world: World) -> None:
    """The reply is that of /rank, and says how the items were found."""
    async with serve(models=SESSION) as client:
        items = await ask(client, id=7, session_items=["i1"], top_k=2)
        columns = await ask(client, session_items=["i1"], top_k=2, shape="columns")
        reply = await client.post("/recommend", json={}, headers={"X-Request-Id": "r-1"})

    assert (items["id"], items["model"], items["version"]) == ("7", "session", "1")
    assert columns["ids"] == list(scored(items))
    assert columns["scores"] == list(scored(items).values())
    assert columns.keys() - {"ids", "scores"} == items.keys() - {"items"}
    assert reply.headers["x-model-version"] == "1"
    assert reply.headers["x-request-id"] == reply.json()["id"] == "r-1"
    assert "score;dur=" in reply.headers["server-timing"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"top_k": 0}, "/top_k"),
        ({"exclude": "i1"}, "/exclude"),
        ({"exclude": [None]}, "/exclude/0"),
        ({"exclude": ["i1"] * 41}, "/exclude"),
        ({"exclude": ["é" * 129]}, "/exclude/0"),
        ({"session_items": ["é" * 129]}, "/session_items/0"),
        ({"candidates": ["i1"]}, ""),
        ({"explain": "features"}, ""),
    ],
)
async def test_a_recommendation_that_makes_no_sense_is_refused(
    serve: Serve, world: World, body: dict[str, Any], pointer: str
) -> None:
    """422, with a pointer to the field."""
    async with serve(models=SESSION, max_candidates=40) as client:
        reply = await client.post("/recommend", json=body)

    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_request")
    assert reply.json()["errors"][0]["pointer"] == pointer


async def test_the_edge_is_that_of_rank(serve: Serve, world: World) -> None:
    """Methods, keys, deadlines and bodies are checked alike."""
    keys = '{"r": ["rank"], "m": ["metrics"]}'
    async with serve(models=SESSION, keys=keys, max_body_bytes=100) as client:
        key = {"Authorization": "Bearer r"}

        async def status(**fields: Any) -> tuple[int, str]:
            reply: httpx2.Response = await client.request(
                **{
                    "method": "POST",
                    "url": "/recommend",
                    "headers": key,
                    "content": b"{}",
                    **fields,
                }
            )
            return reply.status_code, reply.json().get("code", "")

        assert await status() == (200, "")
        assert await status(headers={}) == (401, "unauthenticated")
        assert await status(headers={"Authorization": "Bearer m"}) == (403, "forbidden")
        assert await status(method="GET") == (405, "method_not_allowed")
        assert await status(content=b"{") == (400, "malformed_json")
        assert await status(content=b" " * 101) == (413, "body_too_large")
        assert await status(headers={**key, "X-Deadline-Ms": "0"}) == (504, "deadline_exceeded")


async def test_a_long_scan_runs_on_a_thread(serve: Serve, world: World) -> None:
    """The whole catalogue counts, not the candidates that a request brings; same answer."""
    async with serve(models=SESSION) as client:
        executor = client.service.parts.executor
        ranking = client.service.parts.loader.resolve("session")
        ranking.costs = Costs(fixed_us=1e9)
        inline = await ask(client, session_items=["i1"])
        assert not executor._threads
        ranking.costs = Costs(catalogue_us=1e9)
        apart = await ask(client, session_items=["i1"])

        assert len(executor._threads) == 1
    assert apart["items"] == inline["items"]


# Click-through rankers


async def test_both_kinds_serve_side_by_side(serve: Serve, world: World) -> None:
    """Each by its name, each its own way."""
    async with serve(models=("ctr", "session")) as client:
        click = await ask(client, "/rank", model="ctr", candidates=["i1"], session_items=["i2"])
        session = await ask(client, "/rank", model="session", candidates=["i1"])
        best = await ask(client, model="ctr", user={"age": 24}, top_k=3)
        listed = (await client.get("/models")).json()["models"]

    assert codes_of(click) == {"unused_session_items": 1}
    assert codes_of(session) == {}
    assert len(best["items"]) == 3
    assert [(model["name"], model["items"]) for model in listed] == [("ctr", 5), ("session", ITEMS)]


async def test_a_click_through_ranker_recommends_from_a_small_catalogue(serve: Serve) -> None:
    """All of it is scored as candidates are; the excluded are not."""
    async with serve() as client:
        ranked = await ask(
            client, "/rank", candidates=["i1", "i2", "i3", "i4", "i5"], user={"age": 24, "q": 1}
        )
        best = await ask(
            client, user={"age": 24, "q": 1}, exclude=["i3", "x", "i3"], session_items=["a"],
            top_k=3,
        )  # fmt: skip

    expected = [item for item in ranked["items"] if item["id"] != "i3"][:3]
    assert best["items"] == expected
    assert best["method"] == "exact"
    assert codes_of(best) == {"unused_session_items": 1, "undeclared_feature": 1}


async def test_a_click_through_ranker_decodes_the_ids_that_it_answers(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop waits for them; those of the rest of the catalogue nobody reads."""
    decoded: list[int] = []
    decode = ItemIds.__getitem__

    def counted(ids: ItemIds, row: int) -> str:
        decoded.append(row)
        return decode(ids, row)

    async with serve() as client:
        monkeypatch.setattr(ItemIds, "__getitem__", counted)
        best = await ask(client, exclude=["i1"], top_k=2)

    assert len(decoded) == len(best["items"]) == 2


async def test_a_click_through_ranker_needs_a_catalogue_that_it_can_score(
    serve: Serve, store: Store, bundles: Path
) -> None:
    """Without one, or beyond the limit of candidates, the caller must send a short list."""
    store.publish(bundles / "bare", "bare")
    store.set_alias("bare", "prod", "1")
    async with serve(models=("ctr", "bare"), max_candidates=4) as client:
        large = await client.post("/recommend", json={"model": "ctr"})
        bare = await client.post("/recommend", json={"model": "bare"})

    assert (large.status_code, large.json()["code"]) == (422, "too_many_candidates")
    assert "holds 5, limit 4" in large.json()["detail"]
    assert (bare.status_code, bare.json()["code"]) == (422, "invalid_request")
    assert "send candidates to /rank" in bare.json()["detail"]


# What is shown


async def test_a_session_ranker_shows_what_it_takes(serve: Serve, world: World) -> None:
    """Length, form and size of the table, limits and card; a click-through ranker has none."""
    async with serve(models=("ctr", "session")) as client:
        session = (await client.get("/models/session")).json()
        click = (await client.get("/models/ctr")).json()

    assert session["session"] == {
        "length": LENGTH, "dim": 4, "table": "dense", "table_bytes": ITEMS * 4 * 4,
        "neighbours": True, "fresh_items": 0,
    }  # fmt: skip
    assert (session["scores"], session["items"], session["inputs"]) == ("logit", ITEMS, [])
    assert session["card"]["kind"] == "session"
    assert session["limits"]["fresh_items"] == 10_000
    assert click["session"] is None


async def test_both_routes_are_measured(serve: Serve, world: World) -> None:
    """Requests by route; candidates only where a request brings them."""
    async with serve(models=SESSION) as client:
        await ask(client, "/rank", candidates=["i1", "x"], session_items=["x"])
        await ask(client)
        text = (await client.get("/metrics")).text

    assert 'slimrank_requests_total{route="/recommend",status="200"} 1.0' in text
    assert 'slimrank_requests_total{route="/rank",status="200"} 1.0' in text
    assert "slimrank_candidates_count 1.0" in text
    assert 'slimrank_cold_candidates_total{model="session"} 1.0' in text
    assert 'slimrank_warnings_total{code="unknown_session_items"} 1.0' in text


# Bundles that do not fit


def _seal_again(folder: Path, **changes: Any) -> None:
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    seal(folder, manifest.model_copy(update=changes))


async def refusal(serve: Serve, store: Store, folder: Path) -> str:
    """Why a version is not activated, while another one serves."""
    version = store.publish(folder, "session").version
    async with serve(models=SESSION) as client:
        reply = await client.post("/models/session/activate", json={"version": version})

        assert (reply.status_code, reply.json()["code"]) == (409, "activation_conflict")
        assert await client.version("session") == "1"
    detail: str = reply.json()["detail"]
    return detail


async def test_a_session_bundle_that_misses_its_golden_scores_never_serves(
    serve: Serve, store: Store, world: World, tmp_path: Path
) -> None:
    """As any other bundle."""
    folder = World().write(tmp_path / "off", golden_shift=0.1).root

    assert "golden case 0" in await refusal(serve, store, folder)


async def test_codes_out_of_range_never_serve(
    serve: Serve, store: Store, world: World, tmp_path: Path
) -> None:
    """They would be looked up beyond the table."""
    folder = World(FORMS["9 bits"]()).write(tmp_path / "wild").root
    np.save(folder / "items/codes.npy", np.full((ITEMS, 3), 255, np.uint8))
    _seal_again(folder)

    assert "up to 511 do not fit codebooks" in await refusal(serve, store, folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"session": {"neighbours": None}}, "the graph answers with follow, and there is nothing"),
        ({"session": {"vectors": None}}, "item vectors of 1 numbers, the manifest says 4"),
        ({"session": {"items": 41}}, "holds 40 items, the manifest says 41"),
        ({"session": {"dim": 5}}, "item vectors of 4 numbers, the manifest says 5"),
        ({"outputs": ()}, "a session ranker has some of query, repeat, follow"),
        ({"outputs": "score"}, "a session ranker has some of query, repeat, follow"),
        ({"inputs": ()}, "the manifest declares []"),
    ],
    ids=["neighbours", "vectors", "items", "dim", "no output", "another output", "no input"],
)
async def test_a_session_bundle_that_contradicts_itself_is_refused(
    serve: Serve,
    store: Store,
    tmp_path: Path,
    change: dict[str, Any],
    said: str,
) -> None:
    """Graph, table and manifest must fit; the old version goes on."""
    publish(store, World(), tmp_path)
    folder = World().write(tmp_path / "odd").root
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    if "session" in change:
        assert manifest.session is not None
        change = {"session": manifest.session.model_copy(update=change["session"])}
    elif change.get("outputs") == "score":
        change = {"outputs": (manifest.outputs[0].model_copy(update={"name": "score"}),)}
    _seal_again(folder, **change)

    assert said in await refusal(serve, store, folder)


async def test_a_query_needs_vectors(
    serve: Serve, store: Store, world: World, tmp_path: Path
) -> None:
    """A graph with that output and a bundle without item vectors do not fit."""
    folder = World(None, ("query", "repeat")).write(tmp_path / "odd").root

    assert "the graph answers with query, and there is nothing" in await refusal(
        serve, store, folder
    )


class _Encoder(OrtEncoder):
    """Answers with what a test wants."""

    def __init__(self, ways: Ways) -> None:
        self._ways = ways

    def encode(self, sessions: Any) -> list[Ways]:
        """Whatever the sessions."""
        return [self._ways] * len(sessions)


async def test_scores_are_finite_or_an_error_of_ours(serve: Serve, world: World) -> None:
    """A query that overflows is no score: 500, told in the log, never in a reply."""
    query = np.full(4, 3e38, np.float32)
    async with serve(models=SESSION) as client:
        ranking = client.service.parts.loader.resolve("session")
        assert isinstance(ranking, SessionRanking)
        ranking._encoder = _Encoder(Ways(query, None, None))
        ranking.forget()
        for path, body in (("/rank", {"candidates": IDS}), ("/recommend", {})):
            reply = await client.post(path, json=body)

            assert (reply.status_code, reply.json()["code"]) == (500, "internal")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([np.zeros((1, 3), np.float32)], "query as float32[1, 3], expected float32[1, 4]"),
        ([np.zeros((1, 4))], "query as float64[1, 4]"),
        ([np.full((1, 4), np.nan, np.float32)], "not a finite number"),
    ],
)
async def test_what_a_graph_answers_is_checked(
    serve: Serve, world: World, answer: list[Any], said: str
) -> None:
    """Shapes, type and numbers, before anything is looked up by them."""
    async with serve(models=SESSION) as client:
        ranking = client.service.parts.loader.resolve("session")
        assert isinstance(ranking, SessionRanking)
        encoder = ranking._encoder
        encoder._names = ["query"]
        encoder._graph.run = lambda _: answer  # type: ignore[method-assign]

        with pytest.raises(BadScores) as caught:
            encoder.encode(np.zeros((1, 2, 4), np.float32))
    assert said in f"{caught.value}"


class _Counting(OrtEncoder):
    """Counts the sessions that it is asked to encode, and how many of them at once."""

    def __init__(self, encoder: OrtEncoder) -> None:
        self._encoder = encoder
        self.at_once: list[int] = []

    @property
    def asked(self) -> int:
        """All of them."""
        return sum(self.at_once)

    def encode(self, sessions: Any) -> list[Ways]:
        """As the encoder."""
        self.at_once.append(len(sessions))
        return self._encoder.encode(sessions)


def counted(client: Client) -> tuple[SessionRanking, _Counting]:
    """The ranking that a client asks, remembering nothing, and what its encoder is asked."""
    ranking = client.service.parts.loader.resolve("session")
    assert isinstance(ranking, SessionRanking)
    ranking._encoder = counting = _Counting(ranking._encoder)
    ranking.forget()
    return ranking, counting


async def test_a_session_is_encoded_once(serve: Serve, world: World) -> None:
    """However many lists are ranked after it; another session, or other fresh items, anew."""
    async with serve(models=SESSION) as client:
        ranking, counting = counted(client)

        async def asked(path: str, *session: str, **more: Any) -> tuple[int, Any]:
            before = counting.asked
            reply = await ask(client, path, session_items=session, **more)
            return counting.asked - before, [item["score"] for item in reply["items"]]

        first, scores = await asked("/rank", "i1", "i2", candidates=IDS)
        again, same = await asked("/rank", "i1", "i2", candidates=IDS)
        fewer, some = await asked("/rank", "i1", "i2", candidates=IDS[:2])
        found, _ = await asked("/recommend", "i1", "i2")
        other, _ = await asked("/rank", "i2", "i1", candidates=IDS)
        ranking.catalogue = ranking.catalogue.with_fresh(ranking.catalogue.fresh)
        anew, still = await asked("/rank", "i1", "i2", candidates=IDS)

    assert (first, again, fewer, found, other, anew) == (1, 0, 0, 0, 1, 1)
    assert scores == same == still
    assert set(some) <= set(scores)


@pytest.mark.parametrize(
    "world", [*(World(form()) for form in FORMS.values()), World(FORMS["8 bits"](), ONE_LOOP)],
    ids=[*FORMS, "one loop"],
)  # fmt: skip
async def test_what_others_ask_at_the_same_time_changes_no_answer(
    serve: Serve, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: World
) -> None:
    """Byte for byte, refusals too, though their sessions are encoded together."""
    publish(store, world, tmp_path)
    sessions = [[], ["i1"], ["i2"], ["i2"], ["i3", "i4"], ["i4", "i3"], ["i5", "i9"], ["nobody"]]
    sessions += [["i1", "i2", f"i{row}"] for row in range(20)] + [[*IDS[:5]]]
    asked = [
        (path, {"session_items": session, **more, "id": f"{number}"})
        for number, (session, (path, more)) in enumerate(
            itertools.product(
                sessions,
                [
                    ("/rank", {"candidates": ["i5", "i7", "new", "i5"]}),
                    ("/rank", {"candidates": IDS}),  # all known: by one loop, where there is one
                    ("/recommend", {"top_k": 3}),
                ],
            )
        )
    ]
    asked[7] = ("/rank", {"session_items": ["i1"], "candidates": []})
    asked[9] = ("/rank", {"session_items": "i1", "candidates": ["i1"]})
    shared = []
    prepare = encodings.Encodings.prepare
    monkeypatch.setattr(
        encodings.Encodings,
        "prepare",
        lambda self, sessions: shared.append(len(sessions)) or prepare(self, sessions),
    )

    async with serve(models=SESSION, inline_us=1e9) as client:

        async def answer(path: str, body: Any) -> tuple[int, dict[str, Any]]:
            reply = await client.post(path, json=body, headers={"x-request-id": "r"})
            found = reply.json()
            found.pop("timing_ms", None)
            return reply.status_code, found

        ranking = client.service.parts.loader.resolve("session")
        assert isinstance(ranking, SessionRanking)
        assert ranking._encoder._takes_several
        alone = []
        for path, body in asked:
            ranking.forget()
            alone.append(await answer(path, body))
        assert not shared
        ranking.forget()
        together = await asyncio.gather(*(answer(path, body) for path, body in asked))

    assert together == alone
    assert {status for status, _ in alone} == {200, 422}
    assert max(shared) > 10


async def test_a_session_that_cannot_be_encoded_is_refused_alone(
    serve: Serve, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others that came with it get their answers."""
    async with serve(models=SESSION) as client:
        ranking = client.service.parts.loader.resolve("session")
        assert isinstance(ranking, SessionRanking)
        run = ranking._encoder._graph.run

        def poisoned(feeds: Any) -> Any:
            outputs = run(feeds)
            lost = (feeds["session"] == world.matrix()[7].astype(np.float32)).all(-1).any(-1)
            outputs[0][lost] = np.nan
            return outputs

        monkeypatch.setattr(ranking._encoder._graph, "run", poisoned)
        replies = await asyncio.gather(
            *(client.rank(IDS, session_items=[f"i{row}"], model="session") for row in range(12))
        )

    assert [reply.status_code for reply in replies] == [200] * 7 + [500] + [200] * 4


async def test_more_sessions_than_are_remembered_are_encoded_once_each(
    serve: Serve, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would be forgotten before it is asked for is not encoded ahead."""
    publish(store, World(FORMS["8 bits"]()), tmp_path)
    monkeypatch.setattr(encodings, "REMEMBERED_BYTES", 3 * SESSION_BYTES)
    async with serve(models=SESSION) as client:
        _, counting = counted(client)

        await asyncio.gather(
            *(client.rank(IDS, session_items=[item], model="session") for item in IDS[:12])
        )

    assert counting.asked == 12


async def test_sessions_are_encoded_by_length_and_what_is_known_is_not(
    serve: Serve, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run for each length and catalogue; and what was longest not asked for is forgotten."""
    publish(store, World(FORMS["8 bits"]()), tmp_path)
    monkeypatch.setattr(encodings, "REMEMBERED_BYTES", 12 * SESSION_BYTES)
    async with serve(models=SESSION) as client:
        ranking, counting = counted(client)

        def prepared(*session: str) -> SessionPrepared:
            request = convert_rank({"session_items": session, "candidates": IDS})
            return ranking.prepare(request, NO_LIMITS)

        batch = [prepared("i1"), prepared("i1")]
        for row in range(2, 10, 2):
            batch += [prepared(f"i{row}"), prepared(f"i{row}", f"i{row + 1}")]
        ranking.rank(batch[0])
        ranking.catalogue = ranking.catalogue.with_fresh(ranking.catalogue.fresh)
        batch.append(prepared("i1"))
        ranking.share(batch)
        assert sorted(counting.at_once) == [1, 1, 4, 4]  # i1, i1 anew, the others by length
        for each in batch:
            ranking.rank(each)
        assert counting.asked == 10

        for row in (*range(2, 13), 1, 13):  # i1 and eleven more, and one too many
            ranking.rank(prepared(f"i{row}"))
        assert counting.asked == 22
        assert not ranking.gains(prepared("i1"))
        assert ranking.gains(prepared("i2"))


async def test_what_takes_long_is_told_by_what_is_asked(serve: Serve, world: World) -> None:
    """Of candidates by their number, of the whole catalogue by its own time."""
    async with serve(models=SESSION) as client:
        ranking, _ = counted(client)
        ids = convert_rank({"session_items": ["i1"], "candidates": IDS})
        some, best = (
            ranking.prepare(ids, NO_LIMITS),
            ranking.prepare_best(RecommendRequest(), NO_LIMITS),
        )

        ranking.costs = Costs(candidate_us=SHORT_US)
        assert (ranking.is_short(some), ranking.is_short(best)) == (False, True)
        ranking.costs = Costs(catalogue_us=2 * SHORT_US)
        assert (ranking.is_short(some), ranking.is_short(best)) == (True, False)


SESSION_BYTES = 2 * 256 * 4  # products with the codewords of two books
SESSIONS_IN = {1: 1, 8192: 4, 1 << 20: encodings.REMEMBERED}  # bytes


@pytest.mark.parametrize("room", SESSIONS_IN)
async def test_what_sessions_come_to_takes_no_more_than_its_room(
    serve: Serve, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """Their products with the codewords: of many codewords a session takes megabytes."""
    publish(store, World(FORMS["8 bits"]()), tmp_path)
    monkeypatch.setattr(encodings, "REMEMBERED_BYTES", room)
    async with serve(models=SESSION) as client:
        ranking = client.service.parts.loader.resolve("session")
        assert isinstance(ranking, SessionRanking)

        for session in range(SESSIONS_IN[room] + 3):
            ranking._serving.encodings(np.array(divmod(session, ITEMS), np.intp).tobytes())

        assert len(ranking._serving.encodings) == SESSIONS_IN[room]


async def test_a_ranking_goes_when_nothing_serves_it(serve: Serve, world: World) -> None:
    """At once, without the garbage collector, which hardly ever looks at all that lives."""
    async with serve(models=SESSION) as client:
        await ask(client, "/rank", session_items=["i1"], candidates=IDS)
        ranking = client.service.parts.loader.resolve("session")
        assert isinstance(ranking, SessionRanking)
        own = SessionRanking(
            name="own", version="1", manifest=ranking.manifest, digest=ranking.digest,
            spec=ranking.spec, catalogue=ranking.catalogue, encoder=ranking._encoder,
        )  # fmt: skip
        own._serving.encodings(np.zeros(1, np.intp).tobytes())
        gone = weakref.ref(own)
        gc.disable()
        try:
            del own
            assert gone() is None
        finally:
            gc.enable()


# What a session leads to


def test_what_a_session_leads_to_is_summed_by_item() -> None:
    """Each row once, in order; weights add as masses, of repeats and of what follows."""
    ways = Ways(None, np.log(np.float32([1, 2, 4])), np.log(np.float32([1, 1, 1])))
    found = reached(np.array([5, 4, 5]), ways, neighbours())

    assert found.rows.tolist() == [4, 5, 6, 7]
    assert np.exp(found.weights).tolist() == pytest.approx([2.0, 5.5, 1.25, 0.5])
    assert found.weights.dtype == np.float32


def test_an_empty_session_leads_nowhere() -> None:
    """Nor does one without ways."""
    none = np.empty(0, np.float32)

    assert len(reached(np.empty(0, np.intp), Ways(None, none, none), neighbours()).rows) == 0
    assert len(reached(np.array([3]), Ways(none, None, None), neighbours()).rows) == 0


def test_weights_of_nothing_stay_numbers() -> None:
    """A graph's log of no mass is a large negative number, not infinity."""
    ways = Ways(None, np.float32([-1e4, -1e4]), np.float32([-1e4, 0.0]))
    found = reached(np.array([5, 8]), ways, neighbours())

    assert np.isfinite(found.weights).all()
