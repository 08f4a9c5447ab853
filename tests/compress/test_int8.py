"""A graph in eight bits scores nearly as in fp32, and the same on every processor."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress import int8, int8_rows
from compress.graph import Feeds, GraphSession

ROWS = 300


@pytest.fixture(autouse=True)
def _narrow_layers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy is small; all its layers are to change."""
    monkeypatch.setattr(int8, "LEAST_INPUTS", 4)


def run(model: Any, feeds: Feeds, folder: Path) -> np.ndarray:
    """Scores of a graph in memory."""
    int8.save(model, folder / "run.onnx")
    return GraphSession(folder / "run.onnx").run(feeds)


def optimised(model: Any, folder: Path) -> Counter[str]:
    """Kinds of the nodes that ONNX Runtime makes of a graph."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def look_up(side: str, kept: str) -> list[Any]:
    """The rows that a side's ids name, as float32 in ``<side>.vectors``."""
    steps = [("Gather", f"{side}.rows", {})]
    if kept != "float32":
        steps.append(("Cast", None, {"to": TensorProto.FLOAT}))
    if kept == "int8":
        steps.append(("Mul", f"{side}.scales", {}))
    names = ["table", *(f"{side}.{kind}" for kind, _, _ in steps[:-1]), f"{side}.vectors"]
    return [
        helper.make_node(kind, [x, other] if other else [x], [y], **options)
        for (kind, other, options), x, y in zip(steps, names, names[1:], strict=False)
    ]


KEPT = {"float32": np.float32, "float16": np.float16, "int8": np.int8}  # what a table's rows are


def toy(rng: np.random.Generator, kept: str = "float32") -> Any:
    """Two look-ups a side, one layer that takes the request's share as its bias, and a logit.

    Rows 0-9 of the table are the request's, the others the candidates'; 300-599 the second field's,
    which the candidates name first.
    """
    weights = {
        "table": rng.normal(size=(600, 4)).astype(np.float32),
        "request.offsets": np.array([0, 5], np.int32),
        "candidate.offsets": np.array([300, 10], np.int32),
        "flat": np.array([-1, 8], np.int64),
        "one": np.array([1], np.int64),
        "u": rng.normal(size=(6, 8)).astype(np.float32),
        "w": rng.normal(size=(6, 8)).astype(np.float32),
        "b": rng.normal(size=6).astype(np.float32),
        "w2": rng.normal(size=(1, 6)).astype(np.float32),
        "b2": np.array([0.25], np.float32),
    }
    if kept == "int8":
        weights["table"] *= 30
        for side in ("request", "candidate"):
            weights[f"{side}.scales"] = rng.uniform(0.02, 0.05, (2, 4)).astype(np.float32)
    weights["table"] = weights["table"].astype(KEPT[kept])
    nodes = []
    for side, x in (("request", "xu"), ("candidate", "xc")):
        nodes += [
            helper.make_node("Add", [f"{side}_ids", f"{side}.offsets"], [f"{side}.rows"]),
            *look_up(side, kept),
            helper.make_node("Reshape", [f"{side}.vectors", "flat"], [x]),
        ]
    nodes += [
        helper.make_node("Gemm", ["xu", "u", "b"], ["once"], transB=1),
        helper.make_node("Gemm", ["xc", "w", "once"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["logit"], transB=1),
        helper.make_node("Squeeze", ["logit", "one"], ["flat_logit"]),
        helper.make_node("Sigmoid", ["flat_logit"], ["score"]),
    ]
    inputs = [
        helper.make_tensor_value_info(f"{side}_ids", TensorProto.INT32, [axis, 2])
        for side, axis in (("request", "R"), ("candidate", "N"))
    ]
    output = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"])
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "toy", inputs, [output], initializers)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])


@pytest.fixture
def rows() -> Feeds:
    """Rows of the toy, R = N."""
    rng = np.random.default_rng(1)
    return {
        "request_ids": rng.integers(0, 5, (ROWS, 2), np.int32),
        "candidate_ids": rng.integers(0, 290, (ROWS, 2), np.int32),
    }


def test_static_is_what_the_formula_says(rows: Feeds, tmp_path: Path):
    """A whole graph by hand: whole numbers multiplied and added, each scale applied once."""
    model = toy(np.random.default_rng(0))
    value = {i.name: numpy_helper.to_array(i).astype(np.float64) for i in model.graph.initializer}
    table = value["table"].astype(np.float32)
    xu = table[rows["request_ids"] + [0, 5]].reshape(ROWS, 8)
    xc = table[rows["candidate_ids"] + [300, 10]].reshape(ROWS, 8)
    once = xu @ value["u"].T + value["b"]
    hidden = np.maximum(xc @ value["w"].T + once, 0)

    def scale(x: np.ndarray) -> tuple[float, int]:
        s, z = int8.activation_scale(x)
        return float(s), int(z)

    (s, z), (s2, z2) = scale(xc), scale(hidden)
    w, sj = int8.rounded_weight(value["w"])
    w2, sj2 = int8.rounded_weight(value["w2"])
    q = np.clip(np.rint(xc / s) + z, 0, 255)
    sums = (q - z) @ w.T + np.trunc(once / (s * sj))
    q2 = np.clip(np.rint(np.maximum(sums * s * sj, 0) / s2) + z2, 0, 255)
    logit = ((q2 - z2) @ w2.T + np.rint(0.25 / (s2 * sj2))) * s2 * sj2

    found = run(int8.static(model, rows), rows, tmp_path)

    # Here and there fp64 and fp32 fall on two sides of a half, and a number moves by one step.
    expected = 1 / (1 + np.exp(-logit[:, 0]))
    assert np.mean(np.abs(found - expected) < 1e-5) > 0.98
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_two_products_fit_sixteen_bits():
    """What processors without VNNI add first cannot saturate, whatever the weights are."""
    weight = np.random.default_rng(0).normal(size=(9, 50)).astype(np.float32) * 1e3

    w, scale = int8.rounded_weight(weight)

    assert 2 * 255 * np.abs(w.astype(int)).max() < 2**15
    assert np.abs(w).max(axis=1).tolist() == [63] * 9
    np.testing.assert_allclose(w * scale[:, None], weight, atol=scale.max() / 2)


