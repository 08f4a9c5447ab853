"""Requests that wait at the same time: ranked one after the other, and nobody at another's cost."""

import asyncio
import gc
import math
import weakref
from collections.abc import Awaitable, Sequence
from typing import Any

import pytest

from service.batches import Batches
from service.errors import BadScores, DeadlineExceeded
from service.stopwatch import Stopwatch

pytestmark = pytest.mark.anyio
MOST = 32


class Told:
    """Stands in for a ranking, and tells what it was asked in which order."""

    def __init__(self, *, failing: Sequence[Any] = (), shares: Exception | None = None) -> None:
        self._failing, self._shares = failing, shares
        self.asked: list[Any] = []

    def share(self, batch: Sequence[Any]) -> None:
        """Several at once."""
        self.asked.append([*batch])
        if self._shares is not None:
            raise self._shares

    def rank(self, prepared: Any) -> Any:
        """One alone."""
        self.asked.append(prepared)
        if prepared in self._failing:
            raise BadScores(f"{prepared} has no score")
        return f"ranked {prepared}"


def ranked(batches: Batches, ranking: Any, name: Any, clock: Stopwatch | None = None) -> Any:
    """A request that is ready, as a task."""
    return asyncio.create_task(batches.rank(ranking, name, clock or Stopwatch()))


async def all_of(*tasks: Any) -> list[Any]:
    """What came of all of them, errors too; one that waits for ever fails the test."""
    async with asyncio.timeout(10):
        return await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_waits_at_one_turn_of_the_loop_is_ranked_together() -> None:
    """What they share first; then each in the order in which they came. Later ones wait anew."""
    batches, ranking, other = Batches(MOST), Told(), Told()
    first = [ranked(batches, ranking, name) for name in "abc"] + [ranked(batches, other, "d")]

    assert await all_of(*first) == [f"ranked {name}" for name in "abcd"]
    assert not batches.waiting
    assert await ranked(batches, ranking, "e") == "ranked e"
    assert ranking.asked == [["a", "b", "c"], "a", "b", "c", "e"]
    assert other.asked == ["d"]


async def test_a_batch_has_an_end() -> None:
    """Many are ranked as soon as there are enough: the first must not wait for all of them."""
    batches, ranking = Batches(MOST), Told()
    every = [*range(2 * MOST + 1)]

    await all_of(*(ranked(batches, ranking, name) for name in every))

    shared = [asked for asked in ranking.asked if isinstance(asked, list)]
    assert shared == [every[:MOST], every[MOST : 2 * MOST]]
    assert [asked for asked in ranking.asked if not isinstance(asked, list)] == every


@pytest.mark.parametrize(
    "error", [None, BadScores("no number"), IndexError("a bug"), StopIteration()]
)
async def test_what_fails_fails_alone(error: Exception | None) -> None:
    """Whatever goes wrong with what several share: who is to blame meets it again, alone."""
    batches, ranking = Batches(MOST), Told(failing=["b"], shares=error)

    found = await all_of(*(ranked(batches, ranking, name) for name in "abc"))

    assert [f"{each}" for each in found] == ["ranked a", "b has no score", "ranked c"]
    assert isinstance(found[1], BadScores)


async def test_an_iteration_that_ends_too_early_leaves_nobody_waiting() -> None:
    """A bug, which no future takes as an error."""
    batches, ranking = Batches(MOST), Told()

    def stop(_: Any) -> Any:
        raise StopIteration

    ranking.rank = stop  # type: ignore[method-assign]
    found = await all_of(*(ranked(batches, each, "a") for each in (ranking, Told())))

    assert isinstance(found[0], RuntimeError)
    assert found[1] == "ranked a"


class Held:
    """What a request was prepared to."""


async def failed(asked: Awaitable[Any]) -> bool:
    """Whether it did, told as an endpoint tells it."""
    try:
        await asked
    except BadScores:
        return True
    return False


async def test_an_error_holds_nothing_once_it_is_told() -> None:
    """Neither its own request nor its neighbours': a ranking is to go as soon as it is replaced."""
    batches, bad, good = Batches(MOST), Held(), Held()
    ranking = Told(failing=[bad])
    ranking.share = lambda _: None  # type: ignore[method-assign]
    gone = [weakref.ref(each) for each in (bad, good, ranking)]
    gc.disable()
    try:
        asked = [failed(batches.rank(ranking, each, Stopwatch())) for each in (good, bad)]
        assert await all_of(*asked) == [False, True]
        del asked, bad, good, ranking
        assert [ref() for ref in gone] == [None, None, None]
    finally:
        gc.enable()


async def test_who_has_gone_is_not_ranked() -> None:
    """A task that was cancelled, as when the worker ends: the others go on."""
    batches, ranking = Batches(MOST), Told()
    tasks = [ranked(batches, ranking, name) for name in "abc"]
    await asyncio.sleep(0)  # a turn of the loop: now they wait
    assert batches.waiting
    tasks[1].cancel()

    found = await all_of(*tasks)

    assert isinstance(found[1], asyncio.CancelledError)
    assert [found[0], found[2]] == ["ranked a", "ranked c"]
    assert "b" not in ranking.asked


async def test_a_deadline_that_is_over_while_a_request_waits_is_told() -> None:
    """It is not ranked for nothing; nor does it take others along."""
    batches, ranking, late = Batches(MOST), Told(), Stopwatch()
    late.deadline = -math.inf
    found = await all_of(
        ranked(batches, ranking, "a"),
        ranked(batches, ranking, "b", late),
    )

    assert found[0] == "ranked a"
    assert isinstance(found[1], DeadlineExceeded)
    assert ranking.asked == [["a", "b"], "a"]


async def test_time_goes_to_the_request_that_took_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting is queueing; a score is what all share, once each, and what is one's own."""
    batches, ranking, clocks = Batches(MOST), Told(), [Stopwatch(), Stopwatch()]
    now = 0.0

    def later(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("service.stopwatch.perf_counter", lambda: now)
    monkeypatch.setattr(ranking, "share", lambda _: later(1.0))
    monkeypatch.setattr(ranking, "rank", lambda _: later(10.0))
    for clock in (*clocks, other_clock := Stopwatch()):
        clock._last = -100.0

    await all_of(
        *(ranked(batches, ranking, None, clock) for clock in clocks),
        ranked(batches, Told(), None, other_clock),
    )

    assert [clock.laps for clock in clocks] == [
        [100.0, 0.0, 0.0, 11.0, 0.0],
        [110.0, 0.0, 0.0, 11.0, 0.0],
    ]
    assert other_clock.laps == [121.0, 0.0, 0.0, 0.0, 0.0]  # of another model: it shared nothing
