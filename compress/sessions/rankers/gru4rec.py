"""GRU4Rec: a gated recurrent unit over the session (Hidasi et al. 2016; Hidasi & Karatzoglou 2018).

    h_l = GRU(h_{l-1}, e_l),   score = scale · W h_l / |W h_l| · e_v

It is trained as every session ranker here is, by cross-entropy over the catalogue.
"""

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from compress.sessions.rankers.base import SessionRanker, SessionRankerConfig, Ways
from compress.sessions.rankers.heads import QueryHead, RepeatHead


class Gru4RecConfig(SessionRankerConfig):
    """Options; as `SasRecConfig`'s of the same names."""

    dim: int = Field(default=128, ge=1)
    layers: int = Field(default=1, ge=1)
    dropout: float = Field(default=0.5, ge=0.0, lt=1.0)
    scale: float = Field(default=12.0, ge=0.0)
    repeat: bool = True


class Gru4Rec(SessionRanker):
    """A recurrent encoder."""

    Config: ClassVar[type[SessionRankerConfig]] = Gru4RecConfig
    config: Gru4RecConfig

    def __init__(self, config: Gru4RecConfig) -> None:
        super().__init__(config)
        dim = config.dim
        self.norm = nn.LayerNorm(dim)
        self.cells = nn.GRU(dim, dim, config.layers, batch_first=True)
        self.query = QueryHead(dim, config.scale, config.dropout)
        self.repeat = RepeatHead(dim, config.length + 1) if config.repeat else None

    def forward(self, vectors: Tensor) -> Ways:
        """(B, L, D) -> the ways at each position."""
        inputs = F.dropout(self.norm(vectors), self.config.dropout, self.training)
        hidden = self.cells(inputs)[0]
        repeat = None if self.repeat is None else self.repeat(hidden)
        return Ways(self.query(hidden), repeat, None)
