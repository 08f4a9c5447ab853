"""Peers, side by side: ``python -m benchmarks.peers`` or ``make bench-peers``.

Starts every server on one core, anew in every round, and asks them in turn from another: for a
fraction of a second each, in another order each turn, while the others are frozen. So what is
compared was seconds apart, on a machine whose speed may be another a minute later. Before a server
is timed, its answers are compared with Slimrank's. A server that cannot be installed, does not
start or answers otherwise is told of, and left out.
"""

import argparse
import gc
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain, product
from pathlib import Path
from typing import Any, Final, TypeVar

from benchmarks import pace
from benchmarks.peers import environments, load, plot, processes, report
from benchmarks.peers.bench import (
    BUILD,
    KINDS,
    Bench,
    Differs,
    Running,
    Unmeasurable,
    facts,
    measured,
    prepare,
    reference,
    running,
    tell,
)
from benchmarks.peers.probes import PROBES
from benchmarks.peers.servers import PEERS, SLIMRANK, Peer
from loadtest import bounds
from loadtest.server import unwind_when_told_to_end
from model_store.errors import StoreError
from service.kernels import COMPILED, WHY_NOT

NONE: Final = "none"
PLOTTED: Final = 8  # connections, if they were asked for
Each = TypeVar("Each")
PACKAGES: Final = {"bare": "uvicorn"}  # whose version stands for a server of another name


@dataclass(frozen=True, slots=True)
class Seen:
    """What came out.

    Attributes:
        facts: memory and answers to wrong bodies, by server.
        failed: why a server was left out.
        paces: of the servers' core, before and after.
    """

    windows: Sequence[report.Window]
    facts: Mapping[str, Mapping[str, Any]]
    failed: Mapping[str, str]
    paces: Sequence[pace.Pace] = ()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    add = parser.add_argument
    add("--peers", type=named, default=PEERS, help="which of them, separated by commas; or none")
    add("--connections", type=bounds.levels, default=[1, 8, 32], help="how many at a time: 1,8,32")
    add("--rounds", type=bounds.count, default=3, help="how often each server is started")
    add("--turns", type=bounds.count, default=3, help="how often it is asked each time")
    add("--seconds", type=bounds.seconds, default=0.4, help="of each window")
    add("--warmup", type=bounds.seconds, default=0.15, help="seconds before each window")
    add("--candidates", type=bounds.count, default=200, help="of each body")
    add("--cores", type=cores, default="0,1", help="the server's core and the generator's")
    add("--start", type=bounds.seconds, default=60.0, help="that a server may take to start")
    add(
        "--store", type=Path, help="a store; without it, made-up bundles of Criteo's shape are used"
    )
    add("--dense", help="NAME@ALIAS of the dense bundle in --store")
    add("--slim", help="of the slim one")
    add("--int8", help="of the slim one in eight bits; may be the slim one again")
    add("--plain", type=Path, help="the dense ranker's plain graph (default: the dense bundle's)")
    add("--out", type=Path, default=BUILD / "report", help="folder for table, JSON and plot")
    options = parser.parse_args(argv)
    if not options.connections:
        parser.error("expected numbers of --connections")
    given = {f"--{kind}": getattr(options, kind) is not None for kind in (*KINDS, "plain")}
    if options.store is None and any(given.values()):
        named_too = ", ".join(flag for flag, is_given in given.items() if is_given)
        parser.error(f"expected --store with {named_too}: the made-up bundles have names")
    if options.store is not None and not all(given[f"--{kind}"] for kind in KINDS):
        missing = ", ".join(f"--{kind}" for kind in KINDS if not given[f"--{kind}"])
        parser.error(f"--store needs {missing} too: a NAME@ALIAS each")
    return options


def named(text: str) -> tuple[Peer, ...]:
    """Peers by their names: a type of argparse, as ``cores``."""
    known = {peer.name: peer for peer in PEERS}
    wanted = [] if text == NONE else text.split(",")
    if strange := [name for name in wanted if name not in known]:
        raise argparse.ArgumentTypeError(
            f"expected some of {','.join(known)}, or {NONE}, got {','.join(strange)}"
        )
    return tuple(peer for name, peer in known.items() if name in wanted)


