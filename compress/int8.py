"""An exported graph's MLPs in eight bits: a graph in, a graph out.

Only layers that run once a candidate change; what runs once a request costs next to nothing. With
x a layer's input, W its weights and b its bias,

    y_j = Σ_k W_jk·x_k + b_j  ≈  s·s_j·( Σ_k w_jk·(q_k - z) + c_j )

    q = round(x / s) + z    0..255, one scale and zero point a tensor
    w = round(W_j / s_j)    -63..63, one scale a neuron
    c = b / (s·s_j), whole  int32, also where b is the request's share, computed once a request

``int8-static`` takes s and z from the least and the greatest x over calibration rows, so a score
depends on its own row alone. ``int8-dynamic`` takes them from the x of each call, so it depends a
little on the other candidates of the request.

Weights have seven bits because processors without VNNI add two products in 16 bits, saturating:
2·255·63 fits, 2·255·127 does not. So the sums, and with them the scores, are the same everywhere.

onnxruntime.quantization leaves a bias that is computed in fp32, outside of the integer product.
Here it joins, and ONNX Runtime makes one QGemm of a layer, the request's share, the ReLU and the
rounding for the next layer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from compress.graph import EXTERNAL_ABOVE_BYTES, Array, Feeds, GraphSession
from compress.int8_rows import RowsAhead

# Narrower inputs cost more to round than their products cost in fp32, whatever the layer's width,
# and where a layer in eight bits has rounded them already, the layer's own outputs do.
LEAST_INPUTS: Final = 16
LARGEST_WEIGHT: Final = 63
LARGEST_BIAS: Final = 1 << 24  # in steps of s·s_j: 128 times as much still fits an int32

Form = Callable[[Any, Feeds], Any]  # (fp32 graph, calibration rows) -> int8 graph


@dataclass(frozen=True, slots=True)
class Layer:
    """A Gemm that runs once a candidate: y = x·Wᵀ + b.

    Attributes:
        x: the name of its input (N, K).
        y: of its output (N, H).
        weight: W (H, K).
        bias: the name of b, (H,) or the request's share (R, H); empty without one.
    """

    x: str
    y: str
    weight: NDArray[np.float32]
    bias: str


class Draft:
    """A graph being rewritten, its constants at hand by name.

    Attributes:
        live: what depends on the candidates, by name.
        layers: what can run in eight bits, and gains by it.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
        self.nodes = self._folded(model.graph.node)
        inputs = {value.name for value in model.graph.input}
        self.live = self._candidate_side(inputs)
        self.layers = list(self._layers(inputs))

    def _folded(self, nodes: Sequence[Any]) -> list[Any]:
        """The nodes without those that only cut constants up (each side's columns of a layer)."""
        left = []
        for node in nodes:
            if all(name in self.constants for name in node.input):
                given = {name: self.constants[name] for name in node.input}
                made = ReferenceEvaluator(node).run(None, given)
                self.constants |= dict(zip(node.output, made, strict=True))
            else:
                left.append(onnx.NodeProto())
                left[-1].CopyFrom(node)  # the caller's stays as it is
        return left

    def _candidate_side(self, inputs: set[str]) -> set[str]:
        live = {name for name in inputs if name.startswith("candidate_")}
        for node in self.nodes:
            if live.intersection(node.input):
                live.update(node.output)
        return live

    def _layers(self, inputs: set[str]) -> Iterator[Layer]:
        for node in self.nodes:
            if node.op_type != "Gemm" or node.output[0] not in self.live:
                continue
            x, weight, *bias = node.input
            # Raw numbers share no scale.
            if weight in self.constants and x not in inputs:
                w = self.constants[weight]
                if w.shape[1] >= LEAST_INPUTS:
                    yield Layer(x, node.output[0], w, bias[0] if bias else "")

    def constant(self, name: str, value: Any) -> str:
        """Add a constant; returns its name."""
        self.constants[name] = np.asarray(value)
        return name

    def observed(self, rows: Feeds) -> dict[str, Array]:
        """What the layers' inputs and computed biases are on rows: name -> array."""
        names = sorted({name for layer in self.layers for name in (layer.x, layer.bias)})
        names = [name for name in names if name and name not in self.constants]
        seen = onnx.ModelProto()
        seen.CopyFrom(self._model)
        for name in names:
            seen.graph.output.append(helper.make_tensor_value_info(name, 1, None))
        with TemporaryDirectory() as folder:
            path = Path(folder) / "observed.onnx"
            save(seen, path)
            return GraphSession(path).values(names, rows)

    def scale_request(self, share: str, factor: NDArray[np.float32]) -> None:
        """Have the request's share of a layer (R, H) computed in other units: times (H,)."""
        gemm = next(node for node in self.nodes if node.output[0] == share)
        weight, bias = (self.constants[name] for name in gemm.input[1:])
        gemm.input[1] = self.constant(f"{share}.weight.scaled", weight * factor[:, None])
        gemm.input[2] = self.constant(f"{share}.bias.scaled", bias * factor)

    def part_relus(self, rounded: set[str]) -> None:
        """Write the layers' ReLUs as Max(y, 0) where no rounding follows that takes them in.

        ONNX Runtime looks for the rounding after Gemm and Relu (or Clip), and without one it runs
        the layer in fp32, from weights that it has widened.
        """
        zero = self.constant("int8.zero", np.float32(0))
        outputs = {layer.y for layer in self.layers}
        relus = [node for node in self.nodes if node.op_type == "Relu"]
        for relu in relus:
            if relu.input[0] in outputs and relu.output[0] not in rounded:
                relu.op_type = "Max"
                relu.input.append(zero)

    def finished(self, replaced: Mapping[str, Sequence[Any]]) -> Any:
        """The graph with layers replaced, by their outputs, and without idle constants."""
        nodes = [new for node in self.nodes for new in replaced.get(node.output[0], [node])]
        nodes = RowsAhead(nodes, self.constants, self.live).round()
        used = {name for node in nodes for name in node.input}
        weights = [
            numpy_helper.from_array(np.asarray(value, order="C"), name)
            for name, value in self.constants.items()
            if name in used
        ]
        old = self._model
        return helper.make_model(
            helper.make_graph(nodes, old.graph.name, old.graph.input, old.graph.output, weights),
            ir_version=old.ir_version,
            opset_imports=old.opset_import,
        )


