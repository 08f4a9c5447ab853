"""Codes that follow from rows or sessions: quotient-remainder, hashing, RecJPQ."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compress.config import ConfigError
from compress.progress import Silent
from compress.sessions.data import Sessions
from compress.sessions.tables import Teacher
from compress.sessions.tables.coded import StoredCodesConfig
from compress.sessions.tables.hashing import Hashing, HashingConfig
from compress.sessions.tables.qr import Qr, QrConfig, radices
from compress.sessions.tables.recjpq import RecJpq, equal_bins, latent
from model_store.manifest import RadixCodes


def test_quotient_and_remainder_split_a_sum_exactly() -> None:
    """By hand: row 2q + r holds 10·q + r, so the codebooks give it back."""
    vectors = torch.tensor([[0.0], [1.0], [10.0], [11.0]])

    table = Qr().build(
        Teacher(vectors, torch.ones(4), None), QrConfig(), torch.Generator(), Silent()
    )

    assert table.codes.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert table(torch.arange(4)).tolist() == vectors.tolist()
    assert table.export().codes_spec == RadixCodes(radices=(2, 2))


@given(st.integers(2, 10**7), st.integers(2, 6))
def test_radices_hold_the_items_in_the_smallest_codebooks(items: int, books: int) -> None:
    """Their product reaches the items, the largest could not be smaller, nor the first."""
    found = radices(items, books)

    largest = max(found)
    assert len(found) == books
    assert np.prod([int(r) for r in found]) >= items
    assert largest == 2 or (largest - 1) ** books < items
    assert found[0] == 1 or (found[0] - 1) * largest ** (books - 1) < items


def test_hashes_are_those_of_the_formula() -> None:
    """By hand: code m of row v is (v + 1)·a_m mod p mod K."""
    vectors = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))

    table = Hashing().build(
        Teacher(vectors, torch.ones(50), None),
        HashingConfig(codes="2x10"),
        torch.Generator().manual_seed(0),
        Silent(),
    )

    spec = table.export().codes_spec
    assert spec is not None
    assert spec.type == "hashed"
    expected = [[(v + 1) * a % spec.prime % 10 for a in spec.factors] for v in range(50)]
    assert table.codes.tolist() == expected


def test_hashing_into_as_many_codewords_as_items_is_refused() -> None:
    """That would be the dense table, with collisions."""
    teacher = Teacher(torch.randn(50, 4), torch.ones(50), None)

    with pytest.raises(ConfigError, match="50 items need no hash into 64"):
        Hashing().build(teacher, HashingConfig(codes="2x64"), torch.Generator(), Silent())


def test_too_many_digits_for_two_bytes_are_refused() -> None:
    """A codebook has at most 65,536 codewords."""
    with pytest.raises(ConfigError, match="take more codebooks"):
        Hashing().build(
            Teacher(torch.zeros(70_000, 1), torch.ones(70_000), None),
            HashingConfig(codes="2x66000"),
            torch.Generator(),
            Silent(),
        )


def test_bins_hold_equally_many_items() -> None:
    """300 items in 16 bins: 18 or 19 each, in order of their value."""
    values = torch.randn(300, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    bins = equal_bins(values, 16)

    for m in range(2):
        assert set(bins[:, m].bincount().tolist()) == {18, 19}
        order = values[:, m].argsort()
        assert torch.equal(bins[order, m], bins[order, m].sort().values)


def test_items_of_one_kind_of_session_have_one_kind_of_code() -> None:
    """Two catalogues that never meet in a session lie at the two ends of a latent column."""
    draw = np.random.default_rng(0)
    rows = [draw.permutation(20)[:8] + 20 * (i % 2) for i in range(200)]
    sessions = Sessions(
        np.concatenate(rows).astype(np.int32),
        np.arange(0, 1601, 8),
        tuple(str(i) for i in range(40)),
    )

    columns = latent(sessions, 2, torch.Generator().manual_seed(0))

    first, second = columns[:20], columns[20:]
    apart = (first.amin(0) > second.amax(0)) | (first.amax(0) < second.amin(0))
    assert bool(apart.any())


def test_recjpq_needs_sessions(teacher: Teacher) -> None:
    """Where only a table is at hand, the error says so."""
    alone = Teacher(teacher.vectors, teacher.counts, None)

    with pytest.raises(ConfigError, match="its codes come from sessions"):
        RecJpq().build(alone, StoredCodesConfig(codes="4x16"), torch.Generator(), Silent())


def test_recjpq_needs_as_many_sessions_as_codebooks(teacher: Teacher) -> None:
    """An SVD has no more columns than its matrix has rows."""
    sessions = Sessions(
        np.arange(6, dtype=np.int32), np.array([0, 3, 6]), tuple(str(i) for i in range(300))
    )
    few = Teacher(teacher.vectors, teacher.counts, sessions)

    with pytest.raises(ConfigError, match="4 codebooks need as many sessions"):
        RecJpq().build(few, StoredCodesConfig(codes="4x16"), torch.Generator(), Silent())
