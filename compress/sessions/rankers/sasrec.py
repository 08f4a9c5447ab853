"""SASRec with three poolings, and with a way to repeat the session's items.

    x_t = LN(e_t + p_t)                            positions counted from the left
    h   = LN(x + Attention(x)),  h ← LN(h + FFN(h))    causal, GELU (erf)
    last        θ_l = W h_l
    attention   θ_l = W sum_{t<=l} α_lt h_t,   α_lt = f · sigmoid(W1 h̄_l + W2 h_t + c),
                h̄_l the mean of h_1 … h_l
    items       θ_l = sum_{t<=l} β_lt e_t,   β_lt = softmax_t(A h_l · B h_t - b_{l-t})
    score       scale · θ_l / |θ_l| · e_v

``last`` is Kang & McAuley 2018; ``attention`` the variant of EODRec (papers.md §2.1) without its
fault: h̄ is the mean over real positions, not over padding. ``items`` keeps the session among the
vectors that it is compared with, as CORE (Hou et al. 2022) does: training begins with an average of
the latest items, and item vectors that are good already stay so. A term W h_l besides was tried: on
Tmall it learned the training sessions by heart (docs/sessions.md).
"""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from compress.sessions.rankers.base import (
    SessionRanker,
    SessionRankerConfig,
    Ways,
    ages,
    causal,
)
from compress.sessions.rankers.heads import REACH, QueryHead, RepeatHead

FADES = 0.5


class SasRecConfig(SessionRankerConfig):
    """Options.

    Attributes:
        pooling: what stands for the session; see above.
        scale: of the query, which has unit length otherwise; 0 leaves its length free.
        repeat: whether the session's own items get a share of the score.
    """

    dim: int = Field(default=128, ge=1)
    layers: int = Field(default=1, ge=1)
    heads: int = Field(default=1, ge=1)
    dropout: float = Field(default=0.5, ge=0.0, lt=1.0)
    pooling: Literal["items", "last", "attention"] = "items"
    scale: float = Field(default=12.0, ge=0.0)
    repeat: bool = True

    @model_validator(mode="after")
    def _divides(self) -> "SasRecConfig":
        if self.dim % self.heads:
            raise ValueError(f"dim = {self.dim} does not divide into {self.heads} heads")
        return self


