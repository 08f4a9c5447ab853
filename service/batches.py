"""Requests that wait at the same time, ranked one after the other.

What comes between two rankings, parsing, look-ups and the network, pushes their code and weights
out of the processor's caches: right after itself a graph takes as little as half of the time.
Nobody is waited for: a batch is what has arrived by the same turn of the event loop.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from service.ranking import Prepared, Ranked, Ranking
from service.stopwatch import Stopwatch

MOST: Final = 32  # the first is answered after the last was ranked


class _Waiting(NamedTuple):
    """A request that is ready to be ranked.

    Attributes:
        outcome: what came of it, or why nothing did.
    """

    ranking: Ranking
    prepared: Prepared
    clock: Stopwatch
    outcome: asyncio.Future[Ranked | Exception]


class Batches:
    """Ranks what waits, at the next turn of the event loop or when there is enough of it."""

    def __init__(self) -> None:
        self._waiting: list[_Waiting] = []

    @property
    def waiting(self) -> bool:
        """Whether somebody waits: what is ranked now, alone, comes between those before and it."""
        return bool(self._waiting)

    async def rank(self, ranking: Ranking, prepared: Prepared, clock: Stopwatch) -> Ranked:
        """`Ranking.rank`, among whatever else waits; its time is told to ``clock``.

        Raises:
            BadScores: as `Ranking.rank`.
            DeadlineExceeded: the caller's budget was spent while it waited.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(ranking, prepared, clock, loop.create_future())
        self._waiting.append(waiting)
        if len(self._waiting) >= MOST:
            self._settle()
        elif len(self._waiting) == 1:
            loop.call_soon(self._settle)
        outcome = await waiting.outcome
        if isinstance(outcome, Exception):
            try:
                raise outcome
            finally:  # it holds this frame, which must not hold it: a ranking goes when replaced
                del outcome, waiting
        return outcome

    def _settle(self) -> None:
        waiting, self._waiting = self._waiting, []
        _share(waiting)
        waiting.reverse()
        while waiting:  # not one of them is held by an error of another's
            _rank(waiting.pop())


def _share(waiting: Sequence[_Waiting]) -> None:
    """Compute what each ranking can for several of its requests at once."""
    batches: dict[Ranking, list[_Waiting]] = defaultdict(list)
    for each in waiting:
        batches[each.ranking].append(each)
    for ranking, batch in batches.items():
        if len(batch) > 1:
            _lap(batch, "queue")
            with suppress(Exception):  # whoever is to blame meets it again, alone
                ranking.share([each.prepared for each in batch])
            _lap(batch, "score")


def _lap(batch: Sequence[_Waiting], stage: str) -> None:
    for each in batch:
        each.clock.lap(stage)


def _rank(waiting: _Waiting) -> None:
    ranking, prepared, clock, outcome = waiting
    clock.lap("queue")
    if outcome.done():  # cancelled: nobody waits any more
        return
    try:
        clock.check()
        ranked = ranking.rank(prepared)
    except Exception as error:  # noqa: BLE001  it is for who waits
        outcome.set_result(error)
        del waiting, outcome  # the error holds this frame
    else:
        clock.lap("score")
        outcome.set_result(ranked)
