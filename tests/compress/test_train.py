"""Training is a function of (ranker, data, config, seed): killed or not, to the byte."""

import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress import metrics
from compress.averaging import Average
from compress.config import ConfigError, DistillConfig, TrainConfig
from compress.distill import click_loss, distillation_loss
from compress.optimizers import RowAdam, RowSgd
from compress.progress import Silent
from compress.rankers import RANKERS
from compress.rankers.base import Ranker
from compress.rankers.structure import Inputs, Keep
from compress.slim import slim
from compress.train import TrainingDiverged, fit, predict

CONFIG = TrainConfig(lr=0.01, batch_size=64, epochs=3, patience=9, evaluations_per_epoch=2)
Make = Callable[..., Any]


class Stop(Exception):
    """What the tests below pull the plug with."""


class StopAt:
    """Pulls the plug at the n-th report of a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def step(self, stage: str, done: int, total: int | None, **numbers: float) -> None:
        """Raise once enough is done."""
        if done >= self._step:
            raise Stop


def weights(ranker: Ranker) -> bytes:
    """All parameters as bytes."""
    return b"".join(p.detach().numpy().tobytes() for p in ranker.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.01},
        {"optimizer": "sgd", "lr": 0.3, "embedding_lr": 3.0, "epochs": 12},
        {"half": True},
    ],
)
def test_training_learns_the_signal(clicks: Make, build: Make, options: dict[str, Any]) -> None:
    """On rows with a known rule the ranker ends far better than it began, with any optimizer."""
    data = clicks(2000)
    ranker = build("dlrm", {}, data.features)
    config = CONFIG.model_copy(update=options)
    result = fit(ranker, data, config, 1, checkpoint=None, progress=Silent())
    scores, labels = predict(ranker, data, "test")

    assert result.best.logloss < result.history[0].logloss - 0.05
    assert metrics.auc(labels, scores) > 0.8


@pytest.mark.parametrize("name", list(RANKERS))
def test_half_precision_takes_nearly_the_same_steps(clicks: Make, build: Make, name: str) -> None:
    """In bfloat16, gradients are off by its rounding, not by more; weights stay float32."""
    data = clicks(300)
    config = CONFIG.model_copy(update={"optimizer": "sgd", "lr": 0.1, "batch_size": 300})
    start, whole, half = (build(name, {}, data.features) for _ in range(3))
    for ranker, halved in ((whole, False), (half, True)):
        fit_ = config.model_copy(update={"epochs": 1, "half": halved})
        fit(ranker, data, fit_, 1, checkpoint=None, progress=Silent())

    for begin, one, other in zip(*(r.parameters() for r in (start, whole, half)), strict=True):
        step = (one - begin).norm()
        assert other.dtype == torch.float32
        assert 0.0 < (other - one).norm() < 0.05 * step


def test_the_best_weights_on_validation_are_kept(clicks: Make, build: Make) -> None:
    """What `fit` leaves in the ranker scores validation exactly as its best look said."""
    data = clicks(300)
    ranker = build("dlrm", {}, data.features)
    overfit = CONFIG.model_copy(update={"lr": 0.05, "epochs": 8})
    result = fit(ranker, data, overfit, 1, checkpoint=None, progress=Silent())
    scores, labels = predict(ranker, data, "validation")

    assert metrics.logloss(labels, scores) == result.best.logloss
    assert result.best == min(result.history, key=lambda e: e.logloss)
    assert result.history[-1].logloss > result.best.logloss


def test_starting_weights_are_a_candidate_too(clicks: Make, build: Make) -> None:
    """Training that only does harm changes nothing: fine-tuning cannot lose on validation."""
    data = clicks(400)
    ranker = build("dlrm", {}, data.features)
    fit(ranker, data, CONFIG, 1, checkpoint=None, progress=Silent())
    before = weights(ranker)
    harm = CONFIG.model_copy(update={"lr": 3.0, "optimizer": "sgd", "patience": 0})
    result = fit(ranker, data, harm, 1, checkpoint=None, progress=Silent())

    assert result.best.step == 0
    assert weights(ranker) == before


def test_patience_ends_training(clicks: Make, build: Make) -> None:
    """After more looks without a new best than the patience, no step is taken."""
    data = clicks(300)
    config = CONFIG.model_copy(update={"lr": 0.05, "epochs": 50, "patience": 1})
    result = fit(
        build("dlrm", {}, data.features), data, config, 1, checkpoint=None, progress=Silent()
    )
    best = result.history.index(result.best)

    assert len(result.history) == best + 1 + 2
    assert result.steps < 50 * 5


def test_learning_rates_fall_after_a_look_without_a_new_best(clicks: Make, build: Make) -> None:
    """A rate that decays to nothing stops the weights from moving away from the best."""
    data = clicks(300)
    config = CONFIG.model_copy(update={"lr": 0.05, "epochs": 8, "patience": 99})
    decayed = config.model_copy(update={"lr_decay": 0.01})
    runs = [
        fit(build("dlrm", {}, data.features), data, c, 1, checkpoint=None, progress=Silent())
        for c in (config, decayed)
    ]

    assert runs[1].history[-1].logloss < runs[0].history[-1].logloss


def test_the_average_is_judged_and_kept(clicks: Make, build: Make) -> None:
    """With `ema_decay`, the looks and the weights kept are the average's; steps are the same."""
    data = clicks(600)
    average = CONFIG.model_copy(update={"lr": 0.05, "ema_decay": 0.9})
    last = average.model_copy(update={"ema_decay": 0.0})
    rankers = [build("dlrm", {}, data.features) for _ in range(2)]
    kept, moving = (
        fit(r, data, c, 1, checkpoint=None, progress=Silent())
        for r, c in zip(rankers, (average, last), strict=True)
    )
    scores, labels = predict(rankers[0], data, "validation")

    assert [e.train_loss for e in kept.history[1:]] == [e.train_loss for e in moving.history[1:]]
    assert metrics.logloss(labels, scores) == kept.best.logloss
    assert kept.best.logloss != moving.best.logloss
    assert kept.history[-1].logloss < moving.history[-1].logloss


