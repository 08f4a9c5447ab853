"""What a ranking is predicted to cost, by a clock that tells what the test says."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from model_store.store import Store
from service.costs import RUNS, measured
from service.ranking import Costs, Ranking
from service.schemas import CandidateColumns, RankRequest, RecommendRequest
from tests.service.conftest import ITEMS, Serve
from tests.service.sessions import IDS, World

pytestmark = pytest.mark.anyio

US = 1e-6


def clock_of(*runs: Sequence[float]) -> Iterator[float]:
    """A clock's readings around works of so many microseconds; each run is repeated, slower."""
    now = 0.0
    for run in runs:
        for slower in range(RUNS):
            for us in run:
                yield now
                now += (us + slower) * US
                yield now


def costs_of(ranking: Ranking, requests: Sequence[RankRequest], *runs: Sequence[float]) -> Costs:
    """The costs where each preparing and each ranking takes so long."""
    readings = clock_of(*runs)
    costs = measured(ranking, requests, lambda: next(readings))
    assert next(readings, None) is None
    return costs


async def test_costs_are_a_line_through_one_candidate_and_all(serve: Serve) -> None:
    """Means over the requests: preparing goes by bytes, ranking by candidates."""
    three = RankRequest(
        candidates=CandidateColumns(["i1", "i2", "i3"], {"price": [1.0, None, 2.0]})
    )
    more_bytes = len(b',"i2","i3"') + len(b",null,2.0")
    async with serve() as client:
        ranking = client.service.parts.loader.resolve("ctr")

        costs = costs_of(
            ranking,
            [RankRequest(candidates=["i1"]), three, RankRequest(candidates=[])],
            (40, 10, 60, 30),
            (40, 10, 98, 36),
        )

    assert costs.fixed_us == pytest.approx(50 + 20)
    assert costs.byte_us == pytest.approx(38 / more_bytes)
    assert costs.candidate_us == pytest.approx(6 / 2)
    assert costs.catalogue_us == pytest.approx(70 + 3 * len(ITEMS))


async def test_noise_makes_no_cost_negative(serve: Serve) -> None:
    """More candidates that took less time by chance do not make long requests look free."""
    async with serve() as client:
        ranking = client.service.parts.loader.resolve("ctr")

        costs = costs_of(ranking, [RankRequest(candidates=["i1", "i2"])], (50, 20), (40, 10))

    assert costs == Costs(pytest.approx(70), 0.0, 0.0, pytest.approx(70))


async def test_the_whole_catalogue_is_measured_by_itself(
    serve: Serve, store: Store, tmp_path: Path
) -> None:
    """A session ranker finds the best of it otherwise than it scores candidates."""
    store.publish(World().write(tmp_path / "session").root, "session")
    request = RankRequest(candidates=IDS, session_items=IDS[:1])
    async with serve(models=("session@1",)) as client:
        ranking = client.service.parts.loader.resolve("session")

        costs = costs_of(ranking, [request], (5, 2), (5, 2), (300,))

    assert costs.catalogue_us == pytest.approx(300)


async def test_the_whole_catalogue_is_measured_without_candidates_too(
    serve: Serve, store: Store, tmp_path: Path
) -> None:
    """A session ranker's bundle may have golden requests without any, or none at all."""
    store.publish(World().write(tmp_path / "session").root, "session")
    async with serve(models=("session@1",)) as client:
        ranking = client.service.parts.loader.resolve("session")

        for requests in ([], [RankRequest(candidates=[])]):
            costs = measured(ranking, requests)

            assert costs.catalogue_us > 0
            assert costs._replace(catalogue_us=0.0) == Costs()


@pytest.mark.parametrize("requests", [[], [RankRequest(candidates=[])]])
async def test_nothing_to_measure_with_predicts_nothing(
    serve: Serve, requests: Sequence[RankRequest]
) -> None:
    """A bundle without golden candidates is served, all on the event loop."""
    async with serve() as client:
        ranking = client.service.parts.loader.resolve("ctr")

        assert measured(ranking, requests) == Costs()


async def test_predictions_add_up_what_a_request_brings(serve: Serve) -> None:
    """Its bytes and its candidates, in whatever shape; or the whole catalogue."""
    async with serve() as client:
        ranking = client.service.parts.loader.resolve("ctr")
        ranking.costs = Costs(1000.0, 0.5, 3.0, 77.0)

        assert ranking.predicted_us(RankRequest(candidates=["a", "b"]), 10) == 1000 + 5 + 6
        assert (
            ranking.predicted_us(RankRequest(candidates=CandidateColumns(["a"])), 20)
            == 1000 + 10 + 3
        )
        assert ranking.predicted_us(RecommendRequest(), 10) == 77.0


async def test_a_loaded_ranking_has_been_measured(serve: Serve) -> None:
    """By the golden requests of its bundle."""
    async with serve() as client:
        assert client.service.parts.loader.resolve("ctr").costs.fixed_us > 0
