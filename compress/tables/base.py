"""The tables of a click-through ranker, as they ship: rows of fewer bytes than float32's.

A ranker has a table for each width of its fields' vectors, and the rows of a field are a block of
its table. The dense ranker's are ``nn.Embedding``; a `TableMethod` makes of each slim one what is
fine-tuned, and of that what the graph holds.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from compress.config import Frozen
from compress.progress import Progress


class LearnedTable(nn.Module, ABC):
    """Vectors of one width that are fine-tuned in another form than row by row."""

    @abstractmethod
    def forward(self, rows: Tensor, blocks: Sequence[int]) -> Tensor:
        """Look rows up.

        Args:
            rows: (B, k) int32.
            blocks: (k,) the block that each column's rows lie in, by its first row.

        Returns:
            (B, k, D) float32.
        """


class ShippedTable(LearnedTable):
    """Vectors as the graph looks them up: torch and the graph agree on them.

    Attributes:
        kept_as: what the manifest says of it.
    """

    kept_as: ClassVar[str]

    @abstractmethod
    def reordered(self, order: Tensor) -> Self:
        """The table with rows in another order: row i is what row ``order[i]`` was, (N,)."""


class TableMethod(ABC):
    """Makes tables small. ``Config`` stands beside the code.

    Attributes:
        NODES: bytes that the graph takes at most for another table of a side, its rows apart.
    """

    Config: ClassVar[type[Frozen]] = Frozen
    NODES: ClassVar[int] = 450

    @abstractmethod
    def __init__(self, config: Frozen) -> None:
        """Take the method's own options."""

    def learned(
        self,
        table: nn.Embedding,
        blocks: Sequence[range],
        counts: Callable[[], Tensor],
        generator: torch.Generator,
        progress: Progress,
    ) -> nn.Module:
        """What is fine-tuned in place of a slimmed table: itself, unless a method says otherwise.

        Args:
            table: (N, D).
            blocks: the rows of each field.
            counts: tells how often training looks each row up, (N,); a pass over its rows.
            generator: of what is drawn.
            progress: told of the steps done.

        Returns:
            The table, or a `LearnedTable`.
        """
        del blocks, counts, generator, progress
        return table

    @abstractmethod
    def shipped(self, table: nn.Module, blocks: Sequence[range]) -> nn.Module:
        """What ships in place of a table that was fine-tuned: itself, or a `ShippedTable`."""

    @abstractmethod
    def bytes(self, fields: Iterable[tuple[int, int]]) -> float:
        """What fields of so many rows of some width take in the graph."""


class Rounded(TableMethod):
    """Methods that fine-tune rows as they are, and round them one by one in the end."""

    def __init__(self, config: Frozen) -> None:
        del config

    def shipped(self, table: nn.Module, blocks: Sequence[range]) -> nn.Module:
        """The rows, rounded."""
        if not isinstance(table, nn.Embedding):
            raise TypeError(f"expected an embedding, found {type(table).__name__}")
        return self.rounded(table, blocks)

    @abstractmethod
    def rounded(self, table: nn.Embedding, blocks: Sequence[range]) -> nn.Module:
        """A table (N, D) as it ships."""

    def bytes(self, fields: Iterable[tuple[int, int]]) -> float:
        """Of all their rows."""
        return sum(self.of_field(rows, width) for rows, width in fields)

    @abstractmethod
    def of_field(self, rows: int, width: int) -> float:
        """Bytes of a field's rows."""


def look_up(table: nn.Module, rows: Tensor, blocks: Sequence[int]) -> Tensor:
    """(B, k, D) vectors of rows (B, k), in training as in a graph; see `LearnedTable.forward`."""
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
