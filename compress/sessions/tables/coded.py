"""Item vectors put together from codewords: what all methods with codes and codebooks share.

| symbol | here | is |
|---|---|---|
| N, D | ``items``, ``dim`` | items, width of a vector |
| M, K | ``num_codebooks``, ``codebook_size`` | codebooks, codewords of each |
| C_v | ``codes[v]`` | the M codes of item v |
| E_m | ``codebooks[m]`` | K codewords |

The vector of item v is Σ_m E_m[C_v^m], or the E_m[C_v^m] one after the other.
"""

from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from compress.config import ConfigError, Frozen
from compress.sessions.tables.base import ItemTable
from model_store.arrays import LEAST_SCALE
from model_store.codebooks import CodedTable
from model_store.manifest import HashedCodes, RadixCodes

Precision = Literal["float32", "float16", "int8"]
INT8 = 127
PATTERN = r"^[1-9]\d{0,2}x[1-9]\d{0,5}$"
MOST_CODES = 1 << 16  # a code takes two bytes at most


class CodesConfig(Frozen):
    """What every method with codebooks needs.

    Attributes:
        codes: "MxK": M codebooks of K codewords each.
        kept_as: precision of the codebooks in the bundle, and of their values while they learn.
        frequency: an item weighs (1 + clicks) to this power in the codebooks; 0: all alike.
    """

    codes: str = Field(default="8x256", pattern=PATTERN)
    kept_as: Precision = "float16"
    frequency: float = Field(default=0.5, ge=0.0, le=1.0)

    @property
    def num_codebooks(self) -> int:
        """M."""
        return int(self.codes.partition("x")[0])

    @property
    def codebook_size(self) -> int:
        """K."""
        return int(self.codes.partition("x")[2])


class StoredCodesConfig(CodesConfig):
    """What every method needs that chooses its codes item by item.

    Attributes:
        distinct: whether items that share all codes are told apart.
    """

    distinct: bool = True


class ChosenCodes:
    """Methods that choose an item's codes: a bundle stores these, packed in whole bits."""

    Config: ClassVar[type[Frozen]] = StoredCodesConfig

    def check(self, config: Frozen, items: int, dim: int) -> None:
        """Whether the config fits a table of so many items.

        Raises:
            ConfigError: K^M below N, or K no power of two.
        """
        del dim
        config = cast("StoredCodesConfig", config)
        check_codes(config.num_codebooks, config.codebook_size, items)


class CutCodes(ChosenCodes):
    """Those of them that cut the width evenly, a codebook for each cut."""

    def check(self, config: Frozen, items: int, dim: int) -> None:
        """Whether the config fits a table (items, dim).

        Raises:
            ConfigError: K^M below N, K no power of two, or M does not divide D.
        """
        super().check(config, items, dim)
        check_width(cast("StoredCodesConfig", config).num_codebooks, dim)


class CodedItems(ItemTable):
    """Fixed codes and codebooks that learn, seen at the precision that they ship in.

    Attributes:
        codes: (N, M) int32.
        codebooks: (M, K, width), width = D (sum) or D / M (concatenation).
    """

    codes: Tensor

    def __init__(
        self,
        codes: Tensor,
        codebooks: Tensor,
        kept_as: Precision,
        *,
        concatenated: bool = False,
        codes_spec: RadixCodes | HashedCodes | None = None,
    ) -> None:
        super().__init__()
        books, _, width = codebooks.shape
        self.items, self.dim = len(codes), books * width if concatenated else width
        self.register_buffer("codes", codes.to(torch.int32))
        self.codebooks = nn.Parameter(codebooks.to(torch.float32).clone())
        self._kept_as: Precision = kept_as
        self._concatenated, self._codes_spec = concatenated, codes_spec

    def forward(self, rows: Tensor) -> Tensor:
        """(…, D) vectors of rows (…)."""
        vectors = self.composed(self.codes[rows.reshape(-1)])
        return vectors.reshape(*rows.shape, self.dim)

    def composed(self, codes: Tensor) -> Tensor:
        """(n, D) vectors of codes (n, M)."""
        return composed(codes, as_kept(self.codebooks, self._kept_as), self._concatenated)

    def export(self) -> CodedTable:
        """Codes, and codebooks rounded to what they are kept as."""
        with torch.no_grad():
            codebooks = as_kept(self.codebooks, self._kept_as).cpu().numpy()
        small = codebooks.shape[1] <= 1 << 8
        codes = self.codes.cpu().numpy().astype("uint8" if small else "uint16")
        return CodedTable(codes, codebooks, self._concatenated, self._codes_spec, self._kept_as)


