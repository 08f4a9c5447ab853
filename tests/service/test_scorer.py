"""How ONNX Runtime is asked to run."""

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from model_store.manifest import TensorSpec
from service.scorer import OrtGraph


def test_no_plan_of_memory_is_kept_for_each_number_of_candidates(tmp_path: Path) -> None:
    """They would be as many as sizes that ever came: memory that grows over days."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])
    score = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["score"])], "g", [x], [score])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "m.onnx")

    made = OrtGraph(
        tmp_path / "m.onnx",
        [TensorSpec(name="x", dtype="float32", shape=("N",))],
        [TensorSpec(name="score", dtype="float32", shape=("N",))],
    )

    options = made._session.get_session_options()
    assert not options.enable_mem_pattern
    assert options.enable_cpu_mem_arena  # without it, scoring 200 candidates took twice as long
