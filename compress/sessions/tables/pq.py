"""Product quantisation (Jégou et al., TPAMI 2011): the width is cut, and each cut has its codebook.

    min  Σ_v w_v·‖X_v - [E_1[C_v^1], …, E_M[C_v^M]]‖²

The cuts are independent, so each is one k-means in D / M dimensions.

| symbol | here | is |
|---|---|---|
| X | ``teacher.vectors`` | (N, D), the table |
| w | `importance` | weights of the items, by clicks |
| C, E | ``codes``, ``codebooks`` | (N, M) and (M, K, D / M) |
"""

from typing import cast

import torch

from compress.config import Frozen
from compress.progress import Progress
from compress.sessions.tables.base import Teacher
from compress.sessions.tables.coded import CodedItems, CutCodes, StoredCodesConfig, as_sum
from compress.sessions.tables.distinct import told_apart
from compress.sessions.tables.means import fitted_cuts
from compress.tables.kmeans import importance, product_codes


class Pq(CutCodes):
    """Codes by k-means in each cut of the vectors; codebooks by concatenation."""

    def build(
        self, teacher: Teacher, config: Frozen, generator: torch.Generator, progress: Progress
    ) -> CodedItems:
        """A table near the teacher's.

        Raises:
            ConfigError: see `check`.
        """
        config = cast("StoredCodesConfig", config)
        X, M, K = teacher.vectors, config.num_codebooks, config.codebook_size
        self.check(config, *X.shape)
        weights = importance(teacher.counts, config.frequency)
        codes, codebooks = product_codes(X, weights, M, K, generator=generator, progress=progress)
        if config.distinct:
            codes = told_apart(codes, as_sum(codebooks), X, teacher.counts)
            codebooks = fitted_cuts(X, codes, K, weights)
        return CodedItems(codes, codebooks, config.kept_as, concatenated=True)
