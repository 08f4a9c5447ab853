"""Codes for a table that is at hand: what is written, how it is judged, what is refused."""

import doctest
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import compress.sessions.encode
from compress.__main__ import app
from compress.config import CompressError, ConfigError
from compress.data.base import DataError
from compress.progress import Silent
from compress.sessions.encode import (
    ENCODERS,
    Summary,
    Table,
    correlations,
    encode,
    fidelity,
    opened,
    overlap,
    read,
)
from model_store.codebooks import CodedTable
from model_store.errors import BundleCorrupt


def clustered(items: int = 300, dim: int = 16) -> np.ndarray:
    """Vectors around 12 centres."""
    draw = np.random.default_rng(3)
    centres = draw.normal(size=(12, dim))
    noise = 0.3 * draw.normal(size=(items, dim))
    return (centres[draw.integers(12, size=items)] + noise).astype(np.float32)


def table(vectors: np.ndarray) -> Table:
    """A table without ids and clicks."""
    return Table(vectors, None, np.zeros(len(vectors), np.int64))


def files(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def embeddings(tmp_path: Path) -> Path:
    """An npy file of clustered vectors."""
    path = tmp_path / "items.npy"
    np.save(path, clustered())
    return path


def test_examples_in_docstrings_hold() -> None:
    """What a docstring shows is what comes out."""
    assert doctest.testmod(compress.sessions.encode, optionflags=doctest.ELLIPSIS).failed == 0


@pytest.mark.parametrize("method", ENCODERS)
@pytest.mark.parametrize("kept_as", ["float32", "float16", "int8"])
def test_what_was_written_opens_as_coded_vectors(method: str, kept_as: str, tmp_path: Path) -> None:
    """The folder holds codes, codebooks and how to read them; the vectors are as near as told."""
    given = clustered()

    summary = encode(
        table(given),
        tmp_path / "out",
        codes="4x16",
        method=method,
        kept_as=kept_as,
        progress=Silent(),
    )

    coded = opened(tmp_path / "out")
    left = given - coded.vectors(np.arange(300))
    told = summary.costs.fidelity.relative_mse
    assert coded.codes.shape == (300, 4)
    assert told == pytest.approx(float((left**2).sum() / (given**2).sum()), rel=1e-4)
    assert told < 0.3


def test_bytes_and_ratios_are_those_of_the_disk_and_of_the_paper(tmp_path: Path) -> None:
    """By hand for 300 x 16 and 4x16 float16: headers, two bytes an item, 2·4·16·16 of codebooks."""
    summary = encode(table(clustered()), tmp_path / "out", codes="4x16", progress=Silent())

    costs = summary.costs
    assert costs.bytes == {
        "items/codebooks.npy": 128 + 2 * 4 * 16 * 16,
        "items/codes.npy": 128 + 300 * 2,
    }
    assert costs.dense_bytes == 300 * 16 * 4
    assert costs.ratio == costs.dense_bytes / sum(costs.bytes.values())
    assert costs.ratio_as_papers == 300 * 16 / (4 * 16 * 16 + 4 * 300)
    assert json.loads((tmp_path / "out" / "summary.json").read_bytes()) == summary.model_dump(
        mode="json"
    )


def test_one_seed_is_one_folder(tmp_path: Path) -> None:
    """The same bytes for the same seed, other ones for another."""
    for folder, seed in (("one", 1), ("again", 1), ("other", 2)):
        encode(table(clustered()), tmp_path / folder, codes="4x16", seed=seed, progress=Silent())

    assert files(tmp_path / "one") == files(tmp_path / "again")
    assert files(tmp_path / "one") != files(tmp_path / "other")


def test_ids_go_along(embeddings: Path, tmp_path: Path) -> None:
    """A bundle's file of ids, and not counted into the ratio."""
    ids = tmp_path / "ids.txt"
    ids.write_text("".join(f"größe {i}\n" for i in range(300)), encoding="utf-8")

    summary = encode(read(embeddings, ids), tmp_path / "out", codes="4x16", progress=Silent())

    stored = json.loads((tmp_path / "out" / "items" / "ids.json").read_bytes())
    without = encode(read(embeddings), tmp_path / "bare", codes="4x16", progress=Silent())
    assert stored == [f"größe {i}" for i in range(300)]
    assert "items/ids.json" in summary.costs.bytes
    assert summary.costs.ratio == without.costs.ratio


def test_clicks_buy_frequent_items_better_codes(embeddings: Path, tmp_path: Path) -> None:
    """With counts, the error of the items that are clicked falls."""
    clicks, given = np.where(np.arange(300) % 10 == 0, 5000, 0), clustered()
    np.save(tmp_path / "counts.npy", clicks)

    errors = []
    for name, counts in (("even", None), ("weighted", tmp_path / "counts.npy")):
        encode(read(embeddings, counts=counts), tmp_path / name, codes="3x8", progress=Silent())
        left = given - opened(tmp_path / name).vectors(np.arange(300))
        errors.append(float((left[::10] ** 2).sum()))

    assert errors[1] < 0.9 * errors[0]


def test_a_perfect_table_agrees_in_everything() -> None:
    """Codes that give the vectors back keep every neighbour and every rank."""
    given = clustered(64)
    coded = CodedTable(np.arange(64, dtype=np.uint8)[:, None], given[None], concatenated=False)

    found = fidelity(given, coded, 0, Silent())

    assert (found.relative_mse, found.overlap_at_10, found.overlap_at_100) == (0, 1, 1)
    assert (found.kendall, found.spearman) == pytest.approx((1, 1))
    assert found.queries == 64


def test_one_vector_for_all_ranks_nothing() -> None:
    """A single codeword has no order to agree with; it is no error either."""
    given = clustered(64)
    coded = CodedTable(np.zeros((64, 1), np.uint8), given[None, :1], concatenated=False)

    found = fidelity(given, coded, 0, Silent())

    assert (found.kendall, found.spearman) == (0, 0)
    assert found.overlap_at_10 < 1


def test_agreement_by_hand() -> None:
    """Of the best two one is kept; one pair of three is turned round."""
    assert overlap(np.array([9.0, 8.0, 1.0]), np.array([5.0, 1.0, 7.0]), 2) == 0.5
    assert overlap(np.array([1.0, 2.0]), np.array([1.0, 2.0]), 10) == 1.0
    kendall, spearman = correlations(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0]))
    assert (kendall, spearman) == pytest.approx((1 / 3, 1 / 2))


