"""Group lasso (Yuan & Lin 2006; for networks Wen et al. 2016): a price on the norm of each group.

    min_W  loss(W) + λ·Σ_g √|g|·‖W_g‖

by proximal steps, W_g ← W_g·max(0, 1 - lr·λ·√|g| / ‖W_g‖) in each group of |g| weights. After the
last one the same share of every layer's groups goes, the least norms first: norms per weight do not
compare between layers of other widths.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

from pydantic import Field as Option
from torch import Tensor

from compress.config import Frozen
from compress.methods.groups import Groups, energies, weights
from compress.methods.one_shot import magnitudes, uniform_counts
from compress.methods.problem import Order
from compress.methods.steps import Course, SteppedMethod, Steps, StepsConfig


class GroupLassoConfig(StepsConfig):
    """Options.

    Attributes:
        strength: λ.
    """

    strength: float = Option(default=1e-3, ge=0.0)


class GroupLasso(SteppedMethod):
    """Soft thresholds after each gradient."""

    Config: ClassVar[type[Frozen]] = GroupLassoConfig

    def steps(self, config: Frozen, course: Course) -> Steps:
        """One proximal step a batch."""
        return _Thresholds(cast("GroupLassoConfig", config), course)


class _Thresholds:
    learned: Sequence[Tensor] = ()

    def __init__(self, config: GroupLassoConfig, course: Course) -> None:
        self._problem = course.problem
        self._threshold = course.lr * config.strength

    def after_gradient(self) -> Mapping[str, float]:
        """All groups give a little."""
        zeros = {}
        for groups in self._problem.groups:
            norms = shrink(groups, self._threshold)
            zeros[f"zero.{groups.name}"] = float((norms == 0.0).sum())
        return zeros

    def within_budget(self) -> tuple[list[int], Order]:
        """The least norms of each layer go."""
        worth = [magnitudes(groups) for groups in self._problem.groups]
        return uniform_counts(self._problem, worth)

    def state(self) -> dict[str, Any]:
        """Nothing but the weights."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing."""


def shrink(groups: Groups, threshold: float) -> Tensor:
    """The proximal step of threshold·√|g|·‖W_g‖, in place; the norms after it (G,)."""
    # Of what is made, norms are means over the rows: a column counts as one weight.
    rows = sum(reader.layer.out_features for reader in groups.readers) or 1
    size = groups.by_group(groups.metric.new_full((groups.columns,), float(rows)))
    norms = (energies(groups) / groups.metric).sqrt()
    factor = (1.0 - threshold * size.sqrt() / norms.clamp(min=1e-30)).clamp(min=0.0)
    for held in weights(groups):
        held.matrix.mul_(groups.by_column(factor)[held.columns])
    return norms * factor
