"""What every ranker shares: fields in, one logit a candidate out, and what can be slimmed.

Words and shapes are those of `compress.rankers.structure`.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Final, Self, cast, get_args

import torch
from torch import Tensor, nn

from compress.config import ConfigError, nearest
from compress.rankers.layers import Mlp, kept_widths, mlp_layers
from compress.rankers.sides import Place, Side, make_tables, places_of, table_weight
from compress.rankers.structure import (
    Cut,
    Field,
    Hidden,
    Inputs,
    Keep,
    Layer,
    Prunable,
    RankerConfig,
    Sizes,
    Slices,
    SlimPlan,
)
from model_store.manifest import FeatureSpec, InputName

SIDES: Final = ("request", "candidate")
Parts = dict[str, float]


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
        places = places_of(embedded, config)
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
        self.tables = make_tables(list(places.values()), generator)

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
            cut = Cut(table_weight(field.width), torch.arange(rows.start, rows.stop), columns)
            name = table_weight(len(dims))
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
