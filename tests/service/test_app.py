"""The edge: every problem code, every limit, headers, keys, metrics and health."""

import asyncio
import itertools
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from compress.tiers import join
from model_store.bundle import open_bundle
from model_store.store import Store
from service import stopwatch
from service.app import THREAD_NICE, create_app
from service.batches import Batches
from service.errors import BodyTooLarge, DeadlineExceeded
from service.ranking import Costs, Ranking
from service.routes.endpoint import read_body
from service.settings import Settings
from tests.service.conftest import FLOPS, Client, Serve, lifespan

pytestmark = pytest.mark.anyio

BODY = {"candidates": ["i1"]}


def test_serving_brings_in_no_training_stack() -> None:
    """`import service.app` in a fresh interpreter loads neither torch nor onnx nor polars."""
    code = (
        "import sys, service.app;"
        "print([m for m in ('torch', 'onnx', 'polars', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


async def test_a_request_id_is_echoed_made_or_cleaned(serve: Serve) -> None:
    """The caller's if it is printable and of bounded length; else what of it is, or a new one."""
    async with serve() as client:
        given = await client.post("/rank", json=BODY, headers={"X-Request-ID": "req-1"})
        made = await client.post("/rank", json=BODY)
        cleaned = await client.post(
            "/rank", json=BODY, headers=[(b"X-Request-ID", b"a b\xff\x01" + b"c" * 200)]
        )
        hopeless = await client.get("/livez", headers=[(b"X-Request-ID", b"\xff \xfe")])

    assert given.headers["x-request-id"] == given.json()["id"] == "req-1"
    assert len(made.headers["x-request-id"]) == 16
    assert cleaned.headers["x-request-id"] == "ab" + "c" * 126
    assert len(hopeless.headers["x-request-id"]) == 16


async def test_a_reply_tells_version_and_times_in_headers(serve: Serve) -> None:
    """X-Model-Version and Server-Timing can be read without parsing the body."""
    async with serve() as client:
        reply = await client.post("/rank", json=BODY)

    assert reply.headers["x-model-version"] == "1"
    stages = [part.split(";")[0] for part in reply.headers["server-timing"].split(", ")]
    assert stages == ["queue", "parse", "features", "score", "encode", "total"]
    assert set(reply.json()["timing_ms"]) == {"total", "parse", "features", "score"}


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"nul", b"\xff", b'{"candidates": []} x', b'\xef\xbb\xbf{"candidates": []}',
        b'{"candidates": [NaN]}', b'{"candidates": [], "user": {"a": Infinity}}',
        b'{"candidates": ["\xff"]}',
        b'{"candidates": ["\\ud800"]}', b'{"top_k": "3", "candidates": [}',
        b'{"candidates": [], "user": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
        b'{"top_k": "3", "user": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
        b'{"top_k": "3", "user": "\xff"}',
    ],
)  # fmt: skip
async def test_what_is_not_json_is_told_so(serve: Serve, body: bytes) -> None:
    """400, for NaN, half a document, another encoding and endless nesting alike."""
    async with serve() as client:
        reply = await client.post("/rank", content=body)

    assert (reply.status_code, reply.json()["code"]) == (400, "malformed_json")


@pytest.mark.parametrize(
    "body",
    [
        b"[]", b"3", b'"x"', b"null", b"{}",
        b'{"candidates": [1e999]}', b'{"candidates": [], "user": {"a": 1e999}}',
        b'{"candidates": [], "user": {"a": ' + b"1" * 5000 + b"}}",
    ],
)  # fmt: skip
async def test_json_of_another_shape_is_invalid(serve: Serve, body: bytes) -> None:
    """422: it is JSON, and no request; numbers beyond a double among them."""
    async with serve() as client:
        reply = await client.post("/rank", content=body)

    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_request")


async def _chunks(total: int) -> AsyncIterator[bytes]:
    for _ in range(total):
        yield b" " * 100


