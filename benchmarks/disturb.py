"""What decides the 99th percentile: each suspect in turn, against quiet windows beside it.

    python -m benchmarks.disturb store ml-100k@slim
    python -m benchmarks.disturb store ml-100k@slim --only new-version,redis-back --rounds 5

The service, on one core, is asked from another by a timetable (Poisson, half of what it can bear)
over and over for ``--window`` seconds. In a quiet window nothing else happens. In others one thing
does: a version is activated, Redis is killed and comes back, metrics are read. And the service is
started again with one thing otherwise: without its log, with the garbage collector's defaults,
with threads that spin. A round has all of them, and quiet windows of the usual service between its
events; ratios are against the quiet windows of the same round. Writes ``disturb.md``, ``.json``
and ``.png``. The store is copied first: yours stays as it is. Needs a Redis (the extra ``dev``
brings one).
"""

import argparse
import dataclasses
import json
import platform
import shutil
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hdrh.histogram import HdrHistogram
from matplotlib.figure import Figure

from benchmarks.peers.processes import clocks
from benchmarks.peers.report import markdown_table
from benchmarks.steady.bodies import Mix
from benchmarks.steady.driving import Draw, Lane, Tally, by_timetable, closed, dues
from benchmarks.steady.redis import Redis
from benchmarks.steady.service import Asked, asked, port_of
from loadtest import histograms
from loadtest.server import get_json, post_json, unwind_when_told_to_end
from model_store.store import open_store

QUIET: Final = "quiet"
WARMUP_S: Final = 2.0
CAPACITY_S: Final = 4.0
CAPACITY_CONNECTIONS: Final = 8
BIG: Final = 2000  # candidates
BIG_ONE_IN: Final = 50
LIMIT: Final = 1.5  # times the quiet p99: what a swap and a Redis that comes back may do
LAG_LIMIT: Final = 0.2  # of a window's p99, at the p99 of the generator's own lateness
FOREIGN_LIMIT: Final = 0.1  # cores that others kept busy
FEWEST_FOR_P999: Final = 5000


@dataclass(frozen=True, slots=True)
class Stage:
    """What events act on.

    Attributes:
        url: the service's.
        name: of the model that is asked.
        versions: two with the same content.
        seconds: of a window.
    """

    url: str
    redis: Redis
    name: str
    versions: tuple[str, str]
    seconds: float


def _swap(stage: Stage) -> None:
    time.sleep(stage.seconds / 4)
    serving = get_json(f"{stage.url}/models/{stage.name}")["version"]
    other = next(version for version in stage.versions if version != serving)
    post_json(f"{stage.url}/models/{stage.name}/activate", {"version": other})


def _new_version(stage: Stage) -> None:
    stage.redis.forget()  # of a new version no cache has the table
    _swap(stage)


def _redis_back(stage: Stage) -> None:
    time.sleep(stage.seconds / 10)
    stage.redis.kill()
    time.sleep(stage.seconds / 4)
    stage.redis.start()


def _probed(stage: Stage) -> None:
    for _ in range(int(stage.seconds)):
        time.sleep(0.9)
        for path in ("/metrics", "/readyz", "/livez"):
            with urllib.request.urlopen(stage.url + path, timeout=30) as reply:  # noqa: S310
                reply.read()


@dataclass(frozen=True, slots=True)
class Condition:
    """What is otherwise in a window.

    Attributes:
        what: in words.
        settings: of the service, without SLIMRANK_.
        alterations: of `benchmarks.steady.altered`.
        event: what happens meanwhile.
        big: whether one body in fifty has 2,000 candidates.
        limited: whether its p99 may be at most 1.5 times the quiet one.
    """

    name: str
    what: str
    settings: Mapping[str, str] = field(default_factory=dict)
    alterations: tuple[str, ...] = ()
    event: Callable[[Stage], None] | None = None
    big: bool = False
    limited: bool = False

    @property
    def usual(self) -> bool:
        """Whether the service is as it comes, and only what happens to it differs."""
        return not self.settings and not self.alterations


