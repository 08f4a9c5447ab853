"""Instruments that observe many amounts at once, beside those of the library."""

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from service.metrics import Histograms

BUCKETS = (1, 2, 5)


@pytest.mark.parametrize("amounts", [[], [0], [1, 2, 5], [0.5, 1.5, 1.5, 4, 5.01, 1e9], [-1.0]])
def test_all_at_once_are_observed_as_one_by_one(amounts: list[float]) -> None:
    """An amount on a bound lies in its bucket, one beyond all bounds in the last."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    together = Histograms("h", "Some.", ["route"], registry=ours, buckets=BUCKETS).labels("/")
    alone = Histogram("h", "Some.", ["route"], registry=theirs, buckets=BUCKETS).labels("/")

    together.observe_all(amounts)
    for amount in amounts:
        alone.observe(amount)

    assert told(ours) == told(theirs)


def told(registry: CollectorRegistry) -> list[str]:
    """All lines of a registry but for when its instruments were made."""
    return [
        line for line in generate_latest(registry).decode().split("\n") if "created" not in line
    ]
