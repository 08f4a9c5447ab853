"""Servers: started, compared with Slimrank's answers, measured in turn, ended."""

import argparse
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Final

from benchmarks.peers import environments, load, processes, report
from benchmarks.peers.bodies import Form, Pool, TooFew, difference, draw, pool_of
from benchmarks.peers.probes import PROBES
from benchmarks.peers.scoring import MODELS, Model, write_models
from benchmarks.peers.servers import SLIMRANK, Peer
from loadtest.server import free_port
from model_store.bundle import Bundle
from model_store.store import open_store

BUILD: Final = Path("build/peers")
BODIES: Final = 32
CHECKED: Final = 4  # bodies whose answers are compared
TOLERANCE: Final = 1e-5
MOST_CANDIDATES: Final = 2000  # of a request, as the service has it unless told otherwise
PLAIN: Final = "plain"
DONE: Final = "done"  # the file that says that all bundles are made
KINDS: Final = ("dense", "slim", "int8")


class Unmeasurable(Exception):
    """There is nothing to measure with; the message says what is missing."""


class Differs(Exception):
    """A peer answers otherwise than Slimrank does; the message says by how much."""


@dataclass(frozen=True, slots=True)
class Case:
    """A graph on a form of body.

    Attributes:
        bodies: what is sent, in rotation.
        like: Slimrank's case whose answers these must equal; None for Slimrank's own.
    """

    name: str
    bodies: Sequence[bytes]
    like: str | None = None


@dataclass(frozen=True, slots=True)
class Bench:
    """What all servers have in common.

    Attributes:
        peers: their cases by step: what stands at one place here and in ``ours`` is measured
            within seconds of each other.
        ours: Slimrank's.
        models: what the peers serve, by the names in bodies.
        store: what Slimrank serves from, with the references of its models.
        folder: for what servers write.
        cores: the servers'.
        expected: Slimrank's answers to the first bodies, by case.
    """

    peers: Sequence[Sequence[Case]]
    ours: Sequence[Sequence[Case]]
    models: Path
    store: Path
    references: Sequence[str]
    folder: Path
    options: argparse.Namespace
    cores: frozenset[int]
    expected: Mapping[str, Sequence[bytes]]

    def steps(self, peer: Peer) -> Sequence[Sequence[Case]]:
        """A server's cases by step."""
        return self.ours if peer is SLIMRANK else self.peers


