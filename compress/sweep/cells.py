"""A sweep's cells, and what is left of them carried out.

    what requests take, where a budget is of time: alone, so that nothing disturbs the clock
    → budgets that nothing can meet are told, and their cells left out
    → dense rankers that cells need and nobody has made
    → cells → times of what came of them, one after the other

A cell is a seed of an ordinary run, in that run's folder. So what is done is found, a killed sweep
goes on from its cells' checkpoints, and `compress run` on a variant's config has only to seal the
card and publish.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from compress.budget import Budget
from compress.config import CompressError, RunConfig
from compress.costs import request_us
from compress.data.encode import Dataset, prepare
from compress.data.folders import spacious
from compress.pipeline import (
    check_budgets,
    finished,
    has_dense,
    make_dense,
    pricing_of,
    run_seed,
    site_of,
    untrained,
)
from compress.plan import Site, dense_folder, latency_file, resolve, run_folder
from compress.progress import Lines, Progress, Silent
from compress.stages import write_whole
from compress.sweep.board import Board
from compress.sweep.launchers.base import Fault, Launcher, Task
from compress.sweep.plan import Sweep, Variant
from model_store.bundle import open_bundle

LOG_FILE: Final = "log.txt"
TIMES_FILE: Final = "times.json"

Microseconds = tuple[float, float]  # a request to the dense ranker and to the slim one


@dataclass(frozen=True, slots=True)
class Cell:
    """A variant under a seed, and where it lies."""

    variant: Variant
    seed: int
    site: Site

    @property
    def name(self) -> str:
        """What messages call it; no other cell's."""
        return f"{self.variant.name} seed {self.seed}"

    @property
    def slim(self) -> Path:
        """Its bundle."""
        return self.site.of_seed(self.seed) / "slim"


def cells_of(sweep: Sweep, progress: Progress) -> list[Cell]:
    """All cells, seed by seed, so that a sweep cut short has something of every method.

    The data are prepared here, once for all variants that read the same.
    """
    datasets: dict[str, Dataset] = {}
    sites = []
    for variant in sweep.variants:
        plan, config = variant.plan, variant.plan.config
        data = config.data.model_dump_json()
        if data not in datasets:
            datasets[data] = prepare(plan.source, config.runs / config.name / "data", progress)
        folders = dense_folder(plan, datasets[data]), run_folder(plan, datasets[data])
        sites.append(Site(plan, datasets[data], *folders, progress))
    pairs = list(zip(sweep.variants, sites, strict=True))
    return [Cell(variant, seed, site) for seed in sweep.seeds for variant, site in pairs]


def carry_out(
    cells: Sequence[Cell], launcher: Launcher, workers: int, progress: Progress
) -> dict[str, Fault]:
    """Run what is left of the cells.

    Returns:
        Name of a cell -> why it could not be done.
    """
    left = [cell for cell in cells if finished(cell.site, cell.seed) is None]
    tables = Need("latency tables", missing_latency, _price)
    faults = _made(left, tables, launcher, 1, progress)
    faults |= infeasible(_without(left, faults))
    rankers = Need("dense rankers", missing_dense, _dense)
    faults |= _made(_without(left, faults), rankers, launcher, workers, progress)
    ready = [_task(cell.name, _cell, cell) for cell in _without(left, faults)]
    board = Board(progress, "cells", len(cells), len(cells) - len(ready))
    return {**faults, **_launched(launcher, workers, ready, board)}


def _without(cells: Sequence[Cell], faults: Mapping[str, Fault]) -> list[Cell]:
    return [cell for cell in cells if cell.name not in faults]


@dataclass(frozen=True, slots=True)
class Need:
    """What several cells need, each once and before them, so that none waits for another's.

    Attributes:
        stage: as progress calls it.
        of: where a cell's is to lie; None: it does, or the cell needs none.
        make: makes that of a run's config and seed.
    """

    stage: str
    of: Callable[[Cell], Path | None]
    make: Callable[[RunConfig, int], None]


