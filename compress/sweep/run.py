"""A sweep from its file to its report."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from compress.data.folders import alone
from compress.progress import Progress
from compress.stages import write_whole
from compress.sweep import report
from compress.sweep.cells import carry_out, cells_of, read_times, timed
from compress.sweep.launchers.base import Fault, Launcher
from compress.sweep.plan import Sweep
from compress.sweep.results import Result, results_of, write_table

TABLE_FILE: Final = "results.parquet"
STACKS_FILE: Final = "failures.txt"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a sweep came to.

    Attributes:
        results: of the cells that are done.
        faults: name of a cell -> why it could not be done.
    """

    folder: Path
    results: list[Result]
    faults: Mapping[str, Fault]


def run(
    sweep: Sweep,
    launcher: Launcher,
    *,
    workers: int,
    times: bool,
    folder: Path,
    progress: Progress,
) -> Outcome:
    """Run what is left of a sweep, and write its table and report.

    Args:
        sweep: resolved.
        launcher: runs the cells.
        workers: so many at a time.
        times: time every bundle afterwards; else what was timed before is told.
        folder: for the table, the report and the times.
        progress: told of cells and times.

    Raises:
        CompressError: another sweep writes to the folder, or the data cannot be read.
        KeyboardInterrupt: it was stopped; the same call goes on.
    """
    with alone(folder):
        cells = cells_of(sweep, progress)
        faults = carry_out(cells, launcher, workers, progress)
        done = [cell for cell in cells if cell.name not in faults]
        us = timed(done, folder, progress) if times else read_times(folder)
        results = results_of(done, us)
        write_table(folder / TABLE_FILE, cells, results, faults)
        write_stacks(folder / STACKS_FILE, faults)
        report.write(sweep, cells, results, faults, folder)
    return Outcome(folder, results, faults)


def write_stacks(path: Path, faults: Mapping[str, Fault]) -> None:
    """Where the cells failed whose message does not say what to do; no file if there are none."""
    path.unlink(missing_ok=True)
    stacks = [f"{name}\n{fault.stack}" for name, fault in faults.items() if fault.stack]
    if stacks:
        write_whole(path, "\n".join(stacks))
