"""Distillation of a session ranker: soft targets, and contrast of recombined halves (EODRec).

    L = (1 - γ) L_rec + γ L_soft + β L_cl        (+ L_rec of the teacher where it learns as well)

    L_soft   KL(p_tea || p_stu) over all ways to the next item
    L_cl     InfoNCE on cos(W_t z_tea, W_s z_stu) / τ, other sessions of the batch as negatives
    z_tea    [θ_hot of the teacher ; θ_cold of the student]      halves of a session: its hot items
    z_stu    [θ_hot of the student ; θ_cold of the teacher]      (most clicked) and its cold ones

or, after whole sessions (``after = "sessions"``), where no loss has told the teacher what came:

    L = L_soft

Xia et al. 2023 (papers.md §2.5). Unlike the released code every parameter here is trained, the
teacher too if ``bidirectional``, and then it keeps its own cross-entropy: distillation alone would
let it drift.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from compress.sessions.config import FitConfig, SoftTargets
from compress.sessions.losses import Columns, Scored, next_item_loss, soft_target_loss
from compress.sessions.student import Batch, Student, score_batch
from compress.sessions.tables.learned import LearnedTable

# A teacher that learns does so slowly: it is near its best already.
TEACHER_PACE = 0.1


class HalfPool(nn.Module):
    """θ = sum_t α_t e_t over the chosen items, α_t = f · sigmoid(W1 ē + W2 e_t + c)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.of_mean = nn.Linear(dim, dim)
        self.of_each = nn.Linear(dim, dim, bias=False)
        self.weigh = nn.Linear(dim, 1, bias=False)

    def forward(self, vectors: Tensor, chosen: Tensor) -> Tensor:
        """(B, L, D) and a mask (B, L) -> (B, D); zeros where nothing is chosen."""
        share = chosen.to(vectors.dtype).unsqueeze(-1)  # (B, L, 1)
        mean = (vectors * share).sum(1) / share.sum(1).clamp(min=1.0)  # (B, D)
        mixed = self.of_mean(mean).unsqueeze(1) + self.of_each(vectors)
        alpha = self.weigh(torch.sigmoid(mixed)) * share  # (B, L, 1)
        pooled: Tensor = (alpha * vectors).sum(1)
        return pooled


class Contrast(nn.Module):
    """L_cl: hot and cold pools of both models, and the two projections."""

    def __init__(self, dim_teacher: int, dim_student: int, temperature: float) -> None:
        super().__init__()
        self.hot_teacher, self.cold_teacher = HalfPool(dim_teacher), HalfPool(dim_teacher)
        self.hot_student, self.cold_student = HalfPool(dim_student), HalfPool(dim_student)
        width = dim_teacher + dim_student
        self.project_teacher = nn.Linear(width, dim_student, bias=False)
        self.project_student = nn.Linear(width, dim_student, bias=False)
        self.temperature = temperature

    def forward(self, teacher: Tensor, student: Tensor, hot: Tensor, real: Tensor) -> Tensor:
        """Mean InfoNCE of a batch.

        Args:
            teacher: (B, L, D_t) item vectors of the sessions.
            student: (B, L, D_s).
            hot: (B, L) whether an item is hot.
            real: (B, L) whether there is an item at all.
        """
        hots, colds = hot & real, ~hot & real
        # A session without one half swaps the whole of itself in that half's place.
        hots = torch.where(hots.any(1, keepdim=True), hots, real)
        colds = torch.where(colds.any(1, keepdim=True), colds, real)
        z_teacher = [self.hot_teacher(teacher, hots), self.cold_student(student, colds)]
        z_student = [self.cold_teacher(teacher, colds), self.hot_student(student, hots)]
        ours = F.normalize(self.project_teacher(torch.cat(z_teacher, 1)), dim=1)
        theirs = F.normalize(self.project_student(torch.cat(z_student, 1)), dim=1)
        logits = ours @ theirs.T / self.temperature  # (B, B)
        return F.cross_entropy(logits, torch.arange(len(logits)))


