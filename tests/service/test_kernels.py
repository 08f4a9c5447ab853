"""The look-ups, compiled and by numpy, against naive ones, bit by bit."""

import gc
import shutil
import subprocess
import sys
import sysconfig
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from model_store.codebooks import looked_up
from model_store.packed_ids import PackedIds
from service import kernels
from service.item_ids import Index
from tests.service.conftest import by, ways

Array = np.ndarray[Any, Any]
numbers = st.floats(-1e6, 1e6, width=32)
loops = pytest.mark.skipif(not kernels.COMPILED, reason="loops are not compiled here")


HEADER = Path(sysconfig.get_path("include")) / "Python.h"


@pytest.mark.skipif(
    not (shutil.which("cc") and HEADER.exists()), reason="no C compiler or no Python.h here"
)
def test_where_there_is_a_compiler_the_loops_are_compiled() -> None:
    """Else all of these would test numpy against itself."""
    assert not kernels.WHY_NOT


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


LISTED = {"option": orjson.OPT_SERIALIZE_NUMPY}
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@pytest.mark.skipif(not kernels.COMPILED, reason="without loops objects are made")
@given(st.lists(st.tuples(st.text(max_size=6), finite, st.booleans())), st.booleans())
@example([(']\\",[', 1.0, True), ("€𝄞", -1e-30, False), ("", 3e38, True)], True)
def test_items_are_the_json_of_objects(items: list[tuple[str, float, bool]], some: bool) -> None:
    """Byte by byte, whatever stands in an id."""
    ids, scores = [each[0] for each in items], np.array([each[1] for each in items], np.float32)
    cold = bytes(each[2] for each in items) if some else b""
    objects = [
        {"id": item, "score": score} | ({"cold": True} if some and is_cold else {})
        for item, score, (*_, is_cold) in zip(ids, scores, items, strict=True)
    ]

    found = kernels.items_json(orjson.dumps(ids), orjson.dumps(scores, **LISTED), cold)

    assert found == orjson.dumps(objects, **LISTED)


@pytest.mark.skipif(not kernels.COMPILED, reason="without loops objects are made")
@pytest.mark.parametrize(
    ("ids", "scores"),
    [
        (b"[]", b"[1]"),
        (b'["a"]', b"[]"),
        (b'["a","b"]', b"[1]"),
        (b'["a"]', b"[1,2]"),
        (b'["a', b"[1]"),
        (b'["\\', b"[1]"),
        (b"[1]", b"[1]"),
        (b"", b""),
    ],
)
def test_lists_that_do_not_fit_are_no_items(ids: bytes, scores: bytes) -> None:
    """Of other lengths, or cut off: nothing is read or written beyond them."""
    for cold in (b"", b"\1"):
        with pytest.raises(ValueError, match="expected lists"):
            kernels.items_json(ids, scores, cold)
    with pytest.raises(ValueError, match="expected lists"):
        kernels.items_json(b'["a"]', b"[1]", b"\0\0")


@ways
@given(tables_and_codes(300), st.integers(1, 70))
def test_look_ups_give_the_bits_of_numpy(
    compiled: bool, given_: tuple[Array, Array], count: int
) -> None:
    """The scores of a list of items, and the best of all, with codes of one byte and of two."""
    tables, codes = given_
    scores = looked_up(tables, codes) + np.float32(0)  # no negative zeros
    rows = np.arange(len(codes))[::-1].copy()
    count = min(count, len(codes))

    with by(compiled):
        np.testing.assert_array_equal(kernels.taken(codes, rows, tables), scores[::-1])
        assert pairs(kernels.scanned(codes, tables, count)) == expected_best(scores, count)


@ways
@given(tables_and_codes(300), st.booleans(), st.integers(2, 5))
def test_vectors_have_the_bits_of_numpy(
    compiled: bool, given_: tuple[Array, Array], concatenated: bool, width: int
) -> None:
    """Codewords added up or one after the other, by codes of one byte and of two."""
    tables, codes = given_
    codebooks = np.multiply.outer(tables, np.arange(1, width + 1, dtype=np.float32))
    rows = np.array([len(codes) - 1, 0, 0])
    words = codebooks[np.arange(codes.shape[1]), codes[rows]]  # (3, M, width)
    expected = words.reshape(3, -1) if concatenated else words.sum(1)

    with by(compiled):
        found = kernels.vectors(codes, rows, codebooks, concatenated=concatenated)
        none = kernels.vectors(codes, rows[:0], codebooks, concatenated=concatenated)

    np.testing.assert_array_equal(found, expected)
    assert none.shape == (0, expected.shape[1])


