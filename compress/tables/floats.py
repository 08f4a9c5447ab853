"""Tables whose rows ship as floating-point numbers."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from compress.tables.base import Rounded, ShippedTable


class Float32(Rounded):
    """Rows as they were trained."""

    def rounded(self, table: nn.Embedding, blocks: Sequence[range]) -> nn.Module:
        """The table itself."""
        del blocks
        return table

    def of_field(self, rows: int, width: int) -> float:
        """Four a number."""
        return 4.0 * rows * width


class Float16(Rounded):
    """Rows in half precision: 11 bits of mantissa, half the bytes."""

    def rounded(self, table: nn.Embedding, blocks: Sequence[range]) -> nn.Module:
        """The rows, rounded."""
        del blocks
        limit = torch.finfo(torch.float16).max
        return HalfTable(table.weight.detach().clamp(-limit, limit).to(torch.float16))

    def of_field(self, rows: int, width: int) -> float:
        """Two a number."""
        return 2.0 * rows * width


class HalfTable(ShippedTable):
    """Rows (N, D) float16."""

    kept_as = "float16"
    rows: Tensor

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows)

    def forward(self, rows: Tensor, blocks: Sequence[int]) -> Tensor:
        """(B, k, D) float32."""
        del blocks
        return F.embedding(rows, self.rows).to(torch.float32)

    def reordered(self, order: Tensor) -> Self:
        """The same rows in another order."""
        return type(self)(self.rows[order])
