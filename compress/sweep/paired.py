"""Means over seeds, and whether two methods differ: tests on pairs of the same seed.

    d_i = ours_i − theirs_i, i = 1..n seeds
    t test       t = mean(d) / (sd(d) / √n), n − 1 degrees of freedom
    exact test   the share of the 2ⁿ ways to flip signs whose |mean| is at least that of d
    Holm         of m tests, the k-th least p is multiplied by m − k + 1, and none gets less than
                 the one before (Holm 1979)

Of a seed, both methods start from the same dense ranker and are judged on the same rows, so what
seeds have in common cancels out. The tests are over seeds: another test set is not in them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Final

import numpy as np
from scipy.stats import permutation_test, ttest_1samp

from compress.report import interval

MOST_FLIPS: Final = 1 << 16  # exact up to 16 seeds; so many draws beyond
SIGNIFICANT: Final = 0.05


@dataclass(frozen=True, slots=True)
class Mean:
    """Of one value a seed.

    Attributes:
        half: half the width of its 95 % interval (Student); None for a single seed.
    """

    value: float
    half: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Over the values."""
        return cls(fmean(values), interval(values) if len(values) > 1 else None)


@dataclass(frozen=True, slots=True)
class Paired:
    """A method against another one.

    Attributes:
        seeds: that both have.
        difference: ours less theirs.
        t: p of the t test; None where the differences have no spread.
        exact: p of the exact test; None for a single seed.
        t_holm: corrected for the tests beside it.
    """

    seeds: int
    difference: Mean
    t: float | None
    exact: float | None
    t_holm: float | None = None
    exact_holm: float | None = None


def compare(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Paired | None:
    """Compare what two methods have by seed; None if they have no seed in common."""
    differences = np.array([ours[seed] - theirs[seed] for seed in ours if seed in theirs])
    if not len(differences):
        return None
    mean = Mean.of(differences.tolist())
    if len(differences) == 1:
        return Paired(1, mean, None, None)
    spread = bool(np.ptp(differences))
    t = float(ttest_1samp(differences, 0.0).pvalue) if spread else None
    return Paired(len(differences), mean, t, _exact(differences))


def _exact(differences: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> float:
    found = permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=MOST_FLIPS,
        vectorized=True,
        random_state=np.random.default_rng(0),
    )
    return float(found.pvalue)


def corrected(tests: Mapping[str, Paired]) -> dict[str, Paired]:
    """The tests beside each other, their p by Holm."""
    t = holm({name: test.t for name, test in tests.items()})
    exact = holm({name: test.exact for name, test in tests.items()})
    return {
        name: replace(test, t_holm=t.get(name), exact_holm=exact.get(name))
        for name, test in tests.items()
    }


def holm(values: Mapping[str, float | None]) -> dict[str, float]:
    """Corrected p by name; without those that there are none of.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": None})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    known = sorted((p, name) for name, p in values.items() if p is not None)
    found: dict[str, float] = {}
    least = 0.0
    for rank, (p, name) in enumerate(known):
        least = max(least, min(1.0, p * (len(known) - rank)))
        found[name] = least
    return found


def least_exact(seeds: int) -> float:
    """The least p that the exact test can have.

    >>> least_exact(5)
    0.0625
    """
    return float(2.0 ** (1 - seeds))


def supported(tests: Sequence[Paired], metric: str) -> str:
    """In a sentence or two, what so many seeds can tell."""
    halves = sorted(test.difference.half for test in tests if test.difference.half is not None)
    if not halves:
        return (
            "A single seed has no spread: there are neither intervals nor tests. Take more seeds."
        )
    seeds = min(test.seeds for test in tests if test.difference.half is not None)
    reach = f"± {halves[0]:.2g}" + (f" to ± {halves[-1]:.2g}" if len(halves) > 1 else "")
    least = least_exact(seeds)
    said = (
        f"With {seeds} seeds the 95 % intervals of the differences are {reach} {metric}: a "
        "difference smaller than its interval is not told from chance. The exact test knows "
        f"{2**seeds:,} ways to flip signs, so its p cannot be under {least:.2g}"
    )
    if least > SIGNIFICANT:
        said += f"; it takes {seeds_for(SIGNIFICANT)} seeds for it to fall under {SIGNIFICANT:g}"
    return said + "."


def seeds_for(p: float) -> int:
    """How many seeds the exact test needs to be able to say ``p``.

    >>> seeds_for(0.05)
    6
    """
    return next(seeds for seeds in range(2, 64) if least_exact(seeds) <= p)
