"""Rows of eight bits, with a scale for each column of a field.

    q[r, d] = round(w[r, d] / s[f, d])        s[f, d] = max_r |w[r, d]| / 127, r in field f

A column of the ids that a graph takes belongs to one field, so scales are constants of the graph
and cost next to nothing: a look-up is Gather, Cast, Mul. Rounding errs by a few in ten thousand of
the table's energy, which no click can tell.
"""

from collections.abc import Sequence
from typing import Final, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from compress.tables.base import Rounded, ShippedTable, largest

LARGEST: Final = 127
LEAST: Final = 1e-12  # of a scale: a block of zeros has one, too


class Int8(Rounded):
    """Rows in eight bits."""

    NODES = 900

    def rounded(self, table: nn.Embedding, blocks: Sequence[range]) -> nn.Module:
        """The rows, rounded block by block."""
        weight = table.weight.detach()
        scales = (largest(weight, blocks) / LARGEST).clamp(min=LEAST)  # (F, D)
        rows = torch.zeros(weight.shape, dtype=torch.int8, device=weight.device)
        for block, scale in zip(blocks, scales, strict=True):
            within = slice(block.start, block.stop)
            rows[within] = (weight[within] / scale).round().clamp(-LARGEST, LARGEST).to(torch.int8)
        return Int8Table(rows, scales, tuple(block.start for block in blocks))

    def of_field(self, rows: int, width: int) -> float:
        """One a number, and the scales."""
        return rows * width + 4.0 * width


class Int8Table(ShippedTable):
    """Rows (N, D) int8 and scales (F, D) float32 of blocks, named by their first rows."""

    kept_as = "int8"
    rows: Tensor
    scales: Tensor

    def __init__(self, rows: Tensor, scales: Tensor, starts: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("rows", rows)
        self.register_buffer("scales", scales)
        self._starts = tuple(starts)

    def forward(self, rows: Tensor, blocks: Sequence[int]) -> Tensor:
        """(B, k, D) float32."""
        scales = self.scales[[self._starts.index(start) for start in blocks]]  # (k, D)
        return F.embedding(rows, self.rows).to(torch.float32) * scales

    def reordered(self, order: Tensor) -> Self:
        """The same rows in another order, each within its block."""
        return type(self)(self.rows[order], self.scales, self._starts)
