"""Memory of service workers that hold a catalogue: what each takes, and what they share.

    python -m benchmarks.worker_memory                # 1 M items of 128 numbers, two workers

Each table is published in a store of its own and served by workers that have answered /recommend.
Memory is the kernel's (smaps_rollup), the mean of the workers, less that of workers with a thousand
items: what a process takes anyway. Shared pages (files mapped by all) are told apart from private
ones. All workers map the item ids, packed, whatever the table: they are told apart as what a table
of one code an item takes.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from benchmarks.steady.memory import memory as kernel_memory
from benchmarks.steady.service import processes_of
from compress.sessions.config import SessionExport
from compress.sessions.data import Prefixes, Sessions
from compress.sessions.export import export
from compress.sessions.rankers.sasrec import SasRec, SasRecConfig
from model_store.codebooks import CodedTable
from model_store.item_vectors import DenseTable, ItemVectors
from model_store.manifest import Resources, SessionCard
from model_store.store import open_store

NAME, PORT, WORKERS = "catalogue", 8131, 2
NONE = Resources(flops=0)
ROUNDS = 40  # requests, so that every worker has answered some
MB = 1e6
STEADY = 0.5  # MB
Memory = dict[str, float]


def coded(items: int, dim: int, books: int, size: int) -> CodedTable:
    """Random codes in cuts, as a product quantiser's."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, size, (items, books), dtype=np.uint8)
    words = rng.standard_normal((books, size, dim // books), dtype=np.float32)
    rounded = words.astype(np.float16).astype(np.float32)
    return CodedTable(codes, rounded, concatenated=True, kept_as="float16")


def published(table: ItemVectors, folder: Path, named: Sequence[str] = ()) -> Path:
    """A store with a session ranker over that table, whose ids are item-0, … if none are given."""
    ids = tuple(named or (f"item-{row}" for row in range(len(table))))
    few = Sessions.of(np.arange(8, dtype=np.int32), np.array([4, 4]), ids)
    torch.manual_seed(0)
    bundle = export(
        SasRec(SasRecConfig(dim=table.dim)),
        table,
        folder / "bundle",
        name=NAME,
        ids=ids,
        examples=Prefixes(few, np.array([5, 6], np.int32), np.arange(2)),
        card=SessionCard(ranker="sasrec", table="none", seed=0, dense=NONE, coded=NONE),
        options=SessionExport(golden_requests=2),
    )
    store = open_store(str(folder / "store"))
    published_as = store.publish(bundle.root, NAME)
    store.set_alias(NAME, "prod", published_as.version)
    return folder / "store"


@contextmanager
def serving(store: Path) -> Iterator[list[int]]:
    """Process ids of workers that serve a store and have answered."""
    shared = store.parent / "ids"
    settings = {"STORE": store, "WORKERS": WORKERS, "PORT": PORT, "SHARED_DIR": shared}
    named = [f"SLIMRANK_{key}={value}" for key, value in settings.items()]
    command = ["env", *named, "SLIMRANK_LOG_LEVEL=error", sys.executable, "-m", "service"]
    service = subprocess.Popen(command)  # `env` becomes the service
    try:
        while not answers("/readyz", None):
            if service.poll() is not None:
                raise SystemExit("the service did not start")
            time.sleep(0.2)
        for _ in range(ROUNDS):
            answers("/recommend", {"session_items": ["item-3", "item-5"], "top_k": 100})
        yield workers_of(service.pid)
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait(timeout=60)


def answers(path: str, body: object) -> bool:
    """Whether a request, each on a connection of its own, is answered with 200."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310  our own service
            return bool(reply.status == 200)
    except OSError:
        return False


def workers_of(parent: int) -> list[int]:
    """The children that serve."""
    named = processes_of(parent)
    return [process for name, process in named.items() if name != "supervisor"]


def memory(process: int) -> Memory:
    """MB that are private, and that are shared with other processes."""
    held = kernel_memory(process)
    return {"private": held.private / MB, "shared": (held.rss - held.private) / MB}


def settled(workers: list[int]) -> list[Memory]:
    """Memory once it has stayed the same for two seconds: one worker may load after the other."""
    before: list[Memory] = []
    while True:
        now = [memory(worker) for worker in workers]
        if before and all(
            abs(one["private"] - two["private"]) < STEADY
            for one, two in zip(before, now, strict=True)
        ):
            return now
        before = now
        time.sleep(2)


def measured(table: ItemVectors) -> Memory:
    """Mean memory of workers that hold a table."""
    with tempfile.TemporaryDirectory() as folder:
        store = published(table, Path(folder))
        with serving(store) as workers:
            each = settled(workers)
    return {part: float(np.mean([one[part] for one in each])) for part in each[0]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    options = parser.parse_args()
    items, dim = options.items, options.dim
    rng = np.random.default_rng(0)
    anyway = measured(coded(1000, dim, 8, 256))
    print(f"{items} items of {dim} numbers, {WORKERS} workers; MB a worker, over {anyway}\n")
    print("| table | packed | private | shared |\n|---|---|---|---|")
    for name, table in {
        "1 code of 4 bits (the ids alone)": coded(items, dim, 1, 16),
        "8 codes of 8 bits": coded(items, dim, 8, 256),
        "8 codes of 7 bits": coded(items, dim, 8, 128),
        "16 codes of 4 bits": coded(items, dim, 16, 16),
        "uncompressed": DenseTable(rng.standard_normal((items, dim), dtype=np.float32)),
    }.items():
        over = {part: value - anyway[part] for part, value in measured(table).items()}
        packed = float(table.nbytes)
        if isinstance(table, CodedTable):
            packed = table.codes.size * (table.codebooks.shape[1] - 1).bit_length() / 8
        print(f"| {name} | {packed / 1e6:.1f} | {over['private']:.1f} | {over['shared']:.1f} |")


if __name__ == "__main__":
    main()
