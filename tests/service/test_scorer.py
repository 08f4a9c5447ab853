"""How ONNX Runtime is asked to run."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from model_store.manifest import TensorSpec
from service.scorer import OrtGraph, OrtScorer

X = TensorSpec(name="x", dtype="float32", shape=("N",))
SCORE = TensorSpec(name="score", dtype="float32", shape=("N",))


def test_no_plan_of_memory_is_kept_for_each_number_of_candidates(tmp_path: Path) -> None:
    """They would be as many as sizes that ever came: memory that grows over days."""
    made = OrtGraph(doubled(tmp_path, TensorProto.FLOAT), [X], [SCORE])

    options = made._session.get_session_options()
    assert not options.enable_mem_pattern
    assert options.enable_cpu_mem_arena  # without it, scoring 200 candidates took twice as long


def test_scores_of_another_type_are_served_as_float32(tmp_path: Path) -> None:
    """A graph may compute in more bits than rankings are sorted by."""
    scorer = OrtScorer(doubled(tmp_path, TensorProto.DOUBLE), [X], [SCORE])

    scores = scorer.score({"x": np.array([0.1, 0.2], np.float32)}, 2)  # type: ignore[dict-item]

    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, [0.2, 0.4])


def doubled(folder: Path, kind: int) -> Path:
    """A graph that adds numbers to themselves."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])
    score = helper.make_tensor_value_info("score", kind, ["N"])
    nodes = [
        helper.make_node("Add", ["x", "x"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["score"], to=kind),
    ]
    graph = helper.make_graph(nodes, "g", [x], [score])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), folder / "m.onnx")
    return folder / "m.onnx"
