"""Training a session ranker: it learns, keeps its best, and is a function of its seed."""

import signal
import subprocess
import sys
import textwrap
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.config import ConfigError
from compress.progress import Silent
from compress.sessions.config import FitConfig, SessionExport, SoftTargets
from compress.sessions.data import Prefixes, SessionData, Sessions
from compress.sessions.distill import Distillation
from compress.sessions.evaluate import evaluate
from compress.sessions.export import export
from compress.sessions.student import NotTrained, Student
from compress.sessions.tables import TABLES, ItemTable, Teacher
from compress.sessions.train import Epoch, TrainingDiverged, fit, judge, schedule
from model_store.item_vectors import DenseTable
from model_store.manifest import Resources, SessionCard
from tests.compress.sessions.students import (
    DIM,
    drawn_ranker,
    new_ranker,
    new_student,
    synthetic,
    weights,
)

CONFIG = FitConfig(epochs=3, batch_clicks=256, negatives=20, patience=9)


@pytest.fixture(scope="module")
def data() -> SessionData:
    """A few hundred sessions over sixty items."""
    return synthetic()


class Stop(Exception):
    """What the tests below pull the plug with."""


class StopAt(Silent):
    """Pulls the plug in the n-th epoch, after its first steps."""

    def __init__(self, epoch: int) -> None:
        self._left = epoch

    def step(self, stage: str, done: int, total: int | None, **numbers: float) -> None:
        """Raise once enough epochs are done."""
        self._left -= "steps" not in stage
        if self._left < 1:
            raise Stop


def learn(
    student: Student, data: SessionData, config: FitConfig = CONFIG, seed: int = 1, **options: Any
) -> tuple[Epoch, ...]:
    """`fit` on the training sessions, judged on validation."""
    chosen = {"progress": Silent(), "stage": "learn", **options}
    validation = chosen.pop("validation", data.validation)
    return fit(student, data.train, validation, config, seed, **chosen)


def figures(epochs: tuple[Epoch, ...]) -> list[tuple[float, ...]]:
    """All but the seconds."""
    return [astuple(epoch)[:-1] for epoch in epochs]


def coded(data: SessionData, teacher: Student) -> Student:
    """A fresh encoder with residual codes of the teacher's table."""
    config = TABLES["rq"].Config(codes="2x16", beam=1, rounds=1)
    given = Teacher(
        teacher.table(torch.arange(teacher.table.items)).detach(),
        torch.from_numpy(data.train.counts()),
        data.train,
    )
    table = TABLES["rq"]().build(given, config, torch.Generator().manual_seed(0), Silent())
    return Student(new_ranker("sasrec", seed=4, dropout=0.1), table)


def pair(data: SessionData, **soft: Any) -> tuple[Student, Distillation | None]:
    """What is trained, and by which teacher; without options by none."""
    teacher = new_student(data, seed=2)
    student = coded(data, teacher)
    if not soft:
        return student, None
    counts = torch.from_numpy(data.train.counts())
    torch.manual_seed(0)
    return student, Distillation.of(teacher, student, SoftTargets.model_validate(soft), counts)


# --- what comes of it ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("negatives", [0, 20])
@pytest.mark.parametrize("kind", ["dense", "rq"])
def test_training_learns_the_rule(negatives: int, kind: str) -> None:
    """Better on validation than the first vectors, against samples as against all items."""
    data = synthetic(sessions=800, items=200, topics=10)
    student = new_student(data) if kind == "dense" else coded(data, new_student(data))
    config = {"lr": 0.01, "table_lr": 0.03, "epochs": 6, "negatives": negatives}

    history = learn(student, data, CONFIG.model_copy(update=config))

    assert max(epoch.ndcg for epoch in history) > history[0].ndcg + 0.05
    assert history[-1].loss < history[1].loss


@pytest.mark.parametrize("negatives", [0, 20])
def test_bfloat16_is_another_rounding_of_the_same_loss(data: SessionData, negatives: int) -> None:
    """Near float32's, and not the same: the option reaches the loss."""
    config = CONFIG.model_copy(update={"epochs": 1, "negatives": negatives})
    exact = learn(new_student(data), data, config)[1]

    rounded = learn(new_student(data), data, config.model_copy(update={"half": True}))[1]

    assert rounded.loss != exact.loss
    assert rounded.loss == pytest.approx(exact.loss, rel=2e-3)
    assert rounded.ndcg == pytest.approx(exact.ndcg, abs=0.02)


