"""What every source must hold to."""

from pathlib import Path

import numpy as np
import polars as pl

from compress.data import SOURCES
from compress.data.base import PARTS, Source
from compress.data.encode import prepare
from compress.progress import Silent


def test_every_registered_source_is_tested_here() -> None:
    """A new source joins the fixture, or this fails."""
    assert set(SOURCES) == {"ml-100k", "criteo", "table", "synthetic"}


def test_parts_come_with_all_columns_and_lose_no_row(source: Source) -> None:
    """Reading a part alone gives what reading all parts gives for it."""
    schema = source.schema()
    wanted = {schema.label, *(column.column for column in schema.columns)}

    together = {part: [] for part in PARTS}
    for part, frame in source.chunks():
        assert wanted <= set(frame.columns)
        together[part].append(frame)

    for part in PARTS:
        alone = pl.concat(frame for _, frame in source.chunks((part,)))
        assert len(alone)
        assert alone.equals(pl.concat(together[part]))


def test_the_catalogue_has_each_item_once_with_its_columns(source: Source) -> None:
    """Its ids are strings."""
    schema, items = source.schema(), source.items()

    if schema.item_id is None:
        assert items is None
        return
    assert items is not None
    by_name = {column.name: column for column in schema.columns}
    id_ = by_name[schema.item_id].column
    assert set(items.columns) == {c.column for c in schema.columns if c.side == "item"}
    assert items[id_].dtype == pl.String
    assert items[id_].is_unique().all()


def test_preparing_twice_gives_the_same_bytes(source: Source, tmp_path: Path) -> None:
    """Vocabularies and encoded rows depend on the data alone."""
    first, second = tmp_path / "1", tmp_path / "2"
    prepare(source, first, Silent())
    prepare(source, second, Silent())

    files = sorted(path.relative_to(first) for path in first.rglob("*.*") if path.is_file())
    assert any(path.name == "train.bin" for path in files)
    for path in files:
        assert (first / path).read_bytes() == (second / path).read_bytes()


def test_encoded_rows_lie_inside_their_tables(source: Source, tmp_path: Path) -> None:
    """Numbers are finite, rows are below the number of rows, labels are 0 or 1."""
    dataset = prepare(source, tmp_path / "prepared", Silent())

    for part in PARTS:
        for batch in dataset.batches(part, 64):
            assert np.isfinite(batch.request_numeric).all()
            assert np.isfinite(batch.candidate_numeric).all()
            assert set(np.unique(batch.label)) <= {0.0, 1.0}
            for feature in dataset.features:
                rows = getattr(feature.encoding, "rows", None)
                if rows is not None and feature.tensor is not None:
                    end = feature.start + feature.length
                    ids = getattr(batch, feature.tensor)[:, feature.start : end]
                    assert ids.min() >= 0
                    assert ids.max() < rows


def test_raw_rows_stand_in_the_order_of_the_encoded_ones(source: Source, tmp_path: Path) -> None:
    """Labels of the raw and the encoded test part agree one by one."""
    dataset = prepare(source, tmp_path / "prepared", Silent())
    data = source.schema().data

    raw = pl.concat(dataset.raw("test"))[data.label].cast(pl.Float64).to_numpy()
    encoded = np.concatenate([batch.label for batch in dataset.batches("test", 50)])

    threshold = 1.0 if data.positive_from is None else data.positive_from
    assert ((raw >= threshold) == (encoded == 1.0)).all()
    assert dataset.positives["test"] == encoded.sum()
