"""The whole line on MovieLens 100k, with one command: ``python -m loadtest.demo``.

Trains a click-through ranker, slims it, publishes both, serves the slim one, ranks films for a real
user over HTTP, and shows what slimming cost and what it gained. Then it goes on serving, until
Ctrl-C; ``--once`` stops after the answer.

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
CACHE: Final = "~/.cache/slimrank"
TOP: Final = 10
PARTS: Final = ("embedding tables", "mlp")


class DemoFailed(Exception):
    """A step did not work; the message says which, and what to do."""


@dataclass(frozen=True, slots=True)
class Film:
    """What people know a film by."""

    title: str
    year: str


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the comparison: formatted values, and how many times better slim is."""

    name: str
    dense: str
    slim: str
    verdict: str


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, default=CONFIG, help="the run to show")
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
    config = read_config(options.config)
    name = str(config["name"])
    store = options.store or Path(config.get("publish", {}).get("store", "store"))
    if options.reuse:
        step(console, 1, f"use {name} from the store {str(store)!r}")
    else:
        step(console, 1, "get the data, train the dense ranker, slim it, publish both")
        train(options.config, store, console, compressor)
    step(console, 2, f"serve {name}@slim on http://{server.HOST}:{options.port}")
    settings = {
        "STORE": str(store.resolve()),
        "MODELS": f"{name}@slim",
        "CACHE": "memory://",
        "DRAIN_DELAY_S": "0",
    }
    log = Path(config.get("runs", "runs")) / "demo-service.log"
    with server.serving(settings, log, port=options.port, command=service) as running:
        console.print(f"ready; its log is {log}")
        answer(options, console, running, store, config)
        if options.once:
            return
        console.print("\n[bold]serving[/bold] until Ctrl-C")
        running.watch()


def answer(
    options: argparse.Namespace,
    console: Console,
    running: server.Server,
    store: Path,
    config: Mapping[str, Any],
) -> None:
    """Rank for a real user, and show the answer and the price of slimming."""
    name = config["name"]
    served = server.get_json(f"{running.url}/models/{name}")
    bundle = traffic.bundle_folder(store, name, str(served["version"]))
    pool = traffic.read_pool(bundle)
    rng = random.Random(options.seed)  # noqa: S311 - a choice of films, no secret
    request = {
        **rng.choice(pool.people),
        "candidates": rng.sample(pool.ids, min(options.candidates, len(pool.ids))),
        "top_k": TOP,
    }
    step(console, 3, f"POST /rank: {len(request['candidates'])} films for {person(request)}")
    reply = server.post_json(f"{running.url}/rank", request)
    console.print(ranking(reply, read_films(config["data"])))
    console.print(f"answered in {reply['timing_ms']['total']:.2f} ms by version {reply['version']}")
    step(console, 4, "what slimming cost and gained (from the bundle's card)")
    card = traffic.read_manifest(bundle)["card"]
    console.print(price(card))
    step(console, 5, "try it yourself")
    console.print(curl(running.url, request), soft_wrap=True)


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


def price(card: Mapping[str, Any]) -> Table:
    """Dense against slim side by side."""
    table = Table("", "dense", "slim", "slim against dense")
    for line in price_lines(card):
        table.add_row(line.name, line.dense, line.slim, line.verdict)
    return table


def price_lines(card: Mapping[str, Any]) -> list[Line]:
    """Quality (mean over the seeds, on test rows), FLOPs, bytes and time; worse is said too."""
    results, dense, slim = card["results"], card["dense"], card["slim"]
    lines = [
        _quality(label, results, key, better)
        for label, key, better in (("AUC", "auc", 1), ("log loss", "logloss", -1))
        if results
    ]
    lines.append(_cost("FLOPs per candidate", dense["flops"], slim["flops"], "{:,.0f}"))
    lines += [
        _cost(f"bytes of {part}", dense["bytes"][part], slim["bytes"][part], "{:,.0f}")
        for part in PARTS
        if part in dense["bytes"] and part in slim["bytes"]
    ]
    whole = (sum(dense["bytes"].values()), sum(slim["bytes"].values()))
    lines.append(_cost("bytes of the whole bundle", *whole, "{:,.0f}"))
    times = (dense["us_per_request"], slim["us_per_request"])
    if None not in times:
        lines.append(_cost("scoring, µs per request", *times, "{:,.1f}"))
    return lines


def _quality(label: str, results: Sequence[Mapping[str, Any]], key: str, better: int) -> Line:
    dense, slim = (
        sum(result[side][key] for result in results) / len(results) for side in ("dense", "slim")
    )
    change = slim - dense
    word = "better" if change * better > 0 else "worse" if change else "the same"
    return Line(label, f"{dense:.4f}", f"{slim:.4f}", f"{change:+.4f} ({word})")


def _cost(label: str, dense: float, slim: float, form: str) -> Line:
    if slim <= 0 or dense <= 0:
        verdict = "no ratio"
    elif slim <= dense:
        verdict = f"{dense / slim:.2f}x less"
    else:
        verdict = f"{slim / dense:.2f}x more (worse)"
    return Line(label, form.format(dense), form.format(slim), verdict)


def curl(url: str, request: Mapping[str, Any]) -> str:
    """A command that ranks a few of the same films for the same user."""
    body = {**request, "candidates": request["candidates"][:5], "top_k": 3}
    head = "-H 'Content-Type: application/json'"
    return f"curl -s {url}/rank {head} -d {shlex.quote(json.dumps(body))}"


def read_films(data: Mapping[str, Any]) -> dict[str, Film]:
    """Titles by id from the downloads' cache; empty for data that has none.

    Args:
        data: the config's section of that name.
    """
    cache = Path(data.get("cache", CACHE)).expanduser()
    path = cache / str(data["type"]) / "titles.json"
    if not path.is_file():
        return {}
    titles: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return {item: _film(title) for item, title in titles.items()}


def _film(title: str) -> Film:
    dated = re.fullmatch(r"(.*\S)\s*\((\d{4})\)", title)
    return Film(*dated.groups()) if dated else Film(title, "")


if __name__ == "__main__":
    server.unwind_on_sigterm()
    sys.exit(main())
