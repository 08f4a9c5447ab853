"""Item vectors from codes (N, M) and codebooks (M, K, width), and the codes packed into bits.

They are scored by look-up: the M·K products of a query with the codewords are taken once, and an
item's score is the sum of the M that its codes name; no vector is rebuilt for it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from model_store.arrays import (
    LEAST_SCALE,
    SCALES_FILE,
    Floats,
    PathOf,
    Rows,
    load_array,
    save_array,
)
from model_store.errors import BundleCorrupt
from model_store.manifest import CodedVectors, HashedCodes, RadixCodes, StoredCodes

Codes = NDArray[Any]  # uint8 or uint16

CODES_FILE: Final = "items/codes.npy"
CODEBOOKS_FILE: Final = "items/codebooks.npy"
AT_ONCE: Final = 1 << 16  # items: numpy counts under Python's lock
BYTE: Final = 8
NIBBLE: Final = 4
FEW: Final = 64  # items whose codewords may all lie in memory at once


@dataclass(frozen=True, slots=True)
class CodedTable:
    """Vectors put together from codewords, by sum or by concatenation.

    Attributes:
        codes: (N, M), each under K; may be mapped from disk.
        codebooks: (M, K, width) float32, width = dim (sum) or dim / M (concatenation).
        concatenated: which of the two.
        codes_spec: how the codes are kept in a bundle; None: stored, packed.
        kept_as: how the codebooks are kept in a bundle.
    """

    codes: Codes
    codebooks: Floats
    concatenated: bool
    codes_spec: RadixCodes | HashedCodes | None = None
    kept_as: str = "float32"

    @property
    def dim(self) -> int:
        """Width of a vector."""
        books, _, width = self.codebooks.shape
        return int(books * width if self.concatenated else width)

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return int(self.codes.nbytes + self.codebooks.nbytes)

    def __len__(self) -> int:
        return len(self.codes)

    def sub_scores(self, query: Floats) -> Floats:
        """(M, K) products of a query (dim,) with every codeword."""
        if self.concatenated:
            parts = query.reshape(len(self.codebooks), -1, 1)  # (M, width, 1)
            return np.asarray((self.codebooks @ parts)[..., 0], np.float32)
        return np.asarray(self.codebooks @ query, np.float32)

    def vectors(self, rows: Rows) -> Floats:
        """(n, dim) for rows (n,)."""
        codes = self.codes.take(rows, axis=0)  # (n, M)
        if self.concatenated or len(codes) <= FEW:
            words = self.codebooks[np.arange(codes.shape[1]), codes]  # (n, M, width)
            return words.reshape(len(codes), self.dim) if self.concatenated else words.sum(1)
        total = np.zeros((len(codes), self.dim), np.float32)
        for book, own in zip(self.codebooks, codes.T, strict=True):
            total += book[own]  # never (n, M, dim) at once
        return total

    def scores(self, query: Floats, rows: Rows) -> Floats:
        """(n,) products of a query (dim,) with the items of ``rows``."""
        return looked_up(self.sub_scores(query), self.codes.take(rows, axis=0))

    def all_scores(self, query: Floats) -> Floats:
        """(N,) products of a query (dim,) with every item."""
        return looked_up(self.sub_scores(query), self.codes)

    def without_items(self) -> "CodedTable":
        """The codebooks alone. Not a slice of the codes: that would keep all of them alive."""
        none = np.empty((0, self.codes.shape[1]), self.codes.dtype)
        return CodedTable(none, self.codebooks, self.concatenated)

    def mean(self) -> Floats:
        """(dim,) the mean item."""
        books, size, _ = self.codebooks.shape
        use = np.zeros((books, size), np.int64)
        for start in range(0, len(self.codes), AT_ONCE):
            for m, own in enumerate(self.codes[start : start + AT_ONCE].T):
                use[m] += np.bincount(own, minlength=size)
        share = use[:, None, :] / len(self.codes)  # (M, 1, K)
        words = (share @ self.codebooks)[:, 0]  # (M, width)
        return np.asarray(words.reshape(-1) if self.concatenated else words.sum(0), np.float32)

    def save(self, folder: Path) -> CodedVectors:
        """Write the files and tell how to read them."""
        size = self.codebooks.shape[1]
        spec: StoredCodes | RadixCodes | HashedCodes
        if self.codes_spec is None:
            bits = max(1, (size - 1).bit_length())
            save_array(folder, CODES_FILE, pack_codes(self.codes, bits))
            spec = StoredCodes(file=CODES_FILE, bits=bits)
        else:
            spec = self.codes_spec
        scales = None
        if self.kept_as == "int8":
            scales = SCALES_FILE
            books, by = quantised(self.codebooks)
            save_array(folder, CODEBOOKS_FILE, books)
            save_array(folder, SCALES_FILE, by)
        else:
            save_array(folder, CODEBOOKS_FILE, self.codebooks.astype(self.kept_as))
        return CodedVectors(
            codes=spec,
            codebooks=CODEBOOKS_FILE,
            scales=scales,
            composition="concatenate" if self.concatenated else "sum",
        )

    @classmethod
    def load(cls, spec: CodedVectors, items: int, path_of: PathOf) -> Self:
        """Read the codebooks and map the codes from disk, where they take whole bytes."""
        path = path_of(spec.codebooks)
        kept = load_array(path, 3, "float32", "float16", "int8")
        codebooks = kept.astype(np.float32)
        if (kept.dtype == np.int8) != (spec.scales is not None):
            raise BundleCorrupt(
                f"{path}: scales belong to codebooks of int8, these are {kept.dtype}"
            )
        if spec.scales is not None:
            by = load_array(path_of(spec.scales), 2, "float16")
            if by.shape != kept.shape[:2]:
                raise BundleCorrupt(f"{path}: codebooks {kept.shape}, scales {by.shape}")
            codebooks *= by[..., None].astype(np.float32)
        books, size, _ = codebooks.shape
        if isinstance(spec.codes, StoredCodes):
            codes = _stored(spec.codes, books, path_of)
            rest = None
        else:
            codes, rest = computed_codes(spec.codes, items, size), spec.codes
        if codes.shape[1] != books or (len(codes) and int(codes.max()) >= size):
            raise BundleCorrupt(
                f"{path}: codes {codes.shape} up to {codes.max(initial=0)} do not fit codebooks "
                f"{codebooks.shape}"
            )
        return cls(codes, codebooks, spec.composition == "concatenate", rest, str(kept.dtype))


def _stored(spec: StoredCodes, books: int, path_of: PathOf) -> Codes:
    packed = load_array(path_of(spec.file), 2, "uint8")
    if packed.shape[1] != -(-books * spec.bits // BYTE):
        raise BundleCorrupt(
            f"{path_of(spec.file)}: {packed.shape[1]} bytes an item, {books} codes of {spec.bits} "
            "bits take another number"
        )
    return unpack_codes(packed, books, spec.bits)


def quantised(codebooks: Floats) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Codewords (M, K, width) in eight bits, and a scale (M, K) for each."""
    scales = np.maximum(np.abs(codebooks).max(2) / 127, LEAST_SCALE).astype(np.float16)
    words = np.rint(codebooks / scales[..., None].astype(np.float32))
    return np.clip(words, -127, 127).astype(np.int8), scales


