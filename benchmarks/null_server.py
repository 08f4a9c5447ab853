"""The yardstick: a bare ASGI endpoint that parses, sorts and answers the same bodies.

    uvicorn benchmarks.null_server:app --loop uvloop --http httptools --no-access-log

Its score is a hash. What it takes is what HTTP, JSON and a sort take in Python; what a ranking
service takes besides is its own.
"""

from typing import Any, Final

import msgspec
import numpy as np
import orjson

HASH: Final = np.uint64(0x9E3779B97F4A7C15)


class Row(msgspec.Struct, gc=False):
    """A candidate with features."""

    id: str
    features: dict[str, Any]


class Columns(msgspec.Struct, gc=False):
    """Candidates as columns."""

    ids: list[str]
    features: dict[str, list[Any]] = {}


class Body(msgspec.Struct, gc=False):
    """As much of a ranking request as candidates need."""

    candidates: list[str | Row] | Columns


DECODER: Final = msgspec.json.Decoder(Body)


def ids_of(body: Body) -> list[str]:
    """The candidates' ids."""
    given = body.candidates
    if isinstance(given, Columns):
        return given.ids
    return [each if isinstance(each, str) else each.id for each in given]


def answer(body: bytes) -> bytes:
    """Candidates by a hash of their place, best first."""
    ids = ids_of(DECODER.decode(body))
    scores = (np.arange(1, len(ids) + 1, dtype=np.uint64) * HASH >> np.uint64(40)).astype(
        np.float32
    )
    order = np.argsort(-scores)
    ranked = {"ids": [ids[place] for place in order.tolist()], "scores": scores[order]}
    return orjson.dumps(ranked, option=orjson.OPT_SERIALIZE_NUMPY)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer any POST."""
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    content = answer(body)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})
