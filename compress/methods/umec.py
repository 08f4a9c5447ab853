"""UMEC: Unified Model and Embedding Compression (Shen et al., ICLR 2021), written anew.

Slims fields, the positions of their vectors and neurons of a trained ranker together, under one
budget for each resource::

    min_{W,s}  loss(W)   s.t.  R_r(s) ≤ budget_r,   at least ⌈s_l⌉ groups of layer l are zero

"At least k groups are zero" is "the bottom-k norm is zero", so with a price y_l for each layer and
a price z_r for each resource it becomes::

    min_{W,s} max_{y≥0,z≥0}  loss(W) + Σ_l y_l·‖W_l‖²_{⌈s_l⌉} + Σ_r z_r·(R_r(s) - budget_r)

solved by one step in each of W, s, y and z per batch: their arithmetic, with the symbols that are
not here, is `compress.primal_dual`; the groups and what they cost are `compress.methods.groups`;
here is the run.

| symbol | here | is |
|---|---|---|
| s_l | ``s[l]`` | how many groups of layer l go; real, 0 ≤ s_l ≤ `Groups.removable` |
| η1 | ``prox_lr`` | step of W's proximal half; its gradient half is the optimizer's |
| η2, η3, η4 | ``s_lr``, ``y_lr``, ``z_lr`` | steps of s, y and z |

What differs from the authors' code, and why, is in docs/umec.md.
"""

import copy
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field as Option
from torch import Tensor

from compress import checkpoint as checkpoints
from compress.budget import Pricing, bounds
from compress.config import DistillConfig, Frozen, TrainConfig
from compress.data.encode import Batch
from compress.methods.base import Compressed, compressed
from compress.methods.groups import (
    Groups,
    Norms,
    Order,
    Problem,
    SlimmingConfig,
    fit_budget,
    make_problem,
    weights,
)
from compress.optimizers import Optimizers
from compress.primal_dual import (
    TINY_PRICE,
    Constraint,
    DualVariables,
    Iterate,
    Rates,
    Vector,
    advance,
    prox,
)
from compress.progress import Progress
from compress.rankers.base import Ranker
from compress.train import (
    CHECK_EVERY,
    Objective,
    TrainingData,
    check_finite,
    device,
    random_state,
    reproducible,
    restore_random_state,
    shuffled,
)

HISTORY_ROWS = 500
ZEROED = 1e-3  # of its norm, what is left of a group that the proximal steps have zeroed


class UmecConfig(SlimmingConfig):
    """Options of the method.

    Attributes:
        epochs: passes over the training rows while slimming.
        lr: of the layers' gradient step; None: as in training.
        embedding_lr: of the tables'; they are trained already, and more epochs overfit them.
        distill: soft targets of the dense ranker while slimming.
        norms: what a group's norm is measured in, see `make_problem`. ``weights``: as the paper.
        s_steps: ``paper``: η2 groups at most, in any layer. ``scaled``: η2 of each layer's groups,
            and no less while s may move, so that ``reach`` holds.
        reach: the part of the steps in which s may pass from none to all, unless ``s_lr`` is given.
        prox_lr: None: zeroes what was chosen by `reach` in the steps that are left.
        y_start: 0 as the paper; over 0 the norms steer s from the first step on.
        z_damping: see `damped`; needs y over 0.
    """

    epochs: int = Option(default=2, gt=0)
    batch_size: int | None = Option(default=None, gt=0)
    lr: float | None = Option(default=None, gt=0.0)
    embedding_lr: float = Option(default=0.0, ge=0.0)
    distill: DistillConfig = DistillConfig(weight=0.5)
    norms: Norms = "loss"
    s_steps: Literal["paper", "scaled"] = "scaled"
    prox_lr: float | None = Option(default=None, gt=0.0)
    s_lr: float | None = Option(default=None, gt=0.0)
    reach: float = Option(default=0.5, gt=0.0, le=1.0)
    y_start: float = Option(default=1.0, ge=0.0)
    y_lr: float = Option(default=0.1, gt=0.0)
    z_lr: float = Option(default=2.0, gt=0.0)
    z_damping: bool = True

    def train_config(self, train: TrainConfig) -> TrainConfig:
        """The training options, as they are while slimming."""
        return train.model_copy(
            update={
                "lr": self.lr or train.lr,
                "embedding_lr": self.embedding_lr,
                "batch_size": self.batch_size or train.batch_size,
                "distill": self.distill,
            }
        )


