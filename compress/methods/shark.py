"""SHARK's selection of fields (Zhang et al., CIKM 2023, arXiv 2308.09395): F-Permutation.

What the loss would rise by if a field's vector x were its mean x̄ in every row, to first order::

    mean over rows of  (x̄ - x) · ∂loss/∂x

One backward pass for all fields, where `compress.methods.permutation` scores each by itself. Taken
on validation rows. (Its other half, which quantises rows, is `table` in a run's config.)
"""

import torch
from torch import Tensor

from compress.config import Frozen
from compress.methods.groups import Groups
from compress.methods.one_shot import FieldSelection, Scoring
from compress.methods.slopes import by_gate, input_slopes
from compress.train import PREDICT_ROWS


class Shark(FieldSelection):
    """Fields by the first-order cost of their mean in their place."""

    def field_worth(self, config: Frozen, scoring: Scoring, fields: Groups) -> Tensor:
        """(F,) rises of the mean loss, estimated; below 0 where a field seems to do harm."""
        del config
        ranker, data = scoring.problem.ranker, scoring.dataset
        batches = list(data.batches("validation", PREDICT_ROWS))
        total = torch.zeros(fields.columns, device=fields.metric.device)
        slopes_sum, inputs_sum, rows = total.clone(), total.clone(), 0
        for (x,), (slope,) in input_slopes(ranker, [fields], data, batches):
            total -= (x * slope).sum(0)
            slopes_sum += slope.sum(0)
            inputs_sum += x.sum(0)
            rows += len(x)
        by_column = (total + inputs_sum / rows * slopes_sum) / rows
        return by_gate(fields, by_column.unsqueeze(0)).squeeze(0)