async def test_a_body_beyond_the_limit_is_refused_as_it_arrives(serve: Serve) -> None:
    """413 by the declared length before reading; without one, as soon as the limit is passed."""
    async with serve(max_body_bytes=1000) as client:
        declared = await client.post("/rank", content=b" " * 1001)
        streamed = await client.post("/rank", content=_chunks(11))
        admin = await client.post("/models/ctr/activate", content=b" " * 1001)
        absurd = await client.post("/rank", content=b"", headers={"Content-Length": "9" * 5000})

    for reply in (declared, streamed, admin, absurd):
        assert (reply.status_code, reply.json()["code"]) == (413, "body_too_large")
        assert reply.headers["connection"] == "close"


async def test_a_body_that_comes_at_once_is_bounded_too() -> None:
    """By what came, where no length was declared."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b" " * 11}

    assert len(await read_body({}, receive, 11, 1.0)) == 11
    with pytest.raises(BodyTooLarge, match="a body of 11 bytes or more, limit 10"):
        await read_body({}, receive, 10, 1.0)


async def test_a_body_in_chunks_is_one_body(serve: Serve) -> None:
    """Where the network cuts it does not matter."""

    async def pieces() -> AsyncIterator[bytes]:
        for byte in json.dumps(BODY).encode():
            yield bytes([byte])

    async with serve() as client:
        reply = await client.post("/rank", content=pieces())

    assert reply.status_code == 200


@pytest.mark.parametrize(
    ("media_type", "status"),
    [
        (None, 200),
        ("application/json", 200),
        ("application/json; charset=UTF-8", 200),
        ('Application/JSON;charset="utf-8"', 200),
        ("application/vnd.rank+json", 200),
        ("application/json; charset=latin-1", 415),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("", 415),
    ],
)
async def test_only_json_in_utf_8_is_taken(
    serve: Serve, media_type: str | None, status: int
) -> None:
    """415 for anything else; a missing Content-Type is taken for JSON."""
    headers = {} if media_type is None else {"Content-Type": media_type}
    async with serve() as client:
        reply = await client.post("/rank", content=json.dumps(BODY), headers=headers)

    assert reply.status_code == status


@pytest.mark.parametrize("path", ["/rank", "/models/ctr/activate", "/models/ctr/rollback"])
async def test_a_compressed_body_is_refused_by_its_coding(serve: Serve, path: str) -> None:
    """415 that names the header: nothing here unpacks, and "not JSON" would mislead."""
    async with serve() as client:
        packed = await client.post(path, content=b"x", headers={"Content-Encoding": "gzip"})
        plain = await client.post(path, json={}, headers={"Content-Encoding": "identity"})

    assert (packed.status_code, packed.json()["code"]) == (415, "unsupported_media_type")
    assert "Content-Encoding" in packed.json()["detail"]
    assert plain.status_code != 415


async def test_too_many_candidates_are_refused(serve: Serve) -> None:
    """422 with the contract's own words."""
    async with serve(max_candidates=3) as client:
        listed = await client.rank(["a"] * 4)
        columns = await client.rank({"ids": ["a"] * 4})

    problem = listed.json()
    assert problem == {
        "type": "/errors/too-many-candidates",
        "title": "Too many candidates",
        "status": 422,
        "detail": "4 candidates, limit 3",
        "code": "too_many_candidates",
        "request_id": listed.headers["x-request-id"],
        "errors": [{"pointer": "/candidates", "detail": "length 4 > 3"}],
    }
    assert listed.headers["content-type"] == "application/problem+json"
    assert columns.json()["errors"][0]["pointer"] == "/candidates/ids"


