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
        self._decay, self._steps = decay, 0
        tables = ranker.sparse_tables()
        self._moving = {n: p for n, p in ranker.named_parameters() if n not in tables}
        self._layers = {name: p.detach().clone() for name, p in self._moving.items()}
        self._tables = {name: _TableAverage(table) for name, table in tables.items()}
        self._log = 0.0  # log(d_1·d_2·…) up to now

    def before_step(self) -> None:
        """Catch up on the rows that the gradients name, while they are what they have been."""
        for table in self._tables.values():
            table.catch_up_touched(self._log)

    def after_step(self) -> None:
        """Draw the average towards the new weights."""
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        for name, average in self._layers.items():
            average.lerp_(self._moving[name].detach(), 1 - decay)
        self._log += math.log(decay)
        self._steps += 1

    def weights(self) -> dict[str, Tensor]:
        """The averages by parameter name; the tensors go on changing."""
        return {**self._layers, **{n: t.caught_up(self._log) for n, t in self._tables.items()}}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "layers": self._layers,
            "tables": {n: [t.rows, t.seen] for n, t in self._tables.items()},
            "counts": [self._steps, self._log],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        for name, average in self._layers.items():
            average.copy_(state["layers"][name])
        for name, table in self._tables.items():
            for held, saved in zip((table.rows, table.seen), state["tables"][name], strict=True):
                held.copy_(saved)
        self._steps, self._log = state["counts"]


class _TableAverage:
    """The average of a table's rows.

    Attributes:
        rows: the averages, each as of when it was last seen.
        seen: the log of the factors up to then, by row.
    """

    def __init__(self, table: Tensor) -> None:
        self._table = table
        self.rows = table.detach().clone()
        self.seen = torch.zeros(len(table), dtype=torch.float64, device=table.device)

    def catch_up_touched(self, log: float) -> None:
        """Catch up on the rows of the gradient, if there is one."""
        if self._table.grad is not None:
            self._catch_up(self._table.grad._indices()[0], log)  # noqa: SLF001

    def caught_up(self, log: float) -> Tensor:
        """All rows, as of now."""
        self._catch_up(torch.arange(len(self.rows), device=self.rows.device), log)
        return self.rows

    def _catch_up(self, rows: Tensor, log: float) -> None:
        now, average = (t.index_select(0, rows) for t in (self._table.detach(), self.rows))
        left = torch.exp(log - self.seen.index_select(0, rows)).to(now.dtype).unsqueeze(1)
        # A row named twice gets the same value twice.
        self.rows.index_copy_(0, rows, average.sub_(now).mul_(left).add_(now))
        self.seen.index_fill_(0, rows, log)
