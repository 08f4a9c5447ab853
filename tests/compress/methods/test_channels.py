"""The groups of any module: what they cost, what they take, what they are worth."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from compress.budget import Budget
from compress.config import ConfigError
from compress.cutting import gone, narrowed
from compress.methods.channels import (
    Accounts,
    ChannelGroups,
    ModuleProblem,
    amounts,
    energies,
    measured,
    removal_costs,
)
from compress.tied import Example, Tied
from compress.tracing import trace
from tests.compress.modules import TwoTowers, click_loss, clicks

BATCHES = clicks(256, seed=1, batch_size=64)
EXAMPLE = Example.of(BATCHES[0][:5])


@pytest.fixture
def module() -> TwoTowers:
    """Untrained."""
    torch.manual_seed(3)
    return TwoTowers().eval()


def groups_of(tied: Tied, unit: int = 1) -> list[ChannelGroups]:
    """All that may go, by the norms of their weights."""
    free = [layer for layer in tied.layers if not layer.lock]
    return [ChannelGroups(layer, unit, unit, torch.ones(layer.count)) for layer in free]


def problem_of(module: nn.Module, tied: Tied, budget: Budget) -> ModuleProblem:
    """The problem of a module under a budget."""
    groups = groups_of(tied)
    accounts = Accounts(module, tied, [g.layer for g in groups])
    return ModuleProblem(module, accounts, groups, amounts(budget, accounts.dense))


def counted_flops(module: nn.Module, inputs: Sequence[Tensor]) -> float:
    """By hooks on the linear layers, for a row."""
    found: list[float] = []

    def count(layer: nn.Linear, args: tuple[Tensor], out: Tensor) -> None:
        times = out.numel() // layer.out_features
        found.append(times * layer.out_features * (2 * layer.in_features + 1) / len(inputs[0]))

    layers = [part for part in module.modules() if isinstance(part, nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    module(*inputs)
    for hook in hooks:
        hook.remove()
    return sum(found)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_counted_is_what_the_narrower_module_takes(module: TwoTowers, seed: int) -> None:
    """FLOPs as hooks on the cut module see them, bytes as its parameters have them."""
    tied = trace(module, EXAMPLE)
    groups = groups_of(tied)
    accounts = Accounts(module, tied, [g.layer for g in groups])
    draw = torch.Generator().manual_seed(seed)
    counts = [int(torch.randint(0, g.count, (), generator=draw)) for g in groups]
    cut = {g.name: torch.arange(k) for g, k in zip(groups, counts, strict=True)}
    small = narrowed(module, gone(tied, cut)[0])

    found = accounts.after(counts)
    assert found["flops"] == pytest.approx(counted_flops(small, EXAMPLE.args))
    assert found["bytes"] == sum(p.numel() * p.element_size() for p in small.parameters())


def test_energies_are_those_of_what_a_mask_zeroes(module: TwoTowers) -> None:
    """A neuron's is that of the column that reads it; a shared table's column has two readers."""
    tied = trace(module, EXAMPLE)
    weights = dict(module.named_parameters())
    found = {g.name: energies(g, weights) for g in groups_of(tied)}

    assert found["grow"] == pytest.approx(module.back.weight.square().sum(0).detach())
    readers = (module.user[0].weight[:, :8], module.gate.weight, module.value.weight)
    expected = sum(columns.square().sum(0) for columns in readers)
    assert found["item"] == pytest.approx(expected.detach())


def test_the_proximal_step_shrinks_the_chosen_and_nothing_else(module: TwoTowers) -> None:
    """W / (1 + 2·lr·price) in the columns that read neurons 2 and 7."""
    problem = problem_of(module, trace(module, EXAMPLE), Budget(flops=0.5))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    place = [g.name for g in problem.groups].index("grow")
    problem.shrink(place, torch.tensor([2, 7]), price=3.0, lr=0.5)

    before["back.weight"][:, [2, 7]] /= 4.0
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())


class Product(nn.Module):
    """Σ_k u_k(x)·v_k(id)."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.v = nn.Linear(3, 4), nn.Embedding(5, 4)

    def forward(self, x: Tensor, ids: Tensor, gates: Tensor | None = None) -> Tensor:
        """(B, 3), (B,) -> (B,); with gates (4,), each term by its own."""
        terms = self.u(x) * self.v(ids)
        return (terms if gates is None else terms * gates).sum(-1)


def test_costs_are_slopes_in_gates() -> None:
    """½ (∂loss/∂α)² of a gate on a term of an inner product, both of whose factors are gated."""
    torch.manual_seed(0)
    product, x, ids = Product(), torch.randn(6, 3), torch.randint(0, 5, (6,))
    tied = trace(product, Example.of((x, ids)))
    groups = groups_of(tied)
    costs = removal_costs(product, tied, groups, [product(x, ids).square().mean()])
    gates = torch.ones(4, requires_grad=True)
    (slope,) = torch.autograd.grad(product(x, ids, gates).square().mean(), [gates])

    assert [g.name for g in groups] == ["u + v"]
    assert costs[0] == pytest.approx(slope.square() / 2, rel=1e-4)


def test_frozen_weights_are_measured_and_stay_frozen(module: TwoTowers) -> None:
    """What the caller does not train may go all the same."""
    module.back.weight.requires_grad_(False)
    tied = trace(module, EXAMPLE)
    losses = (click_loss(module, batch) for batch in BATCHES)
    groups, costs = measured(module, tied, groups_of(tied), losses)

    place = [g.name for g in groups].index("grow")
    assert (costs[place] > 0).all()
    assert not module.back.weight.requires_grad


def test_a_layers_energies_sum_to_about_one(module: TwoTowers) -> None:
    """Their mean over layers is 1, so that prices of layers compare."""
    tied = trace(module, EXAMPLE)
    losses = (click_loss(module, batch) for batch in BATCHES)
    groups, _ = measured(module, tied, groups_of(tied), losses)
    weights = dict(module.named_parameters())

    totals = [float(energies(g, weights).sum()) for g in groups]
    assert sum(totals) / len(totals) == pytest.approx(1.0)


@pytest.mark.parametrize("budget", [Budget(p50_us=10.0), Budget(fields=0.5)])
def test_a_budget_that_nothing_tells_is_refused(module: TwoTowers, budget: Budget) -> None:
    """What a request of it takes, and what a field of it is."""
    with pytest.raises(ConfigError, match="give flops, bytes, or both"):
        amounts(budget, {"flops": 1.0, "bytes": 1.0})


def test_flops_of_a_module_without_linear_layers_are_refused() -> None:
    """There are none to save."""
    with pytest.raises(ConfigError, match=r"budget\.flops: the module takes none"):
        amounts(Budget(flops=0.5), {"flops": 0.0, "bytes": 1.0})
