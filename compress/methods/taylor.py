"""Taylor pruning (Molchanov et al., CVPR 2019): the groups whose removal moves the loss least go.

A group's worth is (Σ grad·weight)² over its weights, on batch gradients, summed over batches: the
squared first-order change of the loss without it. Groups go in rounds, more each time, and the
others train on between; what has gone stays at zero.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, cast

import numpy as np
import torch
from pydantic import Field as Option
from torch import Tensor

from compress.config import Frozen
from compress.methods.groups import Problem, weights
from compress.methods.one_shot import chosen
from compress.methods.problem import Order
from compress.methods.slopes import gate_slopes
from compress.methods.steps import Course, SteppedMethod, Steps, StepsConfig

BATCH_ROWS: Final = 256  # of a gradient


class TaylorConfig(StepsConfig):
    """Options.

    Attributes:
        rounds: in which groups go.
        reach: the part of the steps after which all have gone.
    """

    rounds: int = Option(default=10, gt=0)
    reach: float = Option(default=0.5, gt=0.0, le=1.0)


class Taylor(SteppedMethod):
    """Rounds of scoring and removing, training between."""

    Config: ClassVar[type[Frozen]] = TaylorConfig

    def steps(self, config: Frozen, course: Course) -> Steps:
        """A mask after each gradient."""
        return _Rounds(cast("TaylorConfig", config), course)


class _Rounds:
    """Which groups have gone, and when the next go."""

    learned: Sequence[Tensor] = ()

    def __init__(self, config: TaylorConfig, course: Course) -> None:
        self._course, self._problem, self._rounds = course, course.problem, config.rounds
        self._every = max(1, int(config.reach * course.steps / config.rounds))
        self._step = 0
        self._counts = [0] * len(self._problem.groups)
        self._worth = [torch.ones_like(g.metric) for g in self._problem.groups]

    def after_gradient(self) -> Mapping[str, float]:
        """What has gone stays zero; each round more goes."""
        done, on_time = divmod(self._step, self._every)
        if on_time == 0 and done < self._rounds:
            self._remove((done + 1) / self._rounds)
        self._step += 1
        order = self._order()
        zero(self._problem, self._counts, order)
        ratio = self._problem.ratio(self._counts, order)
        bounds = self._problem.bounds
        return {f"ratio.{b.key}": float(r) for b, r in zip(bounds, ratio, strict=True)}

    def _remove(self, progress: float) -> None:
        # A group that has gone has no slope, and so stays among the least.
        self._worth = taylor_scores(self._course)
        limits, problem = self._problem.limits, self._problem
        problem.limits = np.asarray(limits**progress)  # towards the budget by equal factors
        try:
            self._counts, _ = chosen(problem, self._worth, "global")
        finally:
            problem.limits = limits
        problem.ranker.train()

    def _order(self) -> Order:
        return self._problem.order(self._counts, worth=self._worth)

    def within_budget(self) -> tuple[list[int], Order]:
        """What has gone by now, and all that must."""
        return chosen(self._problem, self._worth, "global")

    def state(self) -> dict[str, Any]:
        """Scores and counts."""
        return {"step": self._step, "counts": self._counts, "worth": self._worth}

    def restore(self, state: dict[str, Any]) -> None:
        """The reverse of `state`."""
        self._step, self._counts = state["step"], state["counts"]
        self._worth = [w.to(now) for w, now in zip(state["worth"], self._worth, strict=True)]


def taylor_scores(course: Course) -> list[Tensor]:
    """(G_l,) by layer: squares of the mean slope of a batch in each group's gate, summed."""
    problem = course.problem
    scores = [torch.zeros_like(groups.metric) for groups in problem.groups]
    for pulls, _ in gate_slopes(problem.ranker, problem.groups, course.dataset, course.seed):
        squares = [_batch_means(pull).square().sum(0) for pull in pulls]
        scores = [score + square for score, square in zip(scores, squares, strict=True)]
    return scores


def _batch_means(pull: Tensor) -> Tensor:
    """(rows, G) -> (batches, G)."""
    return torch.stack([batch.mean(0) for batch in torch.split(pull, BATCH_ROWS)])


def zero(problem: Problem, counts: list[int], order: Order) -> None:
    """Set the weights of the first ``counts`` of each layer's groups to zero."""
    for layer, groups in enumerate(problem.groups):
        kept = torch.ones_like(groups.metric)
        kept[order.groups[layer][: counts[layer]]] = 0.0
        for held in weights(groups):
            held.matrix.mul_(groups.by_column(kept)[held.columns])
