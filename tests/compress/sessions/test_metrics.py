"""Metrics of a full ranking, their intervals, and what ties make impossible."""

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from compress.sessions.metrics import (
    CUTOFFS,
    METRICS,
    difference,
    gains,
    ranks_of,
    ratio,
    session_quality,
    tie_bound,
)

INF = np.inf


def drawn_ranks(seed: int, rows: int = 400, *seeds: int) -> np.ndarray:
    """Ranks of all sizes, some of them infinite."""
    rng = np.random.default_rng(seed)
    ranks = np.floor(np.exp(rng.uniform(0, 5, (*seeds, rows))))
    return np.where(rng.random(ranks.shape) < 0.1, INF, ranks)


def in_sessions(rows: int, per_session: int) -> np.ndarray:
    """So many prefixes a session."""
    return np.arange(rows) // per_session


def naive(ranks: list[float]) -> dict[str, float]:
    """The definitions, one rank at a time."""
    sums = dict.fromkeys(METRICS, 0.0)
    for rank in ranks:
        for k in CUTOFFS:
            if rank <= k:
                sums[f"P@{k}"] += 1
                sums[f"MRR@{k}"] += 1 / rank
                sums[f"NDCG@{k}"] += 1 / math.log2(rank + 1)
    return {name: value / len(ranks) for name, value in sums.items()}


def test_the_metrics_of_one_rank_worked_by_hand() -> None:
    """Third: a hit, a third, and half; sixth: nothing in the first five."""
    third = session_quality(np.array([3.0]), np.array([True]), np.array([0])).metrics
    sixth = session_quality(np.array([6.0]), np.array([True]), np.array([0])).metrics

    assert (third["P@5"], third["MRR@5"], third["NDCG@5"]) == (1.0, 1 / 3, 0.5)
    assert (sixth["P@5"], sixth["MRR@5"], sixth["NDCG@5"]) == (0.0, 0.0, 0.0)
    assert (sixth["P@10"], sixth["MRR@10"]) == (1.0, 1 / 6)


def test_the_metrics_agree_with_their_definitions() -> None:
    """Over all prefixes, and over those with a repeated and with a new target."""
    ranks = drawn_ranks(0)
    repeated = np.random.default_rng(1).random(len(ranks)) < 0.4

    found = session_quality(ranks, repeated, in_sessions(len(ranks), 5))

    assert found.metrics == pytest.approx(naive(list(ranks)))
    assert found.repeated == pytest.approx(naive(list(ranks[repeated])))
    assert found.new == pytest.approx(naive(list(ranks[~repeated])))
    assert (found.rows, found.sessions) == (400, 80)


def test_a_target_outside_the_catalogue_is_a_miss() -> None:
    """Its rank is infinity, and its gain 0 in every metric."""
    ranks = ranks_of(np.ones((3, 2), np.float32), np.array([-1, 0], np.int32))

    assert ranks.tolist() == [INF, 3.0]
    assert not gains(ranks)[0].any()


def test_ties_count_against_the_ranker() -> None:
    """Who scores everything alike has every target last."""
    scores = np.array([[2, 1], [2, 1], [3, 1], [1, 1]], np.float32)

    assert ranks_of(scores, np.array([1, 2], np.int32)).tolist() == [3, 4]


def test_what_is_no_number_never_ranks_well() -> None:
    """A target without a score is last, an item without one stands above the target."""
    scores = np.array([[np.nan, 5], [1, np.nan], [2, 4]], np.float32)

    assert ranks_of(scores, np.array([0, 0], np.int32)).tolist() == [3, 2]


def test_without_repeats_there_is_nothing_to_tell_of_them() -> None:
    """An empty group has no metrics, rather than zeros."""
    found = session_quality(np.array([1.0, 2.0]), np.array([False, False]), np.array([0, 1]))

    assert found.repeated == {}
    assert found.new == found.metrics


def test_several_seeds_are_averaged_before_anything_else() -> None:
    """Means, groups and intervals are those of the average ranker."""
    ranks = drawn_ranks(3, 300, 4)
    repeated, owner = np.arange(300) % 3 == 0, in_sessions(300, 4)

    found = session_quality(ranks, repeated, owner)

    singles = [session_quality(one, repeated, owner).metrics for one in ranks]
    for name in METRICS:
        assert found.metrics[name] == pytest.approx(np.mean([one[name] for one in singles]))
    assert found.rows == 300


def test_the_bootstrap_draws_sessions_not_prefixes() -> None:
    """Forty equal prefixes of a session say no more than one; the interval is that of sessions."""
    ranks = np.where(np.random.default_rng(5).random(100) < 0.5, 1.0, 30.0)
    alone = session_quality(ranks, np.zeros(100, np.bool_), np.arange(100))

    many = session_quality(ranks.repeat(40), np.zeros(4000, np.bool_), np.arange(100).repeat(40))

    assert many.intervals["P@10"] == pytest.approx(alone.intervals["P@10"])
    low, high = alone.intervals["P@10"]
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 100), rel=0.1)


