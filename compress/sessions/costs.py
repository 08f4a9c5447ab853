"""What a session ranker's bundle costs: bytes by part, parameters, time, and what codes came to."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto

from compress.graph import SessionGraph
from model_store.bundle import GRAPH_FILE, ITEM_IDS_FILE, Bundle
from model_store.codebooks import CodedTable, Codes
from model_store.errors import BundleCorrupt
from model_store.item_vectors import FactoredTable, ItemVectors
from model_store.manifest import Resources

TABLE: Final = "item table"
ROUNDS: Final = 300
SESSION_LENGTH: Final = 10
NUMBERS: Final = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8)
SCALE: Final = ".scale"  # how the name of a weight ends that scales another, kept in eight bits


def bytes_by_part(root: Path) -> dict[str, int]:
    """The bundle's bytes on disk: item table, item ids, graph, and each other file."""
    parts: dict[str, int] = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name = path.relative_to(root).as_posix()
        if name == ITEM_IDS_FILE:
            part = "item ids"
        elif name.startswith("items/"):
            part = TABLE
        else:
            part = "graph" if name == GRAPH_FILE else name
        parts[part] = parts.get(part, 0) + path.stat().st_size
    return parts


def resources(bundle: Bundle, us: float | None) -> Resources:
    """What a bundle costs; FLOPs for one candidate, the session's part apart."""
    table = vectors_of(bundle)
    flops = {"candidate": candidate_flops(table)}
    if isinstance(table, CodedTable):
        books, size, width = table.codebooks.shape
        flops["sub-scores, once a request"] = 2 * books * size * width
    graph = onnx.load(bundle.path(bundle.manifest.graph)).graph
    return Resources(
        flops=flops["candidate"],
        flops_parts=flops,
        bytes=bytes_by_part(bundle.root),
        parameters=graph_numbers(graph) + _numbers(table),
        us_per_request=us,
    )


def graph_numbers(graph: onnx.GraphProto) -> int:
    """The numbers that a graph has learned, each once, whatever it is kept in."""
    # Single numbers and whole ones are the exporter's: factors, shapes, places.
    weights = [w for w in graph.initializer if w.data_type in NUMBERS and w.dims]
    return sum(int(np.prod(w.dims)) for w in weights if not w.name.endswith(SCALE))


def candidate_flops(table: ItemVectors | None) -> int:
    """FLOPs to score one candidate of an encoded session: a product, or M additions."""
    if table is None:
        return 0
    return table.codebooks.shape[0] if isinstance(table, CodedTable) else 2 * table.dim


def _numbers(table: ItemVectors) -> int:
    """As the papers count them (papers.md §2.3): a code that is stored is one, too."""
    if isinstance(table, FactoredTable):
        return sum(core.size for core in table.cores)
    if isinstance(table, CodedTable):
        stored = table.codes.size if table.codes_spec is None else 0
        return int(stored + table.codebooks.size)
    return len(table) * table.dim


def vectors_of(bundle: Bundle) -> ItemVectors:
    """The item vectors of a bundle that has them."""
    table = bundle.session_table()
    if table is None or table.vectors is None:
        raise BundleCorrupt(f"{bundle.root}: expected a session ranker with item vectors")
    return table.vectors


def achieved(dense: Bundle, coded: Bundle) -> dict[str, float]:
    """Ratios of bytes on disk and, of codes, how well they are used."""
    before, after = bytes_by_part(dense.root), bytes_by_part(coded.root)
    table = vectors_of(coded)
    found = {
        "table compression": before[TABLE] / after[TABLE],
        # It stands in files that it counts: fewer digits settle.
        "bundle compression": round(sum(before.values()) / sum(after.values()), 3),
    }
    if isinstance(table, CodedTable):
        items, books = table.codes.shape
        size = table.codebooks.shape[1]
        found |= {
            "table compression, papers' count": items * table.dim / _numbers(table),
            "items that share all their codes": float(
                items - len(np.unique(np.asarray(table.codes), axis=0))
            ),
            "code usage": float(np.mean([usage(table.codes[:, m], size) for m in range(books)])),
        }
    return found


def usage(codes: Codes, size: int) -> float:
    """Entropy of a codebook's codes (N,) below ``size``, over that of equal use.

    >>> usage(np.array([0, 0, 1, 1]), 4)
    0.5
    """
    share = np.bincount(codes, minlength=size) / len(codes)
    used = share[share > 0]
    return float(-(used * np.log(used)).sum() / np.log(size)) if size > 1 else 1.0


def request_us(bundles: Sequence[Bundle], candidates: int) -> list[float]:
    """Median microseconds to encode a session and score random candidates, bundles in turn."""
    graphs = [SessionGraph(bundle.path(bundle.manifest.graph)) for bundle in bundles]
    tables = [vectors_of(bundle) for bundle in bundles]
    draw, times = np.random.default_rng(0), np.empty((ROUNDS, len(bundles)))
    items = len(tables[0])
    for turn in range(-ROUNDS // 10, ROUNDS):
        session = draw.integers(items, size=SESSION_LENGTH)
        rows = draw.integers(items, size=candidates)
        for place, (graph, table) in enumerate(zip(graphs, tables, strict=True)):
            started = time.perf_counter_ns()
            query = graph.run(table.vectors(session)[None])["query"][0]
            table.scores(query, rows)
            if turn >= 0:
                times[turn, place] = (time.perf_counter_ns() - started) / 1e3
    return [float(us) for us in np.median(times, axis=0)]
