"""Where the time of a POST /rank goes: each part beside its floor, in one process.

    python -m benchmarks.rank_parts STORE NAME@ALIAS [NAME@ALIAS ...]

The whole application answers bodies without a socket (its own routing, limits, metrics and log
line included), in turn with each of its parts alone and with a bare endpoint whose score is a hash
(`benchmarks.null_server`). Medians over rounds, so that what the machine does besides hits all
alike. What remains of the whole after its parts is the edge: headers, admission, accounting.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Final

import msgspec
import numpy as np
import orjson
import uvloop

from benchmarks import null_server
from benchmarks.peers.bodies import Form, TooFew, draw, pool_of
from loadtest import traffic
from loadtest.bounds import count
from model_store.bundle import Bundle
from model_store.errors import StoreError
from model_store.store import open_store
from service import kernels, log
from service.app import Service, create_app
from service.candidates import Limits
from service.click_ranking import ClickRanking
from service.encodings import Encoded, Encodings
from service.ranking import Prepared, Ranking
from service.schemas import RankRequest, RawRankRequest, parse_rank, parse_rank_raw
from service.session_ranking import SessionPrepared, SessionRanking
from service.settings import Settings

BODIES: Final = 32  # of each shape, so that not one is answered from the nearest cache
WARM: Final = 20
UNUSABLE: Final = 2
Timed = Callable[[int], Any]


@dataclass(frozen=True, slots=True)
class Case:
    """A model, a shape of body and a number of candidates."""

    model: str
    shape: str
    candidates: int


def bodies(bundle: Bundle, name: str, candidates: int) -> Iterator[tuple[str, list[bytes]]]:
    """Bodies in each shape that the bundle can fill; answered in the same, by item or by column.

    Raises:
        TooFew, BundleUnusable: the bundle knows fewer candidates.
    """
    if bundle.manifest.session is not None:
        drawn = traffic.draw(traffic.read_pool(bundle.root), candidates, BODIES, seed=1)
        yield "ids", [by_item(query.body) for query in drawn]
        return
    pool = pool_of(bundle)
    forms: list[Form] = ["ids"] if pool.catalogue else []
    for form in (*forms, "rows", "columns"):
        made = draw(pool, model=name, form=form, candidates=candidates, count=BODIES)
        yield form, made if form == "columns" else [by_item(body) for body in made]


def by_item(body: bytes) -> bytes:
    """The same request, answered as one is that says nothing of shapes."""
    asked_for = orjson.loads(body)
    del asked_for["shape"]
    return orjson.dumps(asked_for)


async def asked(app: Any, body: bytes) -> None:
    """One request, in process."""
    given = {"type": "http.request", "body": body, "more_body": False}

    async def receive() -> dict[str, Any]:
        return given

    async def send(message: dict[str, Any]) -> None:
        if message.get("status", 200) != 200:
            raise SystemExit(f"refused: {body[:200]!r}")

    headers = [
        (b"host", b"127.0.0.1:8000"),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    scope = {
        "type": "http", "method": "POST", "path": "/rank", "headers": headers,
        "client": ("127.0.0.1", 40000), "query_string": b"",
    }  # fmt: skip
    await app(scope, receive, send)


def parts_of(ranking: Ranking, raw: list[bytes], limits: Limits) -> dict[str, Timed]:
    """Each part of a request alone, as what it does to body number n.

    They are given what the part before made, made once.
    """
    requests = [parsed(ranking, body) for body in raw]
    asked_for = [r.asked if isinstance(r, RawRankRequest) else r for r in requests]
    prepared = [prepared_of(ranking, body, limits) for body in raw]
    ranked = [ranking.rank(each) for each in prepared]
    answers = [
        {"id": "x", **ranking.answer(*each), "timing_ms": {"total": 1.0}}
        for each in zip(asked_for, prepared, ranked, strict=True)
    ]

    return {
        "parse": lambda n: parsed(ranking, raw[n]),
        "look-up and features": lambda n: ranking.prepare_any(requests[n], limits),
        **ranks_of(ranking, prepared),
        "answer": lambda n: ranking.answer(asked_for[n], prepared[n], ranked[n]),
        "encode": lambda n: orjson.dumps(answers[n], option=orjson.OPT_SERIALIZE_NUMPY),
    }


def ranks_of(ranking: Ranking, prepared: Sequence[Any]) -> dict[str, Timed]:
    """Scores and their order; where one loop makes both, this is the score."""
    if isinstance(ranking, SessionRanking) and prepared[0].encoded().loop is not None:
        return {"score": lambda n: ranking.rank(prepared[n])}
    scores = [ranking.score(each) for each in prepared]

    def order(n: int) -> Any:
        places, best = kernels.best_first(scores[n], None)
        return kernels.picked(list(prepared[n].ids), places), best

    return {"score": lambda n: ranking.score(prepared[n]), "top-k": order}


def parsed(ranking: Ranking, body: bytes) -> RankRequest | RawRankRequest:
    """As the endpoint does it."""
    return (parse_rank_raw(body) if ranking.reads_raw else None) or parse_rank(body)


class _Anew:
    """Encodings that remember no session."""

    def __init__(self, ranking: SessionRanking) -> None:
        self._of = ranking._encoder, ranking.catalogue  # noqa: SLF001  a benchmark looks inside

    def __call__(self, session: bytes) -> Encoded:
        return Encodings(*self._of)(session)


def prepared_of(ranking: Ranking, body: bytes, limits: Limits) -> Prepared:
    """What a body is ranked by."""
    prepared = ranking.prepare_any(parsed(ranking, body), limits)
    if prepared is None:
        raise SystemExit(f"it is parsed twice, which is no part here: {body[:200]!r}")
    if isinstance(ranking, SessionRanking) and isinstance(prepared, SessionPrepared):
        return msgspec.structs.replace(prepared, encodings=_Anew(ranking))
    return prepared


def floors_of(ranking: Ranking, raw: list[bytes], limits: Limits) -> dict[str, Timed]:
    """What the dear parts cannot go below: a look-up of ids, a run of the graph."""
    prepared: list[Any] = [prepared_of(ranking, body, limits) for body in raw]
    floors: dict[str, Timed] = {"parse": lambda n: null_server.DECODER.decode(raw[n])}
    match ranking:
        case ClickRanking():
            graph = ranking._scorer._graph  # noqa: SLF001  a benchmark looks inside
            floors["score"] = lambda n: graph.run(prepared[n].feeds)
            if (table := ranking.table) is not None:
                floors["look-up and features"] = lambda n: table.rows(prepared[n].ids)
        case SessionRanking():
            catalogue = ranking.catalogue
            vectors = [catalogue.vectors(each.session)[None] for each in prepared]
            floors["score"] = lambda n: ranking._encoder.encode(vectors[n])  # noqa: SLF001
            floors["look-up and features"] = lambda n: catalogue.rows(prepared[n].ids)
    return floors


async def measure(
    service: Service, ranking: Ranking, raw: list[bytes], rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Medians in microseconds: of the parts with "whole", and of their floors."""
    limits = service.parts.limits
    parts, floors = parts_of(ranking, raw, limits), floors_of(ranking, raw, limits)
    found = {name: [] for name in ("whole", *parts)}  # type: dict[str, list[int]]
    least = {name: [] for name in ("whole", *floors)}  # type: dict[str, list[int]]
    for turn in range(WARM + rounds):
        n = turn % len(raw)
        for app, times in ((service, found), (null_server.app, least)):
            ranking.forget()
            began = perf_counter_ns()
            await asked(app, raw[n])
            times["whole"].append(perf_counter_ns() - began)
        for timed, times in ((parts, found), (floors, least)):
            for name, part in timed.items():
                began = perf_counter_ns()
                part(n)
                times[name].append(perf_counter_ns() - began)
    return _medians(found), _medians(least)