@ways
@given(tables_and_codes(16), st.integers(1, 70))
@example((np.zeros((3, 2), np.float32), np.zeros((33, 3), np.uint8)), 33)
def test_blocks_give_the_same_bits(compiled: bool, given_: tuple[Array, Array], count: int) -> None:
    """Whatever the tables, no item is lost by rounding them to bytes; padding is no item."""
    tables, codes = given_
    scores = looked_up(tables, codes) + np.float32(0)
    blocks, rows = kernels.in_blocks(codes), np.arange(len(codes))
    even = np.concatenate([tables, np.zeros((len(tables) % 2, tables.shape[1]), np.float32)])
    count = min(count, len(codes))

    np.testing.assert_array_equal(kernels.out_of_blocks(blocks, rows, codes.shape[1]), codes)
    with by(compiled):
        np.testing.assert_array_equal(kernels.taken_from_blocks(blocks, rows, even), scores)
        found = kernels.scanned_blocks(blocks, even, len(codes), count)
        assert pairs(found) == expected_best(scores, count)


@given(tables_and_codes(16))
def test_bytes_bound_a_score_from_above(given_: tuple[Array, Array]) -> None:
    """So an item whose bound misses the best so far need not be scored."""
    tables, codes = given_
    entries, ceiling, step = kernels.rounded(tables)
    sums = entries[np.arange(len(tables)), codes].sum(1, dtype=np.int64)

    assert (looked_up(tables, codes) <= ceiling + step * sums).all()


@pytest.mark.skipif(not kernels.SHUFFLES, reason="this processor has no AVX2")
@pytest.mark.parametrize("books", [2, 6, 8, 256])
@pytest.mark.parametrize("spread", [1e-3, 1.0])
def test_any_processor_finds_what_shuffles_find(books: int, spread: float) -> None:
    """In 16 bits, which the sum of 256 bytes just fits into; tables nearly alike fill them."""
    random = np.random.default_rng(books)
    codes = random.integers(0, 16, (5001, books)).astype(np.uint8)
    tables = random.normal(1, spread, size=(books, 16)).astype(np.float32)
    tables[0, 0] = 2.0
    blocks = kernels.in_blocks(codes)
    one, other = (
        kernels.scanned_blocks(blocks, tables, len(codes), 40, shuffle=shuffle)
        for shuffle in (True, False)
    )

    assert pairs(one) == pairs(other) == expected_best(looked_up(tables, codes), 40)


@ways
@given(
    arrays(np.float32, st.integers(1, 200), elements=st.sampled_from([0.0, 1.0, 2.5, -3.0])),
    st.integers(1, 50),
)
def test_of_equal_scores_the_first_rows_are_best(compiled: bool, scores: Array, count: int) -> None:
    """The order is total, so the best are the same ones every time."""
    count = min(count, len(scores))

    with by(compiled):
        assert pairs(kernels.best_of(scores, count)) == expected_best(scores, count)


@given(arrays(np.float32, st.integers(0, 60), elements=st.floats(width=32)), st.integers(0, 70))
def test_loops_and_numpy_agree_on_any_scores(scores: Array, count: int) -> None:
    """On infinities and what is no number too, and with more places than items."""
    found = []
    for compiled in (True, False):
        with by(compiled):
            found.append(pairs(kernels.best_of(scores, count)))

    assert found[0] == found[1]


@ways
def test_places_that_nobody_takes_are_marked(compiled: bool) -> None:
    """An item that scores minus infinity, or no number, is none of the best."""
    with by(compiled):
        scores, rows = kernels.best_of(np.array([1.0, -np.inf, np.nan], np.float32), 2)

    assert sorted(rows.tolist()) == [0, kernels.NO_ROW]
    assert sorted(scores.tolist()) == [-np.inf, 1.0]


@ways
@given(arrays(np.int64, st.integers(0, 60), elements=st.integers(-1, 100)))
def test_rows_are_told_apart_unless_one_is_unknown_or_comes_twice(
    compiled: bool, rows: Array
) -> None:
    """Whatever they are; of no rows nothing is the same."""
    listed = rows.tolist()

    with by(compiled):
        assert kernels.told_apart(rows) == (-1 not in listed and len(set(listed)) == len(listed))


@ways
def test_rows_of_any_size_are_told_apart(compiled: bool) -> None:
    """Many, and the greatest that there are."""
    rows = np.random.default_rng(0).permutation(10_000)
    rows[7] = np.iinfo(np.int64).max

    with by(compiled):
        assert kernels.told_apart(rows)
        rows[-1] = rows[0]
        assert not kernels.told_apart(rows)


