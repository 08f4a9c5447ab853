"""Click-through rankers: features of the request and of the candidates in, probabilities out."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import orjson

from model_store.arrays import Rows
from model_store.bundle import Bundle
from model_store.errors import BadValue
from model_store.manifest import FeatureSpec, Manifest
from model_store.store import OpenedVersion
from service import kernels
from service.caches import Blobs
from service.candidates import (
    NO_FEATURES,
    Candidates,
    Columns,
    ItemFeatures,
    Limits,
    read_candidates,
    read_excluded,
    read_raw,
    read_session,
)
from service.errors import Fault, InvalidRequest, TooManyCandidates, Warned
from service.features import FeaturePlan, Tensors, refused
from service.item_ids import UNKNOWN, Chosen, ItemIds
from service.item_table import ItemTable
from service.ranking import (
    RECOMMENDED,
    Explained,
    Prepared,
    Ranking,
    Request,
    Scores,
    sort_out,
)
from service.schemas import RankRequest, RawRankRequest, RecommendRequest
from service.scorer import OrtScorer

NOBODY: Final[Sequence[int]] = ()


class ClickPrepared(Prepared, frozen=True, gc=False, kw_only=True):
    """A request, ready to score.

    Attributes:
        feeds: graph input → tensor.
        columns: what the request brought, by item feature, in the order of ``ids``.
        rows: the candidates' rows in the item table, if there is one.
    """

    feeds: Tensors
    columns: Columns
    rows: Rows


class ClickRanking(Ranking):
    """Ranks candidates by what a graph makes of their features."""

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
        super().__init__(name, version, manifest, digest)
        self._table, self._plan, self._scorer = table, plan, scorer
        self.reads_raw = plan.raw is not None
        self._item_features = ItemFeatures(plan.item_features, plan.item_encoders.keys())

    @property
    def table(self) -> ItemTable | None:
        """The catalogue, None if the bundle has none."""
        return self._table

    @property
    def items(self) -> int:
        """Items in the catalogue."""
        return 0 if self.table is None else len(self.table)

    def prepare(self, request: RankRequest, limits: Limits) -> ClickPrepared:
        """Check a request and fill the graph's inputs; raises as `Ranking.prepare`."""
        candidates = read_candidates(request, limits, self._item_features)
        warnings = self._unused(request, limits)
        candidates, rows, unknown, excluded, repeated = sort_out(
            candidates, self._rows(candidates.ids), request.unknown_items
        )
        feeds = self._candidate_side(candidates, rows, unknown)
        feeds |= self._plan.request(request.user or NO_FEATURES, request.context or NO_FEATURES)
        return ClickPrepared(
            ids=candidates.ids,
            cold=frozenset(unknown),
            excluded=excluded,
            warnings=warnings + repeated + self._undeclared(request, candidates.undeclared),
            top_k=request.top_k,
            method=None,
            feeds=feeds,
            columns=candidates.columns,
            rows=rows,
        )

    def prepare_raw(self, request: RawRankRequest, limits: Limits) -> ClickPrepared | None:
        """`prepare` of features as they came; raises, or leaves it, as `Ranking.prepare_raw`."""
        asked = request.asked
        if self._plan.raw is None or asked.explain == "features":
            return None
        given = read_raw(request, limits)
        if given is None:
            return None
        ids = given.ids
        rows, unknown = self._rows(ids), NOBODY
        if not kernels.told_apart(rows):
            unknown = np.flatnonzero(rows < 0).tolist()
            refused_or_dropped = unknown and asked.unknown_items in {"drop", "reject"}
            if refused_or_dropped or len(set(ids)) < len(ids):
                return None
        feeds = self._stored(ids, rows, unknown)
        if not self._plan.raw.lay(feeds, given.brought, len(ids), as_columns=given.as_columns):
            return None
        warnings = self._unused(asked, limits)
        feeds |= self._plan.request(asked.user or NO_FEATURES, asked.context or NO_FEATURES)
        return ClickPrepared(
            ids=ids,
            cold=frozenset(unknown),
            excluded=[],
            warnings=warnings + self._undeclared(asked, {}),
            top_k=asked.top_k,
            method=None,
            feeds=feeds,
            columns={},
            rows=rows,
        )

    def prepare_best(self, request: RecommendRequest, limits: Limits) -> ClickPrepared:
        """Take the whole catalogue for candidates; raises as `Ranking.prepare_best`."""
        if self.table is None:
            detail = "this ranker's bundle holds no catalogue; send candidates to /rank"
            raise InvalidRequest(detail, [Fault("/model", detail)])
        if len(self.table) > limits.candidates:
            raise TooManyCandidates(
                f"this ranker scores items one by one: its catalogue holds {len(self.table)}, "
                f"limit {limits.candidates}; send a short list of candidates to /rank"
            )
        excluded = self.table.rows(read_excluded(request.exclude, limits))
        rows = np.delete(np.arange(len(self.table)), excluded[excluded >= 0])
        warnings = self._unused(request, limits)
        feeds = self.table.gather(rows, self._plan.defaults)
        feeds |= self._plan.request(request.user or NO_FEATURES, request.context or NO_FEATURES)
        return ClickPrepared(
            ids=Chosen(self.table.ids, rows),
            cold=frozenset(),
            excluded=[],
            warnings=warnings + self._undeclared(request, {}),
            top_k=request.top_k or RECOMMENDED,
            method="exact",
            feeds=feeds,
            columns={},
            rows=rows,
        )

    @staticmethod
    def _unused(request: Request, limits: Limits) -> list[Warned]:
        """Session items are checked, and not used."""
        session = read_session(request.session_items, limits)
        detail = "this ranker takes no session items; they are ignored"
        return [Warned("unused_session_items", detail, len(session))] if session else []

    def _rows(self, ids: list[str]) -> Rows:
        """Rows in the item table, -1 for unknown ones; without a table, a number for each id."""
        if self.table is not None:
            return self.table.rows(ids)
        numbers: dict[str, int] = {}
        rows = np.array([numbers.setdefault(item, len(numbers)) for item in ids], np.intp)
        known = self._plan.known(ids)
        # A bundle without any catalogue cannot call an item unknown.
        return rows if known is None else np.where(known, rows, UNKNOWN)

    def _candidate_side(
        self, candidates: Candidates, rows: Rows, unknown: Sequence[int]
    ) -> Tensors:
        feeds = self._stored(candidates.ids, rows, unknown)
        for name in self._plan.lay(feeds, candidates.columns):
            self._overlay(feeds, name, candidates.columns[name], candidates)
        return feeds

    def _stored(self, ids: Sequence[str], rows: Rows, unknown: Sequence[int]) -> Tensors:
        """What the bundle knows of candidates."""
        plan = self._plan
        if self.table is not None:
            feeds, unstored = self.table.gather(rows, plan.defaults, unknown), unknown
        else:
            feeds = {name: np.tile(row, (len(ids), 1)) for name, row in plan.defaults.items()}
            unstored = range(len(ids))
        if plan.item_id is not None and unstored:
            plan.overlay(feeds, plan.item_id, [ids[i] for i in unstored], unstored)
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

    def score(self, prepared: ClickPrepared) -> Scores:
        """(N,) scores, in the order of ``prepared.ids``; raises as `Ranking.score`."""
        if not prepared.ids:
            return np.empty(0, dtype=np.float32)
        return self._scorer.score(prepared.feeds, len(prepared.ids))

    def features_used(
        self, request: RankRequest, prepared: ClickPrepared, places: Sequence[int]
    ) -> tuple[Explained, list[Explained]]:
        """The features of the request side, and of each item, with value and source."""
        specs = [spec for spec in self.manifest.features if spec.name in self._plan.encoders]
        sides = {"user": request.user or NO_FEATURES, "context": request.context or NO_FEATURES}
        of_request = {
            spec.name: _explained(spec, sides[spec.side].get(spec.name), None)
            for spec in specs
            if spec.side != "item"
        }
        of_items = [spec for spec in specs if spec.side == "item"]
        return of_request, [
            {spec.name: self._explained_item(spec, prepared, place) for spec in of_items}
            for place in places
        ]

    def _explained_item(
        self, spec: FeatureSpec, prepared: ClickPrepared, place: int
    ) -> dict[str, Any]:
        column = prepared.columns.get(spec.name)
        brought = None if column is None else column[place]
        stored: Any = None
        if self.table is not None and self.table.values:
            row = int(prepared.rows[place])
            values = self.table.values.get(spec.name)
            stored = None if values is None or row < 0 else values[row]
        if brought is None and stored is None and spec.name == self.manifest.item_id:
            return {"value": prepared.ids[place], "source": "request"}
        return _explained(spec, brought, stored)


