"""Slims any torch module of tables, linear layers and element-wise operations to a budget.

    trace ─▶ rehearse ─▶ measure ─▶ UMEC, a step a batch ─▶ cut, proved = masked ─▶ fine-tune

What goes together is `compress.tied`'s, the groups are `compress.methods.channels`', which of them
go is UMEC's (`compress.methods.umec.Iteration`), and removal is `compress.cutting`'s.

The trace cannot see everything: a forward may divide by a width that it asks for, or reshape to
one that is written into it. So some channels are cut and masked for rehearsal before anything is
trained; a layer that does not compute the same without them, or on which the loss fails, is locked.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, Generic, TypeVar

import torch
from pydantic import Field as Option
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from compress.budget import Budget
from compress.config import ConfigError, Frozen, Seed, check
from compress.cutting import FOREIGN, NotTheSame, gone, narrowed, prove
from compress.methods.channels import (
    Accounts,
    ChannelGroups,
    ModuleProblem,
    amounts,
    measured,
)
from compress.methods.steps import TOLD
from compress.methods.umec import Iteration, UmecRates
from compress.optimizers import RowAdam
from compress.progress import Progress, Silent
from compress.tied import Example, Tied, TiedLayer, tensors_in
from compress.tracing import trace
from compress.train import CHECK_EVERY, TrainingDiverged, reproducible

M = TypeVar("M", bound=nn.Module)
B = TypeVar("B")
Loss = Callable[[M, B], Tensor]
Batches = Iterable[B] | Callable[[int], Iterable[B]]

MEASURED_BATCHES: Final = 64
HISTORY_ROWS: Final = 100


@dataclass(frozen=True, slots=True)
class Cost:
    """What a module takes.

    Attributes:
        flops: of its linear layers, for a row of the example.
        bytes: of its parameters.
    """

    flops: float
    bytes: float


@dataclass(frozen=True, slots=True)
class KeptLayer:
    """What stayed of channels that are alike.

    Attributes:
        name: of the layers or tables that make them.
        count: how many positions there were; a channel may have several, as gates do.
        kept: their positions in ``weight``, of those that stayed.
        weight: the parameter whose dimension they are, and which.
    """

    name: str
    count: int
    kept: tuple[int, ...]
    weight: tuple[str, int]


@dataclass(frozen=True, slots=True)
class Locked:
    """Channels that had to stay, and why."""

    name: str
    count: int
    reason: str


@dataclass(frozen=True, slots=True)
class Slimmed(Generic[M]):
    """What `slim_module` did.

    Attributes:
        module: narrower, of the same class, on the same device, in the same mode.
        layers: what stayed of each.
        dense: what the module took.
        slim: what it takes.
        locked: what could not go.
        history: numbers by step.
    """

    module: M
    layers: tuple[KeptLayer, ...]
    dense: Cost
    slim: Cost
    locked: tuple[Locked, ...]
    history: tuple[Mapping[str, float], ...]

    @property
    def dropped(self) -> tuple[str, ...]:
        """Layers of which nothing stayed: tables that the module does without."""
        return tuple(layer.name for layer in self.layers if not layer.kept)


class Options(Frozen):
    """`slim_module`'s, in their bounds."""

    epochs: int = Option(gt=0)
    finetune_epochs: int = Option(ge=0)
    lr: float = Option(gt=0.0)
    embedding_lr: float = Option(ge=0.0)
    distill: float = Option(ge=0.0)
    unit: int = Option(gt=0)
    seed: Seed


