"""Codes and codewords for the rows of large fields (product quantisation, Jégou et al. 2011).

    v[r] = s_f · [E_1[c_r1], …, E_M[c_rM]]        min  Σ_r w_r·‖X_r - [E_1[c_r1], …, E_M[c_rM]]‖²

A vector is cut into M pieces of ``cut`` positions, and each piece becomes the number of one of K
codewords: M bytes a row. All large fields of one width share their codewords, so X are their rows
in units of their field's length s_f. Rows count by how often training looks them up. The codes are
chosen once, after slimming; the codewords are fine-tuned with the ranker, at the precision that
they ship in. Fields of few rows ship as ``rest`` says.

| symbol | here | is |
|---|---|---|
| s | ``scales`` | (F, 1), the root of a field's mean square |
| c, E | ``codes``, ``words`` | (N, M) and (M, K, cut) or (M·K, cut) |
| w | `importance` | weights of the rows, by look-ups |
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from compress.config import Frozen
from compress.progress import Progress
from compress.tables.base import (
    LearnedTable,
    Rounded,
    ShippedTable,
    TableMethod,
    look_up,
    reordered,
)
from compress.tables.floats import Float16, Float32
from compress.tables.int4 import Int4
from compress.tables.int8 import Int8
from compress.tables.kmeans import importance, product_codes

REST: Final[dict[str, type[Rounded]]] = {
    "float32": Float32,
    "float16": Float16,
    "int8": Int8,
    "int4": Int4,
}
LEAST: Final = 1e-12


class PqConfig(Frozen):
    """Options of the method.

    Attributes:
        cut: positions of a vector to a code, which takes a byte; the last piece may be shorter.
        words: K.
        min_rows: of the fields that are coded.
        rest: what the others ship as.
        frequency: a row weighs (1 + look-ups) to this power; 0: all alike.
    """

    cut: int = Field(default=4, gt=0)
    words: int = Field(default=256, ge=2, le=256)
    min_rows: int = Field(default=2000, gt=0)
    rest: Literal["float32", "float16", "int8", "int4"] = "int8"
    frequency: float = Field(default=0.5, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _has_rows_enough(self) -> "PqConfig":
        if self.min_rows < self.words:
            raise ValueError(
                f"min_rows: expected at least as many rows as words ({self.words}), "
                f"got {self.min_rows}"
            )
        return self


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the rows of a table went: those of coded fields to one place, the others to another.

    Attributes:
        coded: the blocks of coded fields.
        rest: the others.
    """

    coded: tuple[range, ...]
    rest: tuple[range, ...]

    def moved(self, *, coded: bool) -> tuple[range, ...]:
        """The blocks in their new place, one after the other."""
        found, end = [], 0
        for block in self.coded if coded else self.rest:
            found.append(range(end, end + len(block)))
            end += len(block)
        return tuple(found)

    def rows(self, *, coded: bool) -> Tensor:
        """The rows that went there, in their new order."""
        blocks = self.coded if coded else self.rest
        return torch.cat([torch.arange(b.start, b.stop) for b in blocks] or [torch.arange(0)])

    def order(self, order: Tensor, *, coded: bool) -> Tensor:
        """What an order of the whole table, each row in its block, is in the new place."""
        places = torch.empty(len(order), dtype=torch.int64)
        rows = self.rows(coded=coded)
        places[rows] = torch.arange(len(rows))
        return places[order[rows]]


class Pq(TableMethod):
    """Codes for large fields, rounded rows for the others."""

    Config: ClassVar[type[Frozen]] = PqConfig
    NODES = 2600

    def __init__(self, config: Frozen) -> None:
        self._config = cast("PqConfig", config)
        self._rest = REST[self._config.rest](Frozen())

    def learned(
        self,
        table: nn.Embedding,
        blocks: Sequence[range],
        counts: Callable[[], Tensor],
        generator: torch.Generator,
        progress: Progress,
    ) -> nn.Module:
        """The large fields' rows as codes; the table itself if it has none."""
        config = self._config
        layout = Layout(
            coded=tuple(block for block in blocks if self._is_coded(len(block))),
            rest=tuple(block for block in blocks if not self._is_coded(len(block))),
        )
        if not layout.coded:
            return table
        weight, rows = table.weight.detach().cpu(), layout.rows(coded=True)
        lengths = [weight[b.start : b.stop].square().mean().sqrt() for b in layout.coded]
        scales = torch.stack(lengths).clamp(min=LEAST)
        of_row = scales.repeat_interleave(torch.tensor([len(b) for b in layout.coded]))
        width = weight.shape[1]
        pieces = _pieces(width, config.cut)
        X = F.pad(weight[rows] / of_row.unsqueeze(1), (0, pieces * config.cut - width))
        weights = importance(counts()[rows], config.frequency)
        codes, words = product_codes(
            X, weights, pieces, config.words, generator=generator, progress=progress
        )
        rest = None
        if layout.rest:
            kept = weight[layout.rows(coded=False)]
            rest = nn.Embedding(kept.shape[0], width, _weight=kept, sparse=True)
        coded = LearnedCodes(
            codes.to(torch.uint8),
            nn.Parameter(words.to(torch.float32)),
            scales=scales.unsqueeze(1),
            layout=layout,
            width=width,
            rest=rest,
        )
        return coded.to(table.weight.device)

    def shipped(self, table: nn.Module, blocks: Sequence[range]) -> nn.Module:
        """Codes as they are, codewords in half precision, the rest rounded."""
        if not isinstance(table, LearnedCodes):
            return self._rest.shipped(table, blocks)
        rest = table.rest
        if rest is not None:
            rest = self._rest.shipped(rest, table.layout.moved(coded=False))
        words = table.words.detach().flatten(0, 1).to(torch.float16)
        return ShippedCodes(
            table.codes,
            words,
            scales=table.scales,
            layout=table.layout,
            width=table.width,
            rest=rest,
        )

    def bytes(self, fields: Iterable[tuple[int, int]]) -> float:
        """A byte a code, codewords once a width, and the rest."""
        found = list(fields)
        coded = [(rows, width) for rows, width in found if self._is_coded(rows)]
        rest = [(rows, width) for rows, width in found if not self._is_coded(rows)]
        cut, K = self._config.cut, self._config.words
        words = sum(2.0 * _pieces(width, cut) * K * cut for width in {w for _, w in coded})
        codes = sum(rows * _pieces(width, cut) + 4.0 for rows, width in coded)
        return codes + words + self._rest.bytes(rest)

    def _is_coded(self, rows: int) -> bool:
        return rows >= self._config.min_rows