def cores(text: str) -> tuple[int, int]:
    """The server's core and the generator's, of those that this process may use."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    server, _, generator = text.partition(",")
    if (
        not (server.isdecimal() and generator.isdecimal())
        or server == generator
        or (usable is not None and not {int(server), int(generator)}.issubset(usable))
    ):
        of = "" if usable is None else f" of {','.join(map(str, usable))}"
        raise argparse.ArgumentTypeError(f"expected two cores{of} like 0,1, got {text!r}")
    return int(server), int(generator)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the report; the process's exit status, 1 where nothing was compared."""
    options = parse(argv)
    processes.adopt_orphans()
    unwind_when_told_to_end()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="peers-") as folder:
            return 0 if run(options, Path(folder)) else 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (Unmeasurable, load.LoadFailed, processes.ServerFailed, StoreError, OSError) as error:
        print(f"peers: {error}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace, folder: Path) -> bool:
    """All steps, in order; whether all was measured that was asked for, or enough to compare.

    Raises:
        Unmeasurable, LoadFailed, ServerFailed, StoreError, OSError: Slimrank cannot be asked.
    """
    started = time.monotonic()
    pythons, failed = install(options.peers)
    bench = prepare(options, folder)
    if not COMPILED:
        tell(f"Slimrank's loops are not compiled here, which makes it slower: {WHY_NOT}")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {options.cores[1]})
    bench = reference(bench)
    gc.collect()
    gc.freeze()  # no collection of what lives now in the middle of a window
    servers = {SLIMRANK: Path(sys.executable)}
    servers |= {peer: pythons[peer.name] for peer in PEERS if peer.name in pythons}
    paces = [pace.on_core(options.cores[0])]
    seen = measure(bench, servers)
    paces.append(pace.on_core(options.cores[0]))
    seen = replace(seen, failed={**failed, **seen.failed}, paces=paces)
    compared = write(bench, seen, time.monotonic() - started)
    return bool(compared) or not seen.failed


def measure(bench: Bench, servers: Mapping[Peer, Path]) -> Seen:
    """All rounds; a server that fails in one is left out of the table and of the rounds to come."""
    windows: list[report.Window] = []
    told: dict[str, Mapping[str, Any]] = {}
    failed: dict[str, str] = {}
    for number in range(bench.options.rounds):
        whole = {peer: python for peer, python in servers.items() if peer.title not in failed}
        with ExitStack() as stack:
            if not (up := start(bench, whole, failed, stack)):
                break
            for turn in range(bench.options.turns):
                tell(f"round {number + 1} of {bench.options.rounds}, turn {turn + 1}")
                order = turned(up, number * bench.options.turns + turn)
                windows += ask(bench, order, report.Place(number, turn), failed)
            for server in up if number == 0 else ():  # after the load, for what they hold then
                if server.peer.title not in failed:
                    told[server.peer.title] = facts(bench, server)
    return Seen([each for each in windows if each.server not in failed], told, failed)


def start(
    bench: Bench, servers: Mapping[Peer, Path], failed: dict[str, str], stack: ExitStack
) -> list[Running]:
    """Start servers that run until the stack closes; why one does not goes to ``failed``."""
    up = []
    for peer, python in servers.items():
        tell(f"starting {peer.title}")
        try:
            up.append(stack.enter_context(running(bench, peer, python)))
        except (processes.ServerFailed, load.LoadFailed, Differs, OSError) as error:
            leave_out(peer, error, failed)
    return up


def ask(
    bench: Bench, servers: Sequence[Running], at: report.Place, failed: dict[str, str]
) -> Iterator[report.Window]:
    """A turn: every step at every number of connections; why a server fails goes to ``failed``."""
    for connections, step in product(bench.options.connections, range(len(bench.ours))):
        for server in servers:
            if server.peer.title in failed:
                continue
            try:
                yield from measured(bench, server, step, connections, at)
            except (load.LoadFailed, OSError) as error:
                leave_out(server.peer, error, failed)


def leave_out(peer: Peer, error: Exception, failed: dict[str, str]) -> None:
    """Remember why, and tell."""
    failed[peer.title] = str(error)
    tell(f"  {peer.title} is left out: {error}")


