"""Codebooks for given codes: the weighted least squares fit, one codebook at a time.

    min_E  Σ_v w_v·‖X_v - Σ_m E_m[C_v^m]‖²

For one codebook, the others as they are, the minimum is the weighted mean of what is left of each
codeword's items. Going round the codebooks never raises the objective, and a few rounds are within
a thousandth of the exact solution (Gauss-Seidel on the normal equations, without their matrix).
"""

import torch
from torch import Tensor

from compress.sessions.tables.coded import composed

SWEEPS = 4


def means(points: Tensor, codes: Tensor, size: int, weights: Tensor, otherwise: Tensor) -> Tensor:
    """(size, d) weighted means of the points (n, d) that share a code (n,).

    Args:
        points: what is averaged.
        codes: which mean a point counts for.
        size: how many means.
        weights: (n,) of the points, over 0.
        otherwise: (size, d) what stands where a code has no point.

    >>> means(torch.tensor([[1.0], [4.0]]), torch.tensor([1, 1]), 2, torch.tensor([2.0, 1.0]),
    ...       otherwise=torch.tensor([[7.0], [7.0]])).tolist()
    [[7.0], [2.0]]
    """
    share = points.new_zeros(size).index_add_(0, codes, weights).unsqueeze(1)  # (size, 1)
    total = points.new_zeros(size, points.shape[1])
    total.index_add_(0, codes, points * weights.unsqueeze(1))
    return torch.where(share > 0, total / share.clamp(min=1e-12), otherwise)


def fitted_cuts(X: Tensor, codes: Tensor, size: int, weights: Tensor) -> Tensor:
    """(M, K, D / M) codebooks whose concatenations come nearest the points (N, D): plain means."""
    found = []
    for code, cut in zip(codes.long().T, X.chunk(codes.shape[1], dim=1), strict=True):
        mean = (cut * weights.unsqueeze(1)).mean(0).expand(size, -1)
        found.append(means(cut, code, size, weights, mean))
    return torch.stack(found)


def fitted(
    points: Tensor, codes: Tensor, codebooks: Tensor, weights: Tensor, sweeps: int = SWEEPS
) -> Tensor:
    """(M, K, D) codebooks whose sums come near the points (N, D), for codes (N, M).

    Args:
        points: X.
        codes: C.
        codebooks: E to begin with; codewords that no item takes stay as they are.
        weights: w, (N,).
        sweeps: rounds of all codebooks.
    """
    codebooks, size = codebooks.clone(), codebooks.shape[1]
    left = points - composed(codes, codebooks)  # (N, D)
    for _ in range(sweeps):
        for m, code in enumerate(codes.long().T):
            left += codebooks[m][code]
            codebooks[m] = means(left, code, size, weights, codebooks[m])
            left -= codebooks[m][code]
    return codebooks
