"""POST /rank over real bundles: the three shapes of candidates, and what becomes of each value."""

import pytest

from tests.service.conftest import COLD_LOGIT, Serve, known_logit, request_logit, sigmoid

pytestmark = pytest.mark.anyio


async def test_ids_are_ranked_by_the_score_of_their_joined_features(serve: Serve) -> None:
    """A list of ids comes back best first, each with the arithmetic's score."""
    async with serve() as client:
        reply = await client.rank(["i1", "i2", "i99"], user={"age": 24, "occupation": "technician"})

    assert reply.status_code == 200
    body = reply.json()
    request = request_logit(24.0, occupation=3)
    expected = {
        "i1": sigmoid(request + known_logit("i1")),
        "i2": sigmoid(request + known_logit("i2")),
        "i99": sigmoid(request + COLD_LOGIT),
    }
    assert [item["id"] for item in body["items"]] == sorted(
        expected, key=expected.get, reverse=True
    )
    assert {i["id"]: i["score"] for i in body["items"]} == pytest.approx(expected, abs=1e-6)
