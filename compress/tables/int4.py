"""Rows of four bits a number, with a scale for each row.

    q[r, d] = round(w[r, d] / s_r)  in -8..7     s_r = s_top · 2^((e_r - 255) / 16), e_r a byte

With 15 steps, what is frequent and large would leave nothing of what is rare and small under a
scale that they share: a scale for each row errs by a tenth of what one for each field does, for one
byte more. Of the 16 scales below the one that holds the row's largest number, the one that errs
least is taken.

Position d is the low half of byte d of a row, position d + ⌈D / 2⌉ the high half. The graph parts
them in float32, where the quotient by 16 is exact.
"""

import math
from collections.abc import Sequence
from typing import Final, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from compress.tables.base import Rounded, ShippedTable

LOW: Final = -8
HIGH: Final = 7
ZERO: Final = 8  # what a step of 0 is kept as
PACE: Final = math.log(2) / 16  # between one scale and the next
MOST: Final = 255
TRIED: Final = 16
LEAST: Final = 1e-12
AT_ONCE: Final = 1 << 16  # rows


class Int4(Rounded):
    """Rows in four bits a number and a byte."""

    NODES = 1300

    def rounded(self, table: nn.Embedding, blocks: Sequence[range]) -> nn.Module:
        """The rows, rounded one by one."""
        del blocks
        weight = table.weight.detach()
        top = max(float(weight.abs().amax()) / HIGH, LEAST)
        found = [_rounded(part, top) for part in torch.split(weight, AT_ONCE)]
        rows = torch.cat([_packed(steps) for steps, _ in found])
        exponents = torch.cat([exponents for _, exponents in found]).to(torch.uint8)
        return Int4Table(rows, exponents, weight.shape[1], top)

    def of_field(self, rows: int, width: int) -> float:
        """Half a byte a number, and one."""
        return rows * (-(-width // 2) + 1.0)


def scale_of(exponents: Tensor, top: float) -> Tensor:
    """S of exponents e, as the graph computes it."""
    return torch.exp(exponents.to(torch.float32) * PACE + (math.log(top) - MOST * PACE))


def _rounded(weight: Tensor, top: float) -> tuple[Tensor, Tensor]:
    """Steps (n, D) in -8..7 and exponents (n, 1) of rows (n, D)."""
    needed = (weight.abs().amax(1, keepdim=True) / HIGH).clamp(min=LEAST)
    first = (MOST + (needed / top).log() / PACE).ceil().clamp(0, MOST)
    steps, exponents = _steps(weight, first, top), first
    least = _error(weight, steps, first, top)
    for lower in range(1, TRIED):
        trial = (first - lower).clamp(min=0)
        found = _steps(weight, trial, top)
        error = _error(weight, found, trial, top)
        better = error < least
        steps, exponents = torch.where(better, found, steps), torch.where(better, trial, exponents)
        least = torch.minimum(error, least)
    return steps, exponents


def _steps(weight: Tensor, exponents: Tensor, top: float) -> Tensor:
    return (weight / scale_of(exponents, top)).round().clamp(LOW, HIGH)


def _error(weight: Tensor, steps: Tensor, exponents: Tensor, top: float) -> Tensor:
    return (weight - steps * scale_of(exponents, top)).square().sum(1, keepdim=True)


def _packed(steps: Tensor) -> Tensor:
    """(n, ⌈D / 2⌉) bytes of steps (n, D)."""
    low, high = F.pad(steps + ZERO, (0, steps.shape[1] % 2)).chunk(2, dim=1)
    return (low + 16 * high).to(torch.uint8)


class Int4Table(ShippedTable):
    """Rows (N, ⌈D / 2⌉) uint8, of two numbers a byte, and their exponents (N, 1) uint8."""

    kept_as = "int4"
    rows: Tensor
    exponents: Tensor

    def __init__(self, rows: Tensor, exponents: Tensor, dim: int, top: float) -> None:
        super().__init__()
        self.register_buffer("rows", rows)
        self.register_buffer("exponents", exponents)
        self._dim, self._top = dim, top

    def forward(self, rows: Tensor, blocks: Sequence[int]) -> Tensor:
        """(B, k, D) float32."""
        del blocks
        pairs = F.embedding(rows, self.rows).to(torch.float32)  # (B, k, ⌈D / 2⌉)
        high = (pairs * (1 / 16)).floor()
        steps = torch.cat([pairs - 16 * high, high], dim=-1)
        if self._dim % 2:
            steps = steps[..., : self._dim]
        return (steps - ZERO) * scale_of(F.embedding(rows, self.exponents), self._top)

    def reordered(self, order: Tensor) -> Self:
        """The same rows in another order."""
        return type(self)(self.rows[order], self.exponents[order], self._dim, self._top)
