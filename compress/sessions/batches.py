"""Batches of sessions of like length, padded at the end."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.sessions.data import Sessions

# Batches are cut from this many sessions sorted by length: little padding, and still mixed.
SORTED_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a session.

    Attributes:
        clicks: (clicks,) item rows.
        begins: whether the session begins with it; if not, its first click is history only, for
            the piece before has ended on it as a target.
    """

    clicks: NDArray[np.int32]
    begins: bool


def windows(sessions: Sessions, length: int) -> list[Piece]:
    """Each session in pieces of at most ``length`` + 1 clicks; neighbours share one click.

    So every click is a target once, a session's first from nothing, and all others with at least
    one and at most ``length`` before them.
    """
    return [
        Piece(session[start : start + length + 1], start == 0)
        for session in sessions
        for start in range(0, max(1, len(session) - 1), length)
    ]


def endings(sessions: Sessions, length: int) -> list[Piece]:
    """The last clicks of each session, at most ``length``: what came after them nobody has seen."""
    return [Piece(session[-length:], len(session) <= length) for session in sessions]


def padded(sessions: Sequence[NDArray[np.int32]]) -> tuple[Tensor, Tensor]:
    """Rows (B, L), 0 after a session's end, and lengths (B,)."""
    lengths = torch.tensor([len(session) for session in sessions])
    rows = torch.zeros(len(sessions), int(lengths.max()), dtype=torch.long)
    for place, session in enumerate(sessions):
        rows[place, : len(session)] = torch.from_numpy(session.astype(np.int64))
    return rows, lengths


def batches(
    pieces: Sequence[Piece], clicks: int, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Every piece once, in batches of about ``clicks`` clicks, in an order drawn from ``rng``.

    A batch is rows (B, L) and lengths (B,), as `padded` gives them, and which pieces begin a
    session (B,).
    """
    lengths = np.array([len(piece.clicks) for piece in pieces])
    order = rng.permutation(len(pieces))
    for start in range(0, len(order), SORTED_AT_ONCE):
        some = order[start : start + SORTED_AT_ONCE]
        some = some[np.argsort(lengths[some], kind="stable")]
        groups = _groups(some, lengths, clicks)
        for place in rng.permutation(len(groups)):
            chosen = [pieces[i] for i in groups[place]]
            begins = torch.tensor([piece.begins for piece in chosen])
            yield *padded([piece.clicks for piece in chosen]), begins


def _groups(
    order: NDArray[np.int64], lengths: NDArray[np.int64], clicks: int
) -> list[NDArray[np.int64]]:
    """Cut an order where the clicks of a group would be too many."""
    total = np.cumsum(lengths[order])
    return np.split(order, np.flatnonzero(np.diff(total // clicks)) + 1)