def test_doubles_are_counted(tmp_path: Path) -> None:
    """Equal rows are told of; each still gets codes of its own."""
    given = clustered()
    given[10:15] = given[3]
    given[20] = 0.0
    given[21] = -0.0
    np.save(tmp_path / "items.npy", given)

    summary = encode(
        read(tmp_path / "items.npy"), tmp_path / "out", codes="4x16", progress=Silent()
    )

    assert summary.costs.duplicate_rows == 6
    assert summary.costs.shared_codes == 0


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f8"])
def test_any_float_will_do(dtype: str, tmp_path: Path) -> None:
    """Vectors are taken as float32, whatever they came as."""
    np.save(tmp_path / "items.npy", clustered().astype(dtype))

    if dtype == ">f8":
        with pytest.raises(DataError, match="expected float32 or float16 or float64"):
            read(tmp_path / "items.npy")
    else:
        assert read(tmp_path / "items.npy").vectors.dtype == np.float32


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((4, 3), np.int64), "int64 of shape (4, 3), expected float32"),
        (np.ones(4, np.float32), "with 2 axes"),
        (np.ones((1, 3), np.float32), "shape (1, 3), expected two items or more"),
        (np.ones((4, 0), np.float32), "shape (4, 0), expected two items or more"),
        (np.array([[1.0, 2.0], [np.nan, 0.0], [np.inf, 1.0]]), "2 rows hold NaN, infinity"),
        (np.array([[1.0, 2.0], [1e300, 0.0]]), "the first are 1"),
    ],
)
def test_tables_that_cannot_be_encoded_are_refused(
    array: np.ndarray, message: str, tmp_path: Path
) -> None:
    """The text says what came and what was expected."""
    np.save(tmp_path / "items.npy", array)

    with pytest.raises(DataError) as refused:
        read(tmp_path / "items.npy")

    assert message in str(refused.value)


def test_what_is_no_npy_file_is_refused(tmp_path: Path) -> None:
    """A pickle is never run, and an archive not searched."""
    np.savez(tmp_path / "items.npy", vectors=clustered())

    with pytest.raises(DataError, match="not a plain npy file"):
        read(tmp_path / "items.npy.npz")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a\nb\n", "2 lines, expected one for each of the 300 items"),
        (b"a\n" * 300, "299 ids stand twice: a, a, a, a, a, "),
        (b"\xff\xfe", "not UTF-8 text"),
    ],
)
def test_ids_that_do_not_fit_are_refused(
    text: bytes, message: str, embeddings: Path, tmp_path: Path
) -> None:
    """One distinct id a line, for each item."""
    (tmp_path / "ids.txt").write_bytes(text)

    with pytest.raises(DataError, match=message):
        read(embeddings, tmp_path / "ids.txt")


