"""Item vectors in all their forms: what is saved is read back, and scores are products."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from model_store.arrays import save_array
from model_store.codebooks import CodedTable, quantised
from model_store.errors import BundleCorrupt
from model_store.item_vectors import (
    BLOCK,
    DenseTable,
    FactoredTable,
    Int8Table,
    ItemVectors,
    Neighbours,
    expanded,
    load_vectors,
)
from model_store.manifest import (
    CodedVectors,
    DenseVectors,
    FactoredVectors,
    HashedCodes,
    Int8Vectors,
    RadixCodes,
    StoredCodes,
    Vectors,
)

ITEMS = 60
RNG = np.random.default_rng(7)
ROWS = np.array([3, 0, 59, 3], np.intp)


def coded(
    books: int = 4, size: int = 8, width: int = 6, *, concatenated: bool = False, **fields: Any
) -> CodedTable:
    """A table of random codes and codewords."""
    codes = RNG.integers(0, size, (ITEMS, books)).astype(np.uint8 if size <= 256 else np.uint16)
    codebooks = RNG.normal(size=(books, size, width)).astype(np.float32)
    return CodedTable(codes, codebooks, concatenated, **fields)


def train() -> FactoredTable:
    """A tensor train of 3 · 4 · 5 rows and 2 · 2 · 3 columns."""
    shapes = [(1, 3, 2, 3), (3, 4, 2, 2), (2, 5, 3, 1)]
    return FactoredTable.of(
        [RNG.normal(size=shape).astype(np.float32) for shape in shapes], 1, ITEMS
    )


TABLES: dict[str, Callable[[], ItemVectors]] = {
    "float32": lambda: DenseTable(RNG.normal(size=(ITEMS, 6)).astype(np.float32)),
    "float16": lambda: DenseTable(RNG.normal(size=(ITEMS, 6)).astype(np.float16)),
    "int8": lambda: Int8Table.of(RNG.normal(size=(ITEMS, 6)).astype(np.float32)),
    "sum": coded,
    "concatenate": lambda: coded(concatenated=True),
    "4 bits": lambda: coded(books=5, size=16),
    "8 bits": lambda: coded(size=256),
    "16 bits": lambda: coded(size=40_000, width=2),
    "11 bits": lambda: coded(size=1025),
    "float16 words": lambda: coded(kept_as="float16"),
    "int8 words": lambda: coded(kept_as="int8"),
    "train": train,
}


@pytest.fixture(params=list(TABLES))
def table(request: pytest.FixtureRequest) -> ItemVectors:
    """A table of each form."""
    return TABLES[request.param]()


def reread(table: ItemVectors, folder: Path) -> ItemVectors:
    """Saved, and loaded by what saving told."""
    return load_vectors(table.save(folder), ITEMS, lambda name: folder / name)


# What all forms promise


def test_what_is_saved_is_read_back(table: ItemVectors, tmp_path: Path) -> None:
    """The files and the manifest's entry hold all of a table, rounded once where they are small."""
    first = reread(table, tmp_path / "first")
    second = reread(first, tmp_path / "second")
    rows = np.arange(ITEMS)

    assert (len(first), first.dim) == (ITEMS, table.dim)
    np.testing.assert_allclose(first.vectors(rows), table.vectors(rows), atol=0.03)
    np.testing.assert_array_equal(second.vectors(rows), first.vectors(rows))


def test_scores_are_products_with_the_vectors(table: ItemVectors) -> None:
    """By look-up or by product, in any order of rows, of a part or of all: the same numbers."""
    query = RNG.normal(size=table.dim).astype(np.float32)
    vectors = table.vectors(np.arange(ITEMS))
    expected = vectors @ query

    assert vectors.shape == (ITEMS, table.dim)
    assert vectors.dtype == table.scores(query, ROWS).dtype == np.float32
    np.testing.assert_array_equal(table.vectors(ROWS), vectors[ROWS])
    np.testing.assert_allclose(table.scores(query, ROWS), expected[ROWS], atol=1e-5)
    np.testing.assert_allclose(table.all_scores(query), expected, atol=1e-5)


def test_the_mean_is_that_of_the_vectors(table: ItemVectors) -> None:
    """It stands for an item that nobody knows."""
    mean = table.vectors(np.arange(ITEMS)).mean(0, dtype=np.float64)

    assert table.mean().dtype == np.float32
    np.testing.assert_allclose(table.mean(), mean, atol=1e-6)


