"""No compression: the dense ranker goes on as it is, a baseline for the others."""

import copy
from pathlib import Path
from typing import ClassVar

from compress.budget import Pricing
from compress.config import Frozen, TrainConfig
from compress.methods.base import Compressed, keep_all, ratios
from compress.parallel import ALONE, World
from compress.progress import Progress
from compress.rankers.base import Ranker
from compress.train import TrainingData


class NoneConfig(Frozen):
    """No options."""


class NoMethod:
    """Removes nothing."""

    Config: ClassVar[type[Frozen]] = NoneConfig

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
        """A copy."""
        del dataset, config, seed, train, pricing, progress, checkpoint, world
        same = copy.deepcopy(ranker)
        return Compressed(keep_all(ranker), same, {}, ratios(ranker, same), ())
