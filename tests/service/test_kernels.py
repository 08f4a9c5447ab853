"""The compiled look-ups against naive ones, bit by bit."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numba import njit

from model_store.codebooks import looked_up
from service import kernels

Array = np.ndarray[Any, Any]
numbers = st.floats(-1e6, 1e6, width=32)


@st.composite
def tables_and_codes(draw: st.DrawFn, largest: int) -> tuple[Array, Array]:
    """Tables (M, K) and codes (N, M) below K. Few values, so that many scores are equal."""
    items, books = draw(st.integers(1, 70)), draw(st.integers(1, 5))
    size = draw(st.integers(1, largest))
    values = draw(st.sampled_from([numbers, st.sampled_from([0.0, 1.0, -1.0, 0.5])]))
    tables = draw(arrays(np.float32, (books, size), elements=values))
    kind = np.uint8 if size <= 256 else np.uint16
    return tables, draw(arrays(kind, (items, books), elements=st.integers(0, size - 1)))


def expected_best(scores: Array, count: int) -> list[tuple[float, int]]:
    """The best by score descending, then by row."""
    order = sorted(range(len(scores)), key=lambda row: (-scores[row], row))
    return [(float(scores[row]), row) for row in order[:count]]


def pairs(heap: kernels.Heap) -> list[tuple[float, int]]:
    """A heap in order."""
    found = zip(heap[0].tolist(), heap[1].tolist(), strict=True)
    return sorted(found, key=lambda pair: (-pair[0], pair[1]))


@settings(deadline=None)
@given(tables_and_codes(300), st.integers(1, 70))
def test_look_ups_give_the_bits_of_numpy(given_: tuple[Array, Array], count: int) -> None:
    """The scores of a list of items, and the best of all, with codes of one byte and of two."""
    tables, codes = given_
    scores = looked_up(tables, codes) + np.float32(0)  # no negative zeros
    rows = np.arange(len(codes))[::-1].copy()
    count = min(count, len(codes))

    np.testing.assert_array_equal(kernels.taken(codes, rows, tables), scores[::-1])
    assert pairs(kernels.scanned(codes, tables, count)) == expected_best(scores, count)


@settings(deadline=None)
@given(tables_and_codes(16), st.integers(1, 70))
@example((np.zeros((3, 2), np.float32), np.zeros((33, 3), np.uint8)), 33)
def test_blocks_give_the_same_bits(given_: tuple[Array, Array], count: int) -> None:
    """Whatever the tables, no item is lost by rounding them to bytes; padding is no item."""
    tables, codes = given_
    scores = looked_up(tables, codes) + np.float32(0)
    blocks, rows = kernels.in_blocks(codes), np.arange(len(codes))
    even = np.concatenate([tables, np.zeros((len(tables) % 2, tables.shape[1]), np.float32)])
    count = min(count, len(codes))
    found = kernels.scanned_blocks(blocks, even, *kernels.rounded(even), len(codes), count)

    np.testing.assert_array_equal(kernels.out_of_blocks(blocks, rows, codes.shape[1]), codes)
    np.testing.assert_array_equal(kernels.taken_from_blocks(blocks, rows, even), scores)
    assert pairs(found) == expected_best(scores, count)


@settings(deadline=None)
@given(tables_and_codes(16))
def test_bytes_bound_a_score_from_above(given_: tuple[Array, Array]) -> None:
    """So an item whose bound misses the best so far need not be scored."""
    tables, codes = given_
    entries, ceiling, step = kernels.rounded(tables)
    sums = entries[np.arange(len(tables)), codes].sum(1, dtype=np.int64)

    assert (looked_up(tables, codes) <= ceiling + step * sums).all()


@njit
def _both(blocks: Array, entries: Array, one: Array, other: Array) -> None:
    for block in range(len(blocks)):
        kernels.sums_by_look_up(blocks, block, entries, one[block])
        kernels.sums_by_shuffle(blocks, block, entries, other[block])


@pytest.mark.skipif(not kernels.SHUFFLES, reason="this processor has no AVX2")
@pytest.mark.parametrize("books", [2, 8, 256])
def test_shuffles_add_what_look_ups_add(books: int) -> None:
    """In 16 bits, which the sum of 256 bytes just fits into."""
    random = np.random.default_rng(books)
    blocks = kernels.in_blocks(random.integers(0, 16, (100, books)).astype(np.uint8))
    entries = random.integers(200, 256, (books, 16)).astype(np.uint8)
    entries[:, 0] = 255
    one, other = np.zeros((2, 4, 32), np.uint16)
    _both(blocks, entries, one, other)

    np.testing.assert_array_equal(one, other)
    assert one[3, 31] == 255 * books  # padding: code 0 of every codebook


def test_any_processor_finds_the_same() -> None:
    """Where there is no shuffle, the same bytes are looked up one by one."""
    random = np.random.default_rng(3)
    codes = random.integers(0, 16, (5000, 6)).astype(np.uint8)
    tables = random.normal(size=(6, 16)).astype(np.float32)
    scan = kernels.block_scan(kernels.sums_by_look_up)
    given_ = (kernels.in_blocks(codes), tables, *kernels.rounded(tables), len(codes), 40)

    assert pairs(scan(*given_)) == pairs(kernels.scanned_blocks(*given_))
    assert pairs(scan(*given_)) == expected_best(looked_up(tables, codes), 40)


@settings(deadline=None)
@given(
    arrays(np.float32, st.integers(1, 200), elements=st.sampled_from([0.0, 1.0, 2.5, -3.0])),
    st.integers(1, 50),
)
def test_of_equal_scores_the_first_rows_are_best(scores: Array, count: int) -> None:
    """The order is total, so the best are the same ones every time."""
    count = min(count, len(scores))

    assert pairs(kernels.best_of(scores, count)) == expected_best(scores, count)


def test_places_that_nobody_takes_are_marked() -> None:
    """An item that scores minus infinity is none of the best."""
    scores, rows = kernels.best_of(np.array([1.0, -np.inf], np.float32), 2)

    assert sorted(rows.tolist()) == [0, kernels.NO_ROW]
    assert sorted(scores.tolist()) == [-np.inf, 1.0]


def test_what_is_mapped_from_disk_can_be_looked_up() -> None:
    """Arrays that must not be written are taken without a copy and without compiling anew."""
    codes, tables = np.zeros((3, 2), np.uint8), np.ones((2, 4), np.float32)
    before = len(kernels.taken.signatures)
    codes.flags.writeable = tables.flags.writeable = False

    assert kernels.taken(codes, np.arange(3), tables).tolist() == [2.0, 2.0, 2.0]
    assert len(kernels.taken.signatures) == before == 2


@pytest.mark.parametrize(
    "kernel",
    [kernels.taken, kernels.scanned, kernels.best_of, kernels.taken_from_blocks,
     kernels.scanned_blocks],
    ids=lambda kernel: kernel.__name__,
)  # fmt: skip
def test_no_request_waits_for_a_compiler(kernel: Any) -> None:
    """A kernel takes the types that it was compiled for, and refuses all others."""
    arguments = kernel.__code__.co_argcount

    with pytest.raises(TypeError, match="No matching definition"):
        kernel(*("codes",) * arguments)
