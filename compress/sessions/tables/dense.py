"""The teacher's table as it is: what all others are compared with."""

from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from compress.config import Frozen
from compress.progress import Progress
from compress.sessions.tables.base import ItemTable, Teacher
from compress.sessions.tables.coded import as_kept
from model_store.item_vectors import DenseTable


class DenseConfig(Frozen):
    """Options of the method.

    Attributes:
        kept_as: precision of the vectors in the bundle, and of their values while they learn.
        trainable: whether they learn on.
    """

    kept_as: Literal["float32", "float16"] = "float32"
    trainable: bool = True


class DenseItems(ItemTable):
    """Vectors (N, D), a row an item.

    Attributes:
        weight: the vectors; their gradient is sparse.
    """

    def __init__(self, vectors: Tensor, config: DenseConfig) -> None:
        super().__init__()
        self.items, self.dim = vectors.shape
        self.weight = nn.Parameter(vectors.clone(), requires_grad=config.trainable)
        self._kept_as = config.kept_as

    @property
    def rows_parameter(self) -> nn.Parameter | None:
        """All of it, if it learns."""
        return self.weight if self.weight.requires_grad else None

    def forward(self, rows: Tensor) -> Tensor:
        """(…, D) vectors of rows (…)."""
        sparse = self.weight.requires_grad
        return as_kept(F.embedding(rows, self.weight, sparse=sparse), self._kept_as)

    def export(self) -> DenseTable:
        """The vectors, rounded to what they are kept as."""
        return DenseTable(self.weight.detach().cpu().numpy().astype(self._kept_as))


class Dense:
    """Compresses nothing, or by half."""

    Config: ClassVar[type[Frozen]] = DenseConfig

    def check(self, config: Frozen, items: int, dim: int) -> None:
        """Any table will do."""
        del config, items, dim

    def build(
        self, teacher: Teacher, config: Frozen, generator: torch.Generator, progress: Progress
    ) -> DenseItems:
        """The teacher's vectors."""
        del generator, progress
        return DenseItems(teacher.vectors, cast("DenseConfig", config))
