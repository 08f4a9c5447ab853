"""R: the share of the dense ranker's FLOPs that is left (UMEC §1.4's resource function).

With d_l the widths of the layers counted (d_0 of the concatenated fields, `dim` each),

    F = Σ_l (2·d_l·d_{l+1} + d_{l+1})        R = F(sizes left) / F(sizes of the dense ranker)

F is the ranker's own `flops_at`, so R is exactly what slimming achieves; no formula is kept twice.

| paper | here |
|---|---|
| F(s) | ``Resource.flops`` |
| R(s) | ``Resource.ratio`` |
| ∂R/∂s | ``Resource.slope`` |
"""

from collections.abc import Mapping
from typing import Final, Literal

from compress.rankers.base import Ranker

ResourceName = Literal["top_mlp", "mlp", "all"]

_H: Final = 0.5


class Resource:
    """What a budget counts: ``top_mlp`` (the paper's), ``mlp`` (bottoms too), or ``all`` parts."""

    def __init__(self, ranker: Ranker, name: ResourceName) -> None:
        self.name = name
        self._ranker = ranker
        parts = set(ranker.flops_at(ranker.sizes()))
        bottoms = {"bottom_request", "bottom_candidate"} & parts
        self._parts = {"top_mlp": set(ranker.TOP), "mlp": bottoms | set(ranker.TOP), "all": parts}[
            name
        ]
        self._dense = self.flops(ranker.sizes())

    def flops(self, sizes: Mapping[str, float]) -> float:
        """F, for one candidate row."""
        counts = self._ranker.flops_at(sizes)
        return sum(counts[part] for part in self._parts)

    def ratio(self, sizes: Mapping[str, float]) -> float:
        """R."""
        return self.flops(sizes) / self._dense

    def slope(self, sizes: Mapping[str, float], name: str) -> float:
        """∂R/∂s of one size: with ceil and floor straight through, -∂R/∂size.

        F is at most quadratic in each size, so the central difference is the derivative itself.
        """
        above, below = dict(sizes), dict(sizes)
        above[name] += _H
        below[name] -= _H
        return (self.ratio(below) - self.ratio(above)) / (2 * _H)
