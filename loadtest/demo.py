"""Both lines on MovieLens 100k, with one command: ``python -m loadtest.demo``.

Trains a click-through ranker and slims it; trains a session ranker and turns its item table into
codes; publishes all four, serves the small ones side by side, ranks films for a real user and
recommends some after a real history over HTTP, and shows what compression cost and gained. Then it
goes on serving, until Ctrl-C; ``--once`` stops after the answers.

Everything is done as a user would: the other packages run as commands, and the service answers
over HTTP.
"""

import argparse
import json
import random
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from loadtest import server, traffic

CONFIG: Final = Path("compress/configs/ml-100k.toml")
SESSION_CONFIG: Final = Path("compress/configs/ml-100k-sessions.toml")
CACHE: Final = "~/.cache/slimrank"
TOP: Final = 10
LATEST: Final = 5
PARTS: Final = ("embedding tables", "mlp")
SESSION_PARTS: Final = ("item table", "graph", "item ids")
METRICS: Final = ("P@20", "MRR@20", "NDCG@10")


class DemoFailed(Exception):
    """A step did not work; the message says which, and what to do."""


@dataclass(frozen=True, slots=True)
class Film:
    """What people know a film by."""

    title: str
    year: str


@dataclass(frozen=True, slots=True)
class Line:
    """A row of a comparison: formatted values, and how many times better the small one is."""

    name: str
    dense: str
    small: str
    verdict: str


@dataclass(frozen=True, slots=True)
class Part:
    """One of the two rankers that are shown.

    Attributes:
        alias: of the bundle that is served.
    """

    config: Path
    name: str
    alias: str
    data: Mapping[str, Any]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, default=CONFIG, help="the click-through run")
    parser.add_argument(
        "--session-config", type=Path, default=SESSION_CONFIG, help="the session run"
    )
    parser.add_argument("--store", type=Path, help="folder of bundles (default: the config's)")
    parser.add_argument("--port", type=int, default=8000, help="where to serve, on 127.0.0.1")
    parser.add_argument("--candidates", type=int, default=200, help="films to rank")
    parser.add_argument("--seed", type=int, default=1, help="another one: another user and films")
    parser.add_argument("--once", action="store_true", help="stop after the answer")
    parser.add_argument("--reuse", action="store_true", help="serve what the store already holds")
    return parser.parse_args(argv)


def main(
    argv: Sequence[str] | None = None,
    service: Sequence[str] = server.SERVICE,
    compressor: Sequence[str] = (sys.executable, "-m", "compress"),
) -> int:
    """Run the demo; the process's exit status."""
    console = Console(highlight=False)
    options = parse(argv)
    try:
        run(options, console, service, compressor)
    except KeyboardInterrupt:
        console.print("\nstopped")
    except (DemoFailed, server.ServerFailed, traffic.BundleUnusable) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


def run(
    options: argparse.Namespace,
    console: Console,
    service: Sequence[str],
    compressor: Sequence[str],
) -> None:
    """All steps, in order."""
    # Minutes of training for an answer that cannot be served would be a bad joke.
    server.check_port(options.port)
    click_config = read_config(options.config)
    store = options.store or Path(click_config.get("publish", {}).get("store", "store"))
    click = part(options.config, click_config, "slim")
    session = part(options.session_config, read_config(options.session_config), "coded")
    told = (
        (click, "get the data, train the click-through ranker, slim it, publish both"),
        (session, "train the session ranker, turn its item table into codes, publish both"),
    )
    for number, (shown, what) in enumerate(told, start=1):
        if options.reuse:
            step(console, number, f"use {shown.name} from the store {str(store)!r}")
        else:
            step(console, number, what)
            train(shown.config, store, console, compressor)
    models = ",".join(f"{shown.name}@{shown.alias}" for shown, _ in told)
    step(console, 3, f"serve {models} on http://{server.HOST}:{options.port}")
    settings = {
        "STORE": str(store.resolve()),
        "MODELS": models,
        "CACHE": "memory://",
        "DRAIN_DELAY_S": "0",
    }
    log = Path(click_config.get("runs", "runs")) / "demo-service.log"
    with server.serving(settings, log, port=options.port, command=service) as running:
        console.print(f"ready; its log is {log}")
        requests = [
            rank(options, console, running, store, click),
            recommend(options, console, running, store, session),
        ]
        step(console, 6, "what compression cost and gained (from the bundles' cards)")
        console.print(price(card_of(running, store, click), click))
        console.print(session_price(card_of(running, store, session), session))
        step(console, 7, "try it yourself")
        for path, request in zip(("rank", "recommend"), requests, strict=True):
            console.print(curl(running.url, path, request), soft_wrap=True)
        if options.once:
            return
        console.print("\n[bold]serving[/bold] until Ctrl-C")
        running.watch()


