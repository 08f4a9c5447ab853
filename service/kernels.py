"""Look-ups in tables of sub-scores, the inner loops of coded item vectors, and of ids: compiled.

An item's score is the sum of M entries of a table (M, K), one for each of its codes, added in the
order of the codebooks: every kernel gives the bits of `model_store.codebooks.looked_up`. Codes
are not checked here: whoever loads them has seen that all are below K. Rows are.

Four-bit codes lie in blocks of 32 items: byte [b, p, i] holds the codes 2p (lower half) and 2p + 1
of item 32·b + i. One shuffle of the processor then looks up 32 of them, in a table of 16 bytes. The
sub-scores are rounded down to bytes, which bounds an item's score from above; the few items whose
bound reaches the worst of the best so far are scored in float32. What comes out is exact.

The loops are C (`_kernels.c`), built when the package is installed. Where no compiler was at hand,
numpy gives the same scores, several times slower; `COMPILED` tells which it is, `WHY_NOT` why.
"""

import secrets
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from model_store.codebooks import CodedTable, looked_up

VERSION: Final = 21  # of the loops' arguments, as `_kernels.c` has it

try:
    from service import _kernels

    WHY_NOT = "" if _kernels.VERSION == VERSION else f"built for version {_kernels.VERSION}"
except ImportError as error:  # installed without a C compiler
    _kernels = None  # type: ignore[assignment]
    WHY_NOT = str(error)

Floats = NDArray[np.float32]
Rows = NDArray[np.intp]
Codes = NDArray[Any]  # uint8 or uint16
Blocks = NDArray[np.uint8]  # (⌈N / 32⌉, pairs, 32)
Slots = NDArray[np.uint32]
Heap = tuple[Floats, Rows]
Blob = bytes | memoryview
Buffer = Any  # what lends its bytes
Texts = list[str] | tuple[str, ...]
T = TypeVar("T")

LANES: Final = 32  # items of a block
HALF_BYTE: Final = 16  # codes that four bits tell apart
MOST_BOOKS: Final = 256  # so many bytes add up to no more than 16 bits hold
TOP: Final = 255  # the largest byte
NO_ROW: Final = np.iinfo(np.int64).max
FREE: Final = np.iinfo(np.uint32).max
FEW: Final = 1 << 16  # ids, for which memory matters little
ROOMY: Final = 6  # slots for each of them
LAID_AT_ONCE: Final = 4096  # tokens: some 150 us
# As types, which compare faster than what numpy makes types of.
FLOAT32: Final = np.dtype(np.float32)
INT64: Final = np.dtype(np.int64)
UINT32: Final = np.dtype(np.uint32)
CODES: Final = (np.dtype(np.uint8), np.dtype(np.uint16))

ODD: Final = secrets.randbits(64)  # by which rows are scattered; odd or made so

COMPILED: Final = not WHY_NOT
SHUFFLES: Final = COMPILED and _kernels.shuffles()


def _nobody(count: int) -> Heap:
    """The best of no items: so many free places."""
    return np.full(count, -np.inf, np.float32), np.full(count, NO_ROW, np.int64)


def _check(tables: Floats, books: int, rows: Rows | None = None) -> None:
    """The loops read memory as the types below, and as many tables as an item has codes."""
    if tables.dtype != FLOAT32 or tables.ndim != 2 or len(tables) != books or not books:  # noqa: PLR2004
        raise TypeError(
            f"expected {books or 'some'} tables of float32, got {tables.dtype} of {tables.shape}"
        )
    if rows is not None:
        _check_type(rows, INT64)


def _check_type(array: NDArray[Any], dtype: np.dtype[Any]) -> None:
    if array.dtype != dtype:
        raise TypeError(f"expected {dtype}, got {array.dtype}")


def _check_codes(codes: Codes) -> None:
    if codes.dtype not in CODES:
        raise TypeError(f"expected codes of uint8 or uint16, got {codes.dtype}")


def _check_blocks(blocks: Blocks) -> None:
    if blocks.dtype != np.uint8 or blocks.ndim != 3 or blocks.shape[2] != LANES:  # noqa: PLR2004
        raise TypeError(f"expected blocks of {LANES} uint8, got {blocks.dtype} of {blocks.shape}")


