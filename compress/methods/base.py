"""What a compression method is: a trained ranker in, a smaller one out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from compress.budget import Bound, Pricing
from compress.config import Frozen, TrainConfig
from compress.parallel import ALONE, World
from compress.progress import Progress
from compress.rankers.base import Ranker
from compress.rankers.structure import Keep, Sizes
from compress.slim import slim
from compress.train import TrainingData

History = tuple[Mapping[str, float], ...]


@dataclass(frozen=True, slots=True)
class Compressed:
    """What a method did.

    Attributes:
        keep: what stays, of the dense ranker.
        ranker: the slimmed ranker, weights moved over, not yet fine-tuned.
        requested: budgets by resource, as shares of the dense ranker's.
        achieved: ratios to the dense ranker, counted on ``ranker`` itself.
        history: numbers by step, for plots.
    """

    keep: Keep
    ranker: Ranker
    requested: Mapping[str, float]
    achieved: Mapping[str, float]
    history: History


class Method(Protocol):
    """Compresses a trained ranker. ``Config`` stands beside the code."""

    Config: ClassVar[type[Frozen]]

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
        """Leave ``ranker`` as it is and return the smaller one.

        Args:
            ranker: trained.
            dataset: what it was trained on; its test part stays unseen.
            config: the method's.
            seed: of all that is drawn.
            train: how the ranker was trained; what the method's config does not say is as there.
            pricing: what budgets of bytes and time are counted by; None where there are none.
            progress: told of the steps done.
            checkpoint: where a run that takes long keeps its state, to go on after a kill.
            world: the processes that compress together; all of them come to the same.
        """
        ...


def keep_all(ranker: Ranker) -> Keep:
    """Nothing is removed."""
    return Keep(tuple(field.name for field in ranker.fields), {})


def compressed(
    dense: Ranker, trained: Ranker, keep: Keep, bounds: Sequence[Bound], history: History = ()
) -> Compressed:
    """What comes of keeping only some of a ranker.

    Args:
        dense: as it came.
        trained: of the same sizes, its weights what the method left.
        keep: what stays of it.
        bounds: what was asked for.
        history: numbers by step.
    """
    small = slim(trained, keep).to("cpu").eval()
    sizes = small.sizes()
    whole = {name: sizes.widths.get(name, 0) for name in dense.sizes().widths}
    found = {bound.name: bound.share(Sizes(whole, sizes.hidden)) for bound in bounds}
    asked = {bound.name: bound.limit for bound in bounds}
    return Compressed(keep, small, asked, found | ratios(dense, small), history)


def ratios(dense: Ranker, slim: Ranker) -> dict[str, float]:
    """Achieved ratios, counted on the two rankers as they are."""
    before, after = dense.flops(), slim.flops()
    parts = {
        "top_mlp": dense.TOP,
        "mlp": (*dense.TOP, "bottom_request", "bottom_candidate"),
        "all": tuple(before),
    }
    found = {
        name: sum(after.get(p, 0) for p in counted) / sum(before.get(p, 0) for p in counted)
        for name, counted in parts.items()
    }
    found["fields"] = len(slim.fields) / len(dense.fields)
    found["parameters"] = _parameters(slim) / _parameters(dense)
    return found


def _parameters(ranker: Ranker) -> int:
    return sum(p.numel() for p in ranker.parameters())
