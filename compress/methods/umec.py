"""UMEC: Unified Model and Embedding Compression (Shen et al., ICLR 2021), written anew.

Slims fields and neurons of a trained ranker together, under one budget of FLOPs::

    min_{W,s}  loss(W)   s.t.  R(s) ≤ budget,   at least ⌈s_l⌉ groups of layer l are zero,  l = 1..L

"At least k groups are zero" is "the bottom-k norm is zero", so with a price y_l for each layer and
a price z for the resource it becomes::

    min_{W,s} max_{y≥0,z≥0}  loss(W) + Σ_l y_l·‖W_l‖²_{⌈s_l⌉} + z·(R(s) - budget)

solved by one step in each of W, s, y and z per batch: their arithmetic, with the symbols that are
not here, is `compress.primal_dual`; here are the groups of a ranker, what they cost, and the run.

| symbol | here | is |
|---|---|---|
| W_l, groups | `Groups` | input columns by field (l = 1) or by neuron before them (l ≥ 2) |
| ‖W_g‖² | `energies` | squared norm of a group, in the metric of `Groups.metric` |
| s_l | ``s[l]`` | how many groups of layer l go; real, 0 ≤ s_l ≤ `Groups.removable` |
| R(s) | `compress.flops.Resource` | share of the dense ranker's FLOPs |
| η1 | ``prox_lr`` | step of W's proximal half; its gradient half is the optimizer's |
| η2, η3, η4 | ``s_lr``, ``y_lr``, ``z_lr`` | steps of s, y and z |

What differs from the authors' code, and why, is in docs/umec.md.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field as Option
from torch import Tensor

from compress import checkpoint as checkpoints
from compress.config import ConfigError, DistillConfig, Frozen, TrainConfig
from compress.data.encode import Batch
from compress.distill import click_loss
from compress.flops import Resource, ResourceName
from compress.methods.base import Compressed, ratios
from compress.optimizers import Optimizers
from compress.primal_dual import (
    TINY_PRICE,
    Constraint,
    DualVariables,
    Iterate,
    Rates,
    Vector,
    advance,
    bottom,
    prox,
    removed,
)
from compress.progress import Progress
from compress.rankers.base import Field, Keep, Ranker, Reader
from compress.slim import slim
from compress.train import (
    CHECK_EVERY,
    Columns,
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
SENSITIVITY_ROWS = 4096
SENSITIVITY_BATCHES = 8
TINY = 1e-30
ZEROED = 1e-3  # of its norm, what is left of a group that the proximal steps have zeroed
FIELDS = "fields"


class UmecConfig(Frozen):
    """Options of the method.

    Attributes:
        flops_budget: share of the dense ranker's FLOPs, as ``resource`` counts them, to stay under.
        mode: ``joint`` slims fields and neurons, ``inputs`` fields only.
        protect_numeric: never drop a bottom MLP's output (the paper's group 0); if it may be
            dropped, ``mlp`` credits the whole bottom MLP, which goes with it.
        epochs: passes over the training rows while slimming.
        lr: of the layers' gradient step; None: as in training.
        embedding_lr: of the tables'; they are trained already, and more epochs overfit them.
        distill: soft targets of the dense ranker while slimming.
        norms: what a group's norm is measured in. ``weights``: as the paper. ``energy``: in shares
            of its layer's, so that one η1 and η3 fit all. ``loss``: in the loss that its removal
            costs by a second-order estimate, so that layers compare.
        s_steps: ``paper``: η2 groups at most, in any layer. ``scaled``: η2 of each layer's groups,
            and no less while s may move, so that ``reach`` holds.
        reach: the part of the steps in which s may pass from none to all, unless ``s_lr`` is given.
        prox_lr: None: zeroes what was chosen by `reach` in the steps that are left.
        y_start: 0 as the paper; over 0 the norms steer s from the first step on.
        z_damping: see `damped`; needs y over 0.
        unit: hidden widths shrink by multiples of it.
    """

    flops_budget: float = Option(gt=0.0, le=1.0)
    resource: ResourceName = "top_mlp"
    mode: Literal["joint", "inputs"] = "joint"
    protect_numeric: bool = True
    epochs: int = Option(default=2, gt=0)
    batch_size: int | None = Option(default=None, gt=0)
    lr: float | None = Option(default=None, gt=0.0)
    embedding_lr: float = Option(default=0.0, ge=0.0)
    distill: DistillConfig = DistillConfig(weight=0.5)
    norms: Literal["weights", "energy", "loss"] = "loss"
    s_steps: Literal["paper", "scaled"] = "scaled"
    prox_lr: float | None = Option(default=None, gt=0.0)
    s_lr: float | None = Option(default=None, gt=0.0)
    reach: float = Option(default=0.5, gt=0.0, le=1.0)
    y_start: float = Option(default=1.0, ge=0.0)
    y_lr: float = Option(default=0.1, gt=0.0)
    z_lr: float = Option(default=2.0, gt=0.0)
    z_damping: bool = True
    unit: int = Option(default=1, gt=0)

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


@dataclass(frozen=True, slots=True)
class Quorum:
    """Of these groups, at least so many stay."""

    members: tuple[int, ...]
    least: int


@dataclass(frozen=True, slots=True)
class Groups:
    """One layer of groups: G of them, in the input columns of ``readers``.

    Attributes:
        membership: (G, columns): which share of a column is whose; None: a column a group.
        locked: groups that always stay.
        quorums: sets of groups that may not go altogether.
        metric: (G,) factors of the squared norms.
        unit: they go in multiples of it.
    """

    name: str
    count: int
    readers: tuple[Reader, ...]
    membership: Tensor | None
    locked: tuple[int, ...]
    quorums: tuple[Quorum, ...]
    metric: Tensor
    unit: int

    @property
    def removable(self) -> int:
        """How many may go."""
        kept = len(self.locked) + sum(quorum.least for quorum in self.quorums)
        return max(0, (self.count - kept) // self.unit * self.unit)

    @property
    def columns(self) -> int:
        """Columns of each reader that belong to the groups."""
        return self.count if self.membership is None else self.membership.shape[1]


def energies(groups: Groups) -> Tensor:
    """Squared group norms (G,), in the groups' metric."""
    squares = torch.zeros(groups.columns, device=groups.metric.device)
    for reader in groups.readers:
        squares += _columns(reader, groups.columns).square().sum(0)
    return _by_group(groups, squares) * groups.metric