def _check_rows(rows: Rows, items: int) -> None:
    """Numpy would take a negative row from the end."""
    if len(rows) and not 0 <= rows.min() <= rows.max() < items:
        raise IndexError(f"expected rows from 0 to {items - 1}, got {rows.min()} to {rows.max()}")


def _check_ids(ends: NDArray[np.uint32], slots: NDArray[np.uint32]) -> None:
    if ends.dtype != UINT32 or slots.dtype != UINT32:
        raise TypeError(f"expected ends and slots of uint32, got {ends.dtype} and {slots.dtype}")


def _check_laid(tensor: NDArray[Any], dtype: np.dtype[Any]) -> None:
    if tensor.dtype != dtype or tensor.ndim != 2 or not tensor.flags.c_contiguous:  # noqa: PLR2004
        raise TypeError(f"expected rows of {dtype} in C order, got {tensor.dtype} {tensor.shape}")


# Rows and scores of a request


def told_apart(rows: Rows) -> bool:
    """Whether rows (n,) are all known (not -1), and no two are the same."""
    if not COMPILED:
        return bool((rows >= 0).all()) and len(np.unique(rows)) == len(rows)
    _check_type(rows, INT64)
    return _kernels.told_apart(rows, ODD)


def all_finite(numbers: Floats) -> bool:
    """Whether all are finite numbers."""
    if not COMPILED:
        return bool(np.isfinite(numbers).all())
    _check_type(numbers, FLOAT32)
    return _kernels.all_finite(np.ascontiguousarray(numbers))


def best_first(scores: Floats, count: int | None) -> tuple[Rows, Floats]:
    """Places of the ``count`` best (None: of all) of scores (N,), best first, and these scores.

    Of equal ones the first comes first; what is no number comes last.
    """
    count = len(scores) if count is None else min(count, len(scores))
    if not COMPILED:
        order = np.argsort(-scores, kind="stable")[:count]
        return order, scores[order]
    _check_type(scores, FLOAT32)
    places, best = np.empty(count, np.int64), np.empty(count, np.float32)
    _kernels.best_first(np.ascontiguousarray(scores), places, best)
    return places, best


def picked(values: list[T], places: Rows) -> list[T]:
    """What stands at some places of a list.

    Raises:
        IndexError: it has none of them.
    """
    if not COMPILED:
        _check_rows(places, len(values))
        return [values[place] for place in places.tolist()]
    _check_type(places, INT64)
    return _kernels.picked(values, places)


def items_json(ids: bytes, scores: bytes, cold: bytes = b"") -> bytes:
    """A list of objects, each of an id and its score, as JSON; only where loops are compiled.

    Args:
        ids: a list of texts, as JSON without spaces.
        scores: a list of as many numbers.
        cold: a byte for each, other than 0 for those that the object calls so; empty: for none.

    Raises:
        ValueError: they are not as many.
    """
    return _kernels.items_json(ids, scores, cold)


# Times of a request: Python takes as long to round and write them as to look 200 items up


def milliseconds(seconds: list[float]) -> list[float]:
    """Each rounded to microseconds; none is below 0."""
    if COMPILED:
        return _kernels.milliseconds(seconds)
    return [int(max(0.0, each) * 1e6 + 0.5) / 1e3 for each in seconds]


def server_timing(names: tuple[bytes, ...], seconds: list[float]) -> bytes:
    """The value of a Server-Timing header: a duration for each name."""
    if COMPILED:
        return _kernels.server_timing(names, seconds)
    durations = [b"%s;dur=%.3f" % each for each in zip(names, milliseconds(seconds), strict=True)]
    return b", ".join(durations)


def best_of(scores: Floats, count: int) -> Heap:
    """The ``count`` best of scores (N,), in no order, with their rows; `NO_ROW` in free places.

    Of equal scores the first rows are best.
    """
    best, rows = _nobody(count)
    if not count:
        return best, rows
    if COMPILED:
        _check(scores[None], 1)
        _kernels.best_of(scores, best, rows)
        return best, rows
    scores = np.where(np.isnan(scores), np.float32(-np.inf), scores)  # as the loop has it
    least = np.partition(scores, -count)[-count] if count < len(scores) else -np.inf
    able = np.flatnonzero((scores >= least) & (scores > -np.inf))
    able = able[np.argsort(-scores[able], kind="stable")][:count]
    best[: len(able)], rows[: len(able)] = scores[able], able
    return best, rows