@pytest.mark.slow
def test_the_best_epoch_is_kept(data: SessionData) -> None:
    """What is left in the student is judged as its best look said."""
    few = replace(data, train=data.train.select(np.arange(100)))
    student = new_student(few)
    harsh = {"lr": 0.1, "table_lr": 0.1, "epochs": 8, "negatives": 0, "batch_clicks": 64}

    history = learn(student, few, CONFIG.model_copy(update=harsh))

    best = max(history, key=lambda epoch: epoch.ndcg)
    assert judge(student, few.validation) == (best.hit, best.mrr, best.ndcg)
    assert 0 < best.epoch < 8
    assert not student.ranker.training


def test_starting_weights_are_a_candidate_too(data: SessionData) -> None:
    """Training that only does harm changes nothing."""
    student = new_student(data)
    learn(student, data, CONFIG.model_copy(update={"lr": 0.03, "table_lr": 0.1}))
    before = weights(student)
    harm = CONFIG.model_copy(update={"lr": 30.0, "table_lr": 30.0, "patience": 0})

    history = learn(student, data, harm)

    assert [epoch.epoch for epoch in history] == [0, 1]
    assert weights(student) == before


def test_patience_ends_training(data: SessionData) -> None:
    """After more epochs in a row without a new best than are borne, none is begun."""
    config = CONFIG.model_copy(update={"lr": 0.05, "table_lr": 0.1, "epochs": 30, "patience": 1})

    history = learn(new_student(data), data, config)

    ndcg = [epoch.ndcg for epoch in history]
    assert len(history) == int(np.argmax(ndcg)) + 1 + 2


def test_without_validation_the_last_epoch_stays(data: SessionData) -> None:
    """Unjudged: the same steps, and no look at anything."""
    looked, unjudged = new_student(data), new_student(data)
    judged = learn(looked, data)

    history = learn(unjudged, data, validation=None)

    assert [epoch.epoch for epoch in history] == [1, 2, 3]
    assert [epoch.loss for epoch in history] == [epoch.loss for epoch in judged[1:]]
    assert np.isnan([epoch.ndcg for epoch in history]).all()
    assert judge(unjudged, data.validation)[2] == judged[-1].ndcg


def test_an_end_before_the_last_epoch_is_the_same_way_cut_short(data: SessionData) -> None:
    """Rates fall as if all epochs came, so that a number of epochs chosen before means the same."""
    whole, part = new_student(data), new_student(data)
    expected = learn(whole, data)

    history = learn(part, data, until=2)

    assert figures(history)[1:] == figures(expected)[1:3]


def test_an_end_at_no_epoch_changes_nothing(data: SessionData) -> None:
    """Where the first vectors were best."""
    student = new_student(data)
    before = weights(student)

    assert learn(student, data, validation=None, until=0) == ()
    assert weights(student) == before


def test_items_are_trained_at_their_own_rate(data: SessionData) -> None:
    """At zero the table rests and the encoder moves."""
    student, untouched = new_student(data), new_student(data)

    learn(student, data, CONFIG.model_copy(update={"table_lr": 0.0}), validation=None)

    assert torch.equal(student.table.weight, untouched.table.weight)
    assert weights(student) != weights(untouched)


def test_rates_rise_and_fall() -> None:
    """Up over the first tenth, down to nothing at the end, never still before."""
    shares = [schedule(done) for done in np.linspace(0, 1, 101)]

    assert shares[10] == max(shares) == 1.0
    assert shares[:11] == sorted(shares[:11])
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[0] > 0
    assert shares[-1] == pytest.approx(0, abs=1e-12)


# --- one seed, one result --------------------------------------------------------------------


def test_same_seed_same_bytes(data: SessionData) -> None:
    """Weights after training are a function of the seed: batches, samples and dropout."""
    results = []
    for seed in (1, 1, 2):
        student = new_student(data)
        torch.rand(seed)  # whatever the caller drew before must not matter
        learn(student, data, seed=seed, validation=None)
        results.append(weights(student))

    assert results[0] == results[1]
    assert results[0] != results[2]


class Whole(NamedTuple):
    """What training comes to that nothing stops."""

    soft: dict[str, Any]
    student: Student
    teacher: Distillation | None
    epochs: tuple[Epoch, ...]


