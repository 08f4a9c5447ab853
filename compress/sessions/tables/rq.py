"""Residual quantisation: each codebook clusters what the ones before it left (Chen et al. 2010).

    min  Σ_v w_v·‖X_v - Σ_m E_m[C_v^m]‖²

1. Level by level, E_m is the k-means of X - Σ_{j<m} E_j[C^j].
2. Then, a few rounds: codes by beam search over all codebooks (an item keeps its old code where
   that is nearer), and all codebooks anew by least squares (`fitted`). Neither raises the
   objective; it falls by 5 to 15 %.

| symbol | here | is |
|---|---|---|
| X | ``teacher.vectors`` | (N, D), the table |
| w | `importance` | weights of the items, by clicks |
| C, E | ``codes``, ``codebooks`` | (N, M) and (M, K, D) |
| B | ``beam`` | partial codes kept of each item |
"""

from typing import ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from compress.config import Frozen
from compress.progress import Progress
from compress.sessions.tables.base import Teacher
from compress.sessions.tables.coded import ChosenCodes, CodedItems, StoredCodesConfig, composed
from compress.sessions.tables.distinct import told_apart
from compress.sessions.tables.means import fitted
from compress.tables.kmeans import clusters, importance

AT_ONCE = 1024  # items


class RqConfig(StoredCodesConfig):
    """Options of the method.

    Attributes:
        beam: partial codes kept in the search; 1 is greedy.
        rounds: of beam search and least squares after the levels; 0 is plain residual k-means.
    """

    beam: int = Field(default=8, ge=1, le=64)
    rounds: int = Field(default=4, ge=0)


class Rq(ChosenCodes):
    """Codes by residual k-means, mended together; codebooks by sum."""

    Config: ClassVar[type[Frozen]] = RqConfig

    def build(
        self, teacher: Teacher, config: Frozen, generator: torch.Generator, progress: Progress
    ) -> CodedItems:
        """A table near the teacher's.

        Raises:
            ConfigError: see `check`.
        """
        config = cast("RqConfig", config)
        X, weights = teacher.vectors, importance(teacher.counts, config.frequency)
        self.check(config, *X.shape)
        codes, codebooks = residual_quantisation(X, weights, config, generator, progress)
        if config.distinct:
            codes = told_apart(codes, codebooks, X, teacher.counts)
            codebooks = fitted(X, codes, codebooks, weights)
        return CodedItems(codes, codebooks, config.kept_as)


def residual_quantisation(
    X: Tensor, weights: Tensor, config: RqConfig, generator: torch.Generator, progress: Progress
) -> tuple[Tensor, Tensor]:
    """Codes (N, M) and codebooks (M, K, D): level by level, then mended together."""
    M, K = config.num_codebooks, config.codebook_size
    codes, codebooks = residual_codes(X, weights, M, K, generator=generator, progress=progress)
    return mended(
        X, codes, codebooks, weights, beam=config.beam, rounds=config.rounds, progress=progress
    )


def residual_codes(
    X: Tensor, weights: Tensor, M: int, K: int, *, generator: torch.Generator, progress: Progress
) -> tuple[Tensor, Tensor]:
    """Codes (N, M) and codebooks (M, K, D), each level on what the last one left."""
    left, codes, codebooks = X.clone(), [], []
    for m in range(1, M + 1):
        words, code = clusters(left, K, weights, generator)
        left -= words[code]
        codes.append(code)
        codebooks.append(words)
        progress.step("codes", m, M, error=relative_error(left, X))
    return torch.stack(codes, 1), torch.stack(codebooks)


def mended(
    X: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    weights: Tensor,
    *,
    beam: int,
    rounds: int,
    progress: Progress,
) -> tuple[Tensor, Tensor]:
    """Codes and codebooks after so many rounds of beam search and least squares."""
    for done in range(1, rounds + 1):
        trial = beam_search(X, codebooks, beam)
        now = (X - composed(codes, codebooks)).square().sum(1)
        then = (X - composed(trial, codebooks)).square().sum(1)
        codes = torch.where((then < now).unsqueeze(1), trial, codes)
        codebooks = fitted(X, codes, codebooks, weights)
        error = relative_error(X - composed(codes, codebooks), X)
        progress.step("codes, mended", done, rounds, error=error)
    return codes, codebooks


def beam_search(X: Tensor, codebooks: Tensor, beam: int) -> Tensor:
    """(N, M) codes of vectors (N, D) near the best: the B best beginnings are kept at each level.

    With s the sum so far and c the next codeword, ‖X - s - c‖² = ‖X - s‖² - 2·X·c + ‖c‖² + 2·s·c;
    products of codewords are looked up, so a level costs no more than X·c and M additions.
    """
    M, K, D = codebooks.shape
    words = codebooks.reshape(M * K, D)
    products = [2 * words[: m * K] @ codebooks[m].T for m in range(M)]  # (m·K, K) each
    starts = range(0, len(X), AT_ONCE)
    return torch.cat([_searched(X[i : i + AT_ONCE], codebooks, products, beam) for i in starts])


def _searched(x: Tensor, codebooks: Tensor, products: list[Tensor], beam: int) -> Tensor:
    K, n = codebooks.shape[1], len(x)
    codes = torch.zeros(n, 1, 0, dtype=torch.long)
    errors = x.new_zeros(n, 1)  # short of ‖X‖², which all have alike
    for m, words in enumerate(codebooks):
        alone = words.square().sum(1) - 2 * x @ words.T  # (n, K)
        trial = errors.unsqueeze(2) + alone.unsqueeze(1)  # (n, b, K)
        if m:
            places = (codes + torch.arange(m) * K).reshape(-1, m)
            trial += F.embedding_bag(places, products[m], mode="sum").view_as(trial)
        kept = min(beam, trial[0].numel())
        errors, best = trial.flatten(1).topk(kept, largest=False)  # (n, B)
        begun = codes.gather(1, (best // K).unsqueeze(2).expand(-1, -1, m))
        codes = torch.cat([begun, (best % K).unsqueeze(2)], 2)
    return codes[:, 0]


def relative_error(left: Tensor, X: Tensor) -> float:
    """‖X - X̂‖² / ‖X‖² for what is left of X."""
    return float(left.square().sum() / X.square().sum().clamp(min=1e-30))
