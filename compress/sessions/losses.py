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
        logits: (P, C) of the columns, corrected.
        repeat: (P, T) log weights of the session's items; `NOTHING` where there is none.
        target_column: (P,) column of the target.
        hits: (P, T) whether that session item is the target.
    """

    logits: Tensor
    repeat: Tensor
    target_column: Tensor
    hits: Tensor

    def ways(self) -> Tensor:
        """(P, C + T) log weights of all ways."""
        return torch.cat([self.logits, self.repeat], dim=1)


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
    logits = query @ vectors.T + columns.correction
    hits = (history == target.unsqueeze(1)) & (repeat > NOTHING / 2)
    return Scored(logits, repeat, columns.place[target], hits)


def next_item_loss(given: Scored) -> Tensor:
    """Mean of -log p(target)."""
    reaching = torch.cat(
        [
            given.logits.gather(1, given.target_column.unsqueeze(1)),
            given.repeat.masked_fill(~given.hits, NOTHING),
        ],
        dim=1,
    )
    return (given.ways().logsumexp(1) - reaching.logsumexp(1)).mean()


def soft_target_loss(student: Scored, teacher: Scored) -> Tensor:
    """Mean KL(teacher || student) over all ways (papers.md §2.5, L_soft at temperature 1)."""
    return F.kl_div(
        student.ways().log_softmax(1),
        teacher.ways().log_softmax(1),
        log_target=True,
        reduction="batchmean",
    )