def slim_module(
    module: M,
    example: object,
    budget: Budget,
    loss: Loss[M, B],
    batches: Batches[B],
    *,
    epochs: int = 2,
    finetune_epochs: int = 1,
    lr: float = 1e-3,
    embedding_lr: float = 0.0,
    distill: float = 0.0,
    unit: int = 1,
    stay: Sequence[str] = (),
    seed: int = 1,
    rates: UmecRates | None = None,
    progress: Progress | None = None,
) -> Slimmed[M]:
    """Remove what a trained module needs least, until it is within a budget; then fine-tune it.

    Args:
        module: trained; left as it is.
        example: what it is called with: a tensor, a tuple of positional arguments, or a mapping of
            named ones. A few rows are enough.
        budget: ``flops`` of its linear layers, as a share; ``bytes`` of its parameters, as a share
            or a size.
        loss: of the module (a copy of yours, smaller in the end) on one of the batches: a mean.
        batches: of the training rows, to be gone through several times; or what makes those of an
            epoch from its number.
        epochs: passes while slimming.
        finetune_epochs: passes after it.
        lr: of Adam, for all parameters but tables.
        embedding_lr: for tables. They are trained already, and more epochs overfit them.
        distill: weight of the mean squared distance from the dense module's outputs, in the loss.
        unit: channels of a layer go in multiples of it.
        stay: names of parts and parameters whose sizes must not change.
        seed: of all that is drawn.
        rates: UMEC's.
        progress: told of the steps.

    Raises:
        ConfigError: the budget cannot be met (the text says the smallest that can be), nothing may
            go, the module cannot be traced, or an argument is not what it should be.
        NotTheSame: the slim module does not compute what the masked one does.
        TrainingDiverged: the loss is no longer a number.
    """
    given = {"epochs": epochs, "finetune_epochs": finetune_epochs, "lr": lr, "distill": distill}
    given |= {"embedding_lr": embedding_lr, "unit": unit, "seed": seed}
    options = check(Options, given, where="slim_module")
    where = _device(module)
    work = copy.deepcopy(module)
    run = _Run(
        options=options,
        example=Example.of(example),
        passes=Passes(batches),
        objective=Objective(loss, module, options.distill),
        progress=progress or Silent(),
    )
    with reproducible(options.seed, where):
        tied = run.rehearsed(work, trace(work, run.example, tuple(stay)))
        problem = run.problem(work, tied, budget)
        steps = Iteration(rates or UmecRates(), problem, run.passes.count * options.epochs)
        run.train("slim", work, tied, steps.after_gradient)
        counts, order = steps.within_budget()
        chosen = problem.chosen(counts, order)
        prove(work, tied, chosen, run.example)
        small = narrowed(work, gone(tied, chosen)[0])
        run.train("finetune", small, tied, dict)
    for ours, theirs in zip(small.modules(), module.modules(), strict=True):
        ours.training = theirs.training
    accounts = Accounts(module, tied, [groups.layer for groups in problem.groups])
    return Slimmed(
        module=small,
        layers=tuple(_kept(g.layer, chosen[g.name], tied) for g in problem.groups),
        dense=Cost(**accounts.dense),
        slim=Cost(**accounts.after(counts)),
        locked=tuple(Locked(x.name, x.count, x.lock) for x in tied.layers if x.lock),
        history=tuple(run.history),
    )


def _device(module: nn.Module) -> torch.device:
    first = next(module.parameters(), None)
    if first is None:
        raise ConfigError("module: it has no parameters, so nothing can go from it")
    return first.device


def _kept(layer: TiedLayer, went: Tensor, tied: Tied) -> KeptLayer:
    makes = [axis for axis in layer.members if axis in tied.sources]
    axis = (makes or list(layer.members))[0]
    kept = torch.ones(layer.count, dtype=torch.bool)
    kept[went] = False
    places = layer.members[axis][kept].flatten().sort().values
    count = layer.members[axis].numel()
    return KeptLayer(layer.name, count, tuple(places.tolist()), axis)


# --- what the caller brings -----------------------------------------------------------------------


class Passes(Generic[B]):
    """Goes through the batches, several times.

    Args:
        batches: as the caller gave them.

    Raises:
        ConfigError: they can be gone through once only, or there are none.
    """

    def __init__(self, batches: Batches[B]) -> None:
        if isinstance(batches, Iterator):
            raise ConfigError(
                "batches: an iterator can be gone through once only; give a list, a DataLoader, or "
                "a function from an epoch's number to its batches"
            )
        if not callable(batches) and not isinstance(batches, Iterable):
            raise ConfigError(
                "batches: expected an iterable, or a function from an epoch's number to one; got "
                f"{type(batches).__name__}"
            )
        self._batches = batches
        first = self.epoch(0)
        self.count = len(first) if isinstance(first, Sized) else sum(1 for _ in first)
        if not self.count:
            raise ConfigError("batches: there are none")

    def epoch(self, number: int) -> Iterable[B]:
        """The batches of one pass."""
        return self._batches(number) if callable(self._batches) else self._batches

    def first(self, most: int) -> Iterator[B]:
        """Those that the first pass begins with."""
        return itertools.islice(self.epoch(0), most)


class Objective(Generic[M, B]):
    """The caller's loss, checked, and the distance from the dense module's outputs.

    Args:
        loss: the caller's.
        dense: left as it is.
        distill: the distance's weight.
    """

    def __init__(self, loss: Loss[M, B], dense: M, distill: float) -> None:
        self._loss, self._distill = loss, distill
        self._teacher = copy.deepcopy(dense).eval() if distill else None

    def of(self, module: M, batch: B) -> Tensor:
        """A scalar to differentiate.

        Raises:
            ConfigError: the caller's is none, or never calls the module that should imitate.
        """
        if self._teacher is None:
            return self._checked(self._loss(module, batch))
        with _distances(module, self._teacher) as distances:
            found = self._checked(self._loss(module, batch))
        if not distances:
            raise ConfigError("distill: the loss never calls the module itself, only parts of it")
        return found + self._distill * torch.stack(distances).mean()

    def _checked(self, found: object) -> Tensor:
        if not isinstance(found, Tensor) or found.numel() != 1 or not found.requires_grad:
            told = f"of shape {tuple(found.shape)}" if isinstance(found, Tensor) else ""
            raise ConfigError(
                "loss: expected a scalar tensor that depends on the module's parameters; got "
                f"{type(found).__name__} {told}".rstrip()
            )
        return found.reshape(())