def static(model: Any, rows: Feeds) -> Any:
    """``int8-static``: QuantizeLinear and DequantizeLinear around the layers' Gemms.

    Args:
        model: an fp32 graph of `compress.export`.
        rows: calibration rows, R = N.
    """
    draft = Draft(model)
    seen = draft.observed(rows)
    known: set[str] = set()
    replaced: dict[str, list[Any]] = {}
    for layer in draft.layers:
        x, y = layer.x, layer.y
        scale, zero = activation_scale(seen[x])
        pair = [draft.constant(f"{x}.scale", scale), draft.constant(f"{x}.zero", zero)]
        nodes = []
        if x not in known:  # its first reader rounds it for all
            known.add(x)
            nodes = [
                _node("QuantizeLinear", [x, *pair], f"{x}.int8"),
                _node("DequantizeLinear", [f"{x}.int8", *pair], f"{x}.rounded"),
            ]
        bias = draft.constants.get(layer.bias, seen.get(layer.bias))
        w, s = rounded_weight(layer.weight, scale, bias)
        weight = [
            draft.constant(f"{y}.weight", w),
            draft.constant(f"{y}.weight.scale", s),
            draft.constant(f"{y}.weight.zero", np.zeros(len(s), np.int8)),
        ]
        nodes.append(_node("DequantizeLinear", weight, f"{y}.weight.rounded", axis=0))
        inputs = [f"{x}.rounded", f"{y}.weight.rounded"]
        if layer.bias:
            nodes += _rounded_bias(draft, layer, scale * s)
            inputs.append(f"{y}.bias.rounded")
        replaced[y] = [*nodes, _node("Gemm", inputs, y, transB=1)]
    draft.part_relus({layer.x for layer in draft.layers})
    return draft.finished(replaced)


