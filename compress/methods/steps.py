"""Methods that slim while they train: one gradient step a batch, and something of theirs after it.

What is the same for all of them is here: the copy that is slimmed, the passes over the rows, soft
targets of the dense ranker, the record, and going on from a checkpoint to the same bytes.
"""

import copy
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, cast

from pydantic import Field as Option
from torch import Tensor

from compress import checkpoint as checkpoints
from compress.budget import Pricing, bounds
from compress.config import DistillConfig, Frozen, TrainConfig
from compress.data.encode import Batch
from compress.methods.base import Compressed, compressed
from compress.methods.groups import Norms, Problem, SlimmingConfig
from compress.methods.problem import Order
from compress.methods.removable import make_problem
from compress.optimizers import Optimizers
from compress.parallel import ALONE, World
from compress.progress import Progress
from compress.rankers.base import Ranker
from compress.train import (
    CHECK_EVERY,
    Objective,
    TrainingData,
    check_finite,
    device,
    random_states,
    reproducible,
    restore_random_state,
    shuffled,
)

HISTORY_ROWS: Final = 100
TOLD: Final = ("ratio.", "z.")  # the numbers of a step that progress tells


class StepsConfig(SlimmingConfig):
    """Options of all methods that slim while they train.

    Attributes:
        epochs: passes over the training rows while slimming.
        lr: of the layers' gradient step; None: as in training.
        embedding_lr: of the tables'; they are trained already, and more epochs overfit them.
        distill: soft targets of the dense ranker while slimming.
    """

    epochs: int = Option(default=2, gt=0)
    batch_size: int | None = Option(default=None, gt=0)
    lr: float | None = Option(default=None, gt=0.0)
    embedding_lr: float = Option(default=0.0, ge=0.0)
    distill: DistillConfig = DistillConfig(weight=0.5)

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


class Steps(Protocol):
    """What a method does beside the gradient's steps.

    Attributes:
        learned: what it learns of its own by the loss's gradient, which is there after each step.
    """

    learned: Sequence[Tensor]

    def after_gradient(self) -> Mapping[str, float]:
        """A batch's gradient step is done; the numbers of this step, for the record."""

    def within_budget(self) -> tuple[list[int], Order]:
        """How many groups of each layer go, and in which order, once all steps are done."""

    def state(self) -> dict[str, Any]:
        """What a resumed run needs beside the weights."""

    def restore(self, state: dict[str, Any]) -> None:
        """The reverse of `state`."""


@dataclass(frozen=True, slots=True)
class Course:
    """What a method's steps know of the run they are part of.

    Attributes:
        problem: over the copy that is slimmed.
        dataset: the rows.
        seed: of all that is drawn.
        steps: how many there will be.
        lr: of the layers.
    """

    problem: Problem
    dataset: TrainingData
    seed: int
    steps: int
    lr: float


class SteppedMethod(ABC):
    """A method of this kind: its options, its norm, its steps."""

    Config: ClassVar[type[Frozen]]

    @abstractmethod
    def steps(self, config: Frozen, course: Course) -> Steps:
        """What it does after each gradient."""

    def norms(self, config: Frozen) -> Norms:
        """What groups are measured in."""
        del config
        return "weights"

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
        world: World = ALONE,
    ) -> Compressed:
        """Slim a trained ranker until the budget is met; never over it, and close below.

        Raises:
            ConfigError: no choice of groups meets the budget; or a foreign checkpoint.
            TrainingDiverged: the loss is no longer a number.
            ParallelError: another process has ended, or slims something else.
        """
        config = cast("StepsConfig", config)
        where, train = device(), config.train_config(train)
        slimming = copy.deepcopy(ranker).to(where)
        bounded = bounds(slimming, config.budget, config.flops_of, pricing)
        with reproducible(seed, where, world):
            problem = make_problem(
                slimming, config, bounded, dataset, seed=seed, norms=self.norms(config)
            )
            batches = math.ceil(dataset.rows["train"] / train.batch_size)
            course = Course(problem, dataset, seed, batches * config.epochs, train.lr)
            loop = _Loop(course, self.steps(config, course), ranker, train, progress, world)
            loop.go(config.epochs, checkpoint, {"method": config.model_dump(mode="json")})
            keep = problem.keep(*loop.steps.within_budget())
        return compressed(ranker, slimming, keep, bounded, tuple(loop.history))


@dataclass
class _Loop:
    """The passes over the rows."""

    course: Course
    steps: Steps
    dense: Ranker
    train: TrainConfig
    progress: Progress
    world: World = ALONE
    epoch: int = 0
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ranker = self.course.problem.ranker
        self._where = next(self._ranker.parameters()).device
        teacher = copy.deepcopy(self.dense) if self.train.distill.weight else None
        self._objective = Objective(
            self._ranker, self.course.dataset, self.train, teacher, self._where, world=self.world
        )
        self._optimizers = Optimizers(self._ranker, self.train)

    def go(self, epochs: int, checkpoint: Path | None, run: dict[str, Any]) -> None:
        """All epochs, from the checkpoint's on."""
        run = {**run, **self._description()}
        saved = checkpoints.load(checkpoint, run)
        bounds = [[bound.name, bound.limit] for bound in self.course.problem.bounds]
        begun = [run, bounds, saved and saved["counts"]]
        self.world.agree("what they slim", json.dumps(begun).encode())
        if saved is not None:
            self._restore(saved)
        self._ranker.train()
        while self.epoch < epochs:
            for batch in shuffled(
                self.course.dataset, self.train.batch_size, self.course.seed, self.epoch
            ):
                self._take(batch)
            self.epoch += 1
            self.world.agree_on_weights([*self._ranker.parameters(), *self.steps.learned])
            if checkpoint is not None:
                state = self._saved()
                if self.world.first:
                    checkpoints.save(checkpoint, run, state)

    def _take(self, batch: Batch) -> None:
        self._optimizers.zero_grad()
        layers = [*self._optimizers.layers, *self.steps.learned]
        loss = self._objective.backward(batch, layers, self._optimizers.tables)
        self._optimizers.step()
        numbers = self.steps.after_gradient()
        self.step += 1
        self._record(float(loss), numbers)

    def _record(self, loss: float, numbers: Mapping[str, float]) -> None:
        step, last = self.step, self.course.steps
        if step % CHECK_EVERY == 0 or step == last:
            check_finite(loss, step, "slim", self.train)
            told = {name: number for name, number in numbers.items() if name.startswith(TOLD)}
            self.progress.step("slim", step, last, loss=loss, **told)
        if step % max(1, last // HISTORY_ROWS) == 0 or step == last:
            self.history.append({"step": float(step), "loss": loss, **numbers})

    def _description(self) -> dict[str, Any]:
        return {
            "train": self.train.model_dump(mode="json"),
            "seed": self.course.seed,
            "rows": dict(self.course.dataset.rows),
            "shapes": {n: list(p.shape) for n, p in self._ranker.named_parameters()},
        }

    def _saved(self) -> dict[str, Any]:
        return {
            "ranker": self._ranker.state_dict(),
            "optimizers": self._optimizers.state_dict(),
            "random": random_states(self._where, self.world),
            "steps": self.steps.state(),
            "counts": [self.epoch, self.step],
            "history": self.history,
        }

    def _restore(self, saved: dict[str, Any]) -> None:
        self._ranker.load_state_dict(saved["ranker"])
        self._optimizers.load_state_dict(saved["optimizers"])
        restore_random_state(saved["random"], self._where, self.world)
        self.steps.restore(saved["steps"])
        self.epoch, self.step = saved["counts"]
        self.history = saved["history"]
