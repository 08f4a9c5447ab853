"""What every ranker shares: fields in, one logit a candidate out, and what can be slimmed.

A *field* is one vector: an embedding (pooled, for a multi-valued feature), or the output of a
side's bottom MLP over all its numeric features (the papers' "group 0"). Its width is ``dim`` unless
``widths`` says another; embeddings of one width share a table. The request side's fields come
first, so whatever a layer does for the request is a slice of its weights.

Shapes: R request rows (1 or N), N candidates, B = N rows in training, F fields, D a width.
"""

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Annotated, ClassVar, Final, Literal, Self, cast, get_args

import torch
from pydantic import Field as Option
from torch import Tensor, nn
from torch.nn import functional

from compress.config import ConfigError, Frozen, nearest
from compress.tables import look_up
from model_store.manifest import FeatureSpec, InputName, NumericEncoding

OOV: Final = 0
MISSING: Final = 1
SIDES: Final = ("request", "candidate")

Index = Tensor | None  # int64 positions that stay, in their new order; None: all of them
Parts = dict[str, float]
Width = Annotated[int, Option(gt=0, le=65_536)]  # of a hidden layer
Dim = Annotated[int, Option(gt=0, le=4096)]  # of a field's vector


class RankerConfig(Frozen):
    """Options of all rankers.

    Attributes:
        dim: width of a field's vector.
        widths: of the fields that have another, by name.
        bottom: hidden widths of the bottom MLPs.
        bottom_candidate: of the candidate side's, where it has others.
    """

    dim: Dim = 16
    widths: Mapping[str, Dim] = {}
    bottom: tuple[Width, ...] = (512, 256, 64)
    bottom_candidate: tuple[Width, ...] | None = None
    dropout: float = Option(default=0.0, ge=0.0, lt=1.0)

    def bottom_of(self, side: str) -> tuple[int, ...]:
        """Hidden widths of one side's bottom MLP (after slimming the two sides may differ)."""
        if side == "candidate" and self.bottom_candidate is not None:
            return self.bottom_candidate
        return self.bottom

    def width_of(self, field: str) -> int:
        """Width of a field's vector."""
        return self.widths.get(field, self.dim)


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
    """One vector among a ranker's fields.

    Attributes:
        features: the features it is made of (several for the numeric field, otherwise one).
        numeric: whether it is a bottom MLP's output.
        width: of the vector.
        rows: of its table; 0 for a numeric field.
    """

    name: str
    features: tuple[str, ...]
    request: bool
    numeric: bool
    width: int
    rows: int


@dataclass(frozen=True, slots=True)
class Keep:
    """What stays: fields by name, and positions in them and in hidden layers.

    Attributes:
        hidden: neurons by layer; layers not named stay whole.
        dims: positions of a field's vector, by field; fields not named stay whole.
    """

    fields: tuple[str, ...]
    hidden: Mapping[str, tuple[int, ...]]
    dims: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    def dims_of(self, field: Field) -> tuple[int, ...]:
        """The positions that stay of a field that stays."""
        return self.dims.get(field.name, tuple(range(field.width)))


