"""Sessions are cut, mixed and padded so that every click is learned from once an epoch."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.sessions import batches as batching
from compress.sessions.batches import Piece, batches, padded, windows
from compress.sessions.data import Sessions
from compress.sessions.student import Batch, as_batch

Lengths = list[int]
repeatable = settings(derandomize=True, database=None)
some_lengths = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def distinct(lengths: Lengths) -> Sessions:
    """Sessions in which no two clicks are alike."""
    rows = np.arange(1, sum(lengths) + 1, dtype=np.int32)
    return Sessions.of(rows, np.array(lengths), tuple(map(str, range(len(rows) + 1))))


def unpadded(rows: torch.Tensor, lengths: torch.Tensor) -> list[tuple[int, ...]]:
    """The sessions of a batch."""
    return [
        tuple(row[:length].tolist()) for row, length in zip(rows, lengths.tolist(), strict=True)
    ]


def epoch(pieces: list[Piece], clicks: int, seed: int) -> list[list[tuple[int, ...]]]:
    """Its batches."""
    rng = np.random.default_rng(seed)
    return [unpadded(rows, lengths) for rows, lengths, _ in batches(pieces, clicks, rng)]


@repeatable
@given(some_lengths, st.integers(1, 9))
def test_every_click_but_a_sessions_first_follows_another_in_one_piece(
    lengths: Lengths, length: int
) -> None:
    """In the sessions' order, and with at most ``length`` clicks before it."""
    sessions = distinct(lengths)

    pieces = windows(sessions, length)

    targets = [int(click) for piece in pieces for click in piece.clicks[1:]]
    assert targets == [int(click) for session in sessions for click in session[1:]]
    assert max(len(piece.clicks) for piece in pieces) <= length + 1


@repeatable
@given(some_lengths, st.integers(1, 9))
def test_pieces_of_a_session_share_one_click(lengths: Lengths, length: int) -> None:
    """The last of one is the first of the next; only the first of them begins the session."""
    sessions = distinct(lengths)

    pieces = iter(windows(sessions, length))

    for session in sessions:
        piece = next(pieces)
        assert piece.begins
        assert piece.clicks[0] == session[0]
        while piece.clicks[-1] != session[-1]:
            last, piece = piece.clicks[-1], next(pieces)
            assert not piece.begins
            assert piece.clicks[0] == last
    assert next(pieces, None) is None


@repeatable
@given(some_lengths)
def test_padding_stands_at_the_end(lengths: Lengths) -> None:
    """Zeros up to the longest session's length, and the sessions come back whole."""
    sessions = [*distinct(lengths)]

    rows, found = padded(sessions)

    assert rows.shape == (len(lengths), max(lengths))
    assert unpadded(rows, found) == [tuple(session.tolist()) for session in sessions]
    assert all((row[length:] == 0).all() for row, length in zip(rows, lengths, strict=True))


@repeatable
@given(some_lengths, st.integers(2, 60), st.integers(0, 5))
def test_each_piece_comes_once_an_epoch(lengths: Lengths, clicks: int, seed: int) -> None:
    """In batches of the clicks asked for, give or take one piece."""
    pieces = windows(distinct(lengths), 7)

    found = epoch(pieces, clicks, seed)

    assert Counter(piece for batch in found for piece in batch) == Counter(
        tuple(piece.clicks.tolist()) for piece in pieces
    )
    for batch in found:
        assert sum(map(len, batch)) < clicks + max(map(len, batch))


def test_the_order_is_a_function_of_the_seed() -> None:
    """The same seed gives the same batches, another seed others."""
    pieces = windows(distinct([3, 9, 1, 5, 5, 2, 8, 4] * 9), 7)

    assert epoch(pieces, 40, seed=1) == epoch(pieces, 40, seed=1)
    assert epoch(pieces, 40, seed=1) != epoch(pieces, 40, seed=2)


def test_pieces_of_one_length_meet_others_each_epoch() -> None:
    """The batches differ, not their order alone."""
    pieces = windows(distinct([4] * 30), 7)

    one, other = ({frozenset(batch) for batch in epoch(pieces, 20, seed)} for seed in (1, 2))

    assert len(one & other) < len(one) / 2


def test_pieces_of_like_length_stand_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among those that are sorted at once, so that little is padded and batches stay mixed."""
    monkeypatch.setattr(batching, "SORTED_AT_ONCE", 50)
    lengths = np.random.default_rng(0).integers(1, 30, 200).tolist()
    pieces = windows(distinct(lengths), 40)

    found = epoch(pieces, 60, seed=3)

    cells = sum(len(batch) * max(map(len, batch)) for batch in found)
    assert cells < 1.25 * sum(lengths)
    means = [np.mean([len(piece) for piece in batch]) for batch in found]
    assert means != sorted(means)
    assert Counter(len(piece) for batch in found for piece in batch) == Counter(lengths)


def learned(batch: Batch) -> list[tuple[list[int], int]]:
    """What is predicted, and from what."""
    seen = [batch.rows[s, :p].tolist() for s, p in zip(*batch.at, strict=True)]
    return list(zip(seen, batch.target.tolist(), strict=True))


def test_every_click_is_predicted_from_those_before_it() -> None:
    """A session's first one too, from nothing; what is padded predicts nothing."""
    rows, lengths = padded([np.array([7, 8, 9], np.int32), np.array([5], np.int32)])

    batch = as_batch(rows, lengths, torch.tensor([True, True]))

    assert learned(batch) == [
        ([], 7),
        ([7], 8),
        ([7, 8], 9),
        ([], 5),
    ]
    assert batch.history.tolist() == [[7, 8], [5, 0]]
    assert batch.real.tolist() == [[True, True, True], [True, False, False]]


def test_what_a_piece_takes_over_is_not_predicted_again() -> None:
    """The piece before has done so: here it would be predicted from nothing."""
    rows, lengths = padded([np.array([7, 8, 9], np.int32), np.array([5, 6], np.int32)])

    batch = as_batch(rows, lengths, torch.tensor([False, True]))

    assert learned(batch) == [([7], 8), ([7, 8], 9), ([], 5), ([5], 6)]
    assert batch.real.tolist() == [[True, True, True], [True, True, False]]


@repeatable
@given(some_lengths, st.integers(1, 9), st.integers(2, 60))
def test_each_click_of_a_long_session_is_a_target_once(
    lengths: Lengths, length: int, clicks: int
) -> None:
    """A session's first from nothing; every other with at least the click before it."""
    sessions = distinct(lengths)
    rng = np.random.default_rng(0)

    found = [
        pair
        for batch in batches(windows(sessions, length), clicks, rng)
        for pair in learned(as_batch(*batch))
    ]

    assert sorted(target for _, target in found) == sessions.rows.tolist()
    firsts = {int(session[0]) for session in sessions}
    for seen, target in found:
        # No two clicks are alike: rows are counted through, session after session.
        assert seen == list(range(target - len(seen), target))
        assert bool(seen) == (target not in firsts)
        assert len(seen) <= length
