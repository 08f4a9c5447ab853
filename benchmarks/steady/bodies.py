"""Requests of varying size, each drawn anew: no two in a run hold the same candidates.

Candidates are encoded once and lie in a row, mixed, twice over; a body is a cut from it. So a
body of 2,000 candidates costs the generator some 20 µs, and memory that the service would keep for
each size, text or body it has seen has every chance to show.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from benchmarks.peers.bodies import Pool, pool_of
from benchmarks.peers.load import request
from model_store.bundle import Bundle

RANK: Final = "/rank"
RECOMMEND: Final = "/recommend"
MOST_SESSION: Final = 60  # items, where rankers take the newest 50
MOST_BEST: Final = 200  # asked of /recommend


@dataclass(frozen=True, slots=True)
class Form:
    """A way to write candidates: texts around lists that are all cut at the same places.

    Attributes:
        parts: what stands before a list, and its members.
        end: what stands after the last one.
    """

    name: str
    parts: Sequence[tuple[bytes, Sequence[bytes]]]
    end: bytes

    def cut(self, start: int, count: int) -> bytes:
        """``count`` candidates, up to half of the members, from ``start``, in the first half."""
        lists = (head + b",".join(members[start : start + count]) for head, members in self.parts)
        return b"".join(lists) + self.end


@dataclass(frozen=True, slots=True)
class Source:
    """Where bodies for one model come from.

    Attributes:
        path: of the service.
        heads: beginnings of bodies: the model and who asks.
        forms: of candidates; none for /recommend, which brings none.
        most: candidates that there are.
    """

    path: str
    heads: Sequence[bytes]
    forms: Sequence[Form]
    most: int


class Mix:
    """Draws requests from sources: the form at random, the size evenly on a scale of logarithms.

    Args:
        sources: of each model; asked alike often.
        sizes: fewest and most candidates.
    """

    def __init__(self, sources: Sequence[Source], sizes: tuple[int, int], seed: int) -> None:
        self._sources = sources
        self._low, self._high = math.log(sizes[0]), math.log(sizes[1] + 1)
        self._rng = random.Random(seed)  # noqa: S311 - a load, no secret

    def draw(self) -> bytes:
        """A request, ready to send."""
        rng = self._rng
        source = rng.choice(self._sources)
        size = int(math.exp(rng.uniform(self._low, self._high)))
        head = rng.choice(source.heads)
        if not source.forms:
            return request(source.path, b'%b"top_k":%d}' % (head, min(size, MOST_BEST)))
        size = min(size, source.most)
        candidates = rng.choice(source.forms).cut(rng.randrange(source.most), size)
        return request(source.path, b'%b"candidates":%b}' % (head, candidates))


def sources_of(
    bundle: Bundle, name: str, most: int, *, forms: Sequence[str], seed: int = 1
) -> list[Source]:
    """Where bodies for a bundle come from.

    Args:
        bundle: opened.
        name: what requests name it.
        most: candidates wanted; where the bundle knows fewer, unknown ids fill up.
        forms: of candidates, those that make sense for the bundle: ids, rows, columns.
        seed: of the order of candidates and, for a session ranker, of the sessions.
    """
    rng = random.Random(seed)  # noqa: S311 - a load, no secret
    if bundle.manifest.session is not None:
        return _sessions(bundle, name, most, rng)
    pool = pool_of(bundle)
    places = _mixed(len(pool.ids), most, rng)
    made = [FORMS[form](pool, places) for form in forms if form != "ids" or pool.catalogue]
    heads = [_head({"model": name, **person, "shape": "columns"}) for person in pool.people]
    return [Source(RANK, heads, made, len(places) // 2)]


def _mixed(known: int, most: int, rng: random.Random) -> list[int]:
    """Places of candidates in a mixed order, twice; those from ``known`` on are unknown ones."""
    places = list(range(max(known, most)))
    rng.shuffle(places)
    return places * 2


def _sessions(bundle: Bundle, name: str, most: int, rng: random.Random) -> list[Source]:
    table = bundle.session_table()
    ids = list(table.ids) if table is not None else []
    sessions = [rng.choices(ids, k=rng.randint(0, MOST_SESSION)) for _ in range(1000)]
    heads = [_head({"model": name, "session_items": items}) for items in sessions]
    places = _mixed(len(ids), most, rng)
    form = Form("ids", [(b"[", _texts(ids, places))], b"]")
    return [Source(RANK, heads, [form], len(places) // 2), Source(RECOMMEND, heads, [], 0)]


def _head(start: Mapping[str, Any]) -> bytes:
    return orjson.dumps(start)[:-1] + b","


def _texts(ids: Sequence[str], places: Sequence[int]) -> list[bytes]:
    return [orjson.dumps(ids[place] if place < len(ids) else f"new-{place}") for place in places]


def _ids(pool: Pool, places: Sequence[int]) -> Form:
    return Form("ids", [(b"[", _texts(pool.ids, places))], b"]")


def _value(column: Sequence[Any], place: int) -> Any:
    return column[place % len(column)]


def _rows(pool: Pool, places: Sequence[int]) -> Form:
    texts = _texts(pool.ids, places)
    features = (
        orjson.dumps({name: _value(column, place) for name, column in pool.features.items()})
        for place in places
    )
    rows = [b'{"id":%b,"features":%b}' % pair for pair in zip(texts, features, strict=True)]
    return Form("rows", [(b"[", rows)], b"]")


def _columns(pool: Pool, places: Sequence[int]) -> Form:
    parts = [(b'{"ids":[', _texts(pool.ids, places))]
    before = b'],"features":{'
    for name, column in pool.features.items():
        values = [orjson.dumps(_value(column, place)) for place in places]
        parts.append((before + orjson.dumps(name) + b":[", values))
        before = b"],"
    return Form("columns", parts, b"]}}" if pool.features else b"]}")


FORMS: Final = {"ids": _ids, "rows": _rows, "columns": _columns}
