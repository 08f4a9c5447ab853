"""How ONNX Runtime is asked to run."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, parser

from model_store.manifest import TensorSpec
from service.errors import BadScores
from service.scorer import MOST_AT_ONCE, OrtEncoder, OrtGraph, OrtScorer

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


DIM = 4
LENGTH = 9


APART = "query = Identity(most)"
MIXED = "mean = ReduceMean<axes = [0]>(summed)  query = Sub(summed, mean)"  # with what else came
# The same, but for sessions of one item.
LATER = """
      second = Slice(session, from, to, items)
      least = ReduceSum<keepdims = 0>(second, items)
      mean = ReduceMean<axes = [0]>(least)
      query = Sub(most, mean)
"""
ALONE = "query = Reshape(summed, one)"  # nothing else may come


@pytest.mark.parametrize(
    ("made", "takes"), [(APART, True), (MIXED, False), (LATER, False), (ALONE, False)]
)
def test_sessions_are_encoded_together_only_where_that_changes_nothing(
    tmp_path: Path, made: str, takes: bool
) -> None:
    """Not a bit of what each comes to alone; else it is one after the other, to the same end."""
    encoder = summing(tmp_path, made)
    sessions = rng().standard_normal((MOST_AT_ONCE + 3, 5, DIM), np.float32)
    alone = [encoder.encode(session[None])[0].query for session in sessions]
    encoder.try_several(LENGTH, DIM)
    counts, run = [], encoder._graph.run

    def counted(feeds: Any) -> Any:
        counts.append(len(feeds["session"]))
        return run(feeds)

    encoder._graph.run = counted  # type: ignore[method-assign]
    together = [ways.query for ways in encoder.encode(sessions)]

    np.testing.assert_array_equal(together, alone)
    assert all(query.base is None for query in together[: 3 if takes else 0])  # holds no others
    assert counts == ([MOST_AT_ONCE, 3] if takes else [1] * len(sessions))


def test_a_session_that_has_no_number_is_told_whatever_came_with_it(tmp_path: Path) -> None:
    """Of several at once, as of one."""
    encoder = summing(tmp_path, APART)
    encoder.try_several(LENGTH, DIM)
    sessions = np.zeros((3, 2, DIM), np.float32)
    sessions[1, 0, 0] = np.inf

    with pytest.raises(BadScores, match="not a finite number"):
        encoder.encode(sessions)


def summing(folder: Path, made: str) -> OrtEncoder:
    """An encoder that makes something of a session's vectors, or of their sum."""
    text = f"""
    <ir_version: 9, opset_import: ["": 17]>
    ways (float[R, L, {DIM}] session) => (float[R, {DIM}] query) {{
      items = Constant<value = int64[1] {{1}}>()
      one = Constant<value = int64[2] {{1, {DIM}}}>()
      from = Constant<value = int64[1] {{1}}>()
      to = Constant<value = int64[1] {{2}}>()
      most = ReduceMax<axes = [1], keepdims = 0>(session)
      summed = ReduceSum<keepdims = 0>(session, items)
      {made}
    }}
    """
    onnx.save(parser.parse_model(text), folder / "e.onnx")
    session = TensorSpec(name="session", dtype="float32", shape=("R", "L", DIM))
    query = TensorSpec(name="query", dtype="float32", shape=("R", DIM))
    return OrtEncoder(folder / "e.onnx", [session], [query])


def rng() -> np.random.Generator:
    """The same numbers every time."""
    return np.random.default_rng(5)


def test_long_sessions_are_encoded_few_at_a_time(tmp_path: Path) -> None:
    """The runtime keeps the memory that its largest run took, and a trial takes its time."""
    encoder = summing(tmp_path, APART)
    counts, run = [], encoder._graph.run

    def counted(feeds: Any) -> Any:
        counts.append(feeds["session"].shape[:2])
        return run(feeds)

    encoder._graph.run = counted  # type: ignore[method-assign]
    encoder.try_several(400, DIM)
    assert {count for count, length in counts if length == 400} == {1, 2}
    counts.clear()
    encoder.encode(np.zeros((5, 400, DIM), np.float32))
    encoder.encode(np.zeros((2, 5000, DIM), np.float32))

    assert counts == [(2, 400), (2, 400), (1, 400), (1, 5000), (1, 5000)]