def _pieces(width: int, cut: int) -> int:
    return -(-width // cut)


class _Codes(LearnedTable):
    """Rows of coded fields put together from codewords, the others looked up elsewhere."""

    codes: Tensor
    words: Tensor
    scales: Tensor

    def __init__(
        self,
        codes: Tensor,
        words: Tensor,
        *,
        scales: Tensor,
        layout: Layout,
        width: int,
        rest: nn.Module | None,
    ) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        if isinstance(words, nn.Parameter):
            self.words = words
        else:
            self.register_buffer("words", words)
        self.layout, self.width, self.rest = layout, width, rest

    def forward(self, rows: Tensor, blocks: Sequence[int]) -> Tensor:
        """(B, k, D) float32."""
        starts = [block.start for block in self.layout.coded]
        coded = [place for place, block in enumerate(blocks) if block in starts]
        others = [place for place, block in enumerate(blocks) if block not in starts]
        if not others:
            return self._composed(rows, [starts.index(block) for block in blocks])
        if not coded:
            return self._elsewhere(rows, blocks)
        parts = [
            self._composed(_columns(rows, coded), [starts.index(blocks[i]) for i in coded]),
            self._elsewhere(_columns(rows, others), [blocks[i] for i in others]),
        ]
        together = [*coded, *others]
        back = sorted(range(len(together)), key=together.__getitem__)
        return _columns(torch.cat(parts, dim=1), back)

    def _composed(self, rows: Tensor, fields: Sequence[int]) -> Tensor:
        """(B, k, D) of rows of coded fields, by their places among these."""
        moved = self.layout.moved(coded=True)
        shifts = [moved[f].start - self.layout.coded[f].start for f in fields]
        codes = F.embedding(_shifted(rows, shifts), self.codes).to(torch.int32)  # (B, k, M)
        pieces = self.pieces(codes)  # (B, k, M, cut)
        return pieces.flatten(2)[..., : self.width] * self.scales[list(fields)]

    def _elsewhere(self, rows: Tensor, blocks: Sequence[int]) -> Tensor:
        moved = self.layout.moved(coded=False)
        starts = [block.start for block in self.layout.rest]
        there = [moved[starts.index(block)].start for block in blocks]
        shifts = [new - old for new, old in zip(there, blocks, strict=True)]
        return look_up(cast("nn.Module", self.rest), _shifted(rows, shifts), there)

    @abstractmethod
    def pieces(self, codes: Tensor) -> Tensor:
        """(B, k, M, cut) codewords of codes (B, k, M)."""


def _words(codes: Tensor, words: Tensor) -> Tensor:
    """(B, k, M, cut) of codes (B, k, M) and the codewords of all pieces (M·K, cut)."""
    books = codes.shape[2]
    first = torch.arange(books, dtype=torch.int32, device=codes.device) * (len(words) // books)
    return F.embedding(codes + first, words)


def _columns(x: Tensor, places: Sequence[int]) -> Tensor:
    return x.index_select(1, torch.tensor(places, device=x.device))


def _shifted(rows: Tensor, shifts: Sequence[int]) -> Tensor:
    return rows + torch.tensor(shifts, dtype=rows.dtype, device=rows.device)


class LearnedCodes(_Codes):
    """Fixed codes (N, M) and codewords (M, K, cut) that learn."""

    def pieces(self, codes: Tensor) -> Tensor:
        """As they ship, with the gradient straight through."""
        found = _words(codes, self.words.flatten(0, 1))
        with torch.no_grad():
            rounded = found.to(torch.float16).to(torch.float32)
        # The bracket is an exact zero, so what comes out is the rounded value to the last bit.
        return rounded + (found - found.detach())


class ShippedCodes(_Codes, ShippedTable):
    """Codes (N, M) uint8 and codewords (M·K, cut) float16."""

    kept_as = "codes"

    def pieces(self, codes: Tensor) -> Tensor:
        """In full precision again: after the look-up, or the graph would hold them so."""
        return _words(codes, self.words).to(torch.float32)

    def reordered(self, order: Tensor) -> Self:
        """The same rows in another order, each within its block."""
        rest = self.rest
        if rest is not None:
            rest = reordered(rest, self.layout.order(order, coded=False))
        codes = self.codes[self.layout.order(order, coded=True)]
        return type(self)(
            codes,
            self.words,
            scales=self.scales,
            layout=self.layout,
            width=self.width,
            rest=rest,
        )
