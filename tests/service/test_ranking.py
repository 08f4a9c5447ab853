"""POST /rank over real bundles: the shapes of candidates, and what becomes of each value."""

from typing import Any

import pytest

from service.candidates import NO_LIMITS, ItemFeatures, read_candidates
from service.schemas import CandidateRow, RankRequest
from tests.service.conftest import (
    COLD_LOGIT,
    ITEMS,
    Client,
    Serve,
    item_logit,
    known_logit,
    request_logit,
    sigmoid,
)

pytestmark = pytest.mark.anyio

AT_REST = request_logit()


async def ranked(client: Client, candidates: Any, **fields: Any) -> dict[str, Any]:
    """The body of a reply that is 200."""
    reply = await client.rank(candidates, **fields)
    assert reply.status_code == 200, reply.text
    body: dict[str, Any] = reply.json()
    return body


def scores(body: dict[str, Any]) -> dict[str, float]:
    """Score by id."""
    return {item["id"]: item["score"] for item in body["items"]}


async def test_ids_are_ranked_by_the_score_of_their_joined_features(serve: Serve) -> None:
    """A list of ids comes back best first, each with the arithmetic's score."""
    async with serve() as client:
        body = await ranked(
            client, ["i1", "i2", "i99"], user={"age": 24, "occupation": "technician"}
        )

    request = request_logit(24.0, occupation=3)
    expected = {
        "i1": sigmoid(request + known_logit("i1")),
        "i2": sigmoid(request + known_logit("i2")),
        "i99": sigmoid(request + COLD_LOGIT),
    }
    assert scores(body) == pytest.approx(expected, abs=1e-6)
    assert list(scores(body)) == sorted(expected, key=lambda item: -expected[item])
    assert [item.get("cold", False) for item in body["items"]] == [False, False, True]


async def test_every_request_feature_reaches_the_graph(serve: Serve) -> None:
    """Numbers are transformed, buckets and tokens become rows, on both request sides."""
    async with serve() as client:
        body = await ranked(
            client,
            ["i1"],
            user={"age": 50, "occupation": "doctor"},
            context={"hour": 18, "decade": 1995},
        )

    request = request_logit(50.0, 18.0, occupation=2, decade=3)
    assert scores(body) == pytest.approx({"i1": sigmoid(request + known_logit("i1"))}, abs=1e-6)


async def test_rows_bring_features_that_win_over_the_catalogue(serve: Serve) -> None:
    """What a row brings replaces the joined value; null and absent leave it."""
    async with serve() as client:
        body = await ranked(
            client,
            [
                {"id": "i1", "features": {"price": 100, "genres": ["horror", "drama", "comedy"]}},
                {"id": "i2", "features": {"price": None}},
                {"id": "i3"},
            ],
        )

    expected = {
        "i1": sigmoid(AT_REST + item_logit(100.0, 2, [4, 3])),
        "i2": sigmoid(AT_REST + known_logit("i2")),
        "i3": sigmoid(AT_REST + known_logit("i3")),
    }
    assert scores(body) == pytest.approx(expected, abs=1e-6)


async def test_columns_mean_the_same_as_rows(serve: Serve) -> None:
    """The same candidates as columns get the same items as they do as rows."""
    rows = [
        {"id": "i1", "features": {"price": 9.5, "genres": "drama|horror"}},
        {"id": "i9", "features": {"price": None, "genres": None}},
    ]
    columns = {
        "ids": ["i1", "i9"],
        "features": {"price": [9.5, None], "genres": ["drama|horror", None]},
    }
    async with serve() as client:
        by_rows = await ranked(client, rows)
        by_columns = await ranked(client, columns)

    assert by_rows["items"] == by_columns["items"]


async def test_a_column_of_nulls_is_no_column(serve: Serve) -> None:
    """Nulls only: all values are joined."""
    async with serve() as client:
        body = await ranked(client, {"ids": ["i1"], "features": {"price": [None]}})

    assert scores(body) == pytest.approx({"i1": sigmoid(AT_REST + known_logit("i1"))}, abs=1e-6)


async def test_ids_may_be_numbers(serve: Serve) -> None:
    """Numbers are taken for the texts that they print as."""
    async with serve() as client:
        body = await ranked(client, [7, 7.5, 8.0], id=12, unknown_items="score")

    assert body["id"] == "12"
    assert [item["id"] for item in body["items"]] == ["7", "7.5", "8"]


async def test_no_candidates_are_ranked_to_nothing(serve: Serve) -> None:
    """An empty list is an answer, not an error: retrieval may find nothing."""
    async with serve() as client:
        body = await ranked(client, [])
        columns = await ranked(client, {"ids": []}, shape="columns", explain="features")

    assert body["items"] == []
    assert columns["ids"] == columns["scores"] == []


