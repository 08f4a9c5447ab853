"""What holds for every member of METHODS, and what those that choose fields must find."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.config import ConfigError, TrainConfig, check
from compress.methods import METHODS, Compressed, narrow
from compress.progress import Silent
from compress.rankers.base import Ranker
from compress.train import TrainingData, fit, predict

Build = Callable[..., Ranker]
Clicks = Callable[..., TrainingData]

TRAIN = TrainConfig(lr=5e-3, batch_size=128, epochs=3)
NOTHING_TO_DO = {"none"}
SELECTS_FIELDS = {"lpfs", "permutation", "shark"}
# Fields alone cannot bring the FLOPs of small rankers far down.
BUDGETS = {name: 0.9 if name in SELECTS_FIELDS else 0.5 for name in METHODS}
slimming = pytest.mark.parametrize("method", sorted(set(METHODS) - NOTHING_TO_DO))
stepped = pytest.mark.parametrize("method", ["ecc", "group-lasso", "lpfs", "taylor", "umec"])


@pytest.fixture(scope="module")
def data(clicks_of_module: Clicks) -> TrainingData:
    """Clicks that two fields decide, among eight."""
    return clicks_of_module(1500, seed=3)


@pytest.fixture(scope="module")
def clicks_of_module() -> Clicks:
    """Makes data sets."""
    from tests.compress.conftest import Clicks as Made  # noqa: PLC0415

    return Made


@pytest.fixture(scope="module")
def trained(data: TrainingData) -> Ranker:
    """A ranker that knows the two."""
    from compress.rankers import RANKERS  # noqa: PLC0415

    config = RANKERS["dlrm"].Config(dim=4, bottom=(6, 5), top=(24, 12))
    ranker = RANKERS["dlrm"](data.features, config, torch.Generator().manual_seed(0))
    fit(ranker, data, TRAIN, 1, checkpoint=None, progress=Silent())
    return ranker.eval()


def compress(
    method: str,
    ranker: Ranker,
    data: TrainingData,
    checkpoint: Path | None = None,
    **options: Any,
) -> Compressed:
    """Run a method, at its budget unless the options say another."""
    member = METHODS[method]
    given = {} if method in NOTHING_TO_DO else {"budget": {"flops": BUDGETS[method]}}
    return member().compress(
        ranker,
        data,
        check(member.Config, given | options, "method"),
        seed=1,
        train=TRAIN,
        pricing=None,
        progress=Silent(),
        checkpoint=checkpoint,
    )


def weights(ranker: Ranker) -> dict[str, torch.Tensor]:
    """A copy of all parameters."""
    return {name: p.detach().clone() for name, p in ranker.named_parameters()}


@slimming
def test_the_budget_is_met_and_told(method: str, trained: Ranker, data: TrainingData) -> None:
    """Counted on the ranker that comes out; the dense one stays as it was."""
    before = weights(trained)

    made = compress(method, trained, data)

    share = sum(made.ranker.flops().values()) / sum(trained.flops().values())
    assert share <= BUDGETS[method]
    assert made.achieved["all"] == pytest.approx(share)
    assert made.requested == {"all": BUDGETS[method]}
    assert all(torch.equal(p, before[name]) for name, p in trained.named_parameters())
    scores, labels = predict(made.ranker, data, "test")
    assert len(scores) == len(labels)


@slimming
def test_the_same_seed_gives_the_same_bytes(
    method: str, trained: Ranker, data: TrainingData
) -> None:
    """Whatever is drawn comes from the seed."""
    first, second = (compress(method, trained, data).ranker for _ in range(2))

    again = weights(second)
    assert all(torch.equal(p, again[name]) for name, p in first.named_parameters())


@slimming
def test_a_budget_out_of_reach_is_refused(method: str, trained: Ranker, data: TrainingData) -> None:
    """With the smallest that can be met."""
    with pytest.raises(ConfigError, match=r"method\.budget\.flops: .* the smallest that can be:"):
        compress(method, trained, data, budget={"flops": 1e-3})


@pytest.mark.parametrize("method", ["group-lasso", "lpfs", "permutation", "shark", "umec"])
def test_so_many_fields_go(method: str, trained: Ranker, data: TrainingData) -> None:
    """Features may have a budget of their own, beside that of the FLOPs."""
    made = compress(method, trained, data, budget={"fields": 0.5, "flops": 0.9})

    assert made.requested == {"all": 0.9, "fields": 0.5}
    assert made.achieved["fields"] == len(made.ranker.fields) / len(trained.fields)
    assert 0.25 <= made.achieved["fields"] <= 0.5


@pytest.mark.parametrize("method", ["ecc", "narrow"])
def test_methods_of_neurons_refuse_a_budget_of_fields(
    method: str, trained: Ranker, data: TrainingData
) -> None:
    """Whatever they take away, fields stay."""
    with pytest.raises(ConfigError, match=r"nothing of neurons may go and saves fields"):
        compress(method, trained, data, budget={"fields": 0.5})


@pytest.mark.parametrize("method", ["lpfs", "permutation", "shark"])
def test_selectors_of_fields_need_some(method: str, trained: Ranker, data: TrainingData) -> None:
    """Without them they would be another method under their name."""
    with pytest.raises(ConfigError, match="name 'fields' among the parts"):
        compress(method, trained, data, parts=["neurons"])


@pytest.mark.parametrize("method", ["group-lasso", "taylor", "umec"])
@pytest.mark.parametrize("ranker", ["dlrm", "dlrm-dot", "dcnv2"])
@pytest.mark.parametrize("parts", [["fields", "widths"], ["fields", "widths", "neurons"]])
def test_the_smallest_budget_is_met_where_positions_go_with_their_fields(
    method: str, ranker: str, parts: list[str], build: Build, data: TrainingData
) -> None:
    """What is left of a field that has gone neither saves anything nor stands in the way."""
    name, _, interaction = ranker.partition("-")
    given = {"interaction": interaction} if interaction else {}
    dense = build(name, {"dim": 8, **given}, data.features)
    options: dict[str, Any] = {"parts": parts, "width_unit": 2}
    with pytest.raises(ConfigError) as caught:
        compress(method, dense, data, budget={"flops": 1e-6}, **options)
    smallest = float(str(caught.value).split()[-1])

    made = compress(method, dense, data, budget={"flops": smallest}, **options)

    assert made.achieved["all"] <= smallest


def test_a_narrow_ranker_is_drawn_for_its_own_widths(
    monkeypatch: pytest.MonkeyPatch, trained: Ranker, data: TrainingData
) -> None:
    """As any other ranker of these sizes would be: fresh weights depend on the widths."""
    monkeypatch.setattr(narrow, "fit", lambda *_, **__: None)

    made = compress("narrow", trained, data, budget={"flops": 0.1}).ranker

    fresh = type(made)(made.features, made.config, torch.Generator().manual_seed(1))
    again = weights(fresh)
    assert all(torch.equal(p, again[name]) for name, p in made.named_parameters())


@pytest.mark.parametrize("interaction", ["cat", "dot"])
def test_a_narrow_ranker_is_narrower_in_every_field(
    monkeypatch: pytest.MonkeyPatch, build: Build, data: TrainingData, interaction: str
) -> None:
    """Not in the last ones alone, down to nothing, while the first stay as they were."""
    monkeypatch.setattr(narrow, "fit", lambda *_, **__: None)
    dense = build("dlrm", {"dim": 8, "interaction": interaction}, data.features)
    options: dict[str, Any] = {"parts": ["widths"], "width_unit": 2}

    made = compress("narrow", dense, data, budget={"flops": 0.8}, **options)

    left = {field.name: field.width for field in made.ranker.fields}
    assert left.keys() == {field.name for field in dense.fields}
    assert min(left.values()) < 8
    assert max(left.values()) - min(left.values()) <= 2
    assert made.achieved["all"] <= 0.8


def test_a_narrow_ranker_has_all_fields(trained: Ranker, data: TrainingData) -> None:
    """Which of them to drop is no matter of a share: the last ones would go."""
    with pytest.raises(ConfigError, match=r"parts\.0: Input should be 'widths' or 'neurons'"):
        compress("narrow", trained, data, parts=["fields"])


class Killed(Exception):
    """What ends a run in the middle."""


@stepped
def test_a_killed_run_goes_on_to_the_same_bytes(
    method: str, trained: Ranker, data: TrainingData, tmp_path: Path
) -> None:
    """From the checkpoint after the first epoch."""
    whole = compress(method, trained, data).ranker
    dying = copy.copy(data)
    epochs = 0

    def batches(part: Any, *args: Any) -> Iterator[Any]:
        nonlocal epochs
        for count, batch in enumerate(data.batches(part, *args)):
            if part == "train" and args[0] == TRAIN.batch_size:
                epochs += count == 0
                if epochs == 2 and count == 2:
                    raise Killed
            yield batch

    dying.batches = batches  # type: ignore[method-assign]
    with pytest.raises(Killed):
        compress(method, trained, dying, tmp_path / "method.ckpt")

    resumed = compress(method, trained, data, tmp_path / "method.ckpt").ranker

    expected = weights(whole)
    assert all(torch.equal(p, expected[name]) for name, p in resumed.named_parameters())


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("lpfs", {"epochs": 4, "gate_lr": 0.02}),
        ("permutation", {}),
        ("shark", {}),
        ("umec", {"parts": ["fields"]}),
        ("taylor", {"parts": ["fields"]}),
    ],
)
def test_the_fields_that_decide_stay(
    method: str, options: dict[str, Any], trained: Ranker, data: TrainingData
) -> None:
    """Clicks depend on u0 and i0; the others are noise, most of which goes."""
    made = compress(method, trained, data, budget={"flops": 0.62}, **options)

    assert {"u0", "i0"} <= set(made.keep.fields)
    assert len(made.keep.fields) <= len(trained.fields) - 4


@pytest.mark.parametrize("method", sorted(SELECTS_FIELDS))
def test_selectors_of_fields_take_neurons_if_asked(
    method: str, trained: Ranker, data: TrainingData
) -> None:
    """The same share of every layer."""
    made = compress(method, trained, data, budget={"flops": 0.3}, parts=["fields", "neurons"])

    assert made.achieved["all"] <= 0.3
    assert made.ranker.widths()["top"][0] < 24


def test_permutation_scores_are_rises_of_the_loss(trained: Ranker, data: TrainingData) -> None:
    """Noise is worth nearly nothing, what decides much."""
    from compress.budget import Budget, bounds  # noqa: PLC0415
    from compress.methods.groups import SlimmingConfig  # noqa: PLC0415
    from compress.methods.one_shot import Scoring  # noqa: PLC0415
    from compress.methods.permutation import Permutation, PermutationConfig  # noqa: PLC0415
    from compress.methods.removable import make_problem  # noqa: PLC0415
    from compress.methods.shark import Shark  # noqa: PLC0415

    budget = Budget(flops=0.9)
    problem = make_problem(
        trained,
        SlimmingConfig(budget=budget, parts=("fields",)),
        bounds(trained, budget, "all", None),
        data,
        seed=1,
    )
    scoring = Scoring(problem, data, 1, Silent())
    config = PermutationConfig(budget=budget)
    names = [field.name for field in trained.fields]

    for method in (Permutation(), Shark()):
        worth = method.field_worth(config, scoring, problem.groups[0])
        ranked = [names[i] for i in worth.argsort(descending=True).tolist()]
        assert set(ranked[:2]) == {"u0", "i0"}
        assert worth[names.index("u0")] > 5 * worth[names.index("u1")].abs()
