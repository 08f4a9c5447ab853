"""How long each thing that a worker does beside a request keeps its event loop, in CPU time.

    python -m benchmarks.pauses STORE NAME@ALIAS

The whole application answers bodies in process. CPU time hardly depends on what else the machine
does, so this tells what could decide p99, and how often; `benchmarks.disturb` tells what does.
"""

import argparse
import asyncio
import gc
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from benchmarks.rank_parts import asked
from benchmarks.steady.bodies import Mix, sources_of
from model_store.store import OpenedVersion, open_store
from service import log
from service.app import Service, create_app
from service.settings import Settings

BODIES = 100
BIG = 2000


def drawn(opened: OpenedVersion, model: str, form: str, candidates: int) -> list[bytes]:
    """Bodies of one size."""
    source = sources_of(opened.bundle, model, BIG, forms=[form])[:1]
    mix = Mix(source, (candidates, candidates), seed=1)
    return [mix.draw().partition(b"\r\n\r\n")[2] for _ in range(BODIES)]


@asynccontextmanager
async def running(app: Service) -> AsyncIterator[None]:
    """The application between its start and its stop, as a server sees to them."""
    told, replied = asyncio.Queue[Any](), asyncio.Queue[Any]()
    life = asyncio.create_task(app({"type": "lifespan"}, told.get, replied.put))
    for event in ("startup", "shutdown"):
        await told.put({"type": f"lifespan.{event}"})
        if (await replied.get())["type"] != f"lifespan.{event}.complete":
            raise SystemExit(f"{event} failed")
        if event == "startup":
            yield
    await life


async def taken_ms(repeats: int, work: Callable[[int], Awaitable[object]]) -> list[float]:
    """CPU milliseconds of all threads, each time."""
    found = []
    for number in range(repeats):
        begun = time.process_time_ns()
        await work(number)
        found.append((time.process_time_ns() - begun) / 1e6)
    return found


@contextmanager
def collections() -> Iterator[list[float]]:
    """CPU milliseconds of each collection of garbage inside the block."""
    found: list[float] = []
    begun = 0

    def note(phase: str, _: object) -> None:
        nonlocal begun
        if phase == "start":
            begun = time.thread_time_ns()
        else:
            found.append((time.thread_time_ns() - begun) / 1e6)

    gc.callbacks.append(note)
    try:
        yield found
    finally:
        gc.callbacks.remove(note)


def full_collection_ms() -> float:
    """CPU milliseconds of one over everything that is not frozen."""
    with collections() as found:
        gc.collect()
    return found[0]


def row(what: str, when: str, found: Sequence[float]) -> str:
    """A line of the table."""
    return f"| {what} | {when} | {statistics.median(found):.2f} | {max(found):.2f} |"


async def told(store: Path, model: str, candidates: int, requests: int) -> list[str]:
    """The table's lines."""
    opened = open_store(str(store)).open(model)
    settings = Settings(store=str(store), models=(model,), request_log=False)
    logging = settings.model_copy(update={"request_log": True})
    forms = ["ids"] if opened.bundle.manifest.session else ["ids", "rows"]
    app, with_log = create_app(settings), create_app(logging)
    lines = []
    async with running(app), AsyncExitStack() as stack:
        usual = drawn(opened, model, "ids", candidates)

        def asking(of: Service, bodies: Sequence[bytes]) -> Callable[[int], Awaitable[object]]:
            return lambda number: asked(of, bodies[number % BODIES])

        await taken_ms(BODIES, asking(app, usual))
        lines.append(row("full collection", "at start, not frozen", [full_collection_ms()]))
        gc.freeze()
        with collections() as found:
            quiet = await taken_ms(requests, asking(app, usual))
        each = f"every {requests // max(1, len(found)):,} requests"
        lines.append(row("collection", each, found or [0.0]))
        lines.append(row("full collection", "after that, frozen", [full_collection_ms()]))
        lines.append(row(f"{candidates} candidates, ids", "request", quiet))
        for form in forms:
            big = await taken_ms(BODIES, asking(app, drawn(opened, model, form, BIG)))
            lines.append(row(f"{BIG:,} candidates, {form}", "request", big))
        loaded = await taken_ms(1, lambda _: stack.enter_async_context(running(with_log)))
        lines.append(row("a version loaded, in threads", "activation", loaded))
        lines.append(row("full collection", "after that", [full_collection_ms()]))
        # In turn: what the machine does besides hits both alike.
        without, logged = asking(app, usual), asking(with_log, usual)
        turns = await taken_ms(requests, lambda number: (without, logged)[number % 2](number // 2))
        more = statistics.median(turns[1::2]) - statistics.median(turns[::2])
        lines.append(f"| line of the log | request | {more:.2f} | |")
        parts = app.parts

        async def render(_: int) -> None:
            parts.metrics.render()

        lines.append(row("/metrics", "scrape", await taken_ms(BODIES, render)))
        polled = await taken_ms(BODIES, lambda _: parts.loader.sync())
        lines.append(row("store polled", "2 s", polled))
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("model", metavar="NAME@ALIAS")
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--requests", type=int, default=5000)
    options = parser.parse_args()
    table = sys.stdout
    with Path("/dev/null").open("w") as nowhere, redirect_stdout(nowhere):
        log.configure("info", "json")
        found = asyncio.run(
            told(options.store, options.model, options.candidates, options.requests)
        )
    print("| what | when | CPU ms, median | most |\n|---|---|---:|---:|", file=table)
    print("\n".join(found), file=table)


if __name__ == "__main__":
    main()
