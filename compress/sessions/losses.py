"""Cross-entropy over the ways to the next item, whole or over a sample of the catalogue.

With logits z_v = q · e_v of the catalogue and log weights r_t of the session's own items, all in
one softmax, the probability of an item v is the mass of every way that leads to it:

    p(v) = (exp z_v + sum_{t: v_t = v} exp r_t) / (sum_u exp z_u + sum_t exp r_t)

A sample replaces the first sum of the denominator by the batch's own items, each with its full
weight, and ``negatives`` others drawn uniformly, each weighing N' / negatives, N' how many others
there are: an unbiased estimate of that sum.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from compress.sessions.rankers.base import NOTHING
from compress.sessions.softmax import column_mass


@dataclass(frozen=True, slots=True)
class Columns:
    """The items that a batch is scored against.

    Attributes:
        rows: (C,) item rows.
        place: (N,) column of each row; -1 for items that were not drawn.
        correction: (C,) log of how many items each stands for.
    """

    rows: Tensor
    place: Tensor
    correction: Tensor


def all_columns(items: int) -> Columns:
    """The whole catalogue."""
    every = torch.arange(items)
    return Columns(every, every, torch.zeros(items))


def sampled_columns(own: Tensor, items: int, negatives: int) -> Columns:
    """A batch's own items and a sample of the others.

    Args:
        own: (C',) distinct item rows.
        items: N.
        negatives: how many others.
    """
    mask = torch.ones(items, dtype=torch.bool)
    mask[own] = False
    others = mask.nonzero()[:, 0]
    if len(others) <= negatives:
        return all_columns(items)
    drawn = others[torch.randint(len(others), (negatives,))]
    place = torch.full((items,), -1)
    place[own] = torch.arange(len(own))
    # A row drawn twice stands in two columns, each with its share of the weight.
    weight = math.log(len(others) / negatives)
    correction = torch.cat([torch.zeros(len(own)), torch.full((negatives,), weight)])
    return Columns(torch.cat([own, drawn]), place, correction)


@dataclass(frozen=True, slots=True)
class Scored:
    """Positions of a batch against its columns.

    Attributes:
        query: (P, D).
        vectors: (C, D) of the columns' items.
        correction: (C,) log of how many items each stands for.
        repeat: (P, T) log weights of the session's items; `NOTHING` where there is none.
        target_column: (P,) column of the target.
        hits: (P, T) whether that session item is the target.
    """

    query: Tensor
    vectors: Tensor
    correction: Tensor
    repeat: Tensor
    target_column: Tensor
    hits: Tensor

    def ways(self) -> Tensor:
        """(P, C + T) log weights of all ways."""
        return torch.cat([self.query @ self.vectors.T + self.correction, self.repeat], dim=1)

    def reaching(self) -> Tensor:
        """(P, 1 + T) log weights of the ways to the target."""
        target = (self.query * self.vectors[self.target_column]).sum(1)
        target = target + self.correction[self.target_column]
        repeats = self.repeat.masked_fill(~self.hits, NOTHING)
        return torch.cat([target.unsqueeze(1), repeats], dim=1)


def scored(
    query: Tensor,
    repeat: Tensor,
    *,
    vectors: Tensor,
    columns: Columns,
    history: Tensor,
    target: Tensor,
) -> Scored:
    """Put positions (P, D) and their session's weights (P, T) against item vectors (C, D).

    Args:
        query: (P, D).
        repeat: (P, T).
        vectors: (C, D) of the columns' items.
        columns: which items those are.
        history: (P, T) item rows of the sessions.
        target: (P,) item rows.
    """
    hits = (history == target.unsqueeze(1)) & (repeat > NOTHING / 2)
    return Scored(query, vectors, columns.correction, repeat, columns.place[target], hits)


def next_item_loss(given: Scored, *, half: bool = False) -> Tensor:
    """Mean of -log p(target).

    Args:
        given: the positions.
        half: multiply with the columns in bfloat16, see `column_mass`.
    """
    columns = column_mass(given.query, given.vectors, given.correction, half=half)
    ways = torch.cat([columns.unsqueeze(1), given.repeat], dim=1)
    return (ways.logsumexp(1) - given.reaching().logsumexp(1)).mean()


def soft_target_loss(student: Scored, teacher: Scored) -> Tensor:
    """Mean KL(teacher || student) over all ways (papers.md §2.5, L_soft at temperature 1)."""
    return F.kl_div(
        student.ways().log_softmax(1),
        teacher.ways().log_softmax(1),
        log_target=True,
        reduction="batchmean",
    )