def _by_group(groups: Groups, columns: Tensor) -> Tensor:
    return columns if groups.membership is None else groups.membership @ columns


def _columns(reader: Reader, count: int) -> Tensor:
    return reader.layer.weight.detach()[:, reader.start : reader.start + count]


def selectable(groups: Groups, energy: Tensor) -> Tensor:
    """The energies with those that must stay at infinity.

    The least k of a set that may not contain all of a quorum are the least k without the quorum's
    largest: a k-subset holds all of a quorum's members iff it holds that one.
    """
    energy = energy.clone()
    for quorum in groups.quorums:
        members = torch.tensor(quorum.members, device=energy.device)
        order = torch.argsort(energy[members], descending=True, stable=True)
        energy[members[order[: quorum.least]]] = math.inf
    energy[list(groups.locked)] = math.inf
    return energy


# --- the problem ---------------------------------------------------------------------------------


class Problem:
    """A ranker, what may go, and the budget: R and the groups' energies as functions of s."""

    def __init__(self, ranker: Ranker, config: UmecConfig) -> None:
        self.config, self.ranker = config, ranker
        self.resource = Resource(ranker, config.resource)
        self.dense = ranker.sizes()
        self.groups = tuple(_groups(ranker, config, self.resource))
        self.upper = np.array([float(g.removable) for g in self.groups])
        self._check_feasible()

    @property
    def scale(self) -> Vector:
        """What a step of s is measured in."""
        if self.config.s_steps == "paper":
            return np.ones(len(self.groups))
        return np.array([float(g.count) for g in self.groups])

    def energies(self) -> list[Tensor]:
        """(G_l,) by layer; infinite for what must stay."""
        return [selectable(groups, energies(groups)) for groups in self.groups]

    def constraint(self, order: Sequence[Tensor]) -> Constraint:
        """The budget as a function of s, if groups go in this order."""
        return Constraint(
            budget=self.config.flops_budget,
            upper=self.upper,
            scale=self.scale,
            counts=self.counts,
            ratio=lambda counts: self.resource.ratio(self.sizes(counts, order)),
            slope=lambda counts: self.slope(self.sizes(counts, order)),
        )

    def counts(self, s: Vector) -> list[int]:
        """⌈s⌉."""
        pairs = zip(s, self.groups, strict=True)
        return [min(removed(float(v), g.unit), g.removable) for v, g in pairs]

    def sizes(self, counts: Sequence[int], order: Sequence[Tensor]) -> dict[str, float]:
        """What is left if the first ``counts`` of each layer's ``order`` go."""
        sizes = dict(self.dense)
        for groups, count, first in zip(self.groups, counts, order, strict=True):
            sizes[groups.name] -= count
            if groups.name == FIELDS:
                for position in first[:count].tolist():
                    field = self.ranker.fields[position]
                    if field.numeric:
                        sizes[field.name] = 0.0
        return sizes

    def slope(self, sizes: Mapping[str, float]) -> Vector:
        """∂R/∂s (L,)."""
        return np.array([self.resource.slope(sizes, g.name) for g in self.groups])

    def keep(self, counts: Sequence[int], order: Sequence[Tensor]) -> Keep:
        """What stays if the first ``counts`` of each layer's ``order`` go."""
        stays = {
            g.name: tuple(sorted(first[count:].tolist()))
            for g, count, first in zip(self.groups, counts, order, strict=True)
        }
        names = tuple(field.name for field in self.ranker.fields)
        fields = tuple(names[i] for i in stays.pop(FIELDS, range(len(names))))
        return Keep(fields, stays)

    def _check_feasible(self) -> None:
        # Which fields are left at the least depends on the norms; which numeric ones does not.
        order = [bottom(e, len(e)) for e in self.energies()]
        smallest = self.resource.ratio(self.sizes([g.removable for g in self.groups], order))
        if smallest > self.config.flops_budget:
            raise ConfigError(
                f"method.flops_budget: {self.config.flops_budget:g} of {self.resource.name} cannot "
                f"be met in mode {self.config.mode!r}; the smallest that can is {smallest:.4g}"
            )


