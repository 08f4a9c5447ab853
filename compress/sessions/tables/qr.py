"""The quotient-remainder trick (Shi et al., KDD 2020): codes are the digits of an item's row.

    e_v = Σ_m E_m[digit m of v]      with radices r_1·…·r_M >= N

M = 2 are quotient and remainder. No item shares all its digits with another, and no code is stored.
The codebooks have one K, the largest radix, so the radices are as equal as can be; the paper's
larger tables (one radix far over the other) would ship rows that no item takes.
"""

import math
from typing import ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor

from compress.config import ConfigError, Frozen
from compress.progress import Progress
from compress.sessions.tables.base import Teacher
from compress.sessions.tables.coded import MOST_CODES, CodedItems, Precision
from compress.sessions.tables.means import fitted
from compress.tables.kmeans import importance
from model_store.codebooks import computed_codes
from model_store.manifest import HashedCodes, RadixCodes


class QrConfig(Frozen):
    """Options of the method.

    Attributes:
        num_codebooks: M, digits of a row.
        kept_as: precision of the codebooks in the bundle, and of their values while they learn.
        frequency: an item weighs (1 + clicks) to this power in the codebooks; 0: all alike.
    """

    num_codebooks: int = Field(default=2, ge=2, le=16)
    kept_as: Precision = "float16"
    frequency: float = Field(default=0.5, ge=0.0, le=1.0)


class Qr:
    """Codes by the row's digits; codebooks by sum."""

    Config: ClassVar[type[Frozen]] = QrConfig

    def check(self, config: Frozen, items: int, dim: int) -> None:
        """Whether the codebooks hold so many items.

        Raises:
            ConfigError: a codebook would have more codewords than two bytes tell apart.
        """
        del dim
        check_size(max(radices(items, cast("QrConfig", config).num_codebooks)))

    def build(
        self, teacher: Teacher, config: Frozen, generator: torch.Generator, progress: Progress
    ) -> CodedItems:
        """A table as near the teacher's as its rows let it.

        Raises:
            ConfigError: see `check`.
        """
        del generator
        config = cast("QrConfig", config)
        self.check(config, *teacher.vectors.shape)
        spec = RadixCodes(radices=radices(len(teacher.vectors), config.num_codebooks))
        weights = importance(teacher.counts, config.frequency)
        return fitted_to_rows(
            teacher.vectors,
            spec,
            max(spec.radices),
            weights,
            kept_as=config.kept_as,
            progress=progress,
        )


def radices(items: int, num_codebooks: int) -> tuple[int, ...]:
    """As equal as can be, their product at least ``items``; the largest is the least possible.

    >>> radices(40_727, 2), radices(10, 2), radices(28, 3)
    ((202, 202), (3, 4), (2, 4, 4))
    """
    K = max(2, math.ceil(items ** (1 / num_codebooks)))
    # The root is not exact: it may be one off either way.
    K += -1 if K > 2 and (K - 1) ** num_codebooks >= items else K**num_codebooks < items  # noqa: PLR2004
    first = max(1, math.ceil(items / K ** (num_codebooks - 1)))
    return first, *[K] * (num_codebooks - 1)


def check_size(K: int) -> None:
    """Refuse more codewords than two bytes tell apart.

    Raises:
        ConfigError: K is over 65,536.
    """
    if K > MOST_CODES:
        raise ConfigError(
            f"{K} codewords in a codebook, expected at most {MOST_CODES}; take more codebooks"
        )


def fitted_to_rows(
    X: Tensor,
    spec: RadixCodes | HashedCodes,
    K: int,
    weights: Tensor,
    *,
    kept_as: Precision,
    progress: Progress,
) -> CodedItems:
    """Codebooks by least squares, for codes that follow from the rows."""
    codes = torch.from_numpy(computed_codes(spec, len(X), K).astype("int64"))
    progress.step("codebooks", 0, 1)
    codebooks = fitted(X, codes, X.new_zeros(codes.shape[1], K, X.shape[1]), weights)
    progress.step("codebooks", 1, 1)
    return CodedItems(codes, codebooks, kept_as, codes_spec=spec)
