"""Quality of a ranking of the whole catalogue, from the rank of each prefix's one target.

    P@K = share of ranks <= K      MRR@K = mean of 1 / rank      NDCG@K = mean of 1 / log2(rank + 1)

the latter two 0 for ranks over K. A rank is the number of items that score as the target or better:
ties count against the ranker. A target outside the catalogue has rank infinity.

Prefixes of one session are alike, so intervals come from a bootstrap that draws sessions, not
prefixes. Two rankers are compared on the same draws.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model_store.manifest import SessionQuality

CUTOFFS: Final = (5, 10, 20)
METRICS: Final = tuple(f"{name}@{k}" for name in ("P", "MRR", "NDCG") for k in CUTOFFS)
DRAWS: Final = 1000
LEVEL: Final = (2.5, 97.5)  # percentiles of a 95 % interval

Floats = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Compared:
    """How one ranker differs from another in a metric.

    Attributes:
        value: of the difference or the ratio, over all prefixes.
        interval: 95 %, by bootstrap over sessions.
    """

    value: float
    interval: Interval


def ranks_of(scores: NDArray[np.float32], targets: NDArray[np.int32]) -> Floats:
    """(B,) ranks of targets (B,) in scores (N, B); infinity for a row below 0.

    What is not a number ranks a target last, and no item below it.
    """
    known = targets >= 0
    wanted = scores[np.where(known, targets, 0), np.arange(len(targets))]
    ranks = len(scores) - (scores < wanted).sum(axis=0)
    return np.where(known, ranks, np.inf)


def gains(ranks: Floats) -> Floats:
    """(rows, metrics) what each prefix adds to `METRICS`, whose means they are.

    Args:
        ranks: (rows,), or (seeds, rows) of a ranker that was trained several times: averaged.
    """
    several = np.atleast_2d(ranks)[..., None]  # (seeds, rows, 1)
    within = several <= np.array(CUTOFFS)
    forms = (np.ones_like(several), 1 / several, 1 / np.log2(several + 1))
    gained = np.concatenate([np.where(within, form, 0.0) for form in forms], axis=-1)
    return np.asarray(gained.mean(axis=0))


def session_quality(
    ranks: Floats, repeated: NDArray[np.bool_], owner: NDArray[np.int64], *, seed: int = 0
) -> SessionQuality:
    """All metrics over all prefixes, with intervals; and over those with a repeated or new target.

    Args:
        ranks: (rows,) or (seeds, rows).
        repeated: (rows,) whether the target stands in its prefix.
        owner: (rows,) the session of each prefix.
        seed: of the bootstrap.
    """
    gained = gains(ranks)
    draws = _draws(gained, owner, seed)
    return SessionQuality(
        metrics=_means(gained),
        intervals={name: _interval(draws[:, i]) for i, name in enumerate(METRICS)},
        repeated=_means(gained[repeated]),
        new=_means(gained[~repeated]),
        rows=len(gained),
        sessions=len(np.unique(owner)),
    )


def difference(
    first: Floats, second: Floats, owner: NDArray[np.int64], *, seed: int = 0
) -> dict[str, Compared]:
    """By how much the first ranker exceeds the second, metric by metric.

    Args:
        first: its ranks, (rows,) or (seeds, rows).
        second: the other's, of the same prefixes.
        owner: (rows,) the session of each prefix.
        seed: of the bootstrap.
    """
    excess = gains(first) - gains(second)
    draws = _draws(excess, owner, seed)
    return {
        name: Compared(value, _interval(draws[:, i]))
        for i, (name, value) in enumerate(_means(excess).items())
    }


def ratio(
    first: Floats, second: Floats, owner: NDArray[np.int64], *, seed: int = 0
) -> dict[str, Compared]:
    """The first ranker's metrics as multiples of the second's.

    Those metrics are left out for which the second has no hit, in all or in a draw. Arguments are
    those of `difference`.
    """
    both = np.concatenate([gains(first), gains(second)], axis=1)
    draws = _draws(both, owner, seed)
    mean, found = both.mean(axis=0), {}
    for i, name in enumerate(METRICS):
        j = i + len(METRICS)
        if draws[:, j].all():
            drawn = draws[:, i] / draws[:, j]
            found[name] = Compared(float(mean[i] / mean[j]), _interval(drawn))
    return found


def tie_bound(targets: NDArray[np.int32], classes: int, k: int) -> float:
    """The highest P@K that item vectors of so many distinct values can have without repeats.

    A class of equal vectors is a tie, so of each at most K items ever come into the first K: those
    of ``classes`` · K items at most, at best the commonest targets (papers.md §2.9, item 2).

    Args:
        targets: (rows,) item rows, -1 outside the catalogue.
        classes: distinct vectors.
        k: the cutoff.
    """
    counts = np.sort(np.bincount(targets[targets >= 0]))[::-1]
    return float(counts[: classes * k].sum() / len(targets))


def _means(gained: Floats) -> dict[str, float]:
    if not len(gained):
        return {}
    return dict(zip(METRICS, map(float, gained.mean(axis=0)), strict=True))


def _draws(gained: Floats, owner: NDArray[np.int64], seed: int) -> Floats:
    """(DRAWS, columns) means over sessions drawn with replacement, all their prefixes together."""
    _, of = np.unique(owner, return_inverse=True)
    sessions = int(of.max()) + 1
    sums = np.stack([np.bincount(of, column) for column in gained.T], axis=1)
    rows = np.bincount(of)
    rng, draws = np.random.default_rng(seed), np.empty((DRAWS, gained.shape[1]))
    for draw in range(DRAWS):
        times = np.bincount(rng.integers(0, sessions, sessions), minlength=sessions)
        draws[draw] = times @ sums / (times @ rows)
    return draws


def _interval(draws: Floats) -> Interval:
    low, high = np.percentile(draws, LEVEL)
    return float(low), float(high)
