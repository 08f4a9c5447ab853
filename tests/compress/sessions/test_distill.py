"""What a teacher adds: soft targets, and contrast of halves that both models put together."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from compress.progress import Silent
from compress.sessions.batches import padded
from compress.sessions.config import FitConfig, SoftTargets
from compress.sessions.data import SessionData, Sessions
from compress.sessions.distill import Contrast, Distillation, HalfPool
from compress.sessions.losses import all_columns, next_item_loss, soft_target_loss
from compress.sessions.student import Batch, Student, as_batch, as_endings, score_batch
from compress.sessions.train import fit
from tests.compress.sessions.students import DIM, new_student, synthetic, weights

COUNTS = torch.tensor([9, 0, 4, 7, 1, 5, 3, 8, 2, 6])
FIT = FitConfig(epochs=1, negatives=0, batch_clicks=128)


@pytest.fixture(scope="module")
def data() -> SessionData:
    """A small data set."""
    return synthetic()


def taught(
    data: SessionData, dropout: float = 0.1, **options: Any
) -> tuple[Student, Student, Distillation]:
    """A student, the teacher that is given, and what is made of both."""
    student, teacher = (new_student(data, seed, dropout=dropout) for seed in (1, 2))
    counts = torch.from_numpy(data.train.counts())
    torch.manual_seed(3)
    made = Distillation.of(teacher, student, SoftTargets.model_validate(options), counts)
    return student, teacher, made


def first_batch(data: SessionData) -> Batch:
    """Sessions of several lengths."""
    sessions = [session[:6] for session in data.train][:12]
    lengths = torch.tensor([len(session) for session in sessions])
    rows = torch.zeros(len(sessions), 6, dtype=torch.long)
    for place, session in enumerate(sessions):
        rows[place, : len(session)] = torch.from_numpy(session.astype(np.int64))
    begins = torch.ones(len(sessions), dtype=torch.bool)
    return as_batch(rows[:, : int(lengths.max())], lengths, begins)


def losses(student: Student, made: Distillation, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The whole loss, and the student's and teacher's parts in it."""
    columns = all_columns(student.table.items)
    vectors = student.table(columns.rows)
    given = score_batch(student, batch, columns, vectors)
    own = next_item_loss(given)
    whole = made.loss(own, given, batch, columns, vectors)
    theirs = score_batch(made.teacher, batch, columns, made.teacher.table(columns.rows))
    return whole, own, soft_target_loss(given, theirs)


# --- hot items and halves --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "hot"), [(0.2, {0, 7}), (0.5, {0, 7, 3, 9, 5}), (0.01, {0}), (0.99, {*range(10)})]
)
def test_hot_items_are_the_most_clicked(data: SessionData, share: float, hot: set[int]) -> None:
    """Their share of all, and one at least."""
    student = new_student(data)
    made = Distillation.of(student, student, SoftTargets(hot_share=share), COUNTS)

    assert {int(row) for row in made.hot.nonzero()[:, 0]} == hot


def test_a_half_is_pooled_by_its_formula() -> None:
    """θ = sum_t α_t e_t over the chosen, α_t = f · sigmoid(W1 ē + W2 e_t + c)."""
    torch.manual_seed(0)
    pool, vectors = HalfPool(DIM), torch.randn(2, 4, DIM)
    chosen = torch.tensor([[True, False, True, True], [False, False, False, False]])

    found = pool(vectors, chosen)

    theta, some = torch.zeros(DIM), vectors[0, [0, 2, 3]]
    for vector in some:
        inner = torch.sigmoid(pool.of_mean(some.mean(0)) + pool.of_each(vector))
        theta += pool.weigh(inner) * vector
    torch.testing.assert_close(found[0], theta, atol=1e-5, rtol=1e-5)
    assert not found[1].any()


def naive_contrast(made: Contrast, teacher: Tensor, student: Tensor, halves: list[Any]) -> float:
    """Session by session; ``halves`` names the hot and cold places of each."""

    def half(pool: HalfPool, vectors: Tensor, places: list[int]) -> Tensor:
        return pool(vectors[None, places], torch.ones(1, len(places), dtype=torch.bool))[0]

    ours, theirs = [], []
    for t, s, (hot, cold) in zip(teacher, student, halves, strict=True):
        z_tea = [half(made.hot_teacher, t, hot), half(made.cold_student, s, cold)]
        z_stu = [half(made.cold_teacher, t, cold), half(made.hot_student, s, hot)]
        ours.append(made.project_teacher(torch.cat(z_tea)))
        theirs.append(made.project_student(torch.cat(z_stu)))
    total = 0.0
    for i, one in enumerate(ours):
        near = [
            float(one @ other / one.norm() / other.norm()) / made.temperature for other in theirs
        ]
        total += math.log(sum(map(math.exp, near))) - near[i]
    return total / len(ours)


