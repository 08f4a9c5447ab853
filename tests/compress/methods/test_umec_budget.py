"""UMEC's budget is met with numeric fields too; what a removal costs does not depend on readers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.budget import bounds
from compress.config import ConfigError
from compress.distill import click_loss
from compress.methods.groups import Problem, SlimmingConfig
from compress.methods.problem import fit_budget
from compress.methods.removable import make_problem
from compress.methods.slopes import SENSITIVITY_BATCHES, SENSITIVITY_ROWS, removal_costs
from compress.rankers.base import Ranker
from compress.slim import slim
from compress.train import Columns, TrainingData, shuffled

Build = Callable[..., Ranker]
Clicks = Callable[..., TrainingData]


def problem_of(ranker: Ranker, rows: TrainingData, **options: Any) -> Problem:
    """The problem of a ranker under some options."""
    config = SlimmingConfig(**options)
    bounded = bounds(ranker, config.budget, config.flops_of, None)
    return make_problem(ranker, config, bounded, rows, seed=1)


@contextmanager
def gated(ranker: Ranker, gates: Tensor) -> Iterator[None]:
    """Multiplies each field's vector of each row by a gate (B, F)."""
    request, candidate = ranker.request.fields, ranker.candidate.fields
    sides = gates.split([len(request), len(candidate)], 1)
    hooks = [
        side.register_forward_hook(
            lambda _, __, runs, gate=gate: [
                run * part.unsqueeze(2)
                for run, part in zip(runs, gate.split([r.shape[1] for r in runs], 1), strict=True)
            ]
        )
        for side, gate in zip((ranker.request, ranker.candidate), sides, strict=True)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def costs_by_gates(ranker: Ranker, dataset: TrainingData, seed: int) -> Tensor:
    """Half the mean square of a row's slope in a gate on each field's vector (F,)."""
    columns, total, rows = Columns(dataset.features, ranker), 0.0, 0
    for batch in islice(shuffled(dataset, SENSITIVITY_ROWS, seed, 0), SENSITIVITY_BATCHES):
        gates = torch.ones(len(batch), len(ranker.fields), requires_grad=True)
        with gated(ranker, gates):
            logits = ranker(columns.inputs(batch, torch.device("cpu")))
        loss = click_loss(logits, torch.from_numpy(batch.label)) * len(batch)
        total += torch.autograd.grad(loss, gates)[0].square().sum(0)
        rows += len(batch)
    return total / (2 * rows)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dlrm", {"interaction": "cat"}),
        ("dlrm", {"interaction": "dot"}),
        ("dcnv2", {"structure": "parallel"}),
        ("dcnv2", {"structure": "stacked"}),
        ("dcnv2", {"structure": "parallel", "rank": 3, "crosses": 3}),
    ],
)
def test_a_removal_costs_what_a_gate_on_the_field_says(
    build: Build, clicks: Clicks, name: str, options: dict[str, Any]
) -> None:
    """However many layers read a field, its pull on the loss counts once."""
    rows = clicks(500)
    ranker = build(name, options, rows.features)

    fields = problem_of(ranker, rows, budget={"flops": 0.5}, parts=("fields",)).groups

    found = removal_costs(ranker, fields, rows, seed=1)

    torch.testing.assert_close(found[0], costs_by_gates(ranker, rows, seed=1), rtol=1e-4, atol=0)


def scale_numeric(ranker: Ranker, factor: float) -> None:
    """Multiplies what reads the numeric fields."""
    prunable = ranker.prunable()
    numeric = torch.tensor([field.numeric for field in prunable.fields])
    columns = (prunable.membership[numeric] > 0).any(0)
    with torch.no_grad():
        for reader in prunable.readers:
            reader.layer.weight[:, columns] *= factor


@pytest.mark.parametrize("flops_of", ["mlp", "all"])
def test_the_neurons_of_a_dropped_bottom_are_left_alone(
    build: Build, clicks: Clicks, flops_of: Any
) -> None:
    """They save nothing, so they neither go nor return; the budget is met by the others."""
    ranker = build("dlrm", {})
    scale_numeric(ranker, 1e-3)
    problem = problem_of(
        ranker, clicks(50), budget={"flops": 0.3}, protect_numeric=False, flops_of=flops_of
    )
    start = [2, *(1 for _ in problem.groups[1:])]  # both numeric fields, a neuron a layer
    order = problem.order(start)

    counts = fit_budget(problem, start, order)

    kept = dict(zip((g.name for g in problem.groups), counts, strict=True))
    assert problem.ratio(counts, order) <= 0.3
    assert all(count == 1 for name, count in kept.items() if name.startswith("bottom"))


@pytest.mark.parametrize("interaction", ["cat", "dot"])
@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_a_budget_that_takes_the_bottoms_to_go_is_met(
    build: Build, clicks: Clicks, interaction: str, factor: float
) -> None:
    """Even where the numeric fields matter most: the smallest budget told is one that can be."""
    ranker, rows = build("dlrm", {"interaction": interaction, "bottom": (60,)}), clicks(50)
    scale_numeric(ranker, factor)
    with pytest.raises(ConfigError, match="the smallest that can be:") as caught:
        problem_of(ranker, rows, budget={"flops": 1e-6}, protect_numeric=False)
    smallest = float(str(caught.value).split()[-1])  # as told, and not a digit more
    problem = problem_of(ranker, rows, budget={"flops": smallest}, protect_numeric=False)
    start = [0] * len(problem.groups)
    order = problem.order(start)

    counts = fit_budget(problem, start, order)

    slimmed = slim(ranker, problem.keep(counts, order))
    assert slimmed.request.bottom is None
    assert slimmed.candidate.bottom is None
    assert slimmed.top.first.in_features > 0
    assert sum(slimmed.flops().values()) <= smallest * sum(ranker.flops().values())


def test_an_embedding_is_not_left_alone_with_a_dot(build: Build, clicks: Clicks) -> None:
    """It makes no pair: with the numeric field gone, two embeddings stay."""
    items = [f for f in build("dlrm", {}).features if not f.request_side]
    ranker = build("dlrm", {"interaction": "dot"}, items)
    scale_numeric(ranker, 1e-3)
    problem = problem_of(ranker, clicks(50), budget={"flops": 1.0}, protect_numeric=False)
    most = [g.removable for g in problem.groups]

    keep = problem.keep(most, problem.order(most))

    assert len(keep.fields) == 2
    assert slim(ranker, keep).top.first.in_features == 1
