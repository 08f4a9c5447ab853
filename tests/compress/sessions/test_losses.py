"""The losses are the sums that their module writes down, whole or sampled."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from compress.sessions.losses import (
    Columns,
    Scored,
    all_columns,
    next_item_loss,
    sampled_columns,
    scored,
    soft_target_loss,
)
from compress.sessions.rankers.base import NOTHING

N, D = 23, 5


class Case(NamedTuple):
    """Positions to be predicted from."""

    query: Tensor  # (P, D)
    repeat: Tensor  # (P, T)
    vectors: Tensor  # (N, D)
    history: Tensor  # (P, T)
    target: Tensor  # (P,)


def case(seed: int = 0) -> Case:
    """Sessions with doubles; targets that are new, repeated, twice there, and before any item."""
    draw = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    history = torch.tensor([[3, 3, 8, 1], [3, 3, 8, 1], [0, 5, 0, 0], [0, 0, 0, 0], [9, 2, 9, 4]])
    target = torch.tensor([3, 7, 0, 0, 9])
    seen = torch.tensor([4, 4, 2, 0, 3])  # positions that there are
    repeat = numbers(5, 4) + 1
    repeat[torch.arange(4) >= seen[:, None]] = NOTHING
    return Case(numbers(5, D), repeat, numbers(N, D), history, target)


def against(columns: Columns, given: Case) -> Scored:
    """The case against columns."""
    query, repeat, vectors, history, target = given
    return scored(
        query,
        repeat,
        vectors=vectors[columns.rows],
        columns=columns,
        history=history,
        target=target,
    )


def naive_masses(given: Case, position: int) -> list[float]:
    """What leads to each item, item by item."""
    query, repeat, vectors, history, _ = given
    masses = []
    for v in range(N):
        mass = math.exp(float(sum(query[position, d] * vectors[v, d] for d in range(D))))
        for t in range(history.shape[1]):
            if history[position, t] == v:
                mass += math.exp(float(repeat[position, t]))
        masses.append(mass)
    return masses


def test_the_loss_is_the_mean_of_minus_log_p() -> None:
    """With copies: every way to the target counts, and every way is in the denominator."""
    given = case()

    found = float(next_item_loss(against(all_columns(N), given)))

    losses = []
    for position, target in enumerate(given.target.tolist()):
        masses = naive_masses(given, position)
        losses.append(-math.log(masses[target] / sum(masses)))
    assert found == pytest.approx(sum(losses) / len(losses), rel=1e-12)


def test_what_stands_after_a_session_is_no_copy() -> None:
    """Padding is row 0: a target of row 0 gains nothing by it."""
    given = case()
    padded = against(all_columns(N), given)
    other = given._replace(history=given.history.masked_fill(given.repeat == NOTHING, 6))

    assert padded.hits.any(1).tolist() == [True, False, True, False, True]
    assert next_item_loss(padded) == next_item_loss(against(all_columns(N), other))


def test_a_sample_of_everything_is_the_whole() -> None:
    """In whatever order the columns stand."""
    given = case()
    own = torch.unique(torch.cat([given.history.reshape(-1), given.target]))
    whole = next_item_loss(against(all_columns(N), given))
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    place = torch.empty(N, dtype=torch.long)
    place[order] = torch.arange(N)
    mixed = Columns(order, place, torch.zeros(N))

    assert next_item_loss(against(sampled_columns(own, N, N - len(own)), given)) == whole
    assert next_item_loss(against(mixed, given)) == pytest.approx(float(whole), rel=1e-12)


def test_a_sample_holds_the_batchs_own_items_and_others_only() -> None:
    """Own ones once, in full; of the others as many as asked for, none of them an own one."""
    own = torch.tensor([2, 3, 11])
    torch.manual_seed(0)

    columns = sampled_columns(own, N, 6)

    assert columns.rows[:3].tolist() == own.tolist()
    assert not set(columns.rows[3:].tolist()) & set(own.tolist())
    assert columns.correction.tolist() == pytest.approx([0.0] * 3 + [math.log(20 / 6)] * 6)
    assert columns.place[own].tolist() == [0, 1, 2]
    assert (columns.place >= 0).sum() == 3


def test_the_sampled_denominator_is_unbiased() -> None:
    """The mean over many draws comes to the sum over the whole catalogue."""
    given = case()
    own = torch.unique(torch.cat([given.history.reshape(-1), given.target]))
    whole = against(all_columns(N), given).ways().exp().sum(1)
    torch.manual_seed(0)

    sums = torch.stack(
        [against(sampled_columns(own, N, 6), given).ways().exp().sum(1) for _ in range(2000)]
    )

    error = sums.std(0) / math.sqrt(len(sums))
    assert (error > 0).all()
    assert ((sums.mean(0) - whole).abs() < 4 * error).all()


def test_gradients_are_those_of_the_loss() -> None:
    """By finite differences, for queries, weights of copies and item vectors."""
    given = case()
    real = given.repeat > NOTHING

    def loss(query: Tensor, weights: Tensor, vectors: Tensor) -> Tensor:
        repeat = torch.full_like(given.repeat, NOTHING).masked_scatter(real, weights)
        ours = given._replace(query=query, repeat=repeat, vectors=vectors)
        return next_item_loss(against(all_columns(N), ours))

    inputs = (given.query, given.repeat[real], given.vectors)
    assert torch.autograd.gradcheck(loss, [each.clone().requires_grad_() for each in inputs])


def test_soft_targets_cost_nothing_where_both_agree() -> None:
    """And the divergence of teacher from student otherwise, over all ways."""
    student, teacher = (against(all_columns(N), case(seed)) for seed in (1, 2))
    p, q = (given.ways().softmax(1) for given in (teacher, student))
    some = p > 0

    found = float(soft_target_loss(student, teacher))

    divergence = (p[some] * (p[some].log() - q[some].log())).sum() / len(p)
    assert found == pytest.approx(float(divergence), rel=1e-9)
    assert found > 0.1
    assert float(soft_target_loss(student, student)) == pytest.approx(0.0, abs=1e-12)


def test_soft_targets_are_learned_by_student_and_teacher() -> None:
    """By finite differences, on both sides."""
    ours, theirs = case(1), case(2)
    columns = all_columns(N)

    def loss(query: Tensor, other: Tensor) -> Tensor:
        student = against(columns, ours._replace(query=query))
        return soft_target_loss(student, against(columns, theirs._replace(query=other)))

    inputs = (ours.query.clone().requires_grad_(), theirs.query.clone().requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)
