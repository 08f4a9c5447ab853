"""Handcrafted: a ranker with the same share of neurons everywhere, trained from nothing.

The control for every method that starts from the dense ranker; with ``distill`` it learns from the
dense one all the same.
"""

from dataclasses import replace
from pathlib import Path
from typing import ClassVar, cast

import torch
from torch import Tensor

from compress.budget import Pricing, bounds
from compress.config import DistillConfig, Frozen, TrainConfig
from compress.methods.base import Compressed, compressed
from compress.methods.groups import Part, SlimmingConfig, make_problem
from compress.methods.one_shot import uniform_counts
from compress.parallel import ALONE, World
from compress.progress import Progress
from compress.rankers.base import Ranker
from compress.train import TrainingData, fit


class NarrowConfig(SlimmingConfig):
    """Options.

    Attributes:
        distill: soft targets of the dense ranker while it trains.
    """

    parts: tuple[Part, ...] = ("neurons",)
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
        # No neuron is better than another yet: the last go.
        last_first: list[Tensor] = [
            torch.arange(groups.count, 0, -1, dtype=torch.float32) for groups in problem.groups
        ]
        keep = problem.keep(*uniform_counts(problem, last_first))
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
