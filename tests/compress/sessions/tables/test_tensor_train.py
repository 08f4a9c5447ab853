"""Tensor and semi-tensor trains: parameter counts of the papers, products by hand, SVD starts."""

import math

import pytest
import torch

from compress.config import ConfigError
from compress.progress import Silent
from compress.sessions.tables import Teacher
from compress.sessions.tables.tensor_train import (
    FactoredItems,
    Shape,
    Sttd,
    SttdConfig,
    Tt,
    TtConfig,
    divisors,
    gaussian,
    shape_of,
)
from model_store.item_vectors import expanded

TMALL = 40_727


@pytest.mark.parametrize(("rank", "block", "ratio"), [(60, 2, 27.3), (60, 1, 18.8)])
def test_ratios_are_those_of_the_papers(rank: int, block: int, ratio: float) -> None:
    """Tmall with (169, 241) x (16, 8) and R = 60: 27.3 times smaller with n = 2, 18.8 plain."""
    shape = Shape((169, 241), (16, 8), rank, block)

    assert round(TMALL * 128 / shape.parameters(), 1) == ratio


def test_parameters_are_the_formulas_of_od_rec() -> None:
    """With d = 2, I1·J1·R + I2·J2·R/n²; with d = 3, I1·J1·R + I2·J2·R²/n² + I3·J3·R/n²."""
    two = Shape((169, 241), (16, 8), 60, 2)
    three = Shape((13, 13, 241), (8, 4, 4), 60, 2)

    assert two.parameters() == 169 * 16 * 60 + 241 * 8 * 60 // 4
    assert three.parameters() == 13 * 8 * 60 + 13 * 4 * 60**2 // 4 + 241 * 4 * 60 // 4


def test_a_semi_tensor_product_by_hand() -> None:
    """(1, 2, 3, 4) ⋉ (10, 100) with n = 2 is 10·(1, 2) + 100·(3, 4) = (310, 420)."""
    first = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    second = torch.tensor([10.0, 100.0]).view(2, 1, 1, 1)

    table = FactoredItems([first, second], block=2, items=1)

    assert table(torch.tensor([0])).tolist() == [[310.0, 420.0]]


def test_a_tensor_train_by_hand() -> None:
    """Rank 1: row (i1, i2) is the outer product of the slices, the first index the slower."""
    first = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 2, 2, 1)
    second = torch.tensor([[1.0, 10.0], [100.0, 1000.0]]).view(1, 2, 2, 1)

    table = FactoredItems([first, second], block=1, items=3)

    rows = table(torch.arange(3)).tolist()
    assert rows == [[1, 10, 2, 20], [100, 1000, 200, 2000], [3, 30, 4, 40]]


@pytest.mark.parametrize(
    "shape",
    [
        Shape((5, 6), (4, 6), 6, 1),
        Shape((5, 6), (4, 6), 6, 2),
        Shape((5, 6), (4, 6), 6, 3),
        Shape((3, 4, 5), (2, 3, 4), 4, 1),
        Shape((3, 4, 5), (2, 3, 4), 4, 2),
        Shape((2, 3, 2, 3), (2, 2, 2, 4), 8, 4),
    ],
)
def test_gathered_rows_are_those_of_the_whole_table(shape: Shape) -> None:
    """Slices multiplied row by row equal the expanded cores, for any number of cores and n."""
    items = math.prod(shape.items) - 2
    cores = gaussian(shape, 1.0, torch.Generator().manual_seed(0))
    rows = torch.tensor([[0, items - 1], [7, 3]])

    with torch.no_grad():
        found = FactoredItems(cores, shape.block, items)(rows)

    whole = torch.from_numpy(expanded([core.numpy() for core in cores], shape.block, items))
    torch.testing.assert_close(found, whole[rows], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "config"),
    [
        (Tt, TtConfig(rank=4, cores=2)),
        (Tt, TtConfig(rank=3, cores=3)),
        (Sttd, SttdConfig(rank=4, cores=2)),
        (Sttd, SttdConfig(rank=6, cores=3, semi=3, dim_factors=(2, 2, 3))),
    ],
)
def test_a_table_that_is_a_train_is_found_again(method: type[Tt], config: TtConfig) -> None:
    """The SVD start of the true rank gives such a table back."""
    shape = shape_of(config, 60, 12)
    cores = gaussian(shape, 1.0, torch.Generator().manual_seed(0))
    table = torch.from_numpy(expanded([c.numpy() for c in cores], shape.block, shape_items(shape)))
    teacher = Teacher(table, torch.ones(len(table)), None)

    found = method().build(teacher, config, torch.Generator().manual_seed(0), Silent())

    with torch.no_grad():
        left = found(torch.arange(len(table))) - table
    assert float(left.square().mean().sqrt()) < 1e-4