def test_contrast_is_infonce_of_recombined_halves() -> None:
    """Against the other sessions of the batch; where a half is missing, the whole stands for it."""
    torch.manual_seed(0)
    made = Contrast(DIM, 5, temperature=0.3)
    teacher, student = torch.randn(4, 4, DIM), torch.randn(4, 4, 5)
    hot = torch.tensor([[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1], [1, 0, 1, 1]]).bool()
    real = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]]).bool()
    # The second and fourth are all hot, the third is all cold: its hot place is padding.
    halves = [([0, 2], [1, 3]), ([0, 1], [0, 1]), ([0, 1, 2], [0, 1, 2]), ([0], [0])]

    found = float(made(teacher, student, hot, real).detach())

    with torch.no_grad():
        expected = naive_contrast(made, teacher, student, halves)
    assert found == pytest.approx(expected, rel=1e-5)


def test_what_is_padded_takes_no_part_in_the_contrast() -> None:
    """Whatever stands there."""
    torch.manual_seed(0)
    made = Contrast(DIM, DIM, temperature=0.2)
    teacher, student = torch.randn(2, 3, 5, DIM).unbind(0)
    hot = torch.rand(3, 5) < 0.5
    real = torch.arange(5) < torch.tensor([[2], [5], [3]])
    noise = torch.randn(3, 5, DIM) * ~real.unsqueeze(2)

    before = made(teacher, student, hot, real)
    after = made(teacher + noise, student - noise, hot ^ ~real, real)

    torch.testing.assert_close(before, after)


# --- the whole loss --------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [0.0, 0.3, 1.0])
def test_soft_targets_share_the_loss(data: SessionData, soft: float) -> None:
    """γ of the divergence, 1 - γ of the student's own."""
    student, _, made = taught(data, soft=soft)

    whole, own, divergence = losses(student, made, first_batch(data))

    torch.testing.assert_close(whole, (1 - soft) * own + soft * divergence)


def test_contrast_is_added_by_its_weight(data: SessionData) -> None:
    """β of it, on the vectors of the sessions that are learned from."""
    student, teacher, made = taught(data, soft=0.0, contrast=0.7)
    batch = first_batch(data)

    whole, own, _ = losses(student, made, batch)

    theirs, ours = teacher.table(batch.rows), student.table(batch.rows)
    added = made.contrast(theirs, ours, made.hot[batch.rows], batch.real)
    torch.testing.assert_close(whole, own + 0.7 * added)
    assert added.item() > 0


def test_a_teacher_that_learns_keeps_its_own_cross_entropy(data: SessionData) -> None:
    """Distillation alone would let it drift."""
    student, _, made = taught(data, dropout=0.0, soft=0.4, bidirectional=True)
    batch = first_batch(data)

    whole, own, divergence = losses(student, made, batch)

    columns = all_columns(student.table.items)
    theirs = score_batch(made.teacher, batch, columns, made.teacher.table(columns.rows))
    expected = 0.6 * own + 0.4 * divergence + next_item_loss(theirs)
    torch.testing.assert_close(whole, expected)


def test_a_teacher_at_rest_gets_no_gradient(data: SessionData) -> None:
    """And speaks without dropout."""
    student, teacher, made = taught(data, soft=0.5, contrast=0.5)
    batch = first_batch(data)

    whole, _, _ = losses(student, made, batch)
    whole.backward()

    assert made.teacher is teacher
    assert not teacher.ranker.training
    assert all(p.grad is None for module in teacher.modules() for p in module.parameters())
    assert all(p.grad is not None for p in student.ranker.parameters())


def test_every_parameter_of_the_contrast_gets_a_gradient(data: SessionData) -> None:
    """Pools and projections of both models: none stays as it was drawn."""
    student, _, made = taught(data, soft=0.0, contrast=1.0)

    whole, _, _ = losses(student, made, first_batch(data))
    whole.backward()

    for what, parameter in made.contrast.named_parameters():
        assert parameter.grad is not None, what
        assert parameter.grad.abs().max() > 0, what


# --- in training -----------------------------------------------------------------------------


def learn(
    student: Student, sessions: Sessions, config: FitConfig, made: Distillation | None = None
) -> None:
    """Train to the last epoch."""
    silent = Silent()
    fit(student, sessions, None, config, 1, progress=silent, stage="learn", distillation=made)


def trained(data: SessionData, **options: Any) -> tuple[Student, Student, Distillation]:
    """As `taught`, after an epoch."""
    student, teacher, made = taught(data, **options)
    learn(student, data.train.select(np.arange(60)), FIT, made)
    return student, teacher, made


def test_a_teacher_at_rest_stays_equal(data: SessionData) -> None:
    """To the bit, while its student moves and the contrast is trained."""
    _, untouched, start = taught(data, contrast=0.5)

    student, teacher, made = trained(data, contrast=0.5)

    assert weights(teacher) == weights(untouched)
    assert weights(student) != weights(taught(data)[0])
    for (what, before), after in zip(
        start.contrast.named_parameters(), made.contrast.parameters(), strict=True
    ):
        assert not torch.equal(before, after), what


