"""What every ranker shares: fields in, one logit a candidate out, and what can be slimmed.

A *field* is one vector of width ``dim``: an embedding (pooled, for a multi-valued feature), or the
output of a side's bottom MLP over all its numeric features (the papers' "group 0"). The request
side's fields come first, so whatever a layer does for the request is a slice of its weights.

Shapes: R request rows (1 or N), N candidates, B = N rows in training, F fields, D = ``dim``.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, Final, Literal, cast

import torch
from pydantic import Field as Option
from torch import Tensor, nn
from torch.nn import functional

from compress.config import ConfigError, Frozen
from model_store.manifest import FeatureSpec, InputName, NumericEncoding

OOV: Final = 0
MISSING: Final = 1

Index = Tensor | None  # int64 positions that stay; None: all of them
Slices = Mapping[str, tuple[Index, Index]]  # parameter -> (rows, columns) that stay
Parts = dict[str, float]
Width = Annotated[int, Option(gt=0, le=65_536)]  # of a hidden layer


class RankerConfig(Frozen):
    """Options of all rankers."""

    dim: int = Option(default=16, gt=0, le=4096)
    bottom: tuple[Width, ...] = (512, 256, 64)
    bottom_candidate: tuple[Width, ...] | None = None
    dropout: float = Option(default=0.0, ge=0.0, lt=1.0)

    def bottom_of(self, side: str) -> tuple[int, ...]:
        """Hidden widths of one side's bottom MLP (after slimming the two sides may differ)."""
        if side == "candidate" and self.bottom_candidate is not None:
            return self.bottom_candidate
        return self.bottom


@dataclass(frozen=True, slots=True)
class Inputs:
    """A request and its candidates. A tensor without columns may have any number of rows."""

    request_numeric: Tensor  # (R, P) float32
    request_ids: Tensor  # (R, C) int32, rows local to each feature
    candidate_numeric: Tensor  # (N, Q) float32
    candidate_ids: Tensor  # (N, D) int32

    @property
    def candidates(self) -> int:
        """N, read from the tensor that has columns."""
        tensor = self.candidate_ids if self.candidate_ids.shape[1] else self.candidate_numeric
        return tensor.shape[0]


@dataclass(frozen=True, slots=True)
class Field:
    """One vector of width ``dim`` among a ranker's fields.

    Attributes:
        features: the features it is made of (several for the numeric field, otherwise one).
        numeric: whether it is a bottom MLP's output.
    """

    name: str
    features: tuple[str, ...]
    request: bool
    numeric: bool


@dataclass(frozen=True, slots=True)
class Keep:
    """What stays: fields by name, and hidden neurons by layer (layers not named stay whole)."""

    fields: tuple[str, ...]
    hidden: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Reader:
    """A layer that reads groups, from column ``start`` of its weights on."""

    layer: nn.Linear
    start: int = 0


@dataclass(frozen=True, slots=True)
class Hidden:
    """A layer of neurons that can be slimmed: its name, its width, and what reads it."""

    name: str
    width: int
    reader: Reader


@dataclass(frozen=True, slots=True)
class Prunable:
    """What a method may remove.

    Attributes:
        fields: the field groups.
        readers: what reads the fields. The first one's input is all that the layers after them
            know of the fields.
        membership: (F, columns of a reader): which share of a column belongs to which field. Each
            column sums to 1; a pair of the dot interaction belongs to two fields, half each.
        hidden: the neuron groups.
        least: how many fields the ranker cannot do without.
    """

    fields: tuple[Field, ...]
    readers: tuple[Reader, ...]
    membership: Tensor
    hidden: tuple[Hidden, ...]
    least: int = 1


