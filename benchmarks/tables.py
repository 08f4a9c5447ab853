"""What small tables cost: quality of a bundle whose tables are rounded, and time of a request.

    python benchmarks/tables.py                                        # times, on a made-up ranker
    python benchmarks/tables.py runs/NAME/KEY/seed-1/slim --data rows.parquet

The first form times the split graph of a DLRM over made-up features with its tables in each form,
the graphs in turn in one thread, and tells the graphs' bytes and how long vocabularies take to
read.
The second takes a float32 bundle and rounds its tables, field by field where scales are a field's:
change of AUC and log loss on the file, and the farthest that a score moves. Codes are not among
them, as they are made before the fine-tuning.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import onnx
import polars as pl
import torch
from onnx import numpy_helper
from pydantic import TypeAdapter
from torch import nn

from compress.data.encode import place
from compress.export import export_split, graph_inputs
from compress.graph import GraphSession, interleaved_us
from compress.metrics import quality
from compress.progress import Silent
from compress.rankers import RANKERS
from compress.rankers.base import Ranker
from compress.rankers.sides import Place, table_rows
from compress.shipping import shipped
from compress.tables import TABLES, TableMethod, look_up
from compress.vocabularies import as_json, in_few_bytes
from model_store.bundle import Bundle, open_bundle
from model_store.manifest import (
    FeatureSpec,
    HashEncoding,
    NumberCode,
    NumericEncoding,
    VocabularyEncoding,
)
from model_store.packing import decode_tokens


def methods() -> dict[str, TableMethod]:
    """Each way for tables to ship, with its default options."""
    members: dict[str, Any] = dict(TABLES)
    return {kind: member(member.Config()) for kind, member in members.items()}


def ranker_of(fields: int, rows: int, dim: int) -> Ranker:
    """A slim DLRM's like: half of the fields are the candidates'."""
    specs = [
        FeatureSpec(
            name=f"{side}{n}",
            kind="categorical",
            side=side,
            encoding=HashEncoding(rows=rows),
            column=f"{side}{n}",
        )
        for side in ("user", "item")
        for n in range(fields // 2)
    ]
    specs.append(
        FeatureSpec(name="x", kind="numeric", side="user", encoding=NumericEncoding(), column="x")
    )
    config = RANKERS["dlrm"].Config(dim=dim, bottom=(16,), top=(64, 32))
    generator = torch.Generator().manual_seed(0)
    return RANKERS["dlrm"](tuple(place(specs)), config, generator).eval()


def with_codes(ranker: Ranker) -> Ranker:
    """Its tables as codes; how well they fit does not matter here."""
    method: Any = TABLES["pq"]
    made = method(method.Config(min_rows=256, frequency=0.0))

    def make(table: nn.Module, places: Sequence[Place]) -> nn.Module:
        blocks = [p.rows for p in places]
        learned = made.learned(
            table, blocks, lambda: torch.ones(blocks[-1].stop), torch.Generator(), Silent()
        )
        return made.shipped(learned, blocks)

    return ranker.with_tables(make).eval()


def times(fields: int, rows: int, dim: int, candidates: int, rounds: int) -> None:
    """Print bytes and microseconds of each form."""
    ranker, rng = ranker_of(fields, rows, dim), np.random.default_rng(0)
    half = fields // 2
    feeds: list[Any] = [
        {
            "request_numeric": rng.random((1, 1), dtype=np.float32),
            "request_ids": rng.integers(0, rows, (1, half)).astype(np.int32),
            "candidate_ids": rng.integers(0, rows, (candidates, half)).astype(np.int32),
        }
        for _ in range(16)
    ]
    with TemporaryDirectory() as folder:
        sessions, sizes = [], []
        for kind, method in methods().items():
            path = Path(folder) / f"{kind}.onnx"
            small = with_codes(ranker) if kind == "pq" else shipped(ranker, method)
            export_split(small.eval(), path)
            sizes.append(path.stat().st_size)
            sessions.append(GraphSession(path))
        us = interleaved_us(sessions, [feeds] * len(sessions), rounds)
    print(f"{fields} fields of {rows} rows, width {dim}, {candidates} candidates")
    print("| tables | graph, kB | µs a request |\n|---|---|---|")
    for kind, size, median in zip(TABLES, sizes, us, strict=True):
        print(f"| {kind} | {size / 1e3:.0f} | {median:.0f} |")


def vocabularies(tokens: int) -> None:
    """Print how long tokens take to read in either form."""
    rng = np.random.default_rng(0)
    names = [f"{n:08x}" for n in rng.permutation(np.unique(rng.integers(0, 1 << 32, tokens)))]
    encoding = VocabularyEncoding(file="vocab/f.json", rows=len(names) + 2)
    plain, few = as_json(encoding, names), in_few_bytes(encoding, names)
    code = cast("NumberCode", few.encoding.numbers)
    reads = {
        "JSON": (plain.raw, lambda: TypeAdapter(list[str]).validate_json(plain.raw, strict=True)),
        "numbers": (few.raw, lambda: decode_tokens(code, few.raw)),
    }
    print("\n| vocabulary | kB | ms to read |\n|---|---|---|")
    for name, (raw, read) in reads.items():
        took = []
        for _ in range(5):
            start = time.perf_counter()
            read()
            took.append(time.perf_counter() - start)
        print(f"| {name} | {len(raw) / 1e3:.0f} | {min(took) * 1e3:.1f} |")


def blocks_of(bundle: Bundle, rows: int) -> list[range]:
    """The blocks of a bundle's one table."""
    order = {"request_ids": 0, "candidate_ids": 1}
    specs = [f for f in bundle.manifest.features if f.tensor in order]
    found, end = [], 0
    for spec in sorted(specs, key=lambda f: (order[str(f.tensor)], f.start)):
        found.append(range(end, end + table_rows(spec)))
        end += len(found[-1])
    if end != rows:
        raise SystemExit("this takes a bundle whose fields have one width")
    return found