def _groups(ranker: Ranker, config: UmecConfig, resource: Resource) -> Iterator[Groups]:
    """The fields; in joint mode also every hidden layer whose width the resource counts."""
    prunable, sizes = ranker.prunable(), ranker.sizes()
    where = next(ranker.parameters()).device
    numeric = [i for i, f in enumerate(prunable.fields) if f.numeric]
    locked = tuple(numeric) if config.protect_numeric else ()
    yield Groups(
        name=FIELDS,
        count=len(prunable.fields),
        readers=prunable.readers,
        membership=prunable.membership.to(where),
        locked=locked,
        quorums=_quorums(prunable.fields, locked, prunable.least),
        metric=torch.ones(len(prunable.fields), device=where),
        unit=1,
    )
    for layer in prunable.hidden if config.mode == "joint" else ():
        if resource.slope(sizes, layer.name) < 0.0:
            # One unit stays, so that the layer does.
            rest = layer.width - config.unit
            yield Groups(
                name=layer.name,
                count=layer.width,
                readers=(layer.reader,),
                membership=None,
                locked=(),
                quorums=(Quorum(tuple(range(layer.width)), layer.width - max(rest, 0)),),
                metric=torch.ones(layer.width, device=where),
                unit=config.unit,
            )


def _quorums(fields: Sequence[Field], locked: Sequence[int], least: int) -> tuple[Quorum, ...]:
    """A field a side, so that both have a say; more if the ranker cannot do with so few.

    Embeddings where there are enough: then a budget that takes a bottom MLP to go can be met.
    """
    sides = [
        tuple(i for i, field in enumerate(fields) if field.request is request)
        for request in (True, False)
    ]
    open_sides = [side for side in sides if side and not set(side) & set(locked)]
    missing = max(0, least - len(locked) - len(open_sides))
    quorums = []
    for side in open_sides:
        wanted = min(len(side), 1 + (missing if side is open_sides[-1] else 0))
        embedded = tuple(i for i in side if not fields[i].numeric)
        quorums.append(Quorum(embedded if len(embedded) >= wanted else side, wanted))
    return tuple(quorums)


