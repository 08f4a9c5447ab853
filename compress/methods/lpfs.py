"""LPFS: fields by polarising gates (Guo et al. 2022, arXiv 2206.00267), learned with the weights.

    g_ε(x) = x² / (x² + ε)        x_f = 1 at first, trained; ε falls from 0.1 by a factor at a time

As ε falls, a gate whose x the loss holds up goes to 1, and one that it does not care for, under an
L1 price on x, to 0. Fields go in the order of their gates; neurons, if asked for, by magnitude.
Gates are folded into what reads the fields.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, cast

import torch
from pydantic import Field as Option
from torch import Tensor, nn

from compress.config import Frozen
from compress.methods.groups import FIELDS, Part, weights
from compress.methods.one_shot import fields_of, magnitudes, uniform_counts
from compress.methods.problem import Order
from compress.methods.steps import Course, SteppedMethod, Steps, StepsConfig

FIRST_EPSILON: Final = 0.1


class LpfsConfig(StepsConfig):
    """Options.

    Attributes:
        gate_lr: of x.
        price: of |x|.
        last_epsilon: what ε falls to by the last step.
    """

    parts: tuple[Part, ...] = Option(default=(FIELDS,), min_length=1)
    gate_lr: float = Option(default=5e-3, gt=0.0)
    price: float = Option(default=2e-3, ge=0.0)
    last_epsilon: float = Option(default=1e-5, gt=0.0, le=FIRST_EPSILON)


class Lpfs(SteppedMethod):
    """Gates on the fields, learned beside the weights."""

    Config: ClassVar[type[Frozen]] = LpfsConfig

    def steps(self, config: Frozen, course: Course) -> Steps:
        """A step of the gates after each of the weights."""
        return _Gates(cast("LpfsConfig", config), course)


class _Gates:
    """x, ε, and the hooks by which what reads the fields gets them gated."""

    def __init__(self, config: LpfsConfig, course: Course) -> None:
        self._config, self._course = config, course
        self._fields = fields_of(course.problem)
        self._x = torch.ones_like(self._fields.metric).requires_grad_()
        self.learned: Sequence[Tensor] = (self._x,)
        self._optimizer = torch.optim.Adam([self._x], lr=config.gate_lr)
        self._step = 0
        self._hooks = [
            reader.layer.register_forward_pre_hook(self._gated(reader.start))
            for reader in self._fields.readers
        ]

    def _gated(self, start: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
            x, gates = inputs[0], self._by_column(self._gates())
            after = x.shape[1] - start - len(gates)
            ones = gates.new_ones
            return (x * torch.cat((ones(start), gates, ones(after))),)

        return hook

    def _gates(self) -> Tensor:
        """(F,) g_ε(x)."""
        done = self._step / self._course.steps
        epsilon = FIRST_EPSILON * (self._config.last_epsilon / FIRST_EPSILON) ** done
        square: Tensor = self._x.square()
        gates: Tensor = square / (square + epsilon)
        return gates

    def _by_column(self, gates: Tensor) -> Tensor:
        """(F,) -> (columns,): a pair of fields has the product of both gates."""
        member = cast("Tensor", self._fields.membership) > 0
        product: Tensor = torch.where(member, gates.unsqueeze(1), 1.0).prod(0)
        return product

    def after_gradient(self) -> Mapping[str, float]:
        """A step of x; ε falls."""
        if self._x.grad is not None:
            self._x.grad += self._config.price * self._x.detach().sign()
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._step += 1
        gates = self._gates().detach().tolist()
        names = (field.name for field in self._course.problem.ranker.fields)
        return {f"gate.{name}": gate for name, gate in zip(names, gates, strict=True)}

    def within_budget(self) -> tuple[list[int], Order]:
        """The least gates go; what stays keeps its gate, in the weights that read it."""
        for hook in self._hooks:
            hook.remove()
        problem, gates = self._course.problem, self._gates().detach()
        worth = [gates if g.name == FIELDS else magnitudes(g) for g in problem.groups]
        counts, order = uniform_counts(problem, worth)
        for held in weights(self._fields):
            held.matrix.mul_(self._by_column(gates))
        return counts, order

    def state(self) -> dict[str, Any]:
        """The gates."""
        optimizer = self._optimizer.state_dict()
        return {"x": self._x.detach(), "optimizer": optimizer, "step": self._step}

    def restore(self, state: dict[str, Any]) -> None:
        """The reverse of `state`."""
        with torch.no_grad():
            self._x.copy_(state["x"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._step = state["step"]
