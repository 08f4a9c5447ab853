"""What groups are worth, beside the scores of torch-pruning for the same weights and gradients.

Its scores of a neuron are made of the row that makes it and the column that reads it; ours of the
column alone, which is its ``group_reduction = "gate"``: the last member of the group.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor

from compress.budget import bounds
from compress.data.encode import Batch
from compress.distill import click_loss
from compress.methods.group_lasso import shrink
from compress.methods.groups import FIELDS, Groups, Problem, SlimmingConfig, energies
from compress.methods.one_shot import magnitudes
from compress.methods.removable import make_problem
from compress.methods.steps import Course
from compress.methods.taylor import BATCH_ROWS, taylor_scores
from compress.rankers.base import Ranker
from compress.rankers.layers import Mlp
from compress.train import Columns, TrainingData, shuffled

Build = Callable[..., Ranker]
Clicks = Callable[..., TrainingData]

pytestmark = pytest.mark.filterwarnings("ignore")  # its own


@pytest.fixture
def rows(clicks: Clicks) -> TrainingData:
    """Two batches of Taylor's."""
    return clicks(2 * BATCH_ROWS)


@pytest.fixture
def problem(build: Build, rows: TrainingData) -> Problem:
    """Fields and neurons of a ranker whose top MLP is a plain one."""
    ranker = build("dlrm", {"top": (12, 9)}, rows.features)
    config = SlimmingConfig(budget={"flops": 1.0})
    return make_problem(ranker, config, bounds(ranker, config.budget, "all", None), rows, seed=1)


def neurons(problem: Problem) -> Iterator[tuple[int, Groups, Any]]:
    """The top MLP's layers of neurons: place, ours, torch-pruning's group of them all."""
    mlp = top(problem.ranker)
    example = torch.zeros(2, mlp.first.in_features)
    graph = tp.DependencyGraph().build_dependency(mlp, example_inputs=example)
    for place, groups in enumerate(problem.groups):
        mlp_name, _, position = groups.name.rpartition(".")
        if mlp_name == "top":
            every = [*range(groups.count)]
            makes = mlp.layers[int(position)]
            yield place, groups, graph.get_pruning_group(makes, tp.prune_linear_out_channels, every)


def top(ranker: Ranker) -> Mlp:
    """Its top MLP."""
    mlp = ranker.get_submodule("top")
    assert isinstance(mlp, Mlp)
    return mlp


def close(ours: Tensor, theirs: Tensor) -> None:
    """Up to rounding, and so in the same order."""
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-8)
    assert torch.equal(ours.argsort(), theirs.argsort())


def test_magnitudes_are_its_own(problem: Problem) -> None:
    """Mean squares of the columns: its sums, once both are shares of their layer's mean."""
    theirs = tp.importance.GroupMagnitudeImportance(p=2, group_reduction="gate", normalizer="mean")
    found = [*neurons(problem)]

    assert len(found) == 2
    for _, groups, group in found:
        ours = magnitudes(groups)
        close(ours / ours.mean(), theirs(group))


def test_its_whole_group_has_the_row_that_makes_a_neuron_besides(problem: Problem) -> None:
    """So its defaults rank otherwise: they are our energies and the squares of these rows."""
    theirs = tp.importance.GroupMagnitudeImportance(p=2, group_reduction="sum", normalizer=None)
    for _, groups, group in neurons(problem):
        makes = group[0].dep.layer.weight.data

        close(energies(groups) + makes.square().sum(1), theirs(group))


def test_magnitudes_of_fields_are_sums_over_their_columns(problem: Problem) -> None:
    """It knows columns; a field is a run of them."""
    theirs = tp.importance.GroupMagnitudeImportance(p=2, normalizer=None)
    fields = next(groups for groups in problem.groups if groups.name == FIELDS)

    close(energies(fields), fields.by_group(theirs(_columns(problem))))


def _columns(problem: Problem) -> Any:
    first = top(problem.ranker).first
    example = torch.zeros(2, first.in_features)
    graph = tp.DependencyGraph().build_dependency(first, example_inputs=example)
    every = [*range(first.in_features)]
    return graph.get_pruning_group(first, tp.prune_linear_in_channels, every)


def test_the_lasso_zeroes_what_it_norms_least(problem: Problem) -> None:
    """Soft thresholds take the groups whose 2-norm is under the price of their size."""
    theirs = tp.importance.GroupMagnitudeImportance(p=2, group_reduction="gate", normalizer=None)
    for _, groups, group in neurons(problem):
        norms = theirs(group).sqrt()
        size = groups.readers[0].layer.out_features
        price = float(norms.median()) / size**0.5 * 1.001

        left = shrink(groups, price)

        torch.testing.assert_close(left, (norms - price * size**0.5).clamp(min=0.0))
        assert torch.equal(energies(groups) == 0, norms <= price * size**0.5)
        assert 0 < int((left == 0).sum()) < groups.count


# --- by gradients ---------------------------------------------------------------------------------


def batches(rows: TrainingData) -> list[Batch]:
    """Those whose mean gradients Taylor's scores are made of."""
    return [*shuffled(rows, BATCH_ROWS, 1, 0)]


def by_gradients(
    ranker: Ranker, rows: TrainingData, batch: Batch, score: Callable[[], Tensor]
) -> Tensor:
    """A score under the gradients of a batch's mean loss."""
    cpu = torch.device("cpu")
    ranker.zero_grad()
    inputs = Columns(rows.features, ranker).inputs(batch, cpu)
    click_loss(ranker(inputs), torch.from_numpy(batch.label)).backward()
    return score()


def taylor_of(*, of_the_sum: bool) -> Any:
    """Its first-order importance: of a group's change as a whole, or of each weight's by itself."""
    return tp.importance.GroupTaylorImportance(
        group_reduction="gate", normalizer=None, multivariable=of_the_sum
    )


def test_taylor_is_the_square_of_its_own_summed_over_batches(
    problem: Problem, rows: TrainingData
) -> None:
    """A neuron's x·∂loss/∂x is Σ weight·gradient of the column that reads it: |.| there, (.)² here.

    And of many batches: it knows the gradient of one; ours are the sums of theirs.
    """
    ours = taylor_scores(Course(problem, rows, seed=1, steps=1, lr=1e-3))
    score, found = taylor_of(of_the_sum=True), [*neurons(problem)]

    assert len(batches(rows)) == 2
    for place, _, group in found:
        theirs = [
            by_gradients(problem.ranker, rows, batch, lambda group=group: score(group))
            for batch in batches(rows)
        ]
        close(ours[place], torch.stack(theirs).square().sum(0))


def test_taylor_never_exceeds_the_sum_over_single_weights(
    problem: Problem, rows: TrainingData
) -> None:
    """Its default takes |weight·gradient| before the sum, where what cancels counts: a bound."""
    ours = taylor_scores(Course(problem, rows, seed=1, steps=1, lr=1e-3))
    score = taylor_of(of_the_sum=False)

    for place, _, group in neurons(problem):
        theirs = [
            by_gradients(problem.ranker, rows, batch, lambda group=group: score(group))
            for batch in batches(rows)
        ]
        bound = torch.stack(theirs).square().sum(0)
        assert (ours[place] <= bound * (1 + 1e-4)).all()
        # The last layer's neurons are read by one weight: nothing can cancel.
        if problem.groups[place].readers[0].layer.out_features == 1:
            close(ours[place], bound)