@pytest.fixture(
    scope="module",
    params=[
        {},
        {"soft": 0.5, "contrast": 0.3},
        {"soft": 0.5, "contrast": 0.3, "bidirectional": True},
    ],
    ids=["alone", "taught", "both learn"],
)
def unbroken(request: pytest.FixtureRequest, data: SessionData) -> Whole:
    """A student, alone or with its teacher, as training leaves them. Read only."""
    student, teacher = pair(data, **request.param)
    return Whole(request.param, student, teacher, learn(student, data, distillation=teacher))


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_resumed_run_ends_in_the_same_bytes(
    data: SessionData, tmp_path: Path, unbroken: Whole, epoch: int
) -> None:
    """Stopped in any epoch and started again, training gives what it would have given."""
    file = tmp_path / "learn.ckpt"
    soft, whole, teacher, expected = unbroken
    broken, its_teacher = pair(data, **soft)
    with pytest.raises(Stop):
        learn(broken, data, distillation=its_teacher, checkpoint=file, progress=StopAt(epoch))
    again, new_teacher = pair(data, **soft)
    found = learn(again, data, distillation=new_teacher, checkpoint=file)

    assert weights(again) == weights(whole)
    np.testing.assert_equal(figures(found), figures(expected))
    if teacher is not None and new_teacher is not None:
        assert weights(new_teacher.teacher) == weights(teacher.teacher)


def test_an_uncompressed_table_is_resumed_too(data: SessionData, tmp_path: Path) -> None:
    """The moments of its rows, which have an optimizer of their own."""
    whole, broken, again = (new_student(data) for _ in range(3))
    learn(whole, data)
    file = tmp_path / "learn.ckpt"
    with pytest.raises(Stop):
        learn(broken, data, checkpoint=file, progress=StopAt(2))
    learn(again, data, checkpoint=file)

    assert weights(again) == weights(whole)


def test_a_finished_run_is_read_back(data: SessionData, tmp_path: Path) -> None:
    """With its checkpoint at hand, a run that ended is not run again; nor if patience ended it."""
    file = tmp_path / "learn.ckpt"
    config = CONFIG.model_copy(update={"lr": 0.05, "table_lr": 0.1, "epochs": 30, "patience": 0})
    first, second = new_student(data), new_student(data)
    expected = learn(first, data, config, checkpoint=file)
    found = learn(second, data, config, checkpoint=file, progress=StopAt(1))

    assert weights(first) == weights(second)
    np.testing.assert_equal([*map(astuple, found)], [*map(astuple, expected)])


