"""A sweep comes to the same table and report, however its cells are run and whatever stops it."""

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import ray
from polars.testing import assert_frame_equal
from typer.testing import CliRunner

from compress import pipeline
from compress.__main__ import app
from compress.config import load as load_run
from compress.data.folders import in_turn
from compress.pipeline import Outcome as RunOutcome
from compress.pipeline import run as run_plan
from compress.pipeline import untrained
from compress.plan import latency_file, resolve
from compress.pricing import FITTED, HELD_OUT
from compress.progress import Silent
from compress.sweep.cells import carry_out, cells_of
from compress.sweep.launchers import make_launcher
from compress.sweep.launchers.base import Ended, Event, Launcher, Started, Task, attempt
from compress.sweep.plan import load
from compress.sweep.run import Outcome, run
from tests.compress.tiny import config_file

SWEEP = """
base = "tiny.toml"
reference = "umec"
[sweep]
method.budget.flops = [0.5]
[methods.umec]
[methods.none]
method = {type = "none"}
sweep = {}
"""
BY_THE_CLOCK = pl.selectors.contains("us_per_request", "p50_us", "speedup", "seconds", "run")


class InThisProcess:
    """A launcher that starts no process, and notes what it is asked for."""

    def __init__(self, *, idle: bool = False) -> None:
        self.waves: list[tuple[list[str], int]] = []
        self._idle = idle

    def launch(self, tasks: Sequence[Task], workers: int, tell: Callable[[Event], None]) -> None:
        """One after the other; if idle, says that they are done and does nothing."""
        self.waves.append(([task.name for task in tasks], workers))
        for task in tasks:
            tell(Started(task.name))
            tell(Ended(task.name, None if self._idle else attempt(task)))


def sweep_file(place: Path) -> Path:
    """The sweep, its base beside it and its runs below."""
    config_file(place)
    path = place / "sweep.toml"
    path.write_text(SWEEP)
    return path


def swept_in(place: Path, launcher: Launcher, *overrides: str) -> Outcome:
    """What a sweep there comes to."""
    sweep = load(sweep_file(place), overrides)
    return run(sweep, launcher, workers=2, times=True, folder=place / "report", progress=Silent())


def table_of(outcome: Outcome) -> pl.DataFrame:
    """Its table."""
    return pl.read_parquet(outcome.folder / "results.parquet")


def cell_folder(place: Path, method: str, seed: int) -> Path:
    """Where a cell lies."""
    runs = table_of(Outcome(place / "report", [], {}))
    (path,) = runs.filter(method=method, seed=seed)["run"]
    return place / Path(path).relative_to(Path(path).parents[3])


@pytest.fixture(scope="module")
def place(tiny_run: RunOutcome, tiny_place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished run, which is a part of the sweep."""
    copy = tmp_path_factory.mktemp("sweep")
    shutil.copytree(tiny_place, copy, dirs_exist_ok=True)
    return copy


@pytest.fixture(scope="module")
def outcome(place: Path) -> Iterator[Outcome]:
    """A whole sweep: two methods, two seeds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "apart", lambda _, function, *args: function(*args))
        yield swept_in(place, InThisProcess())


@pytest.fixture
def here(outcome: Outcome, place: Path, tmp_path: Path) -> Path:
    """A copy of where that sweep went: what a test does there, no other test sees."""
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    return tmp_path


# --- what it comes to ------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cell_is_a_row(outcome: Outcome, tiny_run: RunOutcome) -> None:
    """Its quality is that of the run which it is a seed of; its costs are those of the bundle."""
    table = table_of(outcome)

    assert table.select("method", "budget", "method.budget.flops", "seed").rows() == [
        ("umec", "flops=0.5", 0.5, 1),
        ("none", "", None, 1),
        ("umec", "flops=0.5", 0.5, 2),
        ("none", "", None, 2),
    ]
    assert table["error"].null_count() == 4
    umec = table.filter(method="umec")
    for result, row in zip(tiny_run.card.results, umec.iter_rows(named=True), strict=True):
        assert (row["auc.dense"], row["auc.slim"]) == (result.dense.auc, result.slim.auc)
        assert row["logloss.risen"] == result.slim.logloss - result.dense.logloss
        assert row["requested.all"] == 0.5 >= row["achieved.all"] == row["flops.left"]
        files = [path for path in Path(row["run"], "slim").rglob("*") if path.is_file()]
        parts = [value for name, value in row.items() if re.match(r"bytes\.slim\.", name)]
        assert row["bytes.slim"] == sum(path.stat().st_size for path in files) - grown(row)
        assert sum(filter(None, parts)) == row["bytes.slim"]
        assert row["speedup"] == row["us_per_request.dense"] / row["us_per_request.slim"]
        assert row["achieved.p50_us"] == pytest.approx(1 / row["speedup"])
        assert row["achieved.bytes"] == row["bytes.left"]
        assert 0 < row["fields.kept"] <= row["fields"]
        assert row["seconds"] > 0


