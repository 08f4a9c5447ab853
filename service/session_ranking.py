"""Session rankers: the items of a session in, logits of the items that come next out.

A graph encodes the session; the item table, in whatever form, does the rest. The score of item v is

    log( exp(query · e_v) + sum_t exp(repeat_t) [v_t = v] + sum_t exp(follow_t) S[v_t, v] )

So whatever form the item vectors have, the best of the whole catalogue can be found exactly: what a
session's items lead to can only add to a score, and these are few.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import structlog

from model_store.arrays import Floats, Rows
from model_store.bundle import Bundle
from model_store.item_vectors import Neighbours
from model_store.manifest import UNREACHED, Manifest, SessionSpec
from model_store.store import OpenedVersion
from service import kernels
from service.caches import Blobs
from service.candidates import (
    ItemFeatures,
    Limits,
    read_candidates,
    read_excluded,
    read_session,
)
from service.catalogue import Catalogue, CatalogueScoring
from service.encodings import NO_ROWS, Encoded, Encodings
from service.errors import BundleRejected, Warned
from service.item_ids import UNKNOWN, ItemIds
from service.item_scores import Best
from service.ranking import (
    RECOMMENDED,
    Prepared,
    Ranked,
    Ranking,
    Scores,
    in_order,
    sort_out,
)
from service.schemas import RankRequest, RecommendRequest
from service.scorer import OrtEncoder, Ways, require_finite

log = structlog.get_logger(__name__)

NO_FEATURES: Final = ItemFeatures(frozenset(), frozenset())


class SessionPrepared(Prepared, frozen=True, gc=False, kw_only=True):
    """A request, ready to score.

    Attributes:
        ids: the candidates' texts; an empty list for /recommend.
        catalogue: the one that the request's rows belong to.
        encodings: of sessions of its rows.
        session: (L,) rows of the session's items, oldest first.
        rows: (N,) the candidates' rows, -1 for unknown ones; of /recommend the excluded ones.
    """

    ids: list[str]
    catalogue: Catalogue
    encodings: Encodings
    session: Rows
    rows: Rows

    def encoded(self) -> Encoded:
        """What the session comes to."""
        return self.encodings(self.session.tobytes())


class _Serving(NamedTuple):
    """A catalogue, and what sessions of its rows come to. That goes with its catalogue."""

    catalogue: Catalogue
    encodings: Encodings


class Reached(NamedTuple):
    """What the items of a session lead to: each row once, ascending, with its log weight."""

    rows: Rows
    weights: Floats


class SessionRanking(Ranking):
    """Ranks items by what comes next in a session.

    Its catalogue is replaced whole when fresh items come; requests keep the one they began with.
    """

    def __init__(
        self,
        *,
        name: str,
        version: str,
        manifest: Manifest,
        digest: str,
        spec: SessionSpec,
        catalogue: Catalogue,
        encoder: OrtEncoder,
    ) -> None:
        super().__init__(name, version, manifest, digest)
        self.spec, self._encoder = spec, encoder
        self.catalogue = catalogue
        base = catalogue.base
        for way, needed in (("query", base.vectors), ("follow", base.neighbours)):
            if encoder.has(way) and needed is None:
                raise BundleRejected(f"the graph answers with {way}, and there is nothing for it")
        # The longest and the shortest: a graph that fails on one would fail requests.
        for length in (spec.length, 0):
            encoder.encode(np.zeros((1, length, spec.dim), np.float32))
        encoder.try_several(spec.length, spec.dim)

    @property
    def catalogue(self) -> Catalogue:
        """What is ranked."""
        return self._serving.catalogue

    @catalogue.setter
    def catalogue(self, catalogue: Catalogue) -> None:
        # Nothing of it holds the ranking, which is to go at once when another one replaces it.
        self._serving = _Serving(catalogue, Encodings(self._encoder, catalogue))

    def forget(self) -> None:
        """As `Ranking.forget`: no session has been asked after."""
        self.catalogue = self.catalogue

    @property
    def table(self) -> Catalogue:
        """The catalogue."""
        return self.catalogue

    @property
    def items(self) -> int:
        """Items in the catalogue, fresh ones too."""
        return len(self.catalogue)

    def prepare(self, request: RankRequest, limits: Limits) -> SessionPrepared:
        """Check a request and look its items up; raises as `Ranking.prepare`."""
        catalogue, encodings = self._serving
        candidates = read_candidates(request, limits, NO_FEATURES)
        before = read_session(request.session_items, limits)
        found = catalogue.rows(before, candidates.ids)  # both at once: fewer steps around it
        session, warnings = self._session(found[: len(before)])
        candidates, rows, unknown, excluded, repeated = sort_out(
            candidates, found[len(before) :], request.unknown_items
        )
        return SessionPrepared(
            ids=candidates.ids,
            cold=frozenset(unknown),
            excluded=excluded,
            warnings=warnings + repeated + self._undeclared(request, candidates.undeclared),
            top_k=request.top_k,
            method=None,
            catalogue=catalogue,
            encodings=encodings,
            session=session,
            rows=rows,
        )

    def prepare_best(self, request: RecommendRequest, limits: Limits) -> SessionPrepared:
        """Check a request; raises as `Ranking.prepare_best`, but for the catalogue's size."""
        catalogue, encodings = self._serving
        before = read_session(request.session_items, limits)
        session, warnings = self._session(catalogue.rows(before))
        excluded = np.unique(catalogue.rows(read_excluded(request.exclude, limits)))
        return SessionPrepared(
            ids=[],
            cold=frozenset(),
            excluded=[],
            warnings=warnings + self._undeclared(request, {}),
            top_k=min(request.top_k or RECOMMENDED, limits.candidates, len(catalogue)),
            method="exact",
            catalogue=catalogue,
            encodings=encodings,
            session=session,
            rows=excluded[excluded >= 0],
        )

    def _session(self, rows: Rows) -> tuple[Rows, list[Warned]]:
        """The rows of the newest session items that are known, and what became of the others."""
        if len(rows) <= self.spec.length and UNKNOWN not in rows.tolist():
            return rows, []
        known, warnings = rows[rows >= 0], []
        if unknown := len(rows) - len(known):
            detail = f"{unknown} of {len(rows)} session items are unknown; they are left out"
            warnings.append(Warned("unknown_session_items", detail, unknown))
        if (more := len(known) - self.spec.length) > 0:
            detail = f"this ranker takes the newest {self.spec.length} session items"
            warnings.append(Warned("session_truncated", detail, more))
        return known[-self.spec.length :], warnings

    def gains(self, prepared: SessionPrepared) -> bool:
        """As `Ranking.gains`: where the session is remembered, little is left to do."""
        return prepared.session.tobytes() not in prepared.encodings

    def share(self, batch: Sequence[SessionPrepared]) -> None:
        """As `Ranking.share`: encode the sessions."""
        sessions: dict[Encodings, list[bytes]] = defaultdict(list)
        for each in batch:  # the catalogue may have been replaced in between
            sessions[each.encodings].append(each.session.tobytes())
        for encodings, asked_for in sessions.items():
            encodings.prepare(asked_for)

    def score(self, prepared: SessionPrepared) -> Scores:
        """(N,) scores, in the order of ``prepared.ids``; raises as `Ranking.score`."""
        return _scores(prepared, prepared.encoded())

    def rank(self, prepared: SessionPrepared) -> Ranked:
        """The best candidates, or the best of the catalogue; raises as `Ranking.rank`.

        The order is total: score descending, then that of the input, or of the catalogue.
        """
        if prepared.method is not None:
            best = self._best(prepared)
            require_finite(best.scores)
            return Ranked(prepared.catalogue.ids(best.rows), best.scores, NO_ROWS)
        encoded = prepared.encoded()
        ranked = None
        if encoded.loop is not None and not prepared.cold:
            ranked = encoded.loop.ranked(prepared.ids, prepared.rows, prepared.top_k)
        if ranked is None:  # in steps, which tell what is wrong with a score
            return in_order(prepared, _scores(prepared, encoded))
        return Ranked(*ranked)

    def _best(self, prepared: SessionPrepared) -> Best:
        catalogue, excluded = prepared.catalogue, prepared.rows
        ways, scoring, _ = prepared.encoded()
        led_to = reached(prepared.session, ways, catalogue.base.neighbours)
        wanted = prepared.top_k or RECOMMENDED
        # Of the items that a session does not lead to, none but these can be among the best.
        count = min(wanted + len(excluded), len(catalogue))
        if ways.query is None:
            best = Best(np.arange(count), np.full(count, UNREACHED, np.float32))
        else:
            best = catalogue.best(ways.query, count)
        others = ~np.isin(best.rows, led_to.rows)
        generated = _generated(scoring, led_to.rows, known=True)
        rows = np.concatenate([best.rows[others], led_to.rows])
        scores = np.concatenate(
            [best.scores[others], np.logaddexp(generated, led_to.weights)], dtype=np.float32
        )
        allowed = ~np.isin(rows, excluded)
        return Best.sorted(rows[allowed], scores[allowed], wanted)


