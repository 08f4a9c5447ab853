"""Item vectors in all their forms: as they are, in eight bits, from codebooks, as a tensor train.

Each form writes its own files into a bundle and reads them back. Codes (N, M) and codebooks
(M, K, width) are scored by look-up: the M·K products of a query with the codewords are taken once,
and an item's score is the sum of the M that its codes name; no vector is rebuilt for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any, Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from model_store.errors import BundleCorrupt
from model_store.manifest import (
    CodedVectors,
    DenseVectors,
    FactoredVectors,
    HashedCodes,
    Int8Vectors,
    NeighbourSpec,
    RadixCodes,
    StoredCodes,
    Vectors,
)

Floats = NDArray[np.float32]
Rows = NDArray[np.intp]
Codes = NDArray[Any]  # uint8 or uint16
PathOf = Callable[[str], Path]

VECTORS_FILE: Final = "items/vectors.npy"
SCALES_FILE: Final = "items/scales.npy"
CODES_FILE: Final = "items/codes.npy"
CODEBOOKS_FILE: Final = "items/codebooks.npy"
BYTE: Final = 8
# Float16 is coarse below: rows in eight bits would not come back from a file as they went in.
LEAST_SCALE: Final = 2.0**-16
NIBBLE: Final = 4
BLOCK: Final = 16_384
# What numpy's header parser lets through.
NPY_ERRORS: Final = (ValueError, OverflowError, SyntaxError, TokenError)


class ItemVectors(Protocol):
    """The vectors (N, dim) of a catalogue, however they are kept."""

    @property
    def dim(self) -> int:
        """Width of a vector."""
        ...

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        ...

    def __len__(self) -> int: ...

    def vectors(self, rows: Rows) -> Floats:
        """(n, dim) for rows (n,)."""
        ...

    def scores(self, query: Floats, rows: Rows) -> Floats:
        """(n,) products of a query (dim,) with the items of ``rows``."""
        ...

    def all_scores(self, query: Floats) -> Floats:
        """(N,) products of a query (dim,) with every item."""
        ...

    def mean(self) -> Floats:
        """(dim,) the mean item, which stands for one that is unknown."""
        ...

    def save(self, folder: Path) -> Vectors:
        """Write the files and tell how to read them."""
        ...


@dataclass(frozen=True, slots=True)
class DenseTable:
    """Vectors as they are.

    Attributes:
        matrix: (N, dim) float32 or float16; may be mapped from disk.
    """

    matrix: NDArray[Any]

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self.matrix.shape[1])

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return int(self.matrix.nbytes)

    def __len__(self) -> int:
        return len(self.matrix)

    def vectors(self, rows: Rows) -> Floats:
        """(n, dim) for rows (n,)."""
        return np.asarray(self.matrix.take(rows, axis=0), np.float32)

    def scores(self, query: Floats, rows: Rows) -> Floats:
        """(n,) products of a query (dim,) with the items of ``rows``."""
        return np.asarray(self.vectors(rows) @ query, np.float32)

    def all_scores(self, query: Floats) -> Floats:
        """(N,) products of a query (dim,) with every item."""
        return _in_blocks(self.matrix, query)

    def mean(self) -> Floats:
        """(dim,) the mean item."""
        return np.asarray(self.matrix.mean(0, dtype=np.float64), np.float32)

    def save(self, folder: Path) -> DenseVectors:
        """Write the files and tell how to read them."""
        save_array(folder, VECTORS_FILE, self.matrix)
        return DenseVectors(file=VECTORS_FILE)

    @classmethod
    def load(cls, spec: DenseVectors, path_of: PathOf) -> Self:
        """Map the vectors from disk."""
        return cls(load_array(path_of(spec.file), 2, "float32", "float16"))


@dataclass(frozen=True, slots=True)
class Int8Table:
    """Vectors row by row in eight bits: vector = row · scale.

    Attributes:
        rows: (N, dim) int8.
        scales: (N,) float16.
    """

    rows: NDArray[np.int8]
    scales: NDArray[np.float16]

    @classmethod
    def of(cls, matrix: Floats) -> Self:
        """The nearest such table: the largest entry of each row becomes ±127."""
        scales = np.maximum(np.abs(matrix).max(1) / 127, LEAST_SCALE).astype(np.float16)
        rows = np.clip(np.rint(matrix / scales[:, None].astype(np.float32)), -127, 127)
        return cls(rows.astype(np.int8), scales)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self.rows.shape[1])

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return int(self.rows.nbytes + self.scales.nbytes)

    def __len__(self) -> int:
        return len(self.rows)

    def vectors(self, rows: Rows) -> Floats:
        """(n, dim) for rows (n,)."""
        scales = self.scales.take(rows).astype(np.float32)
        return self.rows.take(rows, axis=0).astype(np.float32) * scales[:, None]

    def scores(self, query: Floats, rows: Rows) -> Floats:
        """(n,) products of a query (dim,) with the items of ``rows``."""
        return np.asarray(self.vectors(rows) @ query, np.float32)

    def all_scores(self, query: Floats) -> Floats:
        """(N,) products of a query (dim,) with every item."""
        return _in_blocks(self.rows, query) * self.scales.astype(np.float32)

    def mean(self) -> Floats:
        """(dim,) the mean item."""
        scales = self.scales.astype(np.float64)
        return np.asarray(scales @ self.rows / len(self.rows), np.float32)

    def save(self, folder: Path) -> Int8Vectors:
        """Write the files and tell how to read them."""
        save_array(folder, VECTORS_FILE, self.rows)
        save_array(folder, SCALES_FILE, self.scales)
        return Int8Vectors(file=VECTORS_FILE, scales=SCALES_FILE)

    @classmethod
    def load(cls, spec: Int8Vectors, path_of: PathOf) -> Self:
        """Map the rows from disk."""
        rows = load_array(path_of(spec.file), 2, "int8")
        scales = load_array(path_of(spec.scales), 1, "float16")
        if len(rows) != len(scales):
            raise BundleCorrupt(f"{path_of(spec.scales)}: {len(scales)} scales, {len(rows)} rows")
        return cls(rows, scales)


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
        words = self.codebooks[np.arange(codes.shape[1]), codes]  # (n, M, width)
        if self.concatenated:
            return words.reshape(len(codes), self.dim)
        return np.asarray(words.sum(1), np.float32)

    def scores(self, query: Floats, rows: Rows) -> Floats:
        """(n,) products of a query (dim,) with the items of ``rows``."""
        return looked_up(self.sub_scores(query), self.codes.take(rows, axis=0))

    def all_scores(self, query: Floats) -> Floats:
        """(N,) products of a query (dim,) with every item."""
        return looked_up(self.sub_scores(query), self.codes)

    def mean(self) -> Floats:
        """(dim,) the mean item."""
        books, size, _ = self.codebooks.shape
        use = np.stack([np.bincount(self.codes[:, m], minlength=size) for m in range(books)])
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


def _in_blocks(matrix: NDArray[Any], query: Floats) -> Floats:
    """(N,) products of a query with the rows of a matrix, which is never copied whole."""
    if matrix.dtype == np.float32:
        return np.asarray(matrix @ query, np.float32)
    products = np.empty(len(matrix), np.float32)
    for start in range(0, len(matrix), BLOCK):
        products[start : start + BLOCK] = matrix[start : start + BLOCK].astype(np.float32) @ query
    return products


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
    flags = np.unpackbits(packed, axis=1, bitorder="little", count=books * bits)
    weights = 1 << np.arange(bits, dtype=np.uint16)
    codes = flags.reshape(-1, books, bits).astype(np.uint16) @ weights
    return codes.astype(np.uint8 if bits < BYTE else np.uint16)


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


def expanded(cores: list[Floats], block: int, items: int) -> Floats:
    """(N, dim) rows of a tensor train; with ``block`` n > 1, of a semi-tensor train.

    The later cores of a semi-tensor train are n times smaller in both ranks: the product
    a ⋉ B is the ordinary one of a with B ⊗ I_n.

    Raises:
        ValueError: the ranks do not fit each other.
    """
    if len(cores[0]) != 1:
        raise ValueError(f"the first rank is {len(cores[0])}, expected 1")
    whole = cores[0][0]  # (I_1, J_1, R_1)
    for core in cores[1:]:
        rows, columns, _ = whole.shape
        grown = np.kron(core.transpose(1, 2, 0, 3), np.eye(block, dtype=np.float32))
        product = np.einsum("ijr,klrs->ikjls", whole, grown)
        whole = product.reshape(rows * core.shape[1], columns * core.shape[2], grown.shape[3])
    return np.ascontiguousarray(whole.reshape(len(whole), -1)[:items], np.float32)


@dataclass(frozen=True, slots=True)
class FactoredTable:
    """A tensor train. Scored as the dense table that it expands to.

    Attributes:
        cores: (R_{k-1}, I_k, J_k, R_k) each.
        block: n of the semi-tensor product; 1 is the plain tensor train.
        dense: what it expands to.
    """

    cores: list[Floats]
    block: int
    dense: DenseTable

    @classmethod
    def of(cls, cores: list[Floats], block: int, items: int) -> Self:
        """Expand the cores once."""
        return cls(cores, block, DenseTable(expanded(cores, block, items)))

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self.dense.dim

    @property
    def nbytes(self) -> int:
        """What it takes in memory: all of the expanded table."""
        return self.dense.nbytes

    def __len__(self) -> int:
        return len(self.dense)

    def vectors(self, rows: Rows) -> Floats:
        """(n, dim) for rows (n,)."""
        return self.dense.vectors(rows)

    def scores(self, query: Floats, rows: Rows) -> Floats:
        """(n,) products of a query (dim,) with the items of ``rows``."""
        return self.dense.scores(query, rows)

    def all_scores(self, query: Floats) -> Floats:
        """(N,) products of a query (dim,) with every item."""
        return self.dense.all_scores(query)

    def mean(self) -> Floats:
        """(dim,) the mean item."""
        return self.dense.mean()

    def save(self, folder: Path) -> FactoredVectors:
        """Write the files and tell how to read them."""
        names = [f"items/core_{k}.npy" for k in range(len(self.cores))]
        for name, core in zip(names, self.cores, strict=True):
            save_array(folder, name, core)
        return FactoredVectors(cores=tuple(names), block=self.block)

    @classmethod
    def load(cls, spec: FactoredVectors, items: int, path_of: PathOf) -> Self:
        """Read the cores and expand them."""
        cores = [load_array(path_of(name), 4, "float32") for name in spec.cores]
        try:
            return cls.of(cores, spec.block, items)
        except ValueError as error:
            raise BundleCorrupt(f"{path_of(spec.cores[0])}: no tensor train ({error})") from None


@dataclass(frozen=True, slots=True)
class Neighbours:
    """A sparse (N, N) matrix of what follows what, by rows.

    Attributes:
        offsets: (N + 1,) int32.
        items: (entries,) int32.
        weights: (entries,) float32 or float16, over 0.
    """

    offsets: NDArray[np.int32]
    items: NDArray[np.int32]
    weights: NDArray[Any]

    def of(self, row: int) -> tuple[NDArray[np.int32], Floats]:
        """What follows an item, and how much."""
        cut = slice(int(self.offsets[row]), int(self.offsets[row + 1]))
        return self.items[cut], self.weights[cut].astype(np.float32)

    def save(self, folder: Path) -> NeighbourSpec:
        """Write the files and tell how to read them."""
        names = {part: f"items/neighbour_{part}.npy" for part in ("offsets", "items", "weights")}
        for part, name in names.items():
            save_array(folder, name, getattr(self, part))
        return NeighbourSpec(**names)

    @classmethod
    def load(cls, spec: NeighbourSpec, items: int, path_of: PathOf) -> Self:
        """Map the matrix from disk."""
        neighbours = cls(
            load_array(path_of(spec.offsets), 1, "int32"),
            load_array(path_of(spec.items), 1, "int32"),
            load_array(path_of(spec.weights), 1, "float32", "float16"),
        )
        if not neighbours.fit(items):
            raise BundleCorrupt(f"{path_of(spec.offsets)}: no {items} rows of neighbours")
        return neighbours

    def fit(self, items: int) -> bool:
        """Whether this is a matrix over so many items, with weights that have a logarithm."""
        offsets, columns, weights = self.offsets, self.items, self.weights
        return bool(
            len(offsets) == items + 1
            and offsets[0] == 0
            and (np.diff(offsets) >= 0).all()
            and offsets[-1] == len(columns) == len(weights)
            and (not len(columns) or (columns.min() >= 0 and columns.max() < items))
            and (not len(weights) or (weights.min() > 0 and weights.max() < np.inf))
        )


def load_vectors(spec: Vectors, items: int, path_of: PathOf) -> ItemVectors:
    """Read item vectors of any form.

    Args:
        spec: the manifest's.
        items: in the catalogue.
        path_of: a bundle's file by its name.

    Raises:
        BundleCorrupt: the files do not fit each other or the catalogue.
    """
    table: ItemVectors
    match spec:
        case DenseVectors():
            table = DenseTable.load(spec, path_of)
        case Int8Vectors():
            table = Int8Table.load(spec, path_of)
        case CodedVectors():
            table = CodedTable.load(spec, items, path_of)
        case FactoredVectors():
            table = FactoredTable.load(spec, items, path_of)
    if len(table) != items:
        raise BundleCorrupt(f"item vectors for {len(table)} items, the manifest says {items}")
    return table


def save_array(folder: Path, name: str, array: NDArray[Any]) -> None:
    """Write an array into a bundle's folder."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.ascontiguousarray(array), allow_pickle=False)


def load_array(path: Path, axes: int, *dtypes: str) -> NDArray[Any]:
    """Map an array read-only from disk.

    Raises:
        BundleCorrupt: it is no plain npy file, or of another type or number of axes.
    """
    try:
        # open_memmap, unlike numpy.load, knows only npy: no zip, and never a pickle.
        array = np.lib.format.open_memmap(path, mode="r")
    except NPY_ERRORS as error:
        raise BundleCorrupt(f"{path}: not a plain npy file ({error})") from None
    if str(array.dtype) not in dtypes or array.ndim != axes:
        raise BundleCorrupt(
            f"{path}: {array.dtype} of shape {array.shape}, expected {' or '.join(dtypes)} with "
            f"{axes} axes"
        )
    return np.asarray(array)
