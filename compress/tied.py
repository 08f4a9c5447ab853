"""What goes together in a module: channels, which of them are one, and which have to stay.

A *channel* is what can be removed as a whole: a neuron is a row of one layer, its bias, and the
columns of all layers that read it; an embedding's column goes with what reads it. Which are one is
read off a module's graph by `compress.tracing`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from compress.config import ConfigError

T = TypeVar("T")
Axis = tuple[str, int]  # a parameter or buffer by its name, and which of its dimensions

FIXED: Final = -1  # a position without a channel


@dataclass(frozen=True, slots=True)
class Example:
    """What a module is called with."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, example: object) -> "Example":
        """From a tensor, a tuple of positional arguments, or a mapping of named ones.

        Raises:
            ConfigError: it holds no tensor with rows.
        """
        if isinstance(example, Mapping):
            found = cls((), dict(example))
        else:
            found = cls(example if isinstance(example, tuple) else (example,), {})
        if not found.rows:
            raise ConfigError(
                "example: expected a tensor, a tuple of positional arguments or a mapping of named "
                f"ones, with at least one row; got {type(example).__name__}"
            )
        return found

    @property
    def rows(self) -> int:
        """The first tensor's first dimension; 0 if there is none."""
        return next((len(x) for x in tensors_in((self.args, dict(self.kwargs))) if x.ndim), 0)

    def given_to(self, module: nn.Module) -> list[Tensor]:
        """The tensors that come out."""
        return tensors_in(module(*self.args, **self.kwargs))


def tensors_in(tree: object) -> list[Tensor]:
    """All tensors in nested tuples, lists and mappings."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


@dataclass(frozen=True, slots=True)
class Product:
    """A use of a weight in the example.

    Attributes:
        times: how often it is applied.
        bias: whether one is added.
    """

    rows: Axis
    columns: Axis
    times: int
    bias: bool


@dataclass(frozen=True, slots=True)
class TiedLayer:
    """G channels that are alike: each has m positions of the same axes.

    Attributes:
        members: (G, m) positions, by axis.
        degree: over 0 where they are summed: factors that are zero once one is removed.
        shrunk: the axes whose positions are zero when a channel is masked.
        lock: why they have to stay.
    """

    name: str
    members: Mapping[Axis, Tensor]
    degree: int
    shrunk: frozenset[Axis]
    lock: str | None

    @property
    def count(self) -> int:
        """G."""
        return len(next(iter(self.members.values())))


@dataclass(frozen=True, slots=True)
class Tied:
    """What a module is made of, as far as sizes go.

    Attributes:
        sources: axes whose positions make a channel's values; all others read them.
        tables: the parameters that ids look up.
        rows: of the example.
    """

    layers: tuple[TiedLayer, ...]
    sources: frozenset[Axis]
    tables: frozenset[str]
    products: tuple[Product, ...]
    rows: int

    def locked(self, reasons: Mapping[str, str]) -> "Tied":
        """With some more layers locked, by name."""
        layers = [replace(x, lock=x.lock or reasons.get(x.name)) for x in self.layers]
        return replace(self, layers=tuple(layers))


class Channels:
    """Numbers of channels, which of them are one, and which are locked."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._axes: dict[Axis, Tensor] = {}
        self._locks: dict[int, str] = {}
        self._degree: dict[int, int] = {}
        self._fixed: dict[Axis, str] = {}

    def of(self, axis: Axis, size: int) -> Tensor:
        """Those of an axis, (size,): one a position, at first."""
        if axis not in self._axes:
            start = len(self._parent)
            self._parent.extend(range(start, start + size))
            self._axes[axis] = torch.arange(start, start + size)
        return self._axes[axis]

    def root(self, channel: int) -> int:
        """The one that stands for all that are tied to it."""
        while self._parent[channel] != channel:
            self._parent[channel] = self._parent[self._parent[channel]]
            channel = self._parent[channel]
        return channel

    def tie(self, ours: Tensor, theirs: Tensor, reason: str) -> None:
        """Make them one, position by position; beside a fixed position one is locked."""
        for a, b in set(zip(ours.tolist(), theirs.tolist(), strict=True)):
            if FIXED in (a, b):
                self.lock(torch.tensor([a, b]), reason)
            elif (first := self.root(a)) != (second := self.root(b)):
                self._parent[max(first, second)] = min(first, second)

    def lock(self, channels: Tensor, reason: str) -> None:
        """They stay."""
        for channel in sorted(set(channels.flatten().tolist())):
            if channel != FIXED:
                self._locks.setdefault(channel, reason)

    def fix(self, axis: Axis, reason: str) -> None:
        """All of an axis stay, whether anything made channels of it or will."""
        self._fixed.setdefault(axis, reason)

    def summed(self, channels: Tensor, degree: Tensor, reason: str) -> None:
        """They are added up with others; where a removed one would not be 0, they are locked."""
        for channel, zeros in zip(channels.tolist(), degree.tolist(), strict=True):
            if channel != FIXED and not zeros:
                self.lock(torch.tensor([channel]), reason)
            elif channel != FIXED:
                self._degree[channel] = max(zeros, self._degree.get(channel, 0))

    def axes(self) -> list[Axis]:
        """All that have channels."""
        return list(self._axes)

    def alike(self) -> Iterator[tuple[dict[Axis, Tensor], int, str | None]]:
        """Channels with the same numbers of positions of the same axes, and the same lock.

        Yields:
            members (G, m) by axis, degree, lock.
        """
        for axis, reason in self._fixed.items():
            if axis in self._axes:
                self.lock(self._axes[axis], reason)
        locks = self._by_root(self._locks, lambda _, first: first)
        degrees = self._by_root(self._degree, max)
        positions: dict[int, dict[Axis, list[int]]] = {}
        for axis, channels in self._axes.items():
            for position, channel in enumerate(channels.tolist()):
                positions.setdefault(self.root(channel), {}).setdefault(axis, []).append(position)
        kinds: dict[tuple[object, ...], list[int]] = {}
        for root, members in positions.items():
            kind = (tuple((axis, len(places)) for axis, places in sorted(members.items())),)
            kinds.setdefault((*kind, degrees.get(root, 0), locks.get(root)), []).append(root)
        for roots in kinds.values():
            axes = positions[roots[0]]
            found = {axis: torch.tensor([positions[r][axis] for r in roots]) for axis in axes}
            yield found, degrees.get(roots[0], 0), locks.get(roots[0])

    def _by_root(self, values: Mapping[int, T], joined: Callable[[T, T], T]) -> dict[int, T]:
        found: dict[int, T] = {}
        for channel, value in values.items():
            root = self.root(channel)
            found[root] = joined(value, found[root]) if root in found else value
        return found