def _explained(spec: FeatureSpec, brought: Any, stored: Any) -> dict[str, Any]:
    if brought is not None:
        return {"value": _as_sent(brought), "source": "request"}
    if stored is not None:
        return {"value": stored, "source": "store"}
    return {"value": spec.encoding.default, "source": "default"}


def _as_sent(value: Any) -> Any:
    """A value as JSON has it: orjson writes no whole number beyond 64 bits."""
    if type(value) is int and not -(2**63) <= value < 2**64:
        return orjson.Fragment(str(value))
    return [_as_sent(each) for each in value] if type(value) is list else value


def read_table(bundle: Bundle, ids: ItemIds) -> ItemTable:
    """The catalogue of a bundle."""
    return ItemTable.read(bundle, ids)


def unpack_table(bundle: Bundle, ids: ItemIds, blobs: Blobs) -> ItemTable | None:
    """The catalogue from what `ItemTable.pack` made of it, None if it is not that."""
    table, spec = ItemTable.unpack(blobs, ids), bundle.manifest.items
    if table is None or spec is None:
        return None
    whole = table.tensors.keys() == spec.tensors.keys()
    return table if whole and (table.values is None) == (spec.values is None) else None


def make_ranking(opened: OpenedVersion, table: ItemTable | None) -> ClickRanking:
    """A ranking over a catalogue."""
    bundle, manifest = opened.bundle, opened.bundle.manifest
    return ClickRanking(
        name=opened.name,
        version=opened.version,
        manifest=manifest,
        digest=bundle.digest,
        plan=FeaturePlan(manifest, bundle.encoders()),
        table=table,
        scorer=OrtScorer(bundle.path(manifest.graph), manifest.inputs, manifest.outputs),
    )