@ways
@given(arrays(np.float32, st.integers(0, 60), elements=st.floats(width=32)))
def test_numbers_are_finite_if_all_are(compiled: bool, numbers: Array) -> None:
    """The greatest of float32 are; infinities and what is no number are not."""
    with by(compiled):
        assert kernels.all_finite(numbers) == bool(np.isfinite(numbers).all())


@ways
@given(
    arrays(np.float32, st.integers(0, 300), elements=st.floats(width=32, allow_nan=False)),
    st.one_of(st.none(), st.integers(0, 400)),
)
def test_the_best_come_first_and_of_equal_ones_the_first(
    compiled: bool, scores: Array, count: int | None
) -> None:
    """As a stable sort has them, both zeros being equal."""
    order = np.argsort(-scores, kind="stable")[:count]

    with by(compiled):
        places, best = kernels.best_first(scores, count)

    assert places.tolist() == order.tolist()
    np.testing.assert_array_equal(best, scores[order])


@ways
@pytest.mark.parametrize("outliers", [[], [-1e30], [1e30, -1e30], [np.nan]])
def test_scores_that_lie_close_together_are_sorted_too(
    compiled: bool, outliers: list[float]
) -> None:
    """Beside scores far off, what tells most from another lies in their last bits."""
    close = np.random.default_rng(0).integers(0, 900, 2000) * 2.0**-21 + 5  # some twice
    scores = np.array([*close, *outliers], np.float32)

    with by(compiled):
        places, _ = kernels.best_first(scores, None)

    assert places.tolist() == np.argsort(-scores, kind="stable").tolist()


@loops
def test_no_order_of_scores_takes_quadratic_time() -> None:
    """A few that follow each other by the least there is, each many times, and one far off."""
    apart = np.tile(np.arange(200, dtype=np.uint32), 2_000)
    scores = np.array([*(apart + 0x40000000).view(np.float32), -1e30], np.float32)
    began = time.perf_counter()

    places, _ = kernels.best_first(scores, 3)

    assert time.perf_counter() - began < 5  # some 10 ms; a minute where each passes all others
    assert places.tolist() == [199, 399, 599]


@ways
def test_what_is_no_number_comes_last(compiled: bool) -> None:
    """Whatever its sign, and below infinity; of other memory than scores none is sorted."""
    scores = np.array([np.nan, -np.inf, 1.0, -np.nan, 1.0], np.float32)
    with by(compiled):
        places, _ = kernels.best_first(np.broadcast_to(scores, (1, 5))[0], None)

    assert places.tolist() == [2, 4, 1, 0, 3]


@ways
def test_values_are_picked_by_place(compiled: bool) -> None:
    """In the order of the places, also twice; from the end none is taken."""
    with by(compiled):
        assert kernels.picked(["a", "b", "c"], np.array([2, 0, 2])) == ["c", "a", "c"]
        assert kernels.picked([], np.array([], np.int64)) == []
        for beyond in (-1, 3):
            with pytest.raises(IndexError, match="expected rows from 0 to 2"):
                kernels.picked(["a", "b", "c"], np.array([0, beyond]))


@ways
@pytest.mark.parametrize(
    ("texts", "expected"),
    [([], 0), (["a", "", "ccc"], 3), (["€𝄞"], 2), (["a", 7], -1), ([None], -1), (("a", "bb"), 2)],
)
def test_the_longest_text_is_told(compiled: bool, texts: Any, expected: int) -> None:
    """In characters, whatever they take; of anything but texts nothing is."""
    with by(compiled):
        assert kernels.longest(texts) == expected


class Text(str):
    """Not quite a text."""


any_text = st.text(st.characters(exclude_categories=[]), max_size=4)  # half characters too
anything = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**1100), 2**1100), st.floats(), any_text,
    any_text.map(Text), st.floats().map(np.float64), st.binary(max_size=2),
    st.lists(st.integers(), max_size=2),
)  # fmt: skip


@given(st.lists(anything | any_text, max_size=12))
def test_loops_and_python_agree_on_the_longest(values: list[Any]) -> None:
    """Of whatever a list may hold."""
    assert kernels.longest(values) == kernels.longest(tuple(values))


LAID = 7  # what stands where nothing is laid


def laid(columns: list[list[Any]], vocabulary: list[str]) -> tuple[list[list[int]], list[int]]:
    """Rows from 2 on, by column, every second column of the tensor; and the columns left."""
    known = PackedIds.of(vocabulary)
    rows = np.full((len(columns[0]), 2 * len(columns)), LAID, np.int32)
    given = [
        (each, kernels.TokenColumn(known.text, known.ends, *Index.of(known), 2, 2 * place))
        for place, each in enumerate(columns)
    ]
    left = kernels.lay_tokens(given, rows)
    assert (rows[:, 1::2] == LAID).all()
    return rows[:, ::2].T.tolist(), left