@dataclass(frozen=True, slots=True)
class Sizes:
    """All that a ranker's costs depend on.

    Attributes:
        widths: of the fields' vectors, by field; 0: the field is gone.
        hidden: neurons by layer.
    """

    widths: Mapping[str, int]
    hidden: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer as its costs see it.

    Attributes:
        part: of the ranker, as `Ranker.flops` names them.
        once: whether serving computes it once a request, not once a candidate.
    """

    part: str
    inputs: int
    outputs: int
    bias: bool = True
    once: bool = False

    @property
    def flops(self) -> int:
        """The papers' count: two a weight, for multiplying and adding, and one a bias."""
        return (2 * self.inputs + self.bias) * self.outputs

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return (self.inputs + self.bias) * self.outputs


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
        aligned: whether positions mean the same in all fields, as in inner products. Then a
            position is what makes it, and fields keep the first ones of an order that they share.
            Else a field's columns are the positions of its vector, in order, and each field keeps
            those that it likes.
    """

    fields: tuple[Field, ...]
    readers: tuple[Reader, ...]
    membership: Tensor
    hidden: tuple[Hidden, ...]
    least: int = 1
    aligned: bool = False


@dataclass(frozen=True, slots=True)
class Cut:
    """What stays of a parameter."""

    source: str
    rows: Index = None
    columns: Index = None


Slices = Mapping[str, tuple[Cut, ...]]  # new parameter -> the cuts that it is stacked from


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


@dataclass(frozen=True, slots=True)
class Place:
    """Which rows of the table of its width belong to a feature."""

    feature: FeatureSpec
    width: int
    rows: range


def _places(features: Sequence[FeatureSpec], config: RankerConfig) -> dict[str, Place]:
    """Where the rows of embedded features lie, tables being filled in this order."""
    ends: dict[int, int] = {}
    places = {}
    for feature in features:
        width = config.width_of(feature.name)
        start = ends.get(width, 0)
        ends[width] = start + table_rows(feature)
        places[feature.name] = Place(feature, width, range(start, ends[width]))
    return places


class Side(nn.Module):
    """The fields of one side: the numeric one first, then a vector per id feature."""

    offsets: Tensor

    def __init__(
        self,
        name: Literal["request", "candidate"],
        numeric: Sequence[FeatureSpec],
        places: Sequence[Place],
        config: RankerConfig,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.name = name
        self.numeric, self.places = list(numeric), list(places)
        offsets = [place.rows.start for place in places for _ in range(place.feature.length)]
        self.register_buffer("offsets", torch.tensor(offsets, dtype=torch.int32), persistent=False)
        self.bottom: Mlp | None = None
        if self.numeric:
            sizes = (len(self.numeric), *config.bottom_of(name), self._numeric_width(config))
            self.bottom = Mlp(sizes, generator)

    def _numeric_width(self, config: RankerConfig) -> int:
        return config.width_of(f"{self.name}_numeric")

    @property
    def fields(self) -> list[Field]:
        """Its fields, in the order of their vectors."""
        request = self.name == "request"
        found = []
        if self.bottom is not None:
            names, last = tuple(f.name for f in self.numeric), self.bottom.layers[-1]
            width = cast("nn.Linear", last).out_features
            found.append(Field(f"{self.name}_numeric", names, request, True, width, 0))
        for place in self.places:
            name = place.feature.name
            found.append(Field(name, (name,), request, False, place.width, len(place.rows)))
        return found

    @property
    def width(self) -> int:
        """Of all its fields' vectors together."""
        return sum(field.width for field in self.fields)

    def forward(self, tables: nn.ModuleDict, numeric: Tensor, ids: Tensor) -> list[Tensor]:
        """(rows, P) and (rows, C) -> runs of neighbouring fields of one width, (rows, k, D)."""
        parts = [] if self.bottom is None else [self.bottom(numeric).unsqueeze(1)]
        return [*parts, *self._embedded(tables, ids)] if self.places else parts

    def _embedded(self, tables: nn.ModuleDict, ids: Tensor) -> Iterator[Tensor]:
        rows, column = ids + self.offsets, 0
        for width, grouped in groupby(self.places, key=lambda place: place.width):
            run = list(grouped)
            blocks = [place.rows.start for place in run for _ in range(place.feature.length)]
            end = column + len(blocks)
            vectors = look_up(tables[str(width)], rows[:, column:end], blocks)
            yield from _pooled([place.feature for place in run], vectors, ids[:, column:end])
            column = end


def flat(parts: Sequence[Tensor]) -> Tensor:
    """Runs of fields (rows, k, D) -> their concatenation (rows, sum of widths)."""
    return parts[0].flatten(1) if len(parts) == 1 else torch.cat([p.flatten(1) for p in parts], 1)


