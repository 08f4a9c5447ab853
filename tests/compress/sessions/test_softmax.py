"""The blocked log-sum-exp is the plain one, and so are its gradients."""

import math

import pytest
import torch
from torch import Tensor

from compress.sessions.softmax import ROWS, column_mass

P, C, D = 2 * ROWS + 3, 301, 8


def given(kind: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, vectors, corrections and weights of the result."""
    draw = torch.Generator().manual_seed(3)
    query = (3 * torch.randn(P, D, generator=draw)).to(kind).requires_grad_()
    vectors = torch.randn(C, D, generator=draw).to(kind).requires_grad_()
    correction, weight = (torch.randn(n, generator=draw).to(kind) for n in (C, P))
    return query, vectors, correction, weight


def plain(query: Tensor, vectors: Tensor, correction: Tensor) -> Tensor:
    """What it has to equal."""
    return (query @ vectors.T + correction).logsumexp(1)


def test_in_doubles_it_is_the_plain_sum() -> None:
    """Value and both gradients, over several blocks and a rest."""
    query, vectors, correction, weight = given(torch.float64)

    found = column_mass(query, vectors, correction, half=False)
    expected = plain(query, vectors, correction)

    torch.testing.assert_close(found, expected)
    ours = torch.autograd.grad(found @ weight, (query, vectors))
    theirs = torch.autograd.grad(expected @ weight, (query, vectors))
    torch.testing.assert_close(ours, theirs)


def test_large_logits_do_not_overflow() -> None:
    """exp(2,000) would."""
    found = column_mass(torch.full((1, 1), 2000.0), torch.ones(3, 1), torch.zeros(3), half=False)

    assert float(found) == pytest.approx(2000 + math.log(3), abs=1e-3)


def test_halves_are_near() -> None:
    """By the rounding of bfloat16: 8 bits of each factor and of each product."""
    query, vectors, correction, weight = given(torch.float32)

    found = column_mass(query, vectors, correction, half=True)
    expected = plain(query, vectors, correction)

    largest = float((query @ vectors.T).abs().max().detach())
    assert float((found - expected).abs().max().detach()) < 3 * largest / 256
    for ours, theirs in zip(
        torch.autograd.grad(found @ weight, (query, vectors)),
        torch.autograd.grad(expected @ weight, (query, vectors)),
        strict=True,
    ):
        assert float((ours - theirs).norm() / theirs.norm()) < 0.02
