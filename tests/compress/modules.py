"""Torch modules that none of the project's rankers resembles, and clicks for them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, gelu

Batch = tuple[Tensor, ...]  # history (B, T), country (B,), two useless ids (B,), item (B,), label


class TwoTowers(nn.Module):
    """Towers that share a table, pool a list of ids, gate, add, normalise, and meet in a product.

    Args:
        items: rows of the shared table; a third of them are alike, by their number modulo 3.
        useless: rows of each of two tables that say nothing of the label.
    """

    def __init__(self, items: int = 30, useless: int = 60) -> None:
        super().__init__()
        self.item = nn.Embedding(items, 8)
        self.country = nn.Embedding(5, 4)
        self.device = nn.Embedding(useless, 6)
        self.weekday = nn.Embedding(useless, 6)
        self.user = nn.Sequential(nn.Linear(24, 32), nn.BatchNorm1d(32), nn.ReLU())
        self.wide = nn.Linear(32, 16)
        self.grow, self.back = nn.Linear(16, 24), nn.Linear(24, 16)
        self.norm = nn.LayerNorm(16)
        self.gate, self.value = nn.Linear(8, 20), nn.Linear(8, 20)
        self.out = nn.Linear(20, 16)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.dropout = nn.Dropout(0.1)

    def forward(
        self, history: Tensor, country: Tensor, device: Tensor, weekday: Tensor, item: Tensor
    ) -> Tensor:
        """Logits, (B,)."""
        pooled = self.item(history).mean(1)
        fields = [pooled, self.country(country), self.device(device), self.weekday(weekday)]
        user = self.wide(self.user(torch.cat(fields, dim=-1)))
        user = self.norm(user + self.back(self.dropout(gelu(self.grow(user)))))
        mine = self.item(item)
        mine = self.out(torch.sigmoid(self.gate(mine)) * self.value(mine))
        return (user * mine).sum(-1) * self.scale


def clicks(rows: int, seed: int, batch_size: int = 128, useless: int = 60) -> list[Batch]:
    """Clicks on items like most of the history's; the country helps."""
    draw = torch.Generator().manual_seed(seed)

    def ids(most: int, *shape: int) -> Tensor:
        return torch.randint(0, most, (rows, *shape), generator=draw)

    history, country, item = ids(30, 4), ids(5), ids(30)
    alike = (history % 3 == (item % 3)[:, None]).sum(1)
    label = (alike + (country == 2) >= 2).float()
    columns = (history, country, ids(useless), ids(useless), item, label)
    return list(zip(*(column.split(batch_size) for column in columns), strict=True))


def click_loss(module: nn.Module, batch: Batch) -> Tensor:
    """Mean binary cross-entropy."""
    *inputs, label = batch
    return binary_cross_entropy_with_logits(module(*inputs), label)


def trained(module: nn.Module, batches: Sequence[Batch], epochs: int, lr: float = 5e-3) -> None:
    """Fit in place, by Adam."""
    optimizer = torch.optim.Adam(module.parameters(), lr)
    module.train()
    for _ in range(epochs):
        for batch in batches:
            optimizer.zero_grad()
            click_loss(module, batch).backward()
            optimizer.step()
    module.eval()


def mean_loss(module: nn.Module, batches: Sequence[Batch]) -> float:
    """In eval mode."""
    module.eval()
    with torch.no_grad():
        return sum(float(click_loss(module, batch)) for batch in batches) / len(batches)
