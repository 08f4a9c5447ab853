"""The pure half of UMEC: what its docstrings show, and one iteration by hand."""

import doctest

import numpy as np
import pytest
import torch

from compress import primal_dual
from compress.primal_dual import Constraint, DualVariables, Rates, advance, removed


def test_examples_in_docstrings_hold() -> None:
    """What a docstring shows is what comes out."""
    assert doctest.testmod(primal_dual).failed == 0


def test_an_iteration_by_hand() -> None:
    """Four groups, R = 1 - ⌈s⌉ / 4, all of which may go but one."""
    constraint = Constraint(
        budget=0.5,
        upper=np.array([3.0]),
        scale=np.array([1.0]),
        counts=lambda s: [removed(float(s[0]))],
        ratio=lambda counts: 1.0 - counts[0] / 4,
        slope=lambda _: np.array([-0.25]),
    )
    rates = Rates(s_lr=0.5, y_lr=0.1, z_lr=2.0, full=False, damping=False)
    duals = DualVariables(y=np.array([1.0]), z=8.0)

    now = advance(np.array([0.0]), duals, [torch.tensor([4.0, 1.0, 9.0, 0.25])], constraint, rates)

    # ∂/∂s = 1·0.25 - 8·0.25, clipped to -1 by the maximum norm; then one group is counted.
    assert now.s.tolist() == [0.5]
    assert now.violation.tolist() == [0.25]
    assert now.ratio == 0.75
    assert now.duals.y.tolist() == pytest.approx([1.0 + 0.1 * 0.25])
    assert now.duals.z == pytest.approx(8.0 + 2.0 * 0.25)