@loops
@given(
    st.lists(anything | any_text, max_size=80),
    st.lists(any_text, max_size=80),
    st.lists(st.text(max_size=3), unique=True),
)
def test_rows_of_any_tokens_are_those_of_the_dictionary(
    values: list[Any], texts: list[str], vocabulary: list[str]
) -> None:
    """Of every column that holds nothing but texts and None; the others are named."""
    row_of = {token: row for row, token in enumerate(vocabulary, start=2)}
    length = max(len(values), len(texts)) + len(vocabulary)
    columns = [
        each + [None] * (length - len(each) - len(vocabulary)) + vocabulary
        for each in (values, texts)
    ]

    rows, left = laid(columns, vocabulary)

    plain = all(value is None or type(value) is str for value in values)
    assert left == ([] if plain else [0])
    for place in range(2):
        if place not in left:
            expected = [LAID if v is None else row_of.get(v, 0) for v in columns[place]]
            assert rows[place] == expected


def number_of(value: Any) -> float | None:
    """As Python has it, None as 7; None if it is no number within float32."""
    if value is None:
        return 7.0
    if type(value) not in {int, float} or not abs(value) <= float(np.finfo(np.float32).max):
        return None
    return float(value)


@loops
@given(st.lists(anything, max_size=12))
def test_any_numbers_are_those_of_python(values: list[Any]) -> None:
    """Or none at all, if one is no number within float32."""
    expected = [number_of(value) for value in values]

    found = kernels.numbers([[1.5] * len(values), values])

    if None in expected:
        assert found is None
    else:
        assert found is not None
        assert np.where(np.isnan(found), 7.0, found).tolist() == [[1.5] * len(values), expected]


@loops
def test_rows_of_tokens_are_those_of_the_encoder() -> None:
    """Whatever they are; a column that the loop does not know is named, the others are laid."""
    tokens = ["b", None, "a", "none of them", "", "\ud800"]

    (first, _, last), left = laid([tokens, [*tokens[:5], 7], tokens], ["a", "b"])

    assert left == [1]
    assert first == last == [3, 7, 2, 0, 0, 0]
    assert laid([[]], ["a"]) == ([[]], [])
    assert laid([["a"]], []) == ([[0]], [])
    with by(compiled=False):
        assert laid([["a"], ["b"]], ["a"]) == ([[LAID], [LAID]], [0, 1])


@loops
@given(
    arrays(np.float64, (3, 2), elements=st.floats(width=64, min_value=-3.4e38, max_value=3.4e38)),
    arrays(np.bool_, (3, 2)),
    st.permutations(range(4)),
)
def test_numbers_are_laid_over_a_tensor_as_numpy_rounds_them(
    values: Array, missing: Array, order: list[int]
) -> None:
    """Where they are not NaN, in whatever columns; all else stays as it is."""
    tensor = np.arange(12, dtype=np.float32).reshape(3, 4)
    values[missing] = np.nan
    expected = tensor.copy()
    for place, column in enumerate(order[:2]):
        there = ~missing[:, place]
        expected[there, column] = values[there, place].astype(np.float32)

    kernels.lay_numbers(values, np.array(order[:2]), tensor)

    np.testing.assert_array_equal(tensor, expected)


@loops
def test_numbers_are_only_laid_where_there_is_room() -> None:
    """Rows that are not the tensor's, columns outside of it, other types and orders."""
    values, tensor = np.ones((3, 2)), np.zeros((3, 4), np.float32)

    for given_, columns, error in (
        (values[:2], [0, 1], ValueError),
        (values, [0], ValueError),
        (values, [], ValueError),
        (values, [0, 4], IndexError),
        (values, [-1, 0], IndexError),
        (values.astype(np.float32), [0, 1], TypeError),
        (np.ones((2, 3)).T, [0, 1], TypeError),
    ):
        with pytest.raises(error):
            kernels.lay_numbers(given_, np.array(columns, np.int64), tensor)
    with pytest.raises(TypeError):
        kernels.lay_numbers(values, np.array([0, 1]), tensor[:, ::2])
    with pytest.raises(TypeError):
        kernels.lay_numbers(values, np.array([0, 1], np.int32), tensor)
    assert not tensor.any()


