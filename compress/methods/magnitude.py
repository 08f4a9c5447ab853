"""Magnitude pruning (Han et al. 2015; of whole groups, Li et al. 2017): the least weights go.

A group's worth is the mean square of the weights that read it, so that a field's thousands and a
neuron's column compare; layers share alike, for their scales do not.
"""

from torch import Tensor

from compress.config import Frozen
from compress.methods.one_shot import OneShot, Scoring, magnitudes


class Magnitude(OneShot):
    """Groups by the norm of what reads them."""

    def worth(self, config: Frozen, scoring: Scoring) -> list[Tensor]:
        """Mean squared weights."""
        del config
        return [magnitudes(groups) for groups in scoring.problem.groups]
