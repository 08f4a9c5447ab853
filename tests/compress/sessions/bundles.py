"""Bundles of session rankers, sealed without any training."""

import json
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import parser

from model_store.bundle import GOLDEN_FILE, GRAPH_FILE, ITEM_IDS_FILE, Bundle, seal
from model_store.item_vectors import ItemVectors, Neighbours
from model_store.manifest import (
    DataSpec,
    Manifest,
    Resources,
    SessionCard,
    SessionSpec,
    TensorSpec,
)

# The query is the sum of the session's vectors. With p = 1 … L from the oldest item on, repeat and
# follow are p / 2 - 1 and p / 4 - 3, the latter nothing for the first item.
GRAPH = """
<ir_version: 10, opset_import: ["": 20]>
ways (float[R, L, {dim}] session) => ({outputs}) {{
  items = Constant<value = int64[1] {{1}}>()
  width = Constant<value = int64[1] {{2}}>()
  query = ReduceSum<keepdims = 0>(session, items)
  nought = Constant<value = float {{0.0}}>()
  one = Constant<value = float {{1.0}}>()
  summed = ReduceSum<keepdims = 0>(session, width)
  noughts = Mul(summed, nought)
  ones = Add(noughts, one)
  place = CumSum(ones, items)
  half = Constant<value = float {{0.5}}>()
  halves = Mul(place, half)
  repeat = Sub(halves, one)
  quarters = Mul(halves, half)
  three = Constant<value = float {{3.0}}>()
  later = Sub(quarters, three)
  nothing = Constant<value = float {{-10000.0}}>()
  first = Equal(place, one)
  follow = Where(first, nothing, later)
}}
"""


def ways_of(place: int) -> dict[str, float]:
    """What the graph weighs the item at a place from 1 on with, of those it has."""
    return {"repeat": place / 2 - 1, "follow": -10000.0 if place == 1 else place / 4 - 3}


def session_bundle(
    root: Path,
    ids: Sequence[str],
    *,
    vectors: ItemVectors | None = None,
    neighbours: Neighbours | None = None,
    ways: Sequence[str] = ("query",),
    length: int = 50,
) -> Bundle:
    """A bundle whose graph has some of the ways."""
    dim = 1 if vectors is None else vectors.dim
    shapes = {"query": ("R", dim), "repeat": ("R", "L"), "follow": ("R", "L")}
    outputs = ", ".join(f"float[{', '.join(map(str, shapes[way]))}] {way}" for way in ways)
    model = parser.parse_model(GRAPH.format(dim=dim, outputs=outputs))
    onnx.checker.check_model(model)
    (root / "items").mkdir(parents=True)
    (root / GRAPH_FILE).write_bytes(model.SerializeToString())
    (root / ITEM_IDS_FILE).write_text(json.dumps(list(ids)))
    (root / GOLDEN_FILE).write_text("[]")
    manifest = Manifest(
        name="session",
        created_at="2026-11-01T00:00:00Z",
        graph=GRAPH_FILE,
        scores="logit",
        flops=0,
        inputs=(TensorSpec(name="session", dtype="float32", shape=("R", "L", dim)),),
        outputs=tuple(TensorSpec(name=way, dtype="float32", shape=shapes[way]) for way in ways),
        features=(),
        session=SessionSpec(
            ids=ITEM_IDS_FILE,
            items=len(ids),
            length=length,
            dim=dim,
            vectors=None if vectors is None else vectors.save(root),
            neighbours=None if neighbours is None else neighbours.save(root),
        ),
        data=DataSpec(label="target"),
        golden=GOLDEN_FILE,
        card=SessionCard(
            ranker="none", table="none", seed=0, dense=Resources(flops=0), coded=Resources(flops=0)
        ),
    )
    return seal(root, manifest)