@loops
def test_numbers_are_told_as_they_are() -> None:
    """Whole or not, up to what float32 holds; with one that is not the loop tells none."""
    largest = float(np.finfo(np.float32).max)
    values = [1, -1.0, 0.1, -1, largest, -(2**60)]

    found = kernels.numbers([values, tuple(reversed(values))])

    expected = [1.0, -1.0, 0.1, -1.0, largest, -(2.0**60)]
    assert found is not None
    assert found.tolist() == [expected, expected[::-1]]
    assert np.isnan(kernels.numbers([[None, 1], [2, None]])).tolist() == [
        [True, False],
        [False, True],
    ]
    for strange in (True, "1", float("nan"), float("inf"), 1e39, 10**400, -(10**400), [1]):
        assert kernels.numbers([[1.0, 1.0], [1.0, strange]]) is None
    with by(compiled=False):
        assert kernels.numbers([values]) is None


@loops
def test_loops_lay_no_more_than_there_is_room_for() -> None:
    """No memory is written that is not there."""
    index = (b"abc", ENDS, KEY, SLOTS)
    lay, numbers = kernels._kernels.lay_tokens, kernels._kernels.numbers
    for count in (0, 2):
        with pytest.raises(TypeError, match="a list or a tuple of"):
            lay(((["a"], (*index, 2, 0)),), 1, np.empty(count, np.int32))
    for column in (-1, 1):
        with pytest.raises(ValueError, match="expected a column from 0 to 0"):
            lay(((["a"], (*index, 2, column)),), 1, np.empty(1, np.int32))
    for width in (2, 0, -1, 2**62):
        with pytest.raises(ValueError, match=f"expected rows of {width} columns"):
            lay((), width, np.empty(1, np.int32))
    with pytest.raises(TypeError, match="a list or a tuple of 1"):
        lay((("a", (*index, 2, 0)),), 1, np.empty(1, np.int32))
    with pytest.raises(ValueError, match="a place for each value"):
        numbers(([1.0], [1.0]), np.empty(3))
    for wrong in ([1.0], "ab"):
        with pytest.raises(TypeError, match="a list or a tuple of 2"):
            numbers((wrong,), np.empty(2))
    for wrong in (
        np.empty((2, 2), np.float32),
        np.empty(2, np.int32),
        np.empty((2, 4), np.int32)[:, ::2],
    ):
        with pytest.raises(TypeError, match="in C order"):
            kernels.lay_tokens([], wrong)


def test_what_is_mapped_from_disk_can_be_looked_up() -> None:
    """Arrays that must not be written are taken without a copy."""
    codes, tables = np.zeros((3, 2), np.uint8), np.ones((2, 4), np.float32)
    codes.flags.writeable = tables.flags.writeable = False

    assert kernels.taken(codes, np.arange(3), tables).tolist() == [2.0, 2.0, 2.0]


CODES, TABLES, ROWS = np.zeros((3, 2), np.uint8), np.ones((2, 4), np.float32), np.arange(3)
BLOCKS = kernels.in_blocks(CODES)
ENDS, SLOTS = np.array([0, 1, 2, 3], np.uint32), np.full(5, kernels.FREE, np.uint32)
KEY = bytes(range(16))


@pytest.mark.skipif(not kernels.COMPILED, reason="numpy takes any type")
@pytest.mark.parametrize(
    ("kernel", "arguments"),
    [
        (kernels.taken, (CODES.astype(np.int64), ROWS, TABLES)),
        (kernels.taken, (CODES, ROWS.astype(np.int32), TABLES)),
        (kernels.taken, (CODES, ROWS, TABLES.astype(np.float64))),
        (kernels.taken, (CODES, ROWS, TABLES[:1])),
        (kernels.scanned, (CODES.astype(np.int8), TABLES, 1)),
        (kernels.scanned, (CODES, TABLES[:1], 1)),
        (kernels.best_of, (TABLES[0].astype(np.float64), 1)),
        (partial(kernels.vectors, concatenated=True), (CODES, ROWS, TABLES[:1, :, None])),
        (
            partial(kernels.vectors, concatenated=True),
            (CODES, ROWS.astype(np.int32), TABLES[..., None]),
        ),
        (kernels.told_apart, (ROWS.astype(np.int32),)),
        (kernels.all_finite, (TABLES[0].astype(np.float64),)),
        (kernels.best_first, (TABLES[0].astype(np.float64), 1)),
        (kernels.picked, (["a"], ROWS.astype(np.int32))),
        (kernels.taken_from_blocks, (kernels.in_blocks(CODES), ROWS, TABLES[:1])),
        (kernels.scanned_blocks, (kernels.in_blocks(CODES), TABLES[:1], 3, 1)),
        (kernels.scanned_blocks, (kernels.in_blocks(CODES), TABLES, 33, 1)),
        (kernels.scanned_blocks, (kernels.in_blocks(CODES)[:, :, :16].copy(), TABLES, 3, 1)),
        (kernels.taken_from_blocks, (kernels.in_blocks(CODES)[:, :, :16].copy(), ROWS, TABLES)),
        (kernels.taken_from_blocks, (kernels.in_blocks(CODES).astype(np.int16), ROWS, TABLES)),
        (kernels.scanned, (CODES[:, :0], TABLES[:0], 1)),
        (kernels.index_ids, (b"abc", ENDS.astype(np.int64), KEY)),
        (kernels.index_ids, (b"abc", ENDS.astype(np.uint16), KEY)),
        (kernels.IdRows, (b"abc", ENDS.astype(np.int64), KEY, SLOTS)),
        (kernels.IdRows, (b"abc", ENDS, KEY, SLOTS.astype(np.int32))),
    ],
)
def test_no_memory_is_read_as_what_it_is_not(kernel: Any, arguments: tuple[Any, ...]) -> None:
    """Types and sizes that a loop does not have are refused."""
    with pytest.raises(TypeError, match="expected"):
        kernel(*arguments)


