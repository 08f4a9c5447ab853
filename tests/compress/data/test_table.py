"""A user's own table: described in the config, joined with its catalogue."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from compress.config import ConfigError, check
from compress.data.base import BadCell, DataError
from compress.data.encode import prepare
from compress.data.table import TableConfig, UserTable
from compress.progress import Silent
from tests.compress.data.conftest import table

COLUMNS = [
    {"name": "country", "kind": "categorical", "side": "user"},
    {"name": "product", "kind": "categorical", "side": "item", "column": "sku"},
]


def test_item_columns_that_the_rows_lack_come_from_the_catalogue(tmp_path: Path) -> None:
    """By item id, whether a file stores it as 3 or 3.0; an unknown item has none."""
    rows = pl.concat(rows for _, rows in table(tmp_path).chunks(("train",)))

    prices = dict(rows.select("sku", "price").iter_rows())
    assert prices == {"0": 0.0, "1": 1.5, "2": 3.0, "3": 4.5, "4": 6.0, "5": 7.5, "6": None}
    assert dict(rows.select("sku", "tags").iter_rows())["4"] == "a|c|d"


def test_item_columns_of_the_rows_are_their_own(tmp_path: Path) -> None:
    """A price at the time of the click wins over the catalogue's."""
    source = table(tmp_path)
    clicks = pl.read_csv(tmp_path / "clicks.csv").with_columns(price=pl.lit(99.0))
    clicks.write_csv(tmp_path / "clicks.csv")

    rows = pl.concat(rows for _, rows in source.chunks())

    assert rows["price"].unique().to_list() == [99.0]
    items = source.items()
    assert items is not None
    assert items["price"].max() == 7.5


def test_rows_are_split_by_the_time_column(tmp_path: Path) -> None:
    """By default the last tenth of the rows in time order."""
    parts = {part: rows["day"].unique().to_list() for part, rows in table(tmp_path).chunks()}

    assert parts["test"] == [10.0, 11.0] or parts["test"] == [11.0]
    assert max(parts["train"]) < min(parts["validation"]) <= max(parts["validation"])
    assert max(parts["validation"]) < min(parts["test"])


def test_without_a_catalogue_file_the_last_row_of_an_item_counts(tmp_path: Path) -> None:
    """The catalogue is derived from all rows."""
    pl.DataFrame(
        {
            "y": [0, 1] * 10,
            "sku": ["b", "a", None, "a"] * 5,
            "price": [float(i) for i in range(20)],
        }
    ).write_parquet(tmp_path / "rows.parquet")
    config = TableConfig.model_validate(
        {
            "path": str(tmp_path / "rows.parquet"),
            "label": "y",
            "item_id": "sku",
            "columns": [
                {"name": "sku", "kind": "categorical", "side": "item"},
                {"name": "price", "kind": "numeric", "side": "item"},
            ],
        }
    )

    items = UserTable(config).items()

    assert items is not None
    assert items.rows() == [("a", 19.0), ("b", 16.0)]


def test_without_an_item_id_there_is_no_catalogue(tmp_path: Path) -> None:
    """Items cannot be told apart."""
    assert table(tmp_path, item_id=None, items=None, columns=COLUMNS).items() is None


def test_multi_valued_features_are_cut_at_their_length(tmp_path: Path) -> None:
    """Missing and empty ones are padding throughout."""
    dataset = prepare(table(tmp_path), tmp_path / "p", Silent())
    tokens = {text: row for row, text in enumerate(dataset.tokens["tags"], start=2)}

    ids = np.concatenate([batch.candidate_ids for batch in dataset.batches("train", 100)])[:7, 1:]

    a, b, c = tokens["a"], tokens["b"], tokens["c"]
    assert ids.tolist() == [[a, b], [1, 1], [c, 1], [a, 1], [a, c], [1, 1], [1, 1]]


def test_ratings_become_labels_by_a_threshold(tmp_path: Path) -> None:
    """positive_from is inclusive."""
    pl.DataFrame({"stars": [1, 4, 3, 5] * 10, "c": ["x"] * 40}).write_csv(tmp_path / "r.csv")
    config = {
        "path": str(tmp_path / "r.csv"),
        "label": "stars",
        "positive_from": 4,
        "columns": [{"name": "c", "kind": "categorical", "side": "user"}],
    }

    dataset = prepare(UserTable(TableConfig.model_validate(config)), tmp_path / "p", Silent())

    assert next(dataset.batches("train", 4)).label.tolist() == [0.0, 1.0, 0.0, 1.0]


def test_text_in_a_number_of_the_catalogue_is_named(tmp_path: Path) -> None:
    """The catalogue's cells are checked like those of the rows."""
    source = table(tmp_path, items=str(tmp_path / "products.csv"))
    (tmp_path / "products.csv").write_text("sku,price,tags\n1,cheap,a\n")

    with pytest.raises(BadCell, match=r"products.csv: row 2: column 'price'"):
        source.items()


def test_a_column_that_is_nowhere_is_reported_with_the_nearest_one(tmp_path: Path) -> None:
    """The file, what was expected and what was found."""
    source = table(tmp_path, columns=[*COLUMNS, {"name": "dya", "kind": "numeric", "side": "user"}])

    with pytest.raises(DataError, match=r"no column 'dya' \(nearest: 'day'\)"):
        list(source.chunks())


def test_a_catalogue_without_items_is_refused(tmp_path: Path) -> None:
    """An empty one would leave nothing to rank."""
    source = table(tmp_path, items=str(tmp_path / "products.csv"))
    (tmp_path / "products.csv").write_text("sku,price,tags\n")

    with pytest.raises(DataError, match="names an item"):
        source.items()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"item_id": None}, "items needs item_id"),
        (
            {"item_id": "prodct"},
            r"^data: item_id 'prodct' is none of the features; did you mean 'product'\?$",
        ),
        ({"item_id": "zzz"}, "none of the features; they are country, product$"),
        ({"item_id": "country"}, "must be on the item side"),
        ({"time": "country"}, "'country' is the time, so it must be a number"),
        (
            {"label": "country"},
            "^data: the label 'country' cannot be a feature as well; .*features$",
        ),
        ({"columns": []}, "at least 1 item"),
        ({"columns": [*COLUMNS, COLUMNS[0]]}, "named twice: country"),
        ({"columns": [*COLUMNS, {"name": "a b", "kind": "numeric", "side": "user"}]}, "a b"),
        ({"columns": [COLUMNS[1] | {"transform": "log1p"}]}, "takes a transform"),
        ({"columns": [COLUMNS[1] | {"length": 3}]}, "only a multi-valued feature"),
        ({"columns": [COLUMNS[1] | {"kind": "multi-valued", "length": 0}]}, "0.length: .* got 0"),
        ({"columns": [COLUMNS[1] | {"min_count": 0}]}, "0.min_count: .* to 1, got 0"),
        ({"columns": [COLUMNS[1] | {"kind": "number"}]}, "'categorical', 'multi-valued' or"),
        ({"columns": [COLUMNS[1] | {"sid": "item"}]}, "did you mean 'side'"),
        ({"colums": []}, "did you mean 'columns'"),
    ],
)
def test_a_config_that_means_nothing_is_refused(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    """Before any row is read, naming the fault."""
    good = {
        "path": "clicks.csv",
        "label": "clicked",
        "time": "day",
        "item_id": "product",
        "items": "products.csv",
        "columns": COLUMNS,
    }

    with pytest.raises(ConfigError, match=message):
        check(TableConfig, good | options, where="data")
