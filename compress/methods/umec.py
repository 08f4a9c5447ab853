"""UMEC: Unified Model and Embedding Compression (Shen et al., ICLR 2021), written anew.

Slims fields, the positions of their vectors and neurons of a trained ranker together, under one
budget for each resource::

    min_{W,s}  loss(W)   s.t.  R_r(s) ≤ budget_r,   at least ⌈s_l⌉ groups of layer l are zero

"At least k groups are zero" is "the bottom-k norm is zero", so with a price y_l for each layer and
a price z_r for each resource it becomes::

    min_{W,s} max_{y≥0,z≥0}  loss(W) + Σ_l y_l·‖W_l‖²_{⌈s_l⌉} + Σ_r z_r·(R_r(s) - budget_r)

solved by one step in each of W, s, y and z per batch: their arithmetic, with the symbols that are
not here, is `compress.primal_dual`; the groups and what they cost are `compress.methods.groups`;
here is the run.

| symbol | here | is |
|---|---|---|
| s_l | ``s[l]`` | how many groups of layer l go; real, 0 ≤ s_l ≤ `Groups.removable` |
| η1 | ``prox_lr`` | step of W's proximal half; its gradient half is the optimizer's |
| η2, η3, η4 | ``s_lr``, ``y_lr``, ``z_lr`` | steps of s, y and z |

What differs from the authors' code, and why, is in docs/umec.md.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, Self, cast

import numpy as np
from pydantic import Field as Option
from pydantic import model_validator
from torch import Tensor

from compress.config import Frozen
from compress.methods.groups import Norms
from compress.methods.problem import BudgetProblem, Order, fit_budget
from compress.methods.steps import Course, SteppedMethod, Steps, StepsConfig
from compress.primal_dual import (
    TINY_PRICE,
    Constraint,
    DualVariables,
    Iterate,
    Rates,
    advance,
)

ZEROED: Final = 1e-3  # of its norm, what is left of a group that the proximal steps have zeroed


class UmecRates(Frozen):
    """The rates of s, y, z and of W's proximal half.

    Attributes:
        s_steps: ``paper``: η2 groups at most, in any layer. ``scaled``: η2 of each layer's groups,
            and no less while s may move, so that ``reach`` holds.
        reach: the part of the steps in which s may pass from none to all, unless ``s_lr`` is given.
        prox_lr: None: zeroes what was chosen by `reach` in the steps that are left.
        y_start: 0 as the paper; over 0 the norms steer s from the first step on.
        z_damping: see `damped`; needs y over 0.
    """

    s_steps: Literal["paper", "scaled"] = "scaled"
    prox_lr: float | None = Option(default=None, gt=0.0)
    s_lr: float | None = Option(default=None, gt=0.0)
    reach: float = Option(default=0.5, gt=0.0, le=1.0)
    y_start: float = Option(default=1.0, ge=0.0)
    y_lr: float = Option(default=0.1, gt=0.0)
    z_lr: float = Option(default=2.0, gt=0.0)
    z_damping: bool = True

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.z_damping and self.y_start == 0.0:
            raise ValueError("y_start: expected over 0 with z_damping, or z_damping = false")
        if self.z_damping and self.s_steps == "paper":
            raise ValueError(
                's_steps: "paper" expected with z_damping = false: s hardly moves else'
            )
        if self.y_start == 0.0 and self.prox_lr is None:
            raise ValueError("prox_lr: expected with y_start = 0, as lr in the paper")
        return self


class UmecConfig(UmecRates, StepsConfig):
    """Options of the method.

    Attributes:
        norms: what a group's norm is measured in, see `make_problem`. ``weights``: as the paper.
    """

    norms: Norms = "loss"


class Umec(SteppedMethod):
    """Algorithm 1: a step in W, s, y and z per batch; then the zero groups are cut out."""

    Config: ClassVar[type[Frozen]] = UmecConfig

    def norms(self, config: Frozen) -> Norms:
        """As configured."""
        return cast("UmecConfig", config).norms

    def steps(self, config: Frozen, course: Course) -> Steps:
        """Steps 2 to 6 of an iteration; the first is the gradient's."""
        return Iteration(cast("UmecConfig", config), course.problem, course.steps)


class Iteration:
    """s, y and z, and their steps.

    Args:
        config: the rates.
        problem: over the weights that are slimmed.
        steps: how many there will be.
    """

    learned: Sequence[Tensor] = ()

    def __init__(self, config: UmecRates, problem: BudgetProblem, steps: int) -> None:
        self._problem = problem
        self._rates = Rates(
            s_lr=config.s_lr or 1.0 / (config.reach * steps),
            y_lr=config.y_lr,
            z_lr=config.z_lr,
            full=config.s_steps == "scaled",
            damping=config.z_damping,
        )
        # (1 + 2·η1·y)^-n = ZEROED for the n steps that are left once s has passed.
        left, price = (1 - config.reach) * steps + 1, max(config.y_start, TINY_PRICE)
        self._prox_lr = config.prox_lr or -math.log(ZEROED) / (2 * price * left)
        counted = np.array([float(groups.count) for groups in self._problem.groups])
        self._scale = np.ones(len(counted)) if config.s_steps == "paper" else counted
        self._s = np.zeros(len(counted))
        prices = np.zeros(len(self._problem.bounds))
        self._duals = DualVariables(np.full(len(counted), config.y_start), prices)

    def after_gradient(self) -> Mapping[str, float]:
        """W's proximal half, on the first ⌈s_l⌉ groups of V; then s, y and z."""
        problem, duals = self._problem, self._duals
        counts = problem.counts(self._s)
        order = problem.order(counts, duals.z)
        for layer, count in enumerate(counts):
            chosen = order.groups[layer][:count]
            problem.shrink(layer, chosen, float(duals.y[layer]), self._prox_lr)
        order = problem.order(counts, duals.z)
        now = advance(self._s, duals, order.energies, self._constraint(order), self._rates)
        self._s, self._duals = now.s, now.duals
        return self._numbers(now)

    def _constraint(self, order: Order) -> Constraint:
        """The budgets as functions of s, if groups go in this order."""
        problem = self._problem
        return Constraint(
            budget=problem.limits,
            upper=problem.upper,
            scale=self._scale,
            counts=problem.counts,
            ratio=lambda counts: problem.ratio(counts, order),
            slope=lambda counts: problem.slope(counts, order),
        )

    def _numbers(self, now: Iterate) -> dict[str, float]:
        found: dict[str, float] = {}
        for bound, ratio, z in zip(self._problem.bounds, now.ratio, now.duals.z, strict=True):
            found |= {f"ratio.{bound.key}": float(ratio), f"z.{bound.key}": float(z)}
        layers = zip(self._problem.groups, now.s, now.duals.y, now.violation, strict=True)
        for groups, s, y, norm in layers:
            found |= {f"s.{groups.name}": float(s), f"y.{groups.name}": float(y)}
            found[f"norm.{groups.name}"] = float(norm)
        return found

    def within_budget(self) -> tuple[list[int], Order]:
        """The final counts: those of s, mended to be just within the budget."""
        counts = self._problem.counts(self._s)
        order = self._problem.order(counts, self._duals.z)
        return fit_budget(self._problem, counts, order), order

    def state(self) -> dict[str, Any]:
        """The iterates."""
        return {"s": self._s.tolist(), "y": self._duals.y.tolist(), "z": self._duals.z.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        """The reverse of `state`."""
        self._s = np.array(state["s"])
        self._duals = DualVariables(np.array(state["y"]), np.array(state["z"]))
