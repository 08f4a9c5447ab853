"""Ranking: a request in, an order out. The middle of the service; it knows no HTTP and no store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model_store.encoding import token
from model_store.errors import BadValue
from model_store.manifest import FeatureSpec, Manifest
from service.errors import Fault, InvalidRequest, TooManyCandidates, UnknownItem
from service.features import FeaturePlan, Tensors, Warned, escape, refused
from service.item_table import ItemTable
from service.schemas import CandidateColumns, CandidateRow, Features, Id, RankRequest
from service.scorer import OrtScorer

Columns = dict[str, Sequence[Any]]  # feature → a value (or None) for each candidate
MAX_FAULTS: Final = 20
NOTHING: Final[Features] = {}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask for at most."""

    candidates: int
    session_items: int
    id_bytes: int


NO_LIMITS: Final = Limits(candidates=2**62, session_items=2**62, id_bytes=2**62)


@dataclass(slots=True)
class Prepared:
    """A request, ready to score.

    Attributes:
        ids: the candidates to score, in input order.
        feeds: graph input → tensor.
        cold: positions in ``ids`` of items that the catalogue does not know.
        columns: what the request brought, by item feature, in the order of ``ids``.
        rows: the candidates' rows in the item table; None without one.
    """

    ids: list[str]
    feeds: Tensors
    cold: frozenset[int]
    columns: Columns
    rows: NDArray[np.intp] | None
    excluded: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[Warned] = field(default_factory=list)


