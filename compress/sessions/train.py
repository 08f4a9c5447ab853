"""The training loop of session rankers: encoder and item table together, all prefixes at once.

A session of L clicks is one row: the encoder is causal, so its L positions train the prefixes of 0
to L - 1 items (papers.md §2.6 makes a row of each). What is kept is the epoch with the best NDCG@20
on the validation sessions, the starting weights included.

A run is a function of (ranker, table, data, config, seed) on one machine and number of threads;
after a kill it goes on from its last whole epoch to the same weights.
"""

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress import checkpoint as checkpoints
from compress.config import CompressError
from compress.optimizers import RowAdam
from compress.progress import Progress
from compress.sessions.batches import Piece, batches, endings, windows
from compress.sessions.config import FitConfig
from compress.sessions.data import Prefixes, Sessions
from compress.sessions.distill import Distillation
from compress.sessions.losses import Columns, all_columns, next_item_loss, sampled_columns
from compress.sessions.student import (
    Batch,
    NotTrained,
    Student,
    as_batch,
    as_endings,
    score_batch,
)

WARM_UP = 0.1
JUDGED_AT_ONCE = 256
TOP = 20
CHECK_EVERY = 20


class TrainingDiverged(CompressError):
    """The loss is no longer a number; the text says what to change."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """One look at the validation sessions; epoch 0 is before the first step.

    Attributes:
        loss: mean over the epoch's targets (nan before the first step).
        seconds: of training, the look apart.
    """

    epoch: int
    loss: float
    hit: float
    mrr: float
    ndcg: float
    seconds: float


class Objective:
    """The loss of a batch: the next item, what the table adds, and the teacher's part."""

    def __init__(
        self, student: Student, config: FitConfig, distillation: Distillation | None
    ) -> None:
        self._student, self._config, self._distillation = student, config, distillation

    def __call__(self, rows: Tensor, lengths: Tensor, begins: Tensor) -> tuple[Tensor, int]:
        """(loss, positions) of a batch as `batches` gives it."""
        student, teacher = self._student, self._distillation
        imitates = teacher is not None and teacher.imitates
        batch = as_endings(rows, lengths) if imitates else as_batch(rows, lengths, begins)
        columns = self._columns(batch)
        vectors = student.table(columns.rows)
        given = score_batch(student, batch, columns, vectors)
        if teacher is None:
            loss = next_item_loss(given, half=self._config.half)
        elif imitates:
            loss = teacher.imitation(given, batch, columns)
        else:
            own = next_item_loss(given, half=self._config.half)
            loss = teacher.loss(own, given, batch, columns, vectors)
        return loss + student.table.penalty(), len(batch.target)

    def _columns(self, batch: Batch) -> Columns:
        items = self._student.table.items
        if not self._config.negatives:
            return all_columns(items)
        return sampled_columns(torch.unique(batch.rows), items, self._config.negatives)


def fit(
    student: Student,
    sessions: Sessions,
    validation: Prefixes | None,
    config: FitConfig,
    seed: int,
    *,
    progress: Progress,
    stage: str,
    checkpoint: Path | None = None,
    distillation: Distillation | None = None,
    until: int | None = None,
) -> tuple[Epoch, ...]:
    """Train in place; the best epoch's weights stay.

    Args:
        student: encoder and table.
        sessions: to learn from.
        validation: what epochs are judged by; None: the last epoch's weights stay.
        config: the loop's options.
        seed: of the batches, dropout and samples.
        progress: told of steps and epochs.
        stage: what progress calls it.
        checkpoint: where to keep the state between epochs.
        distillation: a teacher's part in the loss.
        until: stop after so many epochs, the rates going down as if all of them came.

    Raises:
        TrainingDiverged: the loss became infinite or no number.
        ConfigError: the checkpoint belongs to another run.
    """
    run = {"config": config.model_dump(mode="json"), "seed": seed, "stage": stage, "until": until}
    pieces = _pieces(sessions, student.ranker.config.length, config, distillation)
    loop = _Loop(student, pieces, config, seed, distillation, until=until)
    state = checkpoints.load(checkpoint, run)
    if state is not None:
        loop.restore(state)
    elif validation is not None:
        loop.look(validation, math.nan, 0.0)
    while not loop.over:
        loss, seconds = loop.run_epoch(progress, stage)
        if validation is None:
            loop.keep(loss, seconds)
            progress.step(stage, loop.epoch, loop.epochs, loss=loss)
        else:
            found = loop.look(validation, loss, seconds)
            progress.step(stage, loop.epoch, loop.epochs, loss=loss, ndcg=found.ndcg)
        if checkpoint is not None:
            checkpoints.save(checkpoint, run, loop.state())
    loop.settle()
    return tuple(loop.history)