KILLED = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    import torch
    from tests.compress.sessions.students import new_student, synthetic
    from compress.sessions.config import FitConfig
    from compress.sessions.train import fit

    class Killer:
        def __init__(self):
            self.left = 2
        def step(self, stage, done, total, **numbers):
            self.left -= "steps" not in stage
            if self.left < 1:
                os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    data, config = synthetic(), FitConfig.model_validate_json(sys.argv[2])
    fit(new_student(data), data.train, data.validation, config, 1, progress=Killer(),
        stage="learn", checkpoint=Path(sys.argv[1]))
    """
)


@pytest.mark.slow
def test_kill_9_loses_nothing_but_time(data: SessionData, tmp_path: Path) -> None:
    """A process killed by SIGKILL between epochs is gone on with to the same bytes."""
    file = tmp_path / "learn.ckpt"
    code = [sys.executable, "-c", KILLED, str(file), CONFIG.model_dump_json()]
    killed = subprocess.run(code, check=False, cwd=Path(__file__).parents[3])
    whole, again = new_student(data), new_student(data)
    learn(whole, data)
    learn(again, data, checkpoint=file)

    assert killed.returncode == -signal.SIGKILL
    assert file.exists()
    assert weights(again) == weights(whole)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 2}, "seed"),
        ({"config": CONFIG.model_copy(update={"lr": 0.5})}, "config"),
        ({"stage": "another"}, "stage"),
        ({"until": 1}, "until"),
    ],
)
def test_a_foreign_checkpoint_is_refused(
    data: SessionData, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    """The error names what differs and what to do."""
    file = tmp_path / "learn.ckpt"
    once = CONFIG.model_copy(update={"epochs": 1})
    learn(new_student(data), data, once, checkpoint=file)

    with pytest.raises(ConfigError, match=f"other {named}; delete it to start afresh"):
        learn(new_student(data), data, **{"config": once, "checkpoint": file, **change})


# --- what goes wrong -------------------------------------------------------------------------


def test_a_loss_that_is_no_number_is_an_error(data: SessionData) -> None:
    """It says where, and what to change."""
    student = new_student(data)
    with torch.no_grad():
        student.ranker.start[0] = torch.nan

    with pytest.raises(TrainingDiverged, match="nan at step 1; lower lr and table_lr"):
        learn(student, data)


def test_weights_that_are_no_numbers_are_judged_worst(data: SessionData) -> None:
    """They rank nothing, so they cannot become the best epoch."""
    student = new_student(data)
    with torch.no_grad():
        student.ranker.start[:] = torch.nan

    assert judge(student, data.validation) == (0.0, 0.0, 0.0)


def test_a_ranker_without_item_vectors_is_not_trained(data: SessionData) -> None:
    """It is fitted, and judged from its bundle."""
    floor = Student(new_ranker("own-items", dim=DIM), new_student(data).table)

    with pytest.raises(NotTrained, match="judged from its bundle"):
        learn(floor, data)
    with pytest.raises(NotTrained, match="fitted, not trained"):
        learn(floor, data, validation=None)


class Recorder(ItemTable):
    """A table that notes how far training is, and adds to the loss what it is told to."""

    def __init__(self, items: int, penalty: float) -> None:
        super().__init__()
        self.items, self.dim = items, DIM
        draw = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(items, DIM, generator=draw))
        self.told: list[float] = []
        self._penalty = penalty

    def forward(self, rows: Tensor) -> Tensor:
        """Its vectors."""
        return self.weight[rows]

    def export(self) -> DenseTable:
        """As they are."""
        return DenseTable(self.weight.detach().numpy())

    def penalty(self) -> Tensor:
        """A constant."""
        return torch.tensor(self._penalty)

    def anneal(self, progress: float) -> None:
        """Noted."""
        self.told.append(progress)


def test_a_table_is_told_how_far_training_is(data: SessionData) -> None:
    """From the start on, to near the end; and what it adds to the loss is added."""
    losses = {}
    for penalty in (0.0, 5.0):
        table = Recorder(data.train.items, penalty)
        student = Student(new_ranker("sasrec", dropout=0.0), table)
        losses[penalty] = [epoch.loss for epoch in learn(student, data, validation=None)]

    assert table.told[0] == 0.0
    assert table.told == sorted(table.told)
    assert 0.9 < table.told[-1] <= 1.0
    assert losses[5.0] == pytest.approx([loss + 5 for loss in losses[0.0]], abs=1e-5)


# --- the judge -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [("sasrec", {"length": 6}), ("stamp", {"length": 2, "repeat": False})],
)
def test_epochs_are_judged_as_bundles_are(
    data: SessionData, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    """By torch what `evaluate` finds from the exported files, strangers and long sessions too."""
    student = Student(drawn_ranker(name, **options), new_student(data).table)
    some = data.test.recoded((*data.train.ids[:50], *(f"new{i}" for i in range(10))))
    assert some.targets.min() < 0
    nothing = Resources(flops=0)
    bundle = export(
        student.ranker,
        student.table.export(),
        tmp_path / "bundle",
        name="judged",
        ids=some.sessions.ids,
        examples=some,
        card=SessionCard(ranker=name, table="dense", seed=0, dense=nothing, coded=nothing),
        options=SessionExport(golden_requests=2, weights="float32"),
    )

    hit, mrr, ndcg = judge(student, some)

    found = evaluate(bundle, some, Silent()).quality.metrics
    expected = [found[f"{metric}@20"] for metric in ("P", "MRR", "NDCG")]
    assert [hit, mrr, ndcg] == pytest.approx(expected, abs=1e-9)


def test_ties_count_against_the_ranker(data: SessionData) -> None:
    """Where all items are alike every target is last."""
    student = new_student(data, repeat=False)
    with torch.no_grad():
        student.table.weight[:] = student.table.weight[0].clone()
    ids = data.train.ids
    one = Prefixes(
        Sessions.of(np.array([3], np.int32), np.array([1]), ids),
        np.array([5], np.int32),
        np.array([0]),
    )

    assert judge(student, one) == (0.0, 0.0, 0.0)
