"""Hash embeddings (Svenstrup et al., NeurIPS 2017) without weights: M hashes of the row.

    e_v = Σ_m E_m[h_m(v)],      h_m(v) = (v + 1)·a_m mod p mod K

No code is stored. Some items share all M codewords (about N² / (2·K^M) pairs) and then have one
vector; the paper's weights of each item would tell them apart, at M numbers an item.
"""

from typing import ClassVar, cast

import torch
from pydantic import Field

from compress.config import ConfigError, Frozen
from compress.progress import Progress
from compress.sessions.tables.base import Teacher
from compress.sessions.tables.coded import PATTERN, CodedItems, CodesConfig, check_apart
from compress.sessions.tables.qr import check_size, fitted_to_rows
from compress.tables.kmeans import importance
from model_store.manifest import HashedCodes

PRIME = 2_147_483_647


class HashingConfig(CodesConfig):
    """Options of the method.

    Attributes:
        codes: "MxK"; K need not be a power of two, as no code is stored.
    """

    codes: str = Field(default="2x512", pattern=PATTERN)


class Hashing:
    """Codes by hashes of the row; codebooks by sum."""

    Config: ClassVar[type[Frozen]] = HashingConfig

    def check(self, config: Frozen, items: int, dim: int) -> None:
        """Whether the config fits a table of so many items.

        Raises:
            ConfigError: K^M below N, K not below N, or K over 65,536.
        """
        del dim
        config = cast("HashingConfig", config)
        K = config.codebook_size
        check_apart(config.num_codebooks, K, items)
        if items <= K:
            raise ConfigError(f"codes={config.codes}: {items} items need no hash into {K}")
        check_size(K)

    def build(
        self, teacher: Teacher, config: Frozen, generator: torch.Generator, progress: Progress
    ) -> CodedItems:
        """A table as near the teacher's as its hashes let it.

        Raises:
            ConfigError: see `check`.
        """
        config = cast("HashingConfig", config)
        X, M, K = teacher.vectors, config.num_codebooks, config.codebook_size
        self.check(config, *X.shape)
        factors = torch.randint(1, PRIME, (M,), generator=generator).tolist()
        spec = HashedCodes(factors=tuple(factors), prime=PRIME)
        weights = importance(teacher.counts, config.frequency)
        return fitted_to_rows(X, spec, K, weights, kept_as=config.kept_as, progress=progress)
