"""What a group is worth: how the loss changes with a gate on what reads it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from compress.data.encode import Batch
from compress.distill import click_loss
from compress.methods.groups import TINY, Groups, Norms, energies
from compress.rankers.base import Ranker
from compress.rankers.sides import flat
from compress.train import Columns, TrainingData, shuffled

SENSITIVITY_ROWS: Final = 4096
SENSITIVITY_BATCHES: Final = 8


def measured(
    ranker: Ranker, groups: Sequence[Groups], norms: Norms, dataset: TrainingData, seed: int
) -> tuple[Groups, ...]:
    """The groups with the metric that a norm names."""
    if norms == "weights":
        return tuple(groups)
    if norms == "energy":
        return tuple(
            replace(g, metric=g.metric / energies(g).sum().clamp(min=TINY)) for g in groups
        )
    costs = removal_costs(ranker, groups, dataset, seed)
    # One factor for all: layers stay comparable, and a layer's energies sum to about 1.
    unit = sum(float(cost.sum()) for cost in costs) / len(costs)
    return tuple(
        replace(g, metric=cost / (unit * energies(g)).clamp(min=TINY))
        for g, cost in zip(groups, costs, strict=True)
    )


def removal_costs(
    ranker: Ranker, layers: Sequence[Groups], dataset: TrainingData, seed: int
) -> list[Tensor]:
    """What the loss rises by if a group alone is removed, to second order.

    With a gate α_g on the group's inputs, the Gauss-Newton curvature of the loss in α_g is the
    mean square of a row's ∂loss/∂α_g = Σ_j x_j·∂loss/∂x_j over the group's columns j; removing
    it costs half of that (the first-order term vanishes at a trained optimum). x is what the
    first reader gets: all that later ones read comes of it, so ∂loss/∂x has their share already.
    """
    squares = [torch.zeros(g.count, device=g.metric.device) for g in layers]
    rows = 0
    for pulls, count in gate_slopes(ranker, layers, dataset, seed):
        squares = [total + pull.square().sum(0) for total, pull in zip(squares, pulls, strict=True)]
        rows += count
    return [total / (2 * rows) for total in squares]


def gate_slopes(
    ranker: Ranker, layers: Sequence[Groups], dataset: TrainingData, seed: int
) -> Iterator[tuple[list[Tensor], int]]:
    """Batches of rows' slopes ∂loss/∂α_g in a gate on each group's inputs, (B, G) by layer; and B.

    The loss of a row, not of the batch. The first training rows in the order of ``seed``.
    """
    batches = islice(shuffled(dataset, SENSITIVITY_ROWS, seed, 0), SENSITIVITY_BATCHES)
    for inputs, slopes in input_slopes(ranker, layers, dataset, batches):
        pulls = [x * slope for x, slope in zip(inputs, slopes, strict=True)]
        yield [by_gate(g, pull) for g, pull in zip(layers, pulls, strict=True)], len(pulls[0])


def input_slopes(
    ranker: Ranker, layers: Sequence[Groups], dataset: TrainingData, batches: Iterable[Batch]
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """What each layer's first reader gets of a batch, x (B, columns), and rows' ∂loss/∂x.

    Of positions that nothing reads by themselves: what is made of them.
    """
    ranker.eval()
    where = device_of(ranker)
    columns = Columns(dataset.features, ranker)
    seen: list[list[Tensor]] = [[] for _ in layers]
    hooks = [h for g, own in zip(layers, seen, strict=True) for h in _seeing(ranker, g, own)]
    try:
        for batch in batches:
            label = torch.from_numpy(batch.label).to(where)
            total = click_loss(ranker(columns.inputs(batch, where)), label) * len(batch)
            slopes = iter(torch.autograd.grad(total, [x for own in seen for x in own]))
            pairs = list(zip(layers, seen, strict=True))
            yield (
                [_own(g, own).detach() for g, own in pairs],
                [_own(g, [next(slopes) for _ in own]) for g, own in pairs],
            )
            for own in seen:
                own.clear()
    finally:
        for hook in hooks:
            hook.remove()


def _seeing(ranker: Ranker, groups: Groups, seen: list[Tensor]) -> list[RemovableHandle]:
    if groups.made:
        return [
            side.register_forward_hook(lambda *call: seen.extend(call[-1])) for side in ranker.sides
        ]
    layer = groups.readers[0].layer
    return [layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))]


def _own(groups: Groups, seen: Sequence[Tensor]) -> Tensor:
    if groups.made:
        return flat(seen)
    start = groups.readers[0].start
    return seen[0][:, start : start + groups.columns]


def by_gate(groups: Groups, pull: Tensor) -> Tensor:
    """(B, columns) -> (B, G): a row's slope in a gate on each group."""
    return pull if groups.membership is None else pull @ (groups.membership > 0).float().T


def device_of(ranker: Ranker) -> torch.device:
    """Where a ranker's weights lie."""
    return next(ranker.parameters()).device