# Codes of one or two bytes, item by item


def taken(codes: Codes, rows: Rows, tables: Floats) -> Floats:
    """(n,) scores of the items of ``rows``, by codes (N, M) and tables (M, K).

    Raises:
        IndexError: a row is not one of N.
    """
    if not COMPILED:
        _check_rows(rows, len(codes))
        return looked_up(tables, codes.take(rows, axis=0))
    _check(tables, codes.shape[1], rows)
    _check_codes(codes)
    found = np.empty(len(rows), np.float32)
    _kernels.taken(codes, codes.itemsize, codes.shape[1], rows, tables, tables.shape[1], found)
    return found


class RankingLoop:
    """Scores items by their codes after one session, sorts them and picks the best, all at once.

    Only where loops are compiled. What one request after the session shares with the next is
    checked here, once.

    Args:
        codes: (N, M).
        tables: (M, K) the query's products with the codewords.
        session: (L,) rows of the session's items.
        repeats: (L,) log weights that these add to their own scores, as by `add_repeats`.
    """

    def __init__(self, codes: Codes, tables: Floats, session: Rows, repeats: Floats) -> None:
        _check(tables, codes.shape[1], session)
        _check_codes(codes)
        _check_type(repeats, FLOAT32)
        self._compiled = _kernels.ranking_loop(
            codes, codes.itemsize, codes.shape[1], tables, tables.shape[1], session, repeats
        )

    def ranked(
        self, values: list[T], rows: Rows, count: int | None
    ) -> tuple[list[T], Floats, Rows] | None:
        """The ``count`` best (None: all) of values (n,), with their scores and places.

        In the order of `best_first`; None if a score is not finite.

        Args:
            values: in input order.
            rows: (n,) their items'.
            count: how many.

        Raises:
            IndexError: a row is not one of N.
        """
        _check_type(rows, INT64)
        count = len(rows) if count is None else min(count, len(rows))
        places, best = np.empty(count, np.int64), np.empty(count, np.float32)
        found = _kernels.ranked(self._compiled, values, rows, places, best)
        return None if found is None else (found, best, places)


def vectors(codes: Codes, rows: Rows, codebooks: Floats, *, concatenated: bool) -> Floats:
    """(n, dim) vectors of the items of ``rows``, as `CodedTable` has them.

    Args:
        codes: (N, M).
        rows: (n,).
        codebooks: (M, K, width).
        concatenated: whether codewords stand one after the other, or are added up.

    Raises:
        IndexError: a row is not one of N.
    """
    if not COMPILED:
        _check_rows(rows, len(codes))
        return CodedTable(codes, codebooks, concatenated).vectors(rows)
    books, size, width = codebooks.shape
    _check(codebooks[:, :, 0], codes.shape[1], rows)
    _check_codes(codes)
    found = np.empty((len(rows), books * width if concatenated else width), np.float32)
    _kernels.vectors(
        codes, codes.itemsize, rows, codebooks, books, size, width, concatenated, found
    )
    return found


def scanned(codes: Codes, tables: Floats, count: int) -> Heap:
    """The ``count`` best of all items, as `best_of`, by codes (N, M) and tables (M, K)."""
    if not COMPILED:
        return best_of(looked_up(tables, codes), count)
    best, rows = _nobody(count)
    if count:
        _check(tables, codes.shape[1])
        _check_codes(codes)
        _kernels.scanned(codes, codes.itemsize, codes.shape[1], tables, tables.shape[1], best, rows)
    return best, rows


def add_repeats(scores: Floats, rows: Rows, session: Rows, weights: Floats) -> None:
    """Add to scores (n,) of the items of ``rows``, as log weights, what repeats a session (L,).

    Only where loops are compiled: numpy takes the way of all that a session leads to.
    """
    if scores.dtype != FLOAT32 or not rows.dtype == session.dtype == INT64:
        raise TypeError(
            f"expected float32, int64, int64, got {scores.dtype}, {rows.dtype}, {session.dtype}"
        )
    _kernels.add_repeats(scores, rows, session, np.ascontiguousarray(weights, np.float32))


