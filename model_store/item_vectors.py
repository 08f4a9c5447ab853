"""Item vectors in all their forms: as they are, in eight bits, from codebooks, as a tensor train.

Each form writes its own files into a bundle and reads them back. The one from codebooks has a
module of its own (`codebooks`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, Self

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
from model_store.codebooks import CodedTable
from model_store.errors import BundleCorrupt
from model_store.manifest import (
    CodedVectors,
    DenseVectors,
    FactoredVectors,
    Int8Vectors,
    NeighbourSpec,
    Vectors,
)

VECTORS_FILE: Final = "items/vectors.npy"
BLOCK: Final = 16_384


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


def _in_blocks(matrix: NDArray[Any], query: Floats) -> Floats:
    """(N,) products of a query with the rows of a matrix, which is never copied whole."""
    if matrix.dtype == np.float32:
        return np.asarray(matrix @ query, np.float32)
    products = np.empty(len(matrix), np.float32)
    for start in range(0, len(matrix), BLOCK):
        products[start : start + BLOCK] = matrix[start : start + BLOCK].astype(np.float32) @ query
    return products


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
