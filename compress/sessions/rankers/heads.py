"""What session encoders share at their end: the query, and the weights of the own items."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from compress.sessions.rankers.base import ages, causal

# A weight of 8 gives six repeated items about half the mass of 40,000 others at random: where the
# share of repeats in real sessions lies (38 to 45 %, papers.md §2.6).
FIRST_WEIGHT = 8.0
# Adam moves a parameter by the learning rate a step; weights have to move by whole units.
REACH = 10.0
WIDTH = 32


class QueryHead(nn.Module):
    """What stands for the session, of length ``scale`` (0: of any length); W h where it is hidden.

    Args:
        dim: D.
        scale: the query's length.
        dropout: of its entries, in training.
        among_items: whether it is an average of item vectors, which is left where it is.
    """

    def __init__(self, dim: int, scale: float, dropout: float, *, among_items: bool = False):
        super().__init__()
        self.out = nn.Identity() if among_items else nn.Linear(dim, dim)
        self.scale, self.dropout = scale, dropout

    def forward(self, session: Tensor) -> Tensor:
        """(…, D) -> (…, D)."""
        query: Tensor = F.dropout(self.out(session), self.dropout, self.training)
        return F.normalize(query, dim=-1) * self.scale if self.scale else query


class RepeatHead(nn.Module):
    """Log weights of the session's items: how long ago, what it is, and what the session is.

    r_lt = 10 · (a_{l-t} + b · h_l + (q_l · (k_t + c_{l-t})) / sqrt(32))
    """

    def __init__(self, dim: int, length: int) -> None:
        super().__init__()
        self.of_age = nn.Parameter(torch.full((length,), FIRST_WEIGHT / REACH))
        self.query = nn.Linear(dim, WIDTH)
        self.key = nn.Linear(dim, WIDTH)
        self.age_key = nn.Parameter(torch.zeros(length, WIDTH))
        self.level = nn.Linear(dim, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, L)."""
        length = hidden.shape[1]
        by_age = ages(length).expand(hidden.shape[0], -1, -1)  # (B, L, L)
        asked = self.query(hidden)  # (B, L, 32)
        content = asked @ self.key(hidden).transpose(1, 2)
        recency = (asked @ self.age_key[:length].T).gather(2, by_age)
        weights = (content + recency) / math.sqrt(WIDTH)
        return causal(REACH * (weights + self.of_age[by_age] + self.level(hidden)))

    def latest(self, hidden: Tensor) -> Tensor:
        """What `forward` says at the last position: (B, L, D) -> (B, L)."""
        length, last = hidden.shape[1], hidden[:, -1]
        asked = self.query(last) / math.sqrt(WIDTH)  # (B, 32)
        # (q W) · h instead of q · (W h): one product, not one for each position.
        content = (hidden @ (asked @ self.key.weight).unsqueeze(2)).squeeze(2)  # (B, L)
        level = asked @ self.key.bias.unsqueeze(1) + self.level(last)  # (B, 1)
        # Of all ages, the oldest first: the last L are those of the session. Weights are turned,
        # never added up or multiplied: the export keeps them in the bits that they were rounded to.
        of_ages = asked @ self.age_key.flip(0).T + self.of_age.flip(0)
        weights: Tensor = REACH * (content + of_ages[:, -length:] + level)
        return weights
