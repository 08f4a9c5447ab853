"""A session ranker with its item table, and the batches that both are trained on."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.config import CompressError
from compress.sessions.losses import Columns, Scored, scored
from compress.sessions.rankers.base import NOTHING, SessionRanker
from compress.sessions.tables.base import ItemTable


class NotTrained(CompressError):
    """A ranker without item vectors was asked for a query."""


@dataclass(frozen=True, slots=True)
class Student:
    """What is trained: an encoder and its item table."""

    ranker: SessionRanker
    table: ItemTable

    def modules(self) -> tuple[SessionRanker, ItemTable]:
        """Both."""
        return self.ranker, self.table

    def state(self) -> dict[str, Any]:
        """Weights of both."""
        return {"ranker": self.ranker.state_dict(), "table": self.table.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """The reverse of `state`."""
        self.ranker.load_state_dict(state["ranker"])
        self.table.load_state_dict(state["table"])

    def train(self, mode: bool) -> None:
        """Switch dropout and sampling on or off."""
        for module in self.modules():
            module.train(mode)


@dataclass(frozen=True, slots=True)
class Batch:
    """Sessions of a batch, and where in them something is predicted.

    Attributes:
        rows: (B, L + 1) item rows, 0 after the end.
        real: (B, L + 1) whether there is an item.
        history: (B, L) what is encoded: the sessions without their last column, or the whole.
        at: (P, 2) session and position of each target; position l follows l items.
        target: (P,) item rows.
    """

    rows: Tensor
    real: Tensor
    history: Tensor
    at: tuple[Tensor, Tensor]
    target: Tensor


def as_batch(rows: Tensor, lengths: Tensor, begins: Tensor) -> Batch:
    """Every click is a target, a session's first too; not the first of a piece that goes on.

    Args:
        rows: (B, L + 1) pieces of sessions, padded.
        lengths: (B,) of the pieces.
        begins: (B,) whether a piece is the first of its session.
    """
    places = torch.arange(rows.shape[1])
    real = places < lengths[:, None]
    session, place = (real & (begins[:, None] | (places > 0))).nonzero(as_tuple=True)
    return Batch(rows, real, rows[:, :-1], (session, place), rows[session, place])


def as_endings(rows: Tensor, lengths: Tensor) -> Batch:
    """One position a session, after its last click.

    Nothing is known to come there: the targets are row 0, and mean nothing.

    Args:
        rows: (B, L) sessions, padded.
        lengths: (B,) of the sessions.
    """
    real = torch.arange(rows.shape[1]) < lengths[:, None]
    after = torch.arange(len(rows)), lengths
    return Batch(rows, real, rows, after, torch.zeros_like(lengths))


def score_batch(student: Student, batch: Batch, columns: Columns, vectors: Tensor) -> Scored:
    """The batch's positions against the columns, whose vectors (C, D) are given."""
    own = vectors[columns.place[batch.history]]  # (B, L, D)
    ways = student.ranker.encode(own)
    if ways.query is None:
        raise NotTrained("this ranker has no item vectors: it is fitted, not trained")
    query = ways.query[batch.at]
    history = batch.history[batch.at[0]]  # (P, L)
    repeat = history.new_full(history.shape, NOTHING, dtype=query.dtype)
    if ways.repeat is not None:
        repeat = ways.repeat[batch.at]
    return scored(
        query,
        repeat,
        vectors=vectors,
        columns=columns,
        history=history,
        target=batch.target,
    )
