"""Criteo's two formats, numeric transforms and sides."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from compress.data.base import PARTS, BadCell, DataError
from compress.data.criteo import CATEGORICAL, COLUMNS, NUMERIC, Criteo, CriteoConfig
from compress.data.encode import prepare
from compress.progress import Silent
from tests.compress.data.conftest import criteo_frame


def criteo(path: Path, **options: object) -> Criteo:
    """The source with these options."""
    return Criteo(CriteoConfig.model_validate({"path": str(path)} | options))


def test_tsv_equals_parquet(criteo_tsv: Path, tmp_path: Path) -> None:
    """The same rows in either format are encoded into the same bytes."""
    parquet = tmp_path / "criteo.parquet"
    criteo_frame(200).write_parquet(parquet)

    text, table = (
        prepare(criteo(path), tmp_path / path.suffix[1:], Silent())
        for path in (criteo_tsv, parquet)
    )

    assert text.tokens == table.tokens
    assert text.rows == {"train": 160, "validation": 20, "test": 20}
    for part in PARTS:
        for one, other in zip(text.batches(part, 50), table.batches(part, 50), strict=True):
            assert np.array_equal(one.request_numeric, other.request_numeric)
            assert np.array_equal(one.request_ids, other.request_ids)
            assert np.array_equal(one.candidate_ids, other.candidate_ids)
            assert np.array_equal(one.label, other.label)


def test_parts_of_a_folder_are_one_data_set(tmp_path: Path) -> None:
    """A file cut in two reads as the whole."""
    frame = criteo_frame(200).select(COLUMNS)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder, pieces in ((whole, [frame]), (cut, [frame[:150], frame[150:]])):
        folder.mkdir()
        for i, piece in enumerate(pieces):
            piece.write_csv(folder / f"day_{i}.tsv", separator="\t", include_header=False)

    assert [(part, len(rows)) for part, rows in criteo(whole).chunks()] == [
        ("train", 160),
        ("validation", 20),
        ("test", 20),
    ]
    for part in PARTS:
        pieces = [rows for _, rows in criteo(cut).chunks((part,))]
        assert pl.concat(pieces).equals(pl.concat(r for _, r in criteo(whole).chunks((part,))))


def test_boundaries_on_a_column_are_inclusive_below(tmp_path: Path) -> None:
    """Train is below validation_from, the test from test_from on."""
    criteo_frame(200).write_parquet(tmp_path / "a.parquet")
    split = {"column": "chunk", "validation_from": 7, "test_from": 8}

    chunks = dict(criteo(tmp_path / "a.parquet", split=split).chunks())

    found = {part: (rows["chunk"].min(), rows["chunk"].max()) for part, rows in chunks.items()}
    assert found == {"train": (0, 6), "validation": (7, 7), "test": (8, 9)}


def test_numbers_are_log1p_by_default(criteo_tsv: Path, tmp_path: Path) -> None:
    """As DLRM: ln(max(x, 0) + 1), and 0 for missing."""
    batch = next(prepare(criteo(criteo_tsv), tmp_path / "p", Silent()).batches("train", 160))
    raw = criteo_frame(200)["I1"].head(160).fill_null(0).to_numpy()

    assert batch.request_numeric.shape == (160, 13)
    assert np.allclose(batch.request_numeric[:, 0], np.log1p(np.maximum(raw, 0)), atol=1e-6)


def test_x4_makes_categories_of_the_numbers(criteo_tsv: Path, tmp_path: Path) -> None:
    """39 fields of ids, none of numbers; rows share an id exactly if they share a bucket."""
    dataset = prepare(criteo(criteo_tsv, numeric="x4", min_count=1), tmp_path / "p", Silent())
    batch = next(dataset.batches("train", 160))

    assert batch.request_numeric.shape == (160, 0)
    assert batch.request_ids.shape == (160, 29)
    x = criteo_frame(200)["I1"].head(160).cast(pl.Float64).fill_null(float("nan")).to_numpy()
    buckets = np.where(x > 2, 1000 + np.floor(np.log(np.maximum(x, 1)) ** 2), x)
    missing = np.isnan(x)
    ids = batch.request_ids[:, 0]
    same = (buckets[:, None] == buckets) | (missing[:, None] & missing)
    assert ((ids[:, None] == ids) == same).all()


def test_the_request_side_is_the_configs(criteo_tsv: Path, tmp_path: Path) -> None:
    """What is not named there is the candidate's."""
    dataset = prepare(criteo(criteo_tsv, request_side=["I1", "C3"]), tmp_path / "p", Silent())
    batch = next(dataset.batches("test", 5))

    assert batch.request_numeric.shape == (5, 1)
    assert batch.request_ids.shape == (5, 1)
    assert batch.candidate_numeric.shape == (5, 12)
    assert batch.candidate_ids.shape == (5, 25)