def part(path: Path, config: Mapping[str, Any], alias: str) -> Part:
    """What is shown of a run."""
    return Part(path, str(config["name"]), alias, config["data"])


def bundle_of(running: server.Server, store: Path, shown: Part) -> Path:
    """The folder of the bundle that serves."""
    served = server.get_json(f"{running.url}/models/{shown.name}")
    return traffic.bundle_folder(store, shown.name, str(served["version"]))


def card_of(running: server.Server, store: Path, shown: Part) -> Mapping[str, Any]:
    """The compression card of the bundle that serves."""
    card: Mapping[str, Any] = traffic.read_manifest(bundle_of(running, store, shown))["card"]
    return card


def rank(
    options: argparse.Namespace,
    console: Console,
    running: server.Server,
    store: Path,
    click: Part,
) -> dict[str, Any]:
    """Rank for a real user, and show the answer; the request."""
    pool = traffic.read_pool(bundle_of(running, store, click))
    rng = random.Random(options.seed)  # noqa: S311 - a choice of films, no secret
    request = {
        "model": click.name,
        **rng.choice(pool.people),
        "candidates": rng.sample(pool.ids, min(options.candidates, len(pool.ids))),
        "top_k": TOP,
    }
    step(console, 4, f"POST /rank: {len(request['candidates'])} films for {person(request)}")
    show(console, server.post_json(f"{running.url}/rank", request), read_films(click.data))
    return request


def recommend(
    options: argparse.Namespace,
    console: Console,
    running: server.Server,
    store: Path,
    session: Part,
) -> dict[str, Any]:
    """Recommend after a real history, of the whole catalogue, and show the answer; the request."""
    histories = traffic.read_sessions(bundle_of(running, store, session))
    rng = random.Random(options.seed)  # noqa: S311 - a choice of histories, no secret
    watched = rng.choice([history for history in histories if history] or histories)
    request = {
        "model": session.name,
        "session_items": watched,
        "exclude": sorted(set(watched)),
        "top_k": TOP,
    }
    films = read_films(session.data)
    latest = [films.get(item, Film(f"film {item}", "")).title for item in watched[-LATEST:]]
    step(console, 5, f"POST /recommend: after {len(watched)} films, lastly {'; '.join(latest)}")
    show(console, server.post_json(f"{running.url}/recommend", request), films)
    return request


def show(console: Console, reply: Mapping[str, Any], films: Mapping[str, Film]) -> None:
    """The top of an answer, and how long it took."""
    console.print(ranking(reply, films))
    console.print(f"answered in {reply['timing_ms']['total']:.2f} ms by version {reply['version']}")


def step(console: Console, number: int, what: str) -> None:
    """Announce a step."""
    console.print(f"\n[bold cyan]{number}[/bold cyan] [bold]{what}[/bold]")


def read_config(path: Path) -> dict[str, Any]:
    """The run's config.

    Raises:
        DemoFailed: it cannot be read.
    """
    try:
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise DemoFailed(f"{path}: {error}; run from the root of the repository") from None


def train(config: Path, store: Path, console: Console, compressor: Sequence[str]) -> None:
    """Run the compression job; its progress passes through.

    Raises:
        DemoFailed: it failed; it has said why.
    """
    command = [*compressor, "run", str(config), "-o", f"publish.store={json.dumps(str(store))}"]
    console.print(f"[dim]$ {shlex.join(['python', '-m', 'compress', *command[len(compressor) :]])}")
    status = subprocess.run(command, check=False).returncode
    if status:
        raise DemoFailed(f"step 1 failed (status {status}), see above")


def person(request: Mapping[str, Any]) -> str:
    """A user in words: what is known of them and of the moment."""
    known = {**request.get("user", {}), **request.get("context", {})}
    return ", ".join(f"{name} {value}" for name, value in known.items()) or "a user"


def ranking(reply: Mapping[str, Any], known: Mapping[str, Film]) -> Table:
    """The top of the answer with titles."""
    table = Table("place", "film", "year", "score")
    for place, item in enumerate(reply["items"], start=1):
        film = known.get(item["id"], Film(f"film {item['id']}", ""))
        table.add_row(str(place), film.title, film.year, f"{item['score']:.4f}")
    return table


