"""The pure half of UMEC: what its docstrings show, one iteration by hand, a toy that is solved."""

import doctest
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from compress import primal_dual
from compress.primal_dual import (
    Ahead,
    Constraint,
    DualVariables,
    Matrix,
    Rates,
    Vector,
    advance,
    bottom,
    damped,
    prox,
    removed,
)


def test_examples_in_docstrings_hold() -> None:
    """What a docstring shows is what comes out."""
    assert doctest.testmod(primal_dual).failed == 0


def test_an_iteration_by_hand() -> None:
    """Four groups, R = 1 - ⌈s⌉ / 4, all of which may go but one."""
    constraint = Constraint(
        budget=np.array([0.5]),
        upper=np.array([3.0]),
        scale=np.array([1.0]),
        counts=lambda s: [removed(float(s[0]))],
        ratio=lambda counts: np.array([1.0 - counts[0] / 4]),
        slope=lambda _: np.array([[-0.25]]),
    )
    rates = Rates(s_lr=0.5, y_lr=0.1, z_lr=2.0, full=False, damping=False)
    duals = DualVariables(y=np.array([1.0]), z=np.array([8.0]))

    now = advance(np.array([0.0]), duals, [torch.tensor([0.25, 1.0, 4.0, 9.0])], constraint, rates)

    # ∂/∂s = 1·0.25 - 8·0.25, clipped to -1 by the maximum norm; then one group is counted.
    assert now.s.tolist() == [0.5]
    assert now.violation.tolist() == [0.25]
    assert now.ratio.tolist() == [0.75]
    assert now.duals.y.tolist() == pytest.approx([1.0 + 0.1 * 0.25])
    assert now.duals.z.tolist() == pytest.approx([8.0 + 2.0 * 0.25])


def test_each_resource_is_capped_by_its_own_prices() -> None:
    """The one over its budget by its dearest layer, the one within by its cheapest, shared."""
    duals = DualVariables(y=np.array([1.0, 2.0]), z=np.array([1e3, 1e3]))
    ahead = Ahead(
        energy=np.array([0.3, 0.1]),
        after=np.array([0.4, 0.2]),
        slope=np.array([[-0.1, -0.5], [-0.2, -0.1]]),
        may_grow=np.array([True, True]),
    )

    capped = damped(duals, ahead, excess=np.array([0.2, -0.1]))

    assert capped.z == pytest.approx([1.1 * 0.4 / 0.1, 0.3 / 0.2 / 2], rel=1e-6)


class Toy:
    """min ½‖W - A‖² where k of n scalar groups must go, in two layers; all are convex but in k.

    A group of layer l costs ``cost[l]`` of the resource. For given counts the best W is A with the
    least |A| set to zero, so the best counts are found by trying all of them.
    """

    def __init__(self, seed: int, costs: Matrix, budget: Vector) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.goal = [torch.rand(12, generator=generator) + 0.1 for _ in range(2)]
        self.costs, self.budget = costs, budget  # (R, 2), (R,)
        self.whole = 12 * costs.sum(1)

    def ratio(self, counts: Sequence[int]) -> Vector:
        """R (R,) with so many groups gone."""
        return np.asarray(1.0 - self.costs @ np.array(counts) / self.whole)

    def loss(self, counts: Sequence[int]) -> float:
        """At the best W."""
        gone = [goal.sort().values[:k] for goal, k in zip(self.goal, counts, strict=True)]
        return 0.5 * float(sum(part.square().sum() for part in gone))

    def best(self, at_least: Sequence[int] = (0, 0)) -> float:
        """The least loss within the budget, so many groups being gone at least."""
        pairs = [(a, b) for a in range(at_least[0], 12) for b in range(at_least[1], 12)]
        return min(self.loss(p) for p in pairs if (self.ratio(p) <= self.budget).all())

    def solve(self, steps: int = 1500) -> tuple[list[Tensor], list[int], list[DualVariables]]:
        """W, ⌈s⌉ and all prices of a run of the algorithm."""
        weights = [goal.clone() for goal in self.goal]
        s, duals = np.zeros(2), DualVariables(np.ones(2), np.zeros(len(self.budget)))
        trace = []
        for _ in range(steps):
            counts = [removed(float(v)) for v in s]
            for layer, goal in enumerate(self.goal):
                weights[layer] = weights[layer] - 0.05 * (weights[layer] - goal)
                chosen = bottom(weights[layer].square(), counts[layer])
                weights[layer][chosen] = prox(weights[layer][chosen], float(duals.y[layer]), 0.05)
            energies = [w.square().sort().values for w in weights]
            now = advance(s, duals, energies, self._constraint(), self._rates())
            s, duals = now.s, now.duals
            trace.append(duals)
        return weights, [removed(float(v)) for v in s], trace

    def _constraint(self) -> Constraint:
        return Constraint(
            budget=self.budget,
            upper=np.full(2, 11.0),
            scale=np.full(2, 12.0),
            counts=lambda s: [min(11, removed(float(v))) for v in s],
            ratio=self.ratio,
            slope=lambda _: -self.costs / self.whole[:, None],
        )

    def _rates(self) -> Rates:
        return Rates(s_lr=0.002, y_lr=0.1, z_lr=2.0, full=True, damping=True)


ONE = np.array([[1.0, 3.0]])
TWO = np.array([[1.0, 3.0], [2.0, 1.0]])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("costs", "budget"),
    [(ONE, np.array([0.5])), (ONE, np.array([0.2])), (TWO, np.array([0.6, 0.4]))],
)
def test_a_toy_is_solved(seed: int, costs: Matrix, budget: Vector) -> None:
    """It ends a step or two from every budget, on the way to the best, its groups all but zero."""
    toy = Toy(seed, costs, budget)

    weights, counts, trace = toy.solve()

    assert (toy.ratio([k + 2 for k in counts]) <= budget + 1e-9).all()
    assert toy.best(at_least=counts) <= 1.1 * toy.best()
    for w, goal, k in zip(weights, toy.goal, counts, strict=True):
        left = w.square().sort().values[:k].sum()
        assert left <= 0.1 * goal.square().sort().values[:k].sum()
    assert all((duals.y >= 0).all() and (duals.z >= 0).all() for duals in trace)


def test_a_budget_of_everything_removes_nothing() -> None:
    """Where there is nothing to save, no price arises and no group goes."""
    toy = Toy(0, ONE, np.array([1.0]))

    weights, counts, trace = toy.solve(steps=200)

    assert counts == [0, 0]
    assert all(torch.equal(w, goal) for w, goal in zip(weights, toy.goal, strict=True))
    assert math.isclose(trace[-1].z.max(), 0.0)
