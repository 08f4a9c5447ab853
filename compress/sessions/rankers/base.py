"""What a session ranker is: vectors of a session's items in, the ways to the next one out.

There are three ways to the next item v after v_1 … v_l, each with its mass; the score is their log:

    generate   exp(q_l · e_v)                         a query against the item's vector
    repeat     sum_{t <= l} exp(r_lt) [v_t = v]        the session's own items, once more
    follow     sum_{t <= l} exp(f_lt) S[v_t, v]        what followed them in other sessions

Generate and repeat share one normaliser, so training by cross-entropy settles how much of the mass
each gets (a copy mechanism; papers.md §2.6 counts 38 to 45 % of targets as repeats). Everything is
causal: position l sees positions up to l only, so one pass over a session trains all its prefixes.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from compress.config import Frozen
from compress.sessions.data import Sessions
from model_store.item_vectors import Neighbours

# The log of no mass: far below any weight, and finite, so that gradients stay numbers.
NOTHING = -1e4


class Ways(NamedTuple):
    """Log weights at every position of every session; None for a way that a ranker lacks.

    Attributes:
        query: (B, L, D).
        repeat: (B, L, L): at position l, of the item at position t; `NOTHING` where t > l.
        follow: as ``repeat``.
    """

    query: Tensor | None
    repeat: Tensor | None
    follow: Tensor | None


class SessionRankerConfig(Frozen):
    """What every session ranker needs.

    Attributes:
        dim: D, of item vectors; 1 where there are none.
        length: L, the newest so many items of a session are taken; of one item no graph is traced
            that takes several.
    """

    dim: int = Field(default=1, ge=1)
    length: int = Field(default=50, ge=2)


class SessionRanker(nn.Module, ABC):
    """Encodes sessions. It holds no item vectors: they arrive as input, whatever form they have.

    Attributes:
        neighbours: S, of rankers that have the way ``follow``.
        boost: () added to the log weights of ``repeat``; fitted after training (`calibrate`).
        USES_VECTORS: whether it has the way ``generate``: then it is trained, else fitted.
    """

    Config: ClassVar[type[SessionRankerConfig]]
    USES_VECTORS: ClassVar[bool] = True

    def __init__(self, config: SessionRankerConfig) -> None:
        super().__init__()
        self.config = config
        self.neighbours: Neighbours | None = None
        # Stands before every session, as if it were an item: what an empty session is made of.
        # As long as an item: a query of no length has no direction, and gradients without bound.
        self.start = nn.Parameter(F.normalize(torch.randn(config.dim), dim=0))
        self.boost: Tensor
        self.register_buffer("boost", torch.zeros(()))

    @abstractmethod
    def forward(self, vectors: Tensor) -> Ways:
        """(B, L, D) -> the ways at each position. Padding stands at the end of a session."""

    def encode(self, vectors: Tensor) -> Ways:
        """The ways after 0 … L items: (B, L, D) -> query (B, L + 1, D), others (B, L + 1, L)."""
        return self.of_items(self(self.after_start(vectors)))

    def latest(self, vectors: Tensor) -> Ways:
        """The ways after all L items, which is all that serving asks for.

        (B, L, D) -> query (B, D), others (B, L).
        """
        return Ways(*(None if way is None else way[:, -1] for way in self.encode(vectors)))

    def after_start(self, vectors: Tensor) -> Tensor:
        """(B, L, D) -> (B, L + 1, D)."""
        return torch.cat([self.start.expand(vectors.shape[0], 1, -1), vectors], dim=1)

    def of_items(self, ways: Ways) -> Ways:
        """Without what the start weighs itself, which is no item; what repeats as calibrated."""
        query, repeat, follow = ways
        return Ways(
            query,
            None if repeat is None else repeat[..., 1:] + self.boost,
            None if follow is None else follow[..., 1:],
        )

    @property
    def repeats(self) -> bool:
        """Whether it has the way ``repeat``."""
        with torch.inference_mode():
            return self(self.start[None, None]).repeat is not None

    def fit(self, sessions: Sessions) -> None:
        """Take from the training sessions what is counted, not learned. Most rankers: nothing."""
        del sessions


def ages(length: int) -> Tensor:
    """(L, L): how many clicks ago, at position l, position t was; 0 for those to come."""
    at = torch.arange(length)
    return (at[:, None] - at[None, :]).clamp(min=0)


def causal(weights: Tensor) -> Tensor:
    """(…, L, L) log weights with `NOTHING` for positions to come."""
    seen = torch.ones(weights.shape[-2:], dtype=torch.bool).tril()
    return weights.masked_fill(~seen, NOTHING)
