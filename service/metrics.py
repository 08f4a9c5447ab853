"""Metrics: every instrument, named once, on a registry of its own."""

import os
from bisect import bisect_left
from collections import Counter as Tallied
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

# Written out for a service that answers in 1 to 50 ms.
SECONDS: Final = (
    0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01,
    0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0, 5.0,
)  # fmt: skip
STAGE_SECONDS: Final = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5,
)  # fmt: skip
CANDIDATES: Final = (1, 10, 50, 100, 200, 300, 500, 1000, 2000, 5000)
STAGES: Final = ("queue", "parse", "features", "score", "encode")


class Histograms(Histogram):
    """A histogram that observes many amounts in one go."""

    def observe_all(self, amounts: Sequence[float]) -> None:
        """As `observe` of each: it takes a lock twice and looks through the buckets every time."""
        if amounts:
            self._sum.inc(sum(amounts))
        for bucket, count in Tallied(map(bisect_left, repeat(self._upper_bounds), amounts)).items():
            self._buckets[bucket].inc(count)


class Metrics:
    """The instruments. Labels come from closed sets: routes, codes, served models."""

    def __init__(self, shared: Path | None = None) -> None:
        self.registry = registry = CollectorRegistry()
        self._shared = shared
        self.requests = Counter(
            "slimrank_requests",
            "Requests by route and status.",
            ["route", "status"],
            registry=registry,
        )
        self.request_seconds = Histograms(
            "slimrank_request_seconds",
            "Time of a request.",
            ["route"],
            registry=registry,
            buckets=SECONDS,
        )
        self.stage_seconds = Histograms(
            "slimrank_stage_seconds",
            "Time of a stage of a ranking: parse, queue, features, score, encode.",
            ["stage"],
            registry=registry,
            buckets=STAGE_SECONDS,
        )
        self.candidates = Histograms(
            "slimrank_candidates", "Candidates of a request.", registry=registry, buckets=CANDIDATES
        )
        self.problems = Counter(
            "slimrank_problems", "Errors answered, by code.", ["code"], registry=registry
        )
        self.cold_candidates = Counter(
            "slimrank_cold_candidates",
            "Candidates that the catalogue does not know.",
            ["model"],
            registry=registry,
        )
        self.fresh_items = Gauge(
            "slimrank_fresh_items",
            "Items that were added to the version that a model serves.",
            ["model"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.warnings = Counter(
            "slimrank_warnings", "Warnings given in replies, by code.", ["code"], registry=registry
        )
        self.in_flight = Gauge(
            "slimrank_in_flight",
            "Requests that are held, scoring and waiting.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.model_info = Gauge(
            "slimrank_model_info",
            "1 for the version that a model serves, 0 for those it served.",
            ["model", "version", "digest"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.model_load_seconds = Histogram(
            "slimrank_model_load_seconds",
            "Time to open, check and warm a bundle.",
            registry=registry,
            buckets=(0.1, 0.3, 1, 3, 10, 30, 100),
        )
        self.activations = Counter(
            "slimrank_activations",
            "Versions taken into service after start, and refused ones.",
            ["model", "outcome"],
            registry=registry,
        )
        self.cache_up = Gauge(
            "slimrank_cache_up",
            "1 while the cache answers.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.cache_operations = Counter(
            "slimrank_cache_operations",
            "Item tables asked of the cache: hit, miss, put, error.",
            ["outcome"],
            registry=registry,
        )
        # Looked up once: labels() costs as much as observe().
        self.stages = {stage: self.stage_seconds.labels(stage) for stage in STAGES}

    def render(self) -> bytes:
        """The exposition text: of this worker, or of all where they share a folder."""
        if self._shared is None:
            return generate_latest(self.registry)
        _forget_the_dead(self._shared)
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(self._shared))  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def _forget_the_dead(folder: Path) -> None:
    """Remove the live gauges of workers that are gone; their counters stay, to stay monotonic."""
    for file in folder.glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            file.unlink(missing_ok=True)