# Codes of four bits, in blocks


class Rounded(NamedTuple):
    """Tables (M, K) rounded down to bytes.

    An item whose bytes add up to S scores at most ``ceiling`` + ``step`` · S.

    Attributes:
        entries: (M, 16) uint8.
    """

    entries: NDArray[np.uint8]
    ceiling: float
    step: float


def rounded(tables: Floats) -> Rounded:
    """Tables, M even and K at most 16, as bytes of one step, so that their sums compare."""
    exact = tables.astype(np.float64)
    lowest = exact.min(1, keepdims=True)
    step = float((exact - lowest).max()) / TOP or 1.0
    entries = np.zeros((len(tables), HALF_BYTE), np.uint8)
    entries[:, : tables.shape[1]] = np.minimum((exact - lowest) / step, TOP)
    # Each byte lost less than a step; and a sum of float32 may lie above the true one.
    error = len(tables) * float(np.finfo(np.float32).eps) * float(np.abs(exact).max(1).sum())
    return Rounded(entries, float(lowest.sum() + step * len(tables) + error), step)


def taken_from_blocks(blocks: Blocks, rows: Rows, tables: Floats) -> Floats:
    """(n,) scores of the items of ``rows``, by codes in blocks and tables (M, K), M even.

    Raises:
        IndexError: a row lies outside of the blocks.
    """
    _check_blocks(blocks)
    if not COMPILED:
        _check_rows(rows, LANES * len(blocks))
        return looked_up(tables, out_of_blocks(blocks, rows, len(tables)))
    _check(tables, 2 * blocks.shape[1], rows)
    found = np.empty(len(rows), np.float32)
    _kernels.taken_from_blocks(blocks, blocks.shape[1], rows, tables, tables.shape[1], found)
    return found


def scanned_blocks(
    blocks: Blocks, tables: Floats, items: int, count: int, *, shuffle: bool = SHUFFLES
) -> Heap:
    """The ``count`` best of all items, as `best_of`, by codes in blocks and tables (M, K), M even.

    Args:
        blocks: of `in_blocks`.
        tables: sub-scores.
        items: N, without what fills the last block.
        count: how many.
        shuffle: whether the processor's shuffle looks up; any processor can do without.
    """
    _check_blocks(blocks)
    if not COMPILED:
        codes = out_of_blocks(blocks, np.arange(items), len(tables))
        return best_of(looked_up(tables, codes), count)
    best, rows = _nobody(count)
    if items > LANES * len(blocks):
        raise TypeError(f"expected blocks of {items} items, got {len(blocks)} of {LANES}")
    if count:
        _check(tables, 2 * blocks.shape[1])
        entries, ceiling, step = rounded(tables)
        _kernels.scanned_blocks(
            blocks, blocks.shape[1], tables, tables.shape[1], entries, ceiling, step, items,
            shuffle, best, rows,
        )  # fmt: skip
    return best, rows


