"""Codes, codebooks and their precision: what all coded tables share."""

import doctest
import importlib
import pkgutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compress.config import ConfigError, Section, configure
from compress.progress import Silent
from compress.sessions import tables
from compress.sessions.tables import TABLES, Teacher
from compress.sessions.tables.coded import as_kept, as_sum, check_codes, composed
from compress.sessions.tables.distinct import shared, told_apart
from compress.sessions.tables.means import fitted, fitted_cuts
from compress.tables.kmeans import clusters, importance
from model_store.codebooks import quantised

MODULES = [f"{tables.__name__}.{found.name}" for found in pkgutil.iter_modules(tables.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name: str) -> None:
    """What a docstring shows is what comes out."""
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)

    assert found.failed == 0


@given(st.integers(-40, 12), st.integers(0, 2**31))
def test_eight_bits_while_learning_are_those_of_the_bundle(exponent: int, seed: int) -> None:
    """Fake quantisation equals what is written and read, at any scale; and twice is as once."""
    draw = np.random.default_rng(seed)
    codebooks = (draw.normal(size=(2, 3, 5)) * 2.0**exponent).astype(np.float32)

    seen = as_kept(torch.from_numpy(codebooks), "int8").numpy()

    words, scales = quantised(codebooks)
    np.testing.assert_array_equal(seen, words * scales[..., None].astype(np.float32))
    again, same = quantised(seen)
    np.testing.assert_array_equal(seen, again * same[..., None].astype(np.float32))


@pytest.mark.parametrize("kept_as", ["float16", "int8"])
def test_rounding_passes_the_gradient_straight_through(kept_as: str) -> None:
    """The slope in a rounded codebook is that in the codebook."""
    codebooks = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    pull = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))

    (as_kept(codebooks, kept_as) * pull).sum().backward()

    assert torch.equal(codebooks.grad, pull)


def test_concatenation_is_a_sum_of_padded_codewords() -> None:
    """Both compositions give one vector once the codewords are padded with zeros."""
    draw = torch.Generator().manual_seed(0)
    codebooks = torch.randn(3, 4, 2, generator=draw)
    codes = torch.randint(4, (10, 3), generator=draw)

    concatenated = composed(codes, codebooks, concatenated=True)
    assert torch.equal(concatenated, composed(codes, as_sum(codebooks)))


def test_clusters_lean_towards_frequent_items() -> None:
    """A mean is weighted: of one cluster at 0 and 4 where 4 weighs thrice, it is 3."""
    points = torch.tensor([[0.0], [4.0], [100.0], [100.0]])

    means, nearest = clusters(
        points, 2, torch.tensor([1.0, 3.0, 1.0, 1.0]), torch.Generator().manual_seed(0)
    )

    assert sorted(means.flatten().tolist()) == [3.0, 100.0]
    assert nearest[0] == nearest[1] != nearest[2] == nearest[3]


def test_fewer_points_than_clusters_are_no_accident() -> None:
    """A table of equal rows, as before any training, has equal means, and all of them finite."""
    points = torch.full((40, 3), 0.5)

    means, nearest = clusters(points, 8, torch.ones(40), torch.Generator().manual_seed(0))

    assert torch.allclose(means[nearest], points, rtol=2e-3)
    assert bool(means.isfinite().all())


def test_items_weigh_by_a_power_of_their_clicks() -> None:
    """Weights are (1 + clicks)^frequency with mean 1; an item without clicks still counts."""
    weights = importance(torch.tensor([0, 8, 8]), 0.5)

    assert weights.tolist() == pytest.approx([3 / 7, 9 / 7, 9 / 7])


def test_codebooks_reach_the_least_squares_fit() -> None:
    """A few rounds of means come within a thousandth of the exact weighted solution."""
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(400, 3, generator=draw)
    codes = torch.randint(8, (400, 3), generator=draw)
    weights = torch.rand(400, generator=draw) + 0.1
    flags = torch.nn.functional.one_hot(codes, 8).flatten(1).double()  # (N, M·K)
    root = weights.sqrt().double().unsqueeze(1)
    exact = torch.linalg.lstsq(root * flags, root * points, driver="gelsd").solution

    codebooks = fitted(points, codes, torch.zeros(3, 8, 3), weights)

    def loss(vectors: torch.Tensor) -> float:
        return float((weights.unsqueeze(1) * (points - vectors).square()).sum())

    assert loss(composed(codes, codebooks)) <= 1.001 * loss(flags @ exact)