def _medians(times: Mapping[str, list[int]]) -> dict[str, float]:
    return {name: float(np.median(each[WARM:])) / 1e3 for name, each in times.items()}


@asynccontextmanager
async def running(service: Service) -> AsyncIterator[None]:
    """The application between its start and its stop."""
    inbox: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    told = asyncio.Queue()  # type: asyncio.Queue[dict[str, str]]
    life = asyncio.create_task(service({"type": "lifespan", "state": {}}, inbox.get, told.put))
    await inbox.put({"type": "lifespan.startup"})
    if (await told.get())["type"] != "lifespan.startup.complete":
        raise SystemExit(f"the service did not start; `{_as_served(service)}` says why")
    yield
    await inbox.put({"type": "lifespan.shutdown"})
    await life


def _as_served(service: Service) -> str:
    settings = service.parts.settings
    return f"SLIMRANK_STORE={settings.store} SLIMRANK_MODELS={settings.models[0]} make serve"


def table(case: Case, found: Mapping[str, float], least: Mapping[str, float]) -> str:
    """The parts of a case, the dearest avoidable one first seen."""
    whole = found["whole"]
    edge = whole - sum(us for name, us in found.items() if name != "whole")
    lines = [
        f"\n{case.model}, {case.candidates} candidates as {case.shape}\n",
        "| part | µs | of the whole | floor µs |\n|---|---|---|---|",
    ]
    for name, us in {**found, "edge": edge}.items():
        floor = f"{least[name]:.1f}" if name in least else ""
        lines.append(f"| {name} | {us:.1f} | {us / whole:.0%} | {floor} |")
    return "\n".join(lines)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rank_parts", description=__doc__.splitlines()[0]
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("models", nargs="+", help="name@alias or name@version")
    parser.add_argument("--candidates", type=count, nargs="+", default=[100, 200, 1000])
    parser.add_argument("--rounds", type=count, default=600)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args(argv)
    if options.out is not None and not options.out.parent.is_dir():
        parser.error(f"expected --out in a folder that is there, got {options.out}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every case, and print a table each; the process's exit status."""
    options = parse(argv)
    try:
        store = open_store(str(options.store))
        # Opened before any is served: the service tells why it cannot in a log that is not kept.
        bundles = {model: store.open(model).bundle for model in options.models}
    except StoreError as error:
        print(f"rank_parts: {error}", file=sys.stderr)
        return UNUSABLE
    figures = uvloop.run(measured(options, bundles))  # as the service does
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1))
    return 0 if figures else UNUSABLE


