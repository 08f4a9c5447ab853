"""`slim_module` on a model that no ranker of ours resembles, and on what people get wrong."""

import copy
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

import compress
from compress.any_module import Objective, Slimmed, slim_module
from compress.budget import Budget
from compress.config import CompressError, ConfigError
from compress.cutting import NotTheSame
from compress.train import TrainingDiverged
from tests.compress.modules import Batch, TwoTowers, click_loss, clicks, mean_loss, trained

USELESS = 200
BATCHES = clicks(256 * 60, seed=1, batch_size=256, useless=USELESS)
HELD_OUT = clicks(128 * 20, seed=2, useless=USELESS)
FEW = BATCHES[:4]
EXAMPLE = tuple(column[:3] for column in BATCHES[0][:5])
STRICT = Budget(bytes=0.3)


def slimmed(module: nn.Module, budget: Budget, **options: Any) -> Slimmed[nn.Module]:
    """A short run; ``options`` are `slim_module`'s."""
    given: dict[str, Any] = {"batches": FEW, "loss": click_loss, "example": EXAMPLE, "epochs": 1}
    return slim_module(module, budget=budget, **given | options)


@pytest.fixture(scope="module")
def dense() -> TwoTowers:
    """Trained."""
    torch.manual_seed(0)
    module = TwoTowers(useless=USELESS)
    trained(module, BATCHES, epochs=3)
    return module


@pytest.fixture(scope="module")
def rough() -> TwoTowers:
    """Hardly trained, for what does not depend on quality."""
    torch.manual_seed(0)
    module = TwoTowers(useless=USELESS)
    trained(module, FEW, epochs=2)
    return module


@pytest.fixture(scope="module")
def slim(dense: TwoTowers) -> Slimmed[TwoTowers]:
    """Of 30 % of its bytes."""
    return slim_module(
        dense, EXAMPLE, STRICT, click_loss, BATCHES, epochs=3, finetune_epochs=1, lr=2e-3
    )


# --- what comes out -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_useless_goes_and_the_quality_stays(dense: TwoTowers, slim: Slimmed[TwoTowers]) -> None:
    """Both tables that say nothing are dropped, the others stay, and unseen clicks are told."""
    assert set(slim.dropped) == {"device", "weekday"}
    assert slim.module.device.embedding_dim == 0
    assert mean_loss(slim.module, HELD_OUT) < mean_loss(dense, HELD_OUT) + 0.005


@pytest.mark.slow
def test_the_budget_is_met_by_what_the_module_really_takes(slim: Slimmed[TwoTowers]) -> None:
    """Just below it, and as the record tells."""
    found = sum(p.numel() * p.element_size() for p in slim.module.parameters())

    assert found == slim.slim.bytes
    assert 0.28 < slim.slim.bytes / slim.dense.bytes <= 0.3
    assert type(slim.module) is TwoTowers
    assert not slim.module.training


@pytest.mark.slow
def test_the_record_says_what_stayed_and_what_had_to(slim: Slimmed[TwoTowers]) -> None:
    """Positions of the dense layers by layer, as many as the slim ones have; locks with reasons."""
    kept = {layer.name: layer for layer in slim.layers}
    locked = {lock.name: lock.reason for lock in slim.locked}

    assert len(kept["grow"].kept) == slim.module.grow.out_features
    assert kept["grow"].weight == ("grow.weight", 0)
    assert kept["gate + value"].count == 20
    assert "layer_norm in norm" in locked["wide + back"]
    assert {"step", "loss", "ratio.bytes", "z.bytes", "s.grow"} <= slim.history[0].keys()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # the exporter's own