class Block(nn.Module):
    """One layer: causal attention and a feed-forward net, each with residual and LayerNorm."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.feed = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.norm_feed = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        q, k, v = map(self._by_head, self.qkv(x).chunk(3, dim=-1))
        weights = (q @ k.transpose(-2, -1) / math.sqrt(x.shape[2] // self.heads)).float()
        weights = self._drop(causal(weights).softmax(-1))
        mixed = weights @ v  # (B, L, D), or (B, H, L, D / H)
        if self.heads > 1:
            mixed = mixed.transpose(1, 2).flatten(2)
        x = self.norm(x + self._drop(self.out(mixed)))
        normed: Tensor = self.norm_feed(x + self._drop(self.feed(x)))
        return normed

    def _by_head(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, H, L, D / H); as it is for one head, which spares the graph nodes."""
        rows, length, dim = x.shape
        if self.heads == 1:
            return x
        return x.reshape(rows, length, self.heads, dim // self.heads).transpose(1, 2)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class SoftAttention(nn.Module):
    """Pools positions 1 … l for every l: α_lt = f · sigmoid(W1 h̄_l + W2 h_t + c), no softmax."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.of_mean = nn.Linear(dim, dim)
        self.of_each = nn.Linear(dim, dim, bias=False)
        self.weigh = nn.Linear(dim, 1, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        length = hidden.shape[1]
        share = torch.ones(length, length).tril()
        share = share / share.sum(1, keepdim=True)
        mean = share @ hidden  # (B, L, D)
        mixed = self.of_mean(mean).unsqueeze(2) + self.of_each(hidden).unsqueeze(1)
        alpha = self.weigh(torch.sigmoid(mixed)).squeeze(-1)  # (B, L, L)
        return torch.tril(alpha) @ hidden


class ItemPool(nn.Module):
    """Averages the item vectors of positions 1 … l for every l, the latest first of all."""

    def __init__(self, dim: int, length: int) -> None:
        super().__init__()
        self.asks, self.answers = nn.Linear(dim, dim), nn.Linear(dim, dim)
        # Half the weight of the click after it, or thereabouts.
        self.of_age = nn.Parameter(-FADES * torch.arange(length).float() / REACH)

    def forward(self, vectors: Tensor, hidden: Tensor) -> Tensor:
        """Item vectors and hidden states (B, L, D) -> (B, L, D)."""
        length = vectors.shape[1]
        content = self.asks(hidden) @ self.answers(hidden).transpose(1, 2)
        weights = content / math.sqrt(vectors.shape[2]) + REACH * self.of_age[ages(length)]
        pooled: Tensor = causal(weights).softmax(-1) @ vectors
        return pooled

    def latest(self, vectors: Tensor, hidden: Tensor) -> Tensor:
        """What `forward` says at the last position: (B, L, D) both -> (B, D)."""
        # (q W) · h instead of q · (W h + b): one product, not one for each position; and the
        # softmax takes out q · b, which all positions share.
        asked = self.asks(hidden[:, -1]) / (REACH * math.sqrt(vectors.shape[2]))
        content = (hidden @ (asked @ self.answers.weight).unsqueeze(2)).squeeze(2)  # (B, L)
        of_ages = self.of_age.flip(0)  # the oldest first: the last L are the session's
        # Multiplied last: the export keeps weights in the bits that they were rounded to.
        weights = REACH * (content + of_ages[-vectors.shape[1] :])
        pooled: Tensor = (weights.softmax(-1).unsqueeze(1) @ vectors).squeeze(1)
        return pooled


class SasRec(SessionRanker):
    """Transformer over the session."""

    Config: ClassVar[type[SessionRankerConfig]] = SasRecConfig
    config: SasRecConfig

    def __init__(self, config: SasRecConfig) -> None:
        super().__init__(config)
        dim = config.dim
        self.positions = nn.Parameter(torch.randn(config.length + 1, dim) * 0.02)
        self.norm = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(
            Block(dim, config.heads, config.dropout) for _ in range(config.layers)
        )
        self.soft = SoftAttention(dim) if config.pooling == "attention" else None
        self.pool = ItemPool(dim, config.length + 1) if config.pooling == "items" else None
        among_items = self.pool is not None
        self.query = QueryHead(dim, config.scale, config.dropout, among_items=among_items)
        self.repeat = RepeatHead(dim, config.length + 1) if config.repeat else None

    def forward(self, vectors: Tensor) -> Ways:
        """(B, L, D) -> the ways at each position."""
        hidden = self._hidden(vectors)
        pooled = hidden if self.soft is None else self.soft(hidden)
        if self.pool is not None:
            pooled = self.pool(vectors, hidden)
        repeat = None if self.repeat is None else self.repeat(hidden)
        return Ways(self.query(pooled), repeat, None)

    def latest(self, vectors: Tensor) -> Ways:
        """As `SessionRanker.latest`, without what other positions would ask."""
        vectors = self.after_start(vectors)
        hidden = self._hidden(vectors)
        if self.pool is not None:
            pooled = self.pool.latest(vectors, hidden)
        else:
            pooled = (hidden if self.soft is None else self.soft(hidden))[:, -1]
        repeat = None if self.repeat is None else self.repeat.latest(hidden)
        return self.of_items(Ways(self.query(pooled), repeat, None))

    def _hidden(self, vectors: Tensor) -> Tensor:
        config, length = self.config, vectors.shape[1]
        # Unit vectors beside positions of 0.02 an entry: as large as the usual embeddings.
        hidden: Tensor = self.norm(vectors * math.sqrt(config.dim) + self.positions[:length])
        hidden = F.dropout(hidden, config.dropout, self.training)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden  # (B, L, D)
