"""Raw rows → numbers in flat files, once; then batches from those files, as often as wanted.

Vocabularies, means and buckets are fitted on training rows only. Every value goes through the
encoders of `model_store.encoding`, those that serving uses; a chunk's values are encoded once
each and mapped back. An encoded row is W words of 32 bits,

    request_numeric (P) | request_ids (C) | candidate_numeric (Q) | candidate_ids (D) | label

and a part is one file of them, without a header. They are read in blocks with plain reads, so
neither preparing nor training needs memory that grows with the training rows. What does grow:
counting tokens, with the distinct tokens of the vocabularies (hashed features need none); and
judging a part, by the score and the label of each of its rows (8 bytes).
"""

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import ValidationError

from compress.data.base import PARTS, DataError, Part, Schema, Source, Tally, digest
from compress.data.fit import Fitter, make_fitter
from compress.data.folders import locked, writable
from compress.progress import Progress
from model_store.encoding import MISSING, OOV, CategoricalEncoder, Encoder, make_encoder
from model_store.errors import BadValue
from model_store.manifest import FeatureSpec, Frozen, InputName, NumericEncoding

LAYOUT: Final = 1  # of the files; part of their key, so an older layout is never read
BLOCK_ROWS: Final = 1 << 13
WINDOW_BLOCKS: Final = 32
ENCODING_THREADS: Final = 2  # each holds a chunk
INPUTS: Final[tuple[InputName, ...]] = (
    "request_numeric",
    "request_ids",
    "candidate_numeric",
    "candidate_ids",
)

Words = NDArray[np.int32]
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Batch:
    """Encoded rows: (B, P), (B, C), (B, Q), (B, D) and (B,)."""

    request_numeric: NDArray[np.float32]
    request_ids: NDArray[np.int32]
    candidate_numeric: NDArray[np.float32]
    candidate_ids: NDArray[np.int32]
    label: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, rows: slice) -> "Batch":
        return Batch(*(getattr(self, name)[rows] for name in (*INPUTS, "label")))


class _Meta(Frozen):
    """What stands beside the encoded files; written last."""

    features: tuple[FeatureSpec, ...]
    rows: dict[Part, int]
    positives: dict[Part, int]
    skipped_rows: int