def _made(
    cells: Sequence[Cell], need: Need, launcher: Launcher, at_once: int, progress: Progress
) -> dict[str, Fault]:
    """Make what the cells need.

    Returns:
        Name of a cell whose need could not be met -> why.
    """
    needs = [(cell, path) for cell in cells if (path := need.of(cell)) is not None]
    first: dict[Path, Cell] = {}
    for cell, path in needs:
        first.setdefault(path, cell)
    tasks = [_task(_short(path), need.make, cell) for path, cell in first.items()]
    failed = _launched(launcher, at_once, tasks, Board(progress, need.stage, len(tasks), 0))
    return {cell.name: failed[_short(path)] for cell, path in needs if _short(path) in failed}


def infeasible(cells: Sequence[Cell]) -> dict[str, Fault]:
    """Name of a cell whose budget nothing can meet -> why; by sizes alone, so once a variant."""
    found: dict[str, Fault] = {}
    by_run: dict[Path, Fault | None] = {}
    for cell in cells:
        if cell.site.folder not in by_run:
            by_run[cell.site.folder] = _fault(cell)
        if (fault := by_run[cell.site.folder]) is not None:
            found[cell.name] = fault
    return found


def _fault(cell: Cell) -> Fault | None:
    try:
        check_budgets(cell.site)
    except CompressError as error:  # the times that it is told by may not fit, either
        return Fault(str(error))
    return None


def missing_dense(cell: Cell) -> Path | None:
    """Where the cell's dense ranker is to lie, unless it does."""
    if has_dense(cell.site, cell.seed):
        return None
    return cell.site.dense_of(cell.seed)


def missing_latency(cell: Cell) -> Path | None:
    """Where the times are to lie that the cell's budget is told by, unless they do or it has none.

    They are taken alone: other cells at work would make requests slow.
    """
    budget = getattr(cell.variant.plan.method_config, "budget", None)
    if not isinstance(budget, Budget) or budget.p50_us is None:
        return None
    path = latency_file(cell.site)
    return None if path.exists() else path


def _short(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _launched(
    launcher: Launcher, workers: int, tasks: Sequence[Task], board: Board
) -> Mapping[str, Fault]:
    if tasks:  # else no cluster need be started
        launcher.launch(tasks, workers, board.tell)
    return board.faults


def _task(name: str, function: Callable[[RunConfig, int], None], cell: Cell) -> Task:
    return Task(name, function, (cell.variant.plan.config, cell.seed))


def _dense(config: RunConfig, seed: int) -> None:
    site = site_of(resolve(config), Silent())
    with spacious(site.shared), _logged(site.dense_of(seed)) as log:
        make_dense(replace(site, progress=log), seed)


def _price(config: RunConfig, seed: int) -> None:
    site = site_of(resolve(config), Silent())
    with spacious(site.shared), _logged(site.shared) as log:
        ranker = untrained(site, seed)  # times depend on sizes alone
        pricing_of(replace(site, progress=log), ranker).p50_us(ranker.sizes())


def _cell(config: RunConfig, seed: int) -> None:
    site = site_of(resolve(config), Silent())
    with spacious(site.folder), _logged(site.of_seed(seed)) as log:
        run_seed(replace(site, progress=log), seed)


@contextmanager
def _logged(folder: Path) -> Iterator[Progress]:
    """What a process without a terminal is at stands in a file."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG_FILE).open("a", buffering=1) as file:
        yield Lines(file.write)


def timed(cells: Sequence[Cell], folder: Path, progress: Progress) -> dict[str, Microseconds]:
    """Time each slim bundle and its dense one in turn, nothing else of the sweep running.

    Args:
        cells: all done.
        folder: keeps the times, so that a sweep run again tells the same.
        progress: told of the cells timed.

    Returns:
        The slim bundle's folder -> microseconds.
    """
    found = read_times(folder)
    for done, cell in enumerate(cells):
        if str(cell.slim) not in found:
            progress.step("times", done, len(cells))
            pair = [open_bundle(cell.site.dense_of(cell.seed) / "dense"), open_bundle(cell.slim)]
            options = cell.variant.plan.config.export
            dense, slim = request_us(pair, cell.site.dataset, options.timing_candidates)
            found[str(cell.slim)] = (dense, slim)
            write_whole(folder / TIMES_FILE, json.dumps(found, indent=1))
    progress.step("times", len(cells), len(cells))
    return found


def read_times(folder: Path) -> dict[str, Microseconds]:
    """What `timed` has found so far."""
    path = folder / TIMES_FILE
    found = json.loads(path.read_text()) if path.exists() else {}
    return {slim: (us[0], us[1]) for slim, us in found.items()}