def measured(problem: Problem, dataset: TrainingData, seed: int) -> tuple[Groups, ...]:
    """The groups with the metric that the config names."""
    name = problem.config.norms
    if name == "weights":
        return problem.groups
    if name == "energy":
        return tuple(
            replace(g, metric=g.metric / energies(g).sum().clamp(min=TINY)) for g in problem.groups
        )
    costs = _removal_costs(problem, dataset, seed)
    # One factor for all: layers stay comparable, and a layer's energies sum to about 1.
    unit = sum(float(cost.sum()) for cost in costs) / len(costs)
    return tuple(
        replace(g, metric=cost / (unit * energies(g)).clamp(min=TINY))
        for g, cost in zip(problem.groups, costs, strict=True)
    )


def _removal_costs(problem: Problem, dataset: TrainingData, seed: int) -> list[Tensor]:
    """What the loss rises by if a group alone is removed, to second order.

    With a gate α_g on the group's inputs, the Gauss-Newton curvature of the loss in α_g is the
    mean square of a row's ∂loss/∂α_g = Σ_j x_j·∂loss/∂x_j over the group's columns j; removing
    it costs half of that (the first-order term vanishes at a trained optimum). x is what the
    first reader gets: all that later ones read comes of it, so ∂loss/∂x has their share already.
    """
    ranker = problem.ranker.eval()
    where = next(ranker.parameters()).device
    columns = Columns(dataset.features, ranker)
    costs = [torch.zeros(g.count, device=where) for g in problem.groups]
    seen: dict[int, Tensor] = {}
    hooks = [
        groups.readers[0].layer.register_forward_pre_hook(_remember(seen, layer))
        for layer, groups in enumerate(problem.groups)
    ]
    rows = 0
    for batch in islice(shuffled(dataset, SENSITIVITY_ROWS, seed, 0), SENSITIVITY_BATCHES):
        label = torch.from_numpy(batch.label).to(where)
        total = click_loss(ranker(columns.inputs(batch, where)), label) * len(batch)
        slopes = torch.autograd.grad(total, list(seen.values()))
        for (layer, x), slope in zip(seen.items(), slopes, strict=True):
            costs[layer] += _gate(problem.groups[layer], x.detach() * slope).square().sum(0)
        rows += len(batch)
        seen.clear()
    for hook in hooks:
        hook.remove()
    return [cost / (2 * rows) for cost in costs]


def _remember(
    seen: dict[int, Tensor], layer: int
) -> Callable[[torch.nn.Module, tuple[Tensor, ...]], None]:
    def hook(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[layer] = inputs[0]

    return hook


def _gate(groups: Groups, pull: Tensor) -> Tensor:
    """(B, columns) -> (B, G): a row's slope in each group's gate."""
    start = groups.readers[0].start
    pull = pull[:, start : start + groups.columns]
    return pull if groups.membership is None else pull @ (groups.membership > 0).float().T


# --- the algorithm -------------------------------------------------------------------------------


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
            "z": self.duals.z,
            "counts": [self.epoch, self.step],
            "history": self.history,
        }

    @classmethod
    def of_plain(cls, plain: dict[str, Any]) -> "_State":
        duals = DualVariables(np.array(plain["y"]), plain["z"])
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
        problem = Problem(slimming, config)
        with reproducible(seed, where):
            problem.groups = measured(problem, dataset, seed)
            run = _Run(
                problem, dataset, ranker, seed=seed, train=train, where=where, progress=progress
            )
            run.go(checkpoint)
            counts, order = run.within_budget()
        keep = problem.keep(counts, order)
        slimmed = slim(slimming, keep).to("cpu").eval()
        requested: dict[str, float] = {config.resource: config.flops_budget}
        return Compressed(
            keep, slimmed, requested, ratios(ranker, slimmed), tuple(run.state.history)
        )


