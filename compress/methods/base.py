"""What a compression method is: a trained ranker in, a smaller one out."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from compress.config import Frozen, TrainConfig
from compress.progress import Progress
from compress.rankers.base import Keep, Ranker
from compress.train import TrainingData

History = tuple[Mapping[str, float], ...]


@dataclass(frozen=True, slots=True)
class Compressed:
    """What a method did.

    Attributes:
        keep: what stays, of the dense ranker.
        ranker: the slimmed ranker, weights moved over, not yet fine-tuned.
        requested: budgets by resource.
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
        progress: Progress,
        checkpoint: Path | None,
    ) -> Compressed:
        """Leave ``ranker`` as it is and return the smaller one."""
        ...


def keep_all(ranker: Ranker) -> Keep:
    """Nothing is removed."""
    return Keep(tuple(field.name for field in ranker.fields), {})


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
