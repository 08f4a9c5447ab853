"""Product, optimised product and residual codes: by hand, and what each step may not do."""

import pytest
import torch
from torch import Tensor

from compress.config import Frozen
from compress.progress import Silent
from compress.sessions.tables import TableMethod, Teacher
from compress.sessions.tables.coded import StoredCodesConfig, composed
from compress.sessions.tables.distinct import shared
from compress.sessions.tables.opq import Opq, absorbed
from compress.sessions.tables.pq import Pq
from compress.sessions.tables.rq import Rq, RqConfig, beam_search, mended, residual_codes


def even(vectors: Tensor) -> Teacher:
    """A teacher whose items are clicked alike."""
    return Teacher(vectors, torch.ones(len(vectors)), None)


def error(method: type[TableMethod], teacher: Teacher, config: Frozen) -> float:
    """Mean squared distance of a method's vectors to the teacher's."""
    table = method().build(teacher, config, torch.Generator().manual_seed(1), Silent())
    with torch.no_grad():
        left = table(torch.arange(table.items)) - teacher.vectors
    return float(left.square().sum(1).mean())


def test_pq_finds_the_two_values_of_each_cut() -> None:
    """By hand: {0, 1} x {0, 10} is two codebooks of two codewords, exactly."""
    vectors = torch.tensor([[x, y] for x in (0.0, 1.0) for y in (0.0, 10.0)])

    table = Pq().build(
        even(vectors), StoredCodesConfig(codes="2x2"), torch.Generator().manual_seed(0), Silent()
    )

    assert [sorted(book.flatten().tolist()) for book in table.codebooks] == [[0, 1], [0, 10]]
    assert torch.equal(table(torch.arange(4)), vectors)


def test_rq_finds_coarse_and_fine() -> None:
    """By hand: 0 or 100, plus 0 or 1; the first codebook takes the hundreds, then come the ones."""
    vectors = torch.tensor([[0.0], [1.0], [100.0], [101.0]])

    codes, codebooks = residual_codes(
        vectors, torch.ones(4), 2, 2, generator=torch.Generator().manual_seed(0), progress=Silent()
    )

    assert sorted(codebooks[0].flatten().tolist()) == [0.5, 100.5]
    assert sorted(codebooks[1].flatten().tolist()) == [-0.5, 0.5]
    assert torch.equal(composed(codes, codebooks), vectors)


def test_a_beam_finds_what_greed_misses() -> None:
    """By hand: 5 from {4, 8} + {0, -3}: the nearest first is 4, and 8 - 3 is exact."""
    codebooks = torch.tensor([[[4.0], [8.0]], [[0.0], [-3.0]]])

    assert beam_search(torch.tensor([[5.0]]), codebooks, beam=1).tolist() == [[0, 0]]
    assert beam_search(torch.tensor([[5.0]]), codebooks, beam=2).tolist() == [[1, 1]]


def test_a_beam_of_all_is_the_best_there_is() -> None:
    """With every beginning kept, the search equals trying all K^M codes."""
    draw = torch.Generator().manual_seed(0)
    codebooks, points = torch.randn(3, 4, 6, generator=draw), torch.randn(50, 6, generator=draw)
    every = torch.cartesian_prod(*[torch.arange(4)] * 3)  # (K^M, M)
    best = torch.cdist(points, composed(every, codebooks)).argmin(1)

    assert torch.equal(beam_search(points, codebooks, beam=64), every[best])


def test_mending_never_raises_the_error(teacher: Teacher) -> None:
    """Each round of beam search and least squares is at least as near as the one before."""
    vectors, weights = teacher.vectors, torch.ones(300)
    codes, codebooks = residual_codes(
        vectors, weights, 3, 16, generator=torch.Generator().manual_seed(0), progress=Silent()
    )

    errors = []
    for rounds in range(4):
        found = mended(vectors, codes, codebooks, weights, beam=4, rounds=rounds, progress=Silent())
        errors.append(float((vectors - composed(*found)).square().sum()))

    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.98 * errors[0]


def test_a_rotation_goes_into_the_codewords() -> None:
    """The sum of absorbed codewords is the concatenation, rotated back."""
    draw = torch.Generator().manual_seed(0)
    cuts, codes = torch.randn(2, 4, 3, generator=draw), torch.randint(4, (9, 2), generator=draw)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=draw)).Q

    rotated_back = composed(codes, cuts, concatenated=True) @ rotation

    torch.testing.assert_close(composed(codes, absorbed(cuts, rotation)), rotated_back)


def test_opq_beats_pq_on_cuts_that_depend_on_each_other() -> None:
    """Vectors that vary along few directions, all across the cuts: the rotation separates them."""
    draw = torch.Generator().manual_seed(0)
    spread = torch.tensor([4.0, 3.0, 0.3, 0.2, 0.2, 0.1, 0.1, 0.1])
    turned = torch.linalg.qr(torch.randn(8, 8, generator=draw)).Q
    teacher = even(torch.randn(500, 8, generator=draw) * spread @ turned)
    config = StoredCodesConfig(codes="2x32", distinct=False)

    assert error(Opq, teacher, config) < 0.8 * error(Pq, teacher, config)


def test_rq_comes_nearer_than_pq_and_mending_nearer_still(teacher: Teacher) -> None:
    """On clustered vectors, at one M and K: mended < residual < product."""
    product = error(Pq, teacher, StoredCodesConfig(codes="4x16"))
    plain = error(Rq, teacher, RqConfig(codes="4x16", rounds=0))
    best = error(Rq, teacher, RqConfig(codes="4x16"))

    assert best < plain < product


def test_frequency_buys_accuracy_for_frequent_items(teacher: Teacher) -> None:
    """Weighting by clicks lowers the click-weighted error."""
    clicks = torch.where(torch.arange(300) % 10 == 0, 1000, 1)
    weighted = Teacher(teacher.vectors, clicks, None)

    def click_error(frequency: float) -> float:
        config = RqConfig(codes="3x8", frequency=frequency, distinct=False)
        table = Rq().build(weighted, config, torch.Generator().manual_seed(0), Silent())
        with torch.no_grad():
            left = (table(torch.arange(300)) - teacher.vectors).square().sum(1)
        return float((left * clicks).sum() / clicks.sum())

    assert click_error(1.0) < 0.9 * click_error(0.0)


@pytest.mark.parametrize("method", [Pq, Opq, Rq])
def test_equal_items_get_codes_of_their_own(method: type[TableMethod], teacher: Teacher) -> None:
    """Items with one vector are told apart, unless that is switched off."""
    vectors = teacher.vectors.clone()
    vectors[100:160] = vectors[100]

    def doubles(distinct: bool) -> int:
        config = method.Config(codes="4x16", distinct=distinct)
        table = method().build(even(vectors), config, torch.Generator().manual_seed(0), Silent())
        return int((shared(table.codes) != torch.arange(300)).sum())

    assert doubles(True) == 0
    assert doubles(False) >= 59
