"""Rows in eight bits: each vector is 8-bit integers times one float16, four times smaller.

    q_v = round(X_v / s_v),   s_v = max |X_v| / 127,   e_v = s_v·q_v

While it learns, the values are rounded as they ship and the gradient passes straight through
(fake quantisation), unless that is switched off: then it is rounded when training is over.
"""

from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from compress.config import Frozen
from compress.progress import Progress
from compress.sessions.tables.base import ItemTable, Teacher
from compress.sessions.tables.coded import as_kept
from model_store.item_vectors import Int8Table


class Int8Config(Frozen):
    """Options of the method.

    Attributes:
        fake_quantised: whether the values are rounded while they learn.
        trainable: whether they learn on.
    """

    fake_quantised: bool = True
    trainable: bool = True


class Int8Items(ItemTable):
    """Vectors (N, D), seen in eight bits.

    Attributes:
        weight: the vectors before they are rounded; their gradient is sparse.
    """

    def __init__(self, vectors: Tensor, config: Int8Config) -> None:
        super().__init__()
        self.items, self.dim = vectors.shape
        self.weight = nn.Parameter(vectors.clone(), requires_grad=config.trainable)
        self._fake_quantised = config.fake_quantised

    @property
    def rows_parameter(self) -> nn.Parameter | None:
        """All of it, if it learns."""
        return self.weight if self.weight.requires_grad else None

    def forward(self, rows: Tensor) -> Tensor:
        """(…, D) vectors of rows (…)."""
        vectors = F.embedding(rows, self.weight, sparse=self.weight.requires_grad)
        if self.training and not self._fake_quantised:
            return vectors
        return as_kept(vectors, "int8")

    def export(self) -> Int8Table:
        """Integers and scales."""
        return Int8Table.of(self.weight.detach().cpu().numpy())


class Int8:
    """Rows of eight bits, from the teacher's."""

    Config: ClassVar[type[Frozen]] = Int8Config

    def check(self, config: Frozen, items: int, dim: int) -> None:
        """Any table will do."""
        del config, items, dim

    def build(
        self, teacher: Teacher, config: Frozen, generator: torch.Generator, progress: Progress
    ) -> Int8Items:
        """The teacher's vectors."""
        del generator, progress
        return Int8Items(teacher.vectors, cast("Int8Config", config))
