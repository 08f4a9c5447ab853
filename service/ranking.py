"""Ranking: a request in, an order out. The middle of the service; it knows no HTTP and no store.

What all kinds of rankers share is here; `click_ranking` and `session_ranking` are the kinds.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, Protocol

import numpy as np
import orjson
from msgspec import Struct
from numpy.typing import NDArray

from model_store.arrays import Rows
from model_store.manifest import Manifest
from service import kernels
from service.candidates import NO_FEATURES, NO_LIMITS, Candidates, Limits
from service.errors import Warned
from service.features import REQUEST_SIDES, undeclared
from service.schemas import (
    CandidateColumns,
    Features,
    RankRequest,
    RawRankRequest,
    RecommendRequest,
)

Request = RankRequest | RecommendRequest
Given = Request | RawRankRequest  # as it was parsed
Scores = NDArray[np.float32]
Explained = dict[str, dict[str, Any]]  # feature → its value and where it came from
SHORT_US: Final = 500  # a graph of 100 to 300 us takes up to twice that in cold caches
RECOMMENDED: Final = 50  # items of /recommend, where the request does not say


class Ids(Protocol):
    """Ids by place: a list, or what makes them up when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int, /) -> str: ...


class Prepared(Struct, frozen=True, gc=False, kw_only=True):
    """A request, ready to score.

    Attributes:
        ids: the candidates to score, in input order.
        cold: positions in ``ids`` of items that the catalogue does not know.
        top_k: how many to answer; None for all.
        method: how items were found, where the request did not bring them.
    """

    ids: Ids
    cold: frozenset[int]
    excluded: list[dict[str, Any]]
    warnings: list[Warned]
    top_k: int | None
    method: Literal["exact"] | None


class Ranked(NamedTuple):
    """What is answered, best first.

    Attributes:
        places: positions in ``Prepared.ids``; none where the ranking found the items itself.
    """

    ids: list[str]
    scores: Scores
    places: Rows


class Costs(NamedTuple):
    """What work costs, in microseconds of a core: of a request, and more for what it brings.

    Attributes:
        fixed_us: of any request to rank candidates.
        byte_us: of a byte of its body, for look-ups and features.
        candidate_us: of a candidate, for the scores and the order.
        catalogue_us: of finding the best of the whole catalogue.
    """

    fixed_us: float = 0.0
    byte_us: float = 0.0
    candidate_us: float = 0.0
    catalogue_us: float = 0.0