def grown(row: dict[str, object]) -> int:
    """What the manifest of the first seed gained when the whole run was sealed under its card."""
    manifest = Path(str(row["run"]), "slim", "manifest.json").stat().st_size
    checksums = Path(str(row["run"]), "slim", "SHA256SUMS").stat().st_size
    before = row["bytes.slim.manifest"]
    assert isinstance(before, int)
    return manifest + checksums - before


@pytest.mark.slow
def test_a_sweep_run_again_does_nothing_again(outcome: Outcome, place: Path) -> None:
    """No cell is begun, no time is taken anew, no byte of table, report and plot changes."""
    files = [path for path in outcome.folder.iterdir() if path.suffix in {".html", ".parquet"}]
    files.append(outcome.folder / "frontier.svg")
    before = {path: path.read_bytes() for path in files}
    launcher = InThisProcess()

    swept_in(place, launcher)

    assert not launcher.waves
    assert {path: path.read_bytes() for path in files} == before


@pytest.mark.slow
def test_a_variant_is_an_ordinary_run(outcome: Outcome, here: Path) -> None:
    """Run on its config, it finds its cells done, seals their card, and is published."""
    stages: list[str] = []

    class Stages(Silent):
        def step(self, stage: str, done: int, total: int | None, **numbers: object) -> None:
            stages.append(stage)

    sweep = load(sweep_file(here))
    none = next(variant for variant in sweep.variants if variant.method == "none")
    found = run_plan(resolve(load_run(sweep.base, none.overrides)), Stages())

    assert not stages
    rows = table_of(outcome).filter(method="none")
    assert [result.slim.auc for result in found.card.results] == rows["auc.slim"].to_list()
    assert set(found.versions) == {"dense", "slim"}


@pytest.mark.slow
def test_the_report_holds_every_method_and_fetches_nothing(outcome: Outcome) -> None:
    """Budgets, cells, how to publish each; its one picture is a part of it."""
    html = (outcome.folder / "report.html").read_text()

    assert not re.search(r"<(script|link|img)\b", html)
    assert html.count("<svg") == 1
    for text in ("flops=0.5", "No budget", "umec seed 2", "none seed 2", "data hash", "tiny.toml"):
        assert text in html.replace("umec flops=0.5 seed", "umec seed")
    for method in ("umec", "none"):
        assert f"<td>{method}</td>" in html
    assert {"frontier.png", "frontier.svg"} <= {path.name for path in outcome.folder.iterdir()}


# --- what stops it ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cell_that_fails_is_told_and_tried_again_alone(outcome: Outcome, here: Path) -> None:
    """Its row says why, the exit code too; the others stand, and no other is begun again."""
    hungry = ["-o", "methods.hungry.sweep.method.budget.flops=[1e-6]", "-o", "seeds=[1]"]
    words = ["sweep", str(sweep_file(here)), *hungry, "-O", str(here / "new"), "--no-times"]

    ended = CliRunner().invoke(app, words)

    assert ended.exit_code == 4
    assert "failed: hungry flops=1e-06 seed 1: method.budget" in ended.stderr
    assert "hungry" not in ended.stdout
    assert re.search(r"umec +│ flops=0.5", ended.stdout)
    table = pl.read_parquet(here / "new" / "results.parquet")
    (error,) = table.filter(method="hungry")["error"]
    assert error in ended.stderr
    assert table.filter(method="umec")["auc.slim"][0] == table_of(outcome)["auc.slim"][0]
    assert "1 cell failed" in (here / "new" / "report.html").read_text()

    again = InThisProcess(idle=True)
    carry_out(cells_of(load(sweep_file(here), hungry[1::2]), Silent()), again, 2, Silent())
    assert again.waves == []


