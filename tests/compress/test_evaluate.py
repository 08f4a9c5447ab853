"""`evaluate` knows a bundle and a data file, and nothing else."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from compress.data.base import BadCell, DataError
from compress.data.encode import Dataset
from compress.evaluate import evaluate, find_bundle
from compress.metrics import quality
from compress.progress import Silent
from compress.rankers.base import Ranker
from compress.train import predict
from model_store.bundle import Bundle
from model_store.errors import BundleNotFound
from model_store.store import open_store
from tests.compress.conftest import Command


def judged(bundle: Bundle, path: Path, *, skip_bad: bool = False):
    """`evaluate` without a terminal."""
    return evaluate(bundle, path, skip_bad=skip_bad, progress=Silent())


def as_text(path: Path, separator: str = ",") -> pl.DataFrame:
    """The rows as a text file carries them."""
    rows = pl.read_parquet(path).with_columns(pl.col("i_tags").list.join("|"))
    rows.write_csv(path.with_suffix(".csv" if separator == "," else ".tsv"), separator=separator)
    return rows


def test_metrics_are_those_of_the_torch_ranker(
    exported: Bundle, slimmed: Ranker, dataset: Dataset, test_rows: Path
):
    """The exported files judge as the encoded data and the ranker they came from."""
    scores, labels = predict(slimmed, dataset, "test")
    expected = quality(labels, scores)

    found = judged(exported, test_rows)

    assert found.quality.rows == expected.rows == 300
    assert found.quality.auc == pytest.approx(expected.auc, abs=1e-6)
    assert found.quality.logloss == pytest.approx(expected.logloss, abs=1e-6)
    assert found.quality.accuracy == expected.accuracy
    assert found.skipped == 0


def test_text_files_give_what_parquet_gives(exported: Bundle, test_rows: Path):
    """CSV, TSV and gzip carry the same rows."""
    as_text(test_rows)
    as_text(test_rows, "\t")
    packed = test_rows.with_suffix(".csv.gz")
    packed.write_bytes(gzip.compress(test_rows.with_suffix(".csv").read_bytes()))
    expected = judged(exported, test_rows)

    assert judged(exported, test_rows.with_suffix(".csv")) == expected
    assert judged(exported, test_rows.with_suffix(".tsv")) == expected
    assert judged(exported, packed) == expected


def test_absent_item_columns_are_joined_by_the_items_id(exported: Bundle, test_rows: Path):
    """A file of (user, item id, label) is enough: the bundle knows the item's features."""
    rows = pl.read_parquet(test_rows)
    narrow = test_rows.with_name("narrow.parquet")
    rows.drop(c for c in rows.columns if c.startswith("i_")).write_parquet(narrow)

    assert judged(exported, narrow) == judged(exported, test_rows)


def test_an_unknown_item_is_scored_as_a_cold_one(exported: Bundle, test_rows: Path):
    """Ids that the catalogue does not hold take the defaults; no row is lost."""
    rows = pl.read_parquet(test_rows).with_columns(item_id=pl.lit("never seen"))
    cold = test_rows.with_name("cold.parquet")
    rows.drop(c for c in rows.columns if c.startswith("i_")).write_parquet(cold)

    found = judged(exported, cold)

    assert found.quality.rows == len(rows)
    assert np.isfinite(found.quality.logloss)


def test_a_pruned_feature_is_not_asked_for(exported: Bundle, test_rows: Path):
    """A file without the pruned columns judges the same."""
    lean = test_rows.with_name("lean.parquet")
    pl.read_parquet(test_rows).drop("i_tags", "u_noise1").write_parquet(lean)

    assert judged(exported, lean) == judged(exported, test_rows)


def test_a_bad_cell_is_named_by_row_column_and_value(exported: Bundle, test_rows: Path):
    """Rows count from 1 with the header, as editors show them."""
    rows = as_text(test_rows).cast(pl.String)
    bad = test_rows.with_name("bad.csv")
    at = pl.int_range(pl.len()) == 7
    rows.with_columns(
        c_dwell=pl.when(at).then(pl.lit("abc")).otherwise(pl.col("c_dwell"))
    ).write_csv(bad)

    with pytest.raises(BadCell, match=r"row 9: column 'c_dwell': .* got 'abc'.*--skip-bad"):
        judged(exported, bad)
    found = judged(exported, bad, skip_bad=True)
    assert (found.skipped, found.quality.rows) == (1, len(rows) - 1)


def test_an_absent_request_column_is_an_error(exported: Bundle, test_rows: Path):
    """A user's feature cannot be guessed: the column is named."""
    lean = test_rows.with_name("lean.parquet")
    pl.read_parquet(test_rows).drop("u_segment").write_parquet(lean)

    with pytest.raises(DataError, match="no column 'u_segment'"):
        judged(exported, lean)


def test_labels_of_one_class_are_an_error(exported: Bundle, test_rows: Path):
    """AUC is not defined there; the message says so."""
    rows = pl.read_parquet(test_rows).filter(pl.col("click") == 1)
    rows.write_parquet(test_rows)

    with pytest.raises(DataError, match=r"all \d+ labels are 1"):
        judged(exported, test_rows)


def test_a_file_without_rows_is_an_error(exported: Bundle, test_rows: Path):
    """There is nothing to judge, and the message says just that."""
    pl.read_parquet(test_rows).clear().write_parquet(test_rows)

    with pytest.raises(DataError, match=r"test\.parquet: no rows to evaluate$"):
        judged(exported, test_rows)


def test_a_bundle_is_found_by_folder_or_by_reference(exported: Bundle, tmp_path: Path):
    """A folder needs no store; a reference needs one."""
    store = open_store(str(tmp_path / "store"))
    version = store.publish(exported.root, "ctr").version

    assert find_bundle(str(exported.root), None).digest == exported.digest
    assert find_bundle(f"ctr@{version}", str(tmp_path / "store")).digest == exported.digest
    with pytest.raises(BundleNotFound, match="--store"):
        find_bundle("ctr@1", None)


@pytest.mark.slow
def test_the_command_prints_json_and_loads_no_torch(exported: Bundle, test_rows: Path):
    """What the card says can be checked where nothing can train."""
    code = (
        "import sys; from compress.__main__ import app; "
        "app(standalone_mode=False); assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, "evaluate", str(exported.root), "--data"]

    ended = subprocess.run([*command, str(test_rows)], capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert set(found) == {"auc", "logloss", "accuracy", "rows", "skipped"}
    assert found["auc"] == judged(exported, test_rows).quality.auc


def test_a_mistake_is_one_message_and_exit_code_2(
    command: Command, exported: Bundle, tmp_path: Path
):
    """No traceback for what the user can mend."""
    ended = command("evaluate", exported.root, "--data", tmp_path / "none.csv")

    assert ended.code == 2
    assert "error: " in ended.err
    assert "none.csv" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_is_no_error(exported: Bundle, tmp_path: Path):
    """As in `report … | head`: no traceback, neither while printing nor at exit."""
    # -E: print into a buffer, as everywhere but under PYTHONUNBUFFERED.
    command = [sys.executable, "-E", "-m", "compress", "report", str(exported.root), "-O"]

    with subprocess.Popen(
        [*command, str(tmp_path / "report.html")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.close()
        said = process.stderr.read()

    assert (said, process.returncode) == ("", 1)
