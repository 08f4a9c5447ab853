"""Encoding: equal to the encoders that serve, done once, whole or not at all."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.data import encode as module
from compress.data.base import ColumnSpec, DataError, Part, Schema, Source
from compress.data.encode import Dataset, encode_series, place, prepare, widths
from compress.data.synthetic import Synthetic, SyntheticConfig
from compress.progress import Silent
from model_store.encoding import FIRST, MISSING, OOV, make_encoder
from model_store.manifest import (
    BucketEncoding,
    DataSpec,
    Encoding,
    FeatureSpec,
    Frozen,
    HashEncoding,
    NumericEncoding,
    VocabularyEncoding,
)

TEXT = st.text("ab|é", max_size=3)
VALUES: dict[str, tuple[Any, Any]] = {
    "text": (TEXT, pl.String),
    "integers": (st.integers(-3, 3), pl.Int64),
    "floats": (st.sampled_from([0.0, 1.0, 1.5, -2.0, float("nan")]), pl.Float64),
    "booleans": (st.booleans(), pl.Boolean),
    "lists": (st.lists(TEXT | st.none(), max_size=4), pl.List(pl.String)),
    "numbers": (st.lists(st.integers(-3, 3), max_size=4), pl.List(pl.Int64)),
}
TOKENS = ["a", "1", "true", "", "é", "-2", "1.5"]
ENCODINGS: dict[str, Encoding] = {
    "vocabulary": VocabularyEncoding(file="f", rows=FIRST + len(TOKENS)),
    "with default": VocabularyEncoding(file="f", rows=FIRST + len(TOKENS), default="a"),
    "hash": HashEncoding(rows=9),
}


class Fixed:
    """A source of given frames, by part."""

    Config = Frozen

    def __init__(self, columns: list[ColumnSpec], frames: dict[Part, list[pl.DataFrame]]) -> None:
        self._columns, self._frames = columns, frames

    def schema(self) -> Schema:
        """The columns and a label."""
        return Schema(columns=tuple(self._columns), data=DataSpec(label="y"))

    def chunks(
        self, parts: Any = module.PARTS, tally: Any = None
    ) -> Iterator[tuple[Part, pl.DataFrame]]:
        """The frames."""
        for part in parts:
            for frame in self._frames.get(part, []):
                yield part, frame

    def items(self) -> None:
        """None."""
        return

    def fingerprint(self) -> str:
        """Over all frames."""
        return str(self._frames)

    def notice(self) -> None:
        """None."""
        return


def column(name: str, kind: Any = "categorical", side: Any = "user", **options: Any) -> ColumnSpec:
    """A feature in the column of its name."""
    return ColumnSpec(name=name, kind=kind, side=side, column=name, **options)


def counting(rows: int, seed: int = 0) -> Synthetic:
    """A source of so many rows."""
    return Synthetic(SyntheticConfig(rows=rows, seed=seed, catalogue=0, validation=0.05, test=0.05))


def numbered(rows: int) -> Fixed:
    """Training rows that carry their number."""
    frame = pl.DataFrame({"n": np.arange(rows), "y": np.arange(rows) % 2})
    few = frame.head(3)
    return Fixed([column("n", "numeric")], {"train": [frame], "validation": [few], "test": [few]})


def numbers_of(dataset: Dataset, batch_size: int, seed: int | None) -> list[list[int]]:
    """The row numbers in each batch."""
    rng = None if seed is None else np.random.default_rng(seed)
    batches = dataset.batches("train", batch_size, rng)
    return [batch.request_numeric[:, 0].astype(int).tolist() for batch in batches]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("values", VALUES)
@settings(max_examples=30)
@given(data=st.data())
def test_a_chunk_is_encoded_as_its_values_one_by_one(
    values: str, encoding: str, data: st.DataObject
) -> None:
    """The fast way and the encoder that serving uses agree on every value."""
    strategy, dtype = VALUES[values]
    cells = data.draw(st.lists(strategy | st.none(), max_size=12))
    kinds = {"text": ("categorical", "multi"), "lists": ("multi",), "numbers": ("multi",)}
    for kind in kinds.get(values, ("categorical",)):
        length = 2 if kind == "multi" else 1
        spec = FeatureSpec(
            name="f",
            kind=kind,
            side="user",
            encoding=ENCODINGS[encoding],
            column="f",
            length=length,
        )
        encoder = make_encoder(spec, TOKENS)
        one_by_one = [encoder.encode([cell])[0].tolist() for cell in cells]

        fast = encode_series(encoder, pl.Series(cells, dtype=dtype))

        assert fast.shape == (len(cells), length)
        assert fast.dtype == np.int32
        assert fast.tolist() == one_by_one


@pytest.mark.parametrize(
    "encoding",
    [
        NumericEncoding(),
        NumericEncoding(transform="log1p", default=3.0),
        NumericEncoding(transform="standardize", mean=2.0, scale=4.0, default=2.0),
        BucketEncoding(edges=(0.0, 1.0, 7.5)),
        BucketEncoding(edges=(0.0, 1.0), default=0.5),
    ],
)
@pytest.mark.parametrize("dtype", [pl.Float64, pl.Int32])
def test_a_chunk_of_numbers_is_encoded_as_its_values_one_by_one(
    encoding: Encoding, dtype: Any
) -> None:
    """Missing ones too, whether null or NaN."""
    cells = [-2, 0, None, 1, 8] if dtype == pl.Int32 else [-2.0, 0.0, None, 1.0, float("nan"), 8.25]
    spec = FeatureSpec(name="f", kind="numeric", side="user", encoding=encoding, column="f")
    encoder = make_encoder(spec)

    fast = encode_series(encoder, pl.Series(cells, dtype=dtype))

    assert np.array_equal(fast, np.concatenate([encoder.encode([cell]) for cell in cells]))


def test_a_column_without_any_value_is_missing_throughout() -> None:
    """Parquet knows a type for columns of nulls only."""
    spec = FeatureSpec(
        name="f", kind="categorical", side="user", encoding=ENCODINGS["vocabulary"], column="f"
    )

    assert encode_series(make_encoder(spec, TOKENS), pl.Series([None, None])).tolist() == [[1], [1]]


def test_features_fill_the_inputs_in_order_without_holes() -> None:
    """Each side has its numbers and its ids; a multi-valued feature takes `length` columns."""
    ids, number = HashEncoding(rows=5), NumericEncoding()
    given_ = [
        ("a", "user", "categorical", ids, 1),
        ("b", "item", "multi", ids, 3),
        ("c", "context", "numeric", number, 1),
        ("d", "item", "categorical", ids, 1),
        ("e", "context", "categorical", ids, 1),
        ("f", "item", "numeric", BucketEncoding(edges=()), 1),
    ]
    features = place(
        [
            FeatureSpec.model_validate(
                {"name": n, "side": s, "kind": k, "encoding": e, "column": n, "length": length}
            )
            for n, s, k, e, length in given_
        ]
    )

    assert [(f.name, f.tensor, f.start) for f in features] == [
        ("a", "request_ids", 0),
        ("b", "candidate_ids", 0),
        ("c", "request_numeric", 0),
        ("d", "candidate_ids", 3),
        ("e", "request_ids", 1),
        ("f", "candidate_ids", 4),
    ]
    assert list(widths(features).values()) == [1, 2, 0, 5]


def test_vocabularies_come_from_training_rows_only(tmp_path: Path) -> None:
    """What is first seen in validation or test is out of vocabulary there."""
    frames: dict[Part, list[pl.DataFrame]] = {
        "train": [pl.DataFrame({"c": ["a", "a", None], "y": [0, 1, 0]})],
        "validation": [pl.DataFrame({"c": ["b", "a"], "y": [0, 1]})],
        "test": [pl.DataFrame({"c": ["c", None], "y": [0, 1]})],
    }

    dataset = prepare(Fixed([column("c")], frames), tmp_path, Silent())

    ids = {part: next(dataset.batches(part, 9)).request_ids[:, 0].tolist() for part in frames}
    assert dataset.tokens == {"c": ["a"]}
    assert ids == {
        "train": [FIRST, FIRST, MISSING],
        "validation": [OOV, FIRST],
        "test": [OOV, MISSING],
    }


def test_means_come_from_training_rows_only(tmp_path: Path) -> None:
    """Test rows are standardised by the training rows' mean and deviation."""
    frames: dict[Part, list[pl.DataFrame]] = {
        "train": [pl.DataFrame({"x": [1.0, 3.0], "y": [0, 1]})],
        "validation": [pl.DataFrame({"x": [100.0, 100.0], "y": [0, 1]})],
        "test": [pl.DataFrame({"x": [4.0, 4.0], "y": [0, 1]})],
    }

    dataset = prepare(
        Fixed([column("x", "numeric", transform="standardize")], frames), tmp_path, Silent()
    )

    assert next(dataset.batches("test", 1)).request_numeric.tolist() == [[2.0]]


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_batches_hold_every_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int, seed: int | None
) -> None:
    """Over blocks and windows; all batches but the last are full."""
    monkeypatch.setattr(module, "BLOCK_ROWS", 16)
    monkeypatch.setattr(module, "WINDOW_BLOCKS", 3)
    dataset = prepare(numbered(250), tmp_path, Silent())

    batches = numbers_of(dataset, batch_size, seed)

    seen = [number for batch in batches for number in batch]
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}
    assert sorted(seen) == list(range(250))
    assert (seen == list(range(250))) == (seed is None)


