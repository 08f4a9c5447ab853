"""Bodies that are wrong, each in one way: whether a server says so, and how."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson


def _half(body: bytes) -> bytes:
    return body[: len(body) // 2]


def _unknown_key(body: bytes) -> bytes:
    return orjson.dumps(orjson.loads(body) | {"topk": 5})


def _without_candidates(body: bytes) -> bytes:
    parsed = orjson.loads(body)
    del parsed["candidates"]
    return orjson.dumps(parsed)


def _object_for_a_value(body: bytes) -> bytes:
    parsed: dict[str, Any] = orjson.loads(body)
    features = parsed["candidates"][0]["features"]
    features[min(features)] = {"not": "a value"}
    return orjson.dumps(parsed)


PROBES: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "half a body": _half,
    "no candidates": _without_candidates,
    "an unknown key": _unknown_key,
    "an object for a value": _object_for_a_value,
}
