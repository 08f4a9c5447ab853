"""Item vectors from what stands near what in sessions: where training starts.

    A_uv = max(0, log( C_uv · sum_w c_w^0.75 / (C_u · c_v^0.75) ))     C_uv = sum over pairs 1 / gap
    E    = the left singular vectors of A times its singular values, rows of length 1

Positive pointwise mutual information with context smoothing, factored (Levy & Goldberg 2014; Levy,
Goldberg & Dagan 2015). Most items of a shop are clicked a few times: cross-entropy alone needs many
epochs to place them, and by then it knows the frequent pairs by heart.
"""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

from compress.sessions.data import Sessions

REACH: Final = 10  # clicks
SMOOTHING: Final = 0.75
NOISE: Final = 1e-3  # tells apart items that were seen with nothing, or with the same


def pair_counts(sessions: Sessions, reach: int = REACH) -> csr_matrix:
    """(N, N) sum of 1 / gap over ordered pairs of clicks at most ``reach`` apart, one session."""
    clicks, owner = sessions.rows, np.repeat(np.arange(len(sessions)), sessions.lengths)
    rows, columns, weights = [], [], []
    for gap in range(1, reach + 1):
        together = owner[gap:] == owner[:-gap]
        rows.append(clicks[:-gap][together])
        columns.append(clicks[gap:][together])
        weights.append(np.full(int(together.sum()), 1 / gap))
    shape = (sessions.items, sessions.items)
    pairs = (np.concatenate(rows), np.concatenate(columns))
    return csr_matrix((np.concatenate(weights), pairs), shape=shape)


def positive_information(counts: csr_matrix) -> csr_matrix:
    """(N, N) positive pointwise mutual information of symmetric counts, without the diagonal."""
    both = (counts + counts.T).tocoo()
    off = both.row != both.col
    row, column, found = both.row[off], both.col[off], both.data[off]
    total = np.bincount(row, found, minlength=both.shape[0])
    context = total**SMOOTHING
    information = np.log(found * context.sum() / (total[row] * context[column]))
    positive = information > 0
    cells = (row[positive], column[positive])
    return csr_matrix((information[positive], cells), shape=both.shape)


def cooccurrence_vectors(sessions: Sessions, dim: int, seed: int) -> Tensor:
    """(N, dim) unit vectors, float32."""
    information = positive_information(pair_counts(sessions))
    draw = np.random.default_rng(seed)
    vectors = draw.normal(scale=NOISE, size=(sessions.items, dim))
    rank = min(dim, sessions.items - 1)
    left, values, _ = randomized_svd(information, rank, n_iter=4, random_state=seed % 2**32)
    vectors[:, :rank] += _unit(left * values)
    return torch.from_numpy(_unit(vectors)).float()


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-6), np.float64)