class Ranking:
    """Ranks candidates with one version of a ranker."""

    def __init__(
        self,
        manifest: Manifest,
        digest: str,
        version: str,
        plan: FeaturePlan,
        table: ItemTable | None,
        scorer: OrtScorer,
    ) -> None:
        self.manifest, self.digest, self.version = manifest, digest, version
        self.name = manifest.name
        self.flops_per_candidate = manifest.card.slim.flops
        self.table = table
        self._plan, self._scorer = plan, scorer

    @property
    def items(self) -> int:
        """Items in the catalogue."""
        return 0 if self.table is None else len(self.table)

    def prepare(self, request: RankRequest, limits: Limits) -> Prepared:
        """Check a request and fill the graph's inputs.

        Raises:
            InvalidRequest: a value, an id or a length is wrong; the fault says where.
            TooManyCandidates: more than the limit.
            UnknownItem: a candidate is unknown and the caller asked to refuse such ones.
        """
        ids, columns, pointer = _candidates(request, limits)
        warnings: list[Warned] = []
        if request.session_items is not None:
            warnings += _check_session(request.session_items, limits)
        keep = _first_of_each(ids)
        if keep is not None:
            repeated = len(ids) - len(keep)
            detail = f"{repeated} of {len(ids)} candidates repeat an id; the first of each counts"
            warnings.append(Warned("duplicate_candidates", detail, repeated))
            ids = [ids[i] for i in keep]
        rows, known = self._look_up(ids)
        excluded: list[dict[str, Any]] = []
        cold: frozenset[int] = frozenset()
        if known is not None and not known.all():
            unknown = np.flatnonzero(~known).tolist()
            if request.unknown_items == "reject":
                raise _unknown_items(
                    [keep[i] if keep else i for i in unknown], ids, unknown, pointer
                )
            if request.unknown_items == "drop":
                excluded = [{"id": ids[i], "reason": "unknown_item"} for i in unknown]
                kept = np.flatnonzero(known)
                keep = [keep[i] if keep else i for i in kept.tolist()]
                ids = [ids[i] for i in kept.tolist()]
                rows = None if rows is None else rows[kept]
            else:
                cold = frozenset(unknown)
        if keep is not None:
            columns = {name: [column[i] for i in keep] for name, column in columns.items()}
        feeds = self._candidate_side(ids, rows, cold, columns, keep, pointer)
        user, context = request.user or NOTHING, request.context or NOTHING
        feeds |= self._plan.request(user, context)
        warnings += self._plan.undeclared("user", dict.fromkeys(user, 1))
        warnings += self._plan.undeclared("context", dict.fromkeys(context, 1))
        counts = {name: len(column) - column.count(None) for name, column in columns.items()}
        warnings += self._plan.undeclared("item", counts)
        return Prepared(ids, feeds, cold, columns, rows, excluded, warnings)

    def _look_up(
        self, ids: Sequence[str]
    ) -> tuple[NDArray[np.intp] | None, NDArray[np.bool_] | None]:
        """The candidates' rows in the item table, and which of them are known.

        None for the latter: the bundle knows no catalogue, so no candidate is unknown to it.
        """
        if self.table is not None:
            rows = self.table.rows(ids)
            return rows, rows >= 0
        return None, self._plan.known(ids)

    def _candidate_side(
        self,
        ids: Sequence[str],
        rows: NDArray[np.intp] | None,
        cold: frozenset[int],
        columns: Columns,
        keep: Sequence[int] | None,
        pointer: str,
    ) -> Tensors:
        plan = self._plan
        if self.table is not None and rows is not None:
            feeds = self.table.gather(rows, plan.defaults)
            unstored = sorted(cold)
        else:
            feeds = {name: np.tile(row, (len(ids), 1)) for name, row in plan.defaults.items()}
            unstored = list(range(len(ids)))
        if plan.item_id is not None and unstored:
            at = np.array(unstored, dtype=np.intp)
            plan.overlay(feeds, plan.item_id, [ids[i] for i in unstored], at)
        for name, column in columns.items():
            if name in plan.item_encoders:
                self._overlay(feeds, name, column, keep, pointer)
        return feeds

    def _overlay(
        self,
        feeds: Tensors,
        name: str,
        column: Sequence[Any],
        keep: Sequence[int] | None,
        pointer: str,
    ) -> None:
        at: list[int] | None = None
        values = column
        if None in column:
            at = [i for i, value in enumerate(column) if value is not None]
            values = [column[i] for i in at]
            if not at:
                return
        try:
            self._plan.overlay(feeds, name, values, None if at is None else np.array(at, np.intp))
        except BadValue as error:
            place = error.index if at is None else at[error.index]
            place = place if keep is None else keep[place]
            raise refused(pointer.format(place=place, name=escape(name)), error) from None

    def score(self, prepared: Prepared) -> NDArray[np.float32]:
        """(N,) scores, in the order of ``prepared.ids``.

        Raises:
            BadScores: the graph failed, or answered with no number.
        """
        if not prepared.ids:
            return np.empty(0, dtype=np.float32)
        return self._scorer.score(prepared.feeds, len(prepared.ids))

    def answer(
        self, request: RankRequest, prepared: Prepared, scores: NDArray[np.float32]
    ) -> dict[str, Any]:
        """The ranked part of the reply. The order is total: score descending, then input order."""
        order = np.argsort(-scores, kind="stable")
        if request.top_k is not None:
            order = order[: request.top_k]
        places = order.tolist()
        ids = [prepared.ids[i] for i in places]
        ranked = scores[order]
        columns = request.shape == "columns"
        body: dict[str, Any] = {"model": self.name, "version": self.version, "digest": self.digest}
        if columns:
            body["ids"], body["scores"] = ids, ranked
            if prepared.cold:
                body["cold"] = [i in prepared.cold for i in places]
        else:
            items: list[dict[str, Any]] = [
                {"id": item, "score": score} for item, score in zip(ids, list(ranked), strict=True)
            ]
            if prepared.cold:
                for item, place in zip(items, places, strict=True):
                    if place in prepared.cold:
                        item["cold"] = True
            body["items"] = items
        if request.explain == "features":
            self._explain(body, request, prepared, places)
        body["excluded"] = prepared.excluded
        body["warnings"] = [
            {"code": w.code, "detail": w.detail, "count": w.count} for w in prepared.warnings
        ]
        return body

    def _explain(
        self,
        body: dict[str, Any],
        request: RankRequest,
        prepared: Prepared,
        places: Sequence[int],
    ) -> None:
        """Add the value of every feature that was used, and where it came from."""
        sides = {"user": request.user or NOTHING, "context": request.context or NOTHING}
        specs = [spec for spec in self.manifest.features if spec.name in self._plan.encoders]
        body["request_features"] = {
            spec.name: _explained(spec, sides[spec.side].get(spec.name), None)
            for spec in specs
            if spec.side != "item"
        }
        per_item = [
            {
                spec.name: self._explained_item(spec, prepared, place)
                for spec in specs
                if spec.side == "item"
            }
            for place in places
        ]
        if request.shape == "columns":
            body["features"] = per_item
        else:
            for item, features in zip(body["items"], per_item, strict=True):
                item["features"] = features

    def _explained_item(self, spec: FeatureSpec, prepared: Prepared, place: int) -> dict[str, Any]:
        column = prepared.columns.get(spec.name)
        brought = None if column is None else column[place]
        stored: Any = None
        if self.table is not None and self.table.values and prepared.rows is not None:
            row = int(prepared.rows[place])
            values = self.table.values.get(spec.name)
            stored = None if values is None or row < 0 else values[row]
        if brought is None and stored is None and spec.name == self.manifest.item_id:
            return {"value": prepared.ids[place], "source": "request"}
        return _explained(spec, brought, stored)


