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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Literal

import numpy as np
import torch
from pydantic import Field as Option
from torch import Tensor

from compress.budget import Bound, Budget, FlopsOf
from compress.config import Frozen
from compress.methods.problem import BudgetProblem, Order
from compress.primal_dual import Vector, bottom, prox
from compress.rankers.base import Ranker
from compress.rankers.structure import Keep, Reader, Sizes

Part = Literal["fields", "widths", "neurons"]
Norms = Literal["weights", "energy", "loss"]

FIELDS: Final = "fields"
WIDTHS: Final = "widths"
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