def _pieces(
    sessions: Sessions, length: int, config: FitConfig, distillation: Distillation | None
) -> list[Piece]:
    newest = sessions.select(np.arange(len(sessions))[-config.newest :])
    if distillation is not None and distillation.imitates:
        return endings(newest, length)
    return windows(newest, length)


class _Steppers:
    """Adam for the layers and, row by row, for a table whose gradient is sparse."""

    def __init__(
        self, student: Student, config: FitConfig, distillation: Distillation | None
    ) -> None:
        rows = student.table.rows_parameter
        layers = {"lr": config.lr, "weight_decay": config.weight_decay}
        table = {"lr": config.table_lr, "weight_decay": 0.0}
        encoder = list(student.ranker.parameters()) if config.lr else []
        groups: list[dict[str, Any]] = [
            {"params": encoder, **layers},
            {"params": [p for p in student.table.parameters() if p is not rows], **table},
        ]
        if distillation is not None:
            groups += distillation.parameter_groups(config)
        self._layers = torch.optim.AdamW(groups, fused=True)
        self.idle = rows is None and not any(group["params"] for group in groups)
        self._peaks = [group["lr"] for group in self._layers.param_groups]
        self._rows = None if rows is None else RowAdam(rows, 0.0)
        self._rows_peak, self._table_rows = config.table_lr, rows

    def step(self, share: float) -> None:
        """Apply the gradients at a share of the peak rates, and forget them."""
        for group, peak in zip(self._layers.param_groups, self._peaks, strict=True):
            group["lr"] = peak * share
        self._layers.step()
        self._layers.zero_grad(set_to_none=True)
        if self._rows is not None and self._table_rows is not None:
            self._rows.step(self._rows_peak * share)
            self._table_rows.grad = None

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        rows = None if self._rows is None else self._rows.state_dict()
        return {"layers": self._layers.state_dict(), "rows": rows}

    def load(self, state: dict[str, Any]) -> None:
        """The reverse of `state`."""
        self._layers.load_state_dict(state["layers"])
        if self._rows is not None:
            self._rows.load_state_dict(state["rows"])