def _pooled(features: Sequence[FeatureSpec], vectors: Tensor, ids: Tensor) -> Iterator[Tensor]:
    # Runs of single-valued features pass as one slice; a multi-valued one pools its columns.
    column = run = 0
    for feature in features:
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
        if all(f.request_side for f in live):
            raise ConfigError("a ranker needs a feature with side = 'item': none is left")
        of_tensor = {name: [f for f in live if f.tensor == name] for name in get_args(InputName)}
        embedded = [*of_tensor["request_ids"], *of_tensor["candidate_ids"]]
        places = _places(embedded, config)
        numeric = [f"{side}_numeric" for side in SIDES if of_tensor[f"{side}_numeric"]]
        self._check_widths([*places, *numeric])
        self.request, self.candidate = (
            Side(
                name,
                of_tensor[f"{name}_numeric"],
                [places[f.name] for f in of_tensor[f"{name}_ids"]],
                config,
                generator,
            )
            for name in SIDES
        )
        self.tables = _tables(list(places.values()), generator)

    def _check_widths(self, fields: Sequence[str]) -> None:
        if unknown := sorted(set(self.config.widths).difference(fields)):
            raise ConfigError(
                f"ranker.widths: no fields {unknown}{nearest(unknown[0], fields)}; "
                f"there are {', '.join(sorted(fields))}"
            )

    @property
    def fields(self) -> tuple[Field, ...]:
        """The request side's fields, then the candidates'."""
        return (*self.request.fields, *self.candidate.fields)

    def sparse_tables(self) -> dict[str, Tensor]:
        """The tables whose gradients name rows, by parameter name."""
        return {
            f"tables.{name}.weight": table.weight
            for name, table in self.tables.named_modules()
            if isinstance(table, nn.Embedding)
        }

    def layers(self) -> list[nn.Parameter]:
        """All other parameters."""
        tables = self.sparse_tables()
        return [p for name, p in self.named_parameters() if name not in tables]

    def with_tables(self, make: Callable[[nn.Module, Sequence[Place]], nn.Module]) -> Self:
        """This ranker over other tables; all else is copied.

        Args:
            make: a table and the places of the fields in it -> the table in its stead.
        """
        places = [place for side in self.sides for place in side.places]
        tables = nn.ModuleDict(
            {
                width: make(table, [p for p in places if p.width == int(width)])
                for width, table in self.tables.items()
            }
        )
        return copy.deepcopy(self, {id(self.tables): tables})

    def request_fields(self, inputs: Inputs) -> list[Tensor]:
        """Runs of the request's fields of one width (R, k, D); none without any."""
        parts: list[Tensor] = self.request(self.tables, inputs.request_numeric, inputs.request_ids)
        return parts

    def candidate_fields(self, inputs: Inputs) -> list[Tensor]:
        """Runs of the candidates' fields of one width (N, k, D)."""
        parts: list[Tensor] = self.candidate(
            self.tables, inputs.candidate_numeric, inputs.candidate_ids
        )
        return parts

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
    def top_layers(self, sizes: Sizes) -> list[Layer]:
        """The layers after the fields, of a ranker of these sizes."""

    def other_flops(self, sizes: Sizes) -> Parts:
        """FLOPs of a candidate row that no layer has, by part."""
        del sizes
        return {}

    @abstractmethod
    def hidden(self) -> tuple[Hidden, ...]:
        """Every layer of neurons that can be slimmed, the bottom MLPs' included."""

    def sizes(self) -> Sizes:
        """Of this ranker, as it is."""
        widths = {field.name: field.width for field in self.fields}
        return Sizes(widths, {layer.name: layer.width for layer in self.hidden()})

    def layers_at(self, sizes: Sizes) -> list[Layer]:
        """All layers of a ranker of these sizes."""
        return [*self._bottom_layers(sizes), *self.top_layers(sizes)]

    def flops_at(self, sizes: Sizes) -> Parts:
        """FLOPs by part for one candidate row of a ranker of these sizes."""
        parts: Parts = {}
        for layer in self.layers_at(sizes):
            parts[layer.part] = parts.get(layer.part, 0) + layer.flops
        for part, count in self.other_flops(sizes).items():
            parts[part] = parts.get(part, 0) + count
        return parts

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

    def _bottom_layers(self, sizes: Sizes) -> Iterator[Layer]:
        for side in (self.request, self.candidate):
            part, width = f"bottom_{side.name}", sizes.widths.get(f"{side.name}_numeric", 0)
            if side.bottom is not None and width:
                hidden = [sizes.hidden[layer.name] for layer in side.bottom.hidden(part)]
                widths = (len(side.numeric), *hidden, width)
                yield from mlp_layers(part, widths, once=side is self.request)

    def bottom_hidden(self) -> tuple[Hidden, ...]:
        """The hidden layers of the bottom MLPs."""
        sides = (self.request, self.candidate)
        return tuple(h for s in sides if s.bottom for h in s.bottom.hidden(f"bottom_{s.name}"))

    def kept_fields(self, keep: Keep) -> list[Field]:
        """The fields that stay, in their new order: if widths change, equal ones stand together.

        So that each side looks up in each table once.
        """
        live = [field for field in self.fields if field.name in keep.fields]
        if not keep.dims:
            return live
        return sorted(live, key=lambda f: (not f.request, not f.numeric, len(keep.dims_of(f))))

    def field_slices(self, keep: Keep) -> Slices:
        """What stays of the fields' own parameters: table rows and bottom MLPs."""
        plan: dict[str, tuple[Cut, ...]] = {}
        places = {p.feature.name: p for side in self.sides for p in side.places}
        for field in self.kept_fields(keep):
            dims = keep.dims_of(field)
            columns = None if dims == tuple(range(field.width)) else torch.tensor(dims)
            if field.numeric:
                side = self.request if field.request else self.candidate
                bottom, name = cast("Mlp", side.bottom), f"bottom_{side.name}"
                plan |= bottom.slices(f"{side.name}.bottom", name, keep, None, columns)
                continue
            rows = places[field.name].rows
            cut = Cut(_table(field.width), torch.arange(rows.start, rows.stop), columns)
            name = _table(len(dims))
            plan[name] = (*plan.get(name, ()), cut)
        return plan

    @property
    def sides(self) -> tuple[Side, Side]:
        """The request's, then the candidates'."""
        return self.request, self.candidate

    def kept_features(self, keep: Keep) -> tuple[FeatureSpec, ...]:
        """All features, the kept ones packed anew without holes and the others marked pruned."""
        placed = {feature.name: feature for feature in self.features}
        starts: dict[InputName, int] = {}
        packed: dict[str, FeatureSpec] = {}
        for field in self.kept_fields(keep):
            for name in field.features:
                feature = placed[name]
                tensor = cast("InputName", feature.tensor)
                start = starts.get(tensor, 0)
                packed[name] = feature.model_copy(update={"start": start})
                starts[tensor] = start + feature.length
        gone = {"tensor": None, "start": 0}
        return tuple(packed.get(f.name) or f.model_copy(update=gone) for f in self.features)

    def kept_config(self, keep: Keep) -> dict[str, object]:
        """The config's entries that all rankers have, after slimming."""
        hidden = {
            side.name: kept_widths(side.bottom.hidden(f"bottom_{side.name}"), keep)
            for side in self.sides
            if side.bottom is not None
        }
        widths = {f.name: len(keep.dims_of(f)) for f in self.kept_fields(keep)}
        return {
            "bottom": hidden.get("request", self.config.bottom),
            "bottom_candidate": hidden.get("candidate", self.config.bottom_candidate),
            "widths": {name: width for name, width in widths.items() if width != self.config.dim},
        }