def in_blocks(codes: Codes) -> Blocks:
    """(⌈N / 32⌉, ⌈M / 2⌉, 32) from codes (N, M) below 16; what is missing is filled up with 0."""
    items, books = codes.shape
    blocks, pairs = -(-items // LANES), -(-books // 2)
    whole = np.zeros((blocks * LANES, 2 * pairs), np.uint8)
    whole[:items, :books] = codes
    joined = whole[:, 0::2] | (whole[:, 1::2] << 4)  # (N, pairs)
    return np.ascontiguousarray(joined.reshape(blocks, LANES, pairs).transpose(0, 2, 1))


def out_of_blocks(blocks: Blocks, rows: Rows, books: int) -> NDArray[np.uint8]:
    """(n, M) codes of the items of ``rows``."""
    joined = blocks[rows // LANES, :, rows % LANES]  # (n, pairs)
    halves = np.stack([joined & 15, joined >> 4], axis=-1)
    return np.ascontiguousarray(halves.reshape(len(rows), 2 * blocks.shape[1])[:, :books])


# Ids


def index_ids(text: Blob, ends: NDArray[np.uint32], key: bytes) -> Slots:
    """Slots that find ids: six bytes an id, 24 where they are few, such as those of a vocabulary.

    A slot is `FREE`, or holds a row, at its id's hash or after, and what of that there is room for.

    Args:
        text: all ids in UTF-8, one after the other.
        ends: (N + 1,) id i lies from ``ends[i]`` to ``ends[i + 1]``.
        key: 16 bytes, of the hash.

    Raises:
        ValueError: an id lies outside of the text, or appears twice.
    """
    # Some slots stay free, so that few are looked at: how many it will be, processors guess wrong.
    places = ROOMY * len(ends) if len(ends) - 1 <= FEW else len(ends) + len(ends) // 2
    slots = np.full(places, FREE, np.uint32)
    _check_ids(ends, slots)
    _kernels.index_ids(text, ends, key, slots)
    return slots


def longest(texts: Sequence[Any]) -> int:
    """Characters of the longest text of a list, 0 of an empty one; -1 if not all are texts."""
    if COMPILED and type(texts) is list:
        return _kernels.longest(texts)
    if not all(type(text) is str for text in texts):
        return -1
    return max(map(len, texts), default=0)


class Known(NamedTuple):
    """Texts that are known, as `index_ids` has them."""

    text: Blob
    ends: NDArray[np.uint32]
    key: bytes
    slots: Slots


class TokenColumn(NamedTuple):
    """Where rows of a feature's tokens are written.

    Attributes:
        text, ends, key, slots: of the tokens that are known, as `index_ids` has them.
        start: the row of the first of these.
        column: of the tensor.
    """

    text: Blob
    ends: NDArray[np.uint32]
    key: bytes
    slots: Slots
    start: int
    column: int


class NumberColumn(NamedTuple):
    """Where a feature's numbers are written."""

    column: int


def lay_tokens(
    columns: Sequence[tuple[Sequence[Any], TokenColumn]], rows: NDArray[np.int32]
) -> list[int]:
    """Write rows of tokens (lists or tuples of n) into columns of ``rows`` (n, width).

    0 for those that are not known; None leaves what is there.

    Returns:
        The places of the columns that hold something else than texts and None: what comes after
        it is not laid. Of all of them, where loops are not compiled.
    """
    if not COMPILED:
        return [*range(len(columns))]
    _check_laid(rows, np.dtype(np.int32))
    for _, known in columns:
        _check_ids(known.ends, known.slots)
    # Not all at once: the loop keeps the GIL, and the event loop may wait for it.
    at_once = max(1, LAID_AT_ONCE // (len(rows) + 1))
    return [
        first + place
        for first in range(0, len(columns), at_once)
        for place in _kernels.lay_tokens(
            tuple(columns[first : first + at_once]), rows.shape[1], rows
        )
    ]


def numbers(columns: Sequence[Sequence[Any]]) -> NDArray[np.float64] | None:
    """(columns, n) numbers of lists or tuples of n each, NaN for None.

    None if loops are not compiled, or a value is neither a number within float32 nor None.
    """
    if not COMPILED or not columns:
        return None
    found = np.empty((len(columns), len(columns[0])), np.float64)
    return found if _kernels.numbers(tuple(columns), found) else None


def lay_numbers(
    numbers: NDArray[np.float64], columns: NDArray[np.int64], tensor: NDArray[np.float32]
) -> None:
    """Write numbers (n, k) into columns (k,) of a tensor (n, width); NaN leaves what is there.

    Only where loops are compiled.
    """
    _check_laid(numbers, np.dtype(np.float64))
    _check_laid(tensor, FLOAT32)
    _check_type(columns, INT64)
    _kernels.lay_numbers(numbers, columns, tensor, tensor.shape[1])


Place = TokenColumn | NumberColumn | tuple[()]  # of a feature; (): it is passed over


class Layout:
    """What candidates may bring, and where it is written.

    Args:
        names: of the features.
        places: of each, in the order of ``names``.
        width, columns: of the tensors of rows and numbers.
        several: whether many candidates bring them, or one side of a request: short tokens of many
            are worth 32 to 64 bytes each.

    Raises:
        TypeError, ValueError: the loops cannot read the arrays; a place is none of the tensors'.
    """

    def __init__(
        self, names: Known, places: Sequence[Place], width: int, columns: int, *, several: bool
    ) -> None:
        for known in (names, *places):
            if isinstance(known, Known | TokenColumn):
                _check_ids(known.ends, known.slots)
        self.compiled = _kernels.layout(tuple(names), tuple(places), width, columns, several)


class Brought(NamedTuple):
    """Objects of features as they came: nobody has seen whether they are JSON.

    Attributes:
        body: of a request.
        spans: (n, 2) where each begins in it, and ends.
    """

    body: Buffer
    spans: NDArray[np.int64]


def cut_features(body: bytes | bytearray) -> tuple[bytes, Brought] | None:
    """Cut the objects that stand as "features" out of a body of JSON without escapes.

    An object is taken to end with the first bracket that closes.

    Returns:
        The body with ``{}`` in their place, and what was cut; None if one is not closed, or loops
        are not compiled.
    """
    if not COMPILED or (cut := _kernels.cut_features(body)) is None:
        return None
    rest, spans = cut
    return rest, Brought(body, np.frombuffer(spans, np.int64).reshape(-1, 2))


def read_candidates(
    brought: Brought,
    layout: Layout,
    rows: NDArray[np.int32],
    numbers: NDArray[np.float64],
) -> bool:
    """Read what each of n candidates brings: a JSON object of features.

    What is null or does not come is left as it is.

    Args:
        brought: n objects, in ASCII; one without a byte brings nothing.
        layout: of the tensors.
        rows: (n, width) rows of tokens, 0 for those that are not known.
        numbers: (n, columns).

    Returns:
        Whether it is JSON, and all could be told; if not, or where loops are not compiled, some may
        be read.
    """
    return _read(brought, False, layout, rows, numbers)


def read_columns(
    brought: Brought,
    layout: Layout,
    rows: NDArray[np.int32],
    numbers: NDArray[np.float64],
) -> bool:
    """The same from one object that holds an array of n values for each feature."""
    return _read(brought, True, layout, rows, numbers)


def lay_side(
    layout: Layout,
    values: dict[str, Any],
    rows: NDArray[np.int32],
    numbers: NDArray[np.float64],
) -> bool:
    """Write what one side of a request brings, by name; null and other names leave what is there.

    Args:
        layout: of the tensors.
        values: a name each.
        rows: (1, width) rows of tokens, 0 for those that are not known.
        numbers: (1, columns).

    Returns:
        Whether tokens are texts, or whole numbers as numbers may be: of 64 bits; and others within
        float32. If not, or where loops are not compiled, some may be written.
    """
    if not COMPILED:
        return False
    _check_laid(rows, np.dtype(np.int32))
    _check_laid(numbers, np.dtype(np.float64))
    return _kernels.lay_side(layout.compiled, values, rows, numbers)


def _read(
    brought: Brought,
    whole: bool,
    layout: Layout,
    rows: NDArray[np.int32],
    numbers: NDArray[np.float64],
) -> bool:
    if not COMPILED:
        return False
    _check_laid(rows, np.dtype(np.int32))
    _check_laid(numbers, np.dtype(np.float64))
    return _kernels.read_features(layout.compiled, *brought, whole, len(rows), rows, numbers)


class IdRows:
    """Finds rows by ids; only where loops are compiled.

    What one look-up shares with the next is checked here, once.

    Args:
        text, ends: the ids one after the other, and where they begin and the last one ends.
        key: the slots'.
        slots: of `index_ids`.
    """

    def __init__(self, text: Blob, ends: NDArray[np.uint32], key: bytes, slots: Slots) -> None:
        _check_ids(ends, slots)
        self._compiled = _kernels.id_rows(text, ends, key, slots)

    def __call__(self, *texts: Texts) -> Rows:
        """(n,) rows of ids, one sequence after the other; -1 for those that are not there.

        Raises:
            TypeError: one is no text.
        """
        rows = np.empty(sum(map(len, texts)), np.int64)
        _kernels.find_ids(self._compiled, texts, rows)
        return rows
