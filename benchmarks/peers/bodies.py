"""The bodies that are sent: made from a bundle's catalogue or golden requests, the same for all."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson

from model_store.bundle import Bundle

Form = Literal["rows", "columns", "ids"]
REQUEST_SIDE: Final = ("user", "context")


class TooFew(Exception):
    """The bundle knows fewer candidates than a body shall have; the message says how many."""


@dataclass(frozen=True, slots=True)
class Pool:
    """What bodies are drawn from.

    Attributes:
        people: request sides: ``user`` and ``context``.
        ids: candidates' ids.
        features: of the item side, by name: a value for each id.
        catalogue: whether the bundle joins the features by id.
    """

    people: Sequence[Mapping[str, Any]]
    ids: Sequence[str]
    features: Mapping[str, Sequence[Any]]
    catalogue: bool


def pool_of(bundle: Bundle) -> Pool:
    """Users of the golden requests; candidates of the catalogue or, without one, of them too."""
    requests = [case.request for case in bundle.golden()]
    people = [{side: request.get(side, {}) for side in REQUEST_SIDE} for request in requests]
    table = bundle.item_table()
    if table is not None and table.values:
        names = set(table.values) - {bundle.manifest.item_id}
        features = {name: table.values[name] for name in sorted(names)}
        return Pool(people, table.ids, features, catalogue=True)
    brought = [r["candidates"] for r in requests if r["candidates"].get("features")]
    if not brought:
        return Pool(people, [], {}, catalogue=False)
    names = set.intersection(*(set(each["features"]) for each in brought))
    columns = {
        name: [value for each in brought for value in each["features"][name]]
        for name in sorted(names)
    }
    count = sum(len(each["ids"]) for each in brought)
    return Pool(people, [f"row-{place}" for place in range(count)], columns, catalogue=False)


def draw(
    pool: Pool, *, model: str, form: Form, candidates: int, count: int, seed: int = 1
) -> list[bytes]:
    """``count`` bodies; for a seed, those of all models and forms hold the same candidates.

    Raises:
        TooFew: the pool has fewer candidates.
    """
    if candidates > len(pool.ids):
        raise TooFew(f"{candidates} candidates wanted, the bundle knows {len(pool.ids)}")
    rng = random.Random(seed)  # noqa: S311 - a load, no secret
    return [
        _body(
            pool, rng.sample(range(len(pool.ids)), candidates), rng.choice(pool.people), model, form
        )
        for _ in range(count)
    ]


def _body(
    pool: Pool, places: Sequence[int], person: Mapping[str, Any], model: str, form: Form
) -> bytes:
    candidates = _candidates(pool, places, form)
    return orjson.dumps({"model": model, **person, "candidates": candidates, "shape": "columns"})


def _candidates(pool: Pool, places: Sequence[int], form: Form) -> Any:
    ids = [pool.ids[place] for place in places]
    if form == "ids":
        return ids
    if form == "columns":
        chosen = {name: [column[i] for i in places] for name, column in pool.features.items()}
        return {"ids": ids, "features": chosen}
    rows = [{name: column[i] for name, column in pool.features.items()} for i in places]
    return [{"id": item, "features": row} for item, row in zip(ids, rows, strict=True)]


def difference(answer: bytes, expected: bytes) -> float:
    """How far an answer is from another one: the farthest of an item's two scores.

    A candidate that ranks before a better one counts by how much better that one is expected to be;
    other ids, or no ranking at all, are infinitely far.
    """
    ours, theirs = _ranking(answer), _ranking(expected)
    if ours is None or theirs is None or ours.keys() != theirs.keys():
        return float("inf")
    moved = max((abs(score - theirs[item]) for item, score in ours.items()), default=0.0)
    best_after, worst = float("-inf"), 0.0
    for item in reversed(ours):
        best_after = max(best_after, theirs[item])
        worst = max(worst, best_after - theirs[item])
    return max(moved, worst)


def _ranking(answer: bytes) -> dict[str, float] | None:
    """The items' scores in order."""
    try:
        parsed = orjson.loads(answer)
        return {i: score + 0.0 for i, score in zip(parsed["ids"], parsed["scores"], strict=True)}
    except (ValueError, KeyError, TypeError):
        return None
