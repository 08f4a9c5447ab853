"""Requests that wait at the same time, ranked one after the other.

What comes between two rankings, parsing, look-ups and the network, pushes their code and weights
out of the processor's caches: a graph that runs right after itself takes half of the time. Nobody
is waited for: a batch is what has arrived by the same turn of the event loop.
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
    """A request that is ready to be ranked."""

    ranking: Ranking
    prepared: Prepared
    clock: Stopwatch
    ranked: asyncio.Future[Ranked]


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
        ranked: asyncio.Future[Ranked] = loop.create_future()
        self._waiting.append(_Waiting(ranking, prepared, clock, ranked))
        if len(self._waiting) >= MOST:
            self._settle()
        elif len(self._waiting) == 1:
            loop.call_soon(self._settle)
        return await ranked

    def _settle(self) -> None:
        waiting, self._waiting = self._waiting, []
        _share(waiting)
        for each in waiting:
            each.clock.lap("queue")
            if each.ranked.done():  # cancelled: nobody waits any more
                continue
            try:
                each.clock.check()
                ranked = each.ranking.rank(each.prepared)
            except Exception as error:  # noqa: BLE001  it is for who waits
                each.ranked.set_exception(error)
            else:
                each.clock.lap("score")
                each.ranked.set_result(ranked)


def _share(waiting: Sequence[_Waiting]) -> None:
    """Compute what rankings can for several requests at once: a part of each one's score."""
    batches: dict[Ranking, list[Prepared]] = defaultdict(list)
    for each in waiting:
        each.clock.lap("queue")
        batches[each.ranking].append(each.prepared)
    for ranking, batch in batches.items():
        if len(batch) > 1:
            with suppress(Exception):  # whoever is to blame meets it again, alone
                ranking.share(batch)
    for each in waiting:
        each.clock.lap("score")
