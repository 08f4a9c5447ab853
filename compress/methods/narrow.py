"""Handcrafted: a ranker that is narrower by the same share everywhere, trained from nothing.

The control for every method that starts from the dense ranker; with ``distill`` it learns from the
dense one all the same.
"""

from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field as Option
from torch import Tensor

from compress.budget import Pricing, bounds
from compress.config import DistillConfig, Frozen, TrainConfig
from compress.methods.base import Compressed, compressed
from compress.methods.groups import Groups, SlimmingConfig, by_field
from compress.methods.one_shot import uniform_counts
from compress.methods.removable import make_problem
from compress.parallel import ALONE, World
from compress.progress import Progress
from compress.rankers.base import Ranker
from compress.train import TrainingData, fit


class NarrowConfig(SlimmingConfig):
    """Options.

    Attributes:
        parts: no fields: which of them go is no matter of a share.
        distill: soft targets of the dense ranker while it trains.
    """

    parts: tuple[Literal["widths", "neurons"], ...] = Option(default=("neurons",), min_length=1)
    distill: DistillConfig = DistillConfig()


class Narrow:
    """Uniformly narrower layers, fresh weights, the dense ranker's training."""

    Config: ClassVar[type[Frozen]] = NarrowConfig

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
        """Build the narrow ranker and train it.

        Raises:
            ConfigError: no width meets the budget.
        """
        config = cast("NarrowConfig", config)
        bounded = bounds(ranker, config.budget, config.flops_of, pricing)
        problem = make_problem(ranker, config, bounded, dataset, seed=seed)
        # Orders are by worth per saving, and what saves more is to go no sooner here.
        savings = problem.costs(np.ones(len(bounded)))
        worth = [_evenly(g) * saved for g, saved in zip(problem.groups, savings, strict=True)]
        keep = problem.keep(*uniform_counts(problem, worth))
        made = compressed(ranker, ranker, keep, bounded)
        # Drawn for its own widths, of which the size of fresh weights depends.
        fresh = type(ranker)(
            made.ranker.features, made.ranker.config, torch.Generator().manual_seed(seed)
        )
        fit(
            fresh,
            dataset,
            train.model_copy(update={"distill": config.distill}),
            seed,
            checkpoint=checkpoint,
            progress=progress,
            teacher=ranker,
            stage="train the narrow ranker",
            world=world,
        )
        return replace(made, ranker=fresh)


def _evenly(groups: Groups) -> Tensor:
    """What groups are worth (G,) where none is better yet: the last neurons go first.

    Of positions as many of each field: the first, second … block of all fields, in turn.
    """
    if not groups.blocks:
        return torch.arange(groups.count, 0, -1, dtype=torch.float32)
    worth = torch.empty(groups.count)
    for own in by_field(groups.blocks):
        worth[own] = torch.arange(1, len(own) + 1) / len(own)
    return worth
