"""Slim = remove: the smaller ranker whose outputs are those of the masked one.

`mask` is the reference: zeros where `slim` cuts. Both follow the ranker's own plan, which takes a
neuron's row *and* its bias, so a removed neuron leaves nothing behind.
"""

import copy

import torch
from torch import Tensor

from compress.rankers.base import Index, Keep, Ranker, SlimPlan


def slim(ranker: Ranker, keep: Keep) -> Ranker:
    """A new ranker with only what ``keep`` names, its weights moved over."""
    plan = ranker.plan(keep)
    # The generator's draws are overwritten below.
    slimmed = type(ranker)(plan.features, plan.config, torch.Generator())
    source = dict(ranker.named_parameters())
    with torch.no_grad():
        for name, parameter in slimmed.named_parameters():
            rows, columns = plan.slices[name]
            parameter.copy_(_cut(source[name].detach(), rows, columns))
    return slimmed.to(next(ranker.parameters()).device)


def mask(ranker: Ranker, keep: Keep) -> Ranker:
    """A copy of the same size, zero wherever `slim` would cut."""
    masked = copy.deepcopy(ranker)
    plan = ranker.plan(keep)
    with torch.no_grad():
        for name, parameter in masked.named_parameters():
            parameter.mul_(_ones_where_kept(parameter, name, plan))
    return masked


def _cut(tensor: Tensor, rows: Index, columns: Index) -> Tensor:
    if rows is not None:
        tensor = tensor[rows.to(tensor.device)]
    return tensor if columns is None else tensor[:, columns.to(tensor.device)]


def _ones_where_kept(parameter: Tensor, name: str, plan: SlimPlan) -> Tensor:
    kept = torch.zeros_like(parameter)
    if name not in plan.slices:
        return kept
    rows, columns = plan.slices[name]
    if rows is None:
        kept.fill_(1.0)
    else:
        kept[rows.to(kept.device)] = 1.0
    if columns is not None:
        inside = torch.zeros(parameter.shape[1], device=kept.device)
        inside[columns.to(kept.device)] = 1.0
        kept *= inside
    return kept
