"""What a POST /rank costs over HTTP, beside the least that Python can do, and the usual way.

    python -m benchmarks.rank_http STORE NAME@ALIAS [NAME@ALIAS ...] [--stock NAME@ALIAS]
    python -m benchmarks.rank_http STORE NAME@ALIAS --against ../before --shapes columns --rounds 12

Up to four servers take the same bodies in turn, all on one core, asked from another: the service,
a bare endpoint whose score is a hash (`benchmarks.null_server`), and, where ``--stock`` names a
click-through bundle, FastAPI with pydantic over ONNX Runtime with that bundle, which gets rows
whatever the others get; with ``--plain`` that graph, which computes every row in full. Sessions,
of the lengths of real ones, are drawn anew for every body, or are those of a few pages.

``--against`` is another checkout of Slimrank, such as the commit before: a second table tells what
this one is to it. The same build differs by some percent from one start to the next: start again.
Many short windows tell more than few long ones: what is compared was nearer in time.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import orjson

from benchmarks import pace
from benchmarks.peers import environments, load, processes, report
from benchmarks.peers.bench import asking, window
from benchmarks.peers.bodies import Form, TooFew, draw, pool_of
from benchmarks.peers.scoring import MODELS, Model, write_models
from benchmarks.peers.servers import PEERS, SLIMRANK, Peer
from loadtest import traffic
from loadtest.server import free_port, pinned, unwind_when_told_to_end
from model_store.bundle import Bundle
from model_store.errors import StoreError
from model_store.store import open_store

BODIES: Final = 512
TOGETHER: Final = 5  # windows that 99th percentiles are taken of
# Twice as many as the service remembers, so that it knows none; and as few as pages at one time.
SESSIONS: Final = {"ids": BODIES, "ids, session known": 32}
SHAPES: Final = (*SESSIONS, "rows", "columns")
NULL: Final = Peer(
    name="null",
    title="null",
    arguments=(
        *("{python}", "-m", "uvicorn", "benchmarks.null_server:app", "--port", "{port}"),
        *("--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"),
    ),
    settings="", source="", parses="", batches="", swaps="",
)  # fmt: skip
STOCK: Final = replace(next(peer for peer in PEERS if peer.name == "fastapi"), title="stock")
BEFORE: Final = replace(
    SLIMRANK,
    name="before",
    title="before",
    arguments=("{python}", "-P", "-m", "service"),  # -P: of PYTHONPATH, not of this folder
)


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked: bodies for the service and the bare endpoint, and rows for the stock one."""

    model: str
    shape: str
    candidates: int
    bodies: Sequence[bytes]
    rows: Sequence[bytes] = ()

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.model} {self.shape} {self.candidates}"

    def of(self, server: Peer) -> Sequence[bytes]:
        """What a server is sent."""
        return self.rows if server is STOCK else self.bodies


def cases(bundles: Mapping[str, Bundle], sizes: Iterable[int], stock: str | None) -> Iterator[Case]:
    """All that the bundles can fill.

    Args:
        bundles: by reference, which is what they are served under.
        sizes: numbers of candidates.
        stock: what bodies of the stock endpoint name; None without one.
    """
    for candidates in sizes:
        for ref, bundle in bundles.items():
            try:
                if bundle.manifest.session is not None:
                    for shape, sessions in SESSIONS.items():
                        bodies = session_bodies(bundle, ref, candidates, sessions)
                        yield Case(ref, shape, candidates, bodies)
                else:
                    yield from click_cases(bundle, ref, candidates, stock)
            except TooFew as error:
                tell(f"{ref}: {error}")


def click_cases(bundle: Bundle, model: str, candidates: int, stock: str | None) -> Iterator[Case]:
    """Every form that a click-through bundle takes candidates in."""
    pool = pool_of(bundle)

    def bodies(of: str, form: Form) -> list[bytes]:
        return draw(pool, model=of, form=form, candidates=candidates, count=BODIES)

    usual = [] if stock is None else bodies(stock, "rows")
    forms: list[Form] = ["ids", "rows", "columns"] if pool.catalogue else ["rows", "columns"]
    for form in forms:
        yield Case(model, form, candidates, bodies(model, form), usual)