async def test_unknown_items_are_dropped_if_asked(serve: Serve) -> None:
    """drop: they are named under excluded, the others keep their features."""
    candidates = {"ids": ["x", "i2", "y", "i1"], "features": {"price": [1, 100, 1, None]}}
    async with serve() as client:
        body = await ranked(client, candidates, unknown_items="drop")

    assert body["excluded"] == [
        {"id": "x", "reason": "unknown_item"},
        {"id": "y", "reason": "unknown_item"},
    ]
    expected = {
        "i1": sigmoid(AT_REST + known_logit("i1")),
        "i2": sigmoid(AT_REST + item_logit(100.0, 3, [3])),
    }
    assert scores(body) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("candidates", "pointers"),
    [
        (["i1", "x"], ["/candidates/1"]),
        ([{"id": "x"}, {"id": "i1"}], ["/candidates/0/id"]),
        ({"ids": ["i1", "i1", "x"]}, ["/candidates/ids/2"]),
    ],
)
async def test_unknown_items_are_refused_if_asked(
    serve: Serve, candidates: Any, pointers: list[str]
) -> None:
    """reject: 422, pointing at each of them where it stands in the request."""
    async with serve() as client:
        reply = await client.rank(candidates, unknown_items="reject")

    assert (reply.status_code, reply.json()["code"]) == (422, "unknown_item")
    assert [fault["pointer"] for fault in reply.json()["errors"]] == pointers


async def test_of_a_repeated_candidate_the_first_counts(serve: Serve) -> None:
    """Duplicates are warned of, with their number, and ranked once."""
    candidates = {"ids": ["i1", "i2", "i1"], "features": {"price": [4, 4, 100]}}
    async with serve() as client:
        body = await ranked(client, candidates)

    assert len(body["items"]) == 2
    assert scores(body)["i1"] == pytest.approx(sigmoid(AT_REST + item_logit(4.0, 2, [2])), abs=1e-6)
    assert [(w["code"], w["count"]) for w in body["warnings"]] == [("duplicate_candidates", 1)]


async def test_pruned_features_are_ignored_in_silence(serve: Serve) -> None:
    """A caller need not change when a ranker is compressed again."""
    async with serve() as client:
        plain = await ranked(client, ["i1"])
        pruned = await ranked(
            client, {"ids": ["i1"], "features": {"year": [1995]}}, user={"zip": "12345"}
        )

    assert pruned["warnings"] == []
    assert pruned["items"] == plain["items"]


async def test_undeclared_features_are_ignored_with_a_warning(serve: Serve) -> None:
    """One warning for each feature, with how many candidates brought it, and where it belongs."""
    rows = [
        {"id": "i1", "features": {"colour": "red", "hour": 3}},
        {"id": "i2", "features": {"colour": "blue"}},
    ]
    async with serve() as client:
        body = await ranked(client, rows, user={"shoe": 43}, context={"age": 3})

    told = {(w["code"], w["detail"]): w["count"] for w in body["warnings"]}
    assert told == {
        ("undeclared_feature", "user feature 'shoe' is ignored"): 1,
        ("undeclared_feature", "context feature 'age' is ignored; it belongs to the user side"): 1,
        ("undeclared_feature", "item feature 'colour' is ignored"): 2,
        ("undeclared_feature", "item feature 'hour' is ignored; it belongs to the context side"): 1,
    }


async def test_of_many_undeclared_features_the_first_are_named_and_the_rest_counted(
    serve: Serve,
) -> None:
    """A body of nothing but new names does not get as many warnings back."""
    many = {f"x{n:02}": 1 for n in range(12)}
    async with serve() as client:
        rows = await ranked(client, [{"id": item, "features": many} for item in ("i1", "i2")])
        columns = await ranked(
            client, {"ids": ["i1", "i2"], "features": {name: [1, 1] for name in many}}
        )

    assert rows["warnings"] == columns["warnings"]
    assert [w["detail"] for w in rows["warnings"]] == [
        *(f"item feature 'x{n:02}' is ignored" for n in range(10)),
        "2 more item features are ignored",
    ]
    assert [w["count"] for w in rows["warnings"]] == [2] * 10 + [4]


def test_undeclared_features_of_rows_get_no_columns() -> None:
    """Names times rows would be gigabytes: only what the ranker takes is spread out."""
    rows = [CandidateRow(f"i{n}", {f"x{n}": 1, "price": n, "year": n}) for n in range(3)]
    features = ItemFeatures(declared={"price", "year", "genres"}, kept={"price", "genres"})

    found = read_candidates(RankRequest(candidates=rows), NO_LIMITS, features)

    assert found.columns == {"price": [0, 1, 2]}
    assert found.undeclared == {"x0": 1, "x1": 1, "x2": 1}