def tell(line: str) -> None:
    """Say how far it is."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Rankers:
    """Where the bundles lie, and what names them.

    Attributes:
        names: "dense", "slim" and "int8" to a reference into the store.
        plain: a graph of the dense ranker that computes every row in full; None: the bundle's own,
            given the request side once a candidate.
    """

    store: Path
    names: Mapping[str, str]
    plain: Path | None


def rankers_of(options: argparse.Namespace) -> Rankers:
    """The rankers that were asked for; else made-up ones, which are made if they are not there.

    Raises:
        Unmeasurable: they could not be made.
    """
    if options.store is not None:
        given = {kind: getattr(options, kind) for kind in KINDS}
        return Rankers(options.store, given, options.plain)
    made = BUILD / "bundles"
    if not (made / DONE).exists():
        tell("making the bundles")
        # In a process of its own: torch's threads and memory are no part of a load generator.
        making = [sys.executable, "-m", "benchmarks.peers.bundles", str(made)]
        if subprocess.run(making, check=False).returncode:
            raise Unmeasurable(f"the bundles could not be made: {' '.join(making)} failed")
    return Rankers(
        made / "store", {kind: f"criteo-shape@{kind}" for kind in KINDS}, made / "plain.onnx"
    )


def prepare(options: argparse.Namespace, folder: Path) -> Bench:
    """The bodies, and what the servers need to know.

    Raises:
        Unmeasurable, StoreError: there are no bundles, or too few candidates in them.
    """
    rankers = rankers_of(options)
    store = open_store(str(rankers.store))
    bundles = {kind: store.open(name).bundle for kind, name in rankers.names.items()}
    write_models(folder / "models.json", models_of(rankers, bundles))
    try:
        ours, peers = cases(rankers.names, pool_of(bundles["dense"]), options.candidates)
    except TooFew as error:
        raise Unmeasurable(f"{error}; lower --candidates") from None
    return Bench(
        peers=peers,
        ours=ours,
        models=folder / "models.json",
        store=rankers.store,
        references=tuple(dict.fromkeys(rankers.names.values())),
        folder=folder,
        options=options,
        cores=frozenset({options.cores[0]}),
        expected={},
    )


def models_of(rankers: Rankers, bundles: Mapping[str, Bundle]) -> dict[str, Model]:
    """What the peers serve: the split graphs as they are, and the plain one."""
    roots = {kind: str(bundle.root.absolute()) for kind, bundle in bundles.items()}
    split = {kind: Model(roots[kind], None, whole_rows=False) for kind in ("dense", "slim")}
    graph = None if rankers.plain is None else str(rankers.plain.absolute())
    plain = Model(roots["dense"], graph, whole_rows=True)
    return {rankers.names[kind]: model for kind, model in split.items()} | {PLAIN: plain}


def cases(
    names: Mapping[str, str], pool: Pool, candidates: int
) -> tuple[list[list[Case]], list[list[Case]]]:
    """Slimrank's cases and the peers', by step."""

    def bodies(model: str, form: Form) -> list[bytes]:
        return draw(pool, model=model, form=form, candidates=candidates, count=BODIES)

    dense, slim = bodies(names["dense"], "rows"), bodies(names["slim"], "rows")
    int8 = [Case("int8 columns", bodies(names["int8"], "columns"))]
    if pool.catalogue:
        int8.append(Case("int8 ids", bodies(names["int8"], "ids")))
    ours = [[Case("dense rows", dense)], [Case("slim rows", slim)], int8]
    peers = [
        [Case("dense rows", dense, like="dense rows")],
        [Case("slim rows", slim, like="slim rows")],
        [Case("plain rows", bodies(PLAIN, "rows"), like="dense rows")],
    ]
    return ours, peers


def launch(bench: Bench, peer: Peer, python: Path) -> tuple[list[str], dict[str, str], int]:
    """What starts a server: its command, its environment and its port."""
    ports = [free_port() for _ in range(3)]
    own = bench.folder / peer.name
    own.mkdir(exist_ok=True)
    names = dict(zip(("port", "port2", "port3"), map(str, ports), strict=True))
    names |= {"python": str(python), "folder": str(own)}
    more = {MODELS: str(bench.models)}
    if peer is SLIMRANK:
        models = ",".join(bench.references)
        more = {"SLIMRANK_STORE": str(bench.store.absolute()), "SLIMRANK_MODELS": models}
        more["SLIMRANK_MAX_CANDIDATES"] = str(max(bench.options.candidates, MOST_CANDIDATES))
    more |= {key: value.format_map(names) for key, value in peer.variables.items()}
    command = [argument.format_map(names) for argument in peer.arguments]
    return command, environments.variables(Path.cwd(), more), ports[0]


def reference(bench: Bench) -> Bench:
    """The bench with Slimrank's answers to the first bodies.

    Raises:
        ServerFailed, LoadFailed, OSError: it does not start, or refuses one.
    """
    command, variables, port = launch(bench, SLIMRANK, Path(sys.executable))
    ready = asking(port, SLIMRANK, bench.ours[0][0].bodies[0])
    log = bench.options.out / "logs" / "reference.log"
    with processes.running(command, variables, log, is_ready=ready, cores=bench.cores):
        expected = {
            case.name: [answer(port, SLIMRANK, body) for body in case.bodies[:CHECKED]]
            for case in chain.from_iterable(bench.ours)
        }
    return replace(bench, expected=expected)


def asking(port: int, peer: Peer, body: bytes) -> "processes.Settled":
    """Whether a server answers, and has done so for a while."""

    def answers() -> bool:
        try:
            return load.OK in load.ask(port, peer.path, body)[0]
        except (OSError, load.LoadFailed):
            return False

    return processes.Settled(answers, peer.settle_s)


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers as Slimrank does, frozen unless it is asked."""

    peer: Peer
    port: int
    tree: processes.Tree


