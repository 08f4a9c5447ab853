"""Small requests beside large ones: what they wait, against themselves alone at the same load.

    python -m benchmarks.fairness STORE NAME@ALIAS --form rows
    python -m benchmarks.fairness STORE NAME@ALIAS --large recommend \
        --variant "inline INLINE_US=1e9" --variant "2 threads SCORE_THREADS=2"

Each variant is the real service with settings of its own; all run side by side on the same cores
and are driven in turn, so that what the machine does besides hits all alike. The first variant's
capacity for either kind of request, in a closed loop, sets the rates of all: half of it in small
ones alone, then half of it of which the large ones are a stated share. Requests are sent when they
are due (an open loop, Poisson arrivals); times count from there.
"""

import argparse
import gc
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import orjson

from benchmarks.peers import bodies, load, processes
from benchmarks.steady.driving import Lane, Tally, by_timetable, dues
from loadtest import histograms, traffic
from loadtest.measured import Spread
from loadtest.recorder import Cpu
from loadtest.server import Server, serving
from model_store.bundle import Bundle
from model_store.store import open_store

BODIES: Final = 64  # of each kind, so that not one is answered from the nearest cache
CLOSED: Final = 8  # connections while the capacity is found
CONNECTIONS: Final = 48  # of each kind in the open loop: an arrival should never wait for one
RECOMMEND: Final = "recommend"
LOAD: Final = 0.5  # of the capacity
VARIANTS: Final = (
    "inline INLINE_US=1e9",
    "default",
    "2-threads SCORE_THREADS=2",
    "2-workers WORKERS=2",
)


class Variant(NamedTuple):
    """The service with settings of its own."""

    name: str
    settings: Mapping[str, str]

    @classmethod
    def parsed(cls, text: str) -> "Variant":
        """From "NAME KEY=VALUE ...", keys without SLIMRANK_."""
        name, *pairs = text.split()
        return cls(name, dict(pair.split("=", 1) for pair in pairs))


class Kinds(NamedTuple):
    """Requests ready to send."""

    small: Sequence[bytes]
    large: Sequence[bytes]


class Rates(NamedTuple):
    """Arrivals a second."""

    small: float
    large: float


def open_loop(
    port: int, kinds: Kinds, rates: Rates, *, warmup_s: float, seconds: float, seed: int
) -> tuple[Tally, Tally]:
    """What the small and the large ones saw, of those due after the warm-up."""
    end = warmup_s + seconds
    lanes = [
        Lane(
            connections=CONNECTIONS if rate else 0,
            draw=partial(next, itertools.cycle(messages), b""),
            timetable=dues(rate, end, seed + place),
        )
        for place, (messages, rate) in enumerate(zip(kinds, rates, strict=True))
    ]
    small, large = by_timetable(port, lanes, warmup_s=warmup_s)
    return small, large


def requests_of(bundle: Bundle, name: str, options: argparse.Namespace) -> Kinds:
    """Small and large requests of a bundle's own ids, users and sessions."""
    small = _rank(bundle, name, options.form, options.small)
    if options.large == RECOMMEND:
        sides = (
            [{"session_items": each} for each in traffic.read_sessions(bundle.root)]
            if bundle.manifest.session is not None
            else bodies.pool_of(bundle).people
        )
        return Kinds(small, [load.request("/recommend", orjson.dumps(side)) for side in sides])
    return Kinds(small, _rank(bundle, name, options.form, int(options.large)))


def _rank(bundle: Bundle, name: str, form: bodies.Form, candidates: int) -> list[bytes]:
    table = bundle.session_table()
    if table is None:
        pool = bodies.pool_of(bundle)
        drawn = bodies.draw(pool, model=name, form=form, candidates=candidates, count=BODIES)
    else:
        sessions = traffic.read_sessions(bundle.root)
        people = [{"session_items": each} for each in sessions]
        queries = traffic.draw(traffic.Pool(people, [*table.ids], {}), candidates, BODIES, seed=1)
        drawn = [query.body for query in queries]
    return [load.request("/rank", body) for body in drawn]


