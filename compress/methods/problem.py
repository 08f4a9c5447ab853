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
from typing import ClassVar, Protocol

import numpy as np
from torch import Tensor

from compress.config import ConfigError
from compress.primal_dual import Matrix, Vector, removed


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

    def check_feasible(self) -> None:
        """Refuse a budget that no choice of groups can meet.

        Raises:
            ConfigError: the text says the smallest that can be, for each resource.
        """
        most = [groups.removable for groups in self.groups]
        smallest = self.ratio(most, self.order(most))
        faults = [
            f"{self.WHERE}.{bound.key}: {bound.limit:.4g} of the {self.WHOLE}'s {bound.name} "
            f"({bound.limit * bound.dense:,.0f} of {bound.dense:,.0f}) cannot be met by removing "
            f"{', '.join(g.name for g in self.groups)}; the smallest that can be is {share:.4g} "
            f"({math.ceil(share * bound.dense):,})"
            for bound, share in zip(self.bounds, smallest, strict=True)
            if share > bound.limit
        ]
        if faults:
            raise ConfigError("\n".join(faults))


def moved(counts: Sequence[int], layer: int, step: int) -> list[int]:
    """The counts with one changed."""
    return [*counts[:layer], counts[layer] + step, *counts[layer + 1 :]]


def fit_budget(problem: BudgetProblem, counts: Sequence[int], order: Order) -> list[int]:
    """Counts within all bounds, as close to them as whole groups allow.

    Over one, groups go while they must; under all, groups return while they may: the one that costs
    least, or brings most, energy per share of the resources in question. What saves nothing, as the
    neurons of a bottom MLP whose field has gone, stays as it is.

    Raises:
        ConfigError: a bound cannot be met.
    """
    counts = list(counts)

    def moves(sign: int) -> Iterator[tuple[float, list[int]]]:
        now = problem.ratio(counts, order)
        weighed = now > problem.limits if sign > 0 else np.ones(len(now), bool)
        for layer, g in enumerate(problem.groups):
            low, high = sorted((counts[layer], counts[layer] + sign * g.unit))
            energy = float(order.energies[layer][low:high].sum())
            if low < 0 or high > g.removable or not math.isfinite(energy):
                continue
            trial = moved(counts, layer, sign * g.unit)
            after = problem.ratio(trial, order)
            saved = float(np.abs(now - after)[weighed].sum())
            if saved and (sign > 0 or (after <= problem.limits).all()):
                yield energy / saved, trial

    while (problem.ratio(counts, order) > problem.limits).any():
        candidates = list(moves(1))
        if not candidates:
            problem.check_feasible()
            raise ConfigError(
                f"{problem.WHERE}: cannot be met with the groups in this order; raise it a little"
            )
        counts = min(candidates)[1]
    while back := list(moves(-1)):
        counts = max(back)[1]
    return counts
