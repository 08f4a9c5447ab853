"""A trained session ranker and its item table → a sealed bundle.

The graph encodes a session, whatever its length, into the ways to the next item (`SessionSpec`);
the item table lies beside it as plain arrays, and serving scores with both. Before a bundle is
sealed, real sessions of several lengths must come out alike in torch and in ONNX Runtime.
"""

import copy
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compress.config import CompressError
from compress.curves import HISTORY_FILE, write_curves
from compress.graph import SessionGraph
from compress.sessions.config import SessionExport, Weights
from compress.sessions.costs import SCALE, candidate_flops
from compress.sessions.data import Prefixes, Sessions
from compress.sessions.rankers.base import SessionRanker, Ways
from compress.sessions.tables.coded import INT8, rounded_rows
from model_store.arrays import LEAST_SCALE
from model_store.bundle import GOLDEN_FILE, GRAPH_FILE, ITEM_IDS_FILE, Bundle, seal
from model_store.item_vectors import ItemVectors
from model_store.manifest import (
    UNREACHED,
    DataSpec,
    Manifest,
    SessionCard,
    SessionSpec,
    TensorSpec,
)

INPUT: Final = "session"
TOLERANCE: Final = 1e-4  # of a log weight; queries are some ten units long
PROOF_LENGTHS: Final = (0, 1, 2, 3, 7)
NARROWED_FROM: Final = 256  # numbers of a weight that is kept in fewer bits
OWN_CANDIDATES: Final = 5
EXAMPLE_ROWS, EXAMPLE_LENGTH = 3, 5

Floats = NDArray[np.float32]


class SessionExportError(CompressError):
    """The ranker cannot be exported faithfully; the text says by how much it misses."""


class _Graph(nn.Module):
    """What is traced: the ways after the last item, those that the ranker has."""

    def __init__(self, ranker: SessionRanker) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(self, session: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(way for way in self.ranker.latest(session) if way is not None)


def output_names(ranker: SessionRanker) -> list[str]:
    """The ways that a ranker has, in the order of the graph's outputs."""
    with torch.inference_mode():
        ways = ranker.encode(torch.zeros(1, 1, ranker.config.dim))
    return [name for name, each in zip(Ways._fields, ways, strict=True) if each is not None]


def write_graph(ranker: SessionRanker, path: Path, weights: Weights) -> None:
    """Write the graph (R, L, dim) -> ways, both R and L of any size."""
    names = output_names(ranker)
    rows, length = torch.export.Dim("R"), torch.export.Dim("L")
    shortest = min(EXAMPLE_LENGTH, ranker.config.length)
    example = torch.zeros(EXAMPLE_ROWS, shortest, ranker.config.dim)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # The exporter warns of its own internals.
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _Graph(ranker.eval()),
                (example,),
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=names,
                dynamic_shapes=({0: rows, 1: length},),
            )
    finally:
        logger.setLevel(level)
    if program is None:
        raise SessionExportError("the exporter returned no graph")
    program.save(str(path), external_data=False)
    _settle(path, names, weights)


def _settle(path: Path, names: Sequence[str], weights: Weights) -> None:
    """Name the axes, drop what tracing left behind, keep weights in the bits that are asked."""
    model = onnx.load(str(path))
    graph = model.graph
    for value in (*graph.input, *graph.output):
        dims = value.type.tensor_type.shape.dim
        dims[0].dim_param = "R"
        if value.name != "query":
            dims[1].dim_param = "L"
    assert [value.name for value in graph.output] == list(names)  # noqa: S101  as they were named
    # Shapes were inferred for lengths of one and more; node metadata holds this machine's paths.
    del graph.value_info[:]
    del graph.metadata_props[:]
    del model.metadata_props[:]
    for node in graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    if weights != "float32":
        _narrow(graph, weights)
    path.write_bytes(model.SerializeToString())


