"""What a ranker costs is counted on the files of its bundle."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compress.costs import bytes_by_part
from compress.rankers.base import Ranker
from model_store.bundle import Bundle


def test_bytes_by_part_add_up_to_the_folder(exported: Bundle, slimmed: Ranker):
    """No file is left out; the embedding part is the fused table to the byte."""
    parts = bytes_by_part(exported.root)
    files = [path for path in exported.root.rglob("*") if path.is_file()]

    assert sum(parts.values()) == sum(path.stat().st_size for path in files)
    assert parts["embedding tables"] == slimmed.tables["4"].weight.numel() * 4
    assert {"mlp", "vocab", "items", "golden", "manifest", "history"} <= set(parts)


def test_a_table_behind_the_node_that_widens_it_is_a_table_still(tmp_path: Path):
    """Its eight-bit rows and their scales; what widens to a layer's weights is the layer's."""
    weights = {
        "rows": np.zeros((50, 4), np.int8),
        "scales": np.ones(50, np.float32),
        "w": np.zeros((3, 4), np.int8),
        "step": np.float32(0.1),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["rows", "scales"], ["table"], axis=0),
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("DequantizeLinear", ["w", "step"], ["weight"]),
        helper.make_node("Gemm", ["x", "weight"], ["score"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "table",
        [helper.make_tensor_value_info("ids", TensorProto.INT32, ["N"])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")

    parts = bytes_by_part(tmp_path)

    assert parts["embedding tables"] == 50 * 4 + 50 * 4
    assert parts["mlp"] == 3 * 4 + 4