@ways
@pytest.mark.parametrize("row", [-1, 32, 2**40, -(2**62)])
def test_no_row_beyond_the_items_is_looked_up(compiled: bool, row: int) -> None:
    """-1 stands for what is unknown, and not for the last; among many one is found."""
    rows = np.array([*range(3)] * 20 + [row])

    with by(compiled):
        for look_up, codes in ((kernels.taken, CODES), (kernels.taken_from_blocks, BLOCKS)):
            with pytest.raises(IndexError, match="expected rows from 0 to"):
                look_up(codes, rows, TABLES)
            assert len(look_up(codes, rows[:0], TABLES)) == 0
        with pytest.raises(IndexError, match="expected rows from 0 to"):
            kernels.vectors(CODES, rows, TABLES[..., None], concatenated=True)


@pytest.mark.skipif(not kernels.COMPILED, reason="numpy looks up by itself")
@pytest.mark.parametrize(
    ("kernel", "arguments"),
    [
        (kernels.index_ids, (b"ab", ENDS, KEY)),
        (kernels.index_ids, (b"abc", ENDS[[0, 3, 2]], KEY)),
        (kernels.index_ids, (b"", ENDS[:0], KEY)),
        (kernels.index_ids, (b"abc", ENDS, KEY[1:])),
        (kernels.IdRows, (b"abc", ENDS, KEY, SLOTS[:0])),
        (kernels.IdRows, (b"abc", ENDS, KEY, SLOTS[:3])),
        (kernels.IdRows, (b"abc", ENDS, KEY[1:], SLOTS)),
        (kernels.IdRows, (b"", ENDS[:0], KEY, SLOTS)),
    ],
)
def test_ids_must_fit_their_text_and_slots(kernel: Any, arguments: tuple[Any, ...]) -> None:
    """Nothing is read beyond them, and there are more slots than ids."""
    with pytest.raises(ValueError, match="expected"):
        kernel(*arguments)


@pytest.mark.skipif(not kernels.COMPILED, reason="numpy looks up by itself")
@given(st.lists(st.integers(0, int(kernels.FREE)), min_size=5, max_size=9), st.data())
def test_no_slots_lead_out_of_the_ids(slots: list[int], data: st.DataObject) -> None:
    """Slots may come from a file: whatever they hold, a search ends, and finds what is there."""
    ends = np.array(data.draw(st.lists(st.integers(0, 5), min_size=4, max_size=4)), np.uint32)
    rows = kernels.IdRows(b"abc", ends, KEY, np.array(slots, np.uint32))(["a"], ("", "bc"))

    for row, sought in zip(rows.tolist(), (b"a", b"", b"bc"), strict=True):
        assert row == -1 or b"abc"[ends[row] : ends[row + 1]] == sought


@pytest.mark.skipif(not kernels.COMPILED, reason="numpy looks up by itself")
@pytest.mark.parametrize("text", [b"", b"a", b"12345678", "a text of over 16 bytes, é".encode()])
def test_ids_are_hashed_as_python_hashes_texts(text: bytes) -> None:
    """SipHash-1-3: Python's own, under the key of zeros that it has when its seed is 0."""
    slots = np.full(1 << 16, kernels.FREE, np.uint32)
    kernels._kernels.index_ids(text, np.array([0, len(text)], np.uint32), bytes(16), slots)
    program = f"print(hash({text!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONHASHSEED": "0"},
        capture_output=True,
        check=True,
    )
    expected = int(done.stdout) % (1 << 64) if text else 0xD1FBA762150C532C

    assert np.flatnonzero(slots != kernels.FREE).tolist() == [expected >> 48]
    assert slots[expected >> 48] == (expected << 1) % (1 << 32)