@dataclass
class _State:
    """The iterates and how far they are: what a checkpoint holds beside W."""

    s: Vector
    duals: DualVariables
    epoch: int = 0
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def as_plain(self) -> dict[str, Any]:
        return {
            "s": self.s.tolist(),
            "y": self.duals.y.tolist(),
            "z": self.duals.z.tolist(),
            "counts": [self.epoch, self.step],
            "history": self.history,
        }

    @classmethod
    def of_plain(cls, plain: dict[str, Any]) -> "_State":
        duals = DualVariables(np.array(plain["y"]), np.array(plain["z"]))
        epoch, step = plain["counts"]
        return cls(np.array(plain["s"]), duals, epoch, step, plain["history"])


class Umec:
    """Algorithm 1: a step in W, s, y and z per batch; then the zero groups are cut out."""

    Config: ClassVar[type[Frozen]] = UmecConfig

    def compress(
        self,
        ranker: Ranker,
        dataset: TrainingData,
        config: Frozen,
        *,
        seed: int,
        train: TrainConfig,
        pricing: Pricing | None,
        progress: Progress,
        checkpoint: Path | None,
    ) -> Compressed:
        """Slim a trained ranker until the budget is met; never over it, and close below.

        Raises:
            ConfigError: no choice of groups meets the budget; or a foreign checkpoint.
            TrainingDiverged: the loss is no longer a number.
        """
        config = cast("UmecConfig", config)
        where = device()
        slimming = copy.deepcopy(ranker).to(where)
        bounded = bounds(slimming, config.budget, config.flops_of, pricing)
        with reproducible(seed, where):
            problem = make_problem(
                slimming, config, bounded, dataset, seed=seed, norms=config.norms
            )
            run = _Run(
                problem,
                config,
                dataset,
                ranker,
                seed=seed,
                train=train,
                where=where,
                progress=progress,
            )
            run.go(checkpoint)
        keep = problem.keep(*run.within_budget())
        return compressed(ranker, slimming, keep, bounded, tuple(run.state.history))