def _explained(spec: FeatureSpec, brought: Any, stored: Any) -> dict[str, Any]:
    if brought is not None:
        return {"value": brought, "source": "request"}
    if stored is not None:
        return {"value": stored, "source": "store"}
    return {"value": spec.encoding.default, "source": "default"}


def _candidates(request: RankRequest, limits: Limits) -> tuple[list[str], Columns, str]:
    """Ids, feature columns, and the pattern of pointers to a feature's value.

    Raises:
        TooManyCandidates, InvalidRequest.
    """
    given = request.candidates
    if isinstance(given, CandidateColumns):
        _check_count(len(given.ids), "/candidates/ids", limits)
        for name, column in given.features.items():
            if len(column) != len(given.ids):
                detail = f"{len(column)} values for {len(given.ids)} ids"
                raise InvalidRequest(
                    f"candidates: feature {name!r} has {detail}",
                    [Fault(f"/candidates/features/{escape(name)}", detail)],
                )
        ids = _texts(given.ids, "/candidates/ids/{}", limits)
        return ids, dict(given.features), "/candidates/features/{name}/{place}"
    _check_count(len(given), "/candidates", limits)
    kinds = set(map(type, given))
    if CandidateRow not in kinds:
        return _texts(given, "/candidates/{}", limits), {}, ""  # type: ignore[arg-type]
    rows = _rows(given)
    ids = _texts([row.id for row in rows], "/candidates/{}/id", limits)
    # Sorted: warnings and faults must not depend on the order of a set.
    names = sorted(set().union(*(row.features for row in rows)))
    columns: Columns = {name: [row.features.get(name) for row in rows] for name in names}
    return ids, columns, "/candidates/{place}/features/{name}"


def _rows(given: Sequence[Id | CandidateRow]) -> Sequence[CandidateRow]:
    for place, candidate in enumerate(given):
        if type(candidate) is not type(given[0]) and CandidateRow in map(
            type, (candidate, given[0])
        ):
            detail = "expected all candidates to be ids, or all to be rows"
            raise InvalidRequest(detail, [Fault(f"/candidates/{place}", detail)])
    return given  # type: ignore[return-value]


def _check_count(count: int, pointer: str, limits: Limits) -> None:
    if count > limits.candidates:
        fault = Fault(pointer, f"length {count} > {limits.candidates}")
        raise TooManyCandidates(f"{count} candidates, limit {limits.candidates}", [fault])


def _check_session(items: Sequence[Id], limits: Limits) -> list[Warned]:
    """Session items are the input of session rankers; a click-through ranker has no use for them."""
    if len(items) > limits.session_items:
        detail = f"length {len(items)} > {limits.session_items}"
        raise InvalidRequest(
            f"{len(items)} session items, limit {limits.session_items}",
            [Fault("/session_items", detail)],
        )
    _texts(items, "/session_items/{}", limits)
    detail = "this ranker takes no session items; they are ignored"
    return [Warned("unused_session_items", detail, len(items))] if items else []


def _texts(ids: Sequence[Id], pointer: str, limits: Limits) -> list[str]:
    """Ids as texts, none of them too long."""
    texts = list(ids) if set(map(type, ids)) <= {str} else [token(each) or "" for each in ids]
    # A character takes up to four bytes.
    if max(map(len, texts), default=0) * 4 > limits.id_bytes:  # type: ignore[arg-type]
        for place, text in enumerate(texts):
            if (size := len(text.encode())) > limits.id_bytes:  # type: ignore[union-attr]
                detail = f"an id of {size} bytes > {limits.id_bytes}"
                raise InvalidRequest(detail, [Fault(pointer.format(place), detail)])
    return texts  # type: ignore[return-value]


def _first_of_each(ids: Sequence[str]) -> list[int] | None:
    """Positions of the first of each id, None if none repeats."""
    if len(set(ids)) == len(ids):
        return None
    first: dict[str, int] = {}
    for place, item in enumerate(ids):
        first.setdefault(item, place)
    return list(first.values())


def _unknown_items(
    places: Sequence[int], ids: Sequence[str], unknown: Sequence[int], pointer: str
) -> UnknownItem:
    where = {"": "/candidates/{}", "/candidates/{place}/features/{name}": "/candidates/{}/id"}
    pattern = where.get(pointer, "/candidates/ids/{}")
    faults = [
        Fault(pattern.format(place), f"unknown item {ids[i]!r}")
        for place, i in zip(places[:MAX_FAULTS], unknown, strict=False)
    ]
    return UnknownItem(f"{len(unknown)} of {len(ids)} candidates are unknown", faults)


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
