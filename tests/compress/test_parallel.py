"""Two processes train what one trains; one that dies ends the other, and they can go on."""

import importlib.util
import multiprocessing
import runpy
import signal
import sys
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from compress.parallel import ALONE, World

PROGRAM = Path(__file__).with_name("in_a_world.py")
# What sums in another order change in the dozens of steps below.
ROUNDING = {"atol": 1e-6, "rtol": 1e-5}


def program() -> ModuleType:
    """What each process runs, as a module of this one."""
    spec = importlib.util.spec_from_file_location("in_a_world", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["in_a_world"] = module
    spec.loader.exec_module(module)
    return module


IN_A_WORLD = program()


def alone(folder: Path, **options: Any) -> dict[str, Any]:
    """What one process finds."""
    folder.mkdir()
    found: dict[str, Any] = IN_A_WORLD.trained(IN_A_WORLD.Task(folder, **options), ALONE)
    return found


def together(folder: Path, stopped: int | None = None, **options: Any) -> list[Any]:
    """What each of two processes finds, or the error that ends it; None if it was killed.

    Args:
        folder: for all that they leave.
        stopped: the one that will not end by itself.
        options: of their task.
    """
    folder.mkdir(exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["compress.methods"])
    tasks = [IN_A_WORLD.Task(folder, rank=rank, size=2, **options) for rank in range(2)]
    processes = [
        context.Process(
            target=runpy.run_path, args=(str(PROGRAM), {"TASK": asdict(task)}, "__main__")
        )
        for task in tasks
    ]
    for process in processes:
        process.start()
    for rank, process in enumerate(processes):
        if rank != stopped:
            process.join(60)
    hanging = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
        process.join()
    (folder / "meeting").unlink(missing_ok=True)
    assert hanging == ([] if stopped is None else [stopped])
    return [left(folder, rank) for rank in range(2)]


def left(folder: Path, rank: int) -> Any:
    """What a process has left, taken away."""
    for path in (folder / f"{rank}.pt", folder / f"{rank}.error"):
        if path.exists():
            found = torch.load(path) if path.suffix == ".pt" else path.read_text()
            path.unlink()
            return found
    return None


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether all weights are equal, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 64])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_shares_are_a_batch(rows: int, size: int) -> None:
    """Every row is one process's, in order, and no share is larger than another by over one."""
    batch = list(range(rows))
    shares = [batch[World(rank, size).share(rows)] for rank in range(size)]

    assert list(chain(*shares)) == batch
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_each_process_draws_its_own() -> None:
    """Seeds differ by rank; the first one's is the run's, as in a world of one."""
    seeds = [World(rank, 4).seed(7) for rank in range(4)]

    assert seeds[0] == ALONE.seed(7) == 7
    assert len(set(seeds)) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"train": {"ema_decay": 0.9, "embedding_l2": 1e-4}, "slim": "umec"},
        {"train": {"optimizer": "sgd", "lr": 0.1, "batch_size": 100}, "slim": "lpfs"},
        {"coded": True},
    ],
    ids=["adam, average, umec", "sgd, lpfs, which learns gates of its own", "codes for rows"],
)
def test_two_processes_find_what_one_finds(tmp_path: Path, options: dict[str, Any]) -> None:
    """Up to rounding: log losses by look, weights, and what is kept.

    257 rows: the last batch of 64 is a single row, of which one process has none; that of 100
    is uneven.
    """
    one = alone(tmp_path / "one", **options)
    both = together(tmp_path / "two", **options)

    assert both[0].keys() == one.keys()
    for found in both:
        assert found["logloss"] == pytest.approx(one["logloss"], abs=1e-6)
        assert found.get("keep") == one.get("keep")
    for part in {"weights", "slim", "coded"} & one.keys():
        assert same_bits(both[0][part], both[1][part])
        torch.testing.assert_close(both[0][part], one[part], **ROUNDING)


@pytest.mark.slow
def test_two_processes_find_nearly_that_in_half_precision(tmp_path: Path) -> None:
    """A share's gradient is rounded to bfloat16 by itself, so quality is alike, and no more is."""
    one = alone(tmp_path / "one", train={"half": True})
    both = together(tmp_path / "two", train={"half": True})

    assert same_bits(both[0]["weights"], both[1]["weights"])
    assert both[0]["logloss"] == pytest.approx(one["logloss"], abs=2e-3)


@pytest.mark.slow
def test_the_outcome_is_a_function_of_the_seed_whatever_ends_a_process(tmp_path: Path) -> None:
    """Killed in an epoch's middle and started again, both end in the bytes of a whole run.

    Dropout included, which each process draws for itself; and when one is killed, the other one
    ends with a message that says so.
    """
    whole = together(tmp_path / "whole", dropout=0.2)
    killed = together(tmp_path / "broken", dropout=0.2, ended=(0, 7, signal.SIGKILL))
    again = together(tmp_path / "broken", dropout=0.2)

    assert killed[0] is None
    assert "another one has ended" in killed[1]
    assert same_bits(again[0]["weights"], whole[0]["weights"])
    assert again[0]["logloss"] == whole[0]["logloss"]
    assert not same_bits(whole[0]["weights"], alone(tmp_path / "one", dropout=0.2)["weights"])


@pytest.mark.slow
def test_a_process_that_stops_answering_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    """The other one ends with the same message once the time is up."""
    found = together(tmp_path / "two", stopped=0, ended=(0, 1, signal.SIGSTOP), wait_s=1.0)

    assert "answers no more" in found[1]


@pytest.mark.slow
def test_processes_with_different_data_do_not_begin(tmp_path: Path) -> None:
    """Both refuse, and say what to look at."""
    found = together(tmp_path / "two", other_rows=1)

    assert [text.partition(":")[0] for text in found] == [
        "the processes differ in what they train"
    ] * 2
