"""Rankers without parameters: what a trained one has to beat (compression-anchors.md §3.2).

    own-items          the session's own items, latest first
    sequential-rules   what followed the last clicks in other sessions; a click weighs 0.6 of the
                       one after it, and after the fifth nothing:
                       S[u, v] = sum of 1 / gap over clicks on v up to 10 after one on u, u ≠ v,
                       each row divided by its sum
    rules-and-own      both, an own item weighing 0.8 per click since

As the rows of S sum to one, all that follows an item weighs together what the item itself does.
"""

import math
from typing import ClassVar, Final

import numpy as np
from pydantic import Field
from scipy.sparse import csr_matrix, diags_array
from torch import Tensor

from compress.sessions.cooccurrence import pair_counts
from compress.sessions.data import Sessions
from compress.sessions.rankers.base import (
    NOTHING,
    SessionRanker,
    SessionRankerConfig,
    Ways,
    ages,
    causal,
)
from model_store.item_vectors import Neighbours

# Per click of age. All older clicks together weigh 1 / (e - 1) of one: less, so latest is first
# even if an older item stands many times.
LATEST_FIRST: Final = 1 / math.e


class RulesConfig(SessionRankerConfig):
    """Options of the sequential rules.

    Attributes:
        reach: clicks between an item and what still counts as following it, at most.
        clicks: how many of the last clicks are followed.
        decay: weight of a click, of the one after it.
        neighbours: so many of an item's followers are kept, the heaviest.
    """

    reach: int = Field(default=10, ge=1)
    clicks: int = Field(default=5, ge=1)
    decay: float = Field(default=0.6, gt=0.0, le=1.0)
    neighbours: int = Field(default=100, ge=1)


class RulesAndOwnConfig(RulesConfig):
    """Options of both.

    Attributes:
        own_decay: weight of an own item per click since.
    """

    own_decay: float = Field(default=0.8, gt=0.0, le=1.0)


class OwnItems(SessionRanker):
    """The session's own items, latest first."""

    Config: ClassVar[type[SessionRankerConfig]] = SessionRankerConfig
    USES_VECTORS: ClassVar[bool] = False

    def forward(self, vectors: Tensor) -> Ways:
        """Repeats alone."""
        return Ways(None, _decayed(vectors, LATEST_FIRST), None)


class SequentialRules(SessionRanker):
    """What followed the last clicks in other sessions."""

    Config: ClassVar[type[SessionRankerConfig]] = RulesConfig
    USES_VECTORS: ClassVar[bool] = False
    config: RulesConfig

    def forward(self, vectors: Tensor) -> Ways:
        """Followers alone."""
        weights = _decayed(vectors, self.config.decay)
        old = ages(vectors.shape[1]) >= self.config.clicks
        return Ways(None, None, weights.masked_fill(old, NOTHING))

    def fit(self, sessions: Sessions) -> None:
        """Count what follows what."""
        self.neighbours = rules(sessions, self.config.reach, self.config.neighbours)


class RulesAndOwn(SequentialRules):
    """Both, in one measure."""

    Config: ClassVar[type[SessionRankerConfig]] = RulesAndOwnConfig
    config: RulesAndOwnConfig

    def forward(self, vectors: Tensor) -> Ways:
        """Repeats and followers."""
        own = _decayed(vectors, self.config.own_decay)
        return super().forward(vectors)._replace(repeat=own)


FLOORS: Final[dict[str, type[SessionRanker]]] = {
    "own-items": OwnItems,
    "sequential-rules": SequentialRules,
    "rules-and-own": RulesAndOwn,
}


def rules(sessions: Sessions, reach: int, most: int) -> Neighbours:
    """S, as the module says, with at most so many entries in a row."""
    counts = pair_counts(sessions, reach).tocoo()
    off = counts.row != counts.col
    cells = (counts.data[off], (counts.row[off], counts.col[off]))
    follows = csr_matrix(cells, shape=counts.shape)
    sums = np.asarray(follows.sum(axis=1)).reshape(-1)
    shares = csr_matrix(diags_array(1 / np.where(sums, sums, 1.0)) @ follows)
    return _heaviest(shares, most)


def _heaviest(shares: csr_matrix, most: int) -> Neighbours:
    """The entries of each row, the heaviest ``most`` first."""
    rows = np.repeat(np.arange(shares.shape[0]), np.diff(shares.indptr))
    order = np.lexsort((shares.indices, -shares.data, rows))
    kept = order[np.arange(len(order)) - shares.indptr[rows] < most]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows[kept], minlength=shares.shape[0]))])
    return Neighbours(
        offsets.astype(np.int32),
        shares.indices[kept].astype(np.int32),
        shares.data[kept].astype(np.float32),
    )


def _decayed(vectors: Tensor, decay: float) -> Tensor:
    """(B, L, L) log weights of a factor per click of age."""
    rows, length, _ = vectors.shape
    return causal(ages(length).float() * math.log(decay)).expand(rows, -1, -1)
