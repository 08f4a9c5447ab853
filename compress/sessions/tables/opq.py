"""Optimised product quantisation (Ge et al., TPAMI 2014): the cuts are made after a rotation.

    min_{R, E, C}  Σ_v w_v·‖R·X_v - [E_1[C_v^1], …, E_M[C_v^M]]‖²,   R orthogonal

A bundle has no rotation, so it goes into the codewords: X_v ≈ Σ_m R_mᵀ·E_m[C_v^m], with R_m the
rows of R for cut m. Codewords are then as wide as the vectors, and take M times the bytes of a
product quantiser's; as they are free of their cuts now, least squares fits them once more.

| symbol | here | is |
|---|---|---|
| X, w | ``teacher.vectors``, `importance` | the table (N, D), weights of its items |
| R | `rotation` | (D, D), learned by faiss, all items alike |
| C, E | ``codes``, ``codebooks`` | (N, M) and, with the rotation in them, (M, K, D) |
"""

from typing import cast

import faiss
import numpy as np
import torch
from torch import Tensor

from compress.config import Frozen
from compress.progress import Progress
from compress.sessions.tables.base import Teacher
from compress.sessions.tables.coded import CodedItems, CutCodes, StoredCodesConfig
from compress.sessions.tables.distinct import told_apart
from compress.sessions.tables.means import fitted
from compress.tables.kmeans import importance, product_codes

ROUNDS = 20


class Opq(CutCodes):
    """Codes by k-means in cuts of the rotated vectors; codebooks by sum."""

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
        progress.step("rotation", 0, 1)
        R = rotation(X, M)
        progress.step("rotation", 1, 1)
        weights = importance(teacher.counts, config.frequency)
        codes, cuts = product_codes(X @ R.T, weights, M, K, generator=generator, progress=progress)
        codebooks = fitted(X, codes, absorbed(cuts, R), weights)
        if config.distinct:
            codes = told_apart(codes, codebooks, X, teacher.counts)
            codebooks = fitted(X, codes, codebooks, weights)
        return CodedItems(codes, codebooks, config.kept_as)


def rotation(X: Tensor, M: int) -> Tensor:
    """(D, D) orthogonal R, by turns with a product quantiser of M cuts."""
    faiss.omp_set_num_threads(torch.get_num_threads())
    learned = faiss.OPQMatrix(X.shape[1], M)
    learned.niter = ROUNDS
    learned.train(np.ascontiguousarray(X.numpy(), np.float32))
    flat = faiss.vector_to_array(learned.A)
    return torch.from_numpy(flat.reshape(X.shape[1], X.shape[1]).copy())


def absorbed(cuts: Tensor, R: Tensor) -> Tensor:
    """(M, K, D) codebooks R_mᵀ·E_m of codebooks E (M, K, D / M) behind a rotation R (D, D)."""
    M, _, width = cuts.shape
    return cuts @ R.view(M, width, -1)