class Ranking(ABC):
    """Ranks with one version of a ranker.

    Attributes:
        name: what it is served under; the manifest has the name it was built under.
        costs: what its work was seen to cost when it was loaded.
        reads_raw: whether `prepare_raw` can do anything.
    """

    costs = Costs()
    reads_raw = False

    def __init__(self, name: str, version: str, manifest: Manifest, digest: str) -> None:
        self.name, self.version = name, version
        self.manifest, self.digest = manifest, digest
        self.flops_per_candidate = manifest.flops
        self._features = {spec.name: spec for spec in manifest.features}
        self._user, self._context = (
            frozenset(spec.name for spec in manifest.features if spec.side == side)
            for side in REQUEST_SIDES
        )

    @property
    @abstractmethod
    def table(self) -> Any:
        """The catalogue, as a cache can keep it; None without one."""

    @property
    @abstractmethod
    def items(self) -> int:
        """Items in the catalogue."""

    @abstractmethod
    def prepare(self, request: RankRequest, limits: Limits) -> Prepared:
        """Check a request and fill the graph's inputs.

        Raises:
            InvalidRequest: a value, an id or a length is wrong; the fault says where.
            TooManyCandidates: more than the limit.
            UnknownItem: a candidate is unknown and the caller asked to refuse such ones.
        """

    def prepare_raw(
        self,
        request: RawRankRequest,  # noqa: ARG002  rankers with features use both
        limits: Limits,  # noqa: ARG002
    ) -> Prepared | None:
        """`prepare` of features as they came; None: the body is to be parsed, and prepared whole.

        Raises:
            InvalidRequest: something else than a candidate is wrong.
        """
        return None

    def prepare_any(self, given: RankRequest | RawRankRequest, limits: Limits) -> Prepared | None:
        """`prepare`, or `prepare_raw`."""
        if isinstance(given, RawRankRequest):
            return self.prepare_raw(given, limits)
        return self.prepare(given, limits)

    @abstractmethod
    def prepare_best(self, request: RecommendRequest, limits: Limits) -> Prepared:
        """The same for the whole catalogue instead of candidates.

        Raises:
            InvalidRequest: a value, an id or a length is wrong, or there is no catalogue.
            TooManyCandidates: the catalogue is larger than this ranker can score at once.
        """

    @abstractmethod
    def score(self, prepared: Any) -> Scores:
        """(N,) scores, in the order of ``prepared.ids``.

        Raises:
            BadScores: the graph failed, or answered with no number.
        """

    def is_short(self, prepared: Prepared) -> bool:
        """Whether what the processor's caches lack is much of what ranking it takes."""
        if prepared.method is not None:
            return self.costs.catalogue_us <= SHORT_US
        return len(prepared.ids) * self.costs.candidate_us <= SHORT_US

    def gains(self, prepared: Any) -> bool:  # noqa: ARG002  most need not look
        """Whether a short one is worth a wait for others."""
        return True

    def share(self, batch: Sequence[Any]) -> None:  # noqa: B027  most have nothing to share
        """Compute what can be for several requests at once; `rank` finds it.

        Raises:
            BadScores: the graph failed, or answered with no number.
        """

    def forget(self) -> None:  # noqa: B027  most have nothing to forget
        """Forget what earlier requests have left: the next is as dear as a first one."""

    def predicted_us(self, request: Request, size: int) -> float:
        """What preparing and ranking will cost, of a request whose body has ``size`` bytes."""
        if isinstance(request, RecommendRequest):
            return self.costs.catalogue_us
        costs = self.costs
        return costs.fixed_us + size * costs.byte_us + count_of(request) * costs.candidate_us

    def rank(self, prepared: Any) -> Ranked:
        """The best candidates. The order is total: score descending, then input order.

        Raises:
            BadScores: the graph failed, or answered with no number.
        """
        return in_order(prepared, self.score(prepared))

    def answer(self, request: Request, prepared: Prepared, ranked: Ranked) -> dict[str, Any]:
        """The ranked part of the reply, as orjson writes it."""
        body: dict[str, Any] = {"model": self.name, "version": self.version, "digest": self.digest}
        if prepared.method is not None:
            body["method"] = prepared.method
        explained = None
        if isinstance(request, RankRequest) and request.explain == "features":
            explained = request
        if request.shape == "columns":
            body["ids"], body["scores"] = ranked.ids, ranked.scores
            if prepared.cold:
                body["cold"] = _cold(prepared, ranked).tolist()
        elif kernels.COMPILED and explained is None:
            body["items"] = _items_json(prepared, ranked)
        else:
            body["items"] = _items(prepared, ranked)
        if explained is not None:
            body["request_features"], of_items = self.features_used(
                explained, prepared, ranked.places.tolist()
            )
            if request.shape == "columns":
                body["features"] = of_items
            else:
                for item, features in zip(body["items"], of_items, strict=True):
                    item["features"] = features
        body["excluded"] = prepared.excluded
        body["warnings"] = [
            {"code": w.code, "detail": w.detail, "count": w.count} for w in prepared.warnings
        ]
        return body

    def features_used(
        self,
        request: RankRequest,  # noqa: ARG002  rankers with features use all three
        prepared: Any,  # noqa: ARG002
        places: Sequence[int],
    ) -> tuple[Explained, list[Explained]]:
        """The features of the request side, and of each item, with value and source."""
        return {}, [{} for _ in places]

    def _undeclared(self, request: Request, of_items: Mapping[str, int]) -> list[Warned]:
        """Warnings of the features that a request brings and the bundle does not know."""
        if not (request.user or request.context or of_items):
            return []
        user, context, warnings = request.user or NO_FEATURES, request.context or NO_FEATURES, []
        if not self._user >= user.keys():
            warnings += undeclared(self._features, "user", _given(user))
        if not self._context >= context.keys():
            warnings += undeclared(self._features, "context", _given(context))
        return warnings + undeclared(self._features, "item", of_items)


def in_order(prepared: Prepared, scores: Scores) -> Ranked:
    """The best of scores (N,), as `Ranking.rank` orders them."""
    places, best = kernels.best_first(scores, prepared.top_k)
    ids = prepared.ids
    if isinstance(ids, list):
        return Ranked(kernels.picked(ids, places), best, places)
    return Ranked([ids[place] for place in places.tolist()], best, places)