def test_a_seed_fixes_the_order_and_epochs_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two passes with one generator differ; a generator of the same seed repeats them."""
    monkeypatch.setattr(module, "BLOCK_ROWS", 16)
    dataset = prepare(numbered(100), tmp_path, Silent())
    first, second = np.random.default_rng(0), np.random.default_rng(0)

    def epoch(rng: np.random.Generator) -> list[float]:
        return [x for b in dataset.batches("train", 32, rng) for x in b.request_numeric[:, 0]]

    epochs = [epoch(first), epoch(first)]
    assert epochs == [epoch(second), epoch(second)]
    assert epochs[0] != epochs[1]


def test_shuffling_mixes_rows_from_far_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window holds blocks from all over the file, so no batch is of one stretch of time."""
    monkeypatch.setattr(module, "BLOCK_ROWS", 10)
    monkeypatch.setattr(module, "WINDOW_BLOCKS", 10)
    dataset = prepare(numbered(1000), tmp_path, Silent())

    spread = [max(batch) - min(batch) for batch in numbers_of(dataset, 50, seed=0)]

    assert min(spread) > 300


def test_a_batch_does_not_keep_the_window_alive(tmp_path: Path) -> None:
    """Its arrays are their own, contiguous and writable."""
    dataset = prepare(counting(300), tmp_path, Silent())
    batch = next(dataset.batches("train", 8))

    for array in (batch.request_numeric, batch.request_ids, batch.candidate_ids, batch.label):
        assert array.flags.c_contiguous
        assert array.flags.writeable