class _Loop:
    """The state of one training run between its epochs."""

    def __init__(
        self,
        student: Student,
        pieces: list[Piece],
        config: FitConfig,
        seed: int,
        distillation: Distillation | None,
        *,
        until: int | None,
    ) -> None:
        self.student, self.pieces, self.config, self.seed = student, pieces, config, seed
        self.objective = Objective(student, config, distillation)
        self.distillation = distillation
        self.steppers = _Steppers(student, config, distillation)
        student.ranker.requires_grad_(bool(config.lr))  # `settle` undoes it
        clicks = sum(len(piece.clicks) for piece in pieces)
        self.steps = max(1, clicks * config.epochs // config.batch_clicks)
        self.step = self.epoch = self.worse = 0
        self.epochs = config.epochs if until is None else until
        self.history: list[Epoch] = []
        self.best = copy.deepcopy(student.state())

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        done = self.epoch >= self.epochs or self.worse > self.config.patience
        return done or self.steppers.idle

    def run_epoch(self, progress: Progress, stage: str) -> tuple[float, float]:
        """One pass over the sessions: (mean loss, seconds)."""
        # Of (seed, epoch), so that a resumed run draws what a whole one would.
        rng = np.random.default_rng((self.seed, self.epoch))
        torch.manual_seed(int(rng.integers(1 << 62)))
        self.student.train(mode=True)
        if self.distillation is not None and self.distillation.imitates:
            self.student.ranker.train(mode=False)  # nothing here can be learned by heart
        started, total, targets = time.perf_counter(), 0.0, 0
        for rows, lengths, begins in batches(self.pieces, self.config.batch_clicks, rng):
            loss, count = self._update(rows, lengths, begins)
            total, targets = total + loss * count, targets + count
            if self.step % CHECK_EVERY == 0:
                progress.step(f"{stage}, steps", self.step, self.steps, loss=total / targets)
        self.epoch += 1
        return total / targets, time.perf_counter() - started

    def _update(self, rows: Tensor, lengths: Tensor, begins: Tensor) -> tuple[float, int]:
        done = min(1.0, self.step / self.steps)
        self.student.table.anneal(done)
        loss, count = self.objective(rows, lengths, begins)
        loss.backward()  # type: ignore[no-untyped-call]
        self.steppers.step(schedule(done))
        self.step += 1
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"the loss became {value} at step {self.step}; lower lr and table_lr"
            )
        return value, count

    def look(self, validation: Prefixes, loss: float, seconds: float) -> Epoch:
        """Judge the weights, and keep them if they are the best so far."""
        hit, mrr, ndcg = judge(self.student, validation)
        found = Epoch(self.epoch, loss, hit, mrr, ndcg, seconds)
        if not self.history or ndcg > max(epoch.ndcg for epoch in self.history):
            self.best, self.worse = copy.deepcopy(self.student.state()), 0
        else:
            self.worse += 1
        self.history.append(found)
        return found

    def keep(self, loss: float, seconds: float) -> None:
        """Keep the weights unjudged."""
        self.best = copy.deepcopy(self.student.state())
        self.history.append(Epoch(self.epoch, loss, math.nan, math.nan, math.nan, seconds))

    def settle(self) -> None:
        """Put the best weights back."""
        self.student.load(self.best)
        self.student.train(mode=False)
        self.student.ranker.requires_grad_(True)

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        state = {
            "student": self.student.state(),
            "best": self.best,
            "steppers": self.steppers.state(),
            "counts": [self.step, self.epoch, self.worse],
            "history": [asdict(epoch) for epoch in self.history],
        }
        if self.distillation is not None:
            state["distillation"] = self.distillation.state()
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.student.load(state["student"])
        self.best = state["best"]
        self.steppers.load(state["steppers"])
        self.step, self.epoch, self.worse = state["counts"]
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        if self.distillation is not None:
            self.distillation.load(state["distillation"])


def schedule(done: float) -> float:
    """Share of the peak rate: up in a straight line, then down a cosine to zero."""
    if done < WARM_UP:
        return max(done, 1e-3) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def judge(student: Student, prefixes: Prefixes) -> tuple[float, float, float]:
    """(P@20, MRR@20, NDCG@20) of torch's own scores, ties against it, for choosing epochs."""
    ranks = torch.cat([*_ranks(student, prefixes)])
    seen = ranks <= TOP
    return (
        float(seen.double().mean()),
        float((seen / ranks).mean()),
        float((seen / torch.log2(ranks + 1.0)).mean()),
    )


def _ranks(student: Student, prefixes: Prefixes) -> Iterator[Tensor]:
    student.train(mode=False)
    length = student.ranker.config.length
    known = [session[session >= 0][-length:] for session in prefixes.sessions]
    sizes = np.array([len(session) for session in known])
    with torch.inference_mode():
        table = student.table(torch.arange(student.table.items))  # (N, D)
        for size in np.unique(sizes):
            mine = np.flatnonzero(sizes == size)
            for start in range(0, len(mine), JUDGED_AT_ONCE):
                some = mine[start : start + JUDGED_AT_ONCE]
                rows = torch.from_numpy(np.stack([known[i] for i in some]).astype(np.int64))
                yield _rank(student, table, rows, torch.from_numpy(prefixes.targets[some]).long())


def _rank(student: Student, table: Tensor, rows: Tensor, target: Tensor) -> Tensor:
    """(B,) ranks of targets after sessions (B, L); a target outside the catalogue has none."""
    ways = student.ranker.encode(table[rows])
    if ways.query is None:
        raise NotTrained("this ranker has no item vectors: it is judged from its bundle")
    scores = ways.query[:, -1] @ table.T  # (B, N)
    if ways.repeat is not None and rows.shape[1]:
        mass = torch.zeros_like(scores).scatter_add(1, rows, ways.repeat[:, -1].exp())
        scores = torch.logaddexp(scores, mass.log())
    known = target >= 0
    own = scores.gather(1, target.clamp(min=0).unsqueeze(1))
    # What is not a number is no better than any item: weights that diverged must not win.
    ranks = (~(scores < own)).sum(1).double()
    return torch.where(known, ranks, torch.full_like(ranks, math.inf))