@pytest.mark.parametrize(
    "candidates",
    [
        [{"id": "i1", "features": None}],
        [{"id": "i1", "features": {"price": None, "colour": None}}],
        {"ids": ["i1"], "features": None},
        {"ids": ["i1"], "features": {"price": None, "colour": None}},
        {"ids": ["i1"], "features": {"price": [None], "colour": [None]}},
    ],
)
async def test_null_is_the_same_as_nothing(serve: Serve, candidates: Any) -> None:
    """Features, a column and each field may be null; no warning tells of what did not come."""
    nothing = dict.fromkeys(
        ("id", "model", "session_items", "top_k", "unknown_items", "explain", "shape")
    )
    async with serve() as client:
        plain = await ranked(client, ["i1"])
        nulls = await ranked(
            client, candidates, **nothing, user={"shoe": None}, context={"age": None}
        )
        sides = await ranked(client, candidates, **nothing, user=None, context=None)

    assert plain["items"] == nulls["items"] == sides["items"]
    assert nulls["warnings"] == sides["warnings"] == []


async def test_session_items_are_ignored_with_a_warning_by_a_click_through_ranker(
    serve: Serve,
) -> None:
    """They are checked, and have no effect."""
    async with serve() as client:
        body = await ranked(client, ["i1"], session_items=["i2", 3])
        none = await ranked(client, ["i1"], session_items=[])

    assert [w["code"] for w in body["warnings"]] == ["unused_session_items"]
    assert none["warnings"] == []


async def test_top_k_keeps_the_best_and_is_clipped(serve: Serve) -> None:
    """The first k of the whole order; more than there are is all."""
    async with serve() as client:
        everything = await ranked(client, ITEMS)
        two = await ranked(client, ITEMS, top_k=2)
        many = await ranked(client, ITEMS, top_k=99)

    assert two["items"] == everything["items"][:2]
    assert many["items"] == everything["items"]


async def test_the_shape_columns_answers_two_parallel_lists(serve: Serve) -> None:
    """Ids and scores in place of items; cold only where some item is."""
    async with serve() as client:
        items = await ranked(client, ["i1", "i99"])
        columns = await ranked(client, ["i1", "i99"], shape="columns")
        warm = await ranked(client, ["i1"], shape="columns")

    assert columns["ids"] == [item["id"] for item in items["items"]]
    assert columns["scores"] == [item["score"] for item in items["items"]]
    assert columns["cold"] == [False, True]
    assert "items" not in columns
    assert "cold" not in warm


async def test_equal_scores_keep_the_order_of_the_request(serve: Serve) -> None:
    """The order is total: ties go by input order."""
    unknown = [f"u{n}" for n in (3, 1, 2, 9, 5)]
    async with serve() as client:
        body = await ranked(client, unknown)

    assert [item["id"] for item in body["items"]] == unknown


async def test_the_same_request_gets_the_same_bytes(serve: Serve) -> None:
    """Apart from timing_ms."""
    async with serve() as client:
        request = {"id": "r", "explain": "features", "user": {"q": 1, "p": 2}}
        rows = [{"id": f"u{n}", "features": {"b": 1, "a": 2, "price": n}} for n in range(50)]
        replies = {
            (await client.rank(rows, **request)).text.partition('"timing_ms"')[0] for _ in range(3)
        }

    assert len(replies) == 1


async def test_explain_tells_each_value_and_its_source(serve: Serve) -> None:
    """request, store or default; pruned features had no effect and are not told."""
    async with serve() as client:
        body = await ranked(
            client,
            [{"id": "i1", "features": {"price": 9.5, "year": 1990}}, {"id": "i9"}],
            user={"age": 24},
            explain="features",
        )

    assert body["request_features"] == {
        "age": {"value": 24, "source": "request"},
        "hour": {"value": 12.0, "source": "default"},
        "occupation": {"value": None, "source": "default"},
        "decade": {"value": None, "source": "default"},
    }
    by_id = {item["id"]: item["features"] for item in body["items"]}
    assert by_id["i1"] == {
        "price": {"value": 9.5, "source": "request"},
        "item_id": {"value": "i1", "source": "store"},
        "genres": {"value": ["comedy"], "source": "store"},
    }
    assert by_id["i9"] == {
        "price": {"value": 4.0, "source": "default"},
        "item_id": {"value": "i9", "source": "request"},
        "genres": {"value": None, "source": "default"},
    }


async def test_explain_tells_numbers_as_they_came(serve: Serve) -> None:
    """Those beyond 64 bits, too, in a list as well."""
    wide = 2**70 + 1
    body = {
        "candidates": [{"id": "i1", "features": {"genres": [wide, "drama"]}}],
        "context": {"hour": -wide},
        "explain": "features",
    }

    async with serve() as client:
        reply = await client.post("/rank", json=body)

    assert reply.status_code == 200
    told = reply.json()
    assert told["request_features"]["hour"]["value"] == -wide
    assert told["items"][0]["features"]["genres"]["value"] == [wide, "drama"]