def _narrow(graph: onnx.GraphProto, weights: Weights) -> None:
    """Keep large weights in fewer bits; the runtime widens them once, when it loads the graph.

    By casts and a product, which it folds: it would run DequantizeLinear in every request.
    """
    kept: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def keep(values: NDArray[Any], name: str, wide: str) -> str:
        kept.append(numpy_helper.from_array(values, name))
        nodes.append(helper.make_node("Cast", [name], [wide], to=TensorProto.FLOAT))
        return wide

    for weight in graph.initializer:
        values, name = numpy_helper.to_array(weight), weight.name
        if values.dtype != np.float32 or values.size < NARROWED_FROM:
            kept.append(weight)
        elif weights == "int8" and (factors := _in_bytes(values)) is not None:
            whole = keep(factors[0], f"{name}.byte", f"{name}.whole")
            scale = keep(factors[1], f"{name}{SCALE}", f"{name}.step")
            nodes.append(helper.make_node("Mul", [whole, scale], [name]))
        else:
            keep(values.astype(np.float16), f"{name}.half", name)
    nodes += graph.node
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


def _in_bytes(values: Floats) -> tuple[NDArray[np.int8], NDArray[np.float16]] | None:
    """Integers and scales whose product these rounded weights are; None if they are not.

    Tracing may have turned a matrix, so its scales stand at rows or at columns.
    """
    for axis in range(values.ndim - 1, -1, -1) if values.ndim > 1 else ():
        largest = np.abs(values).max(axis, keepdims=True)
        scales = np.maximum(largest / INT8, LEAST_SCALE).astype(np.float32)
        whole, halves = np.rint(values / scales), scales.astype(np.float16)
        if np.array_equal(whole * halves.astype(np.float32), values):
            return whole.astype(np.int8), halves
    return None


def narrowed(ranker: SessionRanker, weights: Weights) -> SessionRanker:
    """A copy whose large weights are rounded as `_narrow` keeps them."""
    rounded = copy.deepcopy(ranker).eval()
    if weights == "float32":
        return rounded
    with torch.no_grad():
        for parameter in rounded.parameters():
            if parameter.numel() < NARROWED_FROM:
                continue
            in_bytes = weights == "int8" and parameter.ndim > 1
            parameter.copy_(rounded_rows(parameter) if in_bytes else parameter.half().float())
    return rounded


def prove(ranker: SessionRanker, graph: Path, sessions: Sequence[Floats]) -> float:
    """Compare torch and the graph on session vectors (L, dim) of several lengths.

    Returns:
        The largest difference of any two log weights.

    Raises:
        SessionExportError: it is over `TOLERANCE`.
    """
    runtime, worst = SessionGraph(graph), 0.0
    for session in sessions:
        with torch.inference_mode():
            ways = ranker.encode(torch.from_numpy(session[None]))
        expected = [each[:, -1].numpy() for each in ways if each is not None]
        for got, wanted in zip(runtime.run(session[None]).values(), expected, strict=True):
            off = float(np.max(np.abs(got - wanted), initial=0.0))
            worst = max(worst, off if np.isfinite(off) else float("inf"))
    if worst > TOLERANCE:
        raise SessionExportError(
            f"the graph differs from torch by {worst:.3g} in a log weight; at most {TOLERANCE:g} "
            "is allowed, so no bundle was sealed"
        )
    return worst


def torch_scores(
    ranker: SessionRanker, table: ItemVectors | None, session: NDArray[Any], rows: NDArray[Any]
) -> Floats:
    """(n,) scores of items ``rows`` (n,) after a session of item rows (L,), by torch's ways."""
    length = ranker.config.length
    session = session[-length:].astype(np.intp)
    vectors = np.zeros((len(session), ranker.config.dim), np.float32)
    if table is not None and len(session):
        vectors = table.vectors(session)
    with torch.inference_mode():
        ways = ranker.encode(torch.from_numpy(vectors[None]))
    mass = np.zeros(len(rows))
    if ways.query is not None and table is not None:
        query = ways.query[0, -1].numpy()
        mass += np.exp(table.scores(query, rows.astype(np.intp)).astype(np.float64))
    if ways.repeat is not None:
        for row, weight in zip(session, ways.repeat[0, -1].numpy(), strict=True):
            mass[rows == row] += np.exp(float(weight))
    if ways.follow is not None and ranker.neighbours is not None:
        for row, weight in zip(session, ways.follow[0, -1].numpy(), strict=True):
            after, share = ranker.neighbours.of(int(row))
            found = dict(zip(after.tolist(), share.tolist(), strict=True))
            mass += np.exp(float(weight)) * np.array([found.get(int(r), 0.0) for r in rows])
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(mass), UNREACHED).astype(np.float32)