@pytest.mark.parametrize(
    ("ref", "status", "code"),
    [
        ("ctr", 200, None),
        ("ctr@1", 200, None),
        ("ctr@prod", 200, None),
        ("ctr@2", 404, "version_not_found"),
        ("ctr@canary", 404, "version_not_found"),
        ("ctr@", 404, "version_not_found"),
        ("other", 404, "model_not_found"),
        ("", 404, "model_not_found"),
    ],
)
async def test_models_are_named_by_name_version_or_alias(
    serve: Serve, ref: str, status: int, code: str | None
) -> None:
    """What is loaded answers; anything else is 404, by name or by version."""
    async with serve() as client:
        reply = await client.rank(["i1"], model=ref)

    assert (reply.status_code, reply.json().get("code")) == (status, code)


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 200, None),
        ({"X-Deadline-Ms": "60000"}, 200, None),
        ({"X-Deadline-Ms": "inf"}, 200, None),
        ({"X-Deadline-Ms": "0"}, 504, "deadline_exceeded"),
        ({"X-Deadline-Ms": "-5"}, 504, "deadline_exceeded"),
        ({"X-Deadline-Ms": "soon"}, 422, "invalid_request"),
        ({"X-Deadline-Ms": "nan"}, 422, "invalid_request"),
        ({"X-Deadline-Ms": "1_000"}, 422, "invalid_request"),
    ],
)
async def test_the_callers_deadline_is_kept(
    serve: Serve, headers: dict[str, str], status: int, code: str | None
) -> None:
    """A budget that is over before scoring is 504, one that is no number is 422."""
    async with serve() as client:
        reply = await client.post("/rank", json=BODY, headers=headers)

    assert (reply.status_code, reply.json().get("code")) == (status, code)


def used(client: Client) -> int:
    """How many threads for long requests have been begun."""
    return len(client.service.parts.executor._threads)


async def test_long_requests_are_worked_on_by_a_thread_with_the_same_answer(serve: Serve) -> None:
    """The predicted time, first of the body and then of what it asks for, only chooses where."""
    rows = [{"id": "i1", "features": {"price": 7}}, {"id": "i2"}]
    async with serve(inline_us=1e9) as client:
        ranking = client.service.parts.loader.resolve("ctr")
        ranking.costs = Costs(fixed_us=1e9)
        inline = await client.rank(rows)
        assert used(client) == 0
        ranking.costs = Costs(fixed_us=2e9)
        parsed = await client.rank(rows)
        assert used(client) == 1
    async with serve(inline_us=0) as client:
        client.service.parts.loader.resolve("ctr").costs = Costs()
        apart = await client.rank(rows)
        assert used(client) == 1

    assert inline.json()["items"] == parsed.json()["items"] == apart.json()["items"]


async def test_a_long_body_is_refused_in_the_same_words(serve: Serve) -> None:
    """Whoever parses it."""
    async with serve() as client:
        inline = await client.rank(["i1", {}])
    async with serve(inline_us=0) as client:
        apart = await client.rank(["i1", {}])
        late = await client.post("/rank", json=BODY, headers={"X-Deadline-Ms": "0"})

    assert apart.status_code == inline.status_code == 422
    assert apart.json()["errors"] == inline.json()["errors"]
    assert late.json()["code"] == "deadline_exceeded"


@pytest.mark.parametrize(
    ("requests", "candidate_us", "max_batch", "batched"),
    [(2, 0.0, 32, 2), (2, 0.0, 1, 0), (2, 1e6, 32, 0), (1, 0.0, 32, 0)],
    ids=["two", "switched off", "long ones", "one"],
)
async def test_short_rankings_are_batched_where_there_are_several(
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    *,
    requests: int,
    candidate_us: float,
    max_batch: int,
    batched: int,
) -> None:
    """A long one gains too little to wait for others, and one that is alone waits for none."""
    seen = []
    rank = Batches.rank

    def told(self: Batches, *args: Any) -> Any:
        seen.append(args)
        return rank(self, *args)

    monkeypatch.setattr(Batches, "rank", told)
    async with serve(inline_us=1e9, max_batch=max_batch) as client:
        client.service.parts.loader.resolve(None).costs = Costs(candidate_us=candidate_us)
        replies = await asyncio.gather(*(client.post("/rank", json=BODY) for _ in range(requests)))

    assert [reply.status_code for reply in replies] == [200] * requests
    assert len(seen) == batched


