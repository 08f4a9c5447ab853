"""DCN-V2 (Wang et al. 2021, arXiv 2008.13535): explicit crosses beside or below an MLP.

With x_0 the concatenated fields, one cross layer is

    x_{l+1} = x_0 ⊙ (W_l·x_l + b_l) + x_l          (low rank: W_l = U_l·V_l)

``parallel`` feeds [x_L | MLP(x_0)] to the head, ``stacked`` feeds MLP(x_L).
"""

from collections.abc import Iterator, Sequence
from typing import Literal, Self, cast

import torch
from pydantic import Field as Option
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional

from compress.rankers.base import Parts, Ranker, field_columns
from compress.rankers.layers import (
    Mlp,
    added_linear,
    kept_rows,
    kept_widths,
    linear,
    linear_slices,
    mlp_layers,
    repeated,
    rowwise,
    split_layer,
)
from compress.rankers.sides import flat
from compress.rankers.structure import (
    Cut,
    Hidden,
    Inputs,
    Keep,
    Layer,
    Prunable,
    RankerConfig,
    Reader,
    Sizes,
    SlimPlan,
    Width,
)
from model_store.manifest import FeatureSpec


class DcnV2Config(RankerConfig):
    """DCN-V2's options.

    Attributes:
        rank: of the crosses' matrices, one for all or one each; None: full rank.
    """

    crosses: int = Option(default=2, gt=0, le=64)
    rank: Width | tuple[Width, ...] | None = None
    deep: tuple[Width, ...] = Option(default=(512, 256), min_length=1)
    structure: Literal["parallel", "stacked"] = "parallel"

    @property
    def ranks(self) -> tuple[int | None, ...]:
        """Of each cross."""
        return self.rank if isinstance(self.rank, tuple) else (self.rank,) * self.crosses

    @model_validator(mode="after")
    def _rank_each(self) -> Self:
        if len(self.ranks) != self.crosses:
            raise ValueError(f"rank: expected one for each of {self.crosses} crosses")
        return self


class Cross(nn.Module):
    """One cross layer's W·x + b, W full or of low rank."""

    def __init__(self, width: int, rank: int | None, generator: torch.Generator) -> None:
        super().__init__()
        self.down = linear(width, rank, generator) if rank else None
        self.up = linear(rank or width, width, generator)

    @property
    def reader(self) -> nn.Linear:
        """The layer that reads the fields."""
        return self.down or self.up

    def forward(self, x: Tensor) -> Tensor:
        """(N, d) -> (N, d)."""
        out: Tensor = self.up(x if self.down is None else self.down(x))
        return out