@pytest.mark.skipif(not kernels.COMPILED, reason="numpy counts by itself")
def test_as_many_rows_as_texts_are_written() -> None:
    """The loop itself sees to it."""
    found = kernels.IdRows(b"abc", ENDS, KEY, SLOTS)._compiled
    rows = np.full(3, 7)

    for texts in ((["a"],), (["a"], ["b"]), (["a", "b"], ("a", "b")), ()):
        with pytest.raises(ValueError, match="a row for each text"):
            kernels._kernels.find_ids(found, texts, rows)
    assert rows[2] == 7


@pytest.mark.skipif(not kernels.COMPILED, reason="a dictionary finds by itself")
@pytest.mark.parametrize("texts", [({"a"},), ("a",), (["a"], [b"b"]), (["a"], [1])])
def test_only_texts_are_found(texts: Any) -> None:
    """In lists and tuples, whose length cannot change meanwhile."""
    with pytest.raises(TypeError, match="expected"):
        kernels.IdRows(b"abc", ENDS, KEY, SLOTS)(*texts)


@loops
def test_arrays_out_of_order_are_refused() -> None:
    """Of a transposed array a loop would read other numbers."""
    with pytest.raises((ValueError, BufferError), match="contiguous"):
        kernels.taken(np.zeros((2, 3), np.uint8).T, ROWS, TABLES)


@pytest.mark.skipif(not kernels.COMPILED, reason="numpy takes another way")
@given(data=st.data())
def test_repeats_add_up_as_numpy_adds_them(data: st.DataObject) -> None:
    """To the bit, whatever repeats, and however often."""
    rows = data.draw(arrays(np.int64, st.integers(0, 30), elements=st.integers(-1, 6)))
    session = data.draw(arrays(np.int64, st.integers(0, 9), elements=st.integers(0, 6)))
    logs = st.floats(-60, 60, width=32)
    weights = data.draw(arrays(np.float32, len(session), elements=logs))
    scores = data.draw(arrays(np.float32, len(rows), elements=logs))
    expected = scores.copy()
    for place, row in enumerate(rows):
        if (session == row).any():
            repeated = np.logaddexp.reduce(weights[session == row])
            expected[place] = np.logaddexp(scores[place], repeated)

    kernels.add_repeats(scores, rows, session, weights)

    np.testing.assert_array_equal(scores, expected)


@pytest.mark.skipif(not kernels.COMPILED, reason="numpy takes another way")
def test_repeats_are_refused_that_do_not_fit() -> None:
    """Memory is never read past an array's end."""
    scores, rows, weights = np.zeros(2, np.float32), np.zeros(2, np.int64), np.ones(3, np.float32)
    with pytest.raises(TypeError, match="expected float32, int64, int64"):
        kernels.add_repeats(scores, rows.astype(np.int32), rows, weights)
    with pytest.raises(ValueError, match="a row for each score"):
        kernels.add_repeats(scores, rows[:1], rows, weights)
    with pytest.raises(ValueError, match="a weight for each item"):
        kernels.add_repeats(scores, rows, rows, weights)


@loops
@given(tables_and_codes(300), st.data())
def test_a_ranking_loop_ranks_as_its_steps_do(
    drawn: tuple[Array, Array], data: st.DataObject
) -> None:
    """Scored, repeats added, sorted and picked in one pass: the same to the bit."""
    tables, codes = drawn
    among = st.integers(0, len(codes) - 1)
    rows = data.draw(arrays(np.int64, st.integers(0, 40), elements=among))
    session = data.draw(arrays(np.int64, st.integers(0, 5), elements=among))
    repeats = data.draw(arrays(np.float32, len(session), elements=st.floats(-60, 60, width=32)))
    count = data.draw(st.one_of(st.none(), st.integers(0, 50)))
    values = [f"i{place}" for place in range(len(rows))]
    scores = kernels.taken(codes, rows, tables)
    kernels.add_repeats(scores, rows, session, repeats)
    places, best = kernels.best_first(scores, count)

    loop = kernels.RankingLoop(codes, tables, session, repeats)
    for _ in range(2):
        found = loop.ranked(values, rows, count)

        assert found is not None
        assert found[0] == kernels.picked(values, places)
        np.testing.assert_array_equal(found[1], best)
        assert found[2].tolist() == places.tolist()