def test_preparing_again_reads_no_rows(tmp_path: Path) -> None:
    """The same data and schema are found encoded; another schema is not."""

    class Watched(Silent):
        steps = 0

        def step(self, stage: str, done: int, total: int | None, **numbers: float) -> None:
            self.steps += 1

    watched = Watched()
    prepare(counting(300), tmp_path, watched)
    before = watched.steps
    again = prepare(counting(300), tmp_path, watched)

    assert before > 0
    assert watched.steps == before
    assert again.rows["train"] == 270
    prepare(counting(300, seed=1), tmp_path, watched)
    assert watched.steps > before


@pytest.mark.parametrize("damage", ["short", "no record", "half a record"])
def test_damaged_files_are_encoded_anew(tmp_path: Path, damage: str) -> None:
    """What is not whole is not trusted."""
    good = [b.label.tolist() for b in prepare(counting(300), tmp_path, Silent()).batches("test", 9)]
    (meta,) = tmp_path.glob("*/meta.json")
    match damage:
        case "short":
            (meta.parent / "train.bin").write_bytes(b"1234")
        case "no record":
            meta.unlink()
        case _:
            meta.write_bytes(meta.read_bytes()[:100])

    dataset = prepare(counting(300), tmp_path, Silent())

    assert [b.label.tolist() for b in dataset.batches("test", 9)] == good
    assert sum(len(b) for b in dataset.batches("train", 9)) == dataset.rows["train"]


