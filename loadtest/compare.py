"""Dense against slim behind the same service: ``python -m loadtest.compare``.

    python -m loadtest.compare --store store --model ctr --users 1,8,32 --duration 3 --rounds 3

Each round starts the service with the one bundle, drives it, stops it, and does the same with the
others (dense, slim, and slim in eight bits where the store has it); every second round the other
way round, so that a machine that slows down hurts all alike. All get the same requests over the
same number of connections. Service and load generator run on cores of their own where there are
two.

Closed loops come first: ``--users`` who send when they have their answer. Then requests arrive by
a timetable, at rates that climb to what the side could do in a closed loop (``--shares`` of it), or
at ``--rates``; their times count from when they were due.

Writes compare.md, compare.json, compare.png and hgrm/; ``python -m loadtest.report --against``
compares with an earlier run. Exits with 0; 1 where a request failed or nothing was measured; 2
where there is nothing to compare; 3 where in every round another side's closed loop is below
``--min-ratio`` of dense's; 4 where there is none to judge, or its generator was saturated.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from loadtest import bounds, measured, report, server, shapes, sides, traffic
from loadtest.measured import Ratio

LOCUSTFILE: Final = Path(__file__).with_name("locustfile.py")
FAILED: Final = 1
NOTHING_TO_COMPARE: Final = 2
BELOW_RATIO: Final = 3
NOTHING_TO_JUDGE: Final = 4
INTERRUPTED: Final = 128 + signal.SIGINT
SLACK_S: Final = 60.0
START_S: Final = 6.0  # about what a run takes besides its levels, for the forecast
CALIBRATION: Final = 0  # the round before the first
CALIBRATION_S: Final = 2.0
CALIBRATION_USERS: Final = 32
SHARES: Final = (0.25, 0.5, 0.71, 0.8, 0.9, 1.0, 1.12)
# Log lines cost all sides the same and would hide a part of the ratio; nobody waits for a drain.
QUIET: Final = {"REQUEST_LOG": "false", "DRAIN_DELAY_S": "0"}
# The only backend of gevent's that wakes up more exactly than to a millisecond.
EXACT_TIMERS: Final = {"GEVENT_BACKEND": "select"}
RUNS: Final = "runs"


class FolderUnusable(Exception):
    """Results cannot be written there; the message says why."""


class LoadFailed(Exception):
    """A run of the load generator gave no result, or failed requests."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Who runs where; None where the system cannot keep them apart."""

    service: frozenset[int] | None
    generator: frozenset[int] | None


@dataclass(frozen=True, slots=True)
class Load:
    """What one start of the load generator drives.

    Attributes:
        users: levels of closed loops.
        rates: levels of open loops, arrivals a second.
    """

    users: Sequence[int]
    rates: Sequence[float]
    warmup_s: float
    duration_s: float
    seed: int

    @property
    def seconds(self) -> float:
        """How long it takes."""
        return (len(self.users) + len(self.rates)) * (self.warmup_s + self.duration_s)


@dataclass(frozen=True, slots=True)
class Setup:
    """What stays the same from run to run.

    Attributes:
        bundle: the folder that requests are drawn from: dense's, which brings every feature.
    """

    options: argparse.Namespace
    command: Sequence[str]
    cores: Cores
    bundle: Path


@dataclass(frozen=True, slots=True)
class Run:
    """One bundle driven once."""

    side: str
    round: int
    served: Mapping[str, str]
    result: Mapping[str, Any]

    @property
    def windows(self) -> list[dict[str, Any]]:
        """What was measured, as it is kept."""
        return [{"side": self.side, "round": self.round, **w} for w in self.result["windows"]]

    @property
    def failures(self) -> dict[str, int]:
        """Failed requests by what was wrong with them, warm-up included."""
        failures: dict[str, int] = self.result["failures"]
        return failures