async def measured(
    options: argparse.Namespace, bundles: Mapping[str, Bundle]
) -> list[dict[str, Any]]:
    """The figures of every case; those with more candidates than a bundle knows are told of."""
    figures = []
    for model, bundle in bundles.items():
        most = max(options.candidates)
        settings = Settings(
            store=str(options.store), models=(model,), store_poll_s=0, max_candidates=most
        )
        service = create_app(settings)
        async with running(service):
            ranking = service.parts.loader.resolve(None)
            for candidates in options.candidates:
                try:
                    drawn = list(bodies(bundle, ranking.name, candidates))
                except (TooFew, traffic.BundleUnusable) as error:
                    print(f"\n{model} is left out: {error}", file=sys.stderr)
                    continue
                for shape, raw in drawn:
                    case = Case(model, shape, candidates)
                    found, least = await measure(service, ranking, raw, options.rounds)
                    print(table(case, found, least), file=sys.stderr)
                    figures.append({**vars_of(case), "us": found, "floor_us": least})
    return figures


def vars_of(case: Case) -> dict[str, Any]:
    """A case as JSON."""
    return {"model": case.model, "shape": case.shape, "candidates": case.candidates}


if __name__ == "__main__":
    with Path("/dev/null").open("w") as nowhere, redirect_stdout(nowhere):
        log.configure("info", "json")
        sys.exit(main())