def session_bodies(bundle: Bundle, model: str, candidates: int, sessions: int) -> list[bytes]:
    """Ids after sessions of random items, each as long as a golden one; so many are different."""
    table = bundle.session_table()
    ids = [] if table is None else list(table.ids)
    if candidates > len(ids):
        raise TooFew(f"{candidates} candidates wanted, the bundle knows {len(ids)}")
    lengths = [len(session) for session in traffic.read_sessions(bundle.root)]
    rng = random.Random(1)  # noqa: S311  a load, no secret
    after = [rng.choices(ids, k=rng.choice(lengths)) for _ in range(sessions)]
    return [
        orjson.dumps(
            {
                "model": model,
                "session_items": after[number % sessions],
                "candidates": rng.sample(ids, candidates),
                "shape": "columns",
            }
        )
        for number in range(BODIES)
    ]


def start(
    server: Peer, variables: Mapping[str, str], body: bytes, folder: Path, stack: ExitStack
) -> int:
    """Start a server that runs until the stack closes; its port."""
    port = free_port()
    named = {"port": str(port), "python": sys.executable, "folder": str(folder)}
    own = {key: value.format_map(named) for key, value in server.variables.items()}
    stack.enter_context(
        processes.running(
            [argument.format_map(named) for argument in server.arguments],
            environments.variables(Path.cwd(), {**variables, **own}),
            folder / f"{server.name}.log",
            is_ready=asking(port, server, body),
            cores=frozenset({0}),
        )
    )
    return port


def measure(
    servers: Mapping[Peer, int],
    some: Sequence[Case],
    options: argparse.Namespace,
) -> list[report.Window]:
    """Windows of all servers in turn, so that what the machine does besides hits all alike."""
    found = []
    for number in range(options.rounds):
        order = [*servers.items()][:: -1 if number % 2 else 1]
        for case in some:
            for connections in options.connections:
                for server, port in order:
                    if bodies := case.of(server):
                        seen = load.measure(
                            port,
                            [load.request(server.path, body) for body in bodies],
                            connections,
                            warmup_s=options.warmup,
                            seconds=options.seconds,
                            clocks=processes.clocks,
                        )
                        at = report.Place(*divmod(number, TOGETHER))
                        found.append(window(server, case.name, connections, at, seen))
        tell(f"round {number + 1} of {options.rounds}")
    return found