def test_zero_is_among_the_rounded_numbers():
    """So a ReLU loses nothing, and padding stays nothing."""
    assert int8.activation_scale(np.array([-1.0, 4.1])) == (np.float32(0.02), 50)
    assert int8.activation_scale(np.array([0.5, 5.1])) == (np.float32(0.02), 0)
    assert int8.activation_scale(np.zeros(3)) == (1, 0)


def test_a_neuron_without_weights_keeps_its_bias():
    """Its bias fits an int32 although its weights would ask for steps of nothing."""
    weight = np.array([[0.0, 0.0], [1e-12, 0.0], [0.51, 1.0]], np.float32)
    bias = np.array([3.0, -2.0, 1.0], np.float32)

    w, scale = int8.rounded_weight(weight, 0.01, bias)

    np.testing.assert_allclose(np.rint(bias / (0.01 * scale)) * 0.01 * scale, bias, rtol=1e-5)
    assert np.abs(bias / (0.01 * scale)).max() < 2**31
    assert w.tolist() == [[0, 0], [0, 0], [32, 63]]


def test_onnx_runtime_makes_one_node_of_a_layer(rows: Feeds, tmp_path: Path):
    """Layer, the request's share, ReLU and rounding are one QGemm; rows come rounded."""
    kinds = optimised(int8.static(toy(np.random.default_rng(0)), rows), tmp_path)

    assert kinds["QGemm"] == 2
    assert kinds["Gemm"] == 1  # the request's
    assert not {"QuantizeLinear", "DequantizeLinear", "Relu"} & set(kinds)


@pytest.mark.parametrize("kept", KEPT)
def test_rows_rounded_at_export_score_as_rows_rounded_at_each_look_up(
    kept: str, rows: Feeds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """To the last bit, whatever the table's rows are kept as; the request's stay as they are."""
    ahead = int8.static(toy(np.random.default_rng(0), kept), rows)
    monkeypatch.setattr(int8_rows.RowsAhead, "round", lambda self: self.nodes)
    late = int8.static(toy(np.random.default_rng(0), kept), rows)

    held = {i.name: (i.data_type, tuple(i.dims)) for i in ahead.graph.initializer}
    as_before = helper.np_dtype_to_tensor_dtype(np.dtype(KEPT[kept]))

    assert held["table.candidate"] == (TensorProto.UINT8, (590, 4))
    assert held["table.request"] == (as_before, (10, 4))
    np.testing.assert_array_equal(run(ahead, rows, tmp_path), run(late, rows, tmp_path))
    assert "Cast" not in [node.op_type for node in reaching(ahead, "xc.int8")]


def reaching(model: Any, name: str) -> list[Any]:
    """The nodes that a tensor is made by."""
    made = {output: node for node in model.graph.node for output in node.output}
    node = made.get(name)
    return [] if node is None else [node, *(n for i in node.input for n in reaching(model, i))]


def test_raw_numbers_and_narrow_inputs_stay_fp32(rows: Feeds, monkeypatch: pytest.MonkeyPatch):
    """They share no scale, or cost more to round than to multiply."""
    model = toy(np.random.default_rng(0))
    assert [layer.y for layer in int8.Draft(model).layers] == ["h", "logit"]

    monkeypatch.setattr(int8, "LEAST_INPUTS", 9)
    assert int8.Draft(model).layers == []

    monkeypatch.setattr(int8, "LEAST_INPUTS", 7)  # the logit's has 6, in eight bits already
    assert [layer.y for layer in int8.Draft(model).layers] == ["h"]

    model.graph.input.append(helper.make_tensor_value_info("xc", TensorProto.FLOAT, ["N", 8]))
    assert int8.Draft(model).layers == []


def test_weights_over_the_limit_lie_beside_the_graph(rows: Feeds, tmp_path: Path):
    """A graph of two files is read, changed and written again."""
    model = toy(np.random.default_rng(0))
    whole = run(int8.static(model, rows), rows, tmp_path)

    int8.save(model, tmp_path / "apart.onnx", external_above=0)
    read = int8.load(tmp_path / "apart.onnx")
    int8.save(int8.static(read, rows), tmp_path / "eight.onnx", external_above=0)

    assert (tmp_path / "eight.onnx.data").stat().st_size > 0
    np.testing.assert_array_equal(GraphSession(tmp_path / "eight.onnx").run(rows), whole)