@pytest.mark.parametrize(
    ("form", "size"),
    [
        ("float16", ITEMS * 6 * 2),
        ("int8", ITEMS * 6 + ITEMS * 2),
        ("8 bits", ITEMS * 4 + 4 * 256 * 6 * 4),
        ("16 bits", ITEMS * 4 * 2 + 4 * 40_000 * 2 * 4),
        ("train", ITEMS * 12 * 4),
    ],
)
def test_a_table_tells_its_size(form: str, size: int) -> None:
    """In bytes of memory: of what is looked up, and for a train of what it expands to."""
    assert TABLES[form]().nbytes == size


def test_a_table_longer_than_a_block_is_scored_in_parts() -> None:
    """A half-precision table is widened block by block, never whole."""
    matrix = RNG.normal(size=(2 * BLOCK + 3, 2)).astype(np.float16)
    query = np.array([1.0, -2.0], np.float32)

    np.testing.assert_allclose(
        DenseTable(matrix).all_scores(query), matrix.astype(np.float32) @ query, atol=1e-5
    )


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (StoredCodes, {"file": "f", "bits": 0}),
        (StoredCodes, {"file": "f", "bits": 17}),
        (RadixCodes, {"radices": ()}),
        (RadixCodes, {"radices": (3, 0)}),
        (HashedCodes, {"factors": ()}),
        (HashedCodes, {"factors": (1,), "prime": 0}),
        (FactoredVectors, {"cores": ("one",)}),
        (FactoredVectors, {"cores": ("one", "two"), "block": 0}),
    ],
)
def test_forms_that_name_nothing_are_refused(kind: type[Any], fields: dict[str, Any]) -> None:
    """No codes, no digits, division by zero: refused by the manifest."""
    with pytest.raises(ValidationError):
        kind(**fields)


def test_eight_bits_are_near() -> None:
    """Quantising moves no number by more than a 127th of the largest beside it."""
    matrix = RNG.normal(size=(ITEMS, 6)).astype(np.float32)
    books = matrix.reshape(4, 15, 6)
    words, scales = quantised(books)

    step = np.abs(matrix).max(1, keepdims=True) / 127
    assert (np.abs(Int8Table.of(matrix).vectors(np.arange(ITEMS)) - matrix) <= step).all()
    step = np.abs(books).max(2, keepdims=True) / 127
    assert (np.abs(words * scales[..., None].astype(np.float32) - books) <= step).all()


# Tensor trains


def element(cores: list[np.ndarray[Any, Any]], block: int, row: int) -> np.ndarray[Any, Any]:
    """One row of a (semi-)tensor train, slice by slice."""
    digits = []
    for core in reversed(cores):
        row, digit = divmod(row, core.shape[1])
        digits.append(digit)
    rows = [np.ones((1, 1))]  # a row vector for each column of the matrix, by rank
    for k, (core, digit) in enumerate(zip(cores, reversed(digits), strict=True)):
        grown = []
        for so_far in rows:
            for column in range(core.shape[2]):
                cut = core[:, digit, column, :]  # (R_{k-1}, R_k)
                grown.append(so_far @ (cut if k == 0 else np.kron(cut, np.eye(block))))
        rows = grown
    return np.concatenate(rows, axis=1)[0]


@pytest.mark.parametrize("block", [1, 2])
def test_a_train_expands_to_the_product_of_its_cores(block: int) -> None:
    """Row by row the same as slices multiplied one after the other; the last rows are cut off."""
    shapes = [(1, 3, 2, 2 * block), (2, 4, 2, 3), (3, 5, 3, 1)]
    cores = [RNG.normal(size=shape).astype(np.float32) for shape in shapes]
    found = expanded(cores, block, 57)

    assert found.shape == (57, 12 * block)
    for row in (0, 1, 23, 56):
        np.testing.assert_allclose(found[row], element(cores, block, row), atol=1e-5)


# What does not fit

Spoil = dict[str, np.ndarray[Any, Any]]
STORED = StoredCodes(file="codes", bits=8)
CODES = np.zeros((ITEMS, 2), np.uint8)
BOOKS = np.zeros((2, 4, 3), np.float32)
SCALES = np.ones(ITEMS, np.float16)


def stored(codes: Any = STORED, **fields: Any) -> CodedVectors:
    """A spec of a coded table."""
    return CodedVectors(codes=codes, codebooks="books", composition="sum", **fields)


