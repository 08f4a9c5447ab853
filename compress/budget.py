"""What a compressed ranker may cost: FLOPs, bytes, time, input fields, or all together.

Each resource r that a budget names becomes a bound R_r(sizes) ≤ budget_r, both as shares of the
dense ranker's, with a price of its own (UMEC's z, §1.2, once for every r). What a ranker of some
sizes would take is counted by the ranker itself for FLOPs (so R is exactly what slimming achieves;
no formula is kept twice) and for fields, and told by `Pricing` for the rest.

| paper | here |
|---|---|
| F(s) | `Ranker.flops_at` |
| R(s) | `Bound.share` |
| budget | `Bound.limit` |
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from pydantic import Field, field_validator, model_validator

from compress.config import ConfigError, Frozen
from compress.rankers.base import Ranker
from compress.rankers.structure import Sizes

FlopsOf = Literal["all", "mlp", "top_mlp"]

TIMES_WITHIN: Final = 0.1  # how far told times may be off, in the median of rankers not seen before
UNITS: Final = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
SIZE: Final = re.compile(rf"(\d+(?:\.\d+)?) ?({'|'.join(UNITS)})")


class Budget(Frozen):
    """Bounds to stay under, at least one.

    Attributes:
        flops: share of the dense ranker's, as the method counts them.
        bytes: of the whole bundle on disk: a size as "8MiB", or a share of the dense one's.
        p50_us: median microseconds of a request, as this machine takes them.
        fields: share of the dense ranker's, its numbers of one side being one field.
    """

    flops: float | None = Field(default=None, gt=0.0, le=1.0)
    bytes: float | str | None = None
    p50_us: float | None = Field(default=None, gt=0.0)
    fields: float | None = Field(default=None, gt=0.0, le=1.0)

    @field_validator("bytes")
    @classmethod
    def _is_size(cls, value: float | str | None) -> float | str | None:
        if isinstance(value, str) and not SIZE.fullmatch(value):
            raise ValueError(f'expected a size like "8MiB" (units: {", ".join(UNITS)})')
        if isinstance(value, float | int) and not 0.0 < value <= 1.0:
            meant = f'; did you mean "{value:.0f}B"?' if value > 1 and value == int(value) else ""
            raise ValueError(f'expected a share in (0, 1], or a size like "8MiB"{meant}')
        return value

    @model_validator(mode="after")
    def _names_something(self) -> "Budget":
        if all(limit is None for _, limit in self):
            raise ValueError(f"expected at least one of {', '.join(type(self).model_fields)}")
        return self


class Pricing(Protocol):
    """What a ranker of some sizes takes beside FLOPs."""

    def bytes(self, sizes: Sizes) -> float:
        """Of its bundle on disk."""

    def dense_bytes(self) -> float:
        """Of the dense ranker's bundle, which may keep what is left of it in more bytes."""

    def p50_us(self, sizes: Sizes) -> float:
        """Median microseconds of a request."""


@dataclass(frozen=True, slots=True)
class Bound:
    """R(sizes) ≤ limit, as shares of the dense ranker's.

    Attributes:
        name: of the resource, as a card lists it.
        key: of the budget.
        dense: what the dense ranker takes as it lies there, in the resource's unit.
        used: sizes -> what a ranker of these sizes takes.
    """

    name: str
    key: str
    limit: float
    dense: float
    used: Callable[[Sizes], float]

    def share(self, sizes: Sizes) -> float:
        """R."""
        return self.used(sizes) / self.dense


def bounds(
    ranker: Ranker, budget: Budget, flops_of: FlopsOf, pricing: Pricing | None
) -> tuple[Bound, ...]:
    """One for each resource that the budget names.

    Raises:
        ConfigError: it names one that cannot be told here.
    """
    return tuple(_bounds(ranker, budget, flops_of, pricing))


def _bounds(
    ranker: Ranker, budget: Budget, flops_of: FlopsOf, pricing: Pricing | None
) -> Iterator[Bound]:
    dense = ranker.sizes()
    if budget.flops is not None:
        used = flops_counter(ranker, flops_of)
        yield Bound(flops_of, "flops", budget.flops, used(dense), used)
    if budget.fields is not None:
        yield Bound("fields", "fields", budget.fields, _live(dense), _live)
    priced = {"bytes": budget.bytes, "p50_us": budget.p50_us}
    for key, limit in priced.items():
        if limit is None:
            continue
        if pricing is None:
            raise ConfigError(f"method.budget.{key}: there is no table of costs to tell it by")
        used = getattr(pricing, key)
        # Of the bundle as it is: packed files and small rows alone leave less than all of that.
        amount = pricing.dense_bytes() if key == "bytes" else used(dense)
        share = limit if key == "bytes" and not isinstance(limit, str) else share_of(limit, amount)
        yield Bound(key, key, share, amount, used)


def _live(sizes: Sizes) -> float:
    """How many fields are left."""
    return float(sum(width > 0 for width in sizes.widths.values()))


def flops_counter(ranker: Ranker, flops_of: FlopsOf) -> Callable[[Sizes], float]:
    """F: FLOPs of a candidate row: ``top_mlp`` (the paper's), ``mlp`` (bottoms too), or ``all``."""
    bottoms = {"bottom_request", "bottom_candidate"}
    counted = {"top_mlp": set(ranker.TOP), "mlp": bottoms | set(ranker.TOP), "all": None}[flops_of]

    def used(sizes: Sizes) -> float:
        parts = ranker.flops_at(sizes).items()
        return sum(flops for part, flops in parts if counted is None or part in counted)

    return used


def share_of(limit: float | str, dense: float) -> float:
    """A limit, in the resource's unit or as a size, as a share of what the dense one takes."""
    if isinstance(limit, str):
        number, unit = SIZE.fullmatch(limit).groups()  # type: ignore[union-attr]  # a Budget's
        limit = float(number) * UNITS[unit]
    return min(1.0, limit / dense)