def table(windows: Sequence[report.Window]) -> str:
    """A line a case and number of connections: the service, and what it is to the others."""
    rows = {(row.case, row.connections, row.server): row for row in report.rows(windows)}
    lines = [
        "| candidates as | connections | requests/s | p50 ms | p99 ms | CPU us a request "
        "| to null: requests/s | p50 | to stock: requests/s | p99 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for (case, connections, server), row in rows.items():
        if server != SLIMRANK.title:
            continue
        null = rows[case, connections, NULL.title]
        stock = rows.get((case, connections, STOCK.title))
        of_stock = ["", ""]
        if stock is not None:
            found = report.rps_ratio(windows, row, stock)
            of_stock = [spread(found), spread(report.percentile_ratio(windows, row, stock, 99))]
        cells = [
            case, connections, f"{row.rps[0]:,.0f}", f"{row.p50_ms:.2f}", f"{row.p99_ms:.2f}",
            f"{row.cpu_us:.0f} ({null.cpu_us:.0f})",
            spread(report.rps_ratio(windows, row, null)),
            spread(report.p50_ratio(windows, row, null)),
            *of_stock,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def columns_to_rows(windows: Sequence[report.Window]) -> Iterator[str]:
    """What columns gain over rows of the same ranker and number of candidates."""
    ours = {
        (row.case, row.connections): row
        for row in report.rows(windows)
        if row.server == SLIMRANK.title
    }
    for (case, connections), columns in ours.items():
        rows = ours.get((case.replace(" columns ", " rows "), connections))
        if rows is not None and rows is not columns:
            found = spread(report.rps_ratio(windows, columns, rows))
            yield f"{case}, {connections} connections: {found} of the requests/s of rows"


def to_before(windows: Sequence[report.Window]) -> Iterator[str]:
    """What the service is to another build of it, where one was asked."""
    rows = {(row.case, row.connections, row.server): row for row in report.rows(windows)}
    before = {key: row for key, row in rows.items() if row.server == BEFORE.title}
    if before:
        yield "\n| of before | connections | requests/s | CPU a request | p50 | p99 |"
        yield "|---|---:|---:|---:|---:|---:|"
    for (case, connections, _), theirs in before.items():
        ours = rows[case, connections, SLIMRANK.title]
        by_turn = (report.rps_ratio, report.cpu_ratio, report.p50_ratio)
        found = [ratio(windows, ours, theirs) for ratio in by_turn]
        found.append(report.percentile_ratio(windows, ours, theirs, 99))
        cells = map(spread, found)
        yield f"| {case} | {connections} | {' | '.join(cells)} |"


def spread(found: tuple[float, float, float]) -> str:
    """A median, the least and the greatest."""
    return "{:.2f} ({:.2f}-{:.2f})".format(*found)


def tell(line: str) -> None:
    """Say how far it is."""
    print(line, file=sys.stderr, flush=True)


def checkout(given: str) -> Path:
    """A folder with a service whose loops are built.

    Raises:
        ArgumentTypeError: it is none.
    """
    folder = Path(given).absolute()
    if not (folder / "service/__main__.py").exists():
        raise argparse.ArgumentTypeError(f"{given}: no checkout of Slimrank")
    if not [*folder.glob("service/_kernels*.so")]:
        how = "run `python setup.py build_ext --inplace` there"
        raise argparse.ArgumentTypeError(f"{given}: its loops are not built; {how}")
    return folder


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rank_http", description=__doc__.splitlines()[0]
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("models", nargs="+", help="name@alias or name@version")
    parser.add_argument("--stock", help="the bundle of the stock endpoint, as a model is named")
    parser.add_argument("--plain", type=Path, help="its graph, where not the bundle's own")
    parser.add_argument("--against", type=checkout, help="another checkout of Slimrank")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, help="only these")
    parser.add_argument("--candidates", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each window")
    parser.add_argument("--warmup", type=float, default=0.1, help="seconds before each window")
    parser.add_argument("--out", type=Path, help="a JSON file for all rows")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print the table; the exit status."""
    options = parse(argv)
    unwind_when_told_to_end()
    processes.adopt_orphans()
    try:
        store = open_store(str(options.store))
        opened = {ref: store.open(ref) for ref in options.models}
        stock = None if options.stock is None else store.open(options.stock).bundle
    except StoreError as error:
        tell(f"{error}")
        return 2
    bundles = {ref: each.bundle for ref, each in opened.items()}
    every = cases(bundles, options.candidates, None if stock is None else "stock")
    some = [case for case in every if not options.shapes or case.shape in options.shapes]
    if not some:
        tell("there is nothing to ask: see --shapes and --candidates")
        return 2
    with tempfile.TemporaryDirectory(prefix="rank-http-") as made, ExitStack() as stack:
        folder = Path(made)
        stack.enter_context(pinned(frozenset({1})))
        variables = {
            "SLIMRANK_STORE": str(options.store.absolute()),
            "SLIMRANK_MODELS": ",".join(options.models),
        }
        servers = {SLIMRANK: start(SLIMRANK, variables, some[0].bodies[0], folder, stack)}
        if options.against is not None:
            other = {**variables, "PYTHONPATH": str(options.against)}
            servers[BEFORE] = start(BEFORE, other, some[0].bodies[0], folder, stack)
        servers[NULL] = start(NULL, {}, some[0].bodies[0], folder, stack)
        if stock is not None:
            root = str(stock.root.absolute())
            graph = None if options.plain is None else str(options.plain.absolute())
            model = Model(root, graph, whole_rows=graph is not None)
            write_models(folder / "models.json", {"stock": model})
            first = next(case.rows[0] for case in some if case.rows)
            paths = {MODELS: str(folder / "models.json")}
            servers[STOCK] = start(STOCK, paths, first, folder, stack)
        before = pace.on_core(0)
        windows = measure(servers, some, options)
        after = pace.on_core(0)
    print(table(windows), *columns_to_rows(windows), *to_before(windows), sep="\n")
    tell(f"the server's core: before, {before}; after, {after}")
    for note in report.remarks(report.rows(windows)):
        tell(note)
    if options.out:
        content: Any = [asdict(row) for row in report.rows(windows)]
        options.out.write_text(json.dumps(content, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