@loops
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_ranking_loop_tells_of_scores_that_are_no_finite_numbers(wrong: float) -> None:
    """Also where they are none of the best."""
    tables = np.array([[1.0, 2.0, wrong]], np.float32)
    loop = kernels.RankingLoop(np.array([[0], [1], [2]], np.uint8), tables, ROWS[:0], TABLES[0, :0])

    assert loop.ranked(["a", "b", "c"], ROWS, 1) is None
    found = loop.ranked(["a", "b"], ROWS[:2], 1)
    assert found is not None
    assert found[0] == ["b"]


@loops
def test_a_ranking_loop_reads_nothing_beyond_what_it_was_given() -> None:
    """Rows, weights and values must fit each other, and the items; types must be the loop's."""
    nobody, nothing = ROWS[:0], TABLES[0, :0]
    loop = kernels.RankingLoop(CODES, TABLES, nobody, nothing)
    for row in (-1, 3, 2**40, -(2**62)):
        with pytest.raises(IndexError, match="expected rows from 0 to 2"):
            loop.ranked(["a"], np.array([row]), None)
    with pytest.raises(ValueError, match="a row for each value"):
        loop.ranked(["a", "b"], ROWS, None)
    with pytest.raises(TypeError, match="expected int64"):
        loop.ranked(["a"] * 3, ROWS.astype(np.int32), None)
    with pytest.raises(ValueError, match="invalid PyCapsule"):
        kernels._kernels.ranked(loop, ["a"] * 3, ROWS, ROWS.copy(), TABLES[0, :3].copy())
    for places, best in ((2, 3), (4, 4)):
        with pytest.raises(ValueError, match="a place for each of the best"):
            kernels._kernels.ranked(
                loop._compiled, ["a"] * 3, ROWS, np.zeros(places, np.int64), TABLES[0, :best].copy()
            )
    wide = kernels.RankingLoop(CODES.astype(np.uint16), TABLES, nobody, nothing)
    with pytest.raises(IndexError, match="expected rows from 0 to 2"):
        wide.ranked(["a"], np.array([3]), None)
    for shape in ((0, 2, 4), (1, 0, 4), (1, 2, 5)):
        width, books, words = shape
        with pytest.raises(ValueError, match="expected"):
            kernels._kernels.ranking_loop(CODES, width, books, TABLES, words, nobody, nothing)
    with pytest.raises(ValueError, match="a weight for each item"):
        kernels.RankingLoop(CODES, TABLES, ROWS, nothing)
    for arguments in (
        (CODES.astype(np.int8), TABLES, nobody, nothing),
        (CODES, TABLES[:1], nobody, nothing),
        (CODES, TABLES, nobody.astype(np.int32), nothing),
        (CODES, TABLES, nobody, nothing.astype(np.float64)),
    ):
        with pytest.raises(TypeError, match="expected"):
            kernels.RankingLoop(*arguments)
    with pytest.raises((ValueError, BufferError), match="contiguous"):
        kernels.RankingLoop(np.zeros((2, 3), np.uint8).T, TABLES, nobody, nothing)


@loops
def test_a_ranking_loop_keeps_what_it_reads_and_lets_it_go() -> None:
    """Codes are those of a whole catalogue: of one that was replaced nothing may stay."""
    arrays_ = [CODES.copy(), TABLES.copy(), ROWS.copy(), TABLES[0, :3].copy()]
    rows, nothing = ROWS.copy(), sys.getrefcount(None)
    held = [sys.getrefcount(each) for each in (*arrays_, rows)]

    for _ in range(1000):
        loop = kernels.RankingLoop(*arrays_)
        assert loop.ranked(["a"] * 3, rows, 2) is not None
        with pytest.raises(ValueError, match="a row for each value"):
            loop.ranked(["a"], rows, 2)
        with pytest.raises(ValueError, match="a weight for each item"):
            kernels.RankingLoop(*arrays_[:3], arrays_[3][:1])
        del loop

    assert [sys.getrefcount(each) for each in (*arrays_, rows)] == held
    assert sys.getrefcount(None) - nothing < 500


@loops
def test_a_list_that_becomes_shorter_meanwhile_is_not_read_beyond_its_end() -> None:
    """Making a list may collect garbage, and whatever is called then may shorten the other one."""
    values, places, pick = ["a"] * 3, np.array([2, 1, 0]), kernels._kernels.picked

    def shorten(*_: Any) -> None:
        values.clear()

    def picked_in_a_collection() -> None:
        kept = [[] for _ in range(1000)]  # type: ignore[var-annotated]  # none is left ready
        gc.enable()
        pick(values, places)
        assert kept

    gc.disable()
    gc.callbacks.append(shorten)
    try:
        with pytest.raises(IndexError, match="became shorter"):
            picked_in_a_collection()
    finally:
        gc.callbacks.remove(shorten)
        gc.enable()
