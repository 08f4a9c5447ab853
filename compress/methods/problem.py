"""A minimax problem of groups under budgets, whatever the groups are made of.

| paper (UMEC §1.2) | here | is |
|---|---|---|
| s_l, ⌈s_l⌉ | ``s[l]``, `BudgetProblem.counts` | how many groups of layer l go |
| R_r(s) | `BudgetProblem.ratio` | share of resource r that is left |
| ∂R_r/∂s | `BudgetProblem.slope` | what the next group's going changes |
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from compress.config import ConfigError
from compress.primal_dual import Matrix, Vector, bottom_s_norm, removed


class Layer(Protocol):
    """A layer of groups, as the arithmetic sees it."""

    @property
    def name(self) -> str:
        """What the record calls it."""

    @property
    def count(self) -> int:
        """G."""

    @property
    def unit(self) -> int:
        """Groups go in multiples of it."""

    @property
    def removable(self) -> int:
        """How many may go."""


class Resource(Protocol):
    """What has a budget."""

    @property
    def name(self) -> str:
        """As errors and cards call it."""

    @property
    def key(self) -> str:
        """Of the budget."""

    @property
    def limit(self) -> float:
        """The share of the dense amount to stay under."""

    @property
    def dense(self) -> float:
        """The amount before anything goes, in its unit."""


@dataclass(frozen=True, slots=True)
class Order:
    """In which order groups go, by layer, and their energies in that order.

    Attributes:
        groups: (G_l,) positions.
        energies: (G_l,) infinite for what must stay.
    """

    groups: tuple[Tensor, ...]
    energies: tuple[Tensor, ...]


class BudgetProblem(ABC):
    """Layers of groups, and resources that go with them.

    Attributes:
        WHERE: how errors call the budget.
        WHOLE: and what it is a share of.
    """

    WHERE: ClassVar[str] = "method.budget"
    WHOLE: ClassVar[str] = "dense ranker"

    def __init__(self, groups: Sequence[Layer], bounds: Sequence[Resource]) -> None:
        self.groups, self.bounds = tuple(groups), tuple(bounds)
        self.limits = np.array([bound.limit for bound in bounds])
        self.upper = np.array([float(g.removable) for g in self.groups])

    @abstractmethod
    def order(
        self,
        s: Sequence[int],
        prices: Vector | None = None,
        worth: Sequence[Tensor] | None = None,
    ) -> Order:
        """Groups by what they are worth per price of what they save, the least first.

        Args:
            s: (L,) how many of each layer's are about to go.
            prices: (R,) of the resources; None: all alike.
            worth: (G_l,) by layer; None: their energies.
        """

    @abstractmethod
    def ratio(self, counts: Sequence[int], order: Order) -> Vector:
        """R (R,): what is left of each resource if the first ``counts`` of each layer go."""

    @abstractmethod
    def shrink(self, layer: int, chosen: Tensor, price: float, lr: float) -> None:
        """The proximal step on the chosen groups of a layer, in place."""

    def counts(self, s: Vector) -> list[int]:
        """⌈s⌉."""
        pairs = zip(s, self.groups, strict=True)
        return [min(removed(float(v), g.unit), g.removable) for v, g in pairs]

    def slope(self, counts: Sequence[int], order: Order) -> Matrix:
        """∂R/∂s (R, L), ceil straight through: what the next unit of groups to go changes."""
        now = self.ratio(counts, order)
        columns = []
        for layer, groups in enumerate(self.groups):
            step = groups.unit if counts[layer] + groups.unit <= groups.removable else -groups.unit
            if counts[layer] + step < 0:
                columns.append(np.zeros(len(now)))
                continue
            columns.append((self.ratio(moved(counts, layer, step), order) - now) / step)
        return np.stack(columns, 1)

    def smallest(self) -> Vector:
        """The least that each resource can be brought to, (R,)."""
        most = [groups.removable for groups in self.groups]
        return self.ratio(most, self.order(most))

    def check_feasible(self, where: str | None = None) -> None:
        """Refuse a budget that no choice of groups can meet.

        Args:
            where: how errors call the budget, if not `WHERE`.

        Raises:
            ConfigError: the text says the smallest that can be, for each resource.
        """
        where = where or self.WHERE
        faults = [
            f"{where}.{bound.key}: {bound.limit:.4g} of the {self.WHOLE}'s {bound.name} "
            f"({bound.limit * bound.dense:,.0f} of {bound.dense:,.0f}) cannot be met by removing "
            f"{', '.join(g.name for g in self.groups)}; the smallest that can be: "
            f"{where}.{bound.key} = {as_asked(bound, share)}"
            for bound, share in zip(self.bounds, self.smallest(), strict=True)
            if share > bound.limit
        ]
        if faults:
            raise ConfigError("\n".join(faults))


def as_asked(bound: Resource, share: float) -> str:
    """A share of a resource as a config may ask for it, and be met: in TOML."""
    if bound.key == "bytes":
        return f'"{math.ceil(share * bound.dense)}B"'
    return f"{rounded_up(share * bound.dense if bound.key == 'p50_us' else share):.4g}"


def moved(counts: Sequence[int], layer: int, step: int) -> list[int]:
    """The counts with one changed."""
    return [*counts[:layer], counts[layer] + step, *counts[layer + 1 :]]


def rounded_up(share: float) -> float:
    """To four digits, so that asking for what is told can be met.

    >>> rounded_up(0.012053), rounded_up(0.5), rounded_up(0.0)
    (0.01206, 0.5, 0.0)
    """
    if share <= 0.0:
        return 0.0
    digits = 3 - math.floor(math.log10(share))
    return float(math.ceil(round(share * 10**digits, 6)) / 10**digits)


class Change(NamedTuple):
    """Counts with one layer's changed, what is left of each resource (R,), and by how much less."""

    counts: list[int]
    ratio: Vector
    saved: float


