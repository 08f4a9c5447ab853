"""The document: complete for every route, and true of the replies; and a fuzz of /rank."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

from model_store.store import open_store
from service.app import Service, create_app
from service.problems import CODES
from service.settings import Settings
from tests.service.sessions import FORMS, World

REPEATABLE: Any = {"derandomize": True, "database": None}
CONFORMANCE = [
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, bundles: Path) -> Service:
    """A service with a click-through ranker, which is the default, and a session ranker."""
    root = tmp_path_factory.mktemp("openapi")
    store = open_store(str(root / "store"))
    store.publish(bundles / "one", "ctr")
    store.publish(World(FORMS["4 bits"]()).write(root / "session").root, "session")
    for name in ("ctr", "session"):
        store.set_alias(name, "prod", "1")
    return create_app(
        Settings(
            store=store.url,
            models=("ctr", "session"),
            default_model="ctr",
            store_poll_s=0,
            request_log=False,
        )
    )


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    """A client of it, its lifespan begun."""
    with TestClient(service, raise_server_exceptions=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def document(client: TestClient) -> dict[str, Any]:
    """The OpenAPI document."""
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def test_the_document_holds_every_route(document: dict[str, Any]) -> None:
    """/rank too, though FastAPI does not route it."""
    assert document["openapi"].startswith("3.1")
    assert {
        (method, path) for path, methods in document["paths"].items() for method in methods
    } == {
        ("post", "/rank"),
        ("post", "/recommend"),
        ("get", "/models"),
        ("get", "/models/{name}"),
        ("post", "/models/{name}/activate"),
        ("post", "/models/{name}/rollback"),
        ("post", "/models/{name}/items"),
        ("get", "/livez"),
        ("get", "/readyz"),
        ("get", "/metrics"),
    }


def test_the_document_names_every_code(document: dict[str, Any]) -> None:
    """Clients can be generated with the codes as an enumeration."""
    assert document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"] == [*CODES]


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    """No schema is missing."""
    text = json.dumps(document)
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}

    assert names <= document["components"]["schemas"].keys()


def test_every_operation_documents_what_the_edge_answers(document: dict[str, Any]) -> None:
    """Wrong methods, faults of ours, bodies that cannot be read; and the headers of replies."""
    for methods in document["paths"].values():
        for method, operation in methods.items():
            replies = operation["responses"]

            assert replies.keys() >= {"405", "500"}
            assert method == "get" or replies.keys() >= {"400", "413", "415", "504"}
            for status, reply in replies.items():
                problem = "application/problem+json" in reply["content"]
                assert "X-Request-ID" in reply["headers"]
                assert ("WWW-Authenticate" in reply["headers"]) == (status in {"401", "403"})
                assert ("Allow" in reply["headers"]) == (status == "405")
                assert ("Retry-After" in reply["headers"]) == (problem and status in {"429", "503"})


@pytest.mark.slow
def test_replies_are_what_the_document_says(service: Service, client: TestClient) -> None:
    """Whatever is sent: status, media type and body are documented, and nothing is a 500."""

    async def running(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":  # the lifespan is the one that ``client`` began
            await service(scope, receive, send)

    schema = schemathesis.openapi.from_asgi("/openapi.json", running)
    for operation in schema.get_all_operations():

        @settings(max_examples=15, suppress_health_check=list(HealthCheck), **REPEATABLE)
        @given(case=operation.ok().as_strategy())
        def replies_conform(case: schemathesis.Case) -> None:
            reply = case.call_and_validate(checks=CONFORMANCE)
            assert reply.status_code != 500  # 503 and 504 are answers

        replies_conform()


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=8,
)
ids = st.sampled_from(["i1", "i2", "x", "", "é"]) | st.integers() | anything
names = st.sampled_from(["price", "genres", "item_id", "year", "age", "~/{}"]) | st.text(max_size=4)
values = st.sampled_from(["a", "comedy|drama", 4, 1e38, -0.0, None]) | anything
features = st.dictionaries(names, values, max_size=4) | anything
rows = st.fixed_dictionaries({"id": ids}, optional={"features": features})
columns = st.fixed_dictionaries(
    {"ids": st.lists(ids, max_size=4)},
    optional={"features": st.dictionaries(names, st.lists(values, max_size=4), max_size=3)},
)
bodies = st.fixed_dictionaries(
    {"candidates": st.lists(ids, max_size=6) | st.lists(rows, max_size=4) | columns | anything},
    optional={
        "id": ids,
        "model": st.sampled_from(["ctr", "ctr@1", "session", "no"]) | anything,
        "user": st.dictionaries(
            st.sampled_from(["age", "occupation", "zip", "q"]), values, max_size=4
        ),
        "context": st.dictionaries(st.sampled_from(["hour", "decade"]), values, max_size=3),
        "session_items": st.lists(ids, max_size=3) | anything,
        "top_k": st.integers() | anything,
        "unknown_items": st.sampled_from(["score", "drop", "reject"]) | anything,
        "explain": st.sampled_from(["none", "features"]) | anything,
        "shape": st.sampled_from(["items", "columns"]) | anything,
    },
)


@settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    **REPEATABLE,
)
@given(body=bodies | anything)
def test_no_body_breaks_the_service(client: TestClient, body: Any) -> None:
    """Any JSON is ranked or refused with a typed problem; a negative price alone is no number."""
    reply = client.post("/rank", content=json.dumps(body).encode())

    assert reply.status_code in {200, 400, 404, 422} or _negative_price(body)


def _negative_price(body: Any) -> bool:
    # The test's ranker takes the root of the price: that is its own fault, and told as 500.
    return "-" in json.dumps(body["candidates"]) and "price" in json.dumps(body["candidates"])


searches = st.fixed_dictionaries(
    {},
    optional={
        "id": ids,
        "model": st.sampled_from(["ctr", "session", "no"]) | anything,
        "user": st.dictionaries(st.sampled_from(["age", "zip", "q"]), values, max_size=3),
        "session_items": st.lists(ids, max_size=5) | anything,
        "exclude": st.lists(ids, max_size=5) | anything,
        "top_k": st.integers() | anything,
        "shape": st.sampled_from(["items", "columns"]) | anything,
    },
)


@settings(max_examples=200, **REPEATABLE)
@given(body=searches | anything)
def test_no_search_breaks_the_service(client: TestClient, body: Any) -> None:
    """Any JSON is answered or refused with a typed problem."""
    reply = client.post("/recommend", content=json.dumps(body).encode())

    assert reply.status_code in {200, 400, 404, 422}


numbers = st.floats() | st.integers(-5, 5)
new_items = st.fixed_dictionaries(
    {"id": ids},
    optional={
        "seen_with": st.lists(ids, max_size=3) | anything,
        "vector": st.lists(numbers, min_size=4, max_size=4) | st.lists(numbers) | anything,
    },
)


@settings(max_examples=200, **REPEATABLE)
@given(body=st.fixed_dictionaries({"items": st.lists(new_items, max_size=3) | anything}) | anything)
def test_no_addition_breaks_the_service(client: TestClient, body: Any) -> None:
    """Any JSON is added or refused with a typed problem, and scores stay numbers."""
    headers = {"Content-Type": "application/json"}
    content = json.dumps(body).encode()
    reply = client.post("/models/session/items", content=content, headers=headers)
    ranked = client.post("/recommend", json={"model": "session", "top_k": 2000})

    assert reply.status_code in {200, 400, 422}
    assert ranked.status_code == 200


@pytest.mark.parametrize("path", ["/rank", "/recommend"])
@settings(max_examples=200, **REPEATABLE)
@given(body=st.binary(max_size=200))
def test_no_bytes_break_the_service(client: TestClient, path: str, body: bytes) -> None:
    """Any bytes are refused; but for an empty object, which asks for the best after no session."""
    reply = client.post(path, content=body)

    assert reply.status_code in {400, 422} or (path == "/recommend" and json.loads(body) == {})
