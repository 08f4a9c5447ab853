"""What a click-through ranker costs: FLOPs, bytes of its bundle by part, time for a request."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import onnx

from compress.data.encode import Dataset
from compress.export import graph_inputs, real_rows
from compress.graph import GraphSession, interleaved_us, rotation
from compress.rankers.base import Ranker
from model_store.bundle import CHECKSUMS_FILE, GRAPH_FILE, Bundle
from model_store.manifest import Resources
from model_store.packing import GZIP

SIDECARS: Final = {CHECKSUMS_FILE: "manifest"}


def resources(ranker: Ranker, bundle: Bundle) -> Resources:
    """What a ranker costs: FLOPs of what is there, bytes of what lies on disk."""
    parts = ranker.flops()
    return Resources(
        flops=sum(parts.values()),
        flops_parts=parts,
        bytes=bytes_by_part(bundle.root),
        parameters=sum(parameter.numel() for parameter in ranker.parameters()),
    )


def bytes_by_part(root: Path) -> dict[str, int]:
    """The bundle's bytes on disk: embedding tables, MLPs, the graph around them, other files."""
    files = {p.relative_to(root).as_posix(): p.stat().st_size for p in _files(root)}
    graph_bytes = sum(size for name, size in files.items() if name.startswith(GRAPH_FILE))
    graph = onnx.load(str(root / GRAPH_FILE), load_external_data=False).graph
    looked_up = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    # A table in eight bits may stand behind the node that widens it again, with its scales.
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.output[0] in looked_up:
            looked_up.update(node.input)
    parts = {"embedding tables": 0, "mlp": 0}
    for weight in graph.initializer:
        parts["embedding tables" if weight.name in looked_up else "mlp"] += _weight_bytes(weight)
    parts["graph"] = graph_bytes - sum(parts.values())
    for name, size in files.items():
        if not name.startswith(GRAPH_FILE):
            plain = name.removesuffix(GZIP)
            part = SIDECARS.get(plain, Path(plain).parts[0].removesuffix(".json"))
            parts[part] = parts.get(part, 0) + size
    return parts


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def _weight_bytes(weight: onnx.TensorProto) -> int:
    for entry in weight.external_data:
        if entry.key == "length":
            return int(entry.value)
    return int(onnx.numpy_helper.to_array(weight).nbytes)


def request_us(
    rankers: Sequence[Bundle], dataset: Dataset, candidates: int, rounds: int = 300
) -> list[float]:
    """Median microseconds of each bundle's graph for one request, side by side in one process.

    Real rows, one thread; the input sets rotate, so that look-ups find no warm cache.
    """
    rows = real_rows(dataset, 16 * candidates)
    feeds = [
        rotation(graph_inputs(rows, b.manifest.features, b.encoders()), candidates) for b in rankers
    ]
    sessions = [GraphSession(bundle.path(bundle.manifest.graph)) for bundle in rankers]
    return interleaved_us(sessions, feeds, rounds)
