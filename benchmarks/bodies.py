"""Bodies of POST /rank in every shape that a bundle's own files can fill.

Candidates of a bundle with a catalogue come as ids, to which the service joins features; those of
one without come with features, as rows and as columns.
"""

import json
import random
from collections.abc import Iterator
from typing import Any

from loadtest.traffic import Pool


def bodies(pool: Pool, candidates: int, count: int, seed: int) -> dict[str, list[bytes]]:
    """Shape -> ``count`` bodies of so many candidates each, the same for a seed."""
    drawn = list(_drawn(pool, candidates, count, seed))
    if not pool.features:
        return {"ids": [_json({**person, "candidates": ids}) for person, ids, _ in drawn]}
    rows = [_json({**person, "candidates": _rows(ids, each)}) for person, ids, each in drawn]
    columns = [
        _json({**person, "candidates": {"ids": ids, "features": each}, "shape": "columns"})
        for person, ids, each in drawn
    ]
    return {"rows": rows, "columns": columns}


def _drawn(
    pool: Pool, candidates: int, count: int, seed: int
) -> Iterator[tuple[dict[str, Any], list[str], dict[str, list[Any]]]]:
    """Request side, ids and features by column of each body."""
    rng = random.Random(seed)  # noqa: S311  a load, no secret
    places = range(len(pool.ids))
    for _ in range(count):
        # Golden requests hold few rows: these may repeat, under ids of their own.
        chosen = (
            rng.choices(places, k=candidates) if pool.features else rng.sample(places, candidates)
        )
        ids = (
            [f"c{n}" for n in range(candidates)] if pool.features else [pool.ids[i] for i in chosen]
        )
        features = {name: [column[i] for i in chosen] for name, column in pool.features.items()}
        yield rng.choice(pool.people), ids, features


def _rows(ids: list[str], features: dict[str, list[Any]]) -> list[dict[str, Any]]:
    values = zip(*features.values(), strict=True)
    return [
        {"id": each, "features": dict(zip(features, row, strict=True))}
        for each, row in zip(ids, values, strict=True)
    ]


def _json(body: Any) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()