@pytest.mark.parametrize("counts", [np.ones(299, np.int64), np.full(300, -1)])
def test_counts_that_do_not_fit_are_refused(
    counts: np.ndarray, embeddings: Path, tmp_path: Path
) -> None:
    """One count of clicks for each item, none negative."""
    np.save(tmp_path / "counts.npy", counts)

    with pytest.raises(DataError, match="expected 300, none negative"):
        read(embeddings, counts=tmp_path / "counts.npy")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codes": "2x16"}, "16^2 = 256 codes cannot tell 300 items apart"),
        ({"codes": "8by256"}, "encode: codes"),
        ({"method": "rqq"}, "did you mean 'rq'?"),
        ({"method": "recjpq"}, "choose one of opq, pq, rq"),
        ({"kept_as": "int4"}, "encode: kept_as"),
        ({"method": "pq", "codes": "3x16"}, "cannot share vectors of width 16 evenly"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """Nothing is written then."""
    with pytest.raises(ConfigError) as refused:
        encode(table(clustered()), tmp_path / "out", progress=Silent(), **options)

    assert message in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    """An earlier result is never mixed with a new one; an empty folder will do."""
    (tmp_path / "out").mkdir()
    encode(table(clustered()), tmp_path / "out", codes="4x16", progress=Silent())
    before = files(tmp_path / "out")

    with pytest.raises(DataError, match="there is something already"):
        encode(table(clustered()), tmp_path / "out", codes="4x16", progress=Silent())

    assert files(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("kept_as", "factor"), [("float16", 1e5), ("int8", 1e8), ("float32", 1e20)]
)
def test_values_too_large_for_the_codebooks_are_refused(
    tmp_path: Path, kept_as: str, factor: float
) -> None:
    """Infinite codewords would score nothing, and faiss ends the process on infinite squares."""
    given = table(clustered() * factor)

    with pytest.raises(DataError, match=f"too large for codebooks in {kept_as}"):
        encode(given, tmp_path / "out", codes="4x16", kept_as=kept_as, progress=Silent())

    assert not (tmp_path / "out").exists()


def test_float32_keeps_what_float16_cannot(tmp_path: Path) -> None:
    """Values up to a few hundred thousand."""
    large = clustered() * 1e5

    summary = encode(
        table(large), tmp_path / "out", codes="4x16", kept_as="float32", progress=Silent()
    )
    assert summary.costs.fidelity.relative_mse < 0.3


def test_a_damaged_folder_does_not_open(tmp_path: Path) -> None:
    """Codes of another width than the summary says are refused, and a summary that is none."""
    encode(table(clustered()), tmp_path / "out", codes="4x16", progress=Silent())
    np.save(tmp_path / "out" / "items" / "codes.npy", np.zeros((300, 3), np.uint8))

    with pytest.raises(BundleCorrupt):
        opened(tmp_path / "out")
    (tmp_path / "out" / "summary.json").write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        opened(tmp_path / "out")


def test_the_command_prints_the_summary(embeddings: Path, tmp_path: Path) -> None:
    """`encode` writes the folder and prints its summary as JSON."""
    out = tmp_path / "deep" / "out"

    result = CliRunner().invoke(
        app,
        ["encode", "--embeddings", str(embeddings), "--codes", "4x16", "--out", str(out)],
        catch_exceptions=False,
    )

    assert result.exit_code == 0
    assert Summary.model_validate_json(result.stdout).costs.items == 300
    assert len(opened(out)) == 300


def test_the_command_warns_of_doubles(tmp_path: Path) -> None:
    """Equal rows go to stderr, with their number."""
    given = clustered()
    given[10] = given[3]
    np.save(tmp_path / "items.npy", given)

    result = CliRunner().invoke(
        app,
        f"encode --embeddings {tmp_path}/items.npy --codes 4x16 --out {tmp_path}/out",
        catch_exceptions=False,
    )

    assert "warning: rows that repeat an earlier one: 1" in result.stderr


def test_errors_are_those_that_a_command_tells(tmp_path: Path) -> None:
    """All of them are one message without a traceback."""
    with pytest.raises(CompressError):
        encode(table(clustered()), tmp_path / "out", codes="1x16", progress=Silent())
