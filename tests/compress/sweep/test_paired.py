"""Tests on pairs: against scipy, against sums by hand, and at the edges."""

import doctest
import itertools
from statistics import fmean

import numpy as np
import pytest
from scipy import stats

from compress.sweep import paired
from compress.sweep.paired import Mean, Paired, compare, corrected, holm, supported

OURS = {1: 0.781, 2: 0.779, 3: 0.786, 4: 0.780, 5: 0.784}
THEIRS = {5: 0.781, 4: 0.7795, 3: 0.784, 2: 0.7785, 1: 0.7805}


def test_seeds_are_paired_by_their_number() -> None:
    """Whatever the order in which they came; the mean and its interval by Student."""
    test = compare(OURS, THEIRS)

    assert test is not None
    assert test.seeds == 5
    assert test.difference.value == pytest.approx(0.0013)
    # sd(d) of d = .0005, .0005, .002, .0005, .003 is .00115109; t(0.975, 4) = 2.776445
    assert test.difference.half == pytest.approx(2.776445 * 0.00115109 / 5**0.5, rel=1e-5)
    pairs = [(OURS[seed], THEIRS[seed]) for seed in OURS]
    assert test.t == pytest.approx(stats.ttest_rel(*zip(*pairs, strict=True)).pvalue)


def test_the_exact_test_counts_flips_of_signs() -> None:
    """By hand: where all differences have one sign, two of 2⁵ ways have a mean as far from zero."""
    differences = [OURS[seed] - THEIRS[seed] for seed in OURS]
    flipped = [
        fmean(sign * d for sign, d in zip(signs, differences, strict=True))
        for signs in itertools.product((1, -1), repeat=5)
    ]
    by_hand = sum(abs(mean) >= fmean(differences) - 1e-12 for mean in flipped) / 32

    test = compare(OURS, THEIRS)

    assert test is not None
    assert test.exact == pytest.approx(by_hand) == pytest.approx(2 / 32)


def test_only_seeds_that_both_have_count() -> None:
    """A cell that failed takes its pair along; without any pair there is no test."""
    test = compare(OURS, {2: 0.7785, 4: 0.7795, 9: 0.1})

    assert test is not None
    assert test.seeds == 2
    assert compare(OURS, {9: 0.1}) is None


def test_differences_without_spread_have_no_t_test() -> None:
    """It would be a division by zero; the exact test still counts."""
    same = compare(OURS, OURS)
    shifted = compare({1: 0.5, 2: 0.75, 3: 0.25}, {1: 0.25, 2: 0.5, 3: 0.0})

    assert same is not None
    assert (same.t, same.exact) == (None, 1.0)
    assert shifted is not None
    assert (shifted.t, shifted.exact) == (None, pytest.approx(2 / 8))


def test_a_single_seed_has_neither_interval_nor_test() -> None:
    """Only a difference."""
    test = compare({1: 0.5}, {1: 0.25})

    assert test == Paired(1, Mean(0.25, None), None, None)


def test_holm_is_what_holm_wrote() -> None:
    """A worked example, and: never under the raw p, never over 1, in the order of the raw ones."""
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == {
        "d": pytest.approx(0.02),
        "a": pytest.approx(0.03),
        "c": pytest.approx(0.06),
        "b": pytest.approx(0.06),
    }
    drawn = np.random.default_rng(1).uniform(size=20)
    raw = {str(i): float(p) for i, p in enumerate(drawn)}
    found = holm(raw)
    assert all(raw[name] <= found[name] <= 1 for name in raw)
    assert sorted(raw, key=raw.__getitem__) == sorted(found, key=lambda n: (found[n], raw[n]))


def test_corrections_leave_tests_that_were_not_made_alone() -> None:
    """Two tests count, the third has no p to correct."""
    tests = {
        "a": Paired(5, Mean(0.1, 0.1), 0.03, 0.0625),
        "b": Paired(5, Mean(0.1, 0.1), 0.01, 0.125),
        "c": Paired(5, Mean(0.1, 0.0), None, 0.0625),
    }

    found = corrected(tests)

    assert [found[name].t_holm for name in "abc"] == [0.03, 0.02, None]
    assert [found[name].exact_holm for name in "abc"] == [0.1875, 0.1875, 0.1875]


def test_what_seeds_support_is_said() -> None:
    """The reach of the intervals, and what the exact test cannot say with so few."""
    five = [Paired(5, Mean(0.1, half), 0.5, 0.5) for half in (0.0004, 0.0021)]
    seven = [Paired(7, Mean(0.1, 0.001), 0.5, 0.5)]
    one = [Paired(1, Mean(0.1, None), None, None)]

    assert "With 5 seeds" in supported(five, "of AUC")
    assert "± 0.0004 to ± 0.0021 of AUC" in supported(five, "of AUC")
    assert "cannot be under 0.062; it takes 6 seeds" in supported(five, "of AUC")
    assert supported(seven, "of AUC").endswith("its p cannot be under 0.016.")
    assert supported(one, "of AUC").startswith("A single seed has no spread")


def test_the_examples_hold() -> None:
    """Those of the code."""
    assert doctest.testmod(paired).failed == 0
