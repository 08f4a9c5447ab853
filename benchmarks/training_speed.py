"""Training throughput of Slimrank's DLRM beside FuxiCTR's: same rows, fields, sizes and batches.

    python benchmarks/training_speed.py PATH/train.parquet [--env .cache/fuxictr]

The file is that of `fuxictr_criteo.py`, which also makes FuxiCTR's environment (``--env``) and
assembles its DLRM. Each side is a process of its own that trains an epoch when told to, and they
are told in turn: so both meet the same machine, and what is worth something is the ratio of a
round. An epoch counts from asking for its first row to asking for the first row of validation;
reading and shuffling are in it, the look at validation is not. The first epoch is warm-up.

FuxiCTR's training loop, Adam, dense tables and clipping are its own, without regularization, as
in the DLRM template of its model zoo. Its rows come from its own loaders (``parquet``, which
streams, and ``npz``, which holds all rows) or, so that the loops alone are compared, from tensors
in memory (``memory``, `fuxictr_criteo.Batches`). CPU time is that of all processes of a side.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

try:
    import psutil
except ImportError:  # FuxiCTR's environment: only the process that compares needs it
    psutil = None

DIM, BOTTOM, TOP = 16, (512, 256, 64), (512, 256)
MIN_COUNT = 2
LEARNING_RATE = 1e-3
WORKERS = 3  # of FuxiCTR's loaders, as its model zoo sets them
SPLIT = {"column": "chunk", "validation_from": 60, "test_from": 66}


@dataclass(frozen=True, slots=True)
class Case:
    """What both sides train: one line of the table."""

    interaction: str
    batch_size: int
    threads: int


@dataclass(frozen=True, slots=True)
class Clock:
    """Wall time, and the CPU time of this process and of its children that have ended."""

    wall_s: float
    cpu_s: float

    @classmethod
    def now(cls) -> "Clock":
        """The time."""
        return cls(time.perf_counter(), sum(os.times()[:4]))

    def since(self, start: "Clock") -> dict[str, float]:
        """The time that has passed."""
        return {"wall_s": self.wall_s - start.wall_s, "cpu_s": self.cpu_s - start.cpu_s}


# --- the two sides: each makes a function that trains one epoch ----------------------------------

Epoch = Callable[[], dict[str, float]]


def slimrank(data: Path, case: Case, folder: Path, average: float, half: bool) -> Epoch:
    """An epoch by `compress.train.fit`, on rows that `prepare` has encoded."""
    import torch  # noqa: PLC0415  # of this side's environment

    from compress.config import TrainConfig  # noqa: PLC0415
    from compress.data.criteo import Criteo, CriteoConfig  # noqa: PLC0415
    from compress.data.encode import Batch, prepare  # noqa: PLC0415
    from compress.progress import Silent  # noqa: PLC0415
    from compress.rankers.dlrm import Dlrm, DlrmConfig  # noqa: PLC0415
    from compress.train import fit  # noqa: PLC0415

    torch.set_num_threads(case.threads)
    options = {"path": str(data), "min_count": MIN_COUNT, "split": SPLIT}
    dataset = prepare(Criteo(CriteoConfig.model_validate(options)), folder, Silent())
    sizes = DlrmConfig(dim=DIM, bottom=BOTTOM, top=TOP, interaction=case.interaction)
    ranker = Dlrm(dataset.features, sizes, torch.Generator().manual_seed(1))
    config = TrainConfig(
        lr=LEARNING_RATE,
        batch_size=case.batch_size,
        epochs=1,
        patience=99,
        ema_decay=average,
        half=half,
    )

    class Watched:
        """The data set, its clock read where `fit` turns from one part to the other."""

        features, rows = dataset.features, dataset.rows

        def __init__(self) -> None:
            self.asked: list[tuple[str, Clock]] = []

        def batches(self, part: Any, batch_size: int, rng: Any = None) -> Iterator[Batch]:
            self.asked.append((part, Clock.now()))
            return dataset.batches(part, batch_size, rng)

    def epoch() -> dict[str, float]:
        watched = Watched()
        found = fit(ranker, watched, config, seed=1, checkpoint=None, progress=Silent())
        (_, start), (_, end) = watched.asked[1:3]  # after the first look: training, the last look
        loss = found.history[-1].train_loss
        return {**end.since(start), "rows": dataset.rows["train"], "loss": loss}

    return epoch


def fuxictr(data: Path, case: Case, folder: Path, loader: str) -> Epoch:
    """An epoch by FuxiCTR's `train_epoch`, on rows that its processor has encoded."""
    import logging  # noqa: PLC0415

    import fuxictr_criteo as ours  # noqa: PLC0415  # beside this file; it needs FuxiCTR
    import numpy as np  # noqa: PLC0415
    import polars as pl  # noqa: PLC0415
    import torch  # noqa: PLC0415

    logging.disable(logging.INFO)
    torch.set_num_threads(case.threads)
    setting = ours.Setting(
        "log",
        MIN_COUNT,
        DIM,
        0.0,
        0.0,
        case.batch_size,
        LEARNING_RATE,
        TOP,
        interaction=case.interaction,
    )
    encoded = ours.encode(pl.read_parquet(data), setting, folder)
    columns = encoded.parts["train"]
    rows = len(columns["label"])
    if loader == "memory":
        batches: Any = ours.Batches(columns, case.batch_size, shuffle=True)
    else:
        from fuxictr.pytorch.dataloaders import RankDataLoader  # noqa: PLC0415

        path = folder / f"train.{loader}"
        arrays = {name: column.numpy() for name, column in columns.items()}
        if loader == "npz":
            np.savez(path, **arrays)
        else:
            pl.DataFrame(arrays).write_parquet(path)
        batches, _ = RankDataLoader(
            encoded.feature_map,
            stage="train",
            train_data=str(path),
            batch_size=case.batch_size,
            shuffle=True,
            data_format=loader,
            num_workers=WORKERS,
        )
    ours.seed_everything(1)
    model = ours.DLRM(encoded.feature_map, setting, folder, sys.maxsize)
    # What `fit` sets before its first epoch; its last act, reading a checkpoint back, is not timed.
    model._max_gradient_norm, model._stop_training, model._total_steps = 10.0, False, 0  # noqa: SLF001

    def epoch() -> dict[str, float]:
        start = Clock.now()
        model.train_epoch(batches)
        return {**Clock.now().since(start), "rows": rows, "loss": float("nan")}

    return epoch


