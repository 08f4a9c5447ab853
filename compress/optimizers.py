"""One step for all parameters: torch's optimizers for the layers, a row-wise one for each table.

A batch touches a few thousand rows of a table that may have millions. ``RowAdam`` and ``RowSgd``
take the table's sparse gradient, add up the entries of equal rows, and update those rows alone
(as ``torch.optim.SparseAdam``, about twice as fast on CPUs). So a step's cost does not depend on
the table's size; its memory is the table's, three times for Adam, once for SGD.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from compress.config import TrainConfig
from compress.rankers.base import Ranker


class RowOptimizer(Protocol):
    """Updates the rows of one table that its sparse gradient names."""

    def step(self, lr: float) -> None:
        """Apply the gradient."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""


class RowSgd:
    """w_r -= lr·(g_r + l2·w_r) for the rows r in the batch."""

    def __init__(self, table: Tensor, l2: float) -> None:
        self._table, self._l2 = table, l2

    def step(self, lr: float) -> None:
        """Apply the gradient."""
        rows, gradient = _pulled(self._table, self._l2)
        self._table.data.index_add_(0, rows, gradient, alpha=-lr)

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""


class RowAdam:
    """Adam on the rows in the batch; the moments of the others rest. Betas 0.9 and 0.999."""

    BETAS = (0.9, 0.999)
    EPS = 1e-8

    def __init__(self, table: Tensor, l2: float) -> None:
        self._table, self._l2 = table, l2
        rows, width = table.shape
        # A row's two moments lie side by side: one look-up for both.
        self._moments = torch.zeros(rows, 2, width, device=table.device)
        self._steps = 0

    def step(self, lr: float) -> None:
        """Apply the gradient."""
        self._steps += 1
        b1, b2 = self.BETAS
        scale = lr * (1 - b2**self._steps) ** 0.5 / (1 - b1**self._steps)
        rows, gradient = _pulled(self._table, self._l2)
        moments = self._moments.index_select(0, rows)
        first, second = moments.unbind(1)
        first.lerp_(gradient, 1 - b1)
        second.mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
        self._moments.index_copy_(0, rows, moments)
        weights = self._table.data.index_select(0, rows)
        weights.addcdiv_(first, second.sqrt().add_(self.EPS), value=-scale)
        self._table.data.index_copy_(0, rows, weights)

    def state_dict(self) -> dict[str, Any]:
        """Both moments and the number of steps."""
        return {"moments": self._moments, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        self._moments.copy_(state["moments"])
        self._steps = state["steps"]


def coalesce_(table: Tensor) -> None:
    """Make a table's sparse gradient name each row once."""
    if table.grad is not None and not table.grad.is_coalesced():
        rows, sums = row_sums(table)
        table.grad = sparse_gradient(table, rows, sums, coalesced=True)


def sparse_gradient(table: Tensor, rows: Tensor, values: Tensor, *, coalesced: bool) -> Tensor:
    """A gradient of some rows (r,) of a table: values (r, D)."""
    return torch.sparse_coo_tensor(
        rows.unsqueeze(0), values, table.shape, is_coalesced=coalesced, check_invariants=False
    )


def row_sums(table: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows (r,) that a table's sparse gradient names, and their sums (r, D)."""
    if table.grad is None:
        return torch.empty(0, dtype=torch.int64, device=table.device), table.data[:0]
    rows, values = table.grad._indices()[0], table.grad._values()  # noqa: SLF001
    if table.grad.is_coalesced() or not len(rows):
        return rows, values
    # Several times faster than `coalesce`, in the batch's order, and 32 bits sort faster than 64.
    small = rows.int() if len(table) < 1 << 31 else rows
    ordered, places = torch.sort(small, stable=True)
    begins = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=begins[1:])
    starts = begins.nonzero().squeeze(1)
    return ordered[starts].long(), embedding_bag(places, values, starts, mode="sum")


def _pulled(table: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    rows, gradient = row_sums(table)
    return rows, gradient.add(table.data[rows], alpha=l2) if l2 else gradient


class Optimizers:
    """All optimizers, their learning rates falling together.

    Attributes:
        layers: what learns by dense gradients.
        tables: what learns by sparse ones; none at a rate of 0.
    """

    def __init__(self, ranker: Ranker, config: TrainConfig) -> None:
        self._lr = config.lr
        self._row_lr = config.embedding_lr if config.embedding_lr is not None else config.lr
        self.layers = ranker.layers()
        learning = ranker.sparse_tables() if self._row_lr else {}
        self.tables = list(learning.values())
        self._layers: torch.optim.Optimizer
        self._rows: dict[str, RowOptimizer]
        if config.optimizer == "adam":
            self._layers = torch.optim.Adam(
                self.layers, config.lr, weight_decay=config.weight_decay, fused=True
            )
            self._rows = {n: RowAdam(t, config.embedding_l2) for n, t in learning.items()}
        else:
            self._layers = torch.optim.SGD(self.layers, config.lr, weight_decay=config.weight_decay)
            self._rows = {n: RowSgd(t, config.embedding_l2) for n, t in learning.items()}
        self.factor = 1.0

    def zero_grad(self) -> None:
        """Forget the gradients."""
        # By hand: torch's own loop takes ten times as long, which small batches feel.
        for parameter in (*self.layers, *self.tables):
            parameter.grad = None

    def step(self) -> None:
        """Apply the gradients."""
        for group in self._layers.param_groups:
            group["lr"] = self._lr * self.factor
        self._layers.step()
        for rows in self._rows.values():
            rows.step(self._row_lr * self.factor)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "layers": self._layers.state_dict(),
            "rows": {name: rows.state_dict() for name, rows in self._rows.items()},
            "factor": self.factor,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        self._layers.load_state_dict(state["layers"])
        for name, rows in self._rows.items():
            rows.load_state_dict(state["rows"][name])
        self.factor = state["factor"]