def _scores(prepared: SessionPrepared, encoded: Encoded) -> Scores:
    """(N,) scores of candidates, in steps.

    Raises:
        BadScores: one is not a finite number.
    """
    session, (ways, scoring, _) = prepared.session, encoded
    scores = _generated(scoring, prepared.rows, known=not prepared.cold)
    if ways.follow is None and ways.repeat is not None and kernels.COMPILED:
        kernels.add_repeats(scores, prepared.rows, session, ways.repeat)
    else:
        led_to = reached(session, ways, prepared.catalogue.base.neighbours)
        _add(scores, prepared.rows, led_to)
    require_finite(scores)
    return scores


def _generated(scoring: CatalogueScoring | None, rows: Rows, *, known: bool) -> Floats:
    """(n,) what a query alone gives some items."""
    if scoring is None:
        return np.full(len(rows), UNREACHED, np.float32)
    return scoring(rows, known=known)


def _add(scores: Floats, rows: Rows, reached: Reached) -> None:
    """Add to the scores of some rows what a session leads to."""
    if not len(reached.rows):
        return
    at = np.searchsorted(reached.rows, rows).clip(max=len(reached.rows) - 1)
    places = np.flatnonzero(reached.rows[at] == rows)
    scores[places] = np.logaddexp(scores[places], reached.weights[at[places]])