class DcnV2(Ranker):
    """Fields → crosses and a deep part → head."""

    Config = DcnV2Config
    TOP = ("cross", "deep", "head")

    config: DcnV2Config

    def __init__(
        self, features: Sequence[FeatureSpec], config: DcnV2Config, generator: torch.Generator
    ) -> None:
        super().__init__(features, config, generator)
        self.request_columns = self.request.width
        width = self.request_columns + self.candidate.width
        self.crosses = nn.ModuleList(Cross(width, rank, generator) for rank in config.ranks)
        self.deep = Mlp((width, *config.deep), generator, dropout=config.dropout)
        crossed = width if config.structure == "parallel" else 0
        self.head = linear(crossed + config.deep[-1], 1, generator)

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits (N,), everything computed per row."""
        inputs = repeated(inputs)
        request, candidate = self.request_fields(inputs), self.candidate_fields(inputs)
        x = x0 = flat([*request, *candidate])  # (N, d)
        for cross in self.crosses:
            x = x0 * cross(x) + x
        return self._head(x, self.deep.first(x0 if self._parallel else x))

    def forward_split(self, inputs: Inputs) -> Tensor:
        """The request's columns of the first cross and of the first deep layer, once."""
        request, candidate = self.request_fields(inputs), self.candidate_fields(inputs)
        if not request:
            return self.forward(inputs)
        u, c = flat(request), flat(candidate)  # (R, d_u), (N, d_c)
        first = cast("Cross", self.crosses[0])
        w = self._split(first.reader, u, c)
        w = w if first.down is None else first.up(w)
        # x_1 = x_0 ⊙ w + x_0 = x_0 ⊙ (w + 1)
        x = self._times_x0(u, c, w + 1.0)
        for cross in list(self.crosses)[1:]:
            x = self._times_x0(u, c, cross(x)) + x
        deep = self.deep.first
        return self._head(x, self._split(deep, u, c) if self._parallel else deep(x))

    @property
    def _parallel(self) -> bool:
        return self.config.structure == "parallel"

    def _split(self, layer: nn.Linear, u: Tensor, c: Tensor) -> Tensor:
        once = functional.linear(u, layer.weight[:, : self.request_columns], layer.bias)
        return added_linear(once, c, layer.weight[:, self.request_columns :])

    def _times_x0(self, u: Tensor, c: Tensor, w: Tensor) -> Tensor:
        request = rowwise("Mul", u, w[:, : self.request_columns])
        return torch.cat((request, c * w[:, self.request_columns :]), 1)  # (N, d)

    def _head(self, crossed: Tensor, deep_first: Tensor) -> Tensor:
        deep = self.deep.after_first(deep_first)
        x = torch.cat((crossed, deep), 1) if self._parallel else deep
        logits: Tensor = self.head(x).squeeze(-1)
        return logits

    def hidden(self) -> tuple[Hidden, ...]:
        """Bottom MLPs' hidden layers, low ranks, and the deep part's; the head reads its last."""
        return (*self.bottom_hidden(), *self._ranks(), *self._deep_hidden())

    def _ranks(self) -> Iterator[Hidden]:
        for position, rank in enumerate(self.config.ranks):
            if rank is not None:
                up = cast("Cross", self.crosses[position]).up
                yield Hidden(f"cross.{position}", rank, Reader(up))

    def _deep_hidden(self) -> tuple[Hidden, ...]:
        last = self.config.deep[-1]
        reader = Reader(self.head, self.head.in_features - last)
        name = f"deep.{len(self.config.deep) - 1}"
        return (*self.deep.hidden("deep"), Hidden(name, last, reader))

    def prunable(self) -> Prunable:
        """A field's group is its columns in every layer that reads the fields."""
        readers = [Reader(cast("Cross", cross).reader) for cross in self.crosses]
        readers.append(Reader(self.deep.first))
        if self._parallel:
            readers.append(Reader(self.head))
        widths = torch.tensor([field.width for field in self.fields])
        membership = torch.eye(len(self.fields)).repeat_interleave(widths, 1)
        return Prunable(self.fields, tuple(readers), membership, self.hidden())

    def top_layers(self, sizes: Sizes) -> list[Layer]:
        """Crosses, deep part and head."""
        once = sum(sizes.widths[field.name] for field in self.request.fields)
        each = sum(sizes.widths[field.name] for field in self.candidate.fields)
        width = once + each
        layers: list[Layer] = []
        for position, full in enumerate(self.config.ranks):
            rank = None if full is None else sizes.hidden[f"cross.{position}"]
            # The first cross reads x_0 and splits; from then on every row is another.
            split = once if position == 0 else 0
            layers += split_layer("cross", split, width - split, rank or width)
            layers += mlp_layers("cross", (rank, width)) if rank else []
        deep = [sizes.hidden[layer.name] for layer in self._deep_hidden()]
        split = once if self._parallel else 0
        layers += split_layer("deep", split, width - split, deep[0])
        layers += mlp_layers("deep", deep)
        return [*layers, Layer("head", deep[-1] + (width if self._parallel else 0), 1)]

    def other_flops(self, sizes: Sizes) -> Parts:
        """The crosses' ⊙ and +."""
        return {"cross": self.config.crosses * 2 * sum(sizes.widths.values())}

    def plan(self, keep: Keep) -> SlimPlan:
        """Kept fields' rows and columns everywhere, kept neurons of the deep part."""
        columns = field_columns(self, keep)
        slices: dict[str, tuple[Cut, ...]] = {**self.field_slices(keep)}
        ranks: list[int] = []
        for position, full in enumerate(self.config.ranks):
            prefix = f"crosses.{position}"
            if full is not None:
                rank = kept_rows(keep, f"cross.{position}")
                ranks.append(full if rank is None else len(rank))
                slices |= linear_slices(f"{prefix}.down", rank, columns)
                slices |= linear_slices(f"{prefix}.up", columns, rank)
            else:
                slices |= linear_slices(f"{prefix}.up", columns, columns)
        slices |= self.deep.slices("deep", "deep", keep, columns)
        slices |= linear_slices("head", None, self._head_columns(keep, columns))
        update = {
            **self.kept_config(keep),
            "deep": kept_widths(self._deep_hidden(), keep),
            "rank": tuple(ranks) or None,
        }
        return SlimPlan(self.kept_features(keep), self.config.model_copy(update=update), slices)

    def _head_columns(self, keep: Keep, columns: Tensor) -> Tensor:
        last = self._deep_hidden()[-1]
        kept = torch.tensor(keep.hidden.get(last.name, range(last.width)), dtype=torch.int64)
        deep = kept + last.reader.start
        return torch.cat((columns, deep)) if self._parallel else deep
