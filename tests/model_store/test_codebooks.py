"""Codes and codebooks: packed without loss, computed by their formulas, added up in one order."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from model_store import codebooks
from model_store.codebooks import CodedTable, computed_codes, looked_up, pack_codes, unpack_codes
from model_store.manifest import HashedCodes, RadixCodes

ITEMS = 60


@given(
    st.integers(1, 16).flatmap(
        lambda bits: st.tuples(
            st.just(bits),
            arrays(
                np.uint16,
                st.tuples(st.integers(1, 5), st.integers(1, 9)),
                elements=st.integers(0, (1 << bits) - 1),
            ),
        )
    )
)
def test_codes_come_out_as_they_went_in(given_: tuple[int, np.ndarray[Any, Any]]) -> None:
    """Of any width from 1 to 16 bits and any number a row, in as few bytes as they take."""
    bits, codes = given_
    packed = pack_codes(codes, bits)
    found = unpack_codes(packed, codes.shape[1], bits)

    assert packed.shape == (len(codes), -(-codes.shape[1] * bits // 8))
    assert found.dtype == (np.uint8 if bits <= 8 else np.uint16)
    np.testing.assert_array_equal(found, codes)


@pytest.mark.parametrize("bits", [8, 16])
def test_whole_bytes_are_not_copied(bits: int) -> None:
    """Codes of one or two bytes are a view of the file, which workers share."""
    packed = np.zeros((3, 2 * bits // 8), np.uint8)

    assert np.shares_memory(unpack_codes(packed, 2, bits), packed)


def test_a_score_by_hand() -> None:
    """Codes (1, 0) of the books [[a, b], [c, d]] are b + c, or b beside c."""
    codebooks = np.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], np.float32)
    codes = np.array([[1, 0]], np.uint8)
    one = np.zeros(1, np.intp)

    assert CodedTable(codes, codebooks, False).vectors(one).tolist() == [[8.0, 10.0]]
    assert CodedTable(codes, codebooks, True).vectors(one).tolist() == [[3.0, 4.0, 5.0, 6.0]]
    query = np.array([1, 10], np.float32)
    assert CodedTable(codes, codebooks, False).scores(query, one).tolist() == [108.0]
    query = np.array([1, 10, 100, 1000], np.float32)
    assert CodedTable(codes, codebooks, True).scores(query, one).tolist() == [6543.0]


def test_look_ups_add_in_the_order_of_the_codebooks() -> None:
    """Float addition is not associative: who adds in another order answers another score."""
    sub_scores = np.array([[1e8], [1.0], [-1e8]], np.float32)

    assert looked_up(sub_scores, np.zeros((1, 3), np.uint8)).tolist() == [0.0]


def test_radix_codes_are_the_digits_of_the_row() -> None:
    """Row 7 in the radices 3 and 4 is (1, 3), as in quotient and remainder."""
    codes = computed_codes(RadixCodes(radices=(3, 4)), 12, 4)

    assert codes[7].tolist() == [1, 3]
    assert len(np.unique(codes, axis=0)) == 12


def test_hashed_codes_follow_the_formula() -> None:
    """(row + 1) · factor modulo the prime, modulo K; two bytes each once K needs them."""
    spec = HashedCodes(factors=(5, 11), prime=31)

    assert computed_codes(spec, 8, 4)[7].tolist() == [40 % 31 % 4, 88 % 31 % 4]
    assert computed_codes(spec, 8, 4).dtype == np.uint8
    assert computed_codes(spec, 8, 257).dtype == np.uint16


@pytest.mark.parametrize(
    "rest", [RadixCodes(radices=(8, 8, 8, 8)), HashedCodes(factors=(3, 5, 7, 11))]
)
def test_computed_codes_take_no_file(rest: RadixCodes | HashedCodes, tmp_path: Path) -> None:
    """They follow from the rows: the manifest says how, and the codebooks are all there is."""
    books = np.random.default_rng(7).normal(size=(4, 8, 6)).astype(np.float32)
    table = CodedTable(computed_codes(rest, ITEMS, 8), books, False, rest)
    found = CodedTable.load(table.save(tmp_path), ITEMS, lambda name: tmp_path / name)

    assert [p.name for p in (tmp_path / "items").iterdir()] == ["codebooks.npy"]
    np.testing.assert_array_equal(found.vectors(np.arange(ITEMS)), table.vectors(np.arange(ITEMS)))


def test_codes_are_counted_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean item is the same, to the bit, and the last few items count too."""
    draw = np.random.default_rng(0)
    words = draw.standard_normal((3, 5, 2), dtype=np.float32)
    table = CodedTable(draw.integers(0, 5, (ITEMS, 3), dtype=np.uint8), words, concatenated=True)
    expected = table.mean()
    monkeypatch.setattr(codebooks, "AT_ONCE", 7)

    np.testing.assert_array_equal(table.mean(), expected)