class Dataset:
    """Encoded rows on disk, and how they were encoded.

    Attributes:
        features: placed in the four inputs, in the order of the schema, without holes.
        tokens: the vocabulary of each feature that has one, row 2 first.
        rows: how many each part has.
        positives: how many of them are positive.
        skipped_cells: rows left out for a bad cell (0 unless the config says so).
        items: the catalogue's raw values.
    """

    def __init__(self, source: Source, folder: Path) -> None:
        meta = _Meta.model_validate_json((folder / "meta.json").read_bytes())
        self.schema = source.schema()
        self.features = meta.features
        self.rows: Mapping[Part, int] = meta.rows
        self.positives: Mapping[Part, int] = meta.positives
        self.skipped_cells = meta.skipped_rows
        self.tokens: Mapping[str, list[str]] = {
            feature.name: json.loads((folder / feature.encoding.file).read_bytes())
            for feature in meta.features
            if feature.encoding.type == "vocabulary"
        }
        self.items = source.items()
        self.fingerprint = source.fingerprint()
        self._source, self._folder = source, folder
        self._widths = widths(meta.features)

    def encoders(self) -> dict[str, Encoder]:
        """The encoder of each feature."""
        return {f.name: make_encoder(f, self.tokens.get(f.name)) for f in self.features}

    def raw(self, part: Part) -> Iterator[pl.DataFrame]:
        """The rows of a part as the source gives them."""
        return (frame for _, frame in self._source.chunks((part,)))

    def batches(
        self, part: Part, batch_size: int, rng: np.random.Generator | None = None
    ) -> Iterator[Batch]:
        """Every row of a part once; all batches but the last are full.

        Args:
            part: which part.
            batch_size: rows a batch.
            rng: shuffles the rows: the order of all blocks, and the rows of `WINDOW_BLOCKS` blocks
                at a time. None keeps their order.
        """
        blocks = np.arange(-(-self.rows[part] // BLOCK_ROWS))
        if rng is not None:
            rng.shuffle(blocks)
        width = sum(self._widths.values()) + 1
        rest = np.empty((0, width), np.int32)
        with (self._folder / f"{part}.bin").open("rb", buffering=0) as file:
            for first in range(0, len(blocks), WINDOW_BLOCKS):
                read = [_block(file, int(b), width) for b in blocks[first : first + WINDOW_BLOCKS]]
                window = np.concatenate([rest, *read])
                order = np.arange(len(window)) if rng is None else rng.permutation(len(window))
                full = len(window) // batch_size * batch_size
                for start in range(0, full, batch_size):
                    yield self._batch(window[order[start : start + batch_size]])
                rest = window[order[full:]]
        if len(rest):
            yield self._batch(rest)

    def _batch(self, words: Words) -> Batch:
        ends = np.cumsum([self._widths[name] for name in INPUTS])
        p, c, q, d, label = (np.ascontiguousarray(x) for x in np.split(words, ends, axis=1))
        return Batch(p.view(np.float32), c, q.view(np.float32), d, label[:, 0].view(np.float32))


def _block(file: BinaryIO, block: int, width: int) -> Words:
    file.seek(block * BLOCK_ROWS * width * 4)
    return np.frombuffer(file.read(BLOCK_ROWS * width * 4), np.int32).reshape(-1, width)


def prepare(source: Source, folder: Path, progress: Progress) -> Dataset:
    """Fit the encodings on the training rows and encode all parts, or find it done.

    Args:
        source: the data.
        folder: keeps the encoded files, under a key of the data and the schema.
        progress: told of the rows done.

    Raises:
        DataError: the data cannot be read or the files cannot be written.
    """
    schema = source.schema()
    key = digest(str(LAYOUT), source.fingerprint(), schema.model_dump_json())[:16]
    done = folder / key
    with writable(folder), locked(folder, key):
        if not _complete(done):
            shutil.rmtree(done, ignore_errors=True)
            staged = folder / f".{key}.part"
            shutil.rmtree(staged, ignore_errors=True)  # what a killed run left
            staged.mkdir()
            try:
                _encode(source, schema, staged, progress)
                staged.rename(done)
            finally:
                shutil.rmtree(staged, ignore_errors=True)
    return Dataset(source, done)


def fit(
    source: Source, schema: Schema, progress: Progress
) -> tuple[list[FeatureSpec], dict[str, list[str]]]:
    """The features, placed, and the vocabularies, from the training rows."""
    fitters: dict[str, Fitter] = {c.name: make_fitter(c) for c in schema.columns}

    def counted(chunk: tuple[Part, pl.DataFrame]) -> int:
        for column in schema.columns:
            fitters[column.name].update(chunk[1][column.column])
        return len(chunk[1])

    rows = 0
    # One thread, so that chunks are counted one after the other.
    for count in _ahead(counted, source.chunks(("train",)), threads=1):
        rows += count
        progress.step("fit encodings", rows, None)
    features, tokens = [], {}
    for column in schema.columns:
        encoding, known = fitters[column.name].result()
        features.append(
            FeatureSpec(
                name=column.name,
                kind=column.kind,
                side=column.side,
                encoding=encoding,
                column=column.column,
                separator=column.separator,
                length=column.length,
            )
        )
        if known is not None:
            tokens[column.name] = known
    return place(features), tokens


def place(features: Sequence[FeatureSpec]) -> list[FeatureSpec]:
    """Give each feature its input and its columns there, in order and without holes."""
    used = dict.fromkeys(INPUTS, 0)
    placed = []
    for feature in features:
        side = "request" if feature.request_side else "candidate"
        kind = "numeric" if isinstance(feature.encoding, NumericEncoding) else "ids"
        tensor = next(name for name in INPUTS if name == f"{side}_{kind}")
        placed.append(feature.model_copy(update={"tensor": tensor, "start": used[tensor]}))
        used[tensor] += feature.length
    return placed


def widths(features: Sequence[FeatureSpec]) -> dict[InputName, int]:
    """The columns of each input."""
    used = dict.fromkeys(INPUTS, 0)
    for feature in features:
        if feature.tensor is not None:
            used[feature.tensor] += feature.length
    return used


def encode_frame(
    frame: pl.DataFrame, features: Sequence[FeatureSpec], encoders: Mapping[str, Encoder]
) -> dict[InputName, NDArray[Any]]:
    """Encode raw rows (n of them) into the inputs: (n, columns) float32 or int32."""
    inputs: dict[InputName, NDArray[Any]] = {
        name: np.zeros((len(frame), columns), np.float32 if name.endswith("numeric") else np.int32)
        for name, columns in widths(features).items()
    }
    for feature in features:
        if feature.tensor is not None:
            columns = slice(feature.start, feature.start + feature.length)
            inputs[feature.tensor][:, columns] = encode_series(
                encoders[feature.name], frame[feature.column]
            )
    return inputs


def encode_series(encoder: Encoder, series: pl.Series) -> NDArray[Any]:
    """What ``encoder.encode(series.to_list())`` gives, each distinct value encoded once.

    Raises:
        BadValue: as the encoder.
    """
    if series.dtype == pl.Null:
        series = series.cast(pl.String)
    if not isinstance(encoder, CategoricalEncoder):
        if series.dtype.is_numeric():
            return encoder.encode(series.cast(pl.Float64).to_numpy())
        return encoder.encode(series.to_list())
    if encoder.spec.kind == "multi":
        return _encode_lists(encoder, series)
    return _encode_tokens(encoder, series)[:, None]


def _encode_tokens(encoder: CategoricalEncoder, series: pl.Series) -> Words:
    """Rows of single values: (n,)."""
    if series.dtype == pl.String:
        # A set of categories of its own, so that nothing stays behind when the chunk is done.
        physical = series.cast(pl.Categorical(pl.Categories.random())).to_physical()
        codes = (physical.cast(pl.Int64) + 1).fill_null(0).to_numpy()  # 0: missing
        place = np.zeros(codes.max(initial=0) + 1, np.int64)
        place[codes] = np.arange(len(codes))
        table = np.append(encoder.row(None), _rows(encoder, series.gather(place[1:])))
        return np.asarray(table[codes], np.int32)
    series = series.fill_nan(None) if series.dtype.is_float() else series
    distinct = series.unique()
    pairs = pl.DataFrame({"value": distinct, "row": _rows(encoder, distinct)})
    joined = series.to_frame("value").join(
        pairs, on="value", how="left", nulls_equal=True, maintain_order="left"
    )
    return np.asarray(joined["row"])


def _rows(encoder: CategoricalEncoder, distinct: pl.Series) -> Words:
    """Rows of distinct values."""
    values, vocabulary = distinct.to_list(), encoder.vocabulary
    if vocabulary is not None and distinct.dtype == pl.String and not distinct.has_nulls():
        # What `row` does with a string, without a call for each.
        return np.fromiter(map(vocabulary.get, values, repeat(OOV)), np.int32, len(values))
    return np.fromiter(map(encoder.row, values), np.int32, len(values))


def _encode_lists(encoder: CategoricalEncoder, series: pl.Series) -> Words:
    """Rows of multi-valued values, padded with row 1: (n, length)."""
    lists = series.str.split(encoder.spec.separator) if series.dtype == pl.String else series
    # Position of each value in its list, without the parts that count as nothing.
    flat = pl.DataFrame({"row": np.arange(len(lists)), "value": lists}).explode("value")
    flat = flat.drop_nulls("value")
    if series.dtype == pl.String:
        flat = flat.filter(pl.col("value") != "")
    flat = flat.with_columns(position=pl.int_range(pl.len()).over("row"))
    flat = flat.filter(pl.col("position") < encoder.spec.length)
    out = np.full((len(series), encoder.spec.length), MISSING, np.int32)
    out[flat["row"].to_numpy(), flat["position"].to_numpy()] = _encode_tokens(
        encoder, flat["value"]
    )
    return out


def labels(schema: Schema, frame: pl.DataFrame) -> NDArray[np.float32]:
    """The labels of raw rows as 0.0 or 1.0."""
    threshold = 1.0 if schema.data.positive_from is None else schema.data.positive_from
    return (frame[schema.label].cast(pl.Float64).to_numpy() >= threshold).astype(np.float32)


def _encode(source: Source, schema: Schema, folder: Path, progress: Progress) -> None:
    """Fit and encode into an empty folder."""
    features, tokens = fit(source, schema, progress)
    (folder / "vocab").mkdir()
    for name, known in tokens.items():
        (folder / "vocab" / f"{name}.json").write_text(json.dumps(known, ensure_ascii=False))
    encoders = {f.name: make_encoder(f, tokens.get(f.name)) for f in features}

    def encoded(chunk: tuple[Part, pl.DataFrame]) -> tuple[Part, Words]:
        part, frame = chunk
        return part, _words(frame, schema, features, encoders)

    rows, positives = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
    tally = Tally()
    with ExitStack() as stack:
        files = {part: stack.enter_context((folder / f"{part}.bin").open("wb")) for part in PARTS}
        for part, words in _ahead(encoded, source.chunks(PARTS, tally), ENCODING_THREADS):
            files[part].write(words.data)
            rows[part] += len(words)
            positives[part] += int(words[:, -1].view(np.float32).sum())
            progress.step("encode", sum(rows.values()), None)
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    if empty := [part for part in PARTS if not rows[part]]:
        raise DataError(f"the split leaves no rows for {', '.join(empty)}; move its boundaries")
    one_class = [part for part in PARTS if positives[part] in (0, rows[part])]
    if one_class:
        found = ", ".join(
            f"{part} ({rows[part]} rows, {positives[part]} positive)" for part in one_class
        )
        raise DataError(
            f"each part needs positive and negative rows, but all are alike in {found}; move "
            "the split's boundaries, or check what counts as positive"
        )
    meta = _Meta(features=tuple(features), rows=rows, positives=positives, skipped_rows=tally.rows)
    (folder / "meta.json").write_text(meta.model_dump_json(indent=1))


def _words(
    frame: pl.DataFrame,
    schema: Schema,
    features: Sequence[FeatureSpec],
    encoders: Mapping[str, Encoder],
) -> Words:
    """A chunk's encoded rows: (n, W)."""
    try:
        inputs = encode_frame(frame, features, encoders)
    except BadValue as error:
        raise DataError(
            f"{error.feature}: expected {error.expected}, got {error.value!r}"
        ) from error
    label = labels(schema, frame)[:, None]
    return np.hstack([*(inputs[name].view(np.int32) for name in INPUTS), label.view(np.int32)])


def _ahead(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """Map in order, some items ahead: they are read here while others are worked on."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _complete(folder: Path) -> bool:
    """Whether a prepared folder holds all that its record says."""
    try:
        meta = _Meta.model_validate_json((folder / "meta.json").read_bytes())
        width = 4 * (sum(widths(meta.features).values()) + 1)
        return all(
            (folder / f"{part}.bin").stat().st_size == rows * width
            for part, rows in meta.rows.items()
        )
    except (OSError, ValidationError):
        return False