def reached(session: Rows, ways: Ways, neighbours: Neighbours | None) -> Reached:
    """What the items (L,) of a session lead to, by repetition and by what follows them."""
    rows: list[Rows] = []
    weights: list[Floats] = []
    if ways.repeat is not None:
        rows.append(session)
        weights.append(ways.repeat)
    if ways.follow is not None and neighbours is not None:
        for row, weight in zip(session.tolist(), ways.follow, strict=True):
            if row < len(neighbours.offsets) - 1:  # nobody has seen what follows a fresh item
                columns, shares = neighbours.of(row)
                rows.append(columns.astype(np.intp))
                weights.append(weight + np.log(shares))
    return _summed(rows, weights)


def _summed(rows: Sequence[Rows], weights: Sequence[Floats]) -> Reached:
    """Each row once, with the log of the sum of its weights' exponentials."""
    every = np.concatenate([NO_ROWS, *rows])
    if not len(every):
        return Reached(NO_ROWS, np.empty(0, np.float32))
    order = np.argsort(every, kind="stable")
    ordered = every[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    found = np.concatenate(weights)[order]
    return Reached(ordered[starts], np.logaddexp.reduceat(found, starts).astype(np.float32))


def read_table(bundle: Bundle, ids: ItemIds) -> Catalogue:
    """The catalogue of a bundle."""
    return Catalogue.read(bundle, ids)


def unpack_table(bundle: Bundle, ids: ItemIds, blobs: Blobs) -> Catalogue | None:
    """The catalogue from what `Catalogue.pack` made of it, None if it is not that."""
    return Catalogue.unpack(blobs, bundle, ids)


def make_ranking(opened: OpenedVersion, table: Catalogue) -> SessionRanking:
    """A ranking over a catalogue.

    Raises:
        BundleRejected: the graph's outputs do not fit the catalogue, or it fails.
    """
    bundle, manifest = opened.bundle, opened.bundle.manifest
    if manifest.session is None:
        raise BundleRejected(f"{bundle.root}: the bundle holds no session ranker")
    if not kernels.COMPILED:
        log.warning(
            "item codes are scored by numpy, which is slower",
            reason=kernels.WHY_NOT,
            hint="install again with a C compiler and Python's headers",
        )
    return SessionRanking(
        name=opened.name,
        version=opened.version,
        manifest=manifest,
        digest=bundle.digest,
        spec=manifest.session,
        catalogue=table,
        encoder=OrtEncoder(bundle.path(manifest.graph), manifest.inputs, manifest.outputs),
    )
