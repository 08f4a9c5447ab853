"""What offline evaluation makes of a session bundle is what serving makes of it."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from compress.progress import Silent
from compress.sessions.config import SessionExport
from compress.sessions.data import SessionData
from compress.sessions.evaluate import evaluate
from compress.sessions.export import export
from compress.sessions.rankers import SESSION_RANKERS
from compress.sessions.sources.synthetic import SyntheticSessions, SyntheticSessionsConfig
from compress.sessions.tables import TABLES
from compress.sessions.tables.base import Teacher
from model_store.bundle import Bundle
from model_store.item_vectors import DenseTable, Int8Table, ItemVectors
from model_store.manifest import Resources, SessionCard
from model_store.store import OpenedVersion
from service.assembly import assemble, kind_of
from service.item_ids import ItemIds
from service.ranking import NO_LIMITS, Ranking
from service.schemas import convert_rank, parse_recommend
from service.scorer import MOST_AT_ONCE
from service.session_ranking import SessionRanking
from tests.compress.sessions.tracing import traced_once

DIM = 16
JUDGED = 60
pytestmark = pytest.mark.slow

KINDS = ("dense", "int8", "rq", "pq", "rules-and-own")


@pytest.fixture(scope="module", autouse=True)
def _traced_once() -> Iterator[None]:
    # The coded tables have one encoder, as drawn.
    with traced_once():
        yield


@pytest.fixture(scope="module")
def data() -> SessionData:
    """Made-up sessions, some of their test items unseen in training."""
    return SyntheticSessions(SyntheticSessionsConfig(sessions=500, items=90)).parts()


def table_of(kind: str, vectors: torch.Tensor) -> ItemVectors | None:
    """Item vectors in one of the forms."""
    if kind == "dense":
        return DenseTable(vectors.numpy())
    if kind == "int8":
        return Int8Table.of(vectors.numpy())
    if kind not in TABLES:
        return None
    method, draw = TABLES[kind](), torch.Generator().manual_seed(1)
    options = method.Config.model_validate({"codes": "4x16"})
    teacher = Teacher(vectors, torch.ones(len(vectors)), None)
    return method.build(teacher, options, draw, Silent()).export()


@pytest.fixture(scope="module", params=KINDS)
def bundle(
    request: pytest.FixtureRequest, data: SessionData, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """A ranker with drawn weights and a table of that kind; or a parameter-free one."""
    torch.manual_seed(3)
    free = request.param not in {"dense", "int8", *TABLES}
    ranker_kind = SESSION_RANKERS[request.param if free else "sasrec"]
    ranker = ranker_kind(ranker_kind.Config() if free else ranker_kind.Config(dim=DIM))
    ranker.fit(data.train)
    vectors = torch.nn.functional.normalize(torch.randn(data.train.items, DIM), dim=1)
    card = SessionCard(
        ranker="sasrec", table="rq", seed=1, dense=Resources(flops=0), coded=Resources(flops=0)
    )
    return export(
        ranker,
        table_of(request.param, vectors),
        tmp_path_factory.mktemp("sessions") / "bundle",
        name="session",
        ids=data.train.ids,
        examples=data.validation,
        card=card,
        options=SessionExport(golden_requests=4, golden_candidates=20),
    )


@pytest.fixture(scope="module")
def ranking(bundle: Bundle) -> Ranking:
    """The bundle as the service holds it; its golden scores are checked on the way."""
    opened = OpenedVersion(bundle=bundle, name="session", version="1")
    table = kind_of(bundle.manifest).read_table(bundle, ItemIds(bundle.item_ids()))
    return assemble(opened, table, tolerance=1e-4)


def test_sessions_encoded_together_come_to_the_same_bits(bundle: Bundle, ranking: Ranking) -> None:
    """Whatever came with them: an answer must not depend on what others asked."""
    assert isinstance(ranking, SessionRanking)
    encoder, spec = ranking._encoder, ranking.spec
    rng = np.random.default_rng(2)
    for length in range(spec.length + 1):
        sessions = rng.standard_normal((MOST_AT_ONCE, length, spec.dim), np.float32)
        alone = [encoder.encode(session[None])[0] for session in sessions]
        for count in range(2, len(sessions) + 1):
            for one, other in zip(encoder.encode(sessions[:count]), alone, strict=False):
                for way, expected in zip(one, other, strict=True):
                    assert way is expected is None or np.array_equal(way, expected)


def test_ranks_are_those_of_the_service(
    bundle: Bundle, ranking: Ranking, data: SessionData
) -> None:
    """A target's rank offline is its place among all items that the service scores."""
    ids = list(data.train.ids)
    offline = evaluate(bundle, data.test, Silent()).ranks[:JUDGED]
    online = []
    for place in range(JUDGED):
        session = [ids[row] for row in data.test.sessions[place] if row >= 0]
        request = convert_rank({"session_items": session, "candidates": ids})
        scores = ranking.score(ranking.prepare(request, NO_LIMITS))
        target = data.test.targets[place]
        online.append((scores >= scores[target] - 1e-5).sum() if target >= 0 else np.inf)

    # Scores that differ in their last digit may change places with a neighbour.
    assert np.mean(np.array(online) == offline) > 0.9
    assert np.abs(np.array(online) - offline)[np.isfinite(offline)].max() <= 3


def test_recommending_is_ranking_the_catalogue(ranking: Ranking, data: SessionData) -> None:
    """/recommend answers with the first of what /rank makes of all items, less the excluded."""
    ids = list(data.train.ids)
    session = [ids[row] for row in data.test.sessions[7] if row >= 0]
    rank = convert_rank({"session_items": session, "candidates": ids, "top_k": 30})
    ranked = ranking.rank(ranking.prepare(rank, NO_LIMITS))
    excluded = set(session)
    asked = {"session_items": session, "exclude": session, "top_k": 10}

    best = ranking.rank(
        ranking.prepare_best(parse_recommend(json.dumps(asked).encode()), NO_LIMITS)
    )

    assert list(best.ids) == [item for item in ranked.ids if item not in excluded][:10]
