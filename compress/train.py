"""The one training loop. Every choice it makes is made on the validation part.

The best weights are those of the least validation log loss, the starting ones included, so that
fine-tuning never makes a ranker worse there. Log loss, not AUC, because scores are served as
probabilities: it is proper, and it turns as soon as a ranker grows over-confident, which is how
click models overfit, while AUC still creeps up.

A run is a function of (ranker, data, config, seed): after a kill it goes on from its checkpoint to
the same bytes. So the order of an epoch's rows is drawn anew from (seed, epoch), and a resumed
epoch skips the batches that it has already seen. In a `World` of several processes it is one of
their number too, but only by the rounding of sums and by what dropout draws.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress import checkpoint as checkpoints
from compress import metrics
from compress.averaging import Average
from compress.config import CompressError, TrainConfig
from compress.data.base import Part
from compress.data.encode import Batch
from compress.distill import click_loss, distillation_loss
from compress.optimizers import Optimizers, coalesce_
from compress.parallel import ALONE, World
from compress.progress import Progress
from compress.rankers.base import Ranker
from compress.rankers.structure import Inputs
from model_store.manifest import FeatureSpec, InputName

PREDICT_ROWS = 8192
CHECK_EVERY = 50  # steps between looks at the loss and reports of progress


class TrainingDiverged(CompressError):
    """The loss is no longer a number; the text says what to change."""


class TrainingData(Protocol):
    """What training needs of a data set (`compress.data.encode.Dataset`, and fakes in tests)."""

    features: tuple[FeatureSpec, ...]
    rows: Mapping[Part, int]

    def batches(
        self, part: Part, batch_size: int, rng: np.random.Generator | None = None
    ) -> Iterator[Batch]:
        """Every row of a part once; shuffled iff ``rng`` is given."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The state of training at one look at the validation part.

    Attributes:
        epoch: passes over the training rows so far.
        train_loss: mean since the look before (nan before the first step).
    """

    step: int
    epoch: float
    train_loss: float
    logloss: float
    auc: float


@dataclass(frozen=True, slots=True)
class FitResult:
    """What `fit` chose, and how it got there."""

    best: Evaluation
    history: tuple[Evaluation, ...]
    steps: int
    rows_per_second: float


def device() -> torch.device:
    """CUDA when present."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Featured(Protocol):
    """What says which features a graph takes, and where."""

    @property
    def features(self) -> tuple[FeatureSpec, ...]:
        """All of them, the pruned ones too."""


class Columns:
    """Picks a ranker's columns out of a data set's batches: a slimmed ranker wants fewer.

    Args:
        features: the data set's.
        ranker: or the manifest of its bundle.
    """

    def __init__(self, features: Sequence[FeatureSpec], ranker: Featured) -> None:
        placed = {feature.name: feature for feature in features}
        self._wanted: dict[InputName, NDArray[np.int64] | None] = {}
        for name in get_args(InputName):
            live = sorted((f for f in ranker.features if f.tensor == name), key=lambda f: f.start)
            wanted = [placed[f.name].start + k for f in live for k in range(f.length)]
            width = sum(f.length for f in features if f.tensor == name)
            self._wanted[name] = None if wanted == list(range(width)) else np.array(wanted, int)

    def arrays(self, batch: Batch) -> dict[InputName, NDArray[Any]]:
        """The batch's columns by input; inputs without any are there, too."""
        return {
            name: getattr(batch, name) if wanted is None else getattr(batch, name)[:, wanted]
            for name, wanted in self._wanted.items()
        }

    def inputs(self, batch: Batch, where: torch.device) -> Inputs:
        """The batch as inputs of the ranker."""
        arrays = self.arrays(batch)
        return Inputs(**{name: torch.from_numpy(a).to(where) for name, a in arrays.items()})


