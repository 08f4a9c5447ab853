"""DLRM (Naumov et al. 2019, arXiv 1906.00091): fields, an interaction, a top MLP.

``cat`` concatenates the fields (what UMEC slims in its paper). ``dot`` gives the top MLP the
numeric fields and the inner products of all pairs of fields::

    x = [request numeric | request-request pairs | candidate numeric | request-candidate pairs |
         candidate-candidate pairs]

so that what depends on the request alone leads, and is multiplied once per request. A field that
is narrower than others has zeros in the places of the positions that it lacks, which are the last.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from compress.rankers.base import Parts, Ranker
from compress.rankers.layers import (
    Mlp,
    added_linear,
    kept_widths,
    mlp_layers,
    repeated,
    rowwise,
    split_layer,
)
from compress.rankers.sides import flat
from compress.rankers.structure import (
    Field,
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

# A run of the top MLP's input columns, and the one or two fields it is made of.
Block = tuple[int, ...]


class DlrmConfig(RankerConfig):
    """DLRM's options; the defaults are the sizes UMEC used on Criteo."""

    interaction: Literal["cat", "dot"] = "cat"
    top: tuple[Width, ...] = (512, 256)


class Dlrm(Ranker):
    """Fields → concatenation or inner products → top MLP → logit."""

    Config = DlrmConfig
    TOP = ("top",)

    config: DlrmConfig

    def __init__(
        self, features: Sequence[FeatureSpec], config: DlrmConfig, generator: torch.Generator
    ) -> None:
        super().__init__(features, config, generator)
        self.widest = max(field.width for field in self.fields)
        self.blocks, self.request_blocks = _blocks(self.fields, config.interaction)
        widths = [self._width(block) for block in self.blocks]
        self.request_columns = sum(widths[: self.request_blocks])
        sizes = (sum(widths), *config.top, 1)
        self.top = Mlp(sizes, generator, last_relu=False, dropout=config.dropout)

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits (N,), everything computed per row."""
        inputs = repeated(inputs)
        request, candidate = self.request_fields(inputs), self.candidate_fields(inputs)
        parts = (*self._request_input(request), *self._candidate_input(request, candidate))
        logits: Tensor = self.top(torch.cat(parts, 1)).squeeze(-1)
        return logits

    def forward_split(self, inputs: Inputs) -> Tensor:
        """W·x + b = (W_u·u + b) once + W_c·c per candidate."""
        request, candidate = self.request_fields(inputs), self.candidate_fields(inputs)
        first = self.top.first
        x = torch.cat(self._candidate_input(request, candidate), 1)
        if self.request_columns:
            u = torch.cat(self._request_input(request), 1)
            once = functional.linear(u, first.weight[:, : self.request_columns], first.bias)
            h = added_linear(once, x, first.weight[:, self.request_columns :])  # (N, H)
        else:
            h = first(x)
        return self.top.after_first(h).squeeze(-1)

    def _request_input(self, request: list[Tensor]) -> list[Tensor]:
        if self.config.interaction == "cat":
            return [flat(request)] if request else []
        if not request:
            return []
        vectors = self._padded(request)  # (R, F_r, D)
        return [*_numeric(self.request.fields, request), *_own_pairs(vectors)]

    def _candidate_input(self, request: list[Tensor], candidate: list[Tensor]) -> list[Tensor]:
        if self.config.interaction == "cat":
            return [flat(candidate)]
        vectors = self._padded(candidate)  # (N, F_c, D)
        parts = _numeric(self.candidate.fields, candidate)
        if request:
            # (R, F_r, D) @ (N, D, F_c) -> (N, F_r, F_c)
            pairs = rowwise("MatMul", self._padded(request), vectors.transpose(1, 2))
            parts.append(pairs.flatten(1))
        return [*parts, *_own_pairs(vectors)]

    def _padded(self, parts: Sequence[Tensor]) -> Tensor:
        """Runs of fields (rows, k, width) -> (rows, F, D), zeros behind the narrower ones."""
        lacking = [self.widest - part.shape[2] for part in parts]
        pairs = zip(parts, lacking, strict=True)
        return torch.cat([functional.pad(p, (0, n)) if n else p for p, n in pairs], 1)

    def _width(self, block: Block) -> int:
        return self.fields[block[0]].width if len(block) == 1 else 1

    def hidden(self) -> tuple[Hidden, ...]:
        """Bottom and top MLPs' hidden layers."""
        return (*self.bottom_hidden(), *self.top.hidden("top"))

    def prunable(self) -> Prunable:
        """Field groups are columns of the top MLP's first layer."""
        shares = [
            torch.zeros(len(self.fields), self._width(block)).index_fill_(
                0, torch.tensor(block), 1 / len(block)
            )
            for block in self.blocks
        ]
        # An embedding alone makes no pair, and so no input for `dot`.
        least = 1 if self.config.interaction == "cat" else 2
        return Prunable(
            self.fields,
            (Reader(self.top.first),),
            torch.cat(shares, 1),
            self.hidden(),
            least,
            aligned=self.config.interaction == "dot",
        )

    def top_layers(self, sizes: Sizes) -> list[Layer]:
        """The top MLP."""
        hidden = [sizes.hidden[layer.name] for layer in self.top.hidden("top")]
        live = [field for field in self.fields if sizes.widths[field.name]]
        blocks, request = _blocks(live, self.config.interaction)
        columns = [sizes.widths[live[b[0]].name] if len(b) == 1 else 1 for b in blocks]
        once, each = sum(columns[:request]), sum(columns[request:])
        widths = [*hidden, 1]
        return [*split_layer("top", once, each, widths[0]), *mlp_layers("top", widths)]

    def other_flops(self, sizes: Sizes) -> Parts:
        """Inner products of the pairs that are used, two a number that both fields have."""
        if self.config.interaction == "cat":
            return {}
        widths = sorted(width for width in sizes.widths.values() if width)
        wider = range(len(widths) - 1, -1, -1)
        return {"interaction": sum(2 * w * n for w, n in zip(widths, wider, strict=True))}

    def plan(self, keep: Keep) -> SlimPlan:
        """The kept blocks' columns of the first layer, and the kept neurons after it.

        Raises:
            ValueError: inner products, and the positions that fields keep are not nested.
        """
        if self.config.interaction == "dot" and keep.dims:
            keep = _aligned(self.fields, keep)
        update = {**self.kept_config(keep), "top": kept_widths(self.top.hidden("top"), keep)}
        slices = self.top.slices("top", "top", keep, self._kept_columns(keep))
        return SlimPlan(
            self.kept_features(keep),
            self.config.model_copy(update=update),
            {**self.field_slices(keep), **slices},
        )

    def _kept_columns(self, keep: Keep) -> Tensor:
        widths = [self._width(block) for block in self.blocks]
        starts = dict(zip(map(frozenset, self.blocks), accumulate([0, *widths]), strict=False))
        fields = self.kept_fields(keep)
        places = [self.fields.index(field) for field in fields]
        columns: list[int] = []
        for block in _blocks(fields, self.config.interaction)[0]:
            start = starts[frozenset(places[i] for i in block)]
            dims = keep.dims_of(fields[block[0]]) if len(block) == 1 else (0,)
            columns += [start + dim for dim in dims]
        return torch.tensor(columns, dtype=torch.int64)


