"""Codes for a table of item vectors that is at hand already, without sessions and without training.

In goes an npy file; out comes a folder with the codes, the codebooks and `SUMMARY_FILE`, which says
how to open them (`opened`) and how good they are. All of its numbers are taken from the written
files. A table that is trained on with its codes (`compress.sessions.pipeline`) ranks better.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kendalltau, spearmanr

from compress.config import ConfigError, Frozen, Section, check, configure
from compress.data.base import DataError
from compress.progress import Progress
from compress.sessions.costs import usage
from compress.sessions.tables import TABLES, TableMethod, Teacher
from compress.sessions.tables.coded import INT8, Precision
from model_store.arrays import Floats, load_array
from model_store.bundle import ITEM_IDS_FILE
from model_store.codebooks import CodedTable
from model_store.errors import BundleCorrupt
from model_store.manifest import CodedVectors

SUMMARY_FILE: Final = "summary.json"
# Those that need nothing but the vectors.
ENCODERS: Final[Mapping[str, type[TableMethod]]] = MappingProxyType(
    {name: TABLES[name] for name in ("rq", "pq", "opq")}
)
FLOATS: Final = ("float32", "float16", "float64")
INTEGERS: Final = ("int64", "int32", "uint32", "uint64")
FLOAT_BYTES: Final = 4
# What is left over may be twice as large, int8 codewords have a float16 scale, and squares must be
# finite.
_HALF: Final = float(np.finfo(np.float16).max) / 2
LARGEST: Final[Mapping[str, float]] = MappingProxyType(
    {"float16": _HALF, "int8": INT8 * _HALF, "float32": 1e15}
)
QUERIES: Final = 200
AT_ONCE: Final = 20
CANDIDATES: Final = 1000
TOPS: Final = (10, 100)
SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Table:
    """What is encoded.

    Attributes:
        vectors: (N, D), finite.
        ids: (N,) distinct, if there are any.
        counts: (N,) clicks; zeros where nothing is known of them.
    """

    vectors: Floats
    ids: tuple[str, ...] | None
    counts: NDArray[np.int64]


class Fidelity(Frozen):
    """How near the coded vectors are to the given ones.

    Attributes:
        relative_mse: ‖X - X̂‖² / ‖X‖².
        overlap_at_10: share of an item's ten nearest others, by inner product, that are kept.
        overlap_at_100: of its hundred nearest.
        kendall: rank correlation of the scores of sampled candidates.
        spearman: the same, by Spearman.
        queries: sampled items that the last four are means over.
    """

    relative_mse: float
    overlap_at_10: float
    overlap_at_100: float
    kendall: float
    spearman: float
    queries: int


class Costs(Frozen):
    """What the files of a coded table cost, and how good they are.

    Attributes:
        bytes: of each file, the ids' too.
        dense_bytes: of the vectors as float32.
        ratio: ``dense_bytes`` over the bytes of codes, codebooks and scales on disk.
        ratio_as_papers: N·D / (M·K·D + M·N), each code counted as one float.
        duplicate_rows: rows of the input that repeat an earlier one.
        shared_codes: items whose codes are those of an earlier item.
        code_usage: of each codebook, the entropy of its codes over that of equal use.
    """

    items: int
    dim: int
    bytes: dict[str, int]
    dense_bytes: int
    ratio: float
    ratio_as_papers: float
    duplicate_rows: int
    shared_codes: int
    code_usage: tuple[float, ...]
    fidelity: Fidelity


class Summary(Frozen):
    """What became of a table.

    Attributes:
        codes: "MxK".
        vectors: how the files are read, as in a bundle's manifest.
    """

    method: str
    codes: str
    kept_as: Precision
    seed: int
    vectors: CodedVectors
    costs: Costs


def encode(
    table: Table,
    out: Path,
    *,
    codes: str = "8x256",
    method: str = "rq",
    kept_as: str = "float16",
    seed: int = 0,
    progress: Progress,
) -> Summary:
    """Make codes and codebooks for a table, and write them into a new folder.

    Args:
        table: see `read`.
        out: the folder; it appears when all is written.
        codes: "MxK".
        method: one of `ENCODERS`.
        kept_as: precision of the codebooks.
        seed: one seed, one outcome.
        progress: hears of each step.

    Raises:
        ConfigError: no such method; K^M below N; or the like.
        DataError: ``out`` is not empty, or the values are too large.
    """
    section = Section.model_validate({"type": method, "codes": codes, "kept_as": kept_as})
    encoder, config = configure(ENCODERS, section, "encode")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: there is something already; choose a folder that is not there yet")
    largest, most = float(np.abs(table.vectors).max()), LARGEST[kept_as]
    if largest > most:
        wider = "" if kept_as == "float32" else ", or keep the codebooks as float32"
        raise DataError(
            f"values up to {largest:g} are too large for codebooks in {kept_as}, which take "
            f"{most:g} at most; scale the vectors down{wider}"
        )
    teacher = Teacher(torch.from_numpy(table.vectors), torch.from_numpy(table.counts), None)
    built = encoder().build(teacher, config, torch.Generator().manual_seed(seed), progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as staging:
        staged = Path(staging) / out.name
        vectors = cast("CodedVectors", built.eval().export().save(staged))
        if table.ids is not None:
            text = json.dumps(table.ids, ensure_ascii=False)
            (staged / ITEM_IDS_FILE).write_text(text, encoding="utf-8")
        costs = measured(table, vectors, staged, seed, progress)
        summary = Summary(
            method=method,
            codes=codes,
            kept_as=config.kept_as,
            seed=seed,
            vectors=vectors,
            costs=costs,
        )
        (staged / SUMMARY_FILE).write_text(summary.model_dump_json(indent=2) + "\n")
        staged.replace(out)
    return summary


def opened(folder: Path) -> CodedTable:
    """The coded vectors that `encode` wrote.

    Raises:
        ConfigError: the summary is not one.
        BundleCorrupt: the files do not fit it.
    """
    path = folder / SUMMARY_FILE
    try:
        given = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON: {error}") from None
    summary = check(Summary, given, where=str(path))
    return CodedTable.load(summary.vectors, summary.costs.items, folder.joinpath)


# --- the input -----------------------------------------------------------------------------------


def read(embeddings: Path, ids: Path | None = None, counts: Path | None = None) -> Table:
    """A table from files.

    Args:
        embeddings: npy, (N, D) floats.
        ids: text, an item's id in each line.
        counts: npy, (N,) integers, how often each item was clicked: frequent ones get better codes.

    Raises:
        DataError: a file is not what it should be; the text says what came.
    """
    given = _array(embeddings, 2, *FLOATS)
    if len(given) < 2 or not given.shape[1]:  # noqa: PLR2004
        raise DataError(
            f"{embeddings}: shape {given.shape}, expected two items or more, of a width"
        )
    with np.errstate(over="ignore"):
        # + 0 makes -0.0 of two equal rows 0.0; faiss wants its own contiguous copy.
        vectors = np.ascontiguousarray(given.astype(np.float32) + np.float32(0))
    broken = np.flatnonzero(~np.isfinite(vectors).all(1))
    if len(broken):
        raise DataError(
            f"{embeddings}: {len(broken)} rows hold NaN, infinity or what float32 cannot; the "
            f"first are {_few(broken.tolist())}"
        )
    clicks = np.zeros(len(vectors), np.int64)
    if counts is not None:
        clicks = _counts(counts, len(vectors))
    return Table(vectors, None if ids is None else _ids(ids, len(vectors)), clicks)


def _array(path: Path, axes: int, *dtypes: str) -> NDArray[Any]:
    try:
        return load_array(path, axes, *dtypes)
    except BundleCorrupt as error:
        raise DataError(str(error)) from None


def _counts(path: Path, items: int) -> NDArray[np.int64]:
    counts = _array(path, 1, *INTEGERS)
    if len(counts) != items or counts.min() < 0:
        raise DataError(
            f"{path}: {len(counts)} counts from {counts.min(initial=0)} on, expected {items}, none "
            "negative"
        )
    return counts.astype(np.int64)


def _ids(path: Path, items: int) -> tuple[str, ...]:
    try:
        ids = tuple(path.read_text(encoding="utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error}") from None
    if len(ids) != items:
        raise DataError(f"{path}: {len(ids)} lines, expected one for each of the {items} items")
    doubles = sorted(ids[i] for i in _repeated(np.array(ids)))
    if doubles:
        raise DataError(f"{path}: {len(doubles)} ids stand twice: {_few(doubles)}")
    return ids


def _few(found: list[Any]) -> str:
    return ", ".join(map(str, found[:SHOWN])) + (", …" if len(found) > SHOWN else "")


def _repeated(values: NDArray[Any]) -> NDArray[np.intp]:
    """Where a value, or a row, stands that stood before."""
    _, first = np.unique(values, axis=0, return_index=True)
    return np.setdiff1d(np.arange(len(values)), first)


# --- what came of it -----------------------------------------------------------------------------


def measured(
    table: Table, vectors: CodedVectors, folder: Path, seed: int, progress: Progress
) -> Costs:
    """What the written files cost, and how good they are."""
    items, dim = table.vectors.shape
    coded = CodedTable.load(vectors, items, folder.joinpath)
    books, size, _ = coded.codebooks.shape
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    taken = sum(count for name, count in sizes.items() if name != ITEM_IDS_FILE)
    return Costs(
        items=items,
        dim=dim,
        bytes=sizes,
        dense_bytes=items * dim * FLOAT_BYTES,
        ratio=items * dim * FLOAT_BYTES / taken,
        ratio_as_papers=items * dim / (coded.codebooks.size + books * items),
        duplicate_rows=len(_repeated(table.vectors)),
        shared_codes=len(_repeated(np.asarray(coded.codes))),
        code_usage=tuple(usage(coded.codes[:, m], size) for m in range(books)),
        fidelity=fidelity(table.vectors, coded, seed, progress),
    )


def fidelity(given: Floats, coded: CodedTable, seed: int, progress: Progress) -> Fidelity:
    """How near a coded table is to the vectors (N, D) that it was made from.

    Sampled items ask for others by inner product: their given vector against all given vectors,
    and against all coded ones.
    """
    items, draw = len(given), np.random.default_rng(seed)
    queries = draw.choice(items, min(QUERIES, items), replace=False)
    candidates = draw.choice(items, min(CANDIDATES, items), replace=False)
    found = coded.vectors(np.arange(items))
    agreed: list[list[float]] = []
    for start in range(0, len(queries), AT_ONCE):
        some = queries[start : start + AT_ONCE]
        for query, true, ours in zip(
            some, given[some] @ given.T, given[some] @ found.T, strict=True
        ):
            agreed.append(
                [overlap(np.delete(true, query), np.delete(ours, query), top) for top in TOPS]
                + [*correlations(true[candidates], ours[candidates])]
            )
        progress.step("ranking agreement", len(agreed), len(queries))
    near, nearer, kendall, spearman = np.mean(agreed, axis=0).tolist()
    left, whole = (float(np.square(x, dtype=np.float64).sum()) for x in (given - found, given))
    return Fidelity(
        relative_mse=left / max(whole, 1e-30),
        overlap_at_10=near,
        overlap_at_100=nearer,
        kendall=kendall,
        spearman=spearman,
        queries=len(queries),
    )


def overlap(true: Floats, ours: Floats, top: int) -> float:
    """The share of the best of ``true`` (n,) that is among the best of ``ours``.

    >>> overlap(np.array([9.0, 8.0, 1.0, 0.0]), np.array([5.0, 1.0, 7.0, 0.0]), 2)
    0.5
    """
    top = min(top, len(true))
    best, found = (np.argpartition(-scores, top - 1)[:top] for scores in (true, ours))
    return len(np.intersect1d(best, found)) / top


def correlations(true: Floats, ours: Floats) -> tuple[float, float]:
    """Kendall's and Spearman's; 0 where one side ranks nothing.

    >>> correlations(np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 15.0]))
    (0.333..., 0.5)
    """
    if np.ptp(true) == 0 or np.ptp(ours) == 0:
        return 0.0, 0.0
    return float(kendalltau(true, ours).statistic), float(spearmanr(true, ours).statistic)