NOTHING: Final = Condition(QUIET, "nothing")
CONDITIONS: Final = (
    Condition(
        "new-version", "a version is activated; no cache has it", event=_new_version, limited=True
    ),
    Condition("swap", "a version is activated; the cache has its table", event=_swap, limited=True),
    Condition(
        "redis-back", "Redis is killed and comes back, empty", event=_redis_back, limited=True
    ),
    Condition("probed", "/metrics, /readyz and /livez, each once a second", event=_probed),
    Condition("big-bodies", "one body in 50 has 2,000 candidates", big=True),
    Condition(
        "new-version-long-turns",
        "a new version, where a thread keeps Python's lock for 5 ms",
        alterations=("long-turns",),
        event=_new_version,
    ),
    Condition("log-off", "no line a request", settings={"REQUEST_LOG": "false"}),
    Condition("store-poll-off", "aliases are not read every 2 s", settings={"STORE_POLL_S": "0"}),
    Condition("store-poll-often", "aliases are read 20/s", settings={"STORE_POLL_S": "0.05"}),
    Condition("no-redis", "memory:// as the cache", settings={"CACHE": "memory://"}),
    Condition("gc-off", "no garbage collection", alterations=("gc-off",)),
    Condition("gc-unfrozen", "no gc.freeze after start", alterations=("gc-unfrozen",)),
    Condition("two-threads", "ONNX Runtime with 2 threads", alterations=("two-threads",)),
    Condition("two-spinning", "2 threads that spin", alterations=("two-spinning",)),
)


@dataclass(frozen=True, slots=True)
class Window:
    """What one window saw.

    Attributes:
        rate: requests due a second.
        server_cpu, foreign_cpu: cores that the service with Redis, and all others, kept busy.
    """

    condition: str
    round: int
    rate: float
    tally: Tally
    server_cpu: float
    foreign_cpu: float


@dataclass(frozen=True, slots=True)
class Row:
    """A condition over its rounds. Times in ms, from when requests were due.

    Attributes:
        p999_ms: None where fewer than 5000 requests make it a matter of chance.
        ratio: p99 against that of the quiet windows of the same round: median, lowest, highest.
        lag_ms: p99 of the generator's own lateness.
        foreign_cpu: cores that others kept busy, the worst window's.
    """

    condition: str
    windows: int
    requests: int
    p50_ms: float
    p99_ms: float
    p999_ms: float | None
    max_ms: float
    ratio: tuple[float, float, float]
    lag_ms: float
    server_cpu: float
    foreign_cpu: float


