"""The tables of a click-through ranker, as they ship: rows of fewer bytes than float32's.

A ranker has a table for each width of its fields' vectors, and the rows of a field are a block of
its table. While it is trained the tables are ``nn.Embedding``; a `TableMethod` makes of each what
the graph holds.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from compress.config import Frozen


class ShippedTable(nn.Module, ABC):
    """Vectors of one width, looked up as the graph does it: torch and the graph agree on them.

    Attributes:
        kept_as: what the manifest says of it.
    """

    kept_as: ClassVar[str]

    @abstractmethod
    def forward(self, rows: Tensor, blocks: Sequence[int]) -> Tensor:
        """Look rows up.

        Args:
            rows: (B, k) int32.
            blocks: (k,) the block that each column's rows lie in, by its first row.

        Returns:
            (B, k, D) float32.
        """

    @abstractmethod
    def reordered(self, order: Tensor) -> Self:
        """The table with rows in another order: row i is what row ``order[i]`` was, (N,)."""


class TableMethod(Protocol):
    """Makes tables small. ``Config`` stands beside the code."""

    Config: ClassVar[type[Frozen]]

    def shipped(self, table: nn.Embedding, blocks: Sequence[range]) -> nn.Module:
        """What ships in place of a trained table: itself, or a `ShippedTable`.

        Args:
            table: (N, D).
            blocks: the rows of each field.
        """
        ...

    def bytes(self, rows: int, width: int) -> float:
        """What a field's rows of some width take in the graph."""
        ...


def look_up(table: nn.Module, rows: Tensor, blocks: Sequence[int]) -> Tensor:
    """(B, k, D) vectors of rows (B, k), in training as in a graph; see `ShippedTable.forward`."""
    found: Tensor = table(rows) if isinstance(table, nn.Embedding) else table(rows, blocks)
    return found


def reordered(table: nn.Module, order: Tensor) -> nn.Module:
    """A table with its rows in another order; see `ShippedTable.reordered`."""
    if isinstance(table, nn.Embedding):
        weight = table.weight.detach()[order]
        rows, width = weight.shape
        return nn.Embedding(rows, width, _weight=weight, sparse=True)
    if isinstance(table, ShippedTable):
        return table.reordered(order)
    raise TypeError(f"{type(table).__name__} is no table")


def largest(rows: Tensor, blocks: Sequence[range]) -> Tensor:
    """(F, D) the largest number of each block in each of its columns, apart from its sign."""
    return torch.stack([rows[block.start : block.stop].abs().amax(0) for block in blocks])
