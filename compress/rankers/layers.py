"""The layers that rankers share, and what stays of them: a request's rows are computed once."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.rankers.structure import Cut, Hidden, Index, Inputs, Keep, Layer, Reader, Slices


def rowwise(op: Literal["Add", "Mul", "MatMul"], request: Tensor, candidate: Tensor) -> Tensor:
    """A request's rows (R, ...) with the candidates' (N, ...), where R is 1 or N.

    ``torch.export`` must decide at export time whether R equals N; ONNX need not. So the exported
    graph gets the bare broadcasting operator, and one graph serves both.
    """
    if torch.compiler.is_exporting():
        shape = _broadcast_shape(op, request, candidate)
        return torch.onnx.ops.symbolic(op, [request, candidate], dtype=candidate.dtype, shape=shape)
    if op == "Add":
        return request + candidate
    return request * candidate if op == "Mul" else request @ candidate


def added_linear(request: Tensor, candidate: Tensor, weight: Tensor) -> Tensor:
    """(R, H) + (N, C) times (H, C) transposed: one Gemm in the graph, which a ReLU may join."""
    if torch.compiler.is_exporting():  # for the reason given in `rowwise`
        return torch.onnx.ops.symbolic(
            "Gemm",
            [candidate, weight, request],
            {"transB": 1},
            dtype=candidate.dtype,
            shape=(candidate.shape[0], weight.shape[0]),
        )
    return request + functional.linear(candidate, weight)


def _broadcast_shape(op: str, request: Tensor, candidate: Tensor) -> Sequence[int | torch.SymInt]:
    inner = (request.shape[-2], candidate.shape[-1]) if op == "MatMul" else candidate.shape[1:]
    return (candidate.shape[0], *inner)


def repeated(inputs: Inputs) -> Inputs:
    """The inputs with the request's row repeated for each candidate (as they are if R = N)."""
    rows = inputs.candidates
    return Inputs(
        _repeat(inputs.request_numeric, rows),
        _repeat(inputs.request_ids, rows),
        inputs.candidate_numeric,
        inputs.candidate_ids,
    )


def _repeat(request: Tensor, rows: int) -> Tensor:
    if not request.shape[1]:
        return request
    if torch.compiler.is_exporting():  # for the reason given in `rowwise`
        return rowwise("Add", request, request.new_zeros((rows, request.shape[1])))
    return request.expand(rows, -1)


class Mlp(nn.Module):
    """Linear layers with a ReLU after each (the last one's is optional). DLRM's initialisation."""

    def __init__(
        self,
        sizes: Sequence[int],
        generator: torch.Generator,
        *,
        last_relu: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(linear(a, b, generator) for a, b in pairwise(sizes))
        self.last_relu = last_relu
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """(B, in) -> (B, out)."""
        return self.after_first(self.first(x))

    @property
    def first(self) -> nn.Linear:
        """The layer that reads the input."""
        return cast("nn.Linear", self.layers[0])

    def after_first(self, x: Tensor) -> Tensor:
        """The rest, given what the first layer put out before its ReLU."""
        last = len(self.layers) - 1
        for position, layer in enumerate(self.layers):
            x = layer(x) if position else x
            if position < last or self.last_relu:
                x = functional.relu(x)
            if self.dropout and position < last:
                x = functional.dropout(x, self.dropout, self.training)
        return x

    def hidden(self, prefix: str) -> Iterator[Hidden]:
        """Its hidden layers, named ``<prefix>.<position>``."""
        for position, reader in enumerate(list(self.layers)[1:]):
            layer = cast("nn.Linear", reader)
            yield Hidden(f"{prefix}.{position}", layer.in_features, Reader(layer))

    def slices(
        self, prefix: str, name: str, keep: Keep, columns: Index, outputs: Index = None
    ) -> Slices:
        """What stays of its parameters, given what stays of its input and of an output unnamed."""
        plan: dict[str, tuple[Cut, ...]] = {}
        last = len(self.layers) - 1
        for position in range(len(self.layers)):
            rows = kept_rows(keep, f"{name}.{position}")
            if position == last and outputs is not None:
                rows = outputs
            plan |= linear_slices(f"{prefix}.layers.{position}", rows, columns)
            columns = rows
        return plan


def linear_slices(name: str, rows: Index, columns: Index) -> Slices:
    """What stays of a layer's weight and bias."""
    weight, bias = f"{name}.weight", f"{name}.bias"
    return {weight: (Cut(weight, rows, columns),), bias: (Cut(bias, rows),)}


def linear(fan_in: int, fan_out: int, generator: torch.Generator) -> nn.Linear:
    """A layer drawn as DLRM's: weights N(0, 2/(in + out)), biases N(0, 1/out) (variances)."""
    layer = nn.Linear(fan_in, fan_out, device="meta").to_empty(device="cpu")
    nn.init.normal_(layer.weight, std=(2 / (fan_in + fan_out)) ** 0.5, generator=generator)
    nn.init.normal_(layer.bias, std=(1 / fan_out) ** 0.5, generator=generator)
    return layer


def kept_rows(keep: Keep, layer: str) -> Index:
    """The neurons that stay of a layer; None for all."""
    kept = keep.hidden.get(layer)
    return None if kept is None else torch.tensor(kept, dtype=torch.int64)


def kept_widths(layers: Iterable[Hidden], keep: Keep) -> tuple[int, ...]:
    """Widths of hidden layers after slimming."""
    return tuple(len(keep.hidden.get(layer.name, range(layer.width))) for layer in layers)


def mlp_layers(part: str, sizes: Sequence[int], *, once: bool = False) -> list[Layer]:
    """The layers between these widths."""
    return [Layer(part, a, b, once=once) for a, b in pairwise(sizes)]


def split_layer(part: str, request: int, candidate: int, outputs: int) -> list[Layer]:
    """A layer that reads both sides: the request's columns, with the bias, once."""
    layers = [Layer(part, candidate, outputs, bias=not request)]
    return [Layer(part, request, outputs, once=True), *layers] if request else layers