KILLED = """
import os, signal, sys
from pathlib import Path
from compress.data.encode import prepare
from compress.data.synthetic import Synthetic, SyntheticConfig

class Deadly:
    def step(self, stage, done, total, **numbers):
        if stage == "encode":
            os.kill(os.getpid(), signal.SIGKILL)

config = SyntheticConfig(rows=300, seed=0, catalogue=0, validation=0.05, test=0.05)
prepare(Synthetic(config), Path(sys.argv[1]), Deadly())
"""


@pytest.mark.slow
def test_a_kill_while_encoding_leaves_nothing_that_is_trusted(tmp_path: Path) -> None:
    """The next run starts over, finishes, and clears what was left."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    left = [path.name for path in tmp_path.iterdir() if path.is_dir()]

    assert done.returncode == -signal.SIGKILL
    assert [name[0] for name in left] == ["."]
    assert prepare(counting(300), tmp_path, Silent()).rows["train"] == 270
    assert not (tmp_path / left[0]).exists()


def test_an_error_while_encoding_leaves_nothing_behind(tmp_path: Path) -> None:
    """The half-written folder goes with it."""

    class Failing(Silent):
        def step(self, stage: str, done: int, total: int | None, **numbers: float) -> None:
            if stage == "encode":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(counting(300), tmp_path, Failing())

    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_is_said_to_be_full(tmp_path: Path) -> None:
    """The folder is named, and nothing half-written stays."""
    with pytest.raises(DataError, match=f"{tmp_path}: the disk is full"):
        prepare(counting(3000), tmp_path, Silent())

    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "file").write_text("")

    with pytest.raises(DataError, match="file: cannot be written"):
        prepare(counting(100), tmp_path / "file", Silent())


def test_a_split_that_leaves_a_part_empty_is_refused(tmp_path: Path) -> None:
    """The part is named."""
    frame = pl.DataFrame({"c": ["a"], "y": [1]})
    source = Fixed([column("c")], {"train": [frame], "test": [frame]})

    with pytest.raises(DataError, match="no rows for validation"):
        prepare(source, tmp_path, Silent())


@pytest.mark.parametrize("labels", [[0, 0], [1, 1]])
@pytest.mark.parametrize("part", module.PARTS)
def test_a_part_of_one_class_is_refused(tmp_path: Path, part: Part, labels: list[int]) -> None:
    """Before any training: no AUC is defined on it, and nothing can be learned from it."""
    mixed = pl.DataFrame({"c": ["a", "b"], "y": [0, 1]})
    frames = {p: [mixed] for p in module.PARTS} | {part: [mixed.with_columns(y=pl.Series(labels))]}

    with pytest.raises(DataError) as caught:
        prepare(Fixed([column("c")], frames), tmp_path, Silent())

    assert f"alike in {part} (2 rows, {sum(labels)} positive); move the split" in str(caught.value)


def test_a_vocabulary_is_kept_as_json(tmp_path: Path) -> None:
    """A human can read which token has which row, accents included."""
    frame = pl.DataFrame({"c": ["é", "b", "é"], "y": [1, 0, 1]})
    prepare(Fixed([column("c")], {part: [frame] for part in module.PARTS}), tmp_path, Silent())

    (path,) = tmp_path.glob("*/vocab/c.json")
    assert json.loads(path.read_text()) == ["é", "b"]


def test_a_source_satisfies_the_protocol() -> None:
    """The hand-made source of these tests is one too."""
    source: Source = numbered(1)

    assert source.schema().label == "y"
