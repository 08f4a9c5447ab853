"""The yardstick: an ASGI callable without a framework, typed parsing by msgspec."""

import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec
import uvicorn

from benchmarks.peers.scoring import as_json, load_rankers

Message = MutableMapping[str, Any]
RANKERS = load_rankers()


class Candidate(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A candidate with its features."""

    id: str
    features: dict[str, Any]


class Body(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """Candidates to rank for a user in a context."""

    model: str
    user: dict[str, Any]
    context: dict[str, Any]
    candidates: list[Candidate]
    shape: str


DECODER = msgspec.json.Decoder(Body)


async def app(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """POST /rank, whatever the path."""
    if scope["type"] != "http":
        return
    raw, more = b"", True
    while more:
        message = await receive()
        raw, more = raw + message["body"], message["more_body"]
    try:
        body = DECODER.decode(raw)
        content = as_json(
            RANKERS[body.model].rank(
                body.user | body.context,
                [candidate.id for candidate in body.candidates],
                [candidate.features for candidate in body.candidates],
            )
        )
    except ValueError as error:  # msgspec's errors are among them
        await _answer(send, 422, str(error).encode())
        return
    await _answer(send, 200, content)


async def _answer(send: Callable[[Message], Awaitable[None]], status: int, content: bytes) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


if __name__ == "__main__":
    uvicorn.run(
        app,
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        log_level="warning",
    )