def price(card: Mapping[str, Any], shown: Part) -> Table:
    """Dense against slim side by side."""
    return side_by_side(shown.name, "slim", price_lines(card))


def session_price(card: Mapping[str, Any], shown: Part) -> Table:
    """The uncompressed item table against the codes, side by side."""
    return side_by_side(shown.name, "coded", session_price_lines(card))


def side_by_side(title: str, small: str, lines: Sequence[Line]) -> Table:
    """A comparison as a table."""
    table = Table("", "dense", small, f"{small} against dense", title=title, title_justify="left")
    for line in lines:
        table.add_row(line.name, line.dense, line.small, line.verdict)
    return table


def price_lines(card: Mapping[str, Any]) -> list[Line]:
    """Quality (mean over the seeds, on test rows), FLOPs, bytes and time; worse is said too."""
    results, dense, slim = card["results"], card["dense"], card["slim"]
    lines = [
        _quality(label, results, ("dense", "slim"), key, better)
        for label, key, better in (("AUC", "auc", 1), ("log loss", "logloss", -1))
        if results
    ]
    lines.append(_cost("FLOPs per candidate", dense["flops"], slim["flops"], "{:,.0f}"))
    return lines + cost_lines(dense, slim, PARTS)


def session_price_lines(card: Mapping[str, Any]) -> list[Line]:
    """Quality (mean over the seeds, on test prefixes), bytes and time; worse is said too."""
    results = [
        {
            "seed": result["seed"],
            **{side: result[side]["metrics"] for side in ("dense", "coded")},
        }
        for result in card["results"]
    ]
    lines = [_quality(name, results, ("dense", "coded"), name, 1) for name in METRICS if results]
    return lines + cost_lines(card["dense"], card["coded"], SESSION_PARTS)


def cost_lines(
    dense: Mapping[str, Any], small: Mapping[str, Any], parts: Sequence[str]
) -> list[Line]:
    """Bytes of some parts and of the whole bundle, and time."""
    lines = [
        _cost(f"bytes of {each}", dense["bytes"][each], small["bytes"][each], "{:,.0f}")
        for each in parts
        if each in dense["bytes"] and each in small["bytes"]
    ]
    whole = (sum(dense["bytes"].values()), sum(small["bytes"].values()))
    lines.append(_cost("bytes of the whole bundle", *whole, "{:,.0f}"))
    times = (dense["us_per_request"], small["us_per_request"])
    if None not in times:
        lines.append(_cost("scoring, µs per request", *times, "{:,.1f}"))
    return lines


def _quality(
    label: str,
    results: Sequence[Mapping[str, Any]],
    sides: tuple[str, str],
    key: str,
    better: int,
) -> Line:
    dense, small = (sum(result[side][key] for result in results) / len(results) for side in sides)
    change = small - dense
    word = "better" if change * better > 0 else "worse" if change else "the same"
    return Line(label, f"{dense:.4f}", f"{small:.4f}", f"{change:+.4f} ({word})")


def _cost(label: str, dense: float, slim: float, form: str) -> Line:
    if slim <= 0 or dense <= 0:
        verdict = "no ratio"
    elif slim <= dense:
        verdict = f"{dense / slim:.2f}x less"
    else:
        verdict = f"{slim / dense:.2f}x more (worse)"
    return Line(label, form.format(dense), form.format(slim), verdict)


def curl(url: str, path: str, request: Mapping[str, Any]) -> str:
    """A command that asks the same with a few films."""
    body = {**request, "top_k": 3}
    if "candidates" in request:
        body["candidates"] = request["candidates"][:5]
    head = "-H 'Content-Type: application/json'"
    return f"curl -s {url}/{path} {head} -d {shlex.quote(json.dumps(body))}"


def read_films(data: Mapping[str, Any]) -> dict[str, Film]:
    """Titles by id from the downloads' cache; empty for data that has none.

    Args:
        data: the config's section of that name.
    """
    cache = Path(data.get("cache", CACHE)).expanduser()
    # Both lines read one download.
    path = cache / str(data["type"]).removesuffix("-sessions") / "titles.json"
    if not path.is_file():
        return {}
    titles: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return {item: _film(title) for item, title in titles.items()}


def _film(title: str) -> Film:
    dated = re.fullmatch(r"(.*\S)\s*\((\d{4})\)", title)
    return Film(*dated.groups()) if dated else Film(title, "")


if __name__ == "__main__":
    server.unwind_when_told_to_end()
    sys.exit(main())
