"""Dense against slim behind the same service: ``python -m loadtest.compare``.

    python -m loadtest.compare --store store --model ctr --users 1,8 --duration 10 --rounds 3

Each round starts the service with the one bundle, drives it, stops it, and does the same with the
other; every second round the other way round, so that a machine that slows down hurts both alike.
Both get the same requests over the same number of connections. Service and load generator run on
cores of their own where there are two.

Writes compare.md, compare.json and compare.png. Exits with 0; 1 where a request failed or nothing
was measured; 2 where there is nothing to compare; 3 where slim is below ``--min-ratio``.
"""

import argparse
import json
import math
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from loadtest import plot, report, server, traffic

LOCUSTFILE: Final = Path(__file__).with_name("locustfile.py")
SIDES: Final = (report.DENSE, report.SLIM)
MOST_USERS: Final = 256
LONGEST_S: Final = 600.0
FAILED: Final = 1
NOTHING_TO_COMPARE: Final = 2
BELOW_RATIO: Final = 3
INTERRUPTED: Final = 128 + signal.SIGINT
SLACK_S: Final = 60.0
# Log lines cost both sides the same and would hide a part of the ratio; nobody waits for a drain.
QUIET: Final = {"REQUEST_LOG": "false", "DRAIN_DELAY_S": "0"}
LOG_LINES: Final = 25


class LoadFailed(Exception):
    """A run of the load generator gave no result, or failed requests."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Who runs where; None where the system cannot keep them apart."""

    service: frozenset[int] | None
    generator: frozenset[int] | None


@dataclass(frozen=True, slots=True)
class Setup:
    """What stays the same from run to run."""

    options: argparse.Namespace
    command: Sequence[str]
    cores: Cores


@dataclass(frozen=True, slots=True)
class Run:
    """One bundle driven once."""

    side: str
    version: str
    digest: str
    bundle: Path
    result: dict[str, Any]

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
    parser.add_argument("--store", type=Path, default=Path("store"), help="folder of bundles")
    parser.add_argument("--model", help="its name; may be left out where the store holds only one")
    parser.add_argument("--prepare", type=Path, metavar="CONFIG", help="compress run it first")
    parser.add_argument("--users", type=_levels, default=[8], help="levels of load: 1,8,32")
    parser.add_argument("--candidates", type=_count, default=200, help="candidates a request")
    parser.add_argument("--duration", type=_seconds, default=10.0, help="measured seconds a level")
    parser.add_argument("--warmup", type=_seconds, default=3.0, help="seconds before each level")
    parser.add_argument("--rounds", type=int, default=3, choices=range(1, 21), metavar="1..20")
    parser.add_argument("--rate", type=_rate, default=0.0, help="requests/s by a schedule, 0: none")
    parser.add_argument("--workers", type=_count, default=1, help="processes of the service")
    parser.add_argument("--seed", type=int, default=1, help="draws the same requests again")
    parser.add_argument("--min-ratio", type=_rate, help="fail if slim / dense requests/s is below")
    parser.add_argument("--out", type=Path, default=Path("reports/loadtest"), help="result folder")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, command: Sequence[str] = server.SERVICE) -> int:
    """Compare, write, and say what came out."""
    options = parse(argv)
    try:
        if options.prepare:
            prepare(options.prepare, options.store)
        options.model = traffic.choose_model(options.store, options.model)
        return compare(options, command)
    except KeyboardInterrupt:
        print("loadtest: stopped", file=sys.stderr)
        return INTERRUPTED
    except traffic.BundleUnusable as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return NOTHING_TO_COMPARE
    except (LoadFailed, server.ServerFailed) as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return FAILED


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
    cores = split_cores(_available_cores(), options.workers)
    setup = Setup(options, command, cores)
    runs: list[Run] = []
    for number in range(options.rounds):
        for side in SIDES if number % 2 == 0 else reversed(SIDES):
            print(f"round {number + 1} of {options.rounds}: {options.model}@{side} ...", flush=True)
            # The first is dense: both get its requests, which bring every feature there is.
            bundle = runs[0].bundle if runs else None
            runs.append(run_side(setup, side, number + 1, bundle))
    measured = [window for run in runs for window in report.read(run.side, run.result)]
    table, ratios = report.rows(measured), report.ratios(measured)
    notes = report.remarks(table, apart=cores.generator is not None)
    if cores.service and options.workers > len(cores.service):
        notes.append(f"{options.workers} workers shared {len(cores.service)} core(s).")
    write(options, table, ratios, notes, about(options, cores, runs))
    print(report.markdown(table, ratios), *notes, sep="\n")
    print(f"written to {options.out}: compare.md, compare.json, compare.png")
    failures = [f"{run.side}: {n} x {what}" for run in runs for what, n in run.failures.items()]
    if failures:
        raise LoadFailed("requests failed:\n  " + "\n  ".join(failures))
    return below(ratios, options.min_ratio)


