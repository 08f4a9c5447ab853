"""What a ranking will cost, told before it is made: whether the event loop can wait for it.

A line through two points, measured once when a bundle is loaded: its golden requests whole, and
with their first candidate alone. FLOPs do not tell: look-ups and features cost more than a slim
graph.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.candidates import NO_LIMITS
from service.ranking import Costs, Ranking, count_of
from service.schemas import (
    CandidateColumns,
    RankRequest,
    RecommendRequest,
    parse_rank,
    parse_rank_raw,
)

RUNS: Final = 5
Clock = Callable[[], float]
Floats = NDArray[np.float64]


def measured(
    ranking: Ranking, requests: Sequence[RankRequest], clock: Clock = time.thread_time
) -> Costs:
    """What a ranking's work costs; that of candidates is 0 where none are there to measure with.

    Args:
        ranking: it has run warm.
        requests: golden ones.
        clock: seconds that this thread has worked.
    """
    whole = [request for request in requests if count_of(request)]
    costs = _of_candidates(ranking, whole, clock) if whole else Costs()
    if ranking.manifest.session is None:
        return costs._replace(catalogue_us=costs.fixed_us + ranking.items * costs.candidate_us)
    wanted = RecommendRequest(session_items=whole[-1].session_items if whole else None)
    return costs._replace(
        catalogue_us=min(_finding_us(ranking, wanted, clock) for _ in range(RUNS))
    )


def _of_candidates(ranking: Ranking, whole: Sequence[RankRequest], clock: Clock) -> Costs:
    """Each request in turn with its first candidate alone, as the machine's speed comes and goes.

    Medians over runs and requests: a pause is not taken for a slow ranking.
    """
    bodies = [msgspec.json.encode(request) for request in whole]
    first = [msgspec.json.encode(_first_alone(request)) for request in whole]
    runs = [
        [[_once(ranking, body, clock) for body in both] for both in zip(first, bodies, strict=True)]
        for _ in range(RUNS)
    ]
    few, many = np.moveaxis(np.array(runs), 2, 0)  # (RUNS, requests, 2) each
    more_bytes = [len(body) - len(one) for one, body in zip(first, bodies, strict=True)]
    more_candidates = [count_of(request) - 1 for request in whole]
    prepare_us, rank_us = np.moveaxis(many - few, -1, 0)
    return Costs(
        fixed_us=float(np.median(few.sum(-1))),
        byte_us=_slope(prepare_us, more_bytes),
        candidate_us=_slope(rank_us, more_candidates),
    )


def _finding_us(ranking: Ranking, wanted: RecommendRequest, clock: Clock) -> float:
    ranking.forget()
    best = ranking.prepare_best(wanted, NO_LIMITS)
    return _us(lambda: ranking.rank(best), clock)[0]


def _once(ranking: Ranking, body: bytes, clock: Clock) -> tuple[float, float]:
    """Microseconds of preparing and of ranking."""
    # As new: strings that have been looked up before know their hash, rankings their sessions.
    ranking.forget()
    request = parse_rank_raw(body) if ranking.reads_raw else None
    given = request or parse_rank(body)
    prepare_us, prepared = _us(lambda: ranking.prepare_any(given, NO_LIMITS), clock)
    if prepared is None:
        whole = parse_rank(body)
        prepare_us, prepared = _us(lambda: ranking.prepare(whole, NO_LIMITS), clock)
    rank_us, _ = _us(lambda: ranking.rank(prepared), clock)
    return prepare_us, rank_us


def _us(work: Callable[[], Any], clock: Clock) -> tuple[float, Any]:
    began = clock()
    made = work()
    return (clock() - began) * 1e6, made


def _slope(us: Floats, steps: Sequence[int]) -> float:
    """What a step takes, by what the steps of each request took in each run (RUNS, requests)."""
    taken = np.array(steps) > 0
    if not taken.any():
        return 0.0
    return max(0.0, float(np.median(us[:, taken] / np.array(steps)[taken])))


def _first_alone(request: RankRequest) -> RankRequest:
    given = request.candidates
    if not isinstance(given, CandidateColumns):
        return msgspec.structs.replace(request, candidates=given[:1])
    features = {name: column and column[:1] for name, column in (given.features or {}).items()}
    return msgspec.structs.replace(request, candidates=CandidateColumns(given.ids[:1], features))