def test_what_nothing_can_meet_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    """With the smallest that can be, whatever else there is to do."""
    sweep = load(sweep_file(tmp_path), ["sweep.method.budget.flops=[0.5, 1e-6]", "seeds=[1]"])
    launcher = InThisProcess(idle=True)

    faults = carry_out(cells_of(sweep, Silent()), launcher, 2, Silent())

    ((name, fault),) = faults.items()
    assert name == "umec flops=1e-06 seed 1"
    assert "the smallest that can be: method.budget.flops = 0.0" in fault.text
    assert launcher.waves[-1] == (["umec flops=0.5 seed 1", "none seed 1"], 2)


def test_times_that_fit_nothing_keep_only_their_own_cells_from_running(tmp_path: Path) -> None:
    """Also where an earlier run has left them."""
    asked = ["sweep.method.budget=[{flops=0.5}, {p50_us=100}]", "seeds=[1]"]
    sweep = load(sweep_file(tmp_path), asked)
    cells, rng = cells_of(sweep, Silent()), np.random.default_rng(1)
    timed = next(cell for cell in cells if "p50_us" in cell.name)
    whole = untrained(timed.site, 0).sizes()
    path = latency_file(timed.site)
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = [
        {"widths": dict(whole.widths), "hidden": dict(whole.hidden), "us": us}
        for us in rng.uniform(1, 1000, FITTED + HELD_OUT)
    ]
    path.write_text(json.dumps(noise))
    launcher = InThisProcess(idle=True)

    faults = carry_out(cells, launcher, 2, Silent())

    assert [*faults] == [timed.name]
    assert "were missed by" in faults[timed.name].text
    assert launcher.waves[-1] == (["umec budget={flops = 0.5} seed 1", "none seed 1"], 2)


def test_cells_without_a_dense_ranker_are_not_tried(tmp_path: Path) -> None:
    """What failed is told of each of them."""
    launcher = InThisProcess()

    outcome = swept_in(tmp_path, launcher, "train.lr=1e30", "train.optimizer=sgd", "seeds=[1]")

    assert [len(tasks) for tasks, _ in launcher.waves] == [1]
    assert set(outcome.faults) == {"umec flops=0.5 seed 1", "none seed 1"}
    assert all("the loss is nan" in fault.text for fault in outcome.faults.values())
    assert table_of(outcome)["error"].null_count() == 0
    assert (outcome.folder / "report.html").exists()


@pytest.mark.slow
def test_times_that_budgets_are_told_by_are_taken_alone(outcome: Outcome, here: Path) -> None:
    """Once for all cells that need them, before the cells, and with nothing beside them."""
    launcher = InThisProcess(idle=True)
    asked = ["sweep.method.budget={p50_us = [90, 120]}", "methods.umec.method.budget.flops=0.9"]
    cells = cells_of(load(sweep_file(here), asked), Silent())

    carry_out(cells, launcher, 2, Silent())

    (tables, alone), (left, workers) = launcher.waves
    assert (len(tables), alone) == (1, 1)
    assert tables[0].endswith("/times.json")
    assert (len(left), workers) == (4, 2)


@pytest.mark.slow
def test_a_killed_sweep_goes_on_to_the_same_table(
    outcome: Outcome, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill -9 while a cell trains: its process goes too, the next sweep finds its checkpoint."""
    cell = cell_folder(here, "none", 2)
    shutil.rmtree(cell)
    command = [sys.executable, "-m", "compress", "sweep", str(sweep_file(here)), "--no-times"]
    with subprocess.Popen([*command, "-O", str(here / "report")]) as process:
        waits = threading.Event()
        while not (cell / "finetune.ckpt").exists():
            assert process.poll() is None
            waits.wait(0.005)
        process.kill()
    with in_turn(cell, Silent()):  # waits until the cell's process is gone
        assert not (cell / "result.json").exists()
    monkeypatch.setattr(pipeline, "apart", lambda _, function, *args: function(*args))

    resumed = swept_in(here, InThisProcess())

    assert_frame_equal(*(table_of(each).drop(BY_THE_CLOCK) for each in (resumed, outcome)))


# --- launchers -------------------------------------------------------------------------------


@pytest.mark.slow
def test_ray_comes_to_the_same_table(outcome: Outcome, here: Path) -> None:
    """On a cluster of two CPUs of this machine; only what is left is run there."""
    shutil.rmtree(cell_folder(here, "none", 2))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        found = swept_in(here, make_launcher("ray"))
    finally:
        ray.shutdown()

    assert not found.faults
    assert_frame_equal(*(table_of(each).drop(BY_THE_CLOCK) for each in (found, outcome)))
