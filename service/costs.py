"""What a ranking will cost, told before it is made: whether the event loop can wait for it.

A line through two points, measured once when a bundle is loaded: its golden requests whole, and
with their first candidate alone. FLOPs do not tell: look-ups and features cost more than a slim
graph.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from service.candidates import NO_LIMITS
from service.ranking import Costs, Ranking, count_of
from service.schemas import (
    CandidateColumns,
    RankRequest,
    RecommendRequest,
    parse_rank,
    parse_rank_raw,
)

RUNS: Final = 3
Clock = Callable[[], float]


class _Point(NamedTuple):
    """Means over requests: microseconds of preparing and of ranking, and what they brought."""

    prepare_us: float
    rank_us: float
    bytes: float
    candidates: float


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
    few = _least(ranking, [_first_alone(each) for each in whole], clock)
    many = _least(ranking, whole, clock)
    return Costs(
        fixed_us=few.prepare_us + few.rank_us,
        byte_us=_slope(many.prepare_us - few.prepare_us, many.bytes - few.bytes),
        candidate_us=_slope(many.rank_us - few.rank_us, many.candidates - few.candidates),
    )


def _finding_us(ranking: Ranking, wanted: RecommendRequest, clock: Clock) -> float:
    ranking.forget()
    best = ranking.prepare_best(wanted, NO_LIMITS)
    return _us(lambda: ranking.rank(best), clock)[0]


def _least(ranking: Ranking, requests: Sequence[RankRequest], clock: Clock) -> _Point:
    """The least of some runs over all of them, so that caches are as cold as among others."""
    bodies = [msgspec.json.encode(request) for request in requests]
    runs = [[_once(ranking, body, clock) for body in bodies] for _ in range(RUNS)]
    prepare_us = min(sum(us for us, _ in run) for run in runs)
    rank_us = min(sum(us for _, us in run) for run in runs)
    count = len(requests)
    return _Point(
        prepare_us / count,
        rank_us / count,
        sum(map(len, bodies)) / count,
        sum(map(count_of, requests)) / count,
    )


def _once(ranking: Ranking, body: bytes, clock: Clock) -> tuple[float, float]:
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


def _slope(us: float, steps: float) -> float:
    return max(0.0, us) / steps if steps else 0.0


def _first_alone(request: RankRequest) -> RankRequest:
    given = request.candidates
    if not isinstance(given, CandidateColumns):
        return msgspec.structs.replace(request, candidates=given[:1])
    features = {name: column and column[:1] for name, column in (given.features or {}).items()}
    return msgspec.structs.replace(request, candidates=CandidateColumns(given.ids[:1], features))