async def test_explain_in_columns_stands_beside_the_ids(serve: Serve) -> None:
    """features[i] belongs to ids[i]."""
    async with serve() as client:
        body = await ranked(client, ["i1", "i2"], shape="columns", explain="features")

    assert [each["item_id"]["value"] for each in body["features"]] == body["ids"]


async def test_a_bundle_without_catalogue_ranks_what_requests_bring(
    serve: Serve, store: Any, bundles: Any
) -> None:
    """Ids are looked up in the vocabulary of the item id; who is not there is cold."""
    store.publish(bundles / "bare", "bare")
    store.set_alias("bare", "prod", "1")
    async with serve(models=("bare",)) as client:
        body = await ranked(
            client, {"ids": ["i1", "zz"], "features": {"price": [4, 4]}}, explain="features"
        )

    expected = {
        "i1": sigmoid(AT_REST + item_logit(4.0, 2)),
        "zz": sigmoid(AT_REST + item_logit(4.0, 0)),
    }
    assert scores(body) == pytest.approx(expected, abs=1e-6)
    assert {item["id"]: item.get("cold", False) for item in body["items"]} == {
        "i1": False,
        "zz": True,
    }


@pytest.mark.parametrize(
    ("request_fields", "pointer"),
    [
        ({"user": {"age": "old"}}, "/user/age"),
        ({"user": {"age": True}}, "/user/age"),
        ({"user": {"age": 1e39}}, "/user/age"),
        ({"user": {"occupation": ["doctor"]}}, "/user/occupation"),
        ({"context": {"decade": "nineties"}}, "/context/decade"),
        ({"candidates": [{"id": "i1"}, {"id": "i2", "features": {"price": "x"}}]},
         "/candidates/1/features/price"),
        ({"candidates": {"ids": ["a", "b", "b", "c"], "features": {"price": [1, None, 3, "x"]}}},
         "/candidates/features/price/3"),
        ({"candidates": {"ids": ["i1"], "features": {"genres": [{"a": 1}]}}},
         "/candidates/features/genres/0"),
        ({"candidates": {"ids": ["i1"], "features": {"a/b~c": []}}},
         "/candidates/features/a~1b~0c"),
        ({"candidates": [{"id": "i1"}, "i2"]}, "/candidates/1"),
        ({"candidates": ["i2", {"id": "i1"}]}, "/candidates/1"),
        ({"candidates": ["i1", True]}, "/candidates/1"),
        ({"candidates": [{"id": "i1", "features": []}]}, "/candidates/0/features"),
        ({"candidates": ["i1", "é" * 129]}, "/candidates/1"),
        ({"candidates": [{"id": "x" * 257}]}, "/candidates/0/id"),
        ({"session_items": ["x" * 257]}, "/session_items/0"),
        ({"id": "é" * 129}, "/id"),
        ({"session_items": ["x"] * 201}, "/session_items"),
        ({"top_k": 0}, "/top_k"),
        ({"top_k": "3"}, "/top_k"),
        ({"unknown_items": "guess"}, "/unknown_items"),
        ({"explain": "all"}, "/explain"),
        ({"shape": "tree"}, "/shape"),
        ({"model": 3}, "/model"),
        ({"user": []}, "/user"),
        ({"topk": 3}, ""),
        ({"candidates": None}, "/candidates"),
    ],
)  # fmt: skip
async def test_a_wrong_value_is_pointed_at(
    serve: Serve, request_fields: dict[str, Any], pointer: str
) -> None:
    """422 invalid_request, with a JSON pointer to the place."""
    async with serve() as client:
        reply = await client.post("/rank", json={"candidates": ["i1"], **request_fields})

    problem = reply.json()
    assert (reply.status_code, problem["code"]) == (422, "invalid_request")
    assert [fault["pointer"] for fault in problem["errors"]] == [pointer]
    assert problem["detail"]


async def test_an_id_at_the_limit_is_taken(serve: Serve) -> None:
    """256 bytes are allowed, whatever characters they make."""
    async with serve() as client:
        await ranked(client, ["é" * 128, "x" * 256])


async def test_a_score_that_is_no_number_is_an_internal_error(serve: Serve) -> None:
    """500 with the request's id and nothing of the inside."""
    async with serve() as client:
        reply = await client.rank([{"id": "i1", "features": {"price": -1}}])

    problem = reply.json()
    assert (reply.status_code, problem["code"]) == (500, "internal")
    assert problem["request_id"] == reply.headers["x-request-id"]
    assert "score" not in problem["detail"]