@contextmanager
def running(bench: Bench, peer: Peer, python: Path) -> Iterator[Running]:
    """A server, started and checked, frozen inside the block and gone after it.

    Raises:
        ServerFailed, LoadFailed, Differs, OSError: it does not start, or answers otherwise.
    """
    options, steps = bench.options, bench.steps(peer)
    command, variables, port = launch(bench, peer, python)
    log = options.out / "logs" / f"{peer.name}.log"
    ready = asking(port, peer, steps[0][0].bodies[0])
    with processes.running(
        command, variables, log, is_ready=ready, cores=bench.cores, start_s=options.start
    ) as tree:
        for case in chain.from_iterable(steps):
            check(port, peer, case, bench.expected)
        tree.freeze()
        yield Running(peer, port, tree)


def measured(
    bench: Bench, server: Running, step: int, connections: int, at: report.Place
) -> Iterator[report.Window]:
    """Wake a server, measure its cases of a step, freeze it again.

    Raises:
        LoadFailed, OSError: a request was not answered with 200.
    """
    with server.tree.awake():
        for case in bench.steps(server.peer)[step]:
            seen = load.measure(
                server.port,
                [load.request(server.peer.path, body) for body in case.bodies],
                connections,
                warmup_s=bench.options.warmup,
                seconds=bench.options.seconds,
                clocks=server.tree.clocks,
            )
            yield window(server.peer, case.name, connections, at, seen)


def facts(bench: Bench, server: Running) -> dict[str, Any]:
    """What a server holds, and what it says to wrong bodies."""
    body = bench.steps(server.peer)[0][0].bodies[0]
    with server.tree.awake():
        said = {name: status(server.port, server.peer, make(body)) for name, make in PROBES.items()}
        return asdict(server.tree.memory()) | said


def check(port: int, peer: Peer, case: Case, expected: Mapping[str, Sequence[bytes]]) -> None:
    """Let a server pass that answers as Slimrank does.

    Raises:
        Differs, LoadFailed: it does not.
    """
    if case.like is None:
        return
    for body, wanted in zip(case.bodies, expected[case.like], strict=False):
        far = difference(answer(port, peer, body), wanted)
        if far > TOLERANCE:
            raise Differs(f"{case.name}: {far:.3g} from Slimrank's answer, over {TOLERANCE:g}")


def answer(port: int, peer: Peer, body: bytes) -> bytes:
    """A server's answer to a body that is right.

    Raises:
        LoadFailed, OSError: it refuses the body, or there was no answer.
    """
    line, said = load.ask(port, peer.path, body)
    if load.OK not in line:
        raise load.LoadFailed(
            f"{line.decode(errors='replace')}: {said[:300].decode(errors='replace')}"
        )
    return said


def status(port: int, peer: Peer, body: bytes) -> str:
    """What a server says to a body, as the number of its status."""
    try:
        return load.ask(port, peer.path, body)[0].split()[1].decode()
    except (load.LoadFailed, OSError):
        return "no answer"


def window(
    peer: Peer, case: str, connections: int, at: report.Place, measured: load.Measured
) -> report.Window:
    """What a report takes of a measured window."""
    return report.Window(
        server=peer.title,
        case=case,
        connections=connections,
        at=at,
        seconds=measured.seconds,
        latencies_ns=measured.latencies_ns,
        server_s=measured.server_s,
        generator_cpu=measured.generator_s / measured.seconds,
        foreign_cpu=measured.foreign_s / measured.seconds,
    )