def test_a_session_is_drawn_with_all_its_prefixes() -> None:
    """Against a bootstrap that copies rows, on the same draws."""
    rng = np.random.default_rng(8)
    owner = rng.integers(0, 30, 200) * 7  # of unlike size, numbered with gaps
    ranks = drawn_ranks(8, 200)

    found = session_quality(ranks, ranks > 3, owner, seed=2).intervals["MRR@20"]

    gained, drawing = np.where(ranks <= 20, 1 / ranks, 0), np.random.default_rng(2)
    names, means = np.unique(owner), []
    for _ in range(1000):
        chosen = names[drawing.integers(0, len(names), len(names))]
        means.append(np.concatenate([gained[owner == name] for name in chosen]).mean())
    assert found == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))


def test_the_same_seed_gives_the_same_intervals() -> None:
    """Another seed others, close by."""
    ranks, repeated, owner = drawn_ranks(1), np.zeros(400, np.bool_), in_sessions(400, 5)

    first, again, other = (
        session_quality(ranks, repeated, owner, seed=seed).intervals["P@20"] for seed in (0, 0, 1)
    )

    assert first == again
    assert first != other
    assert first == pytest.approx(other, abs=0.02)


def test_a_ranker_does_not_differ_from_itself() -> None:
    """Difference 0 and ratio 1, in every draw."""
    ranks, owner = drawn_ranks(2), in_sessions(400, 5)

    for compared, value in ((difference, 0.0), (ratio, 1.0)):
        found = compared(ranks, ranks, owner)
        assert set(found) == set(METRICS)
        for one in found.values():
            assert (one.value, *one.interval) == pytest.approx((value, value, value))


def test_comparing_on_the_same_prefixes_sees_smaller_differences() -> None:
    """A ranker that is better by one rank everywhere is so for sure, though intervals overlap."""
    second, owner = drawn_ranks(4), in_sessions(400, 5)
    first = np.maximum(second - 1, 1)
    repeated = np.zeros(400, np.bool_)

    found = difference(first, second, owner)["MRR@20"]

    one, other = (session_quality(r, repeated, owner) for r in (first, second))
    assert found.value == pytest.approx(one.metrics["MRR@20"] - other.metrics["MRR@20"])
    assert one.intervals["MRR@20"][0] < other.intervals["MRR@20"][1]
    assert found.interval[0] > 0


def test_a_ratio_is_of_the_means() -> None:
    """And its interval holds it."""
    first, second, owner = drawn_ranks(6), drawn_ranks(7), in_sessions(400, 5)

    found = ratio(first, second, owner)["NDCG@10"]

    expected = naive(list(first))["NDCG@10"] / naive(list(second))["NDCG@10"]
    assert found.value == pytest.approx(expected)
    assert found.interval[0] < expected < found.interval[1]


def test_a_ratio_to_nothing_is_left_out() -> None:
    """A manifest holds finite numbers only."""
    nothing = np.full(400, 15.0)

    assert set(ratio(drawn_ranks(6), nothing, in_sessions(400, 5))) == {"P@20", "MRR@20", "NDCG@20"}


def test_the_bound_of_ties_worked_by_hand() -> None:
    """One class and the first two: the two commonest targets, of all that are judged."""
    targets = np.array([4, 4, 4, 2, 2, 0, -1, -1], np.int32)

    assert tie_bound(targets, classes=1, k=2) == 5 / 8
    assert tie_bound(targets, classes=9, k=2) == 6 / 8


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_no_scores_of_tied_classes_exceed_the_bound(classes: int) -> None:
    """Not even those that know the targets."""
    rng = np.random.default_rng(classes)
    items, rows, k = 60, 500, 5
    targets = rng.zipf(1.4, rows).astype(np.int32) % items
    commonest = np.argsort(-np.bincount(targets, minlength=items))
    of = np.full(items, classes - 1)
    of[commonest[: (classes - 1) * k]] = np.arange((classes - 1) * k) // k
    scores = (of[:, None] == of[targets]).astype(np.float32)  # (N, rows): the target's class first

    hits = gains(ranks_of(scores, targets))[:, METRICS.index("P@5")].mean()

    assert tie_bound(targets, classes - 1, k) == pytest.approx(hits)
    assert hits <= tie_bound(targets, classes, k)


@pytest.mark.parametrize(
    ("name", "classes", "k", "bound"),
    [
        ("tmall", 32, 5, 0.117),
        ("tmall", 32, 10, 0.183),
        ("retailrocket", 32, 5, 0.145),
        ("retailrocket", 32, 10, 0.221),
        ("retailrocket", 128, 5, 0.329),
    ],
)
def test_the_bounds_on_the_published_tests_are_the_known_ones(
    shared_data: Path, name: str, classes: int, k: int, bound: float
) -> None:
    """Those of papers.md §2.9, which the published rows with one codebook exceed."""
    targets = pl.read_parquet(shared_data / name / "test.parquet")["target"].to_numpy()

    assert tie_bound(targets, classes, k) == pytest.approx(bound, abs=5e-4)