def test_a_slim_module_is_exported_to_onnx_as_any_other(
    slim: Slimmed[TwoTowers], tmp_path: Path
) -> None:
    """Tables without a column left included; ONNX Runtime computes what torch does."""
    example = tuple(column[:16] for column in BATCHES[0][:5])
    torch.onnx.export(slim.module, example, tmp_path / "slim.onnx", dynamo=True, verbose=False)
    session = ort.InferenceSession(tmp_path / "slim.onnx", providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    asked = dict(zip(["history", "country", "device", "weekday", "item"], example, strict=True))
    (found,) = session.run(None, {name: asked[name].numpy() for name in names})

    with torch.no_grad():
        assert torch.from_numpy(found) == pytest.approx(slim.module(*example), abs=1e-5)


@pytest.mark.slow
def test_neurons_that_nothing_reads_go_first(dense: TwoTowers) -> None:
    """Of 24 neurons, 12 have no reader; a budget that 12 suffice for takes those."""
    module = copy.deepcopy(dense)
    idle = list(range(0, 24, 2))
    with torch.no_grad():
        module.back.weight[:, idle] = 0.0
    others = [name for name, _ in module.named_children() if name not in {"grow", "back"}]
    whole = slimmed(module, Budget(flops=1.0), stay=others).dense.flops
    asked = 1.0 - 12 * (2 * 16 + 1 + 2 * 16) / whole
    found = slimmed(module, Budget(flops=asked), stay=others, lr=1e-5, finetune_epochs=0)

    assert [layer.name for layer in found.layers] == ["grow"]
    assert set(found.layers[0].kept) == set(range(1, 24, 2))


def test_two_budgets_hold_together(rough: TwoTowers) -> None:
    """FLOPs and a size of bytes; widths go in multiples of ``unit``."""
    found = slimmed(rough, Budget(flops=0.5, bytes="9kB"), unit=4)

    assert found.slim.flops <= 0.5 * found.dense.flops
    assert found.slim.bytes <= 9000
    assert found.module.grow.out_features % 4 == 0
    assert found.module.user[0].out_features % 4 == 0


def test_the_callers_module_and_random_state_are_left_alone(rough: TwoTowers) -> None:
    """Weights, statistics, modes, gradients; and what torch draws next."""
    module = copy.deepcopy(rough).train()
    module.norm.eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.get_rng_state()
    found = slimmed(module, Budget(flops=0.6), distill=0.5)

    assert all(torch.equal(before[name], now) for name, now in module.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    assert (module.training, module.norm.training) == (True, False)
    assert (found.module.training, found.module.norm.training) == (True, False)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.slow
def test_a_seed_gives_the_same_bytes(rough: TwoTowers) -> None:
    """Twice the same weights; with another seed, others, as dropout draws otherwise."""
    first, again, other = (
        slimmed(rough, Budget(flops=0.5), seed=seed).module.state_dict() for seed in (4, 4, 5)
    )

    assert first.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert any(
        tensor.shape != other[name].shape or not torch.equal(tensor, other[name])
        for name, tensor in first.items()
    )


@pytest.mark.slow
def test_tables_rest_unless_they_are_told_to_learn(rough: TwoTowers) -> None:
    """With sparse gradients too; the slim module's tables keep them."""
    module = copy.deepcopy(rough)
    module.country.sparse = True
    resting = slimmed(module, Budget(flops=0.9), stay=("country",)).module
    learning = slimmed(module, Budget(flops=0.9), stay=("country",), embedding_lr=1e-2).module

    assert torch.equal(resting.country.weight, module.country.weight)
    assert not torch.equal(learning.country.weight, module.country.weight)
    assert learning.country.sparse


def test_batches_may_be_made_anew_for_each_epoch(rough: TwoTowers) -> None:
    """By a function from the epoch's number, counted from the first of slimming on."""
    asked: list[int] = []

    def epoch(number: int) -> Iterator[Batch]:
        asked.append(number)
        return iter(FEW)

    slimmed(rough, Budget(flops=0.8), batches=epoch, epochs=2, finetune_epochs=1)

    assert asked[-3:] == [0, 1, 2]


# --- what cannot be -------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_infeasible_budget_is_refused_with_the_smallest_that_can_be(rough: TwoTowers) -> None:
    """And that one is met."""
    with pytest.raises(ConfigError, match=r"^budget\.flops: 0.01 of the dense module") as refused:
        slimmed(rough, Budget(flops=0.01))
    smallest = re.search(r"the smallest that can be: budget\.flops = ([\d.]+)$", str(refused.value))
    assert smallest is not None

    found = slimmed(rough, Budget(flops=float(smallest[1])), finetune_epochs=0)
    share = found.slim.flops / found.dense.flops
    assert share <= float(smallest[1]) == pytest.approx(share, rel=1e-3)


class TwoTables(nn.Module):
    """Nothing but a large table and a small one, read by one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Embedding(500, 4), nn.Embedding(5, 4)
        self.read = nn.Linear(8, 1)
        nn.init.normal_(self.large.weight, std=3.0)  # it matters most

    def forward(self, large: Tensor, small: Tensor) -> Tensor:
        """(B,), (B,) -> (B,)."""
        both = [self.large(large), self.small(small)]
        return self.read(torch.cat(both, -1)).squeeze(-1)


@pytest.mark.parametrize(
    ("budget", "dropped"),
    [(Budget(bytes=0.02), ("large",)), (Budget(flops=0.2), ("small",))],
    ids=["bytes", "flops"],
)
def test_of_tables_alone_the_smallest_stays_where_bytes_decide(
    budget: Budget, dropped: tuple[str, ...]
) -> None:
    """A column of it takes little of a budget; where all save alike, what matters most stays."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(1)
    rows = [(torch.randint(0, 500, (64,), generator=draw), torch.arange(64) % 5)] * 4

    def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (module(*batch) - (batch[0] % 2).float()).square().mean()

    found = slimmed(TwoTables(), budget, example=rows[0], loss=loss, batches=rows)

    assert found.dropped == dropped


class Scaled(nn.Module):
    """Divides by a width that it asks for, which no trace shows."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 6) -> (B,)."""
        hidden = self.one(x)
        both = [hidden / hidden.shape[-1] ** 0.5, self.two(x).relu()]
        return self.last(torch.cat(both, -1)).squeeze(-1)


NUMBERS = [(torch.randn(32, 6, generator=torch.Generator().manual_seed(k)),) for k in range(4)]


def fitted(module: nn.Module, batch: tuple[Tensor]) -> Tensor:
    """To the sum of the inputs."""
    return (module(batch[0]) - batch[0].sum(-1)).square().mean()


def test_what_the_trace_does_not_see_is_locked_by_rehearsal() -> None:
    """The layer whose width its forward uses stays, the other goes."""
    found = slimmed(
        Scaled(), Budget(flops=0.8), example=NUMBERS[0][0][:2], loss=fitted, batches=NUMBERS
    )

    reasons = {lock.name: lock.reason for lock in found.locked}
    assert "differs from the masked one's" in reasons["one"]
    assert [layer.name for layer in found.layers] == ["two"]


def test_a_module_of_which_nothing_may_go_is_refused_with_all_reasons() -> None:
    """One layer is asked to stay, the loss needs the other one's width, the last has one."""

    def loss(module: nn.Module, batch: tuple[Tensor]) -> Tensor:
        return fitted(module, batch) + (module.two(batch[0]) * torch.ones(8)).mean()

    with pytest.raises(ConfigError, match="nothing may go") as refused:
        slimmed(
            Scaled(),
            Budget(flops=0.9),
            example=NUMBERS[0][0],
            loss=loss,
            batches=NUMBERS,
            stay=("one",),
        )

    told = str(refused.value)
    assert "one: was asked to stay" in told
    assert "two: cut for rehearsal: the loss fails on a narrower module" in told
    assert "last: loses its axis in squeeze" in told


def test_a_module_that_draws_numbers_of_its_own_is_not_taken_for_another() -> None:
    """Noise is drawn alike for both sides of a proof; what no seed reaches is refused."""

    class Counting(Scaled):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Counting.calls += 1
            return super().forward(x) + Counting.calls

    with pytest.raises(NotTheSame, match="differs from the masked one's"):
        slimmed(Counting(), Budget(flops=0.9), example=NUMBERS[0][0], loss=fitted, batches=NUMBERS)


WRONG: dict[str, tuple[dict[str, Any], type[CompressError], str]] = {
    "an iterator": ({"batches": iter(FEW)}, ConfigError, "gone through once only"),
    "no batches": ({"batches": []}, ConfigError, "there are none"),
    "a number of batches": ({"batches": 3}, ConfigError, "expected an iterable"),
    "a loss by row": (
        {"loss": lambda m, b: m(*b[:5])},
        ConfigError,
        r"expected a scalar tensor .* of shape \(256,\)",
    ),
    "a loss of nothing": (
        {"loss": lambda m, b: torch.tensor(1.0)},
        ConfigError,
        "depends on the module's parameters",
    ),
    "an imitation of what is never called": (
        {"loss": lambda m, b: m.country.weight.sum(), "distill": 1.0},
        ConfigError,
        "never calls the module itself",
    ),
    "no epoch": ({"epochs": 0}, ConfigError, r"slim_module: epochs: .* greater than 0"),
    "an example without rows": ({"example": 3}, ConfigError, "with at least one row; got int"),
    "a loss that is no number": (
        {"loss": lambda m, b: click_loss(m, b) * float("nan")},
        TrainingDiverged,
        "slim: the loss is nan at step 1; lower lr",
    ),
    "a part that is not there": ({"stay": ("nowhere",)}, ConfigError, "nothing called 'nowhere'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_by_name(rough: TwoTowers, name: str) -> None:
    """One line that says what came and what was expected."""
    options, error, message = WRONG[name]

    with pytest.raises(error, match=message):
        slimmed(rough, Budget(flops=0.5), **options)


def test_a_module_without_parameters_is_refused() -> None:
    """There is nothing to remove."""
    with pytest.raises(ConfigError, match="no parameters"):
        slimmed(nn.ReLU(), Budget(flops=0.5))


def test_imitation_is_the_mean_squared_distance_from_the_dense_outputs(rough: TwoTowers) -> None:
    """In the loss, by its weight; nothing where the two are the same."""
    other = copy.deepcopy(rough)
    with torch.no_grad():
        other.scale += 0.5
    alone, both = Objective(click_loss, rough, 0.0), Objective(click_loss, rough, 3.0)

    *inputs, _ = FEW[0]
    distance = (other(*inputs) - rough(*inputs)).square().mean().detach()
    added = (both.of(other, FEW[0]) - alone.of(other, FEW[0])).detach()
    assert float(added) == pytest.approx(3.0 * float(distance), rel=1e-5)
    assert torch.equal(both.of(rough, FEW[0]), alone.of(rough, FEW[0]))


def test_it_is_offered_by_the_package_without_loading_torch() -> None:
    """`compress.slim_module` is there when asked for; commands that need no torch start fast."""
    code = "import sys, compress; print('torch' in sys.modules, hasattr(compress, 'slim_modul'))"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert told.stdout.split() == ["False", "False"]
    assert compress.slim_module is slim_module
    assert compress.Slimmed is Slimmed
    assert compress.Budget is Budget