def _items_json(prepared: Prepared, ranked: Ranked) -> orjson.Fragment:
    """`_items` without an object for each."""
    scores = orjson.dumps(ranked.scores, option=orjson.OPT_SERIALIZE_NUMPY)
    cold = _cold(prepared, ranked).tobytes() if prepared.cold else b""
    return orjson.Fragment(kernels.items_json(orjson.dumps(ranked.ids), scores, cold))


def _cold(prepared: Prepared, ranked: Ranked) -> NDArray[np.bool_]:
    """(n,) which of the ranked are cold."""
    cold = np.zeros(len(prepared.ids), np.bool_)
    cold[[*prepared.cold]] = True
    found: NDArray[np.bool_] = cold[ranked.places]
    return found


def _items(prepared: Prepared, ranked: Ranked) -> list[dict[str, Any]]:
    # A list of numpy's numbers: orjson writes them as the float32 that they are.
    items: list[dict[str, Any]] = [
        {"id": item, "score": score}
        for item, score in zip(ranked.ids, list(ranked.scores), strict=True)
    ]
    if prepared.cold:
        for item, is_cold in zip(items, _cold(prepared, ranked).tolist(), strict=True):
            if is_cold:
                item["cold"] = True
    return items


def count_of(request: RankRequest) -> int:
    """How many candidates a request brings, in whatever shape."""
    given = request.candidates
    return len(given.ids) if isinstance(given, CandidateColumns) else len(given)


def _given(side: Features) -> dict[str, int]:
    """The features of the request side that came with a value: once each."""
    return {name: 1 for name, value in side.items() if value is not None}


def without_repeats(candidates: Candidates, rows: Rows) -> tuple[Candidates, Rows, list[Warned]]:
    """The first candidate of each id with its row, and a warning if there were others."""
    first = candidates.first_of_each()
    if first is None:
        return candidates, rows, []
    given = len(candidates.ids)
    repeated = given - len(first)
    detail = f"{repeated} of {given} candidates repeat an id; the first of each counts"
    warned = Warned("duplicate_candidates", detail, repeated)
    return candidates.only(first), rows[first], [warned]


class Sorted(NamedTuple):
    """Candidates once it is clear which of them count.

    Attributes:
        rows: what tells them apart; their rows in the catalogue, if there is one.
        unknown: positions of the unknown ones that are scored.
        repeated: a warning, if there were some.
    """

    candidates: Candidates
    rows: Rows
    unknown: list[int]
    excluded: list[dict[str, Any]]
    repeated: list[Warned]


def sort_out(
    candidates: Candidates,
    rows: Rows,
    policy: Literal["score", "drop", "reject"] | None,
) -> Sorted:
    """Keep the first candidate of each id; score, drop or refuse those that are unknown.

    ``rows`` tell ids apart: those in the catalogue, if there is one; -1 for unknown ones.

    Raises:
        UnknownItem: they are to be refused.
    """
    if kernels.told_apart(rows):  # nearly always; what follows takes longer than the look-up
        return Sorted(candidates, rows, [], [], [])
    candidates, rows, repeated = without_repeats(candidates, rows)
    unknown = np.flatnonzero(rows < 0).tolist()
    if unknown and policy == "reject":
        raise candidates.unknown(unknown)
    if not unknown or policy != "drop":
        return Sorted(candidates, rows, unknown, [], repeated)
    excluded = [{"id": candidates.ids[i], "reason": "unknown_item"} for i in unknown]
    kept = np.flatnonzero(rows >= 0)
    return Sorted(candidates.only(kept.tolist()), rows[kept], [], excluded, repeated)


def check_golden(
    ranking: Ranking, cases: Sequence[tuple[RankRequest, Sequence[float]]], tolerance: float
) -> str | None:
    """Why the golden requests do not reproduce their scores, None if they do."""
    for number, (request, expected) in enumerate(cases):
        prepared = ranking.prepare(request, NO_LIMITS)
        scores = ranking.score(prepared)
        if len(scores) != len(expected):
            return f"golden case {number}: {len(scores)} scores, expected {len(expected)}"
        off = np.abs(scores - np.asarray(expected, dtype=np.float64))
        if off.size and float(off.max()) > tolerance:
            place = int(off.argmax())
            return (
                f"golden case {number}: candidate {prepared.ids[place]!r} scored "
                f"{scores[place]:.7g}, expected {expected[place]:.7g} within {tolerance:g}"
            )
    return None
