"""What a process of `test_parallel.py` does, alone or in a world: train, or train and slim.

Each runs this file by `runpy`, from a fork server that has torch loaded already; `TASK` comes with
it. What came of it lies in the task's folder afterwards, by rank: weights, or an error.
"""

import importlib.util
import os
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from compress.config import CompressError, DistillConfig, TrainConfig
from compress.methods import METHODS
from compress.parallel import World, joined
from compress.progress import Silent
from compress.rankers import RANKERS
from compress.shipping import learned, shipped
from compress.tables.pq import Pq, PqConfig
from compress.train import fit

SHARED = Path(__file__).with_name("conftest.py")


@dataclass(frozen=True)
class Task:
    """What to do.

    Attributes:
        train: options of training besides `fit_config`'s.
        slim: the method that slims what was trained.
        coded: whether its tables become codes, with which it trains on.
        ended: signals that processes send themselves at a step: (rank, step, signal).
        other_rows: rows that the second process has more than the first.
    """

    folder: Path
    rank: int = 0
    size: int = 1
    rows: int = 257
    train: dict[str, Any] = field(default_factory=dict)
    dropout: float = 0.0
    slim: str = ""
    coded: bool = False
    ended: tuple[int, int, int] | None = None
    wait_s: float = 60.0
    other_rows: int = 0


class Ending:
    """Sends this process a signal at a step."""

    def __init__(self, step: int, number: int) -> None:
        self._step, self._number = step, number

    def step(self, stage: str, done: int, total: int | None, **numbers: float) -> None:
        """Once enough is done."""
        if done >= self._step:
            os.kill(os.getpid(), self._number)


def work(task: Task) -> None:
    """Do it, and leave what came of it."""
    torch.set_num_threads(1)
    if task.size > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{task.folder}/meeting",
            rank=task.rank,
            world_size=task.size,
            timeout=timedelta(seconds=task.wait_s),
        )
    with joined() as world:
        try:
            found = trained(task, world)
        except CompressError as error:
            (task.folder / f"{task.rank}.error").write_text(str(error))
        else:
            torch.save(found, task.folder / f"{task.rank}.pt")


def trained(task: Task, world: World) -> dict[str, Any]:
    """The weights, and the log losses by look."""
    spec = importlib.util.spec_from_file_location("shared", SHARED)
    shared = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shared)
    data = shared.Clicks(task.rows + task.other_rows * task.rank)
    member = RANKERS["dlrm"]
    config = member.Config(dim=4, bottom=(6, 5), top=(12, 9), dropout=task.dropout)
    ranker = member(data.features, config, torch.Generator().manual_seed(0))
    options = {"lr": 0.01, "batch_size": 64, "epochs": 2, "evaluations_per_epoch": 2, **task.train}
    train = TrainConfig(**options)
    rank, step, number = task.ended or (None, 0, 0)
    progress = Ending(step, number) if rank == task.rank else Silent()
    result = fit(
        ranker, data, train, 3,
        checkpoint=task.folder / "train.ckpt", progress=progress, world=world,
    )  # fmt: skip
    found = {"weights": ranker.state_dict(), "logloss": [e.logloss for e in result.history]}
    if task.slim:
        method = METHODS[task.slim]
        slimmed = method().compress(
            ranker, data, method.Config(budget={"flops": 0.5}),
            seed=3, train=train, pricing=None, progress=progress,
            checkpoint=task.folder / "slim.ckpt", world=world,
        )  # fmt: skip
        found |= {"slim": slimmed.ranker.state_dict(), "keep": repr(slimmed.keep)}
    if task.coded:
        table = Pq(PqConfig(cut=2, words=8, min_rows=8, rest="float32", frequency=0.5))
        coded = learned(ranker, table, data, 3, Silent())
        fit(
            coded, data, train.model_copy(update={"distill": DistillConfig(weight=0.5)}), 4,
            checkpoint=task.folder / "coded.ckpt", progress=progress, teacher=ranker, world=world,
        )  # fmt: skip
        found["coded"] = shipped(coded, table).state_dict()
    return found


if __name__ == "__main__":
    work(Task(**TASK))  # noqa: F821  (runpy's)