@dataclass(frozen=True, slots=True)
class Bench:
    """What all windows have in common.

    Attributes:
        draw: the next request; draw_big: the same where some are big.
        rate: requests due a second.
    """

    service: Asked
    redis: Redis
    versions: tuple[str, str]
    draw: Draw
    draw_big: Draw
    rate: float
    options: argparse.Namespace


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.disturb", description=__doc__)
    add = parser.add_argument
    add("store", type=Path)
    add("model", metavar="NAME@ALIAS")
    add("--rounds", type=int, default=3)
    add("--window", type=float, default=10.0, help="seconds")
    add("--candidates", type=int, default=200, help="of each body")
    add("--form", default="ids", help="of candidates: ids, rows or columns")
    add("--rate", type=float, help="requests a second; without it, --share of what can be borne")
    add("--share", type=float, default=0.5)
    add("--connections", type=int, default=32)
    add("--cores", default="0,1", help="the service's, and last the generator's")
    known = [condition.name for condition in CONDITIONS]
    add("--only", default=",".join(known), help="which conditions, separated by commas")
    add("--out", type=Path, default=Path("build/disturb"), help="folder of the report")
    options = parser.parse_args(argv)
    if strange := {*options.only.split(",")} - {*known}:
        parser.error(f"no {', '.join(sorted(strange))}; there are: {', '.join(known)}")
    if "@" not in options.model:
        parser.error(
            f"expected NAME@ALIAS, got {options.model!r}: an alias is moved back and forth"
        )
    options.models = [options.model]
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the report; exit status 1 where a limit is exceeded."""
    options = parse(argv)
    unwind_when_told_to_end()
    with tempfile.TemporaryDirectory(prefix="disturb-") as folder:
        windows = run(options, Path(folder))
    table = rows(windows)
    write(options, windows, table)
    return int(any(row.ratio[0] > LIMIT for row in table if row.condition in limited()))


def limited() -> set[str]:
    """The conditions that have a limit."""
    return {condition.name for condition in CONDITIONS if condition.limited}


def run(options: argparse.Namespace, folder: Path) -> list[Window]:
    """All rounds."""
    versions = copied(options.store, options.model, folder / "store")
    options.store = folder / "store"
    service, redis = asked(options), Redis(folder)
    chosen = [each for each in CONDITIONS if each.name in options.only.split(",")]
    draw, draw_big = draws(service, options)
    redis.start()
    try:
        rate = options.rate or options.share * borne(service, redis, draw, options)
        bench = Bench(service, redis, versions, draw, draw_big, rate, options)
        return [
            window
            for number in range(options.rounds)
            for window in one_round(bench, chosen, number)
        ]
    finally:
        redis.kill()


def copied(store: Path, model: str, target: Path) -> tuple[str, str]:
    """Copy a model's part of a store; its version, and a twin with the same content."""
    name = model.partition("@")[0]
    shutil.copytree(store / name, target / name)
    copy = open_store(str(target))
    opened = copy.open(model)
    return opened.version, copy.publish(opened.bundle.root, name).version


def draws(service: Asked, options: argparse.Namespace) -> tuple[Draw, Draw]:
    """Bodies of one size, and those among which some are big."""
    sources = service.sources(BIG, [options.form])[:1]  # a session ranker's /rank alone
    size = options.candidates
    usual, big = Mix(sources, (size, size), seed=1).draw, Mix(sources, (BIG, BIG), seed=2).draw
    count = 0

    def sometimes() -> bytes:
        nonlocal count
        count += 1
        return usual() if count % BIG_ONE_IN else big()

    return usual, sometimes


def borne(service: Asked, redis: Redis, draw: Draw, options: argparse.Namespace) -> float:
    """Requests a second of a closed loop."""
    begun, count = time.perf_counter(), 0

    def answered(_: float) -> None:
        nonlocal count
        count += 1

    log = options.out / "logs" / "borne.log"
    with service.serving(log, {"CACHE": redis.url}) as server:
        for seconds in (WARMUP_S, CAPACITY_S):
            begun, count = time.perf_counter(), 0
            over = begun + seconds
            closed(
                port_of(server.url),
                CAPACITY_CONNECTIONS,
                draw,
                answered,
                lambda over=over: time.perf_counter() > over,  # type: ignore[misc]
            )
    return count / (time.perf_counter() - begun)


def one_round(bench: Bench, chosen: Sequence[Condition], number: int) -> Iterator[Window]:
    """Each condition once: those of the usual service among quiet windows, others by themselves."""
    usual = [each for each in chosen if each.usual]
    groups = [[each for event in turned(usual, number) for each in (NOTHING, event)] or [NOTHING]]
    groups += [[NOTHING, NOTHING]] if not usual else []
    groups += [[each] for each in chosen if not each.usual]
    for group in turned(groups, number):
        yield from _started(bench, group, number)


def turned(members: Sequence[Any], by: int) -> list[Any]:
    """Another order for each round, so that none always follows the same one."""
    start = by % len(members) if members else 0
    return [*members[start:], *members[:start]]


