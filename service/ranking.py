"""Ranking: a request in, an order out. The middle of the service; it knows no HTTP and no store."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.errors import BadValue
from model_store.manifest import FeatureSpec, Manifest
from service.candidates import (
    NO_FEATURES,
    NO_LIMITS,
    Candidates,
    Columns,
    ItemFeatures,
    Limits,
    check_session,
    read_candidates,
)
from service.errors import Warned
from service.features import FeaturePlan, Tensors, refused
from service.item_table import ItemTable
from service.schemas import Features, RankRequest
from service.scorer import OrtScorer


@dataclass(frozen=True, slots=True)
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
    excluded: list[dict[str, Any]]
    warnings: list[Warned]


class Ranking:
    """Ranks candidates with one version of a ranker.

    Attributes:
        name: what it is served under; the manifest has the name it was built under.
    """

    def __init__(
        self,
        *,
        name: str,
        version: str,
        manifest: Manifest,
        digest: str,
        plan: FeaturePlan,
        table: ItemTable | None,
        scorer: OrtScorer,
    ) -> None:
        self.name, self.version = name, version
        self.manifest, self.digest = manifest, digest
        self.flops_per_candidate = manifest.flops
        self.table = table
        self._plan, self._scorer = plan, scorer
        self._item_features = ItemFeatures(plan.declared["item"], plan.item_encoders.keys())

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
        candidates = read_candidates(request, limits, self._item_features)
        warnings = check_session(request, limits)
        if (first := candidates.first_of_each()) is not None:
            given = len(candidates.ids)
            repeated = given - len(first)
            detail = f"{repeated} of {given} candidates repeat an id; the first of each counts"
            warnings.append(Warned("duplicate_candidates", detail, repeated))
            candidates = candidates.only(first)
        rows, unknown = self._look_up(candidates.ids)
        excluded: list[dict[str, Any]] = []
        if unknown and request.unknown_items == "reject":
            raise candidates.unknown(unknown)
        if unknown and request.unknown_items == "drop":
            excluded = [{"id": candidates.ids[i], "reason": "unknown_item"} for i in unknown]
            dropped = frozenset(unknown)
            kept = [i for i in range(len(candidates.ids)) if i not in dropped]
            candidates, unknown = candidates.only(kept), []
            rows = None if rows is None else rows[kept]
        feeds = self._candidate_side(candidates, rows, unknown)
        user, context = request.user or NO_FEATURES, request.context or NO_FEATURES
        feeds |= self._plan.request(user, context)
        warnings += self._plan.undeclared("user", _given(user))
        warnings += self._plan.undeclared("context", _given(context))
        warnings += self._plan.undeclared("item", candidates.undeclared)
        return Prepared(
            ids=candidates.ids,
            feeds=feeds,
            cold=frozenset(unknown),
            columns=candidates.columns,
            rows=rows,
            excluded=excluded,
            warnings=warnings,
        )

    def _look_up(self, ids: Sequence[str]) -> tuple[NDArray[np.intp] | None, list[int]]:
        """The candidates' rows in the item table, if there is one, and who is unknown."""
        if self.table is not None:
            rows = self.table.rows(ids)
            return rows, np.flatnonzero(rows < 0).tolist()
        known = self._plan.known(ids)
        # A bundle without any catalogue cannot call an item unknown.
        return None, [] if known is None else np.flatnonzero(~known).tolist()

    def _candidate_side(
        self, candidates: Candidates, rows: NDArray[np.intp] | None, unknown: Sequence[int]
    ) -> Tensors:
        plan, ids = self._plan, candidates.ids
        if self.table is not None and rows is not None:
            feeds, unstored = self.table.gather(rows, plan.defaults), unknown
        else:
            feeds = {name: np.tile(row, (len(ids), 1)) for name, row in plan.defaults.items()}
            unstored = range(len(ids))
        if plan.item_id is not None and unstored:
            plan.overlay(feeds, plan.item_id, [ids[i] for i in unstored], unstored)
        for name, column in candidates.columns.items():
            self._overlay(feeds, name, column, candidates)
        return feeds

    def _overlay(
        self, feeds: Tensors, name: str, column: Sequence[Any], candidates: Candidates
    ) -> None:
        """Lay what a request brought of a feature over the tensors; null is not brought."""
        at: list[int] | None = None
        if None in column:
            at = [i for i, value in enumerate(column) if value is not None]
            column = [column[i] for i in at]
        if not column:
            return
        try:
            self._plan.overlay(feeds, name, column, at)
        except BadValue as error:
            position = error.index if at is None else at[error.index]
            raise refused(candidates.pointer(position, name), error) from None

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
        sides = {"user": request.user or NO_FEATURES, "context": request.context or NO_FEATURES}
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


def _given(side: Features) -> dict[str, int]:
    """The features of the request side that came with a value: once each."""
    return {name: 1 for name, value in side.items() if value is not None}


def _explained(spec: FeatureSpec, brought: Any, stored: Any) -> dict[str, Any]:
    if brought is not None:
        return {"value": brought, "source": "request"}
    if stored is not None:
        return {"value": stored, "source": "store"}
    return {"value": spec.encoding.default, "source": "default"}


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
