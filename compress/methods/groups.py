"""What may go from a ranker, as groups; what each is worth, and what it saves.

A *group* goes as a whole: a field (the input columns that read it, with its table), some positions
of a field's vector, or a hidden neuron (the column that reads it). Groups of one kind make a layer.

| paper (UMEC §1.2) | here | is |
|---|---|---|
| W_l, groups | `Groups` | input columns by field (l = 1) or by neuron before them (l ≥ 2) |
| ‖W_g‖² | `energies` | squared norm of a group, in the metric of `Groups.metric` |
| R_r(s) | `Problem.ratio` | shares of the dense ranker's FLOPs, bytes, time |

Positions are nested in fields: those of a field that goes are no groups any more. In inner
products no column reads a position, so there W_g is what makes it: columns of the field's table, or
rows of the bottom MLP's last layer; and positions go in an order that all fields share.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Final, Literal, cast

import numpy as np
import torch
from pydantic import Field as Option
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from compress.budget import Bound, Budget, FlopsOf
from compress.config import ConfigError, Frozen
from compress.data.encode import Batch
from compress.distill import click_loss
from compress.methods.problem import BudgetProblem, Order
from compress.primal_dual import Vector, bottom, prox
from compress.rankers.base import Field, Hidden, Keep, Prunable, Ranker, Reader, Sizes, flat
from compress.train import Columns, TrainingData, shuffled

Part = Literal["fields", "widths", "neurons"]
Norms = Literal["weights", "energy", "loss"]

FIELDS: Final = "fields"
WIDTHS: Final = "widths"
SENSITIVITY_ROWS: Final = 4096
SENSITIVITY_BATCHES: Final = 8
TINY: Final = 1e-30
SMALL_SHARE: Final = 1e-8


class SlimmingConfig(Frozen):
    """Options of all methods that slim to a budget.

    Attributes:
        budget: what to stay under; see `compress.budget.Budget`.
        flops_of: which FLOPs the budget counts: ``all``, ``mlp`` (no interactions), or ``top_mlp``,
            as UMEC's paper.
        parts: what may go: whole fields, positions of their vectors, hidden neurons.
        protect_numeric: never drop a bottom MLP's output (the paper's group 0); if it may be
            dropped, the bottom MLP goes with it, and is credited.
        unit: hidden widths shrink by multiples of it.
        width_unit: fields' vectors do.
    """

    budget: Budget
    flops_of: FlopsOf = "all"
    parts: tuple[Part, ...] = Option(default=("fields", "neurons"), min_length=1)
    protect_numeric: bool = True
    unit: int = Option(default=1, gt=0)
    width_unit: int = Option(default=4, gt=0)


@dataclass(frozen=True, slots=True)
class Quorum:
    """Of these groups, at least so many stay."""

    members: tuple[int, ...]
    least: int


@dataclass(frozen=True, slots=True)
class Block:
    """Positions of a field's vector that go together; ``field`` is its place among the fields."""

    field: int
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Weights:
    """A view of some weights (n, columns), and which of a layer's columns these are."""

    columns: slice
    matrix: Tensor


