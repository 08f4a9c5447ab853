"""EODRec's item table (Xia et al., TOIS 2023): codes by an encoder, mixed with the teacher's rows.

    e_v    = Σ_m E_m[C_v^m]
    h      = tanh(θᵀX_v + b)                                  (M·K / 2)
    α^m    = softmax(softplus(θ'_mᵀh + b'_m))                 (K), m = 1..M
    O^m    = softmax((log α^m + Gumbel noise) / τ)            one-hot forward, its gradient backward
    L_mse  = (1 / |V|)·Σ_v ‖Σ_m E_mᵀ·O_v^m - X_v‖²
    e'_v   = η·X_v + (1 - η)·e_v                              in training only

Stage B (`build`) makes codes and codebooks that reconstruct the teacher's rows. Stage C is the
training loop's: it sees e', and adds L_mse (`penalty`). What ships is e with C_v^m = argmax α^m.

| symbol | here | is |
|---|---|---|
| X | ``vectors`` | (N, D), the teacher's table; it stays as it was |
| θ, b, θ', b' | `Encoder` | the encoder |
| τ | ``temperature`` | of the Gumbel softmax |
| C, E | ``codes``, ``codebooks`` | (N, M) and (M, K, D) |
| η | ``eta`` | the teacher's share |

What differs from the paper, and from the authors' code, is in docs/codes.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from compress.config import Frozen
from compress.progress import Progress
from compress.sessions.tables.base import Teacher
from compress.sessions.tables.coded import (
    PATTERN,
    ChosenCodes,
    CodedItems,
    StoredCodesConfig,
    as_kept,
)
from compress.sessions.tables.distinct import told_apart
from compress.sessions.tables.means import fitted
from compress.sessions.tables.rq import RqConfig, residual_quantisation
from compress.tables.kmeans import importance

AT_ONCE = 4096  # items
SHOWN_EVERY = 50


class EodrecConfig(StoredCodesConfig):
    """Options of the method.

    Attributes:
        start: where codes come from. ``rq``: residual k-means, which reconstructs better.
            ``gumbel``: the encoder, trained on L_mse as the paper.
        learn_codes: whether the encoder goes on choosing codes in stage C; else they stay as stage
            B left them.
        distinct: whether items that share all codes are told apart, where codes stay as they are.
        steps: of stage B.
        lr: of stage B, at its peak; a cosine to zero.
        batch_size: items in a step of stage B.
        temperature: τ.
        mixup: η when stage C begins; 0: no mixup.
        annealed: whether η falls to 0; if not, as published, training never sees what ships.
        mixup_until: the part of stage C after which it has.
        mse: weight of L_mse in stage C.
        mse_rows: items that L_mse is estimated from in a step.
    """

    codes: str = Field(default="4x256", pattern=PATTERN)
    start: Literal["rq", "gumbel"] = "rq"
    learn_codes: bool = False
    steps: int = Field(default=2000, gt=0)
    lr: float = Field(default=1e-2, gt=0.0)
    batch_size: int = Field(default=1024, gt=0)
    temperature: float = Field(default=0.3, gt=0.0)
    mixup: float = Field(default=0.8, ge=0.0, lt=1.0)
    annealed: bool = True
    mixup_until: float = Field(default=0.5, gt=0.0, le=1.0)
    mse: float = Field(default=1.0, ge=0.0)
    mse_rows: int = Field(default=2048, gt=0)


class Encoder(nn.Module):
    """log α of a teacher's row: two layers."""

    def __init__(self, X: Tensor, M: int, K: int, generator: torch.Generator) -> None:
        super().__init__()
        D, H = X.shape[1], max(1, M * K // 2)
        # So that θᵀX and θ'ᵀh begin at about unit variance, whatever the scale of the table.
        spread = float(X.square().mean().sqrt()) * math.sqrt(D) + 1e-12
        self.theta = nn.Parameter(torch.randn(D, H, generator=generator) / spread)
        self.bias = nn.Parameter(torch.zeros(H))
        self.theta_codes = nn.Parameter(torch.randn(H, M * K, generator=generator) / math.sqrt(H))
        self.bias_codes = nn.Parameter(torch.zeros(M, K))

    def forward(self, X: Tensor) -> Tensor:
        """(n, M, K) log α of rows (n, D)."""
        h = torch.tanh(X @ self.theta + self.bias)  # (n, M·K / 2)
        logits = (h @ self.theta_codes).view(-1, *self.bias_codes.shape) + self.bias_codes
        return F.log_softmax(F.softplus(logits), dim=-1)

    @torch.no_grad()
    def codes(self, X: Tensor) -> Tensor:
        """(N, M) argmax α."""
        starts = range(0, len(X), AT_ONCE)
        return torch.cat([self(X[i : i + AT_ONCE]).argmax(-1) for i in starts])


class EodrecItems(CodedItems):
    """Codes and codebooks beside the teacher's rows, which only training sees.

    Attributes:
        vectors: X (N, D).
        encoder: None where codes stay as they are.
        eta: η now.
    """

    vectors: Tensor

    def __init__(
        self,
        codes: Tensor,
        codebooks: Tensor,
        vectors: Tensor,
        encoder: Encoder | None,
        config: EodrecConfig,
    ) -> None:
        super().__init__(codes, codebooks, config.kept_as)
        self.register_buffer("vectors", vectors, persistent=False)
        self.encoder, self._config = encoder, config
        self.eta = config.mixup

    def forward(self, rows: Tensor) -> Tensor:
        """(…, D) e' of rows (…) in training, else e."""
        flat = rows.reshape(-1)
        vectors = self._learned(flat) if self.training else self.composed(self.codes[flat])
        if self.training and self.eta > 0:
            vectors = self.eta * self.vectors[flat] + (1 - self.eta) * vectors
        return vectors.view(*rows.shape, self.dim)

    def _learned(self, rows: Tensor) -> Tensor:
        if self.encoder is None:
            return self.composed(self.codes[rows])
        O = gumbel_one_hot(self.encoder(self.vectors[rows]), self._config.temperature)  # noqa: E741
        return picked(O, as_kept(self.codebooks, self._config.kept_as))

    def penalty(self) -> Tensor:
        """L_mse, estimated from some rows."""
        count = min(self._config.mse_rows, self.items)
        rows = torch.randint(self.items, (count,), device=self.vectors.device)
        return self._config.mse * mse(self._learned(rows), self.vectors[rows])

    def anneal(self, progress: float) -> None:
        """η falls in a straight line and stays at 0."""
        if self._config.annealed:
            left = max(0.0, 1.0 - progress / self._config.mixup_until)
            self.eta = self._config.mixup * left

    def train(self, mode: bool = True) -> Self:
        """On leaving training the encoder's choice becomes the codes."""
        super().train(mode)
        if not mode and self.encoder is not None:
            self.codes.copy_(self.encoder.codes(self.vectors))
        return self


class Eodrec(ChosenCodes):
    """Codes near the teacher's rows, and a table that leaves the teacher little by little."""

    Config: ClassVar[type[Frozen]] = EodrecConfig

    def build(
        self, teacher: Teacher, config: Frozen, generator: torch.Generator, progress: Progress
    ) -> EodrecItems:
        """Stage B.

        Raises:
            ConfigError: see `check`.
        """
        config = cast("EodrecConfig", config)
        X, weights = teacher.vectors, importance(teacher.counts, config.frequency)
        self.check(config, *X.shape)
        stage = _StageB(X, weights, config, generator, progress)
        codes, codebooks, encoder = (
            stage.from_residuals() if config.start == "rq" else stage.fresh()
        )
        if not config.learn_codes:
            encoder = None
            if config.distinct:
                codes = told_apart(codes, codebooks, X, teacher.counts)
        codebooks = fitted(X, codes, codebooks, weights)
        return EodrecItems(codes, codebooks, X, encoder, config)


@dataclass(frozen=True, slots=True)
class _StageB:
    """Makes codes, codebooks and, where it is asked for or needed, the encoder that chose them."""

    X: Tensor
    weights: Tensor
    config: EodrecConfig
    generator: torch.Generator
    progress: Progress

    def from_residuals(self) -> tuple[Tensor, Tensor, Encoder | None]:
        """Codes by residual k-means; if they are to learn on, an encoder that imitates them."""
        X, M, K = self.X, self.config.num_codebooks, self.config.codebook_size
        codes, codebooks = residual_quantisation(
            X, self.weights, RqConfig(codes=self.config.codes), self.generator, self.progress
        )
        if not self.config.learn_codes:
            return codes, codebooks, None
        encoder = Encoder(X, M, K, self.generator)

        def unlike(rows: Tensor) -> Tensor:
            return F.nll_loss(encoder(X[rows]).flatten(0, 1), codes[rows].flatten())

        self._descend("encoder", list(encoder.parameters()), unlike)
        return encoder.codes(X), codebooks, encoder

    def fresh(self) -> tuple[Tensor, Tensor, Encoder | None]:
        """Encoder and codebooks from random ones, by L_mse."""
        X, M, K, tau = (
            self.X,
            self.config.num_codebooks,
            self.config.codebook_size,
            self.config.temperature,
        )
        encoder = Encoder(X, M, K, self.generator)
        spread = float(X.std()) / math.sqrt(M)
        codebooks = torch.randn(M, K, X.shape[1], generator=self.generator) * spread
        codebooks.requires_grad_()

        def far(rows: Tensor) -> Tensor:
            O = gumbel_one_hot(encoder(X[rows]), tau, self.generator)  # noqa: E741
            return mse(picked(O, codebooks), X[rows])

        self._descend("encoder, codebooks", [*encoder.parameters(), codebooks], far)
        return encoder.codes(X), codebooks.detach(), encoder

    def _descend(
        self, stage: str, parameters: list[Tensor], loss_of: Callable[[Tensor], Tensor]
    ) -> None:
        config, items = self.config, len(self.X)
        optimizer = torch.optim.Adam(parameters, lr=config.lr)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
        for step in range(1, config.steps + 1):
            rows = torch.randint(items, (min(config.batch_size, items),), generator=self.generator)
            loss = loss_of(rows)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            cosine.step()
            if step % SHOWN_EVERY == 0 or step == config.steps:
                self.progress.step(stage, step, config.steps, loss=float(loss.detach()))


def gumbel_one_hot(
    log_alpha: Tensor, temperature: float, generator: torch.Generator | None = None
) -> Tensor:
    """(n, M, K) O: one-hot samples of α, with the gradient of the soft ones.

    >>> sample = gumbel_one_hot(torch.tensor([[[0.0, -100.0]]]), 0.3)
    >>> sample.tolist()
    [[[1.0, 0.0]]]
    """
    noise = -torch.empty_like(log_alpha).exponential_(generator=generator).log()
    soft = torch.softmax((log_alpha + noise) / temperature, dim=-1)
    hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
    return hard + (soft - soft.detach())


def picked(O: Tensor, codebooks: Tensor) -> Tensor:  # noqa: E741
    """(n, D) Σ_m E_mᵀ·O^m, for O (n, M, K) and codebooks (M, K, D)."""
    return O.flatten(1) @ codebooks.flatten(0, 1)


def mse(e: Tensor, X: Tensor) -> Tensor:
    """L_mse: the mean over rows (n, D) of squared distances, at the paper's scale."""
    return (e - X).square().sum(1).mean()
