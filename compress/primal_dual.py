r"""UMEC's iteration (Shen et al., ICLR 2021) without a ranker: norms of groups in, s, y and z out.

    min_{W,s} max_{y≥0,z≥0}  loss(W) + Σ_l y_l·‖W_l‖²_{⌈s_l⌉} + Σ_r z_r·(R_r(s) - budget_r)

The paper has one resource; here each has its own price.

After W's gradient half, which is the optimizer's, an iteration is

    W      V / (1 + 2·η1·y_l) in the ⌈s_l⌉ least groups                      `prox`
    s_l    s_l - η2·(y_l·(energy of the next group to go) + Σ_r z_r·∂R_r/∂s_l)
                                                                             `s_gradient`, `s_step`
    y_l    max(0, y_l + η3·‖W_l‖²_{⌈s_l⌉})                                   `dual_step`
    z_r    max(0, z_r + η4·(R_r(s) - budget_r)), and no more than its cap    `dual_step`, `damped`

| symbol | here | is |
|---|---|---|
| ‖W_g‖² | ``energies`` | (G_l,) squared norms of a layer's groups, in the order in which they go |
| ‖W_l‖²_k | `bottom_s_norm` | the sum of the first k: the least, if all cost alike |
| s_l | ``s[l]`` | how many groups of layer l go; real |
| ⌈·⌉ | `removed` | groups that go now, whole ``unit``\ s of them |
| y_l, z_r | `DualVariables` | prices |
| R_r(s), budget_r | `Constraint` | shares of the resources that are left, and their bounds |
| η1 | ``lr`` of `prox` | step of W's proximal half |
| η2, η3, η4 | `Rates` | steps of s, y and z |

Which groups there are, in which order they go, and what they cost is `compress.methods.groups`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Vector = NDArray[np.float64]  # (L,), one entry a layer of groups; or (R,), one a resource
Matrix = NDArray[np.float64]  # (R, L)

TINY_PRICE = 1e-8
LEEWAY = 0.1


@dataclass(frozen=True, slots=True)
class DualVariables:
    """The prices: y (L,) of groups not yet zero, z (R,) of the resources; none negative."""

    y: Vector
    z: Vector


def removed(s: float, unit: int = 1) -> int:
    """⌈s⌉, in whole units.

    >>> removed(0.0), removed(0.1), removed(2.0), removed(2.1, unit=4)
    (0, 1, 2, 4)
    """
    return math.ceil(s / unit) * unit


def bottom(energies: Tensor, k: int) -> Tensor:
    """The k groups of least energy, least first; equals in order of position.

    >>> bottom(torch.tensor([4.0, 1.0, 9.0, 0.25]), 2).tolist()
    [3, 1]
    """
    return torch.argsort(energies, stable=True)[:k]


def bottom_s_norm(energies: Tensor, k: int) -> float:
    """‖W‖²_k: the sum of the squared norms of the first k groups; those that stay add nothing.

    >>> bottom_s_norm(torch.tensor([0.25, 1.0, 4.0, 9.0]), 2)
    1.25
    >>> bottom_s_norm(torch.tensor([0.25, math.inf]), 2)
    0.25
    """
    first = energies[:k]
    return float(first[first.isfinite()].sum())


def next_energy(energies: Tensor, k: int) -> float:
    """∂‖W‖²_⌈s⌉/∂s with ceil straight through: the (k + 1)-th, or the last if all go.

    >>> next_energy(torch.tensor([0.25, 1.0, 4.0, math.inf]), 2)
    4.0
    >>> next_energy(torch.tensor([0.25, 1.0, 4.0, math.inf]), 3)
    4.0
    """
    finite = int(energies.isfinite().sum())
    return float(energies[min(k, finite - 1)]) if finite else 0.0


def prox(columns: Tensor, price: float | Tensor, lr: float) -> Tensor:
    """argmin_W price·‖W‖² + ‖W - V‖²/(2·lr) = V / (1 + 2·lr·price).

    >>> prox(torch.tensor([[3.0, 3.0]]), price=torch.tensor([0.0, 5.0]), lr=0.1).tolist()
    [[3.0, 1.5]]
    """
    return columns / (1.0 + 2.0 * lr * price)


def s_gradient(duals: DualVariables, ahead: Vector, slope: Matrix) -> Vector:
    """∂/∂s_l: y_l·(energy of the next group to go) + Σ_r z_r·∂R_r/∂s_l."""
    return np.asarray(duals.y * ahead + duals.z @ slope)


def s_step(
    s: Vector, gradient: Vector, upper: Vector, scale: Vector, lr: float, *, full: bool
) -> Vector:
    """One projected step of s, at most ``lr`` of ``scale`` in each layer.

    At a bound, what points out of the box does not count. The rest is scaled to at most 1 in the
    maximum norm; if ``full``, so that the fastest growing layer takes a whole step, for else one
    layer that wavers between two counts would hold up all others.
    """
    g = gradient * scale
    g = np.where(s >= upper, np.maximum(g, 0.0), g)
    g = np.where(s <= 0.0, np.minimum(g, 0.0), g)
    fastest = float((-g).max(initial=0.0)) if full else max(1.0, float(np.abs(g).max(initial=0.0)))
    g = np.clip(g / (fastest or 1.0), -1.0, 1.0)
    return np.clip(s - lr * scale * g, 0.0, upper)


def dual_step(
    duals: DualVariables, violation: Vector, excess: Vector, y_lr: float, z_lr: float
) -> DualVariables:
    """Ascent in all prices, projected to ≥ 0.

    Args:
        duals: the prices.
        violation: (L,) ‖W_l‖²_{⌈s_l⌉}.
        excess: (R,) R_r(s) - budget_r.
        y_lr: η3.
        z_lr: η4.
    """
    y = np.maximum(duals.y + y_lr * violation, 0.0)
    return DualVariables(y, np.maximum(duals.z + z_lr * excess, 0.0))


@dataclass(frozen=True, slots=True)
class Ahead:
    """What lies before s.

    Attributes:
        energy: (L,) of the next group to go.
        after: (L,) of the one after it.
        slope: (R, L) ∂R/∂s.
        may_grow: (L,) whether s is below its bound.
    """

    energy: Vector
    after: Vector
    slope: Matrix
    may_grow: NDArray[np.bool_]


def damped(duals: DualVariables, ahead: Ahead, excess: Vector) -> DualVariables:
    """Cap each z by the prices per unit, y_l·(energy of a group to go)/(-∂R_r/∂s_l).

    Over its budget the cap is just over the dearest of the growing layers, by the group after the
    next, for else s would fall back from the next one wherever energies lie far apart: the layer
    whose groups cost most per unit hardly moves until the others have caught up. Within the budget
    it is the cheapest by the next group (shared among the resources): no layer grows, and z, which
    has piled up by then, cannot carry s past the budget.
    """
    z = duals.z.copy()
    for r, over in enumerate(excess > 0.0):
        counted = ahead.may_grow & (ahead.slope[r] < 0.0)
        if counted.any():
            energy = ahead.after if over else ahead.energy
            prices = (duals.y * energy + TINY_PRICE)[counted] / -ahead.slope[r][counted]
            z[r] = min(z[r], (1 + LEEWAY) * prices.max() if over else prices.min() / len(z))
    return DualVariables(duals.y, z)


@dataclass(frozen=True, slots=True)
class Rates:
    """Steps of s, y and z; see `compress.methods.umec.UmecConfig`."""

    s_lr: float
    y_lr: float
    z_lr: float
    full: bool
    damping: bool


@dataclass(frozen=True, slots=True)
class Constraint:
    """R_r(s) ≤ budget_r for all r, and the box of s.

    Attributes:
        budget: (R,).
        upper: (L,) s may not exceed.
        scale: (L,) what a step of s is measured in.
        counts: s -> ⌈s⌉.
        ratio: ⌈s⌉ -> R (R,).
        slope: ⌈s⌉ -> ∂R/∂s (R, L).
    """

    budget: Vector
    upper: Vector
    scale: Vector
    counts: Callable[[Vector], list[int]]
    ratio: Callable[[Sequence[int]], Vector]
    slope: Callable[[Sequence[int]], Matrix]


@dataclass(frozen=True, slots=True)
class Iterate:
    """s and the prices after a step, and what they were judged by.

    Attributes:
        violation: (L,) ‖W_l‖²_{⌈s_l⌉}.
        ratio: (R,) R(s).
    """

    s: Vector
    duals: DualVariables
    violation: Vector
    ratio: Vector


def advance(
    s: Vector,
    duals: DualVariables,
    energies: Sequence[Tensor],
    constraint: Constraint,
    rates: Rates,
) -> Iterate:
    """Steps 3 to 6 of an iteration: s, then y and z at the new s, then z's caps.

    Args:
        s: (L,) sparsities.
        duals: the prices.
        energies: (G_l,) by layer, after W's steps, in the order in which the groups go; infinite
            for what must stay.
        constraint: the budget.
        rates: the steps.
    """
    counts = constraint.counts(s)
    pairs = list(zip(energies, counts, strict=True))
    ahead = np.array([next_energy(e, k) for e, k in pairs])
    after = np.array([next_energy(e, k + 1) for e, k in pairs])
    slope = constraint.slope(counts)
    gradient = s_gradient(duals, ahead, slope)
    s = s_step(s, gradient, constraint.upper, constraint.scale, rates.s_lr, full=rates.full)
    counts = constraint.counts(s)
    violation = np.array([bottom_s_norm(e, k) for e, k in zip(energies, counts, strict=True)])
    ratio = constraint.ratio(counts)
    excess = ratio - constraint.budget
    duals = dual_step(duals, violation, excess, rates.y_lr, rates.z_lr)
    if rates.damping:
        duals = damped(duals, Ahead(ahead, after, slope, s < constraint.upper), excess)
    return Iterate(s, duals, violation, ratio)
