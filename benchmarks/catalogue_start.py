"""Start, memory and activation of workers that hold a large catalogue.

    python -m benchmarks.catalogue_start                      # 10 M items, a session ranker
    python -m benchmarks.catalogue_start --click BUNDLE       # a click-through ranker's, grown

The session ranker has 16 codes of 8 bits an item; the click-through ranker has its own items' rows
over and over, and no raw values. Ids are of 9 to 12 letters and digits, in no order.

Start is the time from the command to the first 200 of /readyz, and to the last worker's "model
loaded"; processor time is what the worker that took most had taken by then: it hardly depends on
what else the machine does. Memory is the kernel's proportional set size of all workers together,
and per id less that of workers with a thousand items, less codes and the ids themselves. A click-
through ranker's rows are mapped, and not in memory before they are asked for.
Pauses are the longest that a loop in the service's process was held up for, while it activated a
second version with ids of its own, and as long without anything to do.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import uvloop

from benchmarks.rank_parts import running
from benchmarks.worker_memory import NAME, PORT, answers, coded, published, settled, workers_of
from model_store.bundle import ITEM_IDS_FILE, Bundle, open_bundle, seal
from model_store.codebooks import CODES_FILE
from model_store.store import open_store
from service.app import create_app
from service.settings import Settings

DIM, BOOKS, SIZE = 64, 16, 256
FEW: Final = 1000
TICK_S: Final = 0.001


def names(items: int, version: int) -> list[str]:
    """Ids of 9 to 12 characters in no order, other ones for each version."""
    mixed = np.arange(items, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(version)
    return [f"v{version}{number % (1 << 44):x}" for number in mixed.tolist()]


def grown(bundle: Bundle, items: int, ids: list[str], folder: Path) -> Bundle:
    """A click-through bundle with its items' rows over and over, under more ids."""
    spec = bundle.manifest.items
    table = bundle.item_table()
    if spec is None or table is None:
        raise SystemExit(f"{bundle.root} has no catalogue")
    shutil.copytree(bundle.root, folder)
    own = table.ids[:items]  # golden requests ask for these
    (folder / spec.ids).unlink()
    (folder / ITEM_IDS_FILE).write_text(json.dumps(own + ids[len(own) : items]))
    for name, tensor in table.tensors.items():
        np.save(folder / spec.tensors[name], np.resize(tensor, (items, tensor.shape[1])))
    changed = {"ids": ITEM_IDS_FILE, "items": items, "values": None}
    catalogue = spec.model_copy(update=changed)
    return seal(folder, bundle.manifest.model_copy(update={"items": catalogue, "tiers": ()}))


def store_of(items: int, folder: Path, click: Path | None) -> Path:
    """A store with two versions of a ranker, the first one with the alias prod."""
    for version in (1, 2):
        ids = names(items, version)
        if click is None:
            published(coded(items, DIM, BOOKS, SIZE), folder, ids)
        else:
            made = grown(open_bundle(click), items, ids, folder / "bundle")
            open_store(str(folder / "store")).publish(made.root, NAME)
        shutil.rmtree(folder / "bundle")
    open_store(str(folder / "store")).set_alias(NAME, "prod", "1")
    return folder / "store"


@dataclass(frozen=True, slots=True)
class Started:
    """Seconds to the first /readyz, to the last worker's models, of processor; and the workers."""

    ready_s: float
    all_s: float
    cpu_s: float
    workers: list[int]


@contextmanager
def started(store: Path, workers: int, shared: Path) -> Iterator[Started]:
    """A service, once all of its workers have their models."""
    told = shared.with_suffix(".log")
    settings = {"STORE": store, "WORKERS": workers, "PORT": PORT, "SHARED_DIR": shared}
    named = [f"SLIMRANK_{key}={value}" for key, value in settings.items()]
    with told.open("w") as file:
        began = time.monotonic()
        command = ["env", *named, "SLIMRANK_LOG_FORMAT=json", sys.executable, "-m", "service"]
        service = subprocess.Popen(command, stdout=file)
    try:
        ready = loaded = 0.0
        while not (ready and loaded):
            if service.poll() is not None:
                raise SystemExit(f"the service did not start: {told.read_text()}")
            time.sleep(0.02)
            now = time.monotonic() - began
            ready = ready or (now if answers("/readyz", None) else 0.0)
            loaded = loaded or (now if told.read_text().count("model loaded") == workers else 0.0)
        each = [service.pid] if workers == 1 else workers_of(service.pid)
        yield Started(ready, loaded, max(map(cpu_s, each)), each)
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait(timeout=60)


def cpu_s(process: int) -> float:
    """Processor time that a process has taken."""
    ticks = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def proportional_mb(workers: list[int]) -> float:
    """What all of them take, shared pages once."""
    settled(workers)
    lines = [
        line.split()
        for worker in workers
        for line in Path(f"/proc/{worker}/smaps_rollup").read_text().splitlines()
    ]
    return sum(int(line[1]) for line in lines if line[0] == "Pss:") / 1000


async def pauses_ms(store: Path) -> tuple[float, float]:
    """The longest pause of an event loop while nothing happens, and while it activates."""
    service = create_app(Settings(store=str(store), store_poll_s=0, request_log=False))

    async def longest(until: asyncio.Task[object]) -> float:
        worst = 0.0
        while not until.done():
            before = time.perf_counter()
            await asyncio.sleep(TICK_S)
            worst = max(worst, time.perf_counter() - before - TICK_S)
        await until
        return worst * 1e3

    async with running(service):
        idle = await longest(asyncio.create_task(asyncio.sleep(3)))
        activation = service.parts.loader.activate(NAME, "2")
        return idle, await longest(asyncio.create_task(activation))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--click", type=Path, help="a click-through ranker's bundle")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        folders = {items: Path(root, str(items)) for items in (FEW, options.items)}
        stores = {items: store_of(items, at, options.click) for items, at in folders.items()}
        served = open_store(str(stores[options.items])).open(NAME).bundle
        own = sum(map(len, map(str.encode, names(options.items, 1))))
        sizes = {entry.path: entry.bytes for entry in served.manifest.files}
        codes = sizes.get(CODES_FILE, 0)
        print(f"{options.items} items, ids of {own / options.items:.1f} bytes")
        print("| workers | restart | ready s | all s | CPU s | together MB | bytes beyond an id |")
        print("|---|---|---|---|---|---|---|")
        for workers in options.workers:
            anyway = 0.0
            for items, restart in ((FEW, False), (options.items, False), (options.items, True)):
                shared = Path(root, f"ids-{items}-{workers}")
                with started(stores[items], workers, shared) as found:
                    together = proportional_mb(found.workers)
                if items == FEW:
                    anyway = together
                    continue
                beyond = (together - anyway - (codes + own) / 1e6) * 1e6 / items
                print(
                    f"| {workers} | {restart} | {found.ready_s:.1f} | {found.all_s:.1f} "
                    f"| {found.cpu_s:.1f} | {together:.0f} | {beyond:.1f} |"
                )
        idle, activating = uvloop.run(pauses_ms(stores[options.items]))
        print(f"longest pause: {idle:.1f} ms with nothing to do, {activating:.1f} ms activating")


if __name__ == "__main__":
    main()
