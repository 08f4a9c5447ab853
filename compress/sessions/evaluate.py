"""Quality of an exported session ranker on prefixes. Knows the bundle only: no config, no torch.

Every published figure comes from here, so from the graph, the item vectors and the neighbours that
serving loads. The whole catalogue is ranked for every prefix, the session's own items among it.
Prefixes of one length go through the graph together, so nothing is padded; equal codes get exactly
equal scores, so what a coded table cannot tell apart counts as a tie (papers.md §2.9, item 2).
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compress.data.base import DataError, Tally
from compress.data.files import find_files
from compress.graph import SessionGraph
from compress.progress import Progress, Silent
from compress.sessions.data import UNKNOWN, Prefixes, Sessions, spans
from compress.sessions.metrics import ranks_of, session_quality
from compress.sessions.sources.reading import CellOptions, ListColumns, read_prefixes
from model_store.bundle import Bundle, SessionTable, open_bundle
from model_store.codebooks import CodedTable
from model_store.item_vectors import ItemVectors, Neighbours
from model_store.manifest import UNREACHED, SessionQuality, SessionSpec

ROWS: Final = 512  # prefixes in one graph call, at most
CELLS: Final = 1 << 23  # scores (N, B) in memory at once, about
BLOCK: Final = 1 << 17  # of them that are looked up at once: they stay in the cache

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
Products = Callable[[Floats], Floats]  # queries (B, dim) -> (N, B)
Reached = tuple[Rows, Rows, NDArray[np.float64]]  # item rows, columns of the batch, masses


class Evaluation(NamedTuple):
    """What a ranker is worth on some prefixes.

    Attributes:
        quality: metrics with their intervals.
        ranks: (prefixes,) of each target, 1 the best: what a paired comparison takes.
    """

    quality: SessionQuality
    ranks: NDArray[np.float64]


def evaluate_file(
    bundle: Bundle, path: Path, progress: Progress, *, tally: Tally | None = None
) -> Evaluation:
    """Judge a bundle by a file of prefixes: ``session_id``, ``items`` (a list) and ``target``.

    Args:
        bundle: opened, thereby verified.
        path: parquet, CSV or TSV; a folder or a glob of them.
        progress: told of the prefixes done.
        tally: counts the rows left out for a bad cell; None: such a cell is an error.

    Raises:
        DataError: the bundle holds no session ranker, or the file is no such file; `BadCell` names
            row, column and value.
    """
    _, table = _session_of(bundle)
    options = CellOptions(on_bad_cell="error" if tally is None else "skip")
    ids, tally = tuple(table.ids), Tally() if tally is None else tally
    prefixes = read_prefixes(find_files(str(path)), ListColumns(), options, ids, tally)
    return evaluate(bundle, prefixes, progress)


def evaluate_folder(folder: Path, path: Path) -> Evaluation:
    """Judge the bundle in a folder by a file of prefixes: for a process that has neither open."""
    return evaluate_file(open_bundle(folder), path, Silent())


def evaluate(bundle: Bundle, prefixes: Prefixes, progress: Progress) -> Evaluation:
    """Judge a bundle by prefixes, whatever catalogue they are in.

    Args:
        bundle: opened, thereby verified.
        prefixes: at least one; items that the bundle does not know are left out of them.
        progress: told of the prefixes done.

    Raises:
        DataError: the bundle holds no session ranker.
    """
    spec, table = _session_of(bundle)
    ids = tuple(table.ids)
    if prefixes.sessions.ids != ids:
        prefixes = prefixes.recoded(ids)
    sessions = _newest_known(prefixes.sessions, spec.length)
    scores = _Scores(spec, table, SessionGraph(bundle.path(bundle.manifest.graph)))
    ranks, done = np.empty(len(prefixes)), 0
    for batch in _batches(sessions.lengths, min(ROWS, max(1, CELLS // spec.items))):
        rows = sessions.select(batch).rows.reshape(len(batch), -1)  # (B, L)
        ranks[batch] = ranks_of(scores.of(rows), prefixes.targets[batch])
        done += len(batch)
        progress.step("evaluate", done, len(prefixes))
    return Evaluation(session_quality(ranks, prefixes.repeated, prefixes.owner), ranks)


def _session_of(bundle: Bundle) -> tuple[SessionSpec, SessionTable]:
    spec, table = bundle.manifest.session, bundle.session_table()
    if spec is None or table is None:
        raise DataError(
            f"{bundle.root}: expected a session ranker's bundle, got a click-through ranker's"
        )
    return spec, table


def _newest_known(sessions: Sessions, length: int) -> Sessions:
    known = sessions.keep(sessions.rows != UNKNOWN)
    to_end = known.offsets[known.session_of + 1] - np.arange(len(known.rows))
    return known.keep(to_end <= length)


def _batches(lengths: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Numbers of prefixes of one length, at most ``size`` at once."""
    order = np.argsort(lengths, kind="stable")
    borders = np.flatnonzero(np.diff(lengths[order])) + 1
    for group in np.split(order, borders):
        for start in range(0, len(group), size):
            yield group[start : start + size]