def _started(bench: Bench, group: Sequence[Condition], number: int) -> Iterator[Window]:
    """The windows of one start of the service."""
    first = group[0]
    settings = {"CACHE": bench.redis.url, **first.settings}
    log = bench.options.out / "logs" / f"{number}-{first.name}.log"
    with bench.service.serving(log, settings, first.alterations) as server:
        stage = Stage(
            url=server.url,
            redis=bench.redis,
            name=bench.options.model.partition("@")[0],
            versions=bench.versions,
            seconds=bench.options.window,
        )
        _ask(bench, stage, NOTHING, WARMUP_S, seed=number)
        for place, condition in enumerate(group):
            print(f"round {number + 1}: {condition.name}", file=sys.stderr, flush=True)
            yield _window(bench, stage, condition, number, seed=100 * number + place)


def _ask(bench: Bench, stage: Stage, condition: Condition, seconds: float, seed: int) -> Tally:
    draw = bench.draw_big if condition.big else bench.draw
    lane = Lane(bench.options.connections, draw, dues(bench.rate, seconds, seed))
    return by_timetable(port_of(stage.url), [lane])[0]


def _window(bench: Bench, stage: Stage, condition: Condition, number: int, seed: int) -> Window:
    """Ask for the length of a window while the event happens."""
    with ThreadPoolExecutor(1) as aside:
        before, own, begun = clocks(), time.process_time(), time.perf_counter()
        happening = None if condition.event is None else aside.submit(condition.event, stage)
        tally = _ask(bench, stage, condition, stage.seconds, seed)
        after, own, taken = clocks(), time.process_time() - own, time.perf_counter() - begun
        if happening is not None:
            happening.result()
    served = after.server_s - before.server_s
    return Window(
        condition=condition.name,
        round=number,
        rate=bench.rate,
        tally=tally,
        server_cpu=served / taken,
        foreign_cpu=max(0.0, after.machine_s - before.machine_s - served - own) / taken,
    )


def rows(windows: Iterable[Window]) -> list[Row]:
    """One a condition, quiet first, then as they came."""
    groups: dict[str, list[Window]] = {QUIET: []}
    for window in windows:
        groups.setdefault(window.condition, []).append(window)
    quiet = _p99_by_round(groups[QUIET])
    return [_row(group, quiet) for group in groups.values()]


def _p99_by_round(windows: Sequence[Window]) -> dict[int, float]:
    rounds: dict[int, list[HdrHistogram]] = {}
    for window in windows:
        rounds.setdefault(window.round, []).append(window.tally.times)
    return {
        number: histograms.ms(histograms.pooled(times), 99.0) for number, times in rounds.items()
    }


def _row(group: Sequence[Window], quiet: Mapping[int, float]) -> Row:
    times = histograms.pooled(window.tally.times for window in group)
    ratios = [p99 / quiet[number] for number, p99 in _p99_by_round(group).items()]
    requests = int(times.get_total_count())
    lag = histograms.pooled(window.tally.lag for window in group)
    return Row(
        condition=group[0].condition,
        windows=len(group),
        requests=requests,
        p50_ms=histograms.ms(times, 50.0),
        p99_ms=histograms.ms(times, 99.0),
        p999_ms=histograms.ms(times, 99.9) if requests >= FEWEST_FOR_P999 else None,
        max_ms=float(times.get_max_value()) / 1000,
        ratio=(statistics.median(ratios), min(ratios), max(ratios)),
        lag_ms=histograms.ms(lag, 99.0),
        server_cpu=statistics.mean(window.server_cpu for window in group),
        foreign_cpu=max(window.foreign_cpu for window in group),
    )


def remarks(table: Iterable[Row]) -> list[str]:
    """What a reader must know before believing the table."""
    held = list(table)
    late = [row.condition for row in held if row.lag_ms > LAG_LIMIT * row.p99_ms]
    notes = []
    if late:
        notes.append(f"The generator was late by itself in: {', '.join(late)}.")
    busy = [row.condition for row in held if row.foreign_cpu > FOREIGN_LIMIT]
    if busy:
        most = max(row.foreign_cpu for row in held)
        notes.append(
            f"Others kept up to {most:.1f} cores busy in: {', '.join(busy)}. Measure again on a "
            "quiet machine."
        )
    return notes


