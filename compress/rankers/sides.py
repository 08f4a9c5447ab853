"""The fields of a request and of its candidates: tables of embeddings, and bottom MLPs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final, Literal, cast

import torch
from torch import Tensor, nn

from compress.config import ConfigError
from compress.rankers.layers import Mlp
from compress.rankers.structure import Field, RankerConfig
from compress.tables import look_up
from model_store.manifest import FeatureSpec, NumericEncoding

OOV: Final = 0
MISSING: Final = 1


@dataclass(frozen=True, slots=True)
class Place:
    """Which rows of the table of its width belong to a feature."""

    feature: FeatureSpec
    width: int
    rows: range


def places_of(features: Sequence[FeatureSpec], config: RankerConfig) -> dict[str, Place]:
    """Where the rows of embedded features lie, tables being filled in this order."""
    ends: dict[int, int] = {}
    places = {}
    for feature in features:
        width = config.width_of(feature.name)
        start = ends.get(width, 0)
        ends[width] = start + table_rows(feature)
        places[feature.name] = Place(feature, width, range(start, ends[width]))
    return places


def table_rows(feature: FeatureSpec) -> int:
    """Rows of the table of a feature that arrives as ids."""
    if isinstance(feature.encoding, NumericEncoding):
        raise ConfigError(f"{feature.name}: a numeric encoding cannot land in {feature.tensor}")
    return feature.encoding.rows


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


def table_weight(width: int) -> str:
    """The parameter that holds the vectors of that width."""
    return f"tables.{width}.weight"


def make_tables(places: Sequence[Place], generator: torch.Generator) -> nn.ModuleDict:
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
