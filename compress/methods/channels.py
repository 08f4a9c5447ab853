"""The groups of any module: its channels, what each is worth, and what they save.

| paper (UMEC §1.2) | here | is |
|---|---|---|
| W_l, groups | `ChannelGroups` | channels that are alike, see `compress.tied` |
| ‖W_g‖² | `energies` | squared norm of what a mask zeroes of a channel, times its metric |
| R_r(s) | `ModuleProblem.ratio` | shares of the dense module's FLOPs and bytes |

Channels that are alike save alike, so R is a function of how many go, and they go in the order of
their energies.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.budget import Budget, share_of
from compress.config import ConfigError
from compress.methods.problem import BudgetProblem, Order
from compress.primal_dual import Vector, bottom, prox
from compress.tied import Axis, Tied, TiedLayer

TINY: Final = 1e-30


@dataclass(frozen=True, slots=True)
class ChannelGroups:
    """One layer of channels.

    Attributes:
        least: so many stay.
        metric: (G,) factors of the squared norms.
    """

    layer: TiedLayer
    unit: int
    least: int
    metric: Tensor

    @property
    def name(self) -> str:
        """The layer's."""
        return self.layer.name

    @property
    def count(self) -> int:
        """G."""
        return self.layer.count

    @property
    def removable(self) -> int:
        """How many may go."""
        return max(0, (self.count - self.least) // self.unit * self.unit)


@dataclass(frozen=True, slots=True)
class Amount:
    """A resource with a budget; see `compress.methods.problem.Resource`."""

    name: str
    key: str
    limit: float
    dense: float


# --- what a module takes --------------------------------------------------------------------------


class Accounts:
    """FLOPs and bytes of a module, as functions of how long its axes are.

    FLOPs are those of products with weights, 2·in·out and the bias, for a row of the example.
    Bytes are those of the parameters.

    Args:
        module: dense.
        tied: its axes and products.
        layers: whose channels may go.
    """

    def __init__(self, module: nn.Module, tied: Tied, layers: Sequence[TiedLayer]) -> None:
        held = dict([*module.named_parameters(), *module.named_buffers()])
        axes = {axis: place for place, axis in enumerate(_axes(tied))}
        self._lengths = np.array([held[name].shape[d] for name, d in axes] + [1.0])
        self._members = np.zeros((len(self._lengths), len(layers)))
        for column, layer in enumerate(layers):
            for axis, places in layer.members.items():
                self._members[axes[axis], column] = places.shape[1]
        self._rows = np.array([axes[p.rows] for p in tied.products], int)
        self._columns = np.array([axes[p.columns] for p in tied.products], int)
        self._bias = np.array([float(p.bias) for p in tied.products])
        self._times = np.array([p.times / tied.rows for p in tied.products])
        self._rest, self._factors = _factors(module, axes, len(axes))
        whole = [0] * len(layers)
        self.dense = self.after(whole)

    def after(self, counts: Sequence[int]) -> Mapping[str, float]:
        """By resource, once so many channels of each layer have gone."""
        lengths = self._lengths - self._members @ np.array(counts, float)
        rows, columns = lengths[self._rows], lengths[self._columns]
        flops = (self._times * rows * (2.0 * columns + self._bias)).sum()
        held = self._rest * lengths[self._factors].prod(1)
        return {"flops": float(flops), "bytes": float(held.sum())}


def _axes(tied: Tied) -> list[Axis]:
    found = {axis: None for layer in tied.layers for axis in layer.members}
    return list(found)


def _factors(
    module: nn.Module, axes: Mapping[Axis, int], one: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """By parameter, the bytes of what never changes, and which lengths to multiply them by."""
    rest, factors = [], []
    for name, parameter in module.named_parameters():
        places = [axes.get((name, d), one) for d in range(parameter.ndim)]
        fixed = [n for n, place in zip(parameter.shape, places, strict=True) if place == one]
        rest.append(float(np.prod(fixed, initial=parameter.element_size())))
        factors.append([place for place in places if place != one])
    most = max((len(places) for places in factors), default=0)
    padded = [places + [one] * (most - len(places)) for places in factors]
    return np.array(rest), np.array(padded, int).reshape(len(padded), most)


def amounts(budget: Budget, dense: Mapping[str, float]) -> tuple[Amount, ...]:
    """One for each resource that the budget names.

    Raises:
        ConfigError: it names what nothing here tells.
    """
    for key in ("p50_us", "fields"):
        if getattr(budget, key) is not None:
            raise ConfigError(f"budget.{key}: nobody can tell here; give flops, bytes, or both")
    asked = {"flops": budget.flops, "bytes": budget.bytes}
    empty = [key for key, limit in asked.items() if limit is not None and not dense[key]]
    if empty:
        raise ConfigError(f"budget.{empty[0]}: the module takes none as it is")
    return tuple(
        Amount(
            key, key, share_of(limit, dense[key]) if isinstance(limit, str) else limit, dense[key]
        )
        for key, limit in asked.items()
        if limit is not None
    )


# --- the problem ----------------------------------------------------------------------------------


class ModuleProblem(BudgetProblem):
    """A module, its channels and budgets.

    Args:
        module: what is slimmed, in place.
        accounts: of the same layers.
        groups: what may go.
        bounds: what to stay under.
    """

    WHERE: ClassVar[str] = "budget"
    WHOLE: ClassVar[str] = "dense module"
    groups: tuple[ChannelGroups, ...]

    def __init__(
        self,
        module: nn.Module,
        accounts: Accounts,
        groups: Sequence[ChannelGroups],
        bounds: Sequence[Amount],
    ) -> None:
        super().__init__(groups, bounds)
        self._weights = dict(module.named_parameters())
        self._accounts = accounts
        self._where = next(module.parameters()).device

    def order(
        self,
        s: Sequence[int],
        prices: Vector | None = None,
        worth: Sequence[Tensor] | None = None,
    ) -> Order:
        """Channels by energy, the least first; those that are alike save alike, at any price."""
        del s, prices
        orders, found = [], []
        for place, groups in enumerate(self.groups):
            worths = energies(groups, self._weights) if worth is None else worth[place]
            order = bottom(worths, groups.count)
            orders.append(order)
            found.append(worths[order])
        return Order(tuple(orders), tuple(found))

    def ratio(self, counts: Sequence[int], order: Order) -> Vector:
        """R (R,): what is left of each resource if so many of each layer go."""
        del order
        after = self._accounts.after(counts)
        return np.array([after[bound.key] / bound.dense for bound in self.bounds])

    def shrink(self, layer: int, chosen: Tensor, price: float, lr: float) -> None:
        """The proximal step on the chosen channels of a layer, in place."""
        groups = self.groups[layer].layer
        if not len(chosen) or not price:
            return
        for axis in groups.shrunk:
            name, dimension = axis
            weight = self._weights[name].data
            places = groups.members[axis][chosen.cpu()].flatten().to(weight.device)
            shrunk = prox(weight.index_select(dimension, places), price, lr)
            weight.index_copy_(dimension, places, shrunk)

    def chosen(self, counts: Sequence[int], order: Order) -> dict[str, Tensor]:
        """The channels that go, by the layer's name."""
        triples = zip(self.groups, counts, order.groups, strict=True)
        return {g.name: places[:count].sort().values.cpu() for g, count, places in triples}


def energies(groups: ChannelGroups, weights: Mapping[str, Tensor]) -> Tensor:
    """Squared norms (G,) of what a mask zeroes, in the groups' metric."""
    found = torch.zeros_like(groups.metric)
    for axis in groups.layer.shrunk:
        squares = _by_position(weights[axis[0]].detach().square(), axis[1])
        found += squares[groups.layer.members[axis].to(squares.device)].sum(1).to(found)
    return found * groups.metric


def _by_position(entries: Tensor, dimension: int) -> Tensor:
    return entries.movedim(dimension, 0).flatten(1).sum(1) if entries.ndim > 1 else entries


# --- what a channel is worth ----------------------------------------------------------------------


def measured(
    module: nn.Module,
    tied: Tied,
    groups: Sequence[ChannelGroups],
    losses: Iterable[Tensor],
) -> tuple[tuple[ChannelGroups, ...], list[Tensor]]:
    """The groups with energies in the loss that a removal costs, and these costs, (G,) by layer.

    One factor for all, so that layers stay comparable and a layer's energies sum to about 1.
    """
    weights = dict(module.named_parameters())
    costs = removal_costs(module, tied, groups, losses)
    unit = sum(float(cost.sum()) for cost in costs) / max(1, len(costs))
    plain = [replace(g, metric=torch.ones_like(g.metric)) for g in groups]
    found = tuple(
        replace(g, metric=cost / (unit * energies(g, weights)).clamp(min=TINY))
        for g, cost in zip(plain, costs, strict=True)
    )
    return found, costs


def removal_costs(
    module: nn.Module,
    tied: Tied,
    groups: Sequence[ChannelGroups],
    losses: Iterable[Tensor],
) -> list[Tensor]:
    """What the loss rises by if a channel alone is removed, to second order, up to one factor.

    With a gate α_g on a channel, half the mean square of a batch's ∂loss/∂α_g is in proportion to
    the Gauss-Newton curvature at an optimum. The gate is on the weights that read it,
    Σ W·∂loss/∂W over them; where values are summed, on those that make it, divided by how often
    a product has it as a factor.

    Args:
        module: in which state its losses were taken.
        tied: whose sources the groups' are.
        groups: the layers.
        losses: each of one batch, taken as it is asked for.
    """
    weights = dict(module.named_parameters())
    gates = [_gates(g.layer, tied) for g in groups]
    needed = sorted({name for axes in gates for name, _ in axes})
    frozen = [weights[name] for name in needed if not weights[name].requires_grad]
    squares, seen = [torch.zeros_like(g.metric) for g in groups], 0
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        for loss in losses:
            pulls = _pulls(loss, {name: weights[name] for name in needed})
            for place, (group, axes) in enumerate(zip(groups, gates, strict=True)):
                squares[place] += _pull(group, axes, pulls).square()
            seen += 1
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
    return [total / (2 * max(1, seen)) for total in squares]


def _pulls(loss: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """W·∂loss/∂W by name; none for a weight that the loss does not depend on."""
    slopes: Sequence[Tensor | None] = ()
    if weights:
        slopes = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return {
        name: weight.detach() * (slope.to_dense() if slope.is_sparse else slope)
        for (name, weight), slope in zip(weights.items(), slopes, strict=True)
        if slope is not None
    }


def _gates(layer: TiedLayer, tied: Tied) -> list[Axis]:
    axes = sorted(layer.shrunk)
    return [axis for axis in axes if axis in tied.sources] if layer.degree else axes


def _pull(groups: ChannelGroups, axes: Sequence[Axis], pulls: Mapping[str, Tensor]) -> Tensor:
    found = torch.zeros_like(groups.metric)
    for axis in axes:
        if axis[0] in pulls:
            along = _by_position(pulls[axis[0]], axis[1])
            found += along[groups.layer.members[axis].to(along.device)].sum(1).to(found)
    return found / max(1, groups.layer.degree)
