"""An exponential moving average of the weights (Polyak & Juditsky 1992): less noise than the last.

Of a table, a step moves only the rows of its batch. The rows at rest near their average by the same
factor each, d_k at step k, so this is done at once when a row moves again, or at a look: a step
costs as many rows as its batch names, however large the table is.
"""

import math
from typing import Any

import torch
from torch import Tensor

from compress.rankers.base import Ranker


class Average:
    """a ← d·a + (1 - d)·w after each step, with d = min(decay, (1 + k) / (10 + k)) at step k.

    So the first steps, of weights that are far from good, are forgotten sooner.
    """

    def __init__(self, ranker: Ranker, decay: float) -> None:
        self._table = ranker.table.weight
        self._decay, self._steps = decay, 0
        self._moving = {n: p for n, p in ranker.named_parameters() if p is not self._table}
        self._layers = {name: p.detach().clone() for name, p in self._moving.items()}
        self._rows = self._table.detach().clone()
        # log(d_1·d_2·…) up to now, and up to the step that each row was last seen at.
        self._log = 0.0
        self._seen = torch.zeros(len(self._rows), dtype=torch.float64, device=self._rows.device)

    def before_step(self) -> None:
        """Catch up on the rows that the gradient names, while they are what they have been."""
        if self._table.grad is not None:
            self._catch_up(self._table.grad._indices()[0])  # noqa: SLF001

    def after_step(self) -> None:
        """Draw the average towards the new weights."""
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        for name, average in self._layers.items():
            average.lerp_(self._moving[name].detach(), 1 - decay)
        self._log += math.log(decay)
        self._steps += 1

    def weights(self) -> dict[str, Tensor]:
        """The averages by parameter name; the tensors go on changing."""
        self._catch_up(torch.arange(len(self._rows), device=self._rows.device))
        return {**self._layers, "table.weight": self._rows}

    def _catch_up(self, rows: Tensor) -> None:
        now = self._table.detach()[rows]
        left = torch.exp(self._log - self._seen[rows]).to(now.dtype).unsqueeze(1)
        # A row named twice gets the same value twice.
        self._rows[rows] = now + (self._rows[rows] - now) * left
        self._seen[rows] = self._log

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "layers": self._layers,
            "rows": self._rows,
            "seen": self._seen,
            "counts": [self._steps, self._log],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        for name, average in self._layers.items():
            average.copy_(state["layers"][name])
        self._rows.copy_(state["rows"])
        self._seen.copy_(state["seen"])
        self._steps, self._log = state["counts"]
