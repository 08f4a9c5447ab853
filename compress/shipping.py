"""A ranker's tables, made what is fine-tuned and then what ships, by a `TableMethod`."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress.progress import Progress
from compress.rankers.base import Ranker
from compress.rankers.sides import Place
from compress.tables import TableMethod
from compress.train import Columns, TrainingData

ROWS = 1 << 14  # of the data, at once


def learned(
    ranker: Ranker, method: TableMethod, dataset: TrainingData, seed: int, progress: Progress
) -> Ranker:
    """The ranker with tables as they are fine-tuned; all else is copied.

    Args:
        ranker: slimmed.
        method: what makes them.
        dataset: whose training rows tell how often a row is looked up.
        seed: of what the method draws.
        progress: told of the steps done.
    """
    generator = torch.Generator().manual_seed(seed)

    def make(table: nn.Module, places: Sequence[Place]) -> nn.Module:
        if not isinstance(table, nn.Embedding):
            raise TypeError(f"expected an embedding, found {type(table).__name__}")
        blocks = [place.rows for place in places]
        return method.learned(
            table, blocks, lambda: look_ups(ranker, places, dataset), generator, progress
        )

    return ranker.with_tables(make)


def shipped(ranker: Ranker, method: TableMethod) -> Ranker:
    """The ranker with its tables as they ship."""

    def make(table: nn.Module, places: Sequence[Place]) -> nn.Module:
        return method.shipped(table, [place.rows for place in places])

    return ranker.with_tables(make)


def look_ups(ranker: Ranker, places: Sequence[Place], dataset: TrainingData) -> Tensor:
    """(N,) how often the training rows name each row of the table that these places lie in."""
    counts = torch.zeros(max(place.rows.stop for place in places), dtype=torch.int64)
    columns, cpu = Columns(dataset.features, ranker), torch.device("cpu")
    for batch in dataset.batches("train", ROWS):
        inputs = columns.inputs(batch, cpu)
        for place in places:
            feature = place.feature
            ids = inputs.request_ids if feature.request_side else inputs.candidate_ids
            own = ids[:, feature.start : feature.start + feature.length].flatten()
            counts[place.rows.start : place.rows.stop] += torch.bincount(
                own, minlength=len(place.rows)
            )
    return counts
