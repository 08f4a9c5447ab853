"""What a request brings, laid over the catalogue: by loops as one value after the other."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_store.bundle import open_bundle
from service import kernels
from service.features import FeaturePlan, Tensors

ROWS = 5
tokens = st.sampled_from(["i1", "i2", "nobody", "", None])
numbers = st.one_of(st.none(), st.integers(-(2**70), 2**70), st.floats(-3e38, 3e38))


@pytest.fixture(scope="module")
def plan(bundles: Path) -> FeaturePlan:
    """Of a bundle with a number, an id and a list of tokens on the item side."""
    bundle = open_bundle(bundles / "one")
    return FeaturePlan(bundle.manifest, bundle.encoders())


def tensors_of(plan: FeaturePlan) -> Tensors:
    """Of some candidates, before anything is brought."""
    return {name: np.tile(row, (ROWS, 1)) for name, row in plan.defaults.items()}


def one_by_one(plan: FeaturePlan, tensors: Tensors, name: str, values: list[Any]) -> None:
    """Each value by the encoder; null leaves what is there."""
    for place, value in enumerate(values):
        if value is not None:
            plan.overlay(tensors, name, [value], [place])


@pytest.mark.skipif(not kernels.COMPILED, reason="loops are not compiled here")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ids=st.lists(tokens, min_size=ROWS, max_size=ROWS),
    prices=st.lists(numbers, min_size=ROWS, max_size=ROWS),
)
def test_loops_lay_what_encoders_would(
    plan: FeaturePlan, ids: list[Any], prices: list[Any]
) -> None:
    """The same bits, whatever comes, and nulls in between."""
    brought = {"price": prices, "item_id": ids}
    expected = tensors_of(plan)
    for name, values in brought.items():
        one_by_one(plan, expected, name, values)
    found = tensors_of(plan)

    assert plan.lay(found, brought) == []

    assert all(found[tensor].tobytes() == expected[tensor].tobytes() for tensor in found)


@pytest.mark.skipif(not kernels.COMPILED, reason="loops are not compiled here")
@pytest.mark.parametrize(
    ("name", "values"),
    [("price", ["9"]), ("price", [True]), ("price", [1e39]), ("item_id", [7]), ("genres", ["a|b"])],
)
def test_what_loops_cannot_tell_is_left_to_the_encoder(
    plan: FeaturePlan, name: str, values: list[Any]
) -> None:
    """A wrong value among right ones: the encoder is asked, and says where."""
    found = tensors_of(plan)
    brought = {"item_id": ["i1"] * ROWS, "price": [1.0] * ROWS, name: values * ROWS}

    assert plan.lay(found, brought) == [name]


def test_what_is_left_is_named_in_the_order_in_which_it_came(plan: FeaturePlan) -> None:
    """The first fault of a request is always the same."""
    brought = {"genres": ["a"] * ROWS, "price": ["x"] * ROWS, "item_id": [7] * ROWS}
    backwards = dict(reversed(brought.items()))

    assert plan.lay(tensors_of(plan), brought) == ["genres", "price", "item_id"]
    assert plan.lay(tensors_of(plan), backwards) == ["item_id", "price", "genres"]