def predict(
    ranker: Ranker, dataset: TrainingData, part: Part
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Probabilities and labels of a part, in its order: 8 bytes a row."""
    where = next(ranker.parameters()).device
    columns, training = Columns(dataset.features, ranker), ranker.training
    ranker.eval()
    scores, labels = [], []
    with torch.no_grad():
        for batch in dataset.batches(part, PREDICT_ROWS):
            scores.append(ranker(columns.inputs(batch, where)).sigmoid().cpu().numpy())
            labels.append(batch.label)
    ranker.train(training)
    return np.concatenate(scores), np.concatenate(labels)


class Objective:
    """The loss of a batch: clicks, and the teacher's soft targets where there is one."""

    def __init__(
        self,
        ranker: Ranker,
        dataset: TrainingData,
        config: TrainConfig,
        teacher: Ranker | None,
        where: torch.device,
        *,
        world: World = ALONE,
    ) -> None:
        self._ranker, self._distill, self._where = ranker, config.distill, where
        self._world = world
        self._half = config.half
        self._columns = Columns(dataset.features, ranker)
        self._teacher = teacher if config.distill.weight else None
        if self._teacher is not None:
            self._teacher.to(where).eval()
            self._teacher_columns = Columns(dataset.features, self._teacher)

    def loss(self, batch: Batch) -> Tensor:
        """A mean over the batch."""
        logits = self._logits(self._ranker, self._columns, batch)
        label = torch.from_numpy(batch.label).to(self._where)
        if self._teacher is None:
            return click_loss(logits, label)
        with torch.no_grad():
            soft = self._logits(self._teacher, self._teacher_columns, batch)
        return distillation_loss(logits, label, soft, self._distill)

    def _logits(self, ranker: Ranker, columns: Columns, batch: Batch) -> Tensor:
        with torch.autocast(self._where.type, torch.bfloat16, enabled=self._half):
            logits: Tensor = ranker(columns.inputs(batch, self._where))
        return logits.float()

    def backward(self, batch: Batch, layers: Sequence[Tensor], tables: Sequence[Tensor]) -> Tensor:
        """Leave the gradient of the loss, which is returned, in the parameters.

        Args:
            batch: the whole one; this process computes its share.
            layers: what gets a dense gradient.
            tables: what gets a sparse one, each row named once.
        """
        share = batch[self._world.share(len(batch))]
        loss, part = torch.zeros((), device=self._where), len(share) / len(batch)
        if len(share):
            loss = self.loss(share)
            weight = torch.tensor(part, device=self._where)
            torch.autograd.backward(loss, weight, inputs=[*layers, *tables])
        for table in tables:
            coalesce_(table)
        return self._world.sum_gradients_(layers, tables, loss.detach() * part)


def shuffled(
    dataset: TrainingData, batch_size: int, seed: int, epoch: int, skip: int = 0
) -> Iterator[Batch]:
    """The training rows in the order of (seed, epoch), without the first ``skip`` batches."""
    rng = np.random.default_rng((seed, epoch))
    return islice(dataset.batches("train", batch_size, rng), skip, None)


@contextmanager
def reproducible(seed: int, where: torch.device, world: World = ALONE) -> Iterator[None]:
    """Dropout drawn from ``seed``, deterministic kernels; the caller's random state untouched."""
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    filled = settings.fill_uninitialized_memory
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(world.seed(seed))
        torch.use_deterministic_algorithms(mode=True, warn_only=where.type == "cuda")
        # Memory that an operator is about to write needs no NaNs first.
        settings.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(mode=before, warn_only=warned)
            settings.fill_uninitialized_memory = filled


def random_states(where: torch.device, world: World = ALONE) -> list[list[Tensor]]:
    """By process, the state of the generators that dropout draws from."""
    cuda = [torch.cuda.get_rng_state(where)] if where.type == "cuda" else []
    kinds = [world.gathered(state) for state in (torch.get_rng_state(), *cuda)]
    return [list(states) for states in zip(*kinds, strict=True)]


def restore_random_state(
    states: list[list[Tensor]], where: torch.device, world: World = ALONE
) -> None:
    """The reverse of `random_states`; a process more than there were draws anew."""
    if world.rank >= len(states):
        return
    state = states[world.rank]
    torch.set_rng_state(state[0])
    if where.type == "cuda" and len(state) > 1:
        torch.cuda.set_rng_state(state[1], where)


def check_finite(loss: float, step: int, stage: str, config: TrainConfig) -> None:
    """Refuse to go on without a loss.

    Raises:
        TrainingDiverged: it is not a finite number.
    """
    if not math.isfinite(loss):
        raise TrainingDiverged(
            f"{stage}: the loss is {loss} at step {step}; lower lr (now {config.lr:g}), or look "
            'for numeric columns of a huge scale (transform = "log1p" or "standardize")'
        )


def fit(
    ranker: Ranker,
    dataset: TrainingData,
    config: TrainConfig,
    seed: int,
    *,
    checkpoint: Path | None,
    progress: Progress,
    teacher: Ranker | None = None,
    stage: str = "train",
    world: World = ALONE,
) -> FitResult:
    """Train in place; the ranker ends with the best weights seen on validation.

    Args:
        ranker: starts from the weights it has.
        dataset: batches of the parts train and validation are read, never test.
        config: its ``distill`` needs ``teacher`` where its weight is over 0.
        seed: of the order of rows and of dropout.
        checkpoint: written at each look at validation; a finished one is only read.
        progress: told of steps, loss and rows per second.
        teacher: the ranker whose soft targets are imitated.
        stage: what ``progress`` calls this.
        world: the processes that train together; all call this with the same arguments, and only
            the first one looks at validation and writes the checkpoint.

    Raises:
        TrainingDiverged: the loss is no longer a number.
        ConfigError: the checkpoint belongs to another run.
        ParallelError: another process has ended, or trains on something else.
    """
    where = device()
    ranker.to(where)
    run = {
        "config": config.model_dump(mode="json"),
        "seed": seed,
        "rows": dict(dataset.rows),
        "shapes": {name: list(p.shape) for name, p in ranker.named_parameters()},
    }
    with reproducible(seed, where, world):
        loop = _Loop(ranker, dataset, config, seed, teacher, where, world)
        saved = checkpoints.load(checkpoint, run)
        world.agree("what they train", json.dumps([run, saved and saved["counts"]]).encode())
        if saved is None:
            loop.look()
        else:
            loop.restore(saved)
        while not loop.finished:
            loop.train_to_next_look(progress, stage)
            if checkpoint is not None:
                state = loop.state()
                if world.first:
                    checkpoints.save(checkpoint, run, state)
    ranker.load_state_dict(loop.best_weights)
    ranker.to("cpu").eval()
    history = tuple(loop.history)
    best = min(history, key=lambda e: e.logloss)
    return FitResult(best, history, loop.step, loop.rows_per_second)


@dataclass
class _Loop:
    """Training between two looks at validation: all that a checkpoint must hold."""

    ranker: Ranker
    dataset: TrainingData
    config: TrainConfig
    seed: int
    teacher: Ranker | None
    where: torch.device
    world: World = ALONE
    epoch: int = 0
    batch: int = 0  # of the epoch, done
    step: int = 0
    worse: int = 0  # looks since the best one
    history: list[Evaluation] = field(default_factory=list)
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    rows_seen: int = 0

    def __post_init__(self) -> None:
        self.optimizers = Optimizers(self.ranker, self.config)
        decay = self.config.ema_decay
        self.average = Average(self.ranker, decay) if decay else None
        self._objective = Objective(
            self.ranker,
            self.dataset,
            self.config,
            self.teacher,
            self.where,
            world=self.world,
        )
        self._batches = math.ceil(self.dataset.rows["train"] / self.config.batch_size)
        looks = min(self.config.evaluations_per_epoch, self._batches)
        self._looks = [math.ceil(self._batches * (k + 1) / looks) for k in range(looks)]
        self._rows: Iterator[Batch] | None = None

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or the best look is too long ago."""
        return self.epoch >= self.config.epochs or self.worse > self.config.patience

    @property
    def rows_per_second(self) -> float:
        """Training rows since the start or the resumption; looks at validation left out."""
        return self.rows_seen / self.seconds if self.seconds else 0.0

    def train_to_next_look(self, progress: Progress, stage: str) -> None:
        """Train some steps, look at validation, and mind the best weights."""
        if self._rows is None:
            self._rows = shuffled(
                self.dataset, self.config.batch_size, self.seed, self.epoch, self.batch
            )
        start, until = time.perf_counter(), next(n for n in self._looks if n > self.batch)
        self.ranker.train()
        total = torch.zeros((), device=self.where)
        steps = until - self.batch
        for batch in islice(self._rows, steps):
            self.optimizers.zero_grad()
            loss = self._objective.backward(batch, self.optimizers.layers, self.optimizers.tables)
            self._descend()
            total += loss
            self.batch += 1
            self.step += 1
            self.rows_seen += len(batch)
            if self.step % CHECK_EVERY == 0 or self.batch == until:
                check_finite(total.item(), self.step, stage, self.config)
                self.seconds += time.perf_counter() - start
                start = time.perf_counter()
                self._tell(progress, stage, loss.item())
        if self.batch == self._batches:
            self.epoch, self.batch, self._rows = self.epoch + 1, 0, None
        self.look(total.item() / steps)
        self._tell(progress, stage, total.item() / steps, val_logloss=self.history[-1].logloss)

    def _descend(self) -> None:
        if self.average is None:
            self.optimizers.step()
            return
        self.average.before_step()
        self.optimizers.step()
        self.average.after_step()

    def _tell(self, progress: Progress, stage: str, loss: float, **more: float) -> None:
        total = self._batches * self.config.epochs
        progress.step(stage, self.step, total, loss=loss, rows_s=self.rows_per_second, **more)

    def look(self, train_loss: float = math.nan) -> None:
        """Evaluate on validation; keep the weights if they are the best so far."""
        with self._judged():
            self._look(train_loss)

    def _look(self, train_loss: float) -> None:
        self.world.agree_on_weights(self.ranker.parameters())
        logloss, auc = self.world.from_first(self._quality, 2)
        check_finite(logloss, self.step, "validation", self.config)
        now = Evaluation(
            step=self.step,
            epoch=self.epoch + self.batch / self._batches,
            train_loss=train_loss,
            logloss=logloss,
            auc=auc,
        )
        if now.logloss < min((e.logloss for e in self.history), default=math.inf):
            self.best_weights = {k: v.clone() for k, v in self.ranker.state_dict().items()}
            self.worse = 0
        else:
            self.worse += 1
            self.optimizers.factor *= self.config.lr_decay
        self.history.append(now)

    def _quality(self) -> tuple[float, float]:
        scores, labels = predict(self.ranker, self.dataset, "validation")
        if not np.isfinite(scores).all():
            return math.nan, math.nan
        auc = metrics.auc(labels, scores) if 0 < labels.mean() < 1 else math.nan
        return metrics.logloss(labels, scores), auc

    @contextmanager
    def _judged(self) -> Iterator[None]:
        """The ranker with the weights that count: their average, where one is taken."""
        if self.average is None:
            yield
            return
        moving = {k: v.clone() for k, v in self.ranker.state_dict().items()}
        self.ranker.load_state_dict(moving | self.average.weights())
        try:
            yield
        finally:
            self.ranker.load_state_dict(moving)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "average": self.average.state_dict() if self.average else None,
            "ranker": self.ranker.state_dict(),
            "best": self.best_weights,
            "optimizers": self.optimizers.state_dict(),
            "random": random_states(self.where, self.world),
            "history": [asdict(evaluation) for evaluation in self.history],
            "counts": [self.epoch, self.batch, self.step, self.worse],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The reverse of `state`."""
        self.ranker.load_state_dict(state["ranker"])
        self.best_weights = state["best"]
        self.optimizers.load_state_dict(state["optimizers"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        restore_random_state(state["random"], self.where, self.world)
        self.history = [Evaluation(**evaluation) for evaluation in state["history"]]
        self.epoch, self.batch, self.step, self.worse = state["counts"]
