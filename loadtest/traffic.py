"""Real requests from a bundle's own files: its catalogue's ids, its golden requests' users.

The files are read as the plain JSON they are; the format is docs/bundle-format.md.
"""

import gzip
import json
import operator
import random
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

GOLDEN: Final = "golden.json"
MANIFEST: Final = "manifest.json"
REQUEST_SIDE: Final = ("user", "context", "session_items")


class BundleUnusable(Exception):
    """No load can be drawn from that folder; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Query:
    """A request ready to send, and the ids that its answer must hold."""

    body: bytes
    ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class Pool:
    """What requests are drawn from.

    Attributes:
        people: request sides (user, context, session items) as golden requests hold them.
        ids: the catalogue, or as many ids as there are rows of ``features``.
        features: candidates' features by column; empty where the bundle joins them by id.
    """

    people: list[dict[str, Any]]
    ids: list[str]
    features: dict[str, list[Any]]


def choose_model(store: Path, name: str | None) -> str:
    """The name of the click-through bundle that is asked for; of the only one if none is.

    Raises:
        BundleUnusable: there is no store, or it does not hold that; or several, and none is named.
    """
    manifests = store.glob(f"*/versions/*/{MANIFEST}")
    names = sorted({path.parts[-4] for path in manifests if _read(path).get("session") is None})
    if not names:
        raise BundleUnusable(
            f"no bundle in {str(store)!r}: `make demo` makes one, or name a config with "
            "--prepare compress/configs/synthetic.toml"
        )
    if name is not None and name not in names:
        raise BundleUnusable(f"no bundle {name!r} in {str(store)!r}, only {', '.join(names)}")
    if name is not None:
        return name
    if len(names) > 1:
        raise BundleUnusable(f"choose one with --model: {', '.join(names)}")
    return names[0]


def bundle_folder(store: Path, name: str, version: str) -> Path:
    """Where the store keeps a version.

    Raises:
        BundleUnusable: it is not there.
    """
    folder = store / name / "versions" / version
    if not (folder / MANIFEST).is_file():
        raise BundleUnusable(f"{folder}: no bundle there, though the service serves that version")
    return folder


def read_manifest(bundle: Path) -> dict[str, Any]:
    """What the bundle says of itself.

    Raises:
        BundleUnusable: it cannot be read.
    """
    manifest: dict[str, Any] = _read(bundle / MANIFEST)
    return manifest


def read_pool(bundle: Path) -> Pool:
    """Users and candidates of a bundle.

    Raises:
        BundleUnusable: a file is missing or holds nothing to draw from.
    """
    manifest = read_manifest(bundle)
    golden = [case["request"] for case in _read(bundle / manifest.get("golden", GOLDEN))]
    people = [{k: request[k] for k in REQUEST_SIDE if k in request} for request in golden]
    if not people:
        raise BundleUnusable(f"{bundle}: no golden request to draw users from")
    if manifest.get("items"):
        return Pool(people, [str(item) for item in _read(bundle / manifest["items"]["ids"])], {})
    return _pool_of_rows(people, [request["candidates"] for request in golden])


def read_sessions(bundle: Path) -> list[list[str]]:
    """The sessions of a session ranker's golden requests: real ones, and an empty one.

    Raises:
        BundleUnusable: there are none.
    """
    manifest = read_manifest(bundle)
    golden = [case["request"] for case in _read(bundle / manifest.get("golden", GOLDEN))]
    sessions = [request["session_items"] for request in golden if "session_items" in request]
    if not sessions:
        raise BundleUnusable(f"{bundle}: expected a session ranker, found no golden session")
    return sessions


def draw(pool: Pool, candidates: int, count: int, seed: int) -> list[Query]:
    """``count`` requests of ``candidates`` different candidates each, the same for a seed.

    Raises:
        BundleUnusable: the pool holds fewer candidates than a request needs.
    """
    if candidates > len(pool.ids):
        raise BundleUnusable(
            f"{candidates} candidates asked for, {len(pool.ids)} are there; lower --candidates"
        )
    rng = random.Random(seed)  # noqa: S311 - a load, no secret
    return [_query(pool, rng.sample(range(len(pool.ids)), candidates), rng) for _ in range(count)]


def fault_of(query: Query, status: int, content: bytes) -> str | None:
    """What is wrong with an answer, in words that group; None if it is right.

    Right is 200 with each id that was sent once, and scores that fall.
    """
    try:
        answer = json.loads(content or b"{}")
    except ValueError:
        return f"{status}: the answer is not JSON"
    if not isinstance(answer, dict):
        return f"{status}: the answer is no JSON object"
    if status != HTTPStatus.OK:
        return f"{status} {answer.get('code', '')}".rstrip()
    try:
        return _fault_of_ranking(query, answer.get("ids", ()), answer.get("scores", ()))
    except TypeError:  # no lists, or not of ids and numbers
        return "200 with something else than a ranking"


def _fault_of_ranking(query: Query, ids: Sequence[Any], scores: Sequence[Any]) -> str | None:
    if len(ids) != len(query.ids) or query.ids != frozenset(ids) or len(scores) != len(ids):
        return "200 with other ids than were sent"
    if any(map(operator.lt, scores, scores[1:])):
        return "200 with scores out of order"
    return None


def _query(pool: Pool, chosen: list[int], rng: random.Random) -> Query:
    ids = [pool.ids[place] for place in chosen]
    columns = {name: [column[place] for place in chosen] for name, column in pool.features.items()}
    body = {
        **rng.choice(pool.people),
        "candidates": {"ids": ids, "features": columns} if columns else ids,
        # The cheapest answer to check: the generator must not be what is measured.
        "shape": "columns",
    }
    return Query(json.dumps(body, separators=(",", ":")).encode(), frozenset(ids))


def _pool_of_rows(people: list[dict[str, Any]], candidates: list[dict[str, Any]]) -> Pool:
    # Golden requests may reuse ids ("0", "1", ...) for different rows, so each row gets its own.
    rows = sum(len(columns["ids"]) for columns in candidates)
    names = {name for columns in candidates for name in columns.get("features", {})}
    features = {
        name: [
            value
            for columns in candidates
            for value in columns["features"].get(name, [None] * len(columns["ids"]))
        ]
        for name in sorted(names)
    }
    return Pool(people, [f"c{place}" for place in range(rows)], features)


def _read(path: Path) -> Any:
    try:
        raw = path.read_bytes()
        return json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
    except OSError as error:
        raise BundleUnusable(f"{path}: cannot be read: {error.strerror}") from None