def losses(bundle: Bundle, data: Path) -> None:
    """Print what rounding a bundle's table does to its scores."""
    manifest, frame = bundle.manifest, pl.read_parquet(data)
    feeds = graph_inputs(frame, manifest.features, bundle.encoders())
    clicks = (frame[manifest.data.label].to_numpy() >= (manifest.data.positive_from or 1.0)).astype(
        np.float32
    )
    model = onnx.load(bundle.path(manifest.graph))
    looked_up = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
    (held,) = [tensor for tensor in model.graph.initializer if tensor.name in looked_up]
    weight = torch.from_numpy(numpy_helper.to_array(held).copy())
    blocks = blocks_of(bundle, len(weight))
    print(
        "| tables | Δ AUC | Δ log loss | a score moves by at most | error |\n|---|---|---|---|---|"
    )
    first: Any = None
    for kind, method in methods().items():
        if kind == "pq":
            continue
        small = method.shipped(nn.Embedding(*weight.shape, _weight=weight), blocks)
        rounded = torch.cat(
            [
                look_up(small, torch.arange(b.start, b.stop, dtype=torch.int32)[:, None], [b.start])
                for b in blocks
            ]
        )[:, 0].detach()
        held.CopyFrom(numpy_helper.from_array(rounded.numpy(), held.name))
        with TemporaryDirectory() as folder:
            onnx.save(model, Path(folder) / "model.onnx")
            scores = GraphSession(Path(folder) / "model.onnx").run(feeds)
        found = quality(clicks, scores)
        first = first or (found, scores)
        error = float((rounded - weight).square().sum() / weight.square().sum())
        print(
            f"| {kind} | {found.auc - first[0].auc:+.6f} | {found.logloss - first[0].logloss:+.6f} "
            f"| {np.abs(scores - first[1]).max():.4f} | {error:.6f} |"
        )


def main() -> None:
    """Time, or judge, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, nargs="?", help="a float32 bundle's folder")
    parser.add_argument("--data", type=Path, help="a parquet file of rows for it")
    parser.add_argument("--fields", type=int, default=26)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--dim", type=int, default=8)
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=300)
    options = parser.parse_args()
    if (options.bundle is None) != (options.data is None):
        parser.error("a bundle needs --data, and --data a bundle")
    if options.bundle is not None:
        losses(open_bundle(options.bundle), options.data)
        return
    times(options.fields, options.rows, options.dim, options.candidates, options.rounds)
    vocabularies(options.fields * options.rows)


if __name__ == "__main__":
    main()
