"""Commands: run a config, sweep over many, evaluate a bundle, report on bundles, encode a table.

Heavy imports stand inside the commands, so that `evaluate` and `--help` load no torch.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from compress.pipeline import Outcome
    from compress.progress import Progress
    from compress.sweep.plan import Sweep
    from compress.sweep.run import Outcome as SweepOutcome
    from model_store.bundle import Bundle
    from model_store.manifest import Quality, SessionQuality

REFUSED = 2  # the input cannot be used
UNREAD = 1  # nobody reads on, as in `report … | head`
GATED = 3  # compression cost more quality than the gate allows
FAILED = 4  # some cells of a sweep could not be done
INTERRUPTED = 130

app = typer.Typer(
    help="Slim click-through rankers, and judge what came of it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Store = Annotated[str | None, typer.Option(help="Store that BUNDLE is a reference into.")]
Tier = Annotated[str | None, typer.Option(help="A sibling in the bundle, by its name.")]


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="TOML file of the run.")],
    override: Annotated[
        list[str] | None,
        typer.Option("--override", "-o", help="Set a key: -o method.budget=0.1 (may repeat)."),
    ] = None,
    ray_workers: Annotated[
        int, typer.Option(min=0, help="Train on so many workers of a Ray cluster.")
    ] = 0,
) -> None:
    """Train, compress, export, evaluate and publish; go on where a killed run stopped.

    Under torchrun its processes train together.
    """
    from compress.config import ConfigError, read

    table = read(config, override or ())
    if "task" not in table:
        _run_click(table, str(config), ray_workers)
    elif ray_workers:
        raise ConfigError("--ray-workers: the session line trains in one process; leave it out")
    else:
        _run_session(table, str(config))


def _run_session(table: dict[str, Any], where: str) -> None:
    from compress.config import ConfigError, check
    from compress.parallel import joined
    from compress.progress import terminal
    from compress.sessions.config import SessionRunConfig
    from compress.sessions.pipeline import run as run_plan
    from compress.sessions.plan import resolve
    from compress.sessions.report import lines

    plan = resolve(check(SessionRunConfig, table, where=where))
    with _stoppable(), joined() as world:
        if world.size > 1:
            raise ConfigError("the session line trains in one process: start it without torchrun")
        if notice := plan.source.notice():
            print(notice, file=sys.stderr)
        with terminal() as progress:
            outcome = run_plan(plan, progress)
    for line in lines(outcome.card):
        print(line)
    if outcome.holds:
        _published(outcome.versions, plan.config.name, plan.config.publish.store)
    else:
        print("not published: the coded table lost more than [gate] allows", file=sys.stderr)
    print(f"run folder: {outcome.folder}")
    if not outcome.holds:
        raise typer.Exit(GATED)


@contextmanager
def _stoppable() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def _published(versions: Mapping[str, str], name: str, store: str) -> None:
    published = ", ".join(f"{kind} {name}@{version}" for kind, version in versions.items())
    print(f"published in {store}: {published}")


def _run_click(table: dict[str, Any], where: str, ray_workers: int) -> None:
    from compress.parallel import joined
    from compress.pipeline import run as run_plan
    from compress.pipeline import train
    from compress.plan import check_run, resolve
    from compress.progress import Silent, terminal

    plan = resolve(check_run(table, where))
    with _stoppable(), ExitStack() as stack:
        world = stack.enter_context(joined())
        if world.first and (notice := plan.source.notice()):
            print(notice, file=sys.stderr)
        progress = stack.enter_context(terminal()) if world.first else Silent()
        if ray_workers:
            from compress.cluster import train_on_ray

            train_on_ray(plan.config, ray_workers)
        if world.size > 1:
            train(plan, progress, world)
        if not world.first:
            return
        outcome = run_plan(plan, progress)
    _show(outcome, plan.config.name, plan.config.publish.store)
    if not outcome.verdict.holds:
        raise typer.Exit(GATED)


@app.command()
def sweep(
    config: Annotated[Path, typer.Argument(help="TOML file of the sweep.")],
    override: Annotated[
        list[str] | None,
        typer.Option("--override", "-o", help="Set a key of the sweep, or of its base."),
    ] = None,
    *,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cells at a time, a core each (default: all cores).")
    ] = None,
    launcher: Annotated[str, typer.Option(help="local, or ray: through Ray Tune.")] = "local",
    times: Annotated[
        bool, typer.Option(help="Time all bundles when the cells are done, one after the other.")
    ] = True,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-O", help="Folder of table and report (default: reports/CONFIG)."
        ),
    ] = None,
) -> None:
    """Run methods × budgets × seeds side by side, and compare them; publishes nothing."""
    from compress.progress import terminal
    from compress.sweep.launchers import make_launcher
    from compress.sweep.plan import load
    from compress.sweep.run import run as run_sweep

    chosen, planned = make_launcher(launcher), load(config, override or ())
    with _stoppable():
        for notice in dict.fromkeys(v.plan.source.notice() for v in planned.variants):
            if notice:
                print(notice, file=sys.stderr)
        with terminal() as progress:
            outcome = run_sweep(
                planned,
                chosen,
                workers=workers or os.cpu_count() or 1,
                times=times,
                folder=output or Path("reports") / config.stem,
                progress=progress,
            )
    _show_sweep(outcome, planned)
    if outcome.faults:
        raise typer.Exit(FAILED)


def _show_sweep(outcome: "SweepOutcome", planned: "Sweep") -> None:
    from rich.console import Console
    from rich.table import Table

    from compress.sweep.report import SUMMARY, summary

    table = Table(title=f"{planned.variants[0].plan.config.name}: mean over seeds")
    for heading in ("method", "budget", *SUMMARY):
        table.add_column(heading, justify="left" if heading in {"method", "budget"} else "right")
    for line in summary(outcome.results):
        table.add_row(*line)
    Console().print(table)
    for name, fault in outcome.faults.items():
        print(f"failed: {name}: {fault.text}", file=sys.stderr)
    print(f"written to {outcome.folder}: results.parquet, report.html, frontier.png, frontier.svg")


@app.command()
def evaluate(
    bundle: Annotated[str, typer.Argument(help="Folder, or name@version|alias with --store.")],
    data: Annotated[Path, typer.Option(help="Parquet, CSV or TSV file (also gzip).")],
    store: Store = None,
    tier: Tier = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Count rows with a bad cell, and leave them out.")
    ] = False,
) -> None:
    """Print a bundle's quality on a data file (a session ranker's on prefixes), as JSON."""
    from compress.evaluate import find_bundle
    from compress.progress import terminal

    with terminal() as progress:
        found = find_bundle(bundle, store, tier)
        judge = _judge_click if found.manifest.session is None else _judge_session
        quality, skipped = judge(found, data, skip_bad, progress)
    print(json.dumps({**quality.model_dump(), "skipped": skipped}))


def _judge_click(
    bundle: "Bundle", data: Path, skip_bad: bool, progress: "Progress"
) -> "tuple[Quality, int]":
    from compress.evaluate import evaluate as evaluate_bundle

    found = evaluate_bundle(bundle, data, skip_bad=skip_bad, progress=progress)
    return found.quality, found.skipped


def _judge_session(
    bundle: "Bundle", data: Path, skip_bad: bool, progress: "Progress"
) -> "tuple[SessionQuality, int]":
    from compress.data.base import Tally
    from compress.sessions.evaluate import evaluate_file

    tally = Tally()
    found = evaluate_file(bundle, data, progress, tally=tally if skip_bad else None)
    return found.quality, tally.rows


@app.command()
def report(
    bundles: Annotated[
        list[str], typer.Argument(help="Folders, or name@version|alias with --store.")
    ],
    store: Store = None,
    tier: Tier = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-O", help="HTML file; of session rankers also .md, .png, .svg."),
    ] = Path("report.html"),
) -> None:
    """Write a bundle's compression card as one HTML page with plots, or compare session rankers."""
    from compress.evaluate import find_bundle
    from model_store.manifest import Card

    found = [find_bundle(bundle, store, tier) for bundle in bundles]
    if len(found) == 1 and isinstance(found[0].manifest.card, Card):
        from compress.report import write

        write(found[0], output)
    else:
        from compress.sessions.compare import write as compare

        compare(found, output)
    print(output)


