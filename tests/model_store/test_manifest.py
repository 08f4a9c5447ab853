"""The contract between training and serving."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from model_store import errors
from model_store.errors import StoreError
from model_store.manifest import (
    BucketEncoding,
    CodedVectors,
    DataSpec,
    DenseVectors,
    FactoredVectors,
    FeatureSpec,
    FileEntry,
    HashedCodes,
    HashEncoding,
    Int8Vectors,
    ItemTableSpec,
    Manifest,
    NeighbourSpec,
    NumberCode,
    NumericEncoding,
    RadixCodes,
    SessionSpec,
    StoredCodes,
    TensorSpec,
    VocabularyEncoding,
)

FORMAT_PAGE = (Path(__file__).parents[2] / "docs/bundle-format.md").read_text()


@pytest.mark.parametrize(
    ("kind", "fields", "complaint"),
    [
        (NumericEncoding, {"scale": 0.0}, "greater than 0"),
        (NumericEncoding, {"transform": "log"}, "'identity', 'log1p' or 'standardize'"),
        (VocabularyEncoding, {"file": "vocab/f.json", "rows": 1}, "greater than or equal to 2"),
        (HashEncoding, {"rows": 2}, "greater than or equal to 3"),
        (BucketEncoding, {"edges": (2.0, 1.0)}, "ascending order"),
        (FileEntry, {"path": "x", "sha256": "0" * 63, "bytes": 1}, "match pattern"),
        (FileEntry, {"path": "x", "sha256": "0" * 64, "bytes": -1}, "greater than or equal to 0"),
    ],
)
def test_what_could_not_be_served_is_refused(
    kind: type[Any], fields: dict[str, Any], complaint: str
) -> None:
    """A record is checked where it enters, so that nobody need check it after."""
    with pytest.raises(ValidationError, match=complaint):
        kind(**fields)


def test_a_bucket_table_has_a_row_per_bucket() -> None:
    """Two edges make three buckets; unknown and missing have their rows too."""
    assert BucketEncoding(edges=(6.0, 18.0)).rows == 5


def test_a_feature_says_its_side_and_whether_it_was_pruned() -> None:
    """Users and contexts belong to the request; what has no place in the graph was pruned."""
    spec = FeatureSpec(
        name="age", kind="numeric", side="user", column="age", encoding=NumericEncoding()
    )

    assert spec.request_side
    assert spec.pruned
    assert not spec.model_copy(update={"side": "item"}).request_side
    assert not spec.model_copy(update={"tensor": "request_numeric"}).pruned


def test_records_do_not_change() -> None:
    """What was opened stays what it is while it serves."""
    with pytest.raises(ValidationError, match="frozen"):
        BucketEncoding(edges=()).default = 1.0


@pytest.mark.parametrize("name", ["", "Ctr", "../x", ".x", "x" * 65, "a b"])
def test_a_name_is_a_plain_word(name: str) -> None:
    """It is part of paths, URLs and metric labels."""
    with pytest.raises(ValidationError, match="name"):
        Manifest.model_validate({"name": name})


def test_the_store_brings_in_numpy_and_pydantic_only() -> None:
    """Local stores need neither a runtime nor fsspec."""
    code = (
        "import sys, model_store.store, model_store.__main__;"
        "print([m for m in ('torch', 'onnx', 'fsspec', 'redis') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "record",
    [Manifest, FeatureSpec, FileEntry, NumericEncoding, VocabularyEncoding, NumberCode,
     HashEncoding, BucketEncoding, TensorSpec, ItemTableSpec, DataSpec, SessionSpec, NeighbourSpec,
     DenseVectors, Int8Vectors, CodedVectors, FactoredVectors, StoredCodes, RadixCodes,
     HashedCodes],
)  # fmt: skip
def test_every_field_is_documented(record: type[BaseModel]) -> None:
    """docs/bundle-format.md names each field of the format."""
    missing = [field for field in record.model_fields if f"`{field}`" not in FORMAT_PAGE]

    assert missing == []


def test_every_error_is_documented() -> None:
    """The page says what each error means, and what to do."""
    names = [
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, StoreError) and value is not StoreError
    ]

    assert [name for name in names if f"`{name}`" not in FORMAT_PAGE] == []