@dataclass(frozen=True, slots=True)
class Groups:
    """One layer of groups: G of them, in the input columns of ``readers``, or in what is ``made``.

    Attributes:
        membership: (G, columns): which share of a column is whose; None: a column a group.
        locked: groups that always stay.
        quorums: sets of groups that may not go altogether.
        metric: (G,) factors of the squared norms.
        unit: they go in multiples of it.
        blocks: of the groups, where they are positions of fields.
        made: the weights, where nothing reads the positions by themselves; then a field's blocks go
            in the order in which they stand.
    """

    name: str
    count: int
    readers: tuple[Reader, ...]
    membership: Tensor | None
    locked: tuple[int, ...]
    quorums: tuple[Quorum, ...]
    metric: Tensor
    unit: int
    blocks: tuple[Block, ...] = ()
    made: tuple[Weights, ...] = ()

    @property
    def removable(self) -> int:
        """How many may go."""
        kept = len(self.locked) + sum(quorum.least for quorum in self.quorums)
        return max(0, (self.count - kept) // self.unit * self.unit)

    @property
    def columns(self) -> int:
        """How many belong to the groups, of each reader or of all that is made."""
        return self.count if self.membership is None else self.membership.shape[1]

    def by_group(self, columns: Tensor) -> Tensor:
        """(..., columns) -> (..., G), by shares."""
        return columns if self.membership is None else columns @ self.membership.T

    def by_column(self, groups: Tensor) -> Tensor:
        """(G,) -> (columns,), by shares."""
        return groups if self.membership is None else groups @ self.membership


def energies(groups: Groups) -> Tensor:
    """Squared group norms (G,), in the groups' metric."""
    squares = torch.zeros(groups.columns, device=groups.metric.device)
    for held in weights(groups):
        square = held.matrix.square()
        # Of what makes positions a mean, so that tables of any length compare.
        squares[held.columns] += square.mean(0) if groups.made else square.sum(0)
    return groups.by_group(squares) * groups.metric


def weights(groups: Groups) -> Iterator[Weights]:
    """What is zeroed if groups go, to be read or written in place."""
    for reader in groups.readers:
        matrix = reader.layer.weight.data[:, reader.start : reader.start + groups.columns]
        yield Weights(slice(0, groups.columns), matrix)
    yield from groups.made


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


class Problem(BudgetProblem):
    """A ranker, what may go, and the bounds: R and the groups' energies as functions of ⌈s⌉."""

    groups: tuple[Groups, ...]
    bounds: tuple[Bound, ...]

    def __init__(self, ranker: Ranker, groups: Sequence[Groups], bounds: Sequence[Bound]) -> None:
        super().__init__(groups, bounds)
        self.ranker = ranker
        self.dense = ranker.sizes()
        self._fields = ranker.fields
        self._savings = [self._saved_alone(g, self.dense) for g in self.groups]

    def order(
        self,
        s: Sequence[int],
        prices: Vector | None = None,
        worth: Sequence[Tensor] | None = None,
    ) -> Order:
        """Groups by what they are worth per price of what they save, the least first.

        Args:
            s: (L,) how many of each layer's are about to go: positions are those of the fields
                that stay.
            prices: (R,) of the resources; None: all alike.
            worth: (G_l,) by layer; None: their energies.
        """
        paid = np.zeros(len(self.bounds)) if prices is None else prices
        z = torch.from_numpy(paid + TINY + SMALL_SHARE * paid.max(initial=0.0))
        orders: list[Tensor] = []
        found: list[Tensor] = []
        for layer, groups in enumerate(self.groups):
            energy = selectable(groups, energies(groups) if worth is None else worth[layer])
            if groups.blocks:
                energy = self._nested(groups, energy, orders, s)
            saved = z @ self._savings[layer]
            worth_of = energy / (saved / saved.max()).clamp(min=SMALL_SHARE).to(energy)
            order = bottom(_in_turn(groups, worth_of) if groups.made else worth_of, groups.count)
            orders.append(order)
            found.append(energy[order])
        return Order(tuple(orders), tuple(found))

    def _nested(
        self, groups: Groups, energy: Tensor, orders: Sequence[Tensor], s: Sequence[int]
    ) -> Tensor:
        gone = self._gone_fields(s, orders)
        return energy.masked_fill(
            torch.tensor([block.field in gone for block in groups.blocks], device=energy.device),
            math.inf,
        )

    def _gone_fields(self, counts: Sequence[int], orders: Sequence[Tensor]) -> set[int]:
        for groups, count, order in zip(self.groups, counts, orders, strict=False):
            if groups.name == FIELDS:
                return set(order[:count].tolist())
        return set()

    def ratio(self, counts: Sequence[int], order: Order) -> Vector:
        """R (R,): what is left of each resource if the first ``counts`` of each layer go."""
        sizes = self.sizes(counts, order)
        return np.array([bound.share(sizes) for bound in self.bounds])

    def smallest(self) -> Vector:
        """The least that each resource can be brought to, (R,), what is cheapest in it staying."""
        by_resource = [self._least_left(prices) for prices in np.eye(len(self.bounds))]
        return np.diag(by_resource).copy()

    def _least_left(self, prices: Vector, *, dearest: bool = False) -> Vector:
        """R (R,) if all goes that may, and of sets that cannot go altogether the cheapest stay."""
        most = [groups.removable for groups in self.groups]
        worth = [cost if dearest else -cost for cost in self.costs(prices)]
        return self.ratio(most, self.order(most, worth=worth))

    def costs(self, prices: Vector) -> list[Tensor]:
        """(G_l,) by layer: what each group takes at prices (R,) where all else has gone."""
        where = [groups.metric.device for groups in self.groups]
        costs = [torch.from_numpy(prices) @ saved for saved in self._last_savings]
        return [cost.to(device) for cost, device in zip(costs, where, strict=True)]

    @cached_property
    def _last_savings(self) -> list[Tensor]:
        """(R, G_l) by layer: of fields as narrow as they can be, before layers of least width."""
        counts = [0 if groups.name == FIELDS else groups.removable for groups in self.groups]
        left = self.sizes(counts, self.order(counts))
        return [
            self._saved_alone(groups, left) if groups.name == FIELDS else saved
            for groups, saved in zip(self.groups, self._savings, strict=True)
        ]

    def within_reach(self, where: str | None = None) -> "Problem":
        """The problem in which no order of the groups stands in the way of the bounds.

        Something of each quorum stays. Where the bounds leave no room for its dearest members, that
        is its cheapest one, so that methods may keep what they like beside it.

        Args:
            where: as `check_feasible`.

        Raises:
            ConfigError: no choice of groups meets the bounds.
        """
        self.check_feasible(where)
        most = self._least_left(1 / self.limits, dearest=True)
        if (most <= self.limits).all():
            return self
        # What is cheapest in all that is short, or else in one of them.
        short = np.where(most > self.limits, 1 / self.limits, 0.0)
        tried = [self._thrifty(prices) for prices in (short, *np.diag(short)[short > 0])]
        found = next((p for p in tried if (p.smallest() <= p.limits).all()), tried[0])
        found.check_feasible(where)
        return found

    def _thrifty(self, prices: Vector) -> "Problem":
        """The problem in which of each quorum the members stay that are cheapest at prices (R,)."""
        pairs = zip(self.groups, self.costs(prices), strict=True)
        thrifty = [replace(g, quorums=tuple(_cheapest(g.quorums, cost))) for g, cost in pairs]
        return Problem(self.ranker, thrifty, self.bounds)

    def shrink(self, layer: int, chosen: Tensor, price: float, lr: float) -> None:
        """The proximal step on the chosen groups of a layer, in place."""
        groups = self.groups[layer]
        if not len(chosen) or not price:
            return
        prices = torch.zeros(groups.count, device=groups.metric.device)
        prices[chosen] = price
        by_column = groups.by_column(prices)
        for held in weights(groups):
            if (price_of := by_column[held.columns]).any():  # a table that stays takes no time
                held.matrix.copy_(prox(held.matrix, price_of, lr))

    def sizes(self, counts: Sequence[int], order: Order) -> Sizes:
        """What is left if the first ``counts`` of each layer go."""
        widths, hidden = dict(self.dense.widths), dict(self.dense.hidden)
        names = [field.name for field in self._fields]
        gone = self._gone_fields(counts, order.groups)
        for position in gone:
            widths[names[position]] = 0
        for layer, (groups, count) in enumerate(zip(self.groups, counts, strict=True)):
            if groups.blocks:
                for block in self._narrowed(layer, count, order, gone):
                    widths[names[block.field]] -= len(block.positions)
            elif groups.name != FIELDS:
                hidden[groups.name] -= count
        return Sizes(widths, hidden)

    def keep(self, counts: Sequence[int], order: Order) -> Keep:
        """What stays if the first ``counts`` of each layer go."""
        gone = self._gone_fields(counts, order.groups)
        fields = [f for i, f in enumerate(self._fields) if i not in gone]
        hidden, dims = {}, {f.name: set(range(f.width)) for f in fields}
        for layer, (groups, count) in enumerate(zip(self.groups, counts, strict=True)):
            if groups.blocks:
                for block in self._narrowed(layer, count, order, gone):
                    dims[self._fields[block.field].name] -= set(block.positions)
            elif groups.name != FIELDS:
                hidden[groups.name] = tuple(sorted(order.groups[layer][count:].tolist()))
        narrower = [f for f in fields if len(dims[f.name]) < f.width]
        left = {f.name: tuple(sorted(dims[f.name])) for f in narrower}
        return Keep(tuple(f.name for f in fields), hidden, left)

    def _narrowed(self, layer: int, count: int, order: Order, gone: set[int]) -> Iterator[Block]:
        """The blocks that go from fields that stay; there may be fewer than were asked for."""
        may_go = order.energies[layer][:count].isfinite()
        for g in order.groups[layer][:count][may_go].tolist():
            block = self.groups[layer].blocks[g]
            if block.field not in gone:
                yield block

    def _saved_alone(self, groups: Groups, sizes: Sizes) -> Tensor:
        """(R, G) what each group saves if of a ranker of some sizes it alone goes."""
        if groups.name != FIELDS and not groups.blocks:
            return torch.ones(len(self.bounds), groups.count, dtype=torch.float64)
        saved = np.zeros((len(self.bounds), groups.count))
        whole = np.array([bound.share(sizes) for bound in self.bounds])
        for g in range(groups.count):
            block = groups.blocks[g] if groups.blocks else None
            field = self._fields[g if block is None else block.field]
            left = 0 if block is None else field.width - len(block.positions)
            without = Sizes({**sizes.widths, field.name: left}, sizes.hidden)
            saved[:, g] = whole - [bound.share(without) for bound in self.bounds]
        return torch.from_numpy(saved)


def _cheapest(quorums: Sequence[Quorum], cost: Tensor) -> Iterator[Quorum]:
    """The quorums without the members that cost more than those that suffice."""
    for quorum in quorums:
        enough = sorted(float(cost[g]) for g in quorum.members)[quorum.least - 1]
        yield replace(quorum, members=tuple(g for g in quorum.members if cost[g] <= enough))


def _in_turn(groups: Groups, worth: Tensor) -> Tensor:
    """Each block's worth at least that of those before it in its field: they go first."""
    found = torch.empty_like(worth)
    for own in by_field(groups.blocks):
        found[own] = worth[own].cummax(0).values
    return found


def by_field(blocks: Sequence[Block]) -> list[list[int]]:
    """The places of each field's blocks, in the order in which they stand."""
    found: dict[int, list[int]] = {}
    for g, block in enumerate(blocks):
        found.setdefault(block.field, []).append(g)
    return list(found.values())


# --- which groups there are ----------------------------------------------------------------------

PositionCosts = Callable[[Groups], Sequence[float]]


def make_problem(
    ranker: Ranker,
    config: SlimmingConfig,
    bounds: Sequence[Bound],
    dataset: TrainingData,
    *,
    seed: int,
    norms: Norms = "weights",
) -> Problem:
    """The problem of slimming a ranker, its groups measured in some norm.

    Args:
        ranker: trained.
        config: what may go.
        bounds: what is to be stayed under.
        dataset: what positions, and groups in the metric ``loss``, are judged on.
        seed: of the order of its rows.
        norms: what a group's norm is measured in. ``weights``: as it is. ``energy``: in shares of
            its layer's. ``loss``: in the loss that its removal costs, see `removal_costs`.

    Raises:
        ConfigError: no choice of groups meets the bounds, or the ranker has no such groups.
    """
    groups = removable(
        ranker,
        config,
        bounds,
        costs=lambda singles: removal_costs(ranker, [singles], dataset, seed)[0].tolist(),
    )
    return Problem(ranker, measured(ranker, groups, norms, dataset, seed), bounds).within_reach()


def check_budget(
    ranker: Ranker, config: SlimmingConfig, bounds: Sequence[Bound], where: str
) -> None:
    """Refuse what no choice of groups can meet; it depends on the ranker's sizes alone.

    Args:
        ranker: trained or not.
        config: what may go.
        bounds: what is to be stayed under.
        where: how errors call the budget.

    Raises:
        ConfigError: as `make_problem`.
    """
    try:
        groups = removable(ranker, config, bounds, costs=lambda singles: [0.0] * singles.count)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    Problem(ranker, groups, bounds).within_reach(where)


def removable(
    ranker: Ranker, config: SlimmingConfig, bounds: Sequence[Bound], costs: PositionCosts
) -> list[Groups]:
    """The layers of groups of which some may go, and save something.

    Args:
        ranker: trained or not.
        config: what may go.
        bounds: what is to be saved.
        costs: what the loss rises by without each position, where positions may go.

    Raises:
        ConfigError: there are none.
    """
    groups = [*_groups(ranker, config, bounds)]
    if WIDTHS in config.parts and _saves(ranker.sizes(), _narrowest(ranker), bounds):
        groups.append(_positions(ranker, config, costs))
    groups = [g for g in groups if g.removable]
    if not groups:
        named = ", ".join(bound.key for bound in bounds)
        raise ConfigError(
            f"method.parts: nothing of {', '.join(config.parts)} may go and saves {named}; "
            "name other parts, or budget something else"
        )
    return groups


def _groups(ranker: Ranker, config: SlimmingConfig, bounds: Sequence[Bound]) -> Iterator[Groups]:
    prunable = ranker.prunable()
    if FIELDS in config.parts:
        yield _fields(ranker, prunable, config)
    for layer in prunable.hidden if "neurons" in config.parts else ():
        if _saves(ranker.sizes(), _one_less(ranker, layer), bounds):
            yield _neurons(layer, config.unit, _where(ranker))


def _one_less(ranker: Ranker, layer: Hidden) -> Sizes:
    dense = ranker.sizes()
    return Sizes(dense.widths, {**dense.hidden, layer.name: dense.hidden[layer.name] - 1})


def _narrowest(ranker: Ranker) -> Sizes:
    dense = ranker.sizes()
    return Sizes(dict.fromkeys(dense.widths, 1), dense.hidden)


def _saves(dense: Sizes, smaller: Sizes, bounds: Sequence[Bound]) -> bool:
    return any(bound.share(smaller) < bound.share(dense) for bound in bounds)


def _fields(ranker: Ranker, prunable: Prunable, config: SlimmingConfig) -> Groups:
    numeric = [i for i, f in enumerate(prunable.fields) if f.numeric]
    locked = tuple(numeric) if config.protect_numeric else ()
    where = _where(ranker)
    return Groups(
        name=FIELDS,
        count=len(prunable.fields),
        readers=prunable.readers,
        membership=prunable.membership.to(where),
        locked=locked,
        quorums=_quorums(prunable.fields, locked, prunable.least),
        metric=torch.ones(len(prunable.fields), device=where),
        unit=1,
    )


def _neurons(layer: Hidden, unit: int, where: torch.device) -> Groups:
    # One unit stays, so that the layer does.
    rest = max(layer.width - unit, 0)
    return Groups(
        name=layer.name,
        count=layer.width,
        readers=(layer.reader,),
        membership=None,
        locked=(),
        quorums=(Quorum(tuple(range(layer.width)), layer.width - rest),),
        metric=torch.ones(layer.width, device=where),
        unit=unit,
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


def _positions(ranker: Ranker, config: SlimmingConfig, costs_of: PositionCosts) -> Groups:
    """Blocks of ``width_unit`` positions, those of a field that matter least together.

    Args:
        ranker: whose fields.
        config: tells the unit.
        costs_of: what the loss rises by without each of such groups.
    """
    prunable = ranker.prunable()
    fields = prunable.fields
    singles = [Block(i, (k,)) for i, field in enumerate(fields) for k in range(field.width)]
    costs = costs_of(_positions_of(ranker, prunable, singles))
    if prunable.aligned:
        costs = _shared_ranks(singles, costs)
    blocks = [
        Block(singles[own[0]].field, tuple(sorted(singles[g].positions[0] for g in least)))
        for own in by_field(singles)
        for ranked in [sorted(own, key=lambda g: costs[g])]
        for start in range(0, len(ranked), config.width_unit)
        for least in [ranked[start : start + config.width_unit]]
    ]
    return _positions_of(ranker, prunable, blocks)


def _shared_ranks(singles: Sequence[Block], costs: Sequence[float]) -> list[int]:
    """Places in one order of the positions, by what they cost in all fields together.

    Those that fewer fields have come first, so that what fields keep stays nested.
    """
    found: dict[int, tuple[int, float]] = {}
    for block, cost in zip(singles, costs, strict=True):
        (k,) = block.positions
        holders, total = found.get(k, (0, 0.0))
        found[k] = holders + 1, total + cost
    order = sorted(found, key=lambda k: (*found[k], k))
    return [order.index(block.positions[0]) for block in singles]


def _positions_of(ranker: Ranker, prunable: Prunable, blocks: Sequence[Block]) -> Groups:
    where = _where(ranker)
    starts = np.cumsum([0, *(field.width for field in prunable.fields)])
    membership = torch.zeros(len(blocks), int(starts[-1]), device=where)
    for g, block in enumerate(blocks):
        membership[g, [int(starts[block.field]) + k for k in block.positions]] = 1.0
    members, aligned = by_field(blocks), prunable.aligned
    return Groups(
        name=WIDTHS,
        count=len(blocks),
        readers=() if aligned else prunable.readers,
        membership=membership,
        locked=tuple(own[-1] for own in members) if aligned else (),
        quorums=() if aligned else tuple(Quorum(tuple(own), 1) for own in members),
        metric=torch.ones(len(blocks), device=where),
        unit=1,
        blocks=tuple(blocks),
        made=tuple(_made(ranker)) if aligned else (),
    )


def _made(ranker: Ranker) -> Iterator[Weights]:
    """What makes the fields' vectors, in the columns of their concatenation."""
    end = 0
    for side in ranker.sides:
        if side.bottom is not None:
            last = cast("torch.nn.Linear", side.bottom.layers[-1])
            columns, end = slice(end, end + last.out_features), end + last.out_features
            yield Weights(columns, last.weight.data.T)
            yield Weights(columns, last.bias.data.unsqueeze(0))
        for place in side.places:
            columns, end = slice(end, end + place.width), end + place.width
            table = cast("torch.nn.Embedding", ranker.tables[str(place.width)]).weight.data
            yield Weights(columns, table[place.rows.start : place.rows.stop])


def _where(ranker: Ranker) -> torch.device:
    return next(ranker.parameters()).device


# --- what a group is worth -----------------------------------------------------------------------


def measured(
    ranker: Ranker, groups: Sequence[Groups], norms: Norms, dataset: TrainingData, seed: int
) -> tuple[Groups, ...]:
    """The groups with the metric that a norm names."""
    if norms == "weights":
        return tuple(groups)
    if norms == "energy":
        return tuple(
            replace(g, metric=g.metric / energies(g).sum().clamp(min=TINY)) for g in groups
        )
    costs = removal_costs(ranker, groups, dataset, seed)
    # One factor for all: layers stay comparable, and a layer's energies sum to about 1.
    unit = sum(float(cost.sum()) for cost in costs) / len(costs)
    return tuple(
        replace(g, metric=cost / (unit * energies(g)).clamp(min=TINY))
        for g, cost in zip(groups, costs, strict=True)
    )


def removal_costs(
    ranker: Ranker, layers: Sequence[Groups], dataset: TrainingData, seed: int
) -> list[Tensor]:
    """What the loss rises by if a group alone is removed, to second order.

    With a gate α_g on the group's inputs, the Gauss-Newton curvature of the loss in α_g is the
    mean square of a row's ∂loss/∂α_g = Σ_j x_j·∂loss/∂x_j over the group's columns j; removing
    it costs half of that (the first-order term vanishes at a trained optimum). x is what the
    first reader gets: all that later ones read comes of it, so ∂loss/∂x has their share already.
    """
    squares = [torch.zeros(g.count, device=g.metric.device) for g in layers]
    rows = 0
    for pulls, count in gate_slopes(ranker, layers, dataset, seed):
        squares = [total + pull.square().sum(0) for total, pull in zip(squares, pulls, strict=True)]
        rows += count
    return [total / (2 * rows) for total in squares]


def gate_slopes(
    ranker: Ranker, layers: Sequence[Groups], dataset: TrainingData, seed: int
) -> Iterator[tuple[list[Tensor], int]]:
    """Batches of rows' slopes ∂loss/∂α_g in a gate on each group's inputs, (B, G) by layer; and B.

    The loss of a row, not of the batch. The first training rows in the order of ``seed``.
    """
    batches = islice(shuffled(dataset, SENSITIVITY_ROWS, seed, 0), SENSITIVITY_BATCHES)
    for inputs, slopes in input_slopes(ranker, layers, dataset, batches):
        pulls = [x * slope for x, slope in zip(inputs, slopes, strict=True)]
        yield [by_gate(g, pull) for g, pull in zip(layers, pulls, strict=True)], len(pulls[0])


def input_slopes(
    ranker: Ranker, layers: Sequence[Groups], dataset: TrainingData, batches: Iterable[Batch]
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """What each layer's first reader gets of a batch, x (B, columns), and rows' ∂loss/∂x.

    Of positions that nothing reads by themselves: what is made of them.
    """
    ranker.eval()
    where = _where(ranker)
    columns = Columns(dataset.features, ranker)
    seen: list[list[Tensor]] = [[] for _ in layers]
    hooks = [h for g, own in zip(layers, seen, strict=True) for h in _seeing(ranker, g, own)]
    try:
        for batch in batches:
            label = torch.from_numpy(batch.label).to(where)
            total = click_loss(ranker(columns.inputs(batch, where)), label) * len(batch)
            slopes = iter(torch.autograd.grad(total, [x for own in seen for x in own]))
            pairs = list(zip(layers, seen, strict=True))
            yield (
                [_own(g, own).detach() for g, own in pairs],
                [_own(g, [next(slopes) for _ in own]) for g, own in pairs],
            )
            for own in seen:
                own.clear()
    finally:
        for hook in hooks:
            hook.remove()


def _seeing(ranker: Ranker, groups: Groups, seen: list[Tensor]) -> list[RemovableHandle]:
    if groups.made:
        return [
            side.register_forward_hook(lambda *call: seen.extend(call[-1])) for side in ranker.sides
        ]
    layer = groups.readers[0].layer
    return [layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))]


def _own(groups: Groups, seen: Sequence[Tensor]) -> Tensor:
    if groups.made:
        return flat(seen)
    start = groups.readers[0].start
    return seen[0][:, start : start + groups.columns]


def by_gate(groups: Groups, pull: Tensor) -> Tensor:
    """(B, columns) -> (B, G): a row's slope in a gate on each group."""
    return pull if groups.membership is None else pull @ (groups.membership > 0).float().T