def looked_up(sub_scores: Floats, codes: Codes) -> Floats:
    """(n,) sums of sub-scores (M, K), added in the order of the codebooks, for codes (n, M)."""
    found: Floats = sub_scores[0].take(codes[:, 0])
    for m in range(1, codes.shape[1]):
        found += sub_scores[m].take(codes[:, m])
    return found


def pack_codes(codes: Codes, bits: int) -> NDArray[np.uint8]:
    """(N, ceil(M · bits / 8)): an item's codes one after the other, lowest bit first.

    >>> pack_codes(np.array([[1, 2, 3]], np.uint8), 4).tolist()
    [[33, 3]]
    """
    items, books = codes.shape
    places = np.arange(bits, dtype=np.uint16)
    flags = (codes[:, :, None].astype(np.uint16) >> places) & 1  # (N, M, bits)
    flat = flags.astype(np.uint8).reshape(items, books * bits)
    return np.packbits(flat, axis=1, bitorder="little")


def unpack_codes(packed: NDArray[np.uint8], books: int, bits: int) -> Codes:
    """(N, M) from what `pack_codes` made; a view where a code takes one or two whole bytes.

    >>> unpack_codes(np.array([[33, 3]], np.uint8), 3, 4).tolist()
    [[1, 2, 3]]
    """
    if bits == BYTE:
        return packed
    if bits == 2 * BYTE:
        return np.ascontiguousarray(packed).view("<u2")
    if bits == NIBBLE:  # ten times as fast as bit by bit
        halves = np.stack([packed & 15, packed >> NIBBLE], axis=-1)  # (N, bytes, 2)
        return np.ascontiguousarray(halves.reshape(len(packed), 2 * packed.shape[1])[:, :books])
    codes = np.empty((len(packed), books), np.uint8 if bits < BYTE else np.uint16)
    for book in range(books):  # one column at a time: all bits at once take twenty times the table
        first, shift = divmod(book * bits, BYTE)
        word = packed[:, first].astype(np.uint32)
        for place in range(first + 1, (book * bits + bits - 1) // BYTE + 1):
            word |= packed[:, place].astype(np.uint32) << (BYTE * (place - first))
        codes[:, book] = (word >> shift) & ((1 << bits) - 1)
    return codes


def computed_codes(spec: RadixCodes | HashedCodes, items: int, size: int) -> Codes:
    """(N, M) codes that follow from the rows alone."""
    rows = np.arange(items, dtype=np.int64)
    if isinstance(spec, RadixCodes):
        digits = []
        for radix in reversed(spec.radices):
            rows, digit = np.divmod(rows, radix)
            digits.append(digit)
        codes = np.stack(digits[::-1], axis=1)
    else:
        factors = np.array(spec.factors, np.int64)
        codes = (rows[:, None] + 1) * factors % spec.prime % size
    return codes.astype(np.uint8 if size <= 1 << BYTE else np.uint16)