@dataclass(frozen=True, slots=True)
class Moves:
    """How counts may change while groups go, and return, in an order."""

    problem: BudgetProblem
    order: Order

    def priced(
        self, counts: Sequence[int], sign: int, of: NDArray[np.bool_]
    ) -> Iterator[tuple[float, Change]]:
        """Of each layer the least change that matters, with its energy per what it saves.

        Args:
            counts: as they are.
            sign: 1: groups go; -1: they return.
            of: (R,) the resources in question.
        """
        for layer in range(len(counts)):
            if (change := self._least(counts, layer, sign, of)) is not None:
                low, high = sorted((counts[layer], change.counts[layer]))
                energies = self.order.energies[layer][low:high]
                yield bottom_s_norm(energies, len(energies)) / change.saved, change

    def _least(
        self, counts: Sequence[int], layer: int, sign: int, of: NDArray[np.bool_]
    ) -> Change | None:
        groups, now = self.problem.groups[layer], self.problem.ratio(counts, self.order)
        most = counts[layer]
        if sign > 0:  # what must stay comes last in the order
            finite = int(self.order.energies[layer].isfinite().sum())
            most = min(groups.removable, finite) - counts[layer]

        def changed(step: int) -> Change:
            trial = moved(counts, layer, sign * step)
            ratio = self.problem.ratio(trial, self.order)
            return Change(trial, ratio, float(np.abs(now - ratio)[of].sum()))

        steps = range(groups.unit, most + 1, groups.unit)
        for step in steps:
            if (change := changed(step)).saved:
                return change
            if step == steps[0] and not changed(steps[-1]).saved:
                return None
        return None


def fit_budget(problem: BudgetProblem, counts: Sequence[int], order: Order) -> list[int]:
    """Counts within all bounds, as close to them as whole groups allow.

    Over one, groups go while they must; under all, groups return while they may: the one that costs
    least, or brings most, energy per share of the resources in question. What saves nothing, as a
    block of a field that has gone, goes along with the next of its layer that does; where none
    does, as in a bottom MLP whose field has gone, the layer stays as it is.

    Raises:
        ConfigError: a bound cannot be met.
    """
    counts, moves = list(counts), Moves(problem, order)
    while (over := problem.ratio(counts, order) > problem.limits).any():
        gone = list(moves.priced(counts, 1, over))
        if not gone:
            problem.check_feasible()
            raise ConfigError(
                f"{problem.WHERE}: cannot be met with the groups in this order; raise it a little"
            )
        counts = min(gone, key=_price)[1].counts
    every = np.ones(len(problem.limits), bool)
    while back := [
        each for each in moves.priced(counts, -1, every) if (each[1].ratio <= problem.limits).all()
    ]:
        counts = max(back, key=_price)[1].counts
    return counts


def _price(priced: tuple[float, Change]) -> tuple[float, list[int]]:
    # Of equal prices the same one always.
    return priced[0], priced[1].counts