def _rounded_bias(draft: Draft, layer: Layer, scale: NDArray[np.float32]) -> list[Any]:
    """Nodes that make the bias a number of steps of the sums' scale, and widen it again."""
    name = f"{layer.y}.bias"
    draft.constant(f"{name}.scale", scale)
    draft.constant(f"{name}.zero", np.zeros(len(scale), np.int32))
    widened = [name, f"{name}.scale", f"{name}.zero"]
    if layer.bias in draft.constants:
        steps = np.rint(draft.constants[layer.bias] / scale)
        draft.constant(name, steps.astype(np.int32))
        return [_node("DequantizeLinear", widened, f"{name}.rounded", axis=0)]
    draft.scale_request(layer.bias, np.float32(1) / scale)
    # Cut, not rounded, to spare a node: a step here is next to nothing beside the sums' own.
    return [
        _node("Cast", [layer.bias], name, to=onnx.TensorProto.INT32),
        _node("DequantizeLinear", widened, f"{name}.rounded", axis=1),
    ]


def dynamic(model: Any, rows: Feeds) -> Any:  # noqa: ARG001  (it needs no calibration)
    """``int8-dynamic``: the layers' inputs rounded by the range that each call finds."""
    draft = Draft(model)
    known: set[str] = set()
    replaced: dict[str, list[Any]] = {}
    for layer in draft.layers:
        x, y = layer.x, layer.y
        found = [f"{x}.int8", f"{x}.scale", f"{x}.zero"]
        nodes = [] if x in known else [helper.make_node("DynamicQuantizeLinear", [x], found)]
        known.add(x)
        w, s = rounded_weight(layer.weight)
        weight = draft.constant(f"{y}.weight", w.T)  # (K, H)
        scale = draft.constant(f"{y}.weight.scale", s)
        zero = draft.constant(f"{y}.weight.zero", np.zeros(len(s), np.int8))
        product = f"{y}.product" if layer.bias else y
        nodes += [
            _node("MatMulInteger", [found[0], weight, found[2], zero], f"{y}.sums"),
            _node("Cast", [f"{y}.sums"], f"{y}.sums.fp32", to=onnx.TensorProto.FLOAT),
            _node("Mul", [found[1], scale], f"{y}.sums.scale"),
            _node("Mul", [f"{y}.sums.fp32", f"{y}.sums.scale"], product),
        ]
        if layer.bias:
            nodes.append(_node("Add", [product, layer.bias], y))
        replaced[y] = nodes
    return draft.finished(replaced)


FORMS: Final[Mapping[str, Form]] = MappingProxyType(
    {"int8-static": static, "int8-dynamic": dynamic}
)


def activation_scale(x: Array) -> tuple[np.float32, np.uint8]:
    """Scale s and zero point z: 0..255 spans the values seen, zero exactly among them."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((high - low) / 255) or np.float32(1)
    return scale, np.uint8(round(-low / float(scale)))


def rounded_weight(
    weight: NDArray[np.float32], scale: float | np.float32 = 1.0, bias: Array | None = None
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The whole numbers w (H, K) and their scales s_j (H,).

    Args:
        weight: W (H, K).
        scale: s of the layer's input.
        bias: (H,) or (rows, H); a neuron with next to no weights takes its scale from it.
    """
    steps = np.abs(weight).max(axis=1) / LARGEST_WEIGHT
    if bias is not None:
        most = np.abs(bias.reshape(-1, len(weight))).max(axis=0)
        steps = np.maximum(steps, most / (scale * LARGEST_BIAS))
    steps = np.where(steps > 0, steps, 1).astype(np.float32)
    return np.rint(weight / steps[:, None]).astype(np.int8), steps


def load(path: Path) -> Any:
    """A graph with all its weights."""
    return onnx.load(str(path))


def save(model: Any, path: Path, *, external_above: int = EXTERNAL_ABOVE_BYTES) -> None:
    """Write a graph; weights of more bytes than that lie in a file beside it."""
    weights = sum(len(weight.raw_data) for weight in model.graph.initializer)
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=weights > external_above,
        location=f"{path.name}.data",
    )


def _node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs, [output], name=output, **attributes)
