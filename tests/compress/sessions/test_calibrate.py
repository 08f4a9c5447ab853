"""How much repeats weigh is fitted on held-out sessions, and nothing else is touched."""

import numpy as np
import pytest
import torch

from compress.progress import Silent
from compress.sessions import calibrate as calibrating
from compress.sessions.calibrate import BOOSTS, calibrate
from compress.sessions.data import Prefixes, SessionData
from compress.sessions.student import Student
from compress.sessions.train import judge
from tests.compress.sessions.students import new_student, synthetic


@pytest.fixture(scope="module")
def data() -> SessionData:
    """A small data set."""
    return synthetic()


def of_kind(prefixes: Prefixes, repeated: bool) -> Prefixes:
    """The prefixes whose targets are repeats, or those whose targets are new."""
    return prefixes.select(np.flatnonzero(prefixes.repeated == repeated))


def fitted(student: Student, prefixes: Prefixes) -> float:
    """The boost that is found."""
    return calibrate(student, prefixes, progress=Silent(), stage="calibrate")


def test_where_all_targets_repeat_repeats_gain_and_where_none_does_they_lose(
    data: SessionData,
) -> None:
    """The largest boosts that make a difference, up and down."""
    student = new_student(data)
    repeated, new = of_kind(data.validation, True), of_kind(data.validation, False)
    assert len(repeated) > 20
    assert len(new) > 20
    up, down = fitted(student, repeated), fitted(student, new)

    assert up > 0 > down


def test_the_best_boost_stays_in_the_ranker(data: SessionData) -> None:
    """By NDCG@20 on what is given; nothing else of the student changes."""
    student = new_student(data)
    before = {name: value.clone() for name, value in student.ranker.state_dict().items()}

    best = fitted(student, data.validation)
    assert float(student.ranker.boost) == best

    scores = {}
    for boost in BOOSTS:
        student.ranker.boost.fill_(boost)
        scores[boost] = judge(student, data.validation)[2]
    student.ranker.boost.fill_(best)
    assert scores[best] == max(scores.values())
    for name, value in student.ranker.state_dict().items():
        expected = torch.tensor(best) if name == "boost" else before[name]
        torch.testing.assert_close(value, expected, rtol=0, atol=0)


def test_a_boost_is_added_to_the_weights_of_repeats_alone(data: SessionData) -> None:
    """Not to the query."""
    ranker, vectors = new_student(data).ranker.eval(), torch.randn(2, 4, 8)
    plain = ranker.encode(vectors)
    ranker.boost.fill_(1.5)
    boosted = ranker.encode(vectors)

    assert torch.equal(plain.query, boosted.query)
    torch.testing.assert_close(boosted.repeat, plain.repeat + 1.5)


def test_a_ranker_that_cannot_repeat_is_left_alone(data: SessionData) -> None:
    """There is nothing to weigh."""
    student = new_student(data, repeat=False)

    assert fitted(student, data.validation) == 0.0
    assert float(student.ranker.boost) == 0.0


def test_of_many_prefixes_some_are_enough(
    data: SessionData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as of an even sample."""
    monkeypatch.setattr(calibrating, "ENOUGH", 50)
    places = np.linspace(0, len(data.validation) - 1, 50, dtype=np.int64)

    found = fitted(new_student(data), data.validation)

    assert found == fitted(new_student(data), data.validation.select(places))