def turned(servers: Sequence[Each], by: int) -> list[Each]:
    """The servers in another order for each turn, so that none always follows the same one.

    Every second turn the other way round; after two another one begins.
    """
    start = by // 2 % len(servers)
    order = [*servers[start:], *servers[:start]]
    return order[::-1] if by % 2 else order


def install(peers: Sequence[Peer]) -> tuple[dict[str, Path], dict[str, str]]:
    """The interpreters of those that could be installed, and why the others could not."""
    pythons, failed = {}, {}
    for peer in peers:
        try:
            pythons[peer.name] = environments.python_of(peer.name, BUILD).absolute()
        except (environments.NotInstalled, OSError) as error:
            failed[peer.title] = f"not installed: {error}"
            tell(f"{peer.title}: {failed[peer.title]}")
    return pythons, failed


def write(bench: Bench, seen: Seen, seconds: float) -> Sequence[report.Ratio]:
    """Table, JSON and plot; the ratios on the terminal too."""
    out = bench.options.out
    table = report.rows(seen.windows)
    rivals = [peer.title for peer in PEERS if not peer.is_yardstick]
    yardstick = next(peer.title for peer in PEERS if peer.is_yardstick)
    compared = report.ratios(seen.windows, rivals, yardstick)
    about = described(bench, seconds)
    about["pace of the server's core, before and after"] = "; ".join(map(str, seen.paces))
    servers = [entry(peer, seen.facts.get(peer.title, {})) for peer in (SLIMRANK, *PEERS)]
    (out / "peers.md").write_text(report.page(table, compared, about, servers, seen.failed))
    (out / "peers.json").write_text(report.as_json(table, compared, about, servers, seen.failed))
    levels = {row.connections for row in table}
    if levels:
        plot.draw(table, PLOTTED if PLOTTED in levels else max(levels), out / "peers.png")
    print(report.markdown_ratios(compared), *report.remarks(table), sep="\n")
    print(*(f"The server's core: {each}" for each in seen.paces), sep="\n")
    for name, why in seen.failed.items():
        print(f"{name} was not measured: {why}")
    print(f"\n{out / 'peers.md'}, peers.json, peers.png: {seconds / 60:.1f} minutes")
    return compared


def described(bench: Bench, seconds: float) -> dict[str, Any]:
    """How it was measured."""
    options = bench.options
    every = chain.from_iterable((*bench.ours, *bench.peers))
    sizes = {case.name: len(case.bodies[0]) for case in every}
    return {
        "bundles": ", ".join(bench.references) + ("" if options.store else " (made-up clicks)"),
        "candidates": options.candidates,
        "bytes of a body": ", ".join(f"{name} {size}" for name, size in sizes.items()),
        "Slimrank's loops": "compiled" if COMPILED else f"not compiled: {WHY_NOT}",
        "rounds, each with all servers started anew": options.rounds,
        "turns of a round": options.turns,
        "seconds of a window": options.seconds,
        "warm-up": options.warmup,
        "cores (server, generator)": ",".join(map(str, options.cores)),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "took": f"{seconds:.0f} s",
    }


def entry(peer: Peer, fact: Mapping[str, Any]) -> dict[str, Any]:
    """A server's line in the table of what each is and does."""
    package = PACKAGES.get(peer.name, peer.name)
    name = peer.title
    if peer is not SLIMRANK:
        name = f"{peer.title} ({package} {environments.version_of(peer.name, package)})"
    seen: dict[str, Any] = {"processes": "", "PSS MB": "", "RSS MB": ""}
    if fact:
        seen = {
            "processes": fact["processes"],
            "PSS MB": round(fact["pss_bytes"] / 1e6),
            "RSS MB": round(fact["rss_bytes"] / 1e6),
        }
    return {
        "server": name,
        "body parsed by": peer.parses,
        "item features from a catalogue": peer.catalogue,
        "ranks and cuts": "itself" if peer is SLIMRANK else "the handler",
        "batches requests": peer.batches,
        "another version": peer.swaps,
        **seen,
        **{f"says to {probe}": fact.get(probe, "") for probe in PROBES},
        "settings": peer.settings,
        "after": peer.source,
    }


if __name__ == "__main__":
    sys.exit(main())
