"""Slim = remove: the smaller ranker whose outputs are those of the masked one.

`mask` is the reference: zeros where `slim` cuts. Both follow the ranker's own plan, which takes a
neuron's row *and* its bias, so a removed neuron leaves nothing behind.
"""

import copy

import torch
from torch import Tensor

from compress.rankers.base import Ranker
from compress.rankers.structure import Cut, Keep


def slim(ranker: Ranker, keep: Keep) -> Ranker:
    """A new ranker with only what ``keep`` names, its weights moved over."""
    plan = ranker.plan(keep)
    # The generator's draws are overwritten below.
    slimmed = type(ranker)(plan.features, plan.config, torch.Generator())
    source = dict(ranker.named_parameters())
    with torch.no_grad():
        for name, parameter in slimmed.named_parameters():
            cuts = [_cut(source[cut.source].detach(), cut) for cut in plan.slices[name]]
            parameter.copy_(cuts[0] if len(cuts) == 1 else torch.cat(cuts))
    return slimmed.to(next(ranker.parameters()).device)


def mask(ranker: Ranker, keep: Keep) -> Ranker:
    """A copy of the same size, zero wherever `slim` would cut."""
    masked = copy.deepcopy(ranker)
    cuts = [cut for cuts in ranker.plan(keep).slices.values() for cut in cuts]
    with torch.no_grad():
        for name, parameter in masked.named_parameters():
            kept = torch.zeros_like(parameter)
            for cut in cuts:
                if cut.source == name:
                    kept += _ones_where_kept(parameter, cut)
            parameter.mul_(kept)
    return masked


def _cut(tensor: Tensor, cut: Cut) -> Tensor:
    if cut.rows is not None:
        tensor = tensor[cut.rows.to(tensor.device)]
    return tensor if cut.columns is None else tensor[:, cut.columns.to(tensor.device)]


def _ones_where_kept(parameter: Tensor, cut: Cut) -> Tensor:
    kept = torch.zeros_like(parameter)
    kept[slice(None) if cut.rows is None else cut.rows.to(kept.device)] = 1.0
    if cut.columns is not None:
        inside = torch.zeros(parameter.shape[1], device=kept.device)
        inside[cut.columns.to(kept.device)] = 1.0
        kept *= inside
    return kept