@pytest.mark.parametrize(
    ("spec", "files", "complaint"),
    [
        (DenseVectors(file="v"), {"v": np.zeros((3, 2), np.float32)}, "for 3 items"),
        (DenseVectors(file="v"), {"v": np.zeros((ITEMS, 2))}, "expected float32 or float16"),
        (DenseVectors(file="v"), {"v": np.zeros((ITEMS, 2), ">f4")}, "expected float32"),
        (DenseVectors(file="v"), {"v": np.zeros(ITEMS, np.float32)}, "with 2 axes"),
        (
            Int8Vectors(file="v", scales="s"),
            {"v": np.zeros((ITEMS, 2), np.int8), "s": SCALES[1:]},
            "59 scales, 60 rows",
        ),
        (stored(), {"codes": CODES, "books": BOOKS.astype(np.int8)}, "scales belong to"),
        (
            stored(scales="s"),
            {"codes": CODES, "books": BOOKS, "s": np.ones((2, 4), np.float16)},
            "scales belong to",
        ),
        (
            stored(scales="s"),
            {"codes": CODES, "books": BOOKS.astype(np.int8), "s": np.ones((2, 3), np.float16)},
            r"scales \(2, 3\)",
        ),
        (stored(), {"codes": CODES[:, :1], "books": BOOKS}, "1 bytes an item"),
        (stored(), {"codes": CODES + np.uint8(4), "books": BOOKS}, "up to 4 do not fit"),
        (
            stored(StoredCodes(file="codes", bits=16)),
            {"codes": np.full((ITEMS, 4), 1, np.uint8), "books": BOOKS},
            "up to 257 do not fit",
        ),
        (stored(RadixCodes(radices=(30,))), {"books": BOOKS}, "do not fit"),
        (stored(RadixCodes(radices=(30, 5))), {"books": BOOKS}, "up to 11 do not fit"),
        (stored(), {"codes": CODES[1:], "books": BOOKS}, "for 59 items"),
        (
            FactoredVectors(cores=("a", "b")),
            {"a": np.ones((1, 8, 1, 2), np.float32), "b": np.ones((3, 8, 1, 1), np.float32)},
            "no tensor train",
        ),
        (
            FactoredVectors(cores=("a", "b")),
            {"a": np.ones((0, 8, 1, 2), np.float32), "b": np.ones((2, 8, 1, 1), np.float32)},
            "the first rank is 0",
        ),
        (
            FactoredVectors(cores=("a", "b")),
            {"a": np.ones((1, 2, 1, 2), np.float32), "b": np.ones((2, 8, 1, 1), np.float32)},
            "for 16 items",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(
    spec: Vectors, files: Spoil, complaint: str, tmp_path: Path
) -> None:
    """Types, axes, counts and every code are checked before anything is looked up by them."""
    for name, array in files.items():
        np.save(tmp_path / f"{name}.npy", array)

    with pytest.raises(BundleCorrupt, match=complaint):
        load_vectors(spec, ITEMS, lambda name: tmp_path / f"{name}.npy")


# Neighbours

NEIGHBOURS = Neighbours(
    offsets=np.array([0, 2, 2, 3], np.int32),
    items=np.array([1, 2, 0], np.int32),
    weights=np.array([0.5, 0.25, 1.0], np.float16),
)


def test_neighbours_are_read_back_row_by_row(tmp_path: Path) -> None:
    """Columns and weights of a row, none for a row without any."""
    spec = NEIGHBOURS.save(tmp_path)
    found = Neighbours.load(spec, 3, lambda name: tmp_path / name)

    assert [found.of(row)[0].tolist() for row in range(3)] == [[1, 2], [], [0]]
    assert [found.of(row)[1].tolist() for row in range(3)] == [[0.5, 0.25], [], [1.0]]
    assert found.of(0)[1].dtype == np.float32


def test_there_may_be_no_neighbours_at_all(tmp_path: Path) -> None:
    """An empty matrix is a matrix."""
    none = Neighbours(np.zeros(4, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))
    found = Neighbours.load(none.save(tmp_path), 3, lambda name: tmp_path / name)

    assert found.of(2)[0].tolist() == []


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("offsets", [0, 2, 3]),
        ("offsets", [1, 2, 2, 3]),
        ("offsets", [0, 2, 1, 3]),
        ("offsets", [0, 2, 2, 4]),
        ("items", [1, 2]),
        ("items", [1, 3, 0]),
        ("items", [1, -1, 0]),
        ("weights", [0.5, 0.25]),
        ("weights", [0.5, 0.0, 1.0]),
        ("weights", [0.5, np.nan, 1.0]),
        ("weights", [0.5, np.inf, 1.0]),
    ],
)
def test_neighbours_that_make_no_sense_are_refused(
    part: str, values: list[float], tmp_path: Path
) -> None:
    """Offsets that go back, columns out of the catalogue, weights without a logarithm."""
    spec = NEIGHBOURS.save(tmp_path)
    array = np.array(values, getattr(NEIGHBOURS, part).dtype)
    save_array(tmp_path, getattr(spec, part), array)

    with pytest.raises(BundleCorrupt, match="no 3 rows of neighbours"):
        Neighbours.load(spec, 3, lambda name: tmp_path / name)
