"""Methods that choose at once: groups are scored on the trained ranker, and the least go."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Literal, cast

import numpy as np
from pydantic import Field as Option
from torch import Tensor

from compress.budget import Pricing, bounds
from compress.config import ConfigError, Frozen, TrainConfig
from compress.methods.base import Compressed, compressed
from compress.methods.groups import FIELDS, Groups, Part, Problem, SlimmingConfig, energies
from compress.methods.problem import Order, fit_budget
from compress.methods.removable import make_problem
from compress.parallel import ALONE, World
from compress.progress import Progress
from compress.rankers.base import Ranker
from compress.train import TrainingData, device, reproducible

SHARES: Final = 1000


class OneShotConfig(SlimmingConfig):
    """Options of all methods that choose at once.

    Attributes:
        across: how layers share what goes. ``uniform``: the same share of each, for scores that do
            not compare across layers. ``global``: the least score per saved resource, wherever.
    """

    across: Literal["uniform", "global"] = "uniform"


@dataclass(frozen=True, slots=True)
class Scoring:
    """What a method's scores are made from."""

    problem: Problem
    dataset: TrainingData
    seed: int
    progress: Progress


class OneShot(ABC):
    """A method of this kind: its options and its scores."""

    Config: ClassVar[type[Frozen]] = OneShotConfig

    @abstractmethod
    def worth(self, config: Frozen, scoring: Scoring) -> list[Tensor]:
        """(G_l,) by layer: what each group is worth."""

    def compress(
        self,
        ranker: Ranker,
        dataset: TrainingData,
        config: Frozen,
        *,
        seed: int,
        train: TrainConfig,
        pricing: Pricing | None,
        progress: Progress,
        checkpoint: Path | None,
        world: World = ALONE,
    ) -> Compressed:
        """Remove the groups of least worth until the budget is met.

        Raises:
            ConfigError: no choice of groups meets the budget.
        """
        del train, checkpoint, world  # all processes choose the same
        config, where = cast("OneShotConfig", config), device()
        scored = copy.deepcopy(ranker).to(where)
        bounded = bounds(scored, config.budget, config.flops_of, pricing)
        with reproducible(seed, where):
            problem = make_problem(scored, config, bounded, dataset, seed=seed)
            worth = self.worth(config, Scoring(problem, dataset, seed, progress))
        counts, order = chosen(problem, worth, config.across)
        return compressed(ranker, scored, problem.keep(counts, order), bounded)


class FieldSelectionConfig(OneShotConfig):
    """Options of methods that score fields: neurons go by magnitude, if they are asked for."""

    parts: tuple[Part, ...] = Option(default=(FIELDS,), min_length=1)


class FieldSelection(OneShot):
    """A method that scores fields alone."""

    Config: ClassVar[type[Frozen]] = FieldSelectionConfig

    @abstractmethod
    def field_worth(self, config: Frozen, scoring: Scoring, fields: Groups) -> Tensor:
        """(F,) what each field is worth."""

    def worth(self, config: Frozen, scoring: Scoring) -> list[Tensor]:
        """The fields' scores, and magnitudes of all else.

        Raises:
            ConfigError: no field may go.
        """
        fields_of(scoring.problem)
        return [
            self.field_worth(config, scoring, groups)
            if groups.name == FIELDS
            else magnitudes(groups)
            for groups in scoring.problem.groups
        ]


def fields_of(problem: Problem) -> Groups:
    """The layer of the fields.

    Raises:
        ConfigError: no field may go.
    """
    found = next((groups for groups in problem.groups if groups.name == FIELDS), None)
    if found is None:
        raise ConfigError(
            "method.parts: this method selects fields, and none may go: name 'fields' among the "
            "parts, or let numeric ones go too (protect_numeric = false)"
        )
    return found


def magnitudes(groups: Groups) -> Tensor:
    """Mean squared weight (G,) of what reads each group."""
    weights = groups.by_group(groups.metric.new_ones(groups.columns))
    return energies(groups) / weights


def chosen(
    problem: Problem, worth: Sequence[Tensor], across: Literal["uniform", "global"]
) -> tuple[list[int], Order]:
    """How many groups of each layer go, and in which order.

    Raises:
        ConfigError: the budget cannot be met.
    """
    if across == "uniform":
        return uniform_counts(problem, worth)
    nothing = [0] * len(problem.groups)
    order = problem.order(nothing, worth=worth)
    counts = fit_budget(problem, nothing, order)
    order = problem.order(counts, worth=worth)  # positions nest in the fields that stay
    return fit_budget(problem, counts, order), order


def uniform_counts(problem: Problem, worth: Sequence[Tensor]) -> tuple[list[int], Order]:
    """The least share of each layer's groups whose removal meets the budget.

    Raises:
        ConfigError: none does.
    """
    for share in np.arange(SHARES + 1) / SHARES:
        counts = [round(share * g.removable / g.unit) * g.unit for g in problem.groups]
        order = problem.order(counts, worth=worth)
        if (problem.ratio(counts, order) <= problem.limits).all():
            return counts, order
    raise ConfigError("method.budget: cannot be met by taking the same share of every layer")
