"""RecJPQ (Petrov & Macdonald, WSDM 2024): codes from who is clicked with whom, before any training.

1. A session-item matrix of zeros and ones has the truncated SVD U·S·Vᵀ of rank M.
2. Column m of V, sorted, is cut into K bins of equal count: C_v^m is the bin of item v.
3. The codebooks are learned with the ranker; here they begin at the teacher's weighted means.

| symbol | here | is |
|---|---|---|
| V | ``latent`` | (N, M), of the session-item matrix |
| C, E | ``codes``, ``codebooks`` | (N, M) and (M, K, D / M) |
"""

from typing import cast

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

from compress.config import ConfigError, Frozen
from compress.progress import Progress
from compress.sessions.data import Sessions
from compress.sessions.tables.base import Teacher
from compress.sessions.tables.coded import CodedItems, CutCodes, StoredCodesConfig, as_sum
from compress.sessions.tables.distinct import told_apart
from compress.sessions.tables.means import fitted_cuts
from compress.tables.kmeans import importance, seed_of

# Parts items whose columns of V are equal, as the paper does it.
NOISE = 1e-5


class RecJpq(CutCodes):
    """Codes by equal-count bins of the sessions' SVD; codebooks by concatenation."""

    def build(
        self, teacher: Teacher, config: Frozen, generator: torch.Generator, progress: Progress
    ) -> CodedItems:
        """A table with the sessions' codes, near the teacher's as far as they let it.

        Raises:
            ConfigError: see `check`; or there are no sessions.
        """
        config = cast("StoredCodesConfig", config)
        X, M, K = teacher.vectors, config.num_codebooks, config.codebook_size
        self.check(config, *X.shape)
        if teacher.sessions is None:
            raise ConfigError("recjpq: its codes come from sessions, and there is only a table")
        progress.step("codes", 0, 1)
        codes = equal_bins(latent(teacher.sessions, M, generator), K)
        weights = importance(teacher.counts, config.frequency)
        codebooks = fitted_cuts(X, codes, K, weights)
        if config.distinct:
            codes = told_apart(codes, as_sum(codebooks), X, teacher.counts)
            codebooks = fitted_cuts(X, codes, K, weights)
        progress.step("codes", 1, 1)
        return CodedItems(codes, codebooks, config.kept_as, concatenated=True)


def latent(sessions: Sessions, M: int, generator: torch.Generator) -> Tensor:
    """(N, M) V of the session-item matrix, each column scaled to [0, 1], with a little noise.

    Raises:
        ConfigError: there are fewer sessions or items than M.
    """
    if min(len(sessions), sessions.items) < M:
        raise ConfigError(
            f"recjpq: {M} codebooks need as many sessions and items, and there are "
            f"{len(sessions)} and {sessions.items}"
        )
    seen = csr_matrix(
        (np.ones(len(sessions.rows), np.float32), sessions.rows, sessions.offsets),
        shape=(len(sessions), sessions.items),
    )
    seen.sum_duplicates()
    seen.data[:] = 1.0
    _, _, vt = randomized_svd(seen, M, random_state=seed_of(generator))
    V = torch.from_numpy(np.ascontiguousarray(vt.T, np.float64))  # (N, M)
    least, most = V.amin(0), V.amax(0)
    V = (V - least) / (most - least).clamp(min=1e-12)
    return V + NOISE * torch.randn(V.shape, generator=generator, dtype=V.dtype)


def equal_bins(V: Tensor, K: int) -> Tensor:
    """(N, M) the bin of each entry among K of equal count in its column, smallest values first.

    >>> equal_bins(torch.tensor([[0.9], [0.1], [0.5], [0.2]]), 2).tolist()
    [[1], [0], [1], [0]]
    """
    rank = V.argsort(dim=0, stable=True).argsort(dim=0)
    bins: Tensor = rank * K // len(V)
    return bins