@dataclass(frozen=True, slots=True)
class SlimPlan:
    """How a ranker shrinks: its new features and config, and what stays of each parameter."""

    features: tuple[FeatureSpec, ...]
    config: RankerConfig
    slices: Slices


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

    def slices(self, prefix: str, name: str, keep: Keep, columns: Index) -> Slices:
        """What stays of its parameters, ``columns`` being what stays of its input."""
        plan: dict[str, tuple[Index, Index]] = {}
        for position in range(len(self.layers)):
            rows = kept_rows(keep, f"{name}.{position}")
            plan[f"{prefix}.layers.{position}.weight"] = (rows, columns)
            plan[f"{prefix}.layers.{position}.bias"] = (rows, None)
            columns = rows
        return plan


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


def mlp_flops(sizes: Sequence[float]) -> float:
    """The papers' count: 2·in·out for multiplying and adding, and one per bias."""
    return sum(2 * a * b + b for a, b in pairwise(sizes))


class Side(nn.Module):
    """The fields of one side: the numeric one first, then a vector per id feature."""

    offsets: Tensor

    def __init__(
        self,
        name: Literal["request", "candidate"],
        features: Sequence[FeatureSpec],
        first_row: int,
        config: RankerConfig,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.name = name
        self.numeric = [f for f in features if f.tensor == f"{name}_numeric"]
        self.embedded = [f for f in features if f.tensor == f"{name}_ids"]
        self.tables = _row_ranges(self.embedded, first_row)
        offsets = [
            table.start
            for feature, table in zip(self.embedded, self.tables, strict=True)
            for _ in range(feature.length)
        ]
        self.register_buffer("offsets", torch.tensor(offsets, dtype=torch.int32), persistent=False)
        self.bottom: Mlp | None = None
        if self.numeric:
            sizes = (len(self.numeric), *config.bottom_of(name), config.dim)
            self.bottom = Mlp(sizes, generator)

    @property
    def fields(self) -> list[Field]:
        """Its fields, in the order of their vectors."""
        request = self.name == "request"
        names = tuple(f.name for f in self.numeric)
        dense = [Field(f"{self.name}_numeric", names, request, numeric=True)] if names else []
        return dense + [Field(f.name, (f.name,), request, numeric=False) for f in self.embedded]

    def forward(self, table: nn.Embedding, numeric: Tensor, ids: Tensor) -> Tensor:
        """(rows, P) and (rows, C) -> (rows, F, D)."""
        parts = []
        if self.bottom is not None:
            parts.append(self.bottom(numeric).unsqueeze(1))
        if self.embedded:
            parts.extend(self._pooled(table(ids + self.offsets), ids))
        if not parts:
            return table.weight.new_zeros((numeric.shape[0], 0, table.embedding_dim))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _pooled(self, vectors: Tensor, ids: Tensor) -> Iterator[Tensor]:
        # Runs of single-valued features pass as one slice; a multi-valued one pools its columns.
        column = run = 0
        for feature in self.embedded:
            end = column + feature.length
            if feature.kind == "multi":
                if run < column:
                    yield vectors[:, run:column]
                yield _mean_of_present(vectors[:, column:end], ids[:, column:end])
                run = end
            column = end
        if run < column:
            yield vectors[:, run:column]


def _mean_of_present(vectors: Tensor, ids: Tensor) -> Tensor:
    # Products, not sums over axis 1: those take ONNX Runtime several times as long.
    present = (ids != MISSING).to(vectors.dtype)  # (rows, L)
    count = present @ present.new_ones(ids.shape[1], 1)
    share = present / count.clamp(min=1.0)
    return share.unsqueeze(1) @ vectors  # (rows, 1, D); zeros if empty


def _row_ranges(embedded: Sequence[FeatureSpec], first_row: int) -> list[range]:
    ranges = []
    for feature in embedded:
        ranges.append(range(first_row, first_row + table_rows(feature)))
        first_row = ranges[-1].stop
    return ranges


def table_rows(feature: FeatureSpec) -> int:
    """Rows of the table of a feature that arrives as ids."""
    if isinstance(feature.encoding, NumericEncoding):
        raise ConfigError(f"{feature.name}: a numeric encoding cannot land in {feature.tensor}")
    return feature.encoding.rows


class Ranker(nn.Module, ABC):
    """Scores candidates for a request: ``forward`` row by row, ``forward_split`` request once.

    Attributes:
        features: every feature of the data, the pruned ones (``tensor`` None) too.
        TOP: the parts of `flops` that stand for UMEC's "top MLP".
    """

    Config: ClassVar[type[RankerConfig]]
    TOP: ClassVar[tuple[str, ...]]

    def __init__(
        self, features: Sequence[FeatureSpec], config: RankerConfig, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.features = tuple(features)
        self.config = config
        live = sorted((f for f in features if not f.pruned), key=lambda f: f.start)
        request = [f for f in live if f.request_side]
        candidate = [f for f in live if not f.request_side]
        if not candidate:
            raise ConfigError("a ranker needs a feature with side = 'item': none is left")
        self.request = Side("request", request, 0, config, generator)
        first_row = self.request.tables[-1].stop if self.request.tables else 0
        self.candidate = Side("candidate", candidate, first_row, config, generator)
        tables = self.request.tables + self.candidate.tables
        self.table = _embedding(tables, config.dim, generator)

    @property
    def fields(self) -> tuple[Field, ...]:
        """The request side's fields, then the candidates'."""
        return (*self.request.fields, *self.candidate.fields)

    def request_fields(self, inputs: Inputs) -> Tensor:
        """(R, F_r, D)."""
        fields: Tensor = self.request(self.table, inputs.request_numeric, inputs.request_ids)
        return fields

    def candidate_fields(self, inputs: Inputs) -> Tensor:
        """(N, F_c, D)."""
        fields: Tensor = self.candidate(self.table, inputs.candidate_numeric, inputs.candidate_ids)
        return fields

    @abstractmethod
    def forward(self, inputs: Inputs) -> Tensor:
        """Logits (N,): the request's rows repeated, everything computed per row."""

    @abstractmethod
    def forward_split(self, inputs: Inputs) -> Tensor:
        """The same logits, the request's part computed once and broadcast as late as it can be."""

    @abstractmethod
    def prunable(self) -> Prunable:
        """What a method may remove."""

    @abstractmethod
    def plan(self, keep: Keep) -> SlimPlan:
        """How to build the ranker that has only what ``keep`` names."""

    @abstractmethod
    def top_flops(self, sizes: Mapping[str, float]) -> Parts:
        """FLOPs of the parts after the fields; ``sizes`` as `flops_at`'s."""

    @abstractmethod
    def hidden(self) -> tuple[Hidden, ...]:
        """Every layer of neurons that can be slimmed, the bottom MLPs' included."""

    def sizes(self, keep: Keep | None = None) -> dict[str, float]:
        """Counts that the FLOPs depend on: ``fields``, numeric fields by side, hidden widths."""
        names = set(keep.fields) if keep else {field.name for field in self.fields}
        live = [field for field in self.fields if field.name in names]
        counts: dict[str, float] = {"fields": len(live)}
        for side in (self.request, self.candidate):
            counts[f"{side.name}_numeric"] = sum(
                field.numeric and field.request == (side.name == "request") for field in live
            )
        for layer in self.hidden():
            kept = keep.hidden.get(layer.name) if keep else None
            counts[layer.name] = layer.width if kept is None else len(kept)
        return counts

    def flops_at(self, sizes: Mapping[str, float]) -> Parts:
        """FLOPs by part for one candidate row, as a function of real-valued sizes."""
        return self._bottom_flops(sizes) | self.top_flops(sizes)

    def flops(self) -> dict[str, int]:
        """FLOPs by part for one candidate row, of what is really there."""
        return {part: round(count) for part, count in self.flops_at(self.sizes()).items()}

    def widths(self) -> dict[str, tuple[int, ...]]:
        """Hidden widths by MLP, for the card."""
        found: dict[str, tuple[int, ...]] = {}
        for layer in self.hidden():
            mlp = layer.name.rpartition(".")[0]
            found[mlp] = (*found.get(mlp, ()), layer.width)
        return found

    def _bottom_flops(self, sizes: Mapping[str, float]) -> Parts:
        parts: Parts = {}
        for side in (self.request, self.candidate):
            if side.bottom is None:
                continue
            hidden = [sizes[layer.name] for layer in side.bottom.hidden(f"bottom_{side.name}")]
            widths = (len(side.numeric), *hidden, self.config.dim)
            parts[f"bottom_{side.name}"] = sizes[f"{side.name}_numeric"] * mlp_flops(widths)
        return parts

    def bottom_hidden(self) -> tuple[Hidden, ...]:
        """The hidden layers of the bottom MLPs."""
        sides = (self.request, self.candidate)
        return tuple(h for s in sides if s.bottom for h in s.bottom.hidden(f"bottom_{s.name}"))

    def field_slices(self, keep: Keep) -> Slices:
        """What stays of the fields' own parameters: table rows and bottom MLPs."""
        plan: dict[str, tuple[Index, Index]] = {}
        rows: list[Tensor] = []
        for side in (self.request, self.candidate):
            for feature, table in zip(side.embedded, side.tables, strict=True):
                if feature.name in keep.fields:
                    rows.append(torch.arange(table.start, table.stop))
            if side.bottom is not None and f"{side.name}_numeric" in keep.fields:
                prefix, name = f"{side.name}.bottom", f"bottom_{side.name}"
                plan |= side.bottom.slices(prefix, name, keep, columns=None)
        plan["table.weight"] = (torch.cat(rows) if rows else torch.empty(0).long(), None)
        return plan

    def kept_features(self, keep: Keep) -> tuple[FeatureSpec, ...]:
        """All features, the kept ones packed anew without holes and the others marked pruned."""
        kept = {name for f in self.fields if f.name in keep.fields for name in f.features}
        starts: dict[InputName, int] = {}
        packed: dict[str, FeatureSpec] = {}
        for feature in sorted(self.features, key=lambda f: f.start):
            tensor = feature.tensor if feature.name in kept else None
            update: dict[str, object] = {"tensor": tensor, "start": 0}
            if tensor is not None:
                update["start"] = starts.get(tensor, 0)
                starts[tensor] = starts.get(tensor, 0) + feature.length
            packed[feature.name] = feature.model_copy(update=update)
        return tuple(packed[feature.name] for feature in self.features)

    def kept_bottoms(self, keep: Keep) -> dict[str, object]:
        """The config entries of the bottom MLPs after slimming."""
        widths = {
            side.name: kept_widths(side.bottom.hidden(f"bottom_{side.name}"), keep)
            for side in (self.request, self.candidate)
            if side.bottom is not None
        }
        return {
            "bottom": widths.get("request", self.config.bottom),
            "bottom_candidate": widths.get("candidate", self.config.bottom_candidate),
        }


def field_columns(ranker: Ranker, keep: Keep) -> Tensor:
    """Positions of the kept fields' columns in the concatenation of all fields."""
    dim = ranker.config.dim
    kept = [i for i, field in enumerate(ranker.fields) if field.name in keep.fields]
    return (torch.tensor(kept).unsqueeze(1) * dim + torch.arange(dim)).flatten()


def _embedding(tables: Sequence[range], dim: int, generator: torch.Generator) -> nn.Embedding:
    """All tables in one: U(±sqrt(1/rows)) each, rows OOV and MISSING zero."""
    weight = torch.empty(tables[-1].stop if tables else 0, dim)
    for table in tables:
        bound = (1 / len(table)) ** 0.5
        weight[table.start : table.stop].uniform_(-bound, bound, generator=generator)
        weight[table.start + OOV] = 0.0
        weight[table.start + MISSING] = 0.0
    # Sparse gradients: a step touches the batch's rows only, however large the table is.
    return nn.Embedding(weight.shape[0], dim, _weight=weight, sparse=True)