def _aligned(fields: Sequence[Field], keep: Keep) -> Keep:
    """The same positions in the order that all fields share: those that most of them keep first."""
    kept = {f.name: set(keep.dims_of(f)) for f in fields if f.name in keep.fields}
    found = Counter(dim for dims in kept.values() for dim in dims)
    order = sorted(found, key=lambda dim: (-found[dim], dim))
    dims = {name: tuple(order[: len(own)]) for name, own in kept.items()}
    if any(set(dims[name]) != own for name, own in kept.items()):
        raise ValueError("inner products: expected the positions that fields keep to be nested")
    return replace(keep, dims=dims)


def _blocks(fields: Sequence[Field], interaction: str) -> tuple[list[Block], int]:
    """The blocks of the top MLP's input in order, and how many of them are the request's."""
    request = [i for i, field in enumerate(fields) if field.request]
    candidate = [i for i, field in enumerate(fields) if not field.request]
    if interaction == "cat":
        return [(i,) for i in (*request, *candidate)], len(request)
    first: list[Block] = [*_numeric_blocks(fields, request), *_pairs(request)]
    second: list[Block] = [
        *_numeric_blocks(fields, candidate),
        *((i, j) for i in request for j in candidate),
        *_pairs(candidate),
    ]
    return first + second, len(first)


def _numeric_blocks(fields: Sequence[Field], positions: Sequence[int]) -> list[Block]:
    return [(i,) for i in positions if fields[i].numeric]


def _pairs(positions: Sequence[int]) -> list[Block]:
    return [(a, b) for n, a in enumerate(positions) for b in positions[n + 1 :]]


def _numeric(fields: Sequence[Field], parts: Sequence[Tensor]) -> list[Tensor]:
    # A side's numeric field, if it has one, is its first.
    return [parts[0].flatten(1)] if fields and fields[0].numeric else []


def _own_pairs(vectors: Tensor) -> list[Tensor]:
    """(rows, F, D) -> the inner products of its pairs, (rows, F·(F - 1)/2)."""
    count = vectors.shape[1]
    if count < 2:  # noqa: PLR2004  (a pair needs two)
        return []
    products = (vectors @ vectors.transpose(1, 2)).flatten(1)  # (rows, F·F)
    upper = torch.tensor([a * count + b for a in range(count) for b in range(a + 1, count)])
    return [products[:, upper.to(products.device)]]
