"""Look-ups in tables of sub-scores, compiled: the inner loops of coded item vectors.

An item's score is the sum of M entries of a table (M, K), one for each of its codes, added in the
order of the codebooks: every kernel gives the bits of `model_store.codebooks.looked_up`. Codes
are not checked here: whoever loads them has seen that all are below K, and so must rows be below N.

Four-bit codes lie in blocks of 32 items: byte [b, p, i] holds the codes 2p (lower half) and 2p + 1
of item 32·b + i. One shuffle of the processor then looks up 32 of them, in a table of 16 bytes. The
sub-scores are rounded down to bytes, which bounds an item's score from above; the few items whose
bound reaches the worst of the best so far are scored in float32. What comes out is exact.

Importing this compiles everything for the types that serving has, so that no request waits for it.
That takes seconds and 100 MB: who serves no session ranker does not import it.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Rows = NDArray[np.intp]
Codes = NDArray[Any]  # uint8 or uint16
Blocks = NDArray[np.uint8]  # (⌈N / 32⌉, pairs, 32)
Heap = tuple[Floats, Rows]

AHEAD: Final = 32  # rows that are asked for before they are read: a miss takes as long as 32 hits
CACHE_LINE: Final = 64  # bytes
LANES: Final = 32  # items of a block
HALF_BYTE: Final = 16  # codes that four bits tell apart
MOST_BOOKS: Final = 256  # so many bytes add up to no more than 16 bits hold
TOP: Final = 255  # the largest byte
NO_ROW: Final = np.iinfo(np.int64).max


def _given(dtype: types.Type, axes: int) -> types.Array:
    """The type of an array that is only read: files mapped from disk cannot be written."""
    return types.Array(dtype, axes, "C", readonly=True)


_CODES: Final = (_given(types.uint8, 2), _given(types.uint16, 2))
_BLOCKS: Final = _given(types.uint8, 3)
_ROWS: Final = _given(types.int64, 1)
_TABLES: Final = _given(types.float32, 2)
_BYTES: Final = _given(types.uint8, 2)
_SCORES: Final = types.float32[::1]
_HEAP: Final = types.Tuple((_SCORES, types.int64[::1]))


# The best so far: a heap, its root the worst of them; of equal scores the later row is worse.


@njit(nogil=True)
def _nobody(count: int) -> Heap:
    """A heap of so many places, all of them free."""
    return np.full(count, -np.inf, np.float32), np.full(count, NO_ROW, np.int64)


@njit(nogil=True)
def _take_in(scores: Floats, rows: Rows, score: float, row: int) -> None:
    """Put an item in the place of the worst."""
    place, size = 0, len(scores)
    while 2 * place + 1 < size:
        child = 2 * place + 1
        right = child + 1
        if right < size and (
            scores[right] < scores[child]
            or (scores[right] == scores[child] and rows[right] > rows[child])
        ):
            child = right
        if scores[child] > score or (scores[child] == score and rows[child] < row):
            break
        scores[place], rows[place] = scores[child], rows[child]
        place = child
    scores[place], rows[place] = score, row


@njit([_HEAP(_given(types.float32, 1), types.int64)], nogil=True)
def best_of(scores: Floats, count: int) -> Heap:
    """The ``count`` best of scores (N,), in no order, with their rows; `NO_ROW` in free places."""
    best, rows = _nobody(count)
    for row in range(len(scores)):
        if scores[row] > best[0]:
            _take_in(best, rows, scores[row], row)
    return best, rows


@intrinsic
def _prefetch(_: Any, array: Any, _row: Any, _offset: Any) -> Any:
    """Ask for the bytes of a row of an array, from an offset on, before they are needed."""
    number = ir.IntType(32)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        held = context.make_array(signature.args[0])(context, builder, values[0])
        width = cgutils.unpack_tuple(builder, held.strides)[0]
        data = builder.bitcast(held.data, ir.IntType(8).as_pointer())
        place = builder.add(builder.mul(values[1], width), values[2])
        kind = ir.FunctionType(ir.VoidType(), [data.type, number, number, number])
        ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        # For reading, to be kept in all caches, data.
        builder.call(ask, [builder.gep(data, [place]), number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), generate


# Codes of one or two bytes, item by item


@njit([_SCORES(codes, _ROWS, _TABLES) for codes in _CODES], nogil=True)
def taken(codes: Codes, rows: Rows, tables: Floats) -> Floats:
    """(n,) scores of the items of ``rows``, by codes (N, M) and tables (M, K)."""
    found = np.empty(len(rows), np.float32)
    for i in range(min(AHEAD, len(rows))):
        _prefetch(codes, rows[i], 0)
    for i in range(len(rows)):
        if i + AHEAD < len(rows):
            _prefetch(codes, rows[i + AHEAD], 0)
        score = np.float32(0)
        for m in range(codes.shape[1]):
            score += tables[m, codes[rows[i], m]]
        found[i] = score
    return found


@njit([_HEAP(codes, _TABLES, types.int64) for codes in _CODES], nogil=True)
def scanned(codes: Codes, tables: Floats, count: int) -> Heap:
    """The ``count`` best of all items, as `best_of`, by codes (N, M) and tables (M, K)."""
    best, rows = _nobody(count)
    for row in range(len(codes)):
        score = np.float32(0)
        for m in range(codes.shape[1]):
            score += tables[m, codes[row, m]]
        if score > best[0]:
            _take_in(best, rows, score, row)
    return best, rows


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
    error = len(tables) * np.finfo(np.float32).eps * float(np.abs(exact).max(1).sum())
    return Rounded(entries, float(lowest.sum()) + step * len(tables) + error, step)


@njit(nogil=True)
def _exact(blocks: Blocks, row: int, tables: Floats) -> float:
    score = np.float32(0)
    for p in range(blocks.shape[1]):
        pair = blocks[row // LANES, p, row % LANES]
        score += tables[2 * p, pair & np.uint8(15)]
        score += tables[2 * p + 1, pair >> np.uint8(4)]
    return score


@njit(nogil=True)
def _prefetch_block(blocks: Blocks, row: int) -> None:
    for offset in range(0, blocks.shape[1] * LANES, CACHE_LINE):
        _prefetch(blocks, row // LANES, offset)


@njit([_SCORES(_BLOCKS, _ROWS, _TABLES)], nogil=True)
def taken_from_blocks(blocks: Blocks, rows: Rows, tables: Floats) -> Floats:
    """(n,) scores of the items of ``rows``, by codes in blocks and tables (M, 16), M even."""
    found = np.empty(len(rows), np.float32)
    for i in range(min(AHEAD, len(rows))):
        _prefetch_block(blocks, rows[i])
    for i in range(len(rows)):
        if i + AHEAD < len(rows):
            _prefetch_block(blocks, rows[i + AHEAD])
        found[i] = _exact(blocks, rows[i], tables)
    return found


@njit(nogil=True)
def sums_by_look_up(
    blocks: Blocks, block: int, entries: NDArray[np.uint8], sums: NDArray[np.uint16]
) -> None:
    """Sums (32,) of bytes (M, 16) for a block: what any processor can do."""
    sums[:] = 0
    for p in range(blocks.shape[1]):
        for i in range(LANES):
            pair = blocks[block, p, i]
            sums[i] += entries[2 * p, pair & np.uint8(15)]
            sums[i] += entries[2 * p + 1, pair >> np.uint8(4)]


@intrinsic
def sums_by_shuffle(_: Any, blocks: Any, block: Any, entries: Any, sums: Any) -> Any:
    """Sums (32,) of bytes (M, 16) for a block, by AVX2's shuffle: 32 look-ups at once."""
    number = ir.IntType(32)
    row = ir.VectorType(ir.IntType(8), LANES)
    words = ir.VectorType(ir.IntType(16), LANES // 2)
    places = ir.VectorType(number, LANES)

    def all_of(kind: ir.VectorType, value: int) -> ir.Constant:
        return ir.Constant(kind, [value] * kind.count)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kinds = signature.args
        codes, tables, target = (
            context.make_array(kinds[i])(context, builder, values[i]) for i in (0, 2, 3)
        )
        pairs = cgutils.unpack_tuple(builder, codes.shape)[1]
        shuffle = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(row, [row, row]), "llvm.x86.avx2.pshuf.b"
        )

        def load(data: Any, place: Any) -> Any:
            at = builder.gep(data, [builder.mul(place, place.type(LANES))])
            return builder.load(builder.bitcast(at, row.as_pointer()), align=1)

        # Bytes of even and odd items are added apart, in 16 bits each: none overflows.
        evens = cgutils.alloca_once_value(builder, all_of(words, 0))
        odds = cgutils.alloca_once_value(builder, all_of(words, 0))
        first = builder.mul(values[1], pairs)
        with cgutils.for_range(builder, pairs) as loop:
            pair = load(codes.data, builder.add(first, loop.index))
            both = load(tables.data, loop.index)  # the tables 2p and 2p + 1, one after the other
            low = builder.and_(pair, all_of(row, HALF_BYTE - 1))
            high = builder.lshr(pair, all_of(row, 4))
            for code, start in ((low, 0), (high, HALF_BYTE)):
                twice = ir.Constant(places, [start + i % HALF_BYTE for i in range(LANES)])
                table = builder.shuffle_vector(both, both, twice)
                found = builder.bitcast(builder.call(shuffle, [table, code]), words)
                even = builder.and_(found, all_of(words, TOP))
                odd = builder.lshr(found, all_of(words, 8))
                builder.store(builder.add(builder.load(evens), even), evens)
                builder.store(builder.add(builder.load(odds), odd), odds)
        in_turn = [place for i in range(LANES // 2) for place in (i, i + LANES // 2)]
        result = builder.shuffle_vector(
            builder.load(evens), builder.load(odds), ir.Constant(places, in_turn)
        )
        builder.store(result, builder.bitcast(target.data, result.type.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(blocks, block, entries, sums), generate


def block_scan(sums_of: Any) -> Any:
    """A kernel that scans blocks, given how it adds bytes."""

    @njit(
        [_HEAP(_BLOCKS, _TABLES, _BYTES, types.float64, types.float64, types.int64, types.int64)],
        nogil=True,
    )
    def scan(  # noqa: PLR0917  compiled functions take no keywords
        blocks: Blocks,
        tables: Floats,
        entries: NDArray[np.uint8],
        ceiling: float,
        step: float,
        items: int,
        count: int,
    ) -> Heap:
        best, rows = _nobody(count)
        sums = np.empty(LANES, np.uint16)
        enough = 0
        for block in range(len(blocks)):
            sums_of(blocks, block, entries, sums)
            largest = 0
            for i in range(LANES):
                largest = max(largest, sums[i])
            if largest < enough:
                continue
            for i in range(LANES):
                row = block * LANES + i
                if sums[i] >= enough and row < items:
                    score = _exact(blocks, row, tables)
                    if score > best[0]:
                        _take_in(best, rows, score, row)
                        enough = int(max((best[0] - ceiling) / step, 0.0))
        return best, rows

    return scan


SHUFFLES: Final = bool(binding.get_host_cpu_features().get("avx2", False))
scanned_blocks: Final = block_scan(sums_by_shuffle if SHUFFLES else sums_by_look_up)


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
