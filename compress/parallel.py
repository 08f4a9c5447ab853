"""Data-parallel training: each process takes its share of every batch, and all take the same step.

    g = Σ_r (n_r / n)·g_r      of a batch of n rows, n_r of them process r's

All draw the same batches from (seed, epoch), so what is trained on does not depend on their number,
and the weights are equal, bit for bit, in all of them. The layers' gradients are summed in one
flat all-reduce; of a table's, each process gathers the rows that any of them has touched.

A `World` says which process this is of how many. Nothing of torch.distributed is touched in a
world of one, which is what every function gets that is not told otherwise.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from compress.config import CompressError
from compress.optimizers import coalesce_, row_sums, sparse_gradient

# The longest that a process waits for another that does not answer. One that has died is noticed
# at once; the longest honest wait is for the first process, while it judges the validation rows.
WAIT: Final = timedelta(minutes=30)


class ParallelError(CompressError):
    """The processes of a run cannot go on together; the text says why."""


@dataclass(frozen=True, slots=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether it is the one that judges, writes and reports."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """This process's rows of a batch; shares differ by one row at most.

        >>> [World(rank, 2).share(5) for rank in range(2)]
        [slice(0, 2, None), slice(2, 5, None)]
        """
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def seed(self, seed: int) -> int:
        """A seed of this process's own, from that of all."""
        if self.first:
            return seed
        return int(np.random.SeedSequence((seed, self.rank)).generate_state(1, np.uint64)[0] >> 1)

    def sum_gradients_(
        self, layers: Sequence[Tensor], tables: Sequence[Tensor], loss: Tensor
    ) -> Tensor:
        """Replace each gradient, and the loss, by its sum over all processes.

        Args:
            layers: parameters with dense gradients.
            tables: those with sparse ones, which name each row once, before and after.
            loss: a scalar. It and the gradients are this process's, times its part of the rows.

        Raises:
            ParallelError: another process has ended, or does not answer.
        """
        if self.size == 1:
            return loss
        with self._together():
            for table in tables:
                self._sum_rows_(table)
            return self._sum_layers_(layers, loss)

    def from_first(self, found: Callable[[], Sequence[float]], count: int) -> list[float]:
        """``count`` numbers that the first process finds while the others wait."""
        if self.size == 1:
            return list(found())
        numbers = torch.tensor(found() if self.first else [0.0] * count, dtype=torch.float64)
        numbers = numbers.to(_device())
        with self._together():
            dist.broadcast(numbers, 0)
        return [float(number) for number in numbers]

    def gathered(self, own: Tensor) -> list[Tensor]:
        """Every process's tensor of one shape, in the order of ranks."""
        if self.size == 1:
            return [own]
        with self._together():
            return [tensor.to(own.device) for tensor in _all(own.to(_device()), self.size)]

    def agree(self, what: str, of: bytes) -> None:
        """See that all processes have the same.

        Raises:
            ParallelError: they have not.
        """
        digests = [int(found) for found in self.gathered(torch.tensor(zlib.crc32(of)))]
        if len(set(digests)) > 1:
            raise ParallelError(
                f"the processes differ in {what}: start all of them with the same config, data and "
                "versions, on the same kind of machine, with `runs` on a disk that all of them see"
            )

    def agree_on_weights(self, parameters: Iterable[Tensor]) -> None:
        """See that all processes have the same weights: a float is compared as its bits.

        Raises:
            ParallelError: they have not.
        """
        if self.size > 1:
            sums = [p.detach().view(torch.int32).sum().item() for p in parameters]
            self.agree("their weights", repr(sums).encode())

    def _sum_layers_(self, layers: Sequence[Tensor], loss: Tensor) -> Tensor:
        # A process without a row of the batch has no gradients.
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in layers]
        flat = torch.cat([loss.reshape(1), *(g.flatten() for g in gradients)])
        dist.all_reduce(flat)
        total, *sums = torch.split(flat, [1, *(p.numel() for p in layers)])
        for parameter, summed in zip(layers, sums, strict=True):
            parameter.grad = summed.view_as(parameter)
        return total[0]

    def _sum_rows_(self, table: Tensor) -> None:
        rows, sums = row_sums(table)
        counts = [int(n) for n in _all(torch.tensor(len(rows), device=table.device), self.size)]
        # Rows and values travel as one, and padded, since all must send as much.
        packed = torch.zeros(max(counts), 2 + table.shape[1], device=table.device)
        packed[: len(rows), :2] = rows.unsqueeze(1).view(torch.float32)
        packed[: len(rows), 2:] = sums
        parts = [p[:n] for p, n in zip(_all(packed, self.size), counts, strict=True)]
        found = torch.cat(parts)
        indices = found[:, :2].contiguous().view(torch.int64).squeeze(1)
        table.grad = sparse_gradient(table, indices, found[:, 2:].contiguous(), coalesced=False)
        coalesce_(table)

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # what torch.distributed raises is of this class
            raise ParallelError(
                f"process {self.rank} of {self.size}: another one has ended, or answers no more; "
                "its own message says why. The same command goes on from the last checkpoint"
            ) from error


ALONE: Final = World()


def _all(own: Tensor, size: int) -> list[Tensor]:
    held = [torch.empty_like(own) for _ in range(size)]
    dist.all_gather(held, own)
    return held


def _device() -> torch.device:
    # NCCL knows no tensors of the host.
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


@contextmanager
def joined(wait: timedelta = WAIT) -> Iterator[World]:
    """The world that this process belongs to.

    That of Ray Train inside one of its workers, that of torchrun if it started this process, else
    a world of one.

    Args:
        wait: the longest wait for another process, in a world of torchrun.

    Raises:
        ParallelError: there are more processes than GPUs on this machine, or not all came.
    """
    if dist.is_available() and dist.is_initialized():
        yield World(dist.get_rank(), dist.get_world_size())
        return
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield ALONE
        return
    _join(wait)
    yield World(dist.get_rank(), dist.get_world_size())
    # Not after an error: leaving takes the others' consent.
    dist.destroy_process_group()


def _join(wait: timedelta) -> None:
    gpus, place = torch.cuda.device_count(), dist.get_node_local_rank()
    if gpus:
        if place >= gpus:
            raise ParallelError(
                f"process {place + 1} on this machine finds {gpus} GPUs: start as many processes "
                "as there are GPUs, or hide them all (CUDA_VISIBLE_DEVICES=) to train on CPUs"
            )
        torch.cuda.set_device(place)
    try:
        dist.init_process_group("nccl" if gpus else "gloo", timeout=wait)
    except RuntimeError as error:
        raise ParallelError(f"not all processes of this run came together: {error}") from error