def test_a_teacher_that_learns_moves_and_the_given_one_does_not(data: SessionData) -> None:
    """Its table too, whose gradients are sparse elsewhere; others may still use the given one."""
    _, untouched, _ = taught(data)

    _, teacher, made = trained(data, contrast=0.5, bidirectional=True)

    assert weights(teacher) == weights(untouched)
    assert teacher.table.rows_parameter is not None
    for before, after in zip(teacher.modules(), made.teacher.modules(), strict=True):
        moved = [
            not torch.equal(a, b)
            for a, b in zip(before.parameters(), after.parameters(), strict=True)
        ]
        assert any(moved)
    assert not torch.equal(teacher.table.weight, made.teacher.table.weight)


def test_soft_targets_alone_bring_a_student_near_its_teacher(data: SessionData) -> None:
    """Without any part of its own loss."""
    teacher = new_student(data, seed=2)
    config = FIT.model_copy(update={"epochs": 3})
    learn(teacher, data.train, config)
    student, batch = new_student(data, seed=5), first_batch(data)
    counts = torch.from_numpy(data.train.counts())
    made = Distillation.of(teacher, student, SoftTargets(soft=1.0), counts)
    before = losses(student, made, batch)[2].item()

    learn(student, data.train, config, made)

    assert losses(student, made, batch)[2].item() < before / 3


# --- after a session's end -------------------------------------------------------------------


def test_imitation_is_soft_targets_after_whole_sessions(data: SessionData) -> None:
    """KL(teacher || student) over all ways after the last click, session by session."""
    student, teacher, made = taught(data, after="sessions", soft=1.0)
    sessions = [session[:6] for session in data.train][:5]
    rows, lengths = padded(sessions)
    batch, columns = as_endings(rows, lengths), all_columns(student.table.items)
    student.ranker.train(mode=False)
    given = score_batch(student, batch, columns, student.table(columns.rows))

    found = made.imitation(given, batch, columns)

    def ways(model: Student, session: np.ndarray[Any, Any]) -> Tensor:
        table = model.table(columns.rows)
        encoded = model.ranker.encode(table[torch.from_numpy(session.astype(np.int64))][None])
        every = [table @ encoded.query[0, -1], encoded.repeat[0, -1]]
        return torch.cat(every).log_softmax(0)

    with torch.no_grad():
        expected = 0.0
        for session in sessions:
            p, q = ways(teacher, session), ways(student, session)
            expected += float((p.exp() * (p - q)).sum()) / len(sessions)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-4)
    assert expected > 0


def test_imitation_is_blind_to_what_comes_next(data: SessionData) -> None:
    """Its targets mean nothing: others give the same loss."""
    student, _, made = taught(data, after="sessions", soft=1.0)
    student.ranker.train(mode=False)
    batch, columns = as_endings(*padded([data.train[0]])), all_columns(student.table.items)
    found = []
    for target in (0, 5):
        other = replace(batch, target=torch.full_like(batch.target, target))
        given = score_batch(student, other, columns, student.table(columns.rows))
        found.append(float(made.imitation(given, other, columns).detach()))

    assert found[0] == found[1]


@pytest.mark.parametrize("others", [{"soft": 0.5}, {"contrast": 0.1}, {"bidirectional": True}])
def test_nothing_else_is_learned_after_a_session(others: dict[str, Any]) -> None:
    """There is no target there, and no half to contrast."""
    with pytest.raises(ValidationError, match="soft targets alone"):
        SoftTargets.model_validate({"after": "sessions", "soft": 1.0, **others})


def test_imitation_moves_the_table_alone_if_so_asked(data: SessionData) -> None:
    """With lr = 0 the encoder stays; without dropout the loss is the same in a second run."""
    histories = []
    for _ in range(2):
        student, _, made = taught(data, dropout=0.5, after="sessions", soft=1.0)
        before = {name: value.clone() for name, value in student.ranker.state_dict().items()}
        config = FIT.model_copy(update={"lr": 0.0, "table_lr": 0.01, "newest": 50, "epochs": 2})
        table = student.table(torch.arange(student.table.items)).detach().clone()
        histories.append(
            fit(
                student, data.train, None, config, 1,
                progress=Silent(), stage="imitate", distillation=made,
            )
        )  # fmt: skip
        for name, value in student.ranker.state_dict().items():
            torch.testing.assert_close(value, before[name], rtol=0, atol=0)
        assert not torch.equal(student.table(torch.arange(student.table.items)), table)

    losses = [[epoch.loss for epoch in history] for history in histories]
    assert losses[0] == losses[1]
    assert losses[0][1] < losses[0][0]
