"""First item vectors say what stood near what in sessions."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.sessions.cooccurrence import (
    cooccurrence_vectors,
    pair_counts,
    positive_information,
)
from compress.sessions.data import Sessions
from tests.compress.sessions.students import some_sessions, synthetic

ITEMS = 6
repeatable = settings(derandomize=True, database=None)


def naive_counts(sessions: Sessions, reach: int) -> np.ndarray:
    """Pair by pair."""
    counts = np.zeros((sessions.items, sessions.items))
    for session in sessions:
        for i, first in enumerate(session):
            for j in range(i + 1, min(len(session), i + reach + 1)):
                counts[first, session[j]] += 1 / (j - i)
    return counts


@repeatable
@given(
    st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=15), min_size=1, max_size=8),
    st.integers(1, 12),
)
def test_pairs_are_counted_one_by_one(lists: list[list[int]], reach: int) -> None:
    """Within a session only, each as one over its gap."""
    sessions = some_sessions(*lists, items=ITEMS)

    found = pair_counts(sessions, reach).toarray()

    np.testing.assert_allclose(found, naive_counts(sessions, reach), atol=1e-12)


def test_information_worked_by_hand() -> None:
    """Two pairs of items: each tells of its other as much as it is rarer than all that is."""
    sessions = some_sessions([0, 1], [2, 3], [4, 4], items=5)

    found = positive_information(pair_counts(sessions)).toarray()

    expected = np.zeros((5, 5))
    for u, v in ((0, 1), (1, 0), (2, 3), (3, 2)):
        expected[u, v] = np.log(4)
    np.testing.assert_allclose(found, expected)


def test_information_is_its_formula() -> None:
    """max(0, log(C_uv · sum_w c_w^0.75 / (C_u · c_v^0.75))), cell by cell, off the diagonal."""
    sessions = synthetic(sessions=30, items=12, topics=2).train
    both = naive_counts(sessions, 10)
    both += both.T
    np.fill_diagonal(both, 0)

    found = positive_information(pair_counts(sessions)).toarray()

    total = both.sum(1)
    expected = np.zeros_like(both)
    for u, v in zip(*both.nonzero(), strict=True):
        chance = total[u] * total[v] ** 0.75 / (total**0.75).sum()
        expected[u, v] = max(0.0, np.log(both[u, v] / chance))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert 0 < (expected > 0).sum() < (both > 0).sum()


def test_vectors_have_unit_length() -> None:
    """All of them, in float32."""
    data = synthetic()

    vectors = cooccurrence_vectors(data.train, 8, seed=3)

    assert vectors.dtype == torch.float32
    assert vectors.shape == (data.train.items, 8)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(data.train.items))


def test_items_that_stand_together_are_near() -> None:
    """Nearer than those that never do, for almost all items."""
    data = synthetic(sessions=2000, repeat=0.1, follow=0.3)
    topic = np.array([int(name.removeprefix("item")) - 1 for name in data.train.ids]) % 6

    vectors = cooccurrence_vectors(data.train, 8, seed=0).numpy()

    near = vectors @ vectors.T
    same = topic[:, None] == topic[None]
    others = ~np.eye(len(near), dtype=bool)
    within, across = near[same & others].mean(), near[~same].mean()
    assert within > across + 0.5
    np.fill_diagonal(near, -1)
    assert (topic[near.argmax(1)] == topic).mean() > 0.95


def test_vectors_are_a_function_of_the_seed() -> None:
    """To the bit."""
    data = synthetic()
    first, again, other = (cooccurrence_vectors(data.train, 8, seed) for seed in (1, 1, 2))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    "lists",
    [
        [[0, 1, 2], [1, 2]],  # 3, 4 and 5 are never clicked
        [[0], [1], [2]],  # nothing stands near anything
        [[4, 4, 4], [4]],  # nor does an item near itself
    ],
)
def test_items_seen_with_nothing_have_a_direction_too(lists: list[list[int]]) -> None:
    """Each its own, so that they are told apart."""
    sessions = some_sessions(*lists, items=ITEMS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vectors = cooccurrence_vectors(sessions, 16, seed=0)

    assert torch.isfinite(vectors).all()
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(ITEMS))
    assert (vectors @ vectors.T - 2 * torch.eye(ITEMS)).max() < 1


def test_a_catalogue_smaller_than_the_width_will_do() -> None:
    """Two items in sixteen dimensions."""
    vectors = cooccurrence_vectors(some_sessions([0, 1], [1, 0, 1], items=2), 16, seed=0)

    assert vectors.shape == (2, 16)
    assert torch.isfinite(vectors).all()