def test_the_default_sides_are_those_of_the_benchmark(criteo_tsv: Path) -> None:
    """I1-I13 and C1-C16 on the request, C17-C26 on the candidates."""
    sides = {column.name: column.side for column in criteo(criteo_tsv).schema().columns}

    assert {name for name, side in sides.items() if side == "context"} == {
        *NUMERIC,
        *CATEGORICAL[:16],
    }


def test_an_unknown_feature_on_the_request_side_is_refused() -> None:
    """The features are listed."""
    with pytest.raises(ValidationError, match="no feature C27"):
        CriteoConfig(path="x", request_side=("C27",))


def test_categories_can_be_hashed(criteo_tsv: Path, tmp_path: Path) -> None:
    """No vocabulary is kept then."""
    dataset = prepare(criteo(criteo_tsv, hash_buckets=50), tmp_path / "p", Silent())

    assert dataset.tokens == {}
    assert {getattr(f.encoding, "rows", 52) for f in dataset.features} == {52}


def test_a_bad_cell_stops_or_is_skipped_and_counted(criteo_tsv: Path, tmp_path: Path) -> None:
    """As the config says; the row, column and value are named."""
    lines = criteo_tsv.read_text().splitlines()
    cells = lines[9].split("\t")
    cells[4] = "many"
    lines[9] = "\t".join(cells)
    lines[190] = "1\t2\t3"
    criteo_tsv.write_text("\n".join(lines) + "\n")

    with pytest.raises(BadCell) as caught:
        prepare(criteo(criteo_tsv), tmp_path / "p", Silent())
    skipping = prepare(criteo(criteo_tsv, on_bad_cell="skip"), tmp_path / "p", Silent())

    assert (caught.value.row, caught.value.column, caught.value.value) == (10, "I4", "many")
    assert skipping.skipped_cells == 2
    assert sum(skipping.rows.values()) == 198


def test_a_file_with_a_header_is_refused_at_its_label(tmp_path: Path) -> None:
    """The challenge's file has none; the first line would be read as a row."""
    path = tmp_path / "criteo.tsv"
    criteo_frame(9).select(COLUMNS).write_csv(path, separator="\t")

    with pytest.raises(BadCell, match="row 1: column 'label': expected 0 or 1, got 'label'"):
        list(criteo(path).chunks())


def test_a_parquet_without_the_splits_column_is_refused(tmp_path: Path) -> None:
    """The missing column is named."""
    criteo_frame(9).drop("chunk").write_parquet(tmp_path / "a.parquet")
    split = {"column": "chunk", "validation_from": 7, "test_from": 8}

    with pytest.raises(DataError, match="no column 'chunk'"):
        list(criteo(tmp_path / "a.parquet", split=split).chunks())


def test_the_fingerprint_follows_rows_and_split_but_not_the_place(tmp_path: Path) -> None:
    """A moved file is the same data; another split is not."""
    for name in ("a", "b"):
        criteo_frame(20).write_parquet(tmp_path / f"{name}.parquet")
    first, moved = (criteo(tmp_path / f"{name}.parquet").fingerprint() for name in ("a", "b"))

    assert first == moved
    assert first != criteo(tmp_path / "a.parquet", split={"test": 0.2}).fingerprint()


@pytest.mark.slow
def test_the_real_sample_is_cut_by_time(shared_data: Path, tmp_path: Path) -> None:
    """118,987 rows; test chunks 66-71 are never seen in training."""
    source = criteo(
        shared_data / "criteo" / "train.parquet",
        split={"column": "chunk", "validation_from": 60, "test_from": 66},
    )

    dataset = prepare(source, tmp_path, Silent())

    assert dataset.rows == {"train": 99_174, "validation": 10_043, "test": 9_770}
    assert len(dataset.tokens) == 26
    chunks = pl.concat(rows["chunk"] for rows in dataset.raw("test"))
    assert (chunks.min(), chunks.max()) == (66, 71)
