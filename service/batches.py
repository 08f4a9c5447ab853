"""Requests that wait at the same time, ranked one after the other.

What comes between two rankings, parsing, look-ups and the network, pushes their code and weights
out of the processor's caches: right after itself a graph takes as little as half of the time.
Nobody is waited for: a batch is what has arrived by the same turn of the event loop.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from service.ranking import Prepared, Ranked, Ranking
from service.stopwatch import QUEUE, SCORE, Stopwatch


class _Asked(NamedTuple):
    """A request that is ready to be ranked.

    Attributes:
        outcome: what came of it, or why nothing did.
    """

    ranking: Ranking
    prepared: Prepared
    clock: Stopwatch
    outcome: asyncio.Future[Ranked | Exception]


class Batches:
    """Ranks what waits, once this turn of the event loop is over or there is enough of it.

    Args:
        most: how much is enough: the first is answered after the last was ranked.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._waiting: list[_Asked] = []

    @property
    def waiting(self) -> bool:
        """Whether somebody waits: what is ranked alone now cools the caches that they share."""
        return bool(self._waiting)

    async def rank(self, ranking: Ranking, prepared: Prepared, clock: Stopwatch) -> Ranked:
        """`Ranking.rank`, among whatever else waits; its time is told to ``clock``.

        Raises:
            BadScores: as `Ranking.rank`.
            DeadlineExceeded: the caller's budget was spent while it waited.
        """
        loop = asyncio.get_running_loop()
        asked = _Asked(ranking, prepared, clock, loop.create_future())
        self._waiting.append(asked)
        if len(self._waiting) >= self.most:
            self._settle()  # and again when the loop gets there, with what has come by then
        elif len(self._waiting) == 1:
            loop.call_soon(self._settle)
        outcome = await asked.outcome
        if isinstance(outcome, Exception):
            try:
                raise outcome
            finally:  # an error that its own traceback leads to keeps a ranking that was replaced
                del outcome, asked
        return outcome

    def _settle(self) -> None:
        batch, self._waiting = self._waiting, []
        _share(batch)
        batch.reverse()
        while batch:  # popped, as the traceback of an error leads here, and to what is left
            _rank(batch.pop())


def _share(every: Sequence[_Asked]) -> None:
    """Compute what each ranking can for several of its requests at once."""
    batches: dict[Ranking, list[_Asked]] = defaultdict(list)
    for each in every:
        batches[each.ranking].append(each)
    for ranking, batch in batches.items():
        if len(batch) > 1:
            _lap(batch, QUEUE)
            with suppress(Exception):  # whoever is to blame meets it again, alone
                ranking.share([each.prepared for each in batch])
            _lap(batch, SCORE)


def _lap(batch: Sequence[_Asked], stage: int) -> None:
    for each in batch:
        each.clock.lap(stage)


def _rank(asked: _Asked) -> None:
    ranking, prepared, clock, outcome = asked
    clock.lap(QUEUE)
    if outcome.done():  # cancelled: nobody waits any more
        return
    try:
        clock.check()
        ranked = ranking.rank(prepared)
    except Exception as error:  # noqa: BLE001  it is for who waits
        outcome.set_result(error)
        del asked, outcome  # its traceback leads to this frame
    else:
        clock.lap(SCORE)
        outcome.set_result(ranked)