def below(ratios: Sequence[report.Ratio], least: float | None) -> int:
    """The exit status that the gate asks for."""
    short = [ratio for ratio in ratios if least is not None and ratio.rps < least]
    for ratio in short:
        print(
            f"loadtest: slim answers {ratio.rps:.2f}x of dense at {ratio.users} users, "
            f"--min-ratio asks for {least:g}x",
            file=sys.stderr,
        )
    return BELOW_RATIO if short else 0


def run_side(setup: Setup, side: str, number: int, bundle: Path | None) -> Run:
    """One bundle, served and driven with requests drawn from ``bundle`` (None: from itself).

    Raises:
        ServerFailed, LoadFailed, BundleUnusable: no result.
    """
    options = setup.options
    folder = options.out / "runs"
    settings = {
        "STORE": str(options.store.resolve()),
        "MODELS": f"{options.model}@{side}",
        "CACHE": "memory://",
        "WORKERS": str(options.workers),
        **QUIET,
    }
    log = folder / f"{number}-{side}-service.log"
    with server.serving(settings, log, command=setup.command, cores=setup.cores.service) as running:
        served = server.get_json(f"{running.url}/models/{options.model}")
        version, digest = str(served["version"]), str(served["digest"])
        bundle = bundle or traffic.bundle_folder(options.store, options.model, version)
        out = folder / f"{number}-{side}.json"
        out.unlink(missing_ok=True)
        with server.pinned(setup.cores.generator):
            result = drive(options, running, bundle, out)
    return Run(side, version, digest, bundle, result)


def drive(
    options: argparse.Namespace, running: server.Server, bundle: Path, out: Path
) -> dict[str, Any]:
    """Run Locust against a service that is ready.

    Raises:
        LoadFailed: it ended without a result.
    """
    flags = {
        "--host": running.url,
        "--bundle": bundle,
        "--candidates": options.candidates,
        "--seed": options.seed,
        "--levels": ",".join(map(str, options.users)),
        "--warmup": options.warmup,
        "--duration": options.duration,
        "--rate": options.rate,
        "--service-pid": running.pid,
        "--out": out,
        "--stop-timeout": 5,
        "--loglevel": "WARNING",
    }
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless"]
    command += [str(part) for flag in flags.items() for part in flag]
    limit = len(options.users) * (options.warmup + options.duration) + SLACK_S
    try:
        ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        raise LoadFailed(f"the load generator was not done after {limit:g} s") from None
    if not out.exists():
        said = "\n".join((ended.stderr or ended.stdout).splitlines()[-LOG_LINES:])
        raise LoadFailed(f"the load generator ended with {ended.returncode}:\n{said}")
    result: dict[str, Any] = json.loads(out.read_text())
    if len(result["windows"]) < len(options.users):
        raise LoadFailed("the load generator stopped before its last level")
    return result


def about(options: argparse.Namespace, cores: Cores, runs: Sequence[Run]) -> dict[str, Any]:
    """How it was measured, for the reader of the numbers."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        "model": options.model,
        "bundles": {run.side: {"version": run.version, "digest": run.digest} for run in runs},
        "candidates": options.candidates,
        "users": options.users,
        "rounds": options.rounds,
        "warmup_s": options.warmup,
        "duration_s": options.duration,
        "rate": options.rate,
        "workers": options.workers,
        "service_settings": QUIET,
        "seed": options.seed,
        "service_cores": sorted(cores.service or ()),
        "generator_cores": sorted(cores.generator or ()),
    }


def write(
    options: argparse.Namespace,
    table: Sequence[report.Row],
    ratios: Sequence[report.Ratio],
    notes: Sequence[str],
    how: dict[str, Any],
) -> None:
    """The three files of the report."""
    options.out.mkdir(parents=True, exist_ok=True)
    text = report.page(table, ratios, notes, how)
    (options.out / "compare.md").write_text(text, encoding="utf-8")
    (options.out / "compare.json").write_text(report.as_json(table, ratios, notes, how))
    plot.draw(table, ratios, options.out / "compare.png")


def _available_cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return []


def _levels(text: str) -> list[int]:
    levels = [int(part) for part in text.split(",")]
    if not all(1 <= level <= MOST_USERS for level in levels):
        raise argparse.ArgumentTypeError(f"expected levels from 1 to {MOST_USERS}, got {text!r}")
    return sorted(set(levels))


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text!r}")
    return count


def _rate(text: str) -> float:
    rate = float(text)
    if not 0 <= rate < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number from 0 on, got {text!r}")
    return rate


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= LONGEST_S:
        raise argparse.ArgumentTypeError(f"expected seconds up to {LONGEST_S:g}, got {text!r}")
    return seconds


if __name__ == "__main__":
    server.unwind_on_sigterm()
    sys.exit(main())
