"""Permutation importance (Breiman 2001; Fisher et al. 2019): a field's values change rows.

A field is worth what the loss on validation rows rises by when its values are dealt to other rows,
all else in place; the mean of some deals.
"""

from dataclasses import replace
from typing import ClassVar, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field as Option
from torch import Tensor

from compress.config import Frozen
from compress.data.encode import Batch
from compress.distill import click_loss
from compress.methods.groups import Groups
from compress.methods.one_shot import FieldSelection, FieldSelectionConfig, Scoring
from compress.rankers.base import Ranker
from compress.rankers.structure import Field, Inputs
from compress.train import PREDICT_ROWS, Columns

FEWEST: Final = 2  # rows that can change places


class PermutationConfig(FieldSelectionConfig):
    """Options.

    Attributes:
        deals: how often each field's values are dealt anew.
    """

    deals: int = Option(default=3, gt=0)


class Permutation(FieldSelection):
    """Fields by what the loss rises by without them."""

    Config: ClassVar[type[Frozen]] = PermutationConfig

    def field_worth(self, config: Frozen, scoring: Scoring, fields: Groups) -> Tensor:
        """(F,) rises of the mean loss."""
        deals = cast("PermutationConfig", config).deals
        ranker, data = scoring.problem.ranker.eval(), scoring.dataset
        where, rng = fields.metric.device, np.random.default_rng(scoring.seed)
        columns, names = Columns(data.features, ranker), ranker.fields
        rises, rows = torch.zeros(len(names), device=where), 0
        for batch in data.batches("validation", PREDICT_ROWS):
            if len(batch) < FEWEST:
                continue
            inputs = columns.inputs(batch, where)
            base = _loss(ranker, inputs, batch)
            for position, field in enumerate(names):
                for _ in range(deals):
                    order = rng.permutation(len(batch))
                    risen = _loss(ranker, dealt(ranker, inputs, field, order), batch) - base
                    rises[position] += risen * len(batch) / deals
                scoring.progress.step("permute", position + 1, len(names))
            rows += len(batch)
        return rises / max(rows, 1)


def _loss(ranker: Ranker, inputs: Inputs, batch: Batch) -> float:
    with torch.no_grad():
        logits = ranker(inputs)
        return float(click_loss(logits, torch.from_numpy(batch.label).to(logits.device)))


def dealt(ranker: Ranker, inputs: Inputs, field: Field, order: NDArray[np.int64]) -> Inputs:
    """The inputs with one field's values in another order of rows."""
    rows = torch.from_numpy(order)
    for feature in ranker.features:
        if feature.name in field.features and feature.tensor is not None:
            tensor = getattr(inputs, feature.tensor).clone()
            columns = slice(feature.start, feature.start + feature.length)
            tensor[:, columns] = tensor[rows.to(tensor.device), columns]
            inputs = replace(inputs, **{feature.tensor: tensor})
    return inputs