def test_rows_at_rest_are_averaged_as_if_each_step_had_moved_them(build: Make) -> None:
    """The average that catches up is the one that all weights took part in at every step."""
    ranker: Ranker = build("dlrm", {})
    table, decay = ranker.tables["4"].weight, 0.8
    average = Average(ranker, decay)
    naive = {name: p.detach().clone() for name, p in ranker.named_parameters()}
    rng = np.random.default_rng(0)
    for step in range(20):
        rows = torch.from_numpy(rng.integers(0, len(table), 3))
        rows[1] = rows[0]  # a row named twice
        values = torch.ones(3, table.shape[1])
        table.grad = torch.sparse_coo_tensor(rows[None], values, table.shape, check_invariants=True)
        average.before_step()
        with torch.no_grad():
            table[rows[1:]] += torch.from_numpy(rng.normal(size=(2, table.shape[1]))).float()
            for p in ranker.top.parameters():
                p.mul_(0.9)
        average.after_step()
        d = min(decay, (1 + step) / (10 + step))
        for name, p in ranker.named_parameters():
            naive[name] = d * naive[name] + (1 - d) * p.detach()
        if step == 7:
            average.weights()  # a look in between changes nothing

    for name, weight in average.weights().items():
        torch.testing.assert_close(weight, naive[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["dlrm", "dcnv2"])
def test_same_seed_same_bytes(clicks: Make, build: Make, name: str) -> None:
    """Weights after training are a function of the seed; dropout included."""
    data = clicks(300)
    results = []
    for seed in (1, 1, 2):
        ranker = build(name, {"dropout": 0.2}, data.features)
        torch.rand(seed)  # whatever the caller drew before must not matter
        fit(ranker, data, CONFIG, seed, checkpoint=None, progress=Silent())
        results.append(weights(ranker))

    assert results[0] == results[1]
    assert results[0] != results[2]


@pytest.mark.parametrize("options", [{}, {"optimizer": "sgd"}, {"ema_decay": 0.9, "half": True}])
@pytest.mark.parametrize("stopped_at", [1, 9, 14])
def test_a_resumed_run_ends_in_the_same_bytes(
    clicks: Make, build: Make, tmp_path: Path, options: dict[str, Any], stopped_at: int
) -> None:
    """Stopped anywhere and started again, training gives what it would have given."""
    data = clicks(300)
    config = CONFIG.model_copy(update={**options, "lr_decay": 0.5})
    whole, broken = (build("dlrm", {"dropout": 0.2}, data.features) for _ in range(2))
    expected = fit(whole, data, config, 3, checkpoint=None, progress=Silent())
    file = tmp_path / "train.ckpt"
    with pytest.raises(Stop):
        fit(broken, data, config, 3, checkpoint=file, progress=StopAt(stopped_at))
    again = build("dlrm", {"dropout": 0.2}, data.features)
    result = fit(again, data, config, 3, checkpoint=file, progress=Silent())

    assert weights(again) == weights(whole)
    assert result.best == expected.best
    np.testing.assert_equal(
        [vars_of(e) for e in result.history], [vars_of(e) for e in expected.history]
    )


def vars_of(evaluation: Any) -> list[float]:
    """Its numbers (nan equals nan where numpy compares)."""
    return [getattr(evaluation, name) for name in evaluation.__slots__]


def test_a_finished_run_is_read_back(clicks: Make, build: Make, tmp_path: Path) -> None:
    """With its checkpoint at hand, a run that ended is not run again."""
    data, file = clicks(300), tmp_path / "train.ckpt"
    first, second = (build("dlrm", {}, data.features) for _ in range(2))
    fit(first, data, CONFIG, 1, checkpoint=file, progress=Silent())
    result = fit(second, data, CONFIG, 1, checkpoint=file, progress=StopAt(1))

    assert weights(first) == weights(second)
    assert result.steps == 3 * 5


KILLED = textwrap.dedent(
    """
    import importlib.util, os, signal, sys
    spec = importlib.util.spec_from_file_location("shared", sys.argv[1])
    shared = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shared)
    from pathlib import Path
    from compress.train import fit
    from compress.config import TrainConfig
    from compress.rankers import RANKERS
    import torch

    class Killer:
        def step(self, stage, done, total, **numbers):
            if done >= 9:
                os.kill(os.getpid(), signal.SIGKILL)

    data = shared.Clicks(300)
    config = TrainConfig.model_validate_json(sys.argv[3])
    Dlrm = RANKERS["dlrm"]
    ranker = Dlrm(data.features, Dlrm.Config(dim=4, top=(8,)), torch.Generator().manual_seed(0))
    fit(ranker, data, config, 3, checkpoint=Path(sys.argv[2]), progress=Killer())
    """
)


@pytest.mark.slow
def test_kill_9_loses_nothing_but_time(clicks: Make, build: Make, tmp_path: Path) -> None:
    """A process killed by SIGKILL in an epoch's middle is gone on with to the same bytes."""
    data, file = clicks(300), tmp_path / "train.ckpt"
    shared = Path(__file__).parent / "conftest.py"
    code = [sys.executable, "-c", KILLED, str(shared), str(file), CONFIG.model_dump_json()]
    killed = subprocess.run(code, check=False, cwd=Path(__file__).parents[2])
    whole, again = (
        build("dlrm", {"top": (8,), "bottom": (512, 256, 64)}, data.features) for _ in range(2)
    )
    for ranker in (whole, again):
        start = type(ranker)(data.features, ranker.config, torch.Generator().manual_seed(0))
        ranker.load_state_dict(start.state_dict())
    fit(whole, data, CONFIG, 3, checkpoint=None, progress=Silent())
    fit(again, data, CONFIG, 3, checkpoint=file, progress=Silent())

    assert killed.returncode == -signal.SIGKILL
    assert file.exists()
    assert weights(again) == weights(whole)


def test_a_foreign_checkpoint_is_refused(clicks: Make, build: Make, tmp_path: Path) -> None:
    """The error names what differs and what to do."""
    data, file = clicks(300), tmp_path / "train.ckpt"
    fit(build("dlrm", {}, data.features), data, CONFIG, 1, checkpoint=file, progress=Silent())

    with pytest.raises(ConfigError, match="other seed; delete it to start afresh"):
        fit(build("dlrm", {}, data.features), data, CONFIG, 2, checkpoint=file, progress=Silent())


def test_a_broken_checkpoint_is_refused(clicks: Make, build: Make, tmp_path: Path) -> None:
    """Bytes that are no checkpoint give an error that says so."""
    data, file = clicks(300), tmp_path / "train.ckpt"
    file.write_bytes(b"no checkpoint")

    with pytest.raises(ConfigError, match="not a checkpoint"):
        fit(build("dlrm", {}, data.features), data, CONFIG, 1, checkpoint=file, progress=Silent())


def test_a_loss_that_is_no_number_is_an_error(clicks: Make, build: Make) -> None:
    """It says where, and what to change."""
    data = clicks(300)
    ranker = build("dlrm", {}, data.features)
    with torch.no_grad():
        ranker.top.first.weight[0, 0] = torch.nan

    with pytest.raises(TrainingDiverged, match="lower lr"):
        fit(ranker, data, CONFIG, 1, checkpoint=None, progress=Silent())


def test_the_test_part_is_never_read(clicks: Make, build: Make) -> None:
    """Training works on data whose test part cannot be opened."""
    data = clicks(300)
    batches = data.batches

    def guarded(part: str, *args: Any) -> Any:
        assert part != "test"
        return batches(part, *args)

    data.batches = guarded
    fit(build("dlrm", {}, data.features), data, CONFIG, 1, checkpoint=None, progress=Silent())


def test_tables_rest_at_an_embedding_rate_of_zero(clicks: Make, build: Make) -> None:
    """`embedding_lr = 0` trains the layers alone."""
    data = clicks(300)
    ranker = build("dlrm", {}, data.features)
    table, top = (
        ranker.tables["4"].weight.detach().clone(),
        ranker.top.first.weight.detach().clone(),
    )
    frozen = CONFIG.model_copy(update={"embedding_lr": 0.0})
    fit(ranker, data, frozen, 1, checkpoint=None, progress=Silent())

    assert torch.equal(ranker.tables["4"].weight, table)
    assert not torch.equal(ranker.top.first.weight, top)


def test_a_slimmed_ranker_trains_on_the_same_data(clicks: Make, build: Make) -> None:
    """Columns of dropped features are left out of the batches, and the right ones remain."""
    data = clicks(2000)
    dense = build("dlrm", {}, data.features)
    fit(dense, data, CONFIG, 1, checkpoint=None, progress=Silent())
    kept = tuple(f.name for f in dense.fields if f.name not in {"u1", "i1", "request_numeric"})
    small = slim(dense, Keep(kept, {}))
    before = predict(small, data, "test")
    fit(small, data, CONFIG, 1, checkpoint=None, progress=Silent(), teacher=dense)
    scores, labels = predict(small, data, "test")

    assert before[0].shape == scores.shape
    assert metrics.auc(labels, scores) > 0.8


def test_a_perfect_teacher_helps_more_than_few_labels(clicks: Make, build: Make) -> None:
    """Soft targets of a teacher that saw many rows beat labels of few."""
    many, few = clicks(4000, seed=5), clicks(4000, seed=5)
    few.rows = {**few.rows, "train": 128}
    few._parts["train"] = next(few.batches("train", 128))
    teacher = build("dlrm", {}, many.features)
    fit(teacher, many, CONFIG, 1, checkpoint=None, progress=Silent())
    aucs = []
    for weight in (0.0, 1.0):
        config = CONFIG.model_copy(
            update={"epochs": 20, "patience": 99, "distill": DistillConfig(weight=weight)}
        )
        student = build("dlrm", {}, few.features, seed=8)
        fit(student, few, config, 1, checkpoint=None, progress=Silent(), teacher=teacher)
        scores, labels = predict(student, few, "test")
        aucs.append(metrics.auc(labels, scores))

    assert aucs[1] > aucs[0]


def test_distillation_loss_at_its_ends() -> None:
    """Weight 0 is the click loss; weight 1 has its least where student equals teacher."""
    logits = torch.tensor([0.3, -1.0], requires_grad=True)
    label, teacher = torch.tensor([1.0, 0.0]), torch.tensor([0.3, -1.0])
    none = distillation_loss(logits, label, teacher, DistillConfig(weight=0.0))
    full = distillation_loss(logits, label, teacher, DistillConfig(weight=1.0, temperature=2.0))
    (slope,) = torch.autograd.grad(full, logits)

    torch.testing.assert_close(none, click_loss(logits, label))
    torch.testing.assert_close(slope, torch.zeros(2))


def test_row_adam_equals_sparse_adam() -> None:
    """Our row-wise Adam takes the steps of torch's, rows seen twice in a batch included."""
    tables = [torch.nn.Embedding(9, 3, sparse=True) for _ in range(2)]
    tables[1].load_state_dict(tables[0].state_dict())
    ours = RowAdam(tables[0].weight, l2=0.0)
    theirs = torch.optim.SparseAdam(tables[1].parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        ids = torch.randint(0, 9, (6,), generator=generator)
        for table in tables:
            table.weight.grad = None
            table(ids).pow(2).sum().backward()
        ours.step(0.1)
        with torch.sparse.check_sparse_tensor_invariants(enable=True):
            theirs.step()

    torch.testing.assert_close(tables[0].weight, tables[1].weight)


def test_rows_outside_the_batch_rest() -> None:
    """A step touches the batch's rows and no other, decay included."""
    table = torch.nn.Embedding(9, 3, sparse=True)
    before = table.weight.detach().clone()
    for optimizer in (RowAdam(table.weight, l2=0.1), RowSgd(table.weight, l2=0.1)):
        table.weight.grad = None
        table(torch.tensor([2, 5, 2])).sum().backward()
        optimizer.step(0.1)
    moved = (table.weight != before).any(1).nonzero().flatten().tolist()

    assert moved == [2, 5]


def test_predictions_are_probabilities_in_the_parts_order(clicks: Make, build: Make) -> None:
    """`predict` gives a score a row, in order, and leaves the ranker's mode alone."""
    data = clicks(300)
    ranker = build("dlrm", {}, data.features).train()
    scores, labels = predict(ranker, data, "validation")
    batch = next(data.batches("validation", 5))
    rows = (getattr(batch, name) for name in Inputs.__slots__)
    expected = ranker(Inputs(*(torch.from_numpy(r) for r in rows))).sigmoid()

    assert ranker.training
    assert len(scores) == len(labels) == 75
    np.testing.assert_allclose(scores[:5], expected.detach().numpy(), rtol=1e-6)