@dataclass(frozen=True, slots=True)
class Seen:
    """One window of one variant.

    Attributes:
        beside: whether large requests came too.
        small, large: times from due to answered.
        cores: who kept how many busy: service, generator, everybody else.
    """

    variant: str
    round: int
    beside: bool
    rates: Rates
    small: Tally
    large: Tally
    cores: Mapping[str, float]

    def ms(self, percentile: float, *, large: bool = False) -> float:
        """A percentile of the small ones' times, or of the large ones'."""
        return histograms.ms((self.large if large else self.small).times, percentile)


def capacity(port: int, messages: Sequence[bytes], seconds: float) -> float:
    """Requests a second in a closed loop."""
    found = load.measure(
        port, messages, CLOSED, warmup_s=0.5, seconds=seconds, clocks=processes.clocks
    )
    return len(found.latencies_ns) / found.seconds


def rates_at(load_share: float, large_share: float, small: float, large: float) -> Rates:
    """Rates that make up a share of the capacity, of which the large ones are a share."""
    return Rates(load_share * (1 - large_share) * small, load_share * large_share * large)


def measure(options: argparse.Namespace, folder: Path) -> tuple[Rates, list[Seen]]:
    """The first variant's capacities, and all windows; variants take turns in each round."""
    bundle = open_store(str(options.store)).open(options.model).bundle
    kinds = requests_of(bundle, options.model, options)
    variants = [Variant.parsed(text) for text in options.variant or VARIANTS]
    with ExitStack() as stack:
        servers = {
            each.name: stack.enter_context(started(each, options, folder)) for each in variants
        }
        first = port_of(servers[variants[0].name])
        most = Rates(*(capacity(first, messages, options.seconds) for messages in kinds))
        tell(f"capacity: {most.small:.0f} small/s, {most.large:.1f} large/s")
        seen = []
        for number, (name, server) in itertools.product(range(options.rounds), servers.items()):
            for beside in (False, True) if number % 2 == 0 else (True, False):
                rates = rates_at(options.load, options.share if beside else 0.0, *most)
                seen.append(window(name, server, kinds, rates, number=number, options=options))
                tell(line_of(seen[-1]))
    return most, seen


def started(
    variant: Variant, options: argparse.Namespace, folder: Path
) -> AbstractContextManager[Server]:
    """The service with a variant's settings."""
    settings = {
        "STORE": str(options.store),
        "MODELS": options.model,
        "DRAIN_DELAY_S": "0",
        "STORE_POLL_S": "0",  # those that wait for their turn must cost nothing
        **variant.settings,
    }
    return serving(settings, folder / f"{variant.name}.log", cores=frozenset(options.cores))


def port_of(server: Server) -> int:
    """The port that a server listens on."""
    return urlsplit(server.url).port or 0


def window(
    name: str,
    server: Server,
    kinds: Kinds,
    rates: Rates,
    *,
    number: int,
    options: argparse.Namespace,
) -> Seen:
    """One window of a variant; in a round the small ones of all come at the same times."""
    cpu = Cpu(server.pid)
    before = cpu.read()
    small, large = open_loop(
        port_of(server),
        kinds,
        rates,
        warmup_s=options.warmup,
        seconds=options.seconds,
        seed=number,
    )
    cores = before.until(cpu.read())
    return Seen(name, number, rates.large > 0, rates, small, large, cores)


def line_of(seen: Seen) -> str:
    """A window in a line."""
    small, large = (
        f"p50 {seen.ms(50, large=large):.2f}, p99 {seen.ms(99, large=large):.2f} ms"
        for large in (False, True)
    )
    return (
        f"  {seen.round} {seen.variant} {'beside' if seen.beside else 'alone'}: {small}; "
        f"large {large}; service {seen.cores['service_cpu']:.2f}, "
        f"others {seen.cores['foreign_cpu']:.2f} cores; "
        f"generator late by {histograms.ms(seen.small.lag, 99):.2f} ms (p99)"
    )