def split_cores(available: Sequence[int], workers: int) -> Cores:
    """A core for the generator, and one a worker for the service, as far as they go."""
    if len(available) < 2:  # noqa: PLR2004 - one for each
        return Cores(None, None)
    return Cores(frozenset(available[:-1][:workers]), frozenset(available[-1:]))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--store", type=Path, default=Path("store"), help="folder of bundles")
    add("--model", help="its name; may be left out where the store holds only one")
    add("--prepare", type=Path, metavar="CONFIG", help="compress run it first")
    add("--users", type=bounds.levels, default=[1, 8, 32], help="closed loops: 1,8,32 or none")
    add("--shares", type=bounds.shares, default=[*SHARES], help="open loops, of capacity; or none")
    add("--rates", type=bounds.rates, help="open loops, arrivals/s, for all sides: 100,200")
    add("--arrivals", choices=[*shapes.ARRIVALS], default="poisson", help="the timetable")
    add("--connections", type=bounds.users, default=64, help="of the open loops")
    add("--candidates", type=bounds.count, default=200, help="candidates a request")
    add("--duration", type=bounds.seconds, default=3.0, help="measured seconds a level")
    add("--warmup", type=bounds.seconds, default=1.0, help="seconds before each level")
    add("--rounds", type=int, default=3, choices=range(1, 21), metavar="1..20")
    add("--workers", type=bounds.count, default=1, help="processes of the service")
    add("--seed", type=int, default=1, help="draws the same requests and arrivals again")
    add(
        "--min-ratio",
        type=bounds.ratio,
        help="fail if a side is below this of dense in every round",
    )
    add("--out", type=Path, default=report.DEFAULT, help="result folder")
    options = parser.parse_args(argv)
    if options.rates is not None:
        options.shares = []
    if not (options.users or options.shares or options.rates):
        parser.error("expected --users, --shares or --rates: all are none")
    if options.min_ratio is not None and not options.users:
        parser.error("expected --users: --min-ratio judges closed loops")
    return options


def main(argv: Sequence[str] | None = None, command: Sequence[str] = server.SERVICE) -> int:
    """Compare, write, and say what came out."""
    options = parse(argv)
    try:
        make_folder(options.out)
        if options.prepare:
            prepare(options.prepare, options.store)
        options.model = traffic.choose_model(options.store, options.model)
        return compare(options, command)
    except KeyboardInterrupt:
        print("loadtest: stopped", file=sys.stderr)
        return INTERRUPTED
    except (FolderUnusable, traffic.BundleUnusable) as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return NOTHING_TO_COMPARE
    except (LoadFailed, server.ServerFailed) as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return FAILED