class _Run:
    """One run of the algorithm on a copy of the ranker."""

    def __init__(
        self,
        problem: Problem,
        dataset: TrainingData,
        dense: Ranker,
        *,
        seed: int,
        train: TrainConfig,
        where: torch.device,
        progress: Progress,
    ) -> None:
        self._problem, self._dataset, self._seed = problem, dataset, seed
        self._where, self._progress = where, progress
        self._train = problem.config.train_config(train)
        teacher = copy.deepcopy(dense) if self._train.distill.weight else None
        self._objective = Objective(problem.ranker, dataset, self._train.distill, teacher, where)
        self._optimizers = Optimizers(problem.ranker, self._train)
        batches = math.ceil(dataset.rows["train"] / self._train.batch_size)
        self._steps = batches * problem.config.epochs
        config = problem.config
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
        self.state = _State(zeros, DualVariables(zeros + problem.config.y_start, 0.0))

    def go(self, checkpoint: Path | None) -> None:
        """All epochs, from the checkpoint's on."""
        run = self._description()
        saved = checkpoints.load(checkpoint, run)
        if saved is not None:
            self._restore(saved)
        self._problem.ranker.train()
        while self.state.epoch < self._problem.config.epochs:
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
        # 2. W, proximal half, on the ⌈s_l⌉ least groups of V.
        counts, order = problem.counts(state.s), [bottom(e, len(e)) for e in problem.energies()]
        for layer, groups in enumerate(problem.groups):
            chosen = order[layer][: counts[layer]]
            shrink(groups, chosen, float(state.duals.y[layer]), self._prox_lr)
        # 3. to 6. s, y and z.
        now = advance(
            state.s, state.duals, problem.energies(), problem.constraint(order), self._rates
        )
        state.s, state.duals, state.step = now.s, now.duals, state.step + 1
        self._record(float(loss.detach()), now)

    def _record(self, loss: float, now: Iterate) -> None:
        state = self.state
        if state.step % CHECK_EVERY == 0 or state.step == self._steps:
            check_finite(loss, state.step, "slim", self._train)
            self._progress.step(
                "slim", state.step, self._steps, loss=loss, ratio=now.ratio, z=now.duals.z
            )
        if state.step % max(1, self._steps // HISTORY_ROWS) == 0 or state.step == self._steps:
            row = {"step": float(state.step), "loss": loss, "ratio": now.ratio, "z": now.duals.z}
            for position, groups in enumerate(self._problem.groups):
                row[f"s.{groups.name}"] = float(now.s[position])
                row[f"y.{groups.name}"] = float(now.duals.y[position])
                row[f"norm.{groups.name}"] = float(now.violation[position])
            state.history.append(row)

    def within_budget(self) -> tuple[list[int], list[Tensor]]:
        """The final counts: those of s, mended to be just within the budget."""
        order = [bottom(e, len(e)) for e in self._problem.energies()]
        return fit_budget(self._problem, self._problem.counts(self.state.s), order), order

    def _description(self) -> dict[str, Any]:
        shapes = {n: list(p.shape) for n, p in self._problem.ranker.named_parameters()}
        return {
            "method": self._problem.config.model_dump(mode="json"),
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
    by_column = price if groups.membership is None else price @ groups.membership
    for reader in groups.readers:
        columns = reader.layer.weight.data[:, reader.start : reader.start + groups.columns]
        columns.copy_(prox(columns, by_column, lr))


def fit_budget(problem: Problem, counts: Sequence[int], order: Sequence[Tensor]) -> list[int]:
    """Counts within the budget, as close to it as whole groups allow.

    Over it, groups go while they must; under it, groups return while they may: the one that costs
    least, or brings most, energy per FLOP. What saves nothing, as the neurons of a bottom MLP
    whose field has gone, stays as it is.
    """
    counts = list(counts)
    energy = [energies(groups) for groups in problem.groups]
    budget = problem.config.flops_budget

    def ratio(trial: Sequence[int]) -> float:
        return problem.resource.ratio(problem.sizes(trial, order))

    def moves(sign: int) -> Iterator[tuple[float, list[int]]]:
        # Each layer's next step, and its energy per FLOP.
        now = ratio(counts)
        for layer, g in enumerate(problem.groups):
            low, high = sorted((counts[layer], counts[layer] + sign * g.unit))
            trial = [*counts[:layer], counts[layer] + sign * g.unit, *counts[layer + 1 :]]
            if low >= 0 and high <= g.removable and (saved := abs(now - ratio(trial))):
                yield float(energy[layer][order[layer][low:high]].sum()) / saved, trial

    while ratio(counts) > budget:
        counts = min(moves(1))[1]
    while back := [move for move in moves(-1) if ratio(move[1]) <= budget]:
        counts = max(back)[1]
    return counts
