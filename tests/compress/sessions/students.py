"""Small rankers, tables and data of the session line, for tests that train or export."""

from typing import Any

import numpy as np
import torch

from compress.sessions.cooccurrence import cooccurrence_vectors
from compress.sessions.data import SessionData, Sessions
from compress.sessions.rankers import SESSION_RANKERS
from compress.sessions.rankers.base import SessionRanker
from compress.sessions.sources.synthetic import SyntheticSessions, SyntheticSessionsConfig
from compress.sessions.student import Student
from compress.sessions.tables.learned import LearnedTable

DIM = 8
TRAINED = [
    ("sasrec", {"pooling": "items"}),
    ("sasrec", {"pooling": "last", "heads": 2, "layers": 2, "repeat": False}),
    ("sasrec", {"pooling": "attention", "scale": 0.0}),
    ("stamp", {}),
]
FLOORS = [("own-items", {}), ("sequential-rules", {}), ("rules-and-own", {})]


def synthetic(**options: Any) -> SessionData:
    """Made-up sessions: a few hundred, over sixty items."""
    chosen = {"sessions": 400, "items": 60, "topics": 6, **options}
    return SyntheticSessions(SyntheticSessionsConfig.model_validate(chosen)).parts()


def new_ranker(name: str, seed: int = 0, **options: Any) -> SessionRanker:
    """A ranker as training begins with it."""
    kind = SESSION_RANKERS[name]
    torch.manual_seed(seed)
    return kind(kind.Config(**{"dim": DIM if kind.USES_VECTORS else 1, **options}))


def drawn_ranker(name: str, seed: int = 0, **options: Any) -> SessionRanker:
    """One in evaluation, none of whose parameters is zero, so that nothing hides behind one."""
    ranker = new_ranker(name, seed, **options).eval()
    with torch.no_grad():
        for parameter in ranker.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return ranker


def new_student(data: SessionData, seed: int = 0, **options: Any) -> Student:
    """SASRec with an uncompressed table, as a run begins with them."""
    vectors = cooccurrence_vectors(data.train, DIM, seed)
    return Student(new_ranker("sasrec", seed, **{"dropout": 0.1, **options}), LearnedTable(vectors))


def weights(student: Student) -> bytes:
    """All that was learned, as bytes."""
    states = (module.state_dict().values() for module in student.modules())
    return b"".join(tensor.numpy().tobytes() for state in states for tensor in state)


def some_sessions(*lists: list[int], items: int) -> Sessions:
    """Sessions of item rows."""
    rows = np.array([row for session in lists for row in session], np.int32)
    ids = tuple(f"item{row}" for row in range(items))
    return Sessions.of(rows, np.array([len(session) for session in lists]), ids)