def make_folder(out: Path) -> None:
    """Make the folder for results, before minutes of work are spent on what it cannot take.

    Raises:
        FolderUnusable: it cannot be made.
    """
    try:
        (out / RUNS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FolderUnusable(f"--out {out} is no folder to write to: {error.strerror}") from None


def prepare(config: Path, store: Path) -> None:
    """Train, compress and publish into ``store``; its progress passes through.

    Raises:
        LoadFailed: the run failed; it has said why.
    """
    where = f"publish.store={json.dumps(str(store))}"
    command = [sys.executable, "-m", "compress", "run", str(config), "-o", where]
    if subprocess.run(command, check=False).returncode:
        raise LoadFailed(f"`compress run {config}` failed; there is nothing to compare")


def compare(options: argparse.Namespace, command: Sequence[str]) -> int:
    """All rounds, then the report; the process's exit status.

    Raises:
        BundleUnusable, ServerFailed, LoadFailed: nothing could be measured, or requests failed.
    """
    driven = sides.of_model(options.store, options.model)
    bundle = traffic.bundle_folder(options.store, options.model, driven[0].version)
    setup = Setup(options, command, split_cores(_available_cores(), options.workers), bundle)
    capacity = calibrate(setup, driven) if options.shares else {}
    rates = {side.name: _rates_of(options, capacity, side.name) for side in driven}
    runs = run_all(setup, driven, rates)
    how = about(setup, {run.side: run.served for run in runs}, capacity, rates)
    written = report.write(options.out, how, [each for run in runs for each in run.windows])
    print(report.tables(written), *written.notes, sep="\n")
    print(f"written to {options.out}: compare.md, compare.png, compare.json, hgrm")
    failures = [f"{run.side}: {n} x {what}" for run in runs for what, n in run.failures.items()]
    if failures:
        raise LoadFailed("requests failed:\n  " + "\n  ".join(failures))
    unmeasured = [f"{row.side} at {row.level.name}" for row in written.rows if not row.requests]
    if unmeasured:
        raise LoadFailed("no request was answered:\n  " + "\n  ".join(unmeasured))
    return judge(written.ratios, options.min_ratio)


def run_all(
    setup: Setup, driven: Sequence[sides.Side], rates: Mapping[str, Sequence[float]]
) -> list[Run]:
    """Every round of every side, saying how far it is.

    Raises:
        ServerFailed, LoadFailed: a run gave no result.
    """
    plan = [
        (number, side, _load(setup.options, rates[side.name], number))
        for number in range(1, setup.options.rounds + 1)
        for side in (driven if number % 2 else reversed(driven))
    ]
    runs = []
    for place, (number, side, load) in enumerate(plan):
        left_s = sum(later.seconds + START_S for _, _, later in plan[place:])
        print(
            f"run {place + 1} of {len(plan)}: {setup.options.model}, {side.name} "
            f"(round {number}); about {left_s / 60:.1f} min left",
            flush=True,
        )
        runs.append(run_side(setup, side, load, number))
    return runs


def judge(ratios: Sequence[Ratio], least: float | None) -> int:
    """The exit status that the gate asks for, by the throughput of closed loops.

    A side fails that is below ``least`` in every round: what disturbs a machine seldom does so each
    time, a slower graph does. Times of open loops are not judged: a queue magnifies what
    neighbours take of a core.
    """
    if least is None:
        return 0
    judged = [ratio for ratio in ratios if ratio.rate is None]
    if not judged:
        print("loadtest: --min-ratio has no closed loop to judge: see the notes", file=sys.stderr)
        return NOTHING_TO_JUDGE
    short = [ratio for ratio in judged if ratio.rps.high < least]
    for ratio in short:
        print(
            f"loadtest: {ratio.side} reaches {ratio.rps.high:.2f}x of dense at {ratio.level.name}, "
            f"--min-ratio asks for {least:g}x",
            file=sys.stderr,
        )
    return BELOW_RATIO if short else 0


def calibrate(setup: Setup, driven: Sequence[sides.Side]) -> dict[str, float]:
    """Answers a second of each side in a closed loop, by its name.

    Raises:
        ServerFailed, LoadFailed: no result, or requests failed.
    """
    capacity = {}
    options = setup.options
    load = Load([CALIBRATION_USERS], [], options.warmup, CALIBRATION_S, options.seed)
    for side in driven:
        print(f"capacity of {side.name} ...", flush=True)
        run = run_side(setup, side, load, CALIBRATION)
        (window,) = measured.read(run.windows)
        if run.failures or not window.answered:
            raise LoadFailed(f"{side.name}: requests failed: {run.failures or 'no answer'}")
        capacity[side.name] = window.rps
    return capacity


def run_side(setup: Setup, side: sides.Side, load: Load, number: int) -> Run:
    """One bundle, served and driven in the round of that number; its files are in ``runs``.

    Raises:
        ServerFailed, LoadFailed: no result.
    """
    options = setup.options
    name = f"{number}-{side.name}"
    folder = options.out / RUNS
    settings = {
        "STORE": str(options.store.resolve()),
        "MODELS": f"{options.model}@{side.version}",
        "CACHE": "memory://",
        "WORKERS": str(options.workers),
        **QUIET,
    }
    log = folder / f"{name}-service.log"
    with server.serving(settings, log, command=setup.command, cores=setup.cores.service) as running:
        served = server.get_json(f"{running.url}/models/{options.model}")
        with server.pinned(setup.cores.generator):
            result = drive(setup, load, running, folder / f"{name}.json")
    told = {key: str(served.get(key, "")) for key in ("version", "digest", "numerics")}
    return Run(side.name, number, told, result)


def drive(setup: Setup, load: Load, running: server.Server, out: Path) -> dict[str, Any]:
    """Run Locust against a service that is ready; what it says of its progress passes through.

    Raises:
        LoadFailed: it ended without a result.
    """
    options = setup.options
    flags = {
        "--host": running.url,
        "--bundle": setup.bundle,
        "--candidates": options.candidates,
        "--seed": load.seed,
        "--levels": _joined(load.users),
        "--rates": _joined(load.rates),
        "--connections": options.connections,
        "--arrivals": options.arrivals,
        "--warmup": load.warmup_s,
        "--duration": load.duration_s,
        "--service-pid": running.pid,
        "--out": out,
        "--stop-timeout": 5,
        "--loglevel": "WARNING",
    }
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless"]
    command += ["--only-summary", *(str(part) for flag in flags.items() for part in flag)]
    out.unlink(missing_ok=True)
    log = out.with_suffix(".log")
    environment = {**os.environ, **EXACT_TIMERS}  # noqa: TID251 - handed on to a child process
    try:
        with log.open("w", encoding="utf-8") as output:
            ended = subprocess.run(
                command,
                check=False,
                env=environment,
                stderr=output,
                timeout=load.seconds + SLACK_S,
            )
    except subprocess.TimeoutExpired:
        raise LoadFailed(
            f"the load generator was not done after {load.seconds + SLACK_S:g} s"
        ) from None
    if not out.exists():
        said = server.tail(log)
        raise LoadFailed(f"the load generator ended with {ended.returncode}:\n{said}")
    result: dict[str, Any] = json.loads(out.read_text())
    if len(result["windows"]) < len(load.users) + len(load.rates):
        raise LoadFailed("the load generator stopped before its last level")
    return result


def about(
    setup: Setup,
    served: Mapping[str, Mapping[str, str]],
    capacity: Mapping[str, float],
    rates: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """How it was measured: what must be alike for two runs to be compared, and the rest.

    Args:
        setup: of the runs.
        served: version, digest and numerics by side.
        capacity: answers a second in a closed loop by side, if that was measured.
        rates: of open loops by side.
    """
    options = setup.options
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": options.model,
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            "locust": importlib.metadata.version("locust"),
            "service_cores": sorted(setup.cores.service or ()),
            "generator_cores": sorted(setup.cores.generator or ()),
        },
        "settings": {
            "candidates": options.candidates,
            "arrivals": options.arrivals,
            "connections": options.connections,
            "warmup_s": options.warmup,
            "duration_s": options.duration,
            "workers": options.workers,
            "seed": options.seed,
            "service": QUIET,
        },
        "bundles": {side: dict(each) for side, each in served.items()},
        "capacity": {side: round(rps, 1) for side, rps in capacity.items()},
        "rates": {side: list(each) for side, each in rates.items()},
        "users": options.users,
        "rounds": options.rounds,
    }


def _load(options: argparse.Namespace, rates: Sequence[float], number: int) -> Load:
    # All sides of a round get the same requests and arrivals, the rounds different ones.
    return Load(options.users, rates, options.warmup, options.duration, options.seed + number - 1)


def _rates_of(
    options: argparse.Namespace, capacity: Mapping[str, float], side: str
) -> Sequence[float]:
    if options.shares:
        return shapes.rates_for(capacity[side], capacity[sides.DENSE], options.shares)
    return options.rates or []


def _available_cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return []


def _processor() -> str:
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _joined(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values) or bounds.NONE


if __name__ == "__main__":
    server.unwind_when_told_to_end()
    sys.exit(main())
