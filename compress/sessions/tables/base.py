"""What an item table is while it is learned, and what a method makes one from."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from compress.config import Frozen
from compress.progress import Progress
from compress.sessions.data import Sessions
from model_store.item_vectors import ItemVectors


class ItemTable(nn.Module, ABC):
    """Item vectors (N, D) that can be learned. What `export` gives scores as this does."""

    items: int
    dim: int

    @property
    def rows_parameter(self) -> nn.Parameter | None:
        """The parameter (N, …) whose gradient is sparse, if there is one."""
        return None

    @abstractmethod
    def forward(self, rows: Tensor) -> Tensor:
        """(…, D) vectors of rows (…), differentiable."""

    @abstractmethod
    def export(self) -> ItemVectors:
        """The table as it ships: discrete codes, packed, in its final precision."""

    def penalty(self) -> Tensor:
        """What learning the table adds to the loss; most add nothing."""
        return torch.zeros(())

    def anneal(self, progress: float) -> None:
        """Called before each step with the part of the training that is done, 0 to 1 (at its end).

        What a table does only to learn (mixing, noise) fades by it, so that training ends on what
        ships; most have nothing that fades.
        """
        del progress


@dataclass(frozen=True, slots=True)
class Teacher:
    """What a table is made from.

    Attributes:
        vectors: (N, D) float32, the uncompressed table of a trained ranker.
        counts: (N,) clicks of each item in training.
        sessions: the training sessions; None where only a table is at hand.
    """

    vectors: Tensor
    counts: Tensor
    sessions: Sessions | None


class TableMethod(Protocol):
    """Compresses an item table. ``Config`` stands beside the code."""

    Config: ClassVar[type[Frozen]]

    def check(self, config: Frozen, items: int, dim: int) -> None:
        """Whether the config fits a table (items, dim): to be asked before a teacher is trained.

        Raises:
            ConfigError: it does not (K^M below the number of items).
        """
        ...

    def build(
        self, teacher: Teacher, config: Frozen, generator: torch.Generator, progress: Progress
    ) -> ItemTable:
        """A smaller table near the teacher's, ready to be trained on end to end.

        Raises:
            ConfigError: the config does not fit the teacher.
        """
        ...
