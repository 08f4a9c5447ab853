"""Tensor trains (TT-Rec: Yin et al., MLSys 2021) and semi-tensor trains (OD-Rec: SIGIR 2022).

    e_v = G_1[i_1] · G_2[i_2] · … · G_d[i_d]       tt      matrix products
    e_v = G_1[i_1] ⋉ G_2[i_2] ⋉ … ⋉ G_d[i_d]       sttd    left semi-tensor products

with v = (i_1 … i_d) in mixed radix. For a (1 × np) and b (p), a in p blocks of length n:
a ⋉ b = Σ_i b_i·a_i, so a ⋉ B is a·(B ⊗ I_n), and every core but the first is n times smaller in
both directions of its matrices.

| symbol | here | is |
|---|---|---|
| I_k, J_k | `Shape` | factors of the items (Π I_k is N or a bit more) and width (Π J_k = D) |
| R | ``rank`` | of all inner cuts of the train |
| n | ``block`` | of the semi-tensor product; 1 is the plain train |
| G_k | ``cores`` | (R_{k-1}, I_k, J_k, R_k), R_0 = R_d = 1; from G_2 on, ranks over n; J_d over n |

Parameters: d = 2: I_1·J_1·R + I_2·J_2·R / n²; d = 3: I_1·J_1·R + I_2·J_2·R² / n² + I_3·J_3·R / n².

The place within a block goes through all cores untouched. So a semi-tensor train is a plain one of
rank R / n whose first core carries n columns more and whose last n columns less, and successive
SVDs (Oseledets 2011) give the best start for both. The papers start from a Gaussian instead.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field
from sklearn.utils.extmath import randomized_svd
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from compress.config import ConfigError, Frozen
from compress.progress import Progress
from compress.sessions.tables.base import ItemTable, Teacher
from compress.sessions.tables.qr import radices
from compress.tables.kmeans import seed_of
from model_store.item_vectors import FactoredTable

FLOAT_BYTES = 4
TIMES_SMALLER = 30  # where neither a rank nor bytes are asked for: the ratio of the papers' tables


class TtConfig(Frozen):
    """Options of the method.

    Attributes:
        cores: d, where no factors are given.
        item_factors: I; None: as equal as can be.
        dim_factors: J; None: as equal as can be.
        rank: R; None: the largest that ``max_bytes`` allows.
        max_bytes: of all cores; None: a thirtieth of the teacher's table.
        start: ``svd``: near the teacher's table; ``gaussian``: random, as the papers.
    """

    cores: int = Field(default=2, ge=2, le=5)
    item_factors: tuple[int, ...] | None = None
    dim_factors: tuple[int, ...] | None = None
    rank: int | None = Field(default=None, ge=1)
    max_bytes: int | None = Field(default=None, ge=1)
    start: Literal["svd", "gaussian"] = "svd"

    @property
    def block(self) -> int:
        """The n of the product."""
        return 1


class SttdConfig(TtConfig):
    """Options of the method.

    Attributes:
        semi: n, of the semi-tensor product; divides the rank and the last factor of the width.
    """

    semi: int = Field(default=2, ge=2)

    @property
    def block(self) -> int:
        """The n of the product."""
        return self.semi


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a train: I, J, R and n."""

    items: tuple[int, ...]
    dims: tuple[int, ...]
    rank: int
    block: int

    def modes(self) -> tuple[int, ...]:
        """Entries of each mode of the tensor that the train is an SVD of: (I_k·J_k), n moved."""
        sizes = [i * j for i, j in zip(self.items, self.dims, strict=True)]
        return sizes[0] * self.block, *sizes[1:-1], sizes[-1] // self.block

    def ranks(self) -> tuple[int, ...]:
        """(d + 1,) ranks over n of that SVD: no more than either side of a cut has."""
        modes = self.modes()
        cuts = [
            min(self.rank // self.block, math.prod(modes[:k]), math.prod(modes[k:]))
            for k in range(1, len(modes))
        ]
        return 1, *cuts, 1

    def cores(self) -> tuple[tuple[int, ...], ...]:
        """Shape of each G."""
        ranks, last = self.ranks(), len(self.items) - 1
        dims = [*self.dims[:-1], self.dims[-1] // self.block]
        first = (1, self.items[0], self.dims[0], ranks[1] * self.block)
        return first, *(
            (ranks[k], self.items[k], dims[k], ranks[k + 1]) for k in range(1, last + 1)
        )

    def parameters(self) -> int:
        """How many numbers the cores hold.

        >>> 40_727 * 128 / Shape((169, 241), (16, 8), rank=60, block=2).parameters()
        27.270642393806234
        """
        return sum(math.prod(core) for core in self.cores())


class FactoredItems(ItemTable):
    """Cores that learn; a row is put together from its slices, the table never."""

    def __init__(self, cores: list[Tensor], block: int, items: int) -> None:
        super().__init__()
        self.items = items
        self.dim = math.prod(core.shape[2] for core in cores) * block
        self.cores = nn.ParameterList(nn.Parameter(core.contiguous()) for core in cores)
        self._block = block

    def forward(self, rows: Tensor) -> Tensor:
        """(…, D) vectors of rows (…)."""
        first, *others = self.cores
        *digits, lead = digits_of(rows.reshape(-1), [core.shape[1] for core in self.cores])
        product = F.embedding(lead, first[0].flatten(1))  # (B, J_1·R_1)
        for core, digit in zip(others, reversed(digits), strict=True):
            rank, _, dim, following = core.shape
            slices = F.embedding(digit, core.transpose(0, 1).flatten(1))  # (B, r·J·s)
            slices = slices.view(-1, rank, dim * following)
            width = product.shape[1] // (rank * self._block)
            blocks = product.view(-1, width, rank, self._block)  # (B, j, r, n)
            # (B, j·n, r) x (B, r, J·s), and the blocks to the end again.
            joined = blocks.transpose(2, 3).flatten(1, 2) @ slices
            joined = joined.view(-1, width, self._block, dim * following).transpose(2, 3)
            product = joined.flatten(1)  # (B, j·J·s·n)
        return product.view(*rows.shape, self.dim)

    def export(self) -> FactoredTable:
        """The cores."""
        cores = [core.detach().cpu().numpy() for core in self.cores]
        return FactoredTable.of(cores, self._block, self.items)


class Tt:
    """A tensor train."""

    Config: ClassVar[type[Frozen]] = TtConfig

    def check(self, config: Frozen, items: int, dim: int) -> None:
        """Whether factors, rank and bytes fit a table (items, dim).

        Raises:
            ConfigError: they do not.
        """
        shape_of(cast("TtConfig", config), items, dim)

    def build(
        self, teacher: Teacher, config: Frozen, generator: torch.Generator, progress: Progress
    ) -> FactoredItems:
        """A table near the teacher's.

        Raises:
            ConfigError: see `check`.
        """
        config = cast("TtConfig", config)
        X = teacher.vectors
        shape = shape_of(config, len(X), X.shape[1])
        progress.step("cores", 0, 1)
        if config.start == "svd":
            cores = from_table(X, shape, generator)
        else:
            cores = gaussian(shape, float(X.var()), generator)
        progress.step("cores", 1, 1)
        return FactoredItems(cores, config.block, len(X))


class Sttd(Tt):
    """A semi-tensor train: the same with n over 1."""

    Config: ClassVar[type[Frozen]] = SttdConfig


def digits_of(rows: Tensor, radices: list[int]) -> list[Tensor]:
    """Digits of rows in mixed radix, the last (least significant) first.

    >>> [digit.tolist() for digit in digits_of(torch.tensor([5, 6]), [2, 2, 3])]
    [[2, 0], [1, 0], [0, 1]]
    """
    digits = []
    for radix in reversed(radices):
        digits.append(rows % radix)
        rows = rows // radix
    return digits


# --- sizes ---------------------------------------------------------------------------------------


def shape_of(config: TtConfig, items: int, dim: int) -> Shape:
    """The sizes that a config asks for.

    Raises:
        ConfigError: they do not fit a table (items, dim).
    """
    I = config.item_factors or radices(items, len(config.dim_factors or ()) or config.cores)  # noqa: E741
    n = config.block
    J = config.dim_factors or _widths(dim, len(I), n)
    if len(I) != len(J) or len(I) < 2:  # noqa: PLR2004
        raise ConfigError(
            f"item_factors={list(I)}, dim_factors={list(J)}: expected equally many, two or more"
        )
    if math.prod(I) < items or math.prod(J) != dim:
        raise ConfigError(
            f"item_factors={list(I)} hold {math.prod(I)} of {items} items, dim_factors={list(J)} "
            f"{math.prod(J)} of {dim} columns; expected at least the items, and all the columns"
        )
    if J[-1] % n:
        raise ConfigError(f"semi={n} does not divide the last of dim_factors={list(J)}")
    if config.rank is None:
        rank = _largest(I, J, n, config.max_bytes or items * dim * FLOAT_BYTES // TIMES_SMALLER)
    elif config.rank % n:
        raise ConfigError(f"rank={config.rank}: expected a multiple of semi={n}")
    else:
        rank = config.rank
    return Shape(I, J, rank, n)


def _widths(dim: int, count: int, block: int) -> tuple[int, ...]:
    # Equal once the block has moved from the last core to the first: there the ranks do most.
    if dim % block:
        raise ConfigError(f"semi={block} does not divide the width {dim}")
    *others, last = sorted(divisors(dim // block, count), reverse=True)
    return *others, last * block


def _largest(items: tuple[int, ...], dims: tuple[int, ...], block: int, max_bytes: int) -> int:
    # Parameters grow with the rank until it is all that the cuts have.
    def size(rank: int) -> int:
        return Shape(items, dims, rank, block).parameters() * FLOAT_BYTES

    if size(block) > max_bytes:
        raise ConfigError(
            f"{max_bytes} bytes: a train of rank {block} takes {size(block)} already; expected "
            "more bytes, or more cores"
        )
    most = Shape(items, dims, block * math.prod(items) * math.prod(dims), block)
    rank = block
    while rank < block * max(most.ranks()) and size(rank + block) <= max_bytes:
        rank += block
    return rank


def divisors(dim: int, count: int) -> tuple[int, ...]:
    """So many factors of ``dim``, as equal as can be.

    >>> divisors(128, 2), divisors(256, 3), divisors(7, 2)
    ((8, 16), (4, 8, 8), (1, 7))
    """
    if count == 1:
        return (dim,)
    root = dim ** (1 / count) + 1e-9
    least = max(d for d in range(1, int(root) + 1) if dim % d == 0)
    return least, *divisors(dim // least, count - 1)


# --- where the cores begin -----------------------------------------------------------------------


def from_table(X: Tensor, shape: Shape, generator: torch.Generator) -> list[Tensor]:
    """Cores by successive SVDs of a table (N, D), padded with zeros to Π I_k rows."""
    I, J, n, d = shape.items, shape.dims, shape.block, len(shape.items)  # noqa: E741
    padded = F.pad(X, (0, 0, 0, math.prod(I) - len(X)))
    tensor = padded.view(*I, *J[:-1], J[-1] // n, n)
    # (I_1, J_1, n), (I_2, J_2), … (I_d, J_d / n): each mode's axes together.
    axes = [0, d, 2 * d, *(axis for k in range(1, d) for axis in (k, d + k))]
    trains = train_svd(tensor.permute(axes).reshape(shape.modes()), shape.ranks(), generator)
    first, *others = shape.cores()
    # (I_1, J_1, n, r) -> (I_1, J_1, r·n)
    lead = trains[0].view(I[0], J[0], n, -1).transpose(2, 3).reshape(first)
    return [lead, *(core.view(size) for core, size in zip(trains[1:], others, strict=True))]


def train_svd(tensor: Tensor, ranks: tuple[int, ...], generator: torch.Generator) -> list[Tensor]:
    """Cores (r_{k-1}, m_k, r_k) whose product is near a tensor (m_1, …, m_d)."""
    cores, left = [], tensor.numpy().astype(np.float64)
    for k, mode in enumerate(tensor.shape[:-1]):
        left = left.reshape(ranks[k] * mode, -1)
        u, s, vt = randomized_svd(left, ranks[k + 1], random_state=seed_of(generator))
        cores.append(u.reshape(ranks[k], mode, -1))
        left = s[:, None] * vt
    cores.append(left.reshape(ranks[-2], -1, 1))
    # As large as each other, so that one learning rate suits all.
    scale = math.exp(np.mean([math.log(np.linalg.norm(core) + 1e-12) for core in cores]))
    even = [core * (scale / (np.linalg.norm(core) + 1e-12)) for core in cores]
    return [torch.from_numpy(core.astype(np.float32)) for core in even]


def gaussian(shape: Shape, variance: float, generator: torch.Generator) -> list[Tensor]:
    """Random cores whose table has that variance: a sum of Π R_k products of d entries."""
    terms = math.prod(shape.ranks())
    sigma = (variance / terms) ** (1 / (2 * len(shape.items)))
    return [torch.randn(core, generator=generator) * sigma for core in shape.cores()]
