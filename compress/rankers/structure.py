"""What a ranker is made of: the fields, layers and neurons that methods count and take away.

A *field* is one vector: an embedding (pooled, for a multi-valued feature), or the output of a
side's bottom MLP over all its numeric features (the papers' "group 0"). Its width is ``dim`` unless
``widths`` says another; embeddings of one width share a table. The request side's fields come
first, so whatever a layer does for the request is a slice of its weights.

Shapes: R request rows (1 or N), N candidates, B = N rows in training, F fields, D a width.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field as Option
from torch import Tensor, nn

from compress.config import Frozen
from model_store.manifest import FeatureSpec

Index = Tensor | None  # int64 positions that stay, in their new order; None: all of them
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