@dataclass(slots=True)
class Distillation:
    """What a teacher adds to the loss of a batch.

    Attributes:
        teacher: one that learns is a copy of the one that was given.
        hot: (N,) whether an item is hot.
        contrast: None where β is 0.
    """

    teacher: Student
    config: SoftTargets
    hot: Tensor
    contrast: Contrast | None

    @classmethod
    def of(
        cls, teacher: Student, student: Student, config: SoftTargets, counts: Tensor
    ) -> "Distillation":
        """A teacher for a student.

        Args:
            teacher: trained; stays as it is, and a copy learns on if ``config.bidirectional``.
            student: whose widths the projections take.
            config: weights of the parts.
            counts: (N,) clicks of each item in training.
        """
        hot = torch.zeros(len(counts), dtype=torch.bool)
        hot[counts.topk(max(1, round(config.hot_share * len(counts)))).indices] = True
        contrast = None
        if config.contrast:
            contrast = Contrast(teacher.table.dim, student.table.dim, config.temperature)
        return cls(_learner(teacher) if config.bidirectional else teacher, config, hot, contrast)

    def loss(
        self, own: Tensor, given: Scored, batch: Batch, columns: Columns, vectors: Tensor
    ) -> Tensor:
        """The whole loss of a batch.

        Args:
            own: the student's cross-entropy.
            given: its scores.
            batch: the sessions.
            columns: what they are scored against.
            vectors: (C, D) the student's vectors of the columns.
        """
        config, learns = self.config, self.config.bidirectional
        self.teacher.train(learns)
        with torch.set_grad_enabled(learns):
            theirs = self.teacher.table(columns.rows)
            taught = score_batch(self.teacher, batch, columns, theirs)
        total = (1 - config.soft) * own + config.soft * soft_target_loss(given, taught)
        if self.contrast is not None:
            place = columns.place[batch.rows]
            total = total + config.contrast * self.contrast(
                theirs[place], vectors[place], self.hot[batch.rows], batch.real
            )
        return total + next_item_loss(taught) if learns else total

    @property
    def imitates(self) -> bool:
        """Whether it replaces the cross-entropy: then there are soft targets alone."""
        return self.config.after == "sessions"

    def imitation(self, given: Scored, batch: Batch, columns: Columns) -> Tensor:
        """L_soft where the teacher has seen no target.

        Args:
            given: the student's scores.
            batch: the sessions.
            columns: what they are scored against.
        """
        self.teacher.train(mode=False)
        with torch.no_grad():
            taught = score_batch(self.teacher, batch, columns, self.teacher.table(columns.rows))
        return soft_target_loss(given, taught)

    def parameter_groups(self, config: FitConfig) -> list[dict[str, Any]]:
        """What the optimizer has to move besides the student."""
        groups: list[dict[str, Any]] = []
        if self.contrast is not None:
            groups.append({"params": list(self.contrast.parameters()), "lr": config.lr})
        if self.config.bidirectional:
            groups.append(
                {"params": list(self.teacher.ranker.parameters()), "lr": TEACHER_PACE * config.lr}
            )
            groups.append(
                {
                    "params": list(self.teacher.table.parameters()),
                    "lr": TEACHER_PACE * config.table_lr,
                }
            )
        return groups

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        contrast = None if self.contrast is None else self.contrast.state_dict()
        return {"teacher": self.teacher.state(), "contrast": contrast}

    def load(self, state: dict[str, Any]) -> None:
        """The reverse of `state`."""
        self.teacher.load(state["teacher"])
        if self.contrast is not None:
            self.contrast.load_state_dict(state["contrast"])


def _learner(teacher: Student) -> Student:
    """A copy that the layers' optimizer can step: it takes no sparse gradients."""
    learner = copy.deepcopy(teacher)
    if isinstance(learner.table, LearnedTable):
        learner.table.sparse = False
    return learner
