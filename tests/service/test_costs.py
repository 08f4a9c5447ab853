"""What a ranking is predicted to cost, by a clock that tells what the test says."""

from collections.abc import Iterator, Sequence
from itertools import chain
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
SLOWER = 2 * (RUNS // 2)  # of `clock_of`, preparing and ranking in the median run


def clock_of(*runs: Sequence[float]) -> Iterator[float]:
    """A clock's readings around works of so many microseconds; each run is repeated, slower."""
    return clock_of_each(*([us + slower for us in run] for run in runs for slower in range(RUNS)))


def clock_of_each(*runs: Sequence[float]) -> Iterator[float]:
    """The same, no run repeated."""
    now = 0.0
    for us in chain(*runs):
        yield now
        now += us * US
        yield now


def costs_of(ranking: Ranking, requests: Sequence[RankRequest], *runs: Sequence[float]) -> Costs:
    """The costs where each preparing and each ranking takes so long."""
    readings = clock_of(*runs)
    costs = measured(ranking, requests, lambda: next(readings))
    assert next(readings, None) is None
    return costs


async def test_costs_are_a_line_through_one_candidate_and_all(serve: Serve) -> None:
    """Preparing goes by bytes, ranking by candidates; each by the requests that bring more."""
    three = RankRequest(
        candidates=CandidateColumns(["i1", "i2", "i3"], {"price": [1.0, None, 2.0]})
    )
    more_bytes = len(b',"i2","i3"') + len(b",null,2.0")
    async with serve() as client:
        ranking = client.service.parts.loader.resolve("ctr")

        costs = costs_of(
            ranking,
            [RankRequest(candidates=["i1"]), three, RankRequest(candidates=[])],
            (40, 30, 40, 30, 40, 30, 78, 36),  # preparing and ranking the first, then all of it
        )

    assert costs.fixed_us == pytest.approx(70 + SLOWER)
    assert costs.byte_us == pytest.approx(38 / more_bytes)
    assert costs.candidate_us == pytest.approx(6 / 2)
    assert costs.catalogue_us == pytest.approx(70 + SLOWER + 3 * len(ITEMS))


async def test_a_machine_that_pauses_or_changes_its_speed_is_not_a_slow_ranking(
    serve: Serve,
) -> None:
    """A pause in every run, each in another request; and from the third run on half the speed."""
    requests = [RankRequest(candidates=["i1", "i2", "i3"]) for _ in range(2 * RUNS)]
    of_run = [40.0, 30.0, 40.0, 36.0] * len(requests)
    runs = [[us * (1 if run < 2 else 2) for us in of_run] for run in range(RUNS)]
    for run, readings in enumerate(runs):
        readings[8 * run + 3] += 3000.0
    clock = clock_of_each(*runs)
    async with serve() as client:
        ranking = client.service.parts.loader.resolve("ctr")

        costs = measured(ranking, requests, lambda: next(clock))

    assert costs.fixed_us == pytest.approx(2 * 70)
    assert costs.candidate_us == pytest.approx(2 * 6 / 2)


async def test_noise_makes_no_cost_negative(serve: Serve) -> None:
    """More candidates that took less time by chance do not make long requests look free."""
    async with serve() as client:
        ranking = client.service.parts.loader.resolve("ctr")

        costs = costs_of(ranking, [RankRequest(candidates=["i1", "i2"])], (50, 20, 40, 10))

    assert costs == Costs(pytest.approx(70 + SLOWER), 0.0, 0.0, pytest.approx(70 + SLOWER))


async def test_the_whole_catalogue_is_measured_by_itself(
    serve: Serve, store: Store, tmp_path: Path
) -> None:
    """A session ranker finds the best of it otherwise than it scores candidates."""
    store.publish(World().write(tmp_path / "session").root, "session")
    request = RankRequest(candidates=IDS, session_items=IDS[:1])
    async with serve(models=("session@1",)) as client:
        ranking = client.service.parts.loader.resolve("session")

        costs = costs_of(ranking, [request], (5, 2, 5, 2), (300,))

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