def composed(codes: Tensor, codebooks: Tensor, concatenated: bool = False) -> Tensor:
    """(n, D) vectors of codes (n, M).

    >>> codebooks = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[10.0, 20.0], [30.0, 40.0]]])
    >>> composed(torch.tensor([[0, 1]]), codebooks).tolist()
    [[31.0, 42.0]]
    >>> composed(torch.tensor([[0, 1]]), codebooks, concatenated=True).tolist()
    [[1.0, 2.0, 30.0, 40.0]]
    """
    books, size, width = codebooks.shape
    first = torch.arange(books, dtype=codes.dtype, device=codes.device) * size
    words = codebooks.reshape(books * size, width)
    if concatenated:
        return F.embedding(codes + first, words).flatten(1)
    return F.embedding_bag(codes + first, words, mode="sum")


def as_sum(codebooks: Tensor) -> Tensor:
    """(M, K, D) codebooks whose sums are the concatenations of codebooks (M, K, D / M).

    >>> as_sum(torch.tensor([[[1.0]], [[2.0]]])).tolist()
    [[[1.0, 0.0]], [[0.0, 2.0]]]
    """
    books, size, width = codebooks.shape
    wide = codebooks.new_zeros(books, size, books, width)
    for m in range(books):
        wide[m, :, m] = codebooks[m]
    return wide.flatten(2)


def as_kept(codebooks: Tensor, kept_as: Precision) -> Tensor:
    """Codebooks rounded as the bundle does it, with the gradient straight through.

    >>> as_kept(torch.tensor([[[1.0, 0.126, -0.3]]]), "int8")
    tensor([[[ 0.9999,  0.1260, -0.2992]]])
    """
    if kept_as == "float32":
        return codebooks
    with torch.no_grad():
        values = codebooks.detach()
        rounded = values.half().float() if kept_as == "float16" else rounded_rows(values)
    # The bracket is an exact zero, so what comes out is the rounded value to the last bit.
    return rounded + (codebooks - values)


def rounded_rows(values: Tensor) -> Tensor:
    """The last axis in eight bits and one float16 scale, as `model_store` quantises it."""
    largest = values.abs().amax(-1, keepdim=True)
    scales = (largest / INT8).clamp(min=LEAST_SCALE).half().float()
    return (values / scales).round().clamp(-INT8, INT8) * scales


def check_codes(num_codebooks: int, codebook_size: int, items: int) -> None:
    """Refuse codes that cannot tell the items apart, or that waste the bits they are packed in.

    Raises:
        ConfigError: they do one or the other.
    """
    name = f"codes={num_codebooks}x{codebook_size}"
    if codebook_size & (codebook_size - 1) or not 1 < codebook_size <= MOST_CODES:
        bits = max(1, min(16, (codebook_size - 1).bit_length()))
        raise ConfigError(
            f"{name}: a code is packed into whole bits, so expected a power of two from 2 to "
            f"{MOST_CODES} for K; {1 << bits} costs the same"
        )
    check_apart(num_codebooks, codebook_size, items)
    if codebook_size > items:
        raise ConfigError(f"{name}: more codewords than the {items} items; expected a smaller K")


def check_apart(num_codebooks: int, codebook_size: int, items: int) -> None:
    """Refuse fewer codes than items.

    Raises:
        ConfigError: K^M is under N.
    """
    if codebook_size**num_codebooks < items:
        raise ConfigError(
            f"codes={num_codebooks}x{codebook_size}: {codebook_size}^{num_codebooks} = "
            f"{codebook_size**num_codebooks} codes cannot tell {items} items apart; expected more "
            "codebooks or larger ones"
        )


def check_width(num_codebooks: int, dim: int) -> None:
    """Refuse codebooks that do not share the width evenly.

    Raises:
        ConfigError: M does not divide D.
    """
    if dim % num_codebooks:
        fits = [m for m in range(1, dim + 1) if dim % m == 0]
        raise ConfigError(
            f"{num_codebooks} codebooks cannot share vectors of width {dim} evenly; expected M "
            f"among {', '.join(map(str, fits))}"
        )