def shape_items(shape: Shape) -> int:
    """All rows that a shape has: then no row is padding, and the rank is the true one."""
    return math.prod(shape.items)


def test_more_rank_comes_nearer(teacher: Teacher) -> None:
    """The error falls with the rank, to nothing at the rank of the cut."""
    errors = []
    for rank in (2, 8, 32, 4096):
        table = Tt().build(teacher, TtConfig(rank=rank), torch.Generator().manual_seed(0), Silent())
        with torch.no_grad():
            left = table(torch.arange(300)) - teacher.vectors
        errors.append(float(left.square().sum() / teacher.vectors.square().sum()))

    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-9


def test_a_gaussian_start_has_the_variance_of_the_table() -> None:
    """The entries of the expanded table vary as asked for, whatever rank and cores."""
    for shape in (Shape((30, 30), (8, 8), 16, 2), Shape((9, 9, 9), (4, 4, 4), 8, 1)):
        cores = gaussian(shape, 0.25, torch.Generator().manual_seed(0))

        whole = expanded([core.numpy() for core in cores], shape.block, shape_items(shape))

        assert 0.15 < whole.var() < 0.4


@pytest.mark.parametrize("max_bytes", [40_000, 200_000])
@pytest.mark.parametrize("config", [TtConfig, SttdConfig])
def test_bytes_are_kept_to_and_used(config: type[TtConfig], max_bytes: int) -> None:
    """The rank is the largest whose cores take no more than was allowed."""
    shape = shape_of(config(max_bytes=max_bytes), 2000, 64)
    n = shape.block

    taken = 4 * shape.parameters()
    more = 4 * Shape(shape.items, shape.dims, shape.rank + n, n).parameters()
    assert taken <= max_bytes < more


def test_without_rank_or_bytes_the_table_is_a_thirtieth() -> None:
    """The ratio of the papers is the default."""
    shape = shape_of(TtConfig(), TMALL, 128)

    assert 30 <= TMALL * 128 / shape.parameters() < 31


@pytest.mark.parametrize(
    ("dim", "count", "expected"), [(128, 2, (8, 16)), (96, 3, (4, 4, 6)), (13, 2, (1, 13))]
)
def test_widths_are_cut_into_equal_factors(dim: int, count: int, expected: tuple[int, ...]) -> None:
    """As equal as the divisors let it be."""
    assert divisors(dim, count) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TtConfig(item_factors=(10, 10), rank=4), "hold 100 of 300 items"),
        (TtConfig(dim_factors=(4, 5), rank=4), "20 of 16 columns"),
        (TtConfig(item_factors=(20, 20), dim_factors=(2, 2, 4), rank=4), "equally many"),
        (SttdConfig(rank=5), "rank=5: expected a multiple of semi=2"),
        (SttdConfig(rank=6, semi=3), "semi=3 does not divide the width 16"),
        (SttdConfig(rank=4, semi=4, dim_factors=(8, 2)), "does not divide the last"),
        (TtConfig(max_bytes=100), "takes 560 already"),
    ],
)
def test_factors_that_do_not_fit_are_refused(config: TtConfig, message: str) -> None:
    """The text says what they hold, and what the table needs."""
    with pytest.raises(ConfigError) as refused:
        shape_of(config, 300, 16)

    assert message in str(refused.value)