class _Run:
    """One run of the algorithm on a copy of the ranker."""

    def __init__(
        self,
        problem: Problem,
        config: UmecConfig,
        dataset: TrainingData,
        dense: Ranker,
        *,
        seed: int,
        train: TrainConfig,
        where: torch.device,
        progress: Progress,
    ) -> None:
        self._problem, self._config, self._dataset, self._seed = problem, config, dataset, seed
        self._where, self._progress = where, progress
        self._train = config.train_config(train)
        teacher = copy.deepcopy(dense) if self._train.distill.weight else None
        self._objective = Objective(problem.ranker, dataset, self._train.distill, teacher, where)
        self._optimizers = Optimizers(problem.ranker, self._train)
        batches = math.ceil(dataset.rows["train"] / self._train.batch_size)
        self._steps = batches * config.epochs
        self._rates = Rates(
            s_lr=config.s_lr or 1.0 / (config.reach * self._steps),
            y_lr=config.y_lr,
            z_lr=config.z_lr,
            full=config.s_steps == "scaled",
            damping=config.z_damping,
        )
        # (1 + 2·η1·y)^-n = ZEROED for the n steps that are left once s has passed.
        left, price = (1 - config.reach) * self._steps + 1, max(config.y_start, TINY_PRICE)
        self._prox_lr = config.prox_lr or -math.log(ZEROED) / (2 * price * left)
        zeros = np.zeros(len(problem.groups))
        prices = DualVariables(zeros + config.y_start, np.zeros(len(problem.bounds)))
        self.state = _State(zeros, prices)

    def go(self, checkpoint: Path | None) -> None:
        """All epochs, from the checkpoint's on."""
        run = self._description()
        saved = checkpoints.load(checkpoint, run)
        if saved is not None:
            self._restore(saved)
        self._problem.ranker.train()
        while self.state.epoch < self._config.epochs:
            for batch in shuffled(
                self._dataset, self._train.batch_size, self._seed, self.state.epoch
            ):
                self._step(batch)
            self.state.epoch += 1
            if checkpoint is not None:
                checkpoints.save(checkpoint, run, self._saved())

    def _step(self, batch: Batch) -> None:
        problem, state = self._problem, self.state
        # 1. W, gradient half: V = W - η1·∇loss(W), by the optimizer of training.
        self._optimizers.zero_grad()
        loss = self._objective.loss(batch)
        torch.autograd.backward(loss)
        self._optimizers.step()
        # 2. W, proximal half, on the first ⌈s_l⌉ groups of V.
        counts = problem.counts(state.s)
        order = problem.order(counts, state.duals.z)
        for layer, groups in enumerate(problem.groups):
            chosen = order.groups[layer][: counts[layer]]
            shrink(groups, chosen, float(state.duals.y[layer]), self._prox_lr)
        # 3. to 6. s, y and z.
        order = problem.order(counts, state.duals.z)
        now = advance(state.s, state.duals, order.energies, self._constraint(order), self._rates)
        state.s, state.duals, state.step = now.s, now.duals, state.step + 1
        self._record(float(loss.detach()), now)

    def _constraint(self, order: Order) -> Constraint:
        """The budgets as functions of s, if groups go in this order."""
        problem = self._problem
        counted = np.array([float(groups.count) for groups in problem.groups])
        return Constraint(
            budget=problem.limits,
            upper=problem.upper,
            scale=np.ones(len(counted)) if self._config.s_steps == "paper" else counted,
            counts=problem.counts,
            ratio=lambda counts: problem.ratio(counts, order),
            slope=lambda counts: problem.slope(counts, order),
        )

    def _record(self, loss: float, now: Iterate) -> None:
        state = self.state
        if state.step % CHECK_EVERY == 0 or state.step == self._steps:
            check_finite(loss, state.step, "slim", self._train)
            self._progress.step("slim", state.step, self._steps, loss=loss, **self._told(now))
        if state.step % max(1, self._steps // HISTORY_ROWS) == 0 or state.step == self._steps:
            row = {"step": float(state.step), "loss": loss, **self._told(now)}
            for position, groups in enumerate(self._problem.groups):
                row[f"s.{groups.name}"] = float(now.s[position])
                row[f"y.{groups.name}"] = float(now.duals.y[position])
                row[f"norm.{groups.name}"] = float(now.violation[position])
            state.history.append(row)

    def _told(self, now: Iterate) -> dict[str, float]:
        keys = [bound.key for bound in self._problem.bounds]
        ratios = {f"ratio.{k}": float(v) for k, v in zip(keys, now.ratio, strict=True)}
        return ratios | {f"z.{k}": float(v) for k, v in zip(keys, now.duals.z, strict=True)}

    def within_budget(self) -> tuple[list[int], Order]:
        """The final counts: those of s, mended to be just within the budget."""
        counts = self._problem.counts(self.state.s)
        order = self._problem.order(counts, self.state.duals.z)
        return fit_budget(self._problem, counts, order), order

    def _description(self) -> dict[str, Any]:
        shapes = {n: list(p.shape) for n, p in self._problem.ranker.named_parameters()}
        return {
            "method": self._config.model_dump(mode="json"),
            "train": self._train.model_dump(mode="json"),
            "seed": self._seed,
            "rows": dict(self._dataset.rows),
            "shapes": shapes,
        }

    def _saved(self) -> dict[str, Any]:
        return {
            "ranker": self._problem.ranker.state_dict(),
            "optimizers": self._optimizers.state_dict(),
            "metrics": [groups.metric for groups in self._problem.groups],
            "random": random_state(self._where),
            "iterates": self.state.as_plain(),
        }

    def _restore(self, saved: dict[str, Any]) -> None:
        self._problem.ranker.load_state_dict(saved["ranker"])
        self._optimizers.load_state_dict(saved["optimizers"])
        self._problem.groups = tuple(
            replace(groups, metric=metric.to(self._where))
            for groups, metric in zip(self._problem.groups, saved["metrics"], strict=True)
        )
        restore_random_state(saved["random"], self._where)
        self.state = _State.of_plain(saved["iterates"])


def shrink(groups: Groups, chosen: Tensor, y: float, lr: float) -> None:
    """The proximal step on the chosen groups, in place."""
    if not len(chosen) or not y:
        return
    price = torch.zeros(groups.count, device=groups.metric.device)
    price[chosen] = y
    by_column = groups.by_column(price)
    for columns in weights(groups):
        columns.copy_(prox(columns, by_column, lr))