def export(
    ranker: SessionRanker,
    table: ItemVectors | None,
    folder: Path,
    *,
    name: str,
    ids: Sequence[str],
    examples: Prefixes,
    card: SessionCard,
    options: SessionExport,
    history: Mapping[str, Any] | None = None,
) -> Bundle:
    """Write and seal a session ranker's bundle.

    Args:
        ranker: trained or fitted.
        table: its item vectors as they ship; None for a ranker that has none.
        folder: is created; must not hold other files.
        name: the bundle's name in a store.
        ids: item ids by row.
        examples: real prefixes, of which proof and golden requests are made.
        card: the compression card so far.
        options: sizes and precision of what is written.
        history: the run's curves, kept for `report`.

    Raises:
        SessionExportError: the graph does not reproduce torch's numbers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = options.weights
    shipped = narrowed(ranker, weights)
    write_graph(shipped, folder / GRAPH_FILE, weights)
    prove(shipped, folder / GRAPH_FILE, [*_proofs(shipped, table, examples.sessions)])
    _write_json(folder / ITEM_IDS_FILE, list(ids))
    cases = golden_cases(shipped, table, ids, examples, options)
    _write_json(folder / GOLDEN_FILE, cases)
    if history is not None:
        write_curves(folder / HISTORY_FILE, history)
    dim, length = ranker.config.dim, ranker.config.length
    shapes = {"query": ("R", dim), "repeat": ("R", "L"), "follow": ("R", "L")}
    return seal(
        folder,
        Manifest(
            name=name,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            graph=GRAPH_FILE,
            scores="logit",
            numerics="fp32" if weights == "float32" else f"fp32 (weights kept in {weights})",
            flops=candidate_flops(table),
            inputs=(TensorSpec(name=INPUT, dtype="float32", shape=("R", "L", dim)),),
            outputs=tuple(
                TensorSpec(name=each, dtype="float32", shape=shapes[each])
                for each in output_names(ranker)
            ),
            features=(),
            session=SessionSpec(
                ids=ITEM_IDS_FILE,
                items=len(ids),
                length=length,
                dim=dim,
                vectors=None if table is None else table.save(folder),
                neighbours=ranker.neighbours and ranker.neighbours.save(folder),
            ),
            data=DataSpec(label="target"),
            golden=GOLDEN_FILE,
            card=card,
        ),
    )


def _proofs(ranker: SessionRanker, table: ItemVectors | None, sessions: Sessions) -> list[Floats]:
    """Vectors of real sessions cut to several lengths, the longest that the ranker takes too."""
    rows = sessions.rows[sessions.rows >= 0].astype(np.intp)
    longest, proofs = ranker.config.length, []
    for length in sorted({min(length, longest) for length in (*PROOF_LENGTHS, longest)}):
        some = np.resize(rows, length)
        if table is None:
            proofs.append(np.zeros((length, ranker.config.dim), np.float32))
        else:
            proofs.append(table.vectors(some).reshape(length, ranker.config.dim))
    return proofs


def golden_cases(
    ranker: SessionRanker,
    table: ItemVectors | None,
    ids: Sequence[str],
    examples: Prefixes,
    options: SessionExport,
) -> list[dict[str, Any]]:
    """Requests and the scores they must reproduce: an empty session, then real ones.

    The candidates are the session's latest items and, as far as there is room, others.
    """
    draw = np.random.default_rng(0)
    known = [session[session >= 0] for session in examples.sessions]
    picked = np.linspace(0, len(known) - 1, options.golden_requests - 1, dtype=int)
    cases = []
    for session in (np.empty(0, np.int32), *(known[i] for i in picked)):
        others = draw.choice(len(ids), min(options.golden_candidates, len(ids)), replace=False)
        wanted = dict.fromkeys([*session[::-1][:OWN_CANDIDATES].tolist(), *others.tolist()])
        rows = np.array(sorted([*wanted][: options.golden_candidates]))
        scores = torch_scores(ranker, table, session, rows)
        cases.append(
            {
                "request": {
                    "session_items": [ids[row] for row in session[-ranker.config.length :]],
                    "candidates": {"ids": [ids[row] for row in rows]},
                },
                "scores": [float(score) for score in scores],
            }
        )
    return cases


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    path.write_text(text + "\n")
