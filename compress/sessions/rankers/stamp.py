"""STAMP: short-term attention and memory priority (Liu et al. 2018), causal over all prefixes.

    α_lt = w · sigmoid(W1 e_t + W2 e_l + W3 m_l + b)        m_l the mean of e_1 … e_l
    a_l  = m_l + sum_{t<=l} α_lt e_t
    θ_l  = tanh(A a_l) * tanh(B e_l)                        * entry by entry
    score   scale · W θ_l / |W θ_l| · e_v

It is trained as every session ranker here is, by cross-entropy over the catalogue.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from compress.sessions.rankers.base import SessionRanker, SessionRankerConfig, Ways
from compress.sessions.rankers.heads import QueryHead, RepeatHead


class StampConfig(SessionRankerConfig):
    """Options; as `SasRecConfig`'s of the same names."""

    dim: int = Field(default=128, ge=1)
    dropout: float = Field(default=0.3, ge=0.0, lt=1.0)
    scale: float = Field(default=12.0, ge=0.0)
    repeat: bool = True


class Stamp(SessionRanker):
    """Attention with the last item and the session's mean as what it asks by."""

    Config: ClassVar[type[SessionRankerConfig]] = StampConfig
    config: StampConfig

    def __init__(self, config: StampConfig) -> None:
        super().__init__(config)
        dim = config.dim
        self.of_each, self.of_last = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        self.of_mean = nn.Linear(dim, dim, bias=False)
        self.weigh = nn.Linear(dim, 1, bias=False)
        self.session, self.last = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.query = QueryHead(dim, config.scale, config.dropout)
        self.repeat = RepeatHead(dim, config.length + 1) if config.repeat else None

    def forward(self, vectors: Tensor) -> Ways:
        """(B, L, D) -> the ways at each position."""
        items = F.dropout(self.norm(vectors), self.config.dropout, self.training)
        length = items.shape[1]
        share = torch.ones(length, length).tril()
        mean = (share / share.sum(1, keepdim=True)) @ items  # (B, L, D)
        asked = (self.of_last(items) + self.of_mean(mean)).unsqueeze(2)
        alpha = self.weigh(torch.sigmoid(asked + self.of_each(items).unsqueeze(1))).squeeze(-1)
        attended = mean + torch.tril(alpha) @ items
        hidden = torch.tanh(self.session(attended)) * torch.tanh(self.last(items))
        repeat = None if self.repeat is None else self.repeat(hidden)
        return Ways(self.query(hidden), repeat, None)