def report(seen: Sequence[Seen]) -> str:
    """A row a variant: medians of the rounds, and the range of what is asked for."""
    names = dict.fromkeys(each.variant for each in seen)
    return "\n".join(
        [
            "| variant | small alone p50, p99 ms | beside p50, p99 ms | p99 beside / alone "
            "| p50 | large p50, p99 ms | cores alone, beside |",
            "|---|---|---|---:|---:|---|---|",
            *(_row(name, [each for each in seen if each.variant == name]) for name in names),
        ]
    )


def _row(name: str, seen: Sequence[Seen]) -> str:
    rounds = sorted({each.round for each in seen})
    by_round = {(each.round, each.beside): each for each in seen}
    alone, beside = ([by_round[number, kind] for number in rounds] for kind in (False, True))
    pairs = list(zip(beside, alone, strict=True))
    p99 = Spread.of(b.ms(99) / a.ms(99) for b, a in pairs)
    p50 = Spread.of(b.ms(50) / a.ms(50) for b, a in pairs)
    return (
        f"| {name} | {_percentiles(alone)} | {_percentiles(beside)} "
        f"| {p99.middle:.2f}x ({p99.low:.2f}-{p99.high:.2f}) | {p50.middle:.2f}x "
        f"| {_percentiles(beside, large=True)} | {_cores(alone):.2f}, {_cores(beside):.2f} |"
    )


def _percentiles(seen: Sequence[Seen], *, large: bool = False) -> str:
    p50, p99 = (Spread.of(each.ms(p, large=large) for each in seen).middle for p in (50, 99))
    return f"{p50:.2f}, {p99:.2f}"


def _cores(seen: Sequence[Seen]) -> float:
    return Spread.of(each.cores["service_cpu"] for each in seen).middle


def as_json(most: Rates, seen: Sequence[Seen], options: argparse.Namespace) -> dict[str, Any]:
    """Everything, with the histograms in their own encoding."""
    return {
        "options": {name: str(value) for name, value in vars(options).items()},
        "capacity": most._asdict(),
        "windows": [
            {
                "variant": each.variant,
                "round": each.round,
                "beside": each.beside,
                "rates": each.rates._asdict(),
                "small": histograms.encoded(each.small.times),
                "large": histograms.encoded(each.large.times),
                "lag": histograms.encoded(each.small.lag),
                **each.cores,
            }
            for each in seen
        ],
    }


def tell(line: str) -> None:
    """Say how far it is."""
    print(line, file=sys.stderr, flush=True)


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("model", help="name@alias or name@version")
    parser.add_argument("--form", choices=["ids", "rows", "columns"], default="ids")
    parser.add_argument("--small", type=int, default=20, help="candidates of the small requests")
    parser.add_argument("--large", default="2000", help="of the large ones; or: recommend")
    parser.add_argument("--share", type=float, default=0.5, help="of the work, in large requests")
    parser.add_argument("--load", type=float, default=LOAD, help="of the capacity")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--cores", type=int, nargs="+", default=[0], help="the service's")
    parser.add_argument("--own-cores", type=int, nargs="+", default=[1], help="the generator's")
    parser.add_argument(
        "--variant", action="append", help='"NAME KEY=VALUE ...", settings without SLIMRANK_'
    )
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    options = options_of(arguments)
    os.sched_setaffinity(0, options.own_cores)
    gc.disable()
    with tempfile.TemporaryDirectory(prefix="slimrank-fairness-") as folder:
        most, seen = measure(options, Path(folder))
    print(report(seen))
    if options.out:
        options.out.write_text(json.dumps(as_json(most, seen, options), indent=1))


if __name__ == "__main__":
    main()