@app.command()
def encode(
    *,
    embeddings: Annotated[Path, typer.Option(help="npy file, (items, width) floats.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not be there yet.")],
    codes: Annotated[
        str, typer.Option(help="MxK: M codebooks of K codewords; an item takes M·log2(K) bits.")
    ] = "8x256",
    method: Annotated[
        str, typer.Option(help="rq (nearest), pq (smallest codebooks) or opq.")
    ] = "rq",
    kept_as: Annotated[
        str, typer.Option(help="Precision of the codebooks: float32, float16 or int8.")
    ] = "float16",
    ids: Annotated[Path | None, typer.Option(help="Text file, an item's id in each line.")] = None,
    counts: Annotated[
        Path | None,
        typer.Option(help="npy file, (items,) clicks: frequent items get better codes."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=(1 << 63) - 1, help="One seed, one outcome.")] = 0,
) -> None:
    """Compress a table of item vectors into codes and codebooks; prints a summary as JSON."""
    from compress.progress import terminal
    from compress.sessions.encode import encode as encode_table
    from compress.sessions.encode import read

    table = read(embeddings, ids, counts)
    with terminal() as progress:
        summary = encode_table(
            table, out, codes=codes, method=method, kept_as=kept_as, seed=seed, progress=progress
        )
    if repeated := summary.costs.duplicate_rows:
        print(f"warning: rows that repeat an earlier one: {repeated:,}", file=sys.stderr)
    print(summary.model_dump_json(indent=2))


def _show(outcome: "Outcome", name: str, store: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from compress.card import over_budget
    from compress.report import comparison

    table = Table(title=f"{name}: {outcome.card.ranker} slimmed by {outcome.card.method}")
    for heading in ("", "dense", "slim", "change"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in comparison(outcome.card):
        table.add_row(row.what, row.dense, row.slim, row.change)
    Console().print(table)
    if outcome.with_tiers is not None:
        print(f"with its tiers the slim bundle takes {outcome.with_tiers:,} bytes")
    for line in over_budget(outcome.card):
        print(f"warning: over its budget: {line}", file=sys.stderr)
    verdict = outcome.verdict
    if verdict.holds:
        _published(outcome.versions, name, store)
    else:
        gate = verdict.gate
        print(
            f"not published: AUC lost {verdict.auc_loss:.5f} (at most {gate.max_auc_loss:g}), "
            f"log loss risen {verdict.logloss_rise:.5f} (at most {gate.max_logloss_rise:g})",
            file=sys.stderr,
        )
    print(f"run folder: {outcome.folder}")


def main() -> None:
    """Run a command; what a user can mend is one message on stderr."""
    from compress.config import CompressError
    from model_store.errors import StoreError

    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at exit, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(UNREAD)
    except (CompressError, StoreError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(REFUSED)


if __name__ == "__main__":
    main()