@contextmanager
def _distances(module: nn.Module, teacher: nn.Module) -> Iterator[list[Tensor]]:
    """Those between the two modules' outputs, for each call of the first one."""
    found: list[Tensor] = []

    def compare(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        with torch.no_grad():
            theirs = Example(args, kwargs).given_to(teacher)
        pairs = zip(tensors_in(out), theirs, strict=True)
        found.extend(mse_loss(a, b) for a, b in pairs if b.dtype.is_floating_point)

    hook = module.register_forward_hook(compare, with_kwargs=True)
    try:
        yield found
    finally:
        hook.remove()


# --- the run --------------------------------------------------------------------------------------


@dataclass
class _Run(Generic[M, B]):
    """One call's data and loss, and the steps that look at them."""

    options: Options
    example: Example
    passes: Passes[B]
    objective: Objective[M, B]
    progress: Progress
    epoch: int = 0
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._batch = next(self.passes.first(1))

    # --- what may go ---

    def rehearsed(self, work: M, tied: Tied) -> Tied:
        """Lock what the trace takes to be free and is not: half of each layer is cut at random.

        Raises:
            NotTheSame: layers that can go alone cannot go together; or the module does not even
                compute the same twice.
        """
        self.objective.of(copy.deepcopy(work).train(), self._batch)
        prove(work, tied, {}, self.example)
        draw, unit = torch.Generator().manual_seed(self.options.seed), self.options.unit
        halves = {
            layer.name: torch.randperm(layer.count, generator=draw)[:half]
            for layer in tied.layers
            if not layer.lock
            for half in [max(unit, layer.count // 2 // unit * unit)]
            if half < layer.count
        }
        if self._fault(work, tied, halves) is None:
            return tied
        alone = {name: self._fault(work, tied, {name: half}) for name, half in halves.items()}
        reasons = {name: f"cut for rehearsal: {fault}" for name, fault in alone.items() if fault}
        left = {name: half for name, half in halves.items() if name not in reasons}
        fault = self._fault(work, tied, left)
        if fault is not None:
            raise NotTheSame(f"{_TOGETHER}: {fault}")
        return tied.locked(reasons)

    def _fault(self, work: M, tied: Tied, cut: Mapping[str, Tensor]) -> str | None:
        """What goes wrong if these channels go."""
        try:
            prove(work, tied, cut, self.example)
            self.objective.of(narrowed(work, gone(tied, cut)[0]).train(), self._batch)
        except NotTheSame as error:
            return str(error)
        except FOREIGN as error:
            return f"the loss fails on a narrower module: {error}"
        return None

    def problem(self, work: M, tied: Tied, budget: Budget) -> ModuleProblem:
        """Which channels may go, what each is worth, and the bounds.

        Raises:
            ConfigError: none may, or the budget cannot be met.
            NotTheSame: not all that may go can go together.
        """
        where, unit = next(work.parameters()).device, self.options.unit
        free = [layer for layer in tied.layers if not layer.lock]
        plain = [ChannelGroups(x, unit, unit, torch.ones(x.count, device=where)) for x in free]
        work.eval()
        losses = (self.objective.of(work, batch) for batch in self.passes.first(MEASURED_BATCHES))
        groups, costs = measured(work, tied, plain, losses)
        by_name = {g.name: cost.cpu() for g, cost in zip(groups, costs, strict=True)}
        without = self._droppable(work, tied, groups, by_name, budget)
        may_go = [replace(g, least=0) if g.name in without else g for g in groups]
        may_go = [g for g in may_go if g.removable]
        if not may_go:
            told = "".join(f"\n  {x.name}: {x.lock}" for x in tied.layers if x.lock)
            raise ConfigError(f"module: nothing may go from it{told}")
        accounts = Accounts(work, tied, [g.layer for g in may_go])
        problem = ModuleProblem(work, accounts, may_go, amounts(budget, accounts.dense))
        problem.check_feasible()
        return problem

    def _droppable(
        self,
        work: M,
        tied: Tied,
        groups: Sequence[ChannelGroups],
        costs: Mapping[str, Tensor],
        budget: Budget,
    ) -> set[str]:
        """The tables that may go as a whole, by name, once everything else is at its smallest."""
        worth: dict[str, tuple[float, ...]] = {n: (float(c.sum()),) for n, c in costs.items()}
        if budget.bytes is not None:  # what must stay must not stand in the way of a budget
            taken = bytes_of_a_channel(work, tied, [g.layer for g in groups])
            worth = {name: (-taken[name], *cost) for name, cost in worth.items()}
        found = tables_only(tied, worth)

        def smallest(dropped: set[str]) -> dict[str, Tensor]:
            return {
                g.name: costs[g.name].argsort(stable=True)[: whole.removable]
                for g in groups
                for whole in [replace(g, least=0) if g.name in dropped else g]
            }

        if found and self._fault(work, tied, smallest(found)) is not None:
            every = {g.name: torch.arange(g.count) for g in groups if g.name in found}
            found = {n for n in found if self._fault(work, tied, {n: every[n]}) is None}
        fault = self._fault(work, tied, smallest(found))
        if fault is not None:
            raise NotTheSame(f"{_TOGETHER}: {fault}")
        return found

    # --- training ---

    def train(
        self,
        stage: str,
        module: M,
        tied: Tied,
        after_gradient: Callable[[], Mapping[str, float]],
    ) -> None:
        """All passes of a stage over the batches, with something after each gradient step."""
        epochs = self.options.epochs if stage == "slim" else self.options.finetune_epochs
        total, done = self.passes.count * epochs, 0
        step = _optimizer(module, tied, self.options)
        module.train()
        for _ in range(epochs):
            for batch in self.passes.epoch(self.epoch):
                module.zero_grad(set_to_none=True)
                loss = self.objective.of(module, batch)
                loss.backward()  # type: ignore[no-untyped-call]
                step()
                done += 1
                self._record(stage, done, total, float(loss.detach()), after_gradient())
            self.epoch += 1
        module.zero_grad(set_to_none=True)

    def _record(
        self, stage: str, done: int, total: int, loss: float, numbers: Mapping[str, float]
    ) -> None:
        self.step += 1
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"{stage}: the loss is {loss} at step {done}; lower lr (now {self.options.lr:g}), "
                "or look for inputs of a huge scale"
            )
        if done % CHECK_EVERY == 0 or done == total:
            told = {name: number for name, number in numbers.items() if name.startswith(TOLD)}
            self.progress.step(stage, done, total, loss=loss, **told)
        if done % max(1, total // HISTORY_ROWS) == 0 or done == total:
            self.history.append({"step": float(self.step), "loss": loss, **numbers})


_TOGETHER: Final = "layers can each be narrower, but not together; name some of them in stay"


def bytes_of_a_channel(
    module: nn.Module, tied: Tied, layers: Sequence[TiedLayer]
) -> dict[str, float]:
    """What one channel of each layer takes, all else being there."""
    accounts = Accounts(module, tied, layers)
    one_less = [[int(place == here) for place in range(len(layers))] for here in range(len(layers))]
    return {
        layer.name: accounts.dense["bytes"] - accounts.after(counts)["bytes"]
        for layer, counts in zip(layers, one_less, strict=True)
    }


def tables_only(tied: Tied, worth: Mapping[str, tuple[float, ...]]) -> set[str]:
    """Layers that are columns of tables and nothing else, so that they may go altogether.

    Something has to be left for each product to read: what is worth most, if nothing else is.
    """
    found = {
        layer.name
        for layer in tied.layers
        if not layer.lock and not layer.degree and layer.shrunk
        if all(axis[0] in tied.tables for axis in layer.members if axis in tied.sources)
        if any(axis in tied.sources for axis in layer.members)
    }
    for product in tied.products:
        read = [layer.name for layer in tied.layers if product.columns in layer.members]
        if read and found.issuperset(read):
            found.discard(max(read, key=lambda name: worth[name]))
    return found


def _optimizer(module: nn.Module, tied: Tied, options: Options) -> Callable[[], None]:
    """A step of Adam on everything; of tables with sparse gradients, on their rows."""
    parts = [p for p in module.modules() if isinstance(p, nn.Embedding | nn.EmbeddingBag)]
    by_rows = {id(part.weight) for part in parts if part.sparse}
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    layers = [p for n, p in trained.items() if n not in tied.tables]
    tables = [p for n, p in trained.items() if n in tied.tables and options.embedding_lr]
    rows = [RowAdam(p, 0.0) for p in tables if id(p) in by_rows]
    groups = [
        {"params": layers, "lr": options.lr},
        {"params": [p for p in tables if id(p) not in by_rows], "lr": options.embedding_lr},
    ]
    adam = torch.optim.Adam([group for group in groups if group["params"]] or [torch.zeros(1)])

    def step() -> None:
        adam.step()
        for table in rows:
            table.step(options.embedding_lr)

    return step