class _Scores:
    """Scores the whole catalogue for many sessions at once, as serving does for one."""

    def __init__(self, spec: SessionSpec, table: SessionTable, graph: SessionGraph) -> None:
        self._spec, self._graph = spec, graph
        self._vectors, self._neighbours = table.vectors, table.neighbours
        self._products = None if table.vectors is None else _products_of(table.vectors)

    def of(self, sessions: NDArray[np.int32]) -> Floats:
        """(N, B) for sessions (B, L) of item rows, oldest first."""
        ways = self._graph.run(self._session_vectors(sessions))
        reached = [*self._reached(sessions, ways)]
        if self._products is None:
            scores = np.full((self._spec.items, len(sessions)), UNREACHED, np.float32)
            _add(scores, reached, alone=True)
        else:
            scores = self._products(ways["query"])
            _add(scores, reached, alone=False)
        return scores

    def _session_vectors(self, sessions: NDArray[np.int32]) -> Floats:
        shape = (*sessions.shape, self._spec.dim)
        if self._vectors is None or not sessions.size:
            return np.zeros(shape, np.float32)
        return self._vectors.vectors(sessions.reshape(-1).astype(np.intp)).reshape(shape)

    def _reached(
        self, sessions: NDArray[np.int32], ways: Mapping[str, Floats]
    ) -> Iterator[Reached]:
        """What the sessions' own items lead to: themselves, and what follows them."""
        rows = sessions.reshape(-1).astype(np.int64)
        columns = np.arange(len(sessions)).repeat(sessions.shape[1])
        if "repeat" in ways:
            yield _with_mass(rows, columns, ways["repeat"])
        if "follow" in ways and self._neighbours is not None:
            yield _followed(self._neighbours, _with_mass(rows, columns, ways["follow"]))


def _add(scores: Floats, reached: list[Reached], *, alone: bool) -> None:
    """Add masses to scores (N, B) in place; ``alone``: there is no mass in them yet."""
    if not reached:
        return
    rows, columns, masses = (np.concatenate(part) for part in zip(*reached, strict=True))
    cells, place = np.unique(rows * scores.shape[1] + columns, return_inverse=True)
    found = np.log(np.bincount(place, masses, minlength=len(cells)))
    flat = scores.reshape(-1)
    whole = found if alone else np.logaddexp(found, flat[cells])
    flat[cells] = np.maximum(whole, UNREACHED)


def _with_mass(rows: Rows, columns: Rows, log_weights: Floats) -> Reached:
    """Those whose weight is a mass at all: a ranker rules a position out by a very low one."""
    masses = np.exp(log_weights.reshape(-1).astype(np.float64))
    some = masses > 0
    return rows[some], columns[some], masses[some]


def _followed(neighbours: Neighbours, reached: Reached) -> Reached:
    """The neighbours of the rows, each with its share of the mass."""
    rows, columns, masses = reached
    starts = neighbours.offsets[rows].astype(np.int64)
    lengths = neighbours.offsets[rows + 1] - starts
    entries = spans(starts, lengths)
    shares = neighbours.weights[entries].astype(np.float64)
    after = neighbours.items[entries].astype(np.int64)
    return after, columns.repeat(lengths), masses.repeat(lengths) * shares


def _products_of(vectors: ItemVectors) -> Products:
    if isinstance(vectors, CodedTable):
        return _looked_up(vectors)
    matrix = vectors.vectors(np.arange(len(vectors)))  # (N, dim)
    return lambda queries: matrix @ queries.T


def _looked_up(table: CodedTable) -> Products:
    """Sums of sub-scores, added in the order of the codebooks for every item alike."""
    codes = np.ascontiguousarray(table.codes.T, np.intp)  # (M, N)

    def products(queries: Floats) -> Floats:
        batch = len(queries)
        parts = queries.T  # (dim, B)
        if table.concatenated:
            parts = parts.reshape(len(codes), -1, batch)  # (M, dim / M, B)
        sub_scores = table.codebooks @ parts  # (M, K, B)
        found = np.empty((codes.shape[1], batch), np.float32)
        step = max(1, BLOCK // batch)
        part = np.empty((step, batch), np.float32)
        for start in range(0, len(found), step):
            whole, named = found[start : start + step], codes[:, start : start + step]
            sub_scores[0].take(named[0], axis=0, out=whole, mode="clip")
            for words, code in zip(sub_scores[1:], named[1:], strict=True):
                whole += words.take(code, axis=0, out=part[: len(whole)], mode="clip")
        return found

    return products
