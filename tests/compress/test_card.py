"""What the card of a finished run says of its budgets."""

import pytest

from compress.card import over_budget
from model_store.manifest import Card, Resources


def card(requested: dict[str, float], achieved: dict[str, float]) -> Card:
    """Of a run that was asked for something, and came to something."""
    costs = Resources(flops=1)
    return Card(
        method="umec", ranker="dlrm", seed=1, dense=costs, slim=costs,
        requested=requested, achieved=achieved, kept_features=(), pruned_features=(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("requested", "achieved", "over"),
    [
        ({"flops": 0.1}, {"flops": 0.1}, []),
        ({"bytes": 0.1}, {"bytes": 0.1}, []),
        ({"bytes": 0.1}, {"bytes": 0.101, "flops": 0.9}, ["bytes: 0.1010"]),
        ({"p50_us": 0.4}, {"p50_us": 0.43}, []),
        ({"p50_us": 0.4, "flops": 0.3}, {"p50_us": 0.45, "flops": 0.2}, ["p50_us: 0.4500"]),
        ({"fields": 0.5}, {"fields": 0.6}, ["fields: 0.6000"]),
    ],
)
def test_a_bundle_over_its_budget_is_told_of(
    requested: dict[str, float], achieved: dict[str, float], over: list[str]
) -> None:
    """Bytes to the last digit of a share, times within what they are told to."""
    found = over_budget(card(requested, achieved))

    assert [line.partition(" of")[0] for line in found] == over