def field_columns(ranker: Ranker, keep: Keep) -> Tensor:
    """Where the columns that stay are in the concatenation of all fields, in their new order."""
    starts, end = {}, 0
    for field in ranker.fields:
        starts[field.name], end = end, end + field.width
    kept = [
        starts[field.name] + dim
        for field in ranker.kept_fields(keep)
        for dim in keep.dims_of(field)
    ]
    return torch.tensor(kept, dtype=torch.int64)


def _table(width: int) -> str:
    return f"tables.{width}.weight"


def _tables(places: Sequence[Place], generator: torch.Generator) -> nn.ModuleDict:
    """A table for each width."""
    widths = sorted({place.width for place in places})
    return nn.ModuleDict(
        {str(w): _embedding([p.rows for p in places if p.width == w], w, generator) for w in widths}
    )


def _embedding(tables: Sequence[range], dim: int, generator: torch.Generator) -> nn.Embedding:
    """Tables of one width in one: U(±sqrt(1/rows)) each, rows OOV and MISSING zero."""
    weight = torch.empty(tables[-1].stop, dim)
    for table in tables:
        bound = (1 / len(table)) ** 0.5
        weight[table.start : table.stop].uniform_(-bound, bound, generator=generator)
        weight[table.start + OOV] = 0.0
        weight[table.start + MISSING] = 0.0
    # Sparse gradients: a step touches the batch's rows only, however large the table is.
    return nn.Embedding(weight.shape[0], dim, _weight=weight, sparse=True)