def test_cuts_of_codebooks_are_weighted_means() -> None:
    """Concatenated codebooks are fitted cut by cut; a codeword of nobody is the mean of all."""
    points = torch.tensor([[1.0, 5.0], [3.0, 7.0]])

    found = fitted_cuts(points, torch.tensor([[0, 0], [0, 1]]), 2, torch.tensor([0.5, 1.5]))

    assert found.tolist() == [[[2.5], [2.5]], [[5.0], [7.0]]]


def test_the_frequent_item_keeps_its_code_and_the_others_take_the_nearest_free() -> None:
    """By hand: three items at (0, 0); it is free at distance 1 (x), then at 4 (y), then both."""
    codebooks = torch.tensor([[[0.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 2.0]]])
    codes = torch.zeros(3, 2, dtype=torch.long)

    found = told_apart(codes, codebooks, torch.zeros(3, 2), torch.tensor([1, 9, 5]))

    assert found.tolist() == [[0, 1], [0, 0], [1, 0]]


def test_all_codes_can_be_given_away() -> None:
    """As many items as codes, all alike: each ends with a code of its own."""
    codebooks = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    codes = torch.zeros(64, 3, dtype=torch.long)

    found = told_apart(codes, codebooks, torch.zeros(64, 5), torch.ones(64))

    assert torch.equal(shared(found), torch.arange(64))


def test_codes_that_are_distinct_stay_as_they_are() -> None:
    """Nothing is moved without need."""
    codes = torch.tensor([[0, 1], [1, 0], [1, 1]])

    assert torch.equal(
        told_apart(codes, torch.randn(2, 2, 3), torch.randn(3, 3), torch.ones(3)), codes
    )


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((2, 16), "16^2 = 256 codes cannot tell 300 items apart"),
        ((3, 100), "power of two"),
        ((3, 100), "128 costs the same"),
        ((20, 1), "power of two"),
        ((2, 1 << 17), "from 2 to 65536"),
        ((2, 512), "more codewords than the 300 items"),
    ],
)
def test_codes_that_do_not_fit_are_refused(size: tuple[int, int], message: str) -> None:
    """The text says what is wrong with M and K, and what was expected."""
    with pytest.raises(ConfigError) as refused:
        check_codes(*size, items=300)

    assert message in str(refused.value)


@pytest.mark.parametrize("name", ["pq", "opq", "rq", "recjpq", "eodrec", "hashing"])
def test_every_method_refuses_fewer_codes_than_items(name: str, teacher: Teacher) -> None:
    """K^M below N is an error of the config, not a table of doubles."""
    method, config = configure(TABLES, Section(type=name, codes="2x16"), "table")

    with pytest.raises(ConfigError, match="cannot tell 300 items apart"):
        method().build(teacher, config, torch.Generator(), Silent())


@pytest.mark.parametrize("name", ["pq", "opq", "recjpq"])
def test_cuts_of_unequal_width_are_refused(name: str, teacher: Teacher) -> None:
    """M must divide D where codewords are cuts; the text lists what would."""
    method, config = configure(TABLES, Section(type=name, codes="3x16"), "table")

    with pytest.raises(ConfigError, match="expected M among 1, 2, 4, 8, 16"):
        method().build(teacher, config, torch.Generator(), Silent())


@pytest.mark.parametrize("codes", ["8", "8*256", "x256", "0x256", "8x-1", "8x256x2"])
def test_sizes_are_written_as_m_times_k(codes: str) -> None:
    """Anything but "MxK" is refused where the config is read."""
    with pytest.raises(ConfigError, match="codes"):
        configure(TABLES, Section(type="rq", codes=codes), "table")