def write(options: argparse.Namespace, windows: Sequence[Window], table: Sequence[Row]) -> None:
    """The page, all that was seen, and the plot; the page on the terminal too."""
    options.out.mkdir(parents=True, exist_ok=True)
    text = page(options, windows[0].rate, table)
    (options.out / "disturb.md").write_text(text)
    (options.out / "disturb.json").write_text(json.dumps(seen(options, windows, table)))
    draw_plot(table, options.out / "disturb.png")
    print(text)
    print(f"{options.out}: disturb.md, disturb.json, disturb.png")


def page(options: argparse.Namespace, rate: float, table: Sequence[Row]) -> str:
    """What came out, in words and a table."""
    what = {condition.name: condition.what for condition in (NOTHING, *CONDITIONS)}
    cells = [
        {
            "": row.condition,
            "what": what[row.condition],
            "requests": row.requests,
            "p50": f"{row.p50_ms:.2f}",
            "p99": f"{row.p99_ms:.2f}",
            "p99.9": "" if row.p999_ms is None else f"{row.p999_ms:.2f}",
            "longest": f"{row.max_ms:.1f}",
            "p99 to quiet": "{:.2f}x ({:.2f}-{:.2f})".format(*row.ratio),
            f"within {LIMIT:g}x": _judged(row),
            "cores": f"{row.server_cpu:.2f}",
        }
        for row in table
    ]
    lines = [
        f"{options.model}, bodies of {options.candidates} candidates ({options.form}), "
        f"{rate:.0f} requests/s (Poisson), {options.connections} connections, {options.rounds} "
        f"rounds, windows of {options.window:g} s. Times in ms, from when requests were due; "
        "ratios by round, median (lowest to highest).",
        markdown_table(cells),
        *remarks(table),
    ]
    return "\n\n".join(lines) + "\n"


def _judged(row: Row) -> str:
    if row.condition not in limited():
        return ""
    return "yes" if row.ratio[0] <= LIMIT else "NO"


def seen(
    options: argparse.Namespace, windows: Iterable[Window], table: Iterable[Row]
) -> dict[str, Any]:
    """Everything as plain JSON, histograms in HdrHistogram's own encoding."""
    plain = ("condition", "round", "rate", "server_cpu", "foreign_cpu")
    return {
        "options": {name: str(value) for name, value in vars(options).items()},
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "rows": [dataclasses.asdict(row) for row in table],
        "windows": [
            {
                **{name: getattr(window, name) for name in plain},
                "times": histograms.encoded(window.tally.times),
                "lag": histograms.encoded(window.tally.lag),
            }
            for window in windows
        ],
    }


def draw_plot(table: Sequence[Row], path: Path) -> None:
    """Percentiles by condition, and p99 against the quiet windows."""
    # A bare Figure draws with Agg whatever the machine's default is, and leaves no global behind.
    figure = Figure(figsize=(11, 0.45 * len(table) + 1.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    places = range(len(table))
    for name, mark in (("p50_ms", "o"), ("p99_ms", "s"), ("p999_ms", "^"), ("max_ms", "x")):
        left.plot([getattr(row, name) for row in table], places, mark, label=name[:-3])
    left.set_xscale("log")
    left.set_xlabel("ms from when due")
    left.set_yticks(places, [row.condition for row in table])
    left.legend(fontsize=8)
    left.grid(axis="x", alpha=0.3)
    middles = [row.ratio[0] for row in table]
    spread = [[row.ratio[0] - row.ratio[1], row.ratio[2] - row.ratio[0]] for row in table]
    right.errorbar(middles, places, xerr=[*zip(*spread, strict=True)], fmt="s", capsize=3)
    right.axvline(1.0, color="black", linewidth=1)
    right.axvline(LIMIT, color="tab:red", linewidth=1)
    right.set_xlabel("p99 to quiet windows of the same round")
    right.invert_yaxis()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