def on_a_thread_a_second_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank on a thread, by a clock that is a second later each time that it is looked at."""
    seconds = itertools.count()
    monkeypatch.setattr(Ranking, "predicted_us", lambda *_: math.inf)
    monkeypatch.setattr(stopwatch, "perf_counter", lambda: float(next(seconds)))


async def test_what_has_waited_too_long_for_a_thread_is_not_ranked(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget was not over when it was read."""
    on_a_thread_a_second_a_look(monkeypatch)

    async with serve() as client:
        reply = await client.post("/rank", json=BODY, headers={"X-Deadline-Ms": "2500"})

    assert (reply.status_code, reply.json()["code"]) == (504, "deadline_exceeded")


async def test_a_wait_for_a_thread_is_queueing(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once to be read, once to be ranked."""
    on_a_thread_a_second_a_look(monkeypatch)

    async with serve() as client:
        reply = await client.post("/rank", json=BODY)

    assert reply.headers["server-timing"].startswith("queue;dur=2000.000, parse;dur=1000.000, ")


@pytest.mark.skipif(sys.platform != "linux", reason="a thread has no priority of its own")
async def test_threads_give_way_to_the_event_loop(serve: Serve) -> None:
    """Below the priority of whoever started them, as far as there is one."""

    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    async with serve() as client:
        of_thread = client.service.parts.executor.submit(priority).result()
        of_loading = await asyncio.to_thread(priority)

    assert of_thread == of_loading == min(priority() + THREAD_NICE, 19)


async def test_a_body_that_does_not_arrive_is_given_up(serve: Serve) -> None:
    """A stalled caller gets 504 and holds no place in flight."""

    async def stalled() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async with serve(body_timeout_s=0.01) as client:
        reply = await client.post("/rank", content=stalled())

        assert (reply.status_code, reply.json()["code"]) == (504, "deadline_exceeded")
        assert client.service.parts.in_flight.count == 0


async def test_who_waits_for_a_body_is_told_that_it_is_given_up() -> None:
    """Else the server would wait for it for ever."""
    told = []

    async def receive() -> dict[str, Any]:
        try:
            return await asyncio.Event().wait()  # type: ignore[return-value]
        except asyncio.CancelledError:
            told.append("cancelled")
            raise

    with pytest.raises(DeadlineExceeded, match="did not arrive within 0 s"):
        await read_body({}, receive, 10, 0.0)

    assert told == ["cancelled"]


@pytest.mark.parametrize("path", ["/rank", "/models/ctr/activate"])
async def test_a_caller_that_goes_away_gets_nothing(serve: Serve, path: str) -> None:
    """No reply is sent to who left before its body had arrived; nothing fails."""
    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
    sent: list[Any] = []

    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    async with serve(request_log=True) as client:
        await client.service(scope, receive, send)

    assert sent == []


async def test_more_than_the_worker_holds_is_shed_at_once(serve: Serve) -> None:
    """Of a burst, as many are answered as may be in flight; the rest are told when to come back."""
    async with serve(max_in_flight=2) as client:
        replies = await asyncio.gather(*(client.post("/rank", json=BODY) for _ in range(5)))

    assert sorted(reply.status_code for reply in replies) == [200, 200, 503, 503, 503]
    shed = next(reply for reply in replies if reply.status_code == 503)
    assert shed.json()["code"] == "overloaded"
    assert shed.headers["retry-after"] == "1"


async def test_a_rate_limit_is_kept_for_each_caller(serve: Serve) -> None:
    """The burst is served, what is over gets 429 and Retry-After."""
    async with serve(rate_limit_per_s=0.001, rate_limit_burst=2) as client:
        replies = [await client.post("/rank", json=BODY) for _ in range(3)]

    assert [reply.status_code for reply in replies] == [200, 200, 429]
    assert replies[2].json()["code"] == "rate_limited"
    assert int(replies[2].headers["retry-after"]) > 900


KEYS = '{"k-rank": ["rank"], "k-admin": ["admin"], "k-metrics": ["metrics"]}'


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/rank", {"k-rank"}),
        ("GET", "/models", {"k-rank", "k-admin"}),
        ("GET", "/models/ctr", {"k-rank", "k-admin"}),
        ("POST", "/models/ctr/activate", {"k-admin"}),
        ("POST", "/models/ctr/rollback", {"k-admin"}),
        ("GET", "/metrics", {"k-metrics"}),
    ],
)
async def test_keys_open_what_their_scopes_say(
    serve: Serve, method: str, path: str, allowed: set[str]
) -> None:
    """401 without a key of ours, 403 with one of another scope; both say how to do better."""
    async with serve(keys=KEYS) as client:
        replies = {
            key: await client.request(method, path, headers={"Authorization": f"Bearer {key}"})
            for key in ("k-rank", "k-admin", "k-metrics", "k-other")
        }
        replies["none"] = await client.request(method, path)
        replies["basic"] = await client.request(method, path, headers={"Authorization": "Basic x"})

    for name, reply in replies.items():
        if name in allowed:
            assert reply.status_code not in {401, 403}
        elif name in {"none", "basic", "k-other"}:
            assert (reply.status_code, reply.json()["code"]) == (401, "unauthenticated")
            assert reply.headers["www-authenticate"] == "Bearer"
        else:
            assert (reply.status_code, reply.json()["code"]) == (403, "forbidden")
            assert "insufficient_scope" in reply.headers["www-authenticate"]


async def test_health_asks_for_no_key(serve: Serve) -> None:
    """Orchestrators probe without one."""
    async with serve(keys=KEYS) as client:
        replies = [
            await client.get(path) for path in ("/livez", "/readyz", "/openapi.json", "/docs")
        ]

    assert [reply.status_code for reply in replies] == [200, 200, 200, 200]


async def test_unknown_routes_and_methods_are_problems_too(serve: Serve) -> None:
    """404 not_found and 405 method_not_allowed, with the methods that are."""
    async with serve() as client:
        missing = await client.get("/nowhere")
        get = await client.get("/rank")
        post = await client.post("/livez")

    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    assert (get.status_code, get.headers["allow"]) == (405, "POST")
    assert (post.status_code, post.headers["allow"]) == (405, "GET, HEAD")
    assert post.json()["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_health_answers_head_as_get(serve: Serve, path: str) -> None:
    """Balancers probe with it; the status is all that they read."""
    async with serve() as client:
        well = await client.head(path)
        client.service.parts.drain.leaving = True
        leaving = await client.head(path)

    assert (well.status_code, leaving.status_code) == (200, 503 if path == "/readyz" else 200)


async def test_a_leaving_worker_serves_on_and_says_it_is_not_ready(serve: Serve) -> None:
    """Between SIGTERM and the end of the delay: 200 with Connection: close, and readyz 503."""
    async with serve() as client:
        client.service.parts.drain.leaving = True
        rank = await client.post("/rank", json=BODY)
        ready = await client.get("/readyz")
        live = await client.get("/livez")

    assert (rank.status_code, rank.headers["connection"]) == (200, "close")
    assert ready.status_code == 503
    assert [reason["code"] for reason in ready.json()["reasons"]] == ["draining"]
    assert live.status_code == 200


async def test_a_closed_worker_refuses_new_work(serve: Serve) -> None:
    """After the delay: 503 draining for rankings and activations alike."""
    async with serve() as client:
        client.service.parts.drain.closed = True
        replies = [
            await client.post("/rank", json=BODY),
            await client.post("/models/ctr/activate", json={"version": "2"}),
            await client.post("/models/ctr/rollback"),
        ]

    for reply in replies:
        assert (reply.status_code, reply.json()["code"]) == (503, "draining")
        assert (reply.headers["retry-after"], reply.headers["connection"]) == ("1", "close")


async def test_metrics_count_requests_problems_and_candidates(serve: Serve) -> None:
    """Each app has a registry of its own, with templates for labels and no raw path."""
    async with serve() as client:
        await client.rank(["i1", "x", "x"], user={"shoe": 1})
        await client.rank([], top_k=0)
        await client.get("/models/ctr")
        await client.get("/nowhere/at/all")
        await client.get("/openapi.json")
        await client.get("/docs")
        await client.post("/models/ctr/activate", content=b" " * 3_000_000)
        text = (await client.get("/metrics")).text

    for line in (
        'slimrank_requests_total{route="/rank",status="200"} 1.0',
        'slimrank_requests_total{route="/rank",status="422"} 1.0',
        'slimrank_requests_total{route="/models/{name}",status="200"} 1.0',
        'slimrank_requests_total{route="unknown",status="404"} 1.0',
        'slimrank_requests_total{route="/openapi.json",status="200"} 1.0',
        'slimrank_requests_total{route="/docs",status="200"} 1.0',
        'slimrank_requests_total{route="/models/{name}/activate",status="413"} 1.0',
        'slimrank_problems_total{code="body_too_large"} 1.0',
        'slimrank_problems_total{code="invalid_request"} 1.0',
        'slimrank_cold_candidates_total{model="ctr"} 1.0',
        'slimrank_warnings_total{code="duplicate_candidates"} 1.0',
        "slimrank_candidates_sum 2.0",
        "slimrank_in_flight 0.0",
        "slimrank_cache_up 1.0",
    ):
        assert line in text
    assert "nowhere" not in text


async def test_what_is_held_is_told(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a scrape as it is, and now and then for those of other workers."""
    async with serve(keys=None) as client:
        parts = client.service.parts
        parts.in_flight.enter()
        assert "slimrank_in_flight 1.0" in (await client.get("/metrics")).text
        parts.in_flight.leave()
    monkeypatch.setattr("service.app.TELL_AGAIN_S", 0)
    async with serve(keys=None) as client:
        parts = client.service.parts
        parts.in_flight.enter()
        parts.in_flight.enter()
        async with asyncio.timeout(10):
            while b"slimrank_in_flight 2.0" not in parts.metrics.render():  # noqa: ASYNC110  a gauge
                await asyncio.sleep(0)
        parts.in_flight.leave()
        parts.in_flight.leave()


async def test_an_unexpected_error_behind_the_edge_tells_nothing(serve: Serve) -> None:
    """A bug in a route is 500 internal; the stack stays in the log."""
    async with serve() as client:
        client.service.parts.loader.slots = None  # type: ignore[assignment]
        reply = await client.get("/models")

    assert (reply.status_code, reply.json()["code"]) == (500, "internal")
    assert "NoneType" not in reply.text


async def test_websockets_are_refused_by_the_application_behind(serve: Serve) -> None:
    """Nothing here speaks them: they are closed."""
    sent: list[Any] = []

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    async with serve() as client:
        await client.service(
            {"type": "websocket", "path": "/rank", "headers": [], "query_string": b""},
            receive,
            send,
        )

    assert [message["type"] for message in sent] == ["websocket.close"]


async def test_a_model_shows_its_siblings(
    serve: Serve, store: Store, bundles: Path, tmp_path: Path
) -> None:
    """Each tier with its card; what answers is the model, which says nothing else."""
    both = {"spare": open_bundle(bundles / "two")}
    store.publish(join(open_bundle(bundles / "one"), both, tmp_path / "family").root, "ctr")
    async with serve() as client:
        alone = (await client.get("/models/ctr")).json()
        before = (await client.rank(["i1", "i2"])).json()["items"]
        await client.post("/models/ctr/activate", json={"version": "3"})
        shown = (await client.get("/models/ctr")).json()
        after = (await client.rank(["i1", "i2"])).json()["items"]

    assert alone["tiers"] == []
    (tier,) = shown["tiers"]
    assert (tier["name"], tier["flops_per_candidate"]) == ("spare", FLOPS)
    assert tier["card"] == shown["card"]
    assert tier["pruned"] == shown["pruned"] == ["zip", "year"]
    assert after == before


async def test_a_start_without_any_model_fails_and_says_why(store: Store) -> None:
    """The server is told that the start failed; no stack, and no half service."""
    service = create_app(Settings(store=store.url, models=("nothing",)))

    with pytest.raises(AssertionError, match=r"startup\.failed"):
        async with lifespan(service):
            pass


async def test_a_start_that_fails_by_accident_leaves_its_stack_in_the_log(
    store: Store,
) -> None:
    """Only the lack of a model is a line; anything else is a fault to be found."""

    def fail(_: object) -> None:
        raise RuntimeError("accident")

    service = create_app(Settings(store=store.url), started=fail)

    with capture_logs() as logs, pytest.raises(AssertionError, match=r"startup\.failed"):
        async with lifespan(service):
            pass

    assert [(line["event"], line["exc_info"]) for line in logs if line["log_level"] == "error"] == [
        ("start or stop failed", True)
    ]


@pytest.mark.parametrize(
    ("version", "status"),
    [("prod", 200), (1, 200), (1.0, 200), (True, 422), (None, 422), ([], 422)],
)
async def test_a_version_is_text_or_a_number(serve: Serve, version: Any, status: int) -> None:
    """As ids are; true is not 1. A fault points at the field, and at nothing within."""
    async with serve() as client:
        reply = await client.post("/models/ctr/activate", json={"version": version})

    assert reply.status_code == status
    assert [fault["pointer"] for fault in reply.json().get("errors", [])] == ["/version"] * (
        status != 200
    )


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "malformed_json"),
        (b"\xff", 400, "malformed_json"),
        (b'{"version": []}', 422, "invalid_request"),
        (b'{"version": "1", "x": 1}', 422, "invalid_request"),
        (b"", 422, "invalid_request"),
    ],
)
async def test_a_wrong_activation_is_a_problem_with_pointers(
    serve: Serve, body: bytes, status: int, code: str
) -> None:
    """The administration answers in the same form as /rank."""
    async with serve() as client:
        reply = await client.post(
            "/models/ctr/activate", content=body, headers={"Content-Type": "application/json"}
        )

    assert (reply.status_code, reply.json()["code"]) == (status, code)


@pytest.mark.parametrize(
    ("media_type", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        (None, 415),
        ("text/plain", 415),
        ("application/json; charset=latin-1", 415),
    ],
)
async def test_an_activation_is_declared_as_json(
    serve: Serve, media_type: str | None, status: int
) -> None:
    """415 otherwise, after the key; a page elsewhere cannot make a browser send it unasked."""
    headers = {} if media_type is None else {"Content-Type": media_type}
    async with serve() as client:
        reply = await client.post(
            "/models/ctr/activate", content=b'{"version": "1"}', headers=headers
        )
        rollback = await client.post("/models/ctr/rollback", headers=headers)

    assert reply.status_code == status
    assert rollback.json()["code"] == "activation_conflict"  # it takes no body: nothing to declare


@pytest.mark.parametrize(("given", "echoed"), [(7, "7"), (7.0, "7"), (7.5, "7.5"), ("7.0", "7.0")])
async def test_an_id_becomes_text_as_those_of_candidates_do(
    serve: Serve, given: object, echoed: str
) -> None:
    """A client that counts in doubles gets back what it can match."""
    async with serve() as client:
        reply = (await client.rank([given], id=given)).json()

    assert reply["id"] == reply["items"][0]["id"] == echoed