def serve(options: argparse.Namespace) -> None:
    """Train an epoch for each line that comes, and tell how long it took."""
    case = Case(options.interaction[0], options.batch_sizes[0], options.threads[0])
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if options.side == "slimrank":
            epoch = slimrank(options.data, case, folder, options.average, options.half)
        else:
            epoch = fuxictr(options.data, case, folder, options.side)
        epoch()
        print("ready", flush=True)
        for _ in sys.stdin:
            print(json.dumps(epoch()), flush=True)


# --- side by side --------------------------------------------------------------------------------


class Side:
    """A process that trains when told to, for as long as the block lasts."""

    def __init__(self, name: str, python: Path, case: Case, options: argparse.Namespace) -> None:
        self._command = [str(python), __file__, str(options.data), "--side", name]
        self._command += ["--interaction", case.interaction, "--average", str(options.average)]
        self._command += ["--half"] * options.half
        self._command += ["--batch-sizes", str(case.batch_size), "--threads", str(case.threads)]

    def __enter__(self) -> "Side":
        """Prepare the rows, and train once to warm up."""
        self._log = tempfile.TemporaryFile("w+")
        self._process: Any = subprocess.Popen(
            self._command,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        """Let it end."""
        self._process.stdin.close()
        self._process.wait()
        self._log.close()

    def epoch(self) -> dict[str, float]:
        """Train once through the rows."""
        others = self._others_s()
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        times = json.loads(self._answer())
        return {**times, "cpu_s": times["cpu_s"] + self._others_s() - others}

    def _others_s(self) -> float:
        # CPU time of the processes that the side keeps: Ray's, where it loads the rows.
        total = 0.0
        for child in psutil.Process(self._process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                total += sum(child.cpu_times()[:4])
        return total

    def _answer(self) -> str:
        for line in self._process.stdout:
            if line.startswith(("{", "ready")):  # Ray talks on this pipe too
                return str(line)
        self._log.seek(0)
        sys.exit(f"{self._log.read()}\nthis side ended early: {' '.join(self._command)}")


def compare(case: Case, loader: str, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turn; their times by round."""
    rounds: dict[str, list[dict[str, float]]] = {"slimrank": [], "fuxictr": []}
    with (
        Side("slimrank", Path(sys.executable), case, options) as slimrank,
        Side(loader, options.env / "bin" / "python", case, options) as fuxictr,
    ):
        for _ in range(options.rounds):
            rounds["slimrank"].append(slimrank.epoch())
            rounds["fuxictr"].append(fuxictr.epoch())
    return {**asdict(case), "half": options.half, "loader": loader, **rounds}


def spread(values: list[float]) -> str:
    """Median, least and greatest."""
    return f"{statistics.median(values):.2f}x ({min(values):.2f}-{max(values):.2f})"


def row(record: dict[str, Any]) -> str:
    """A line of the table: speeds, and the ratio of times round by round."""
    ours, theirs = record["slimrank"], record["fuxictr"]
    speeds = [statistics.median(e["rows"] / e["wall_s"] for e in side) for side in (ours, theirs)]
    cells = [record[name] for name in ("interaction", "batch_size", "threads", "loader")]
    cells += [f"{speed:,.0f}" for speed in speeds]
    for time_ in ("wall_s", "cpu_s"):
        pairs = zip(ours, theirs, strict=True)
        cells.append(spread([other[time_] / mine[time_] for mine, other in pairs]))
    return "| " + " | ".join(map(str, cells)) + " |"


HEADER = (
    "| interaction | batch | threads | FuxiCTR's loader | Slimrank rows/s | FuxiCTR rows/s "
    "| faster by, wall (min-max) | by CPU time |\n|---|---:|---:|---|---:|---:|---|---|"
)


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="train.parquet with label, I1..I13, C1..C26, chunk")
    parser.add_argument("--env", type=Path, default=Path(".cache/fuxictr"))
    parser.add_argument("--out", type=Path, default=Path("reports/training_speed.json"))
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256, 2048, 4096])
    parser.add_argument("--interaction", nargs="+", default=["cat", "dot"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--loaders", nargs="+", default=["parquet", "npz", "memory"])
    parser.add_argument(
        "--average", type=float, default=0.0, help="our ema_decay; FuxiCTR has none"
    )
    parser.add_argument("--half", action="store_true", help="our train.half; FuxiCTR has none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        serve(options)
        return
    records = []
    print(HEADER, flush=True)
    for threads, interaction, batch, loader in itertools.product(
        options.threads, options.interaction, options.batch_sizes, options.loaders
    ):
        records.append(compare(Case(interaction, batch, threads), loader, options))
        print(row(records[-1]), flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(records, indent=2))


if __name__ == "__main__":
    main()
