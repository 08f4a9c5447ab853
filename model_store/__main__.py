"""`python -m model_store`: look at a store, move aliases, clean up."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from model_store.bundle import Bundle
from model_store.errors import StoreError
from model_store.manifest import Card, FeatureSpec, Manifest, SessionCard, SessionSpec
from model_store.store import DEFAULT_ALIAS, Entry, Store, open_store, parse_ref

SHOWN_METRICS: Final = ("P@20", "NDCG@10")  # of a session ranker, where its card has them

Row = Sequence[str]
Command = Callable[[Store, argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 1 if the store refused, with one line that says why, or nobody reads on."""
    options = _parser().parse_args(arguments)
    command: Command = options.command
    try:
        code = command(open_store(options.store, cache=options.cache), options)
        sys.stdout.flush()
    except StoreError as error:
        return _refused(error)
    except BrokenPipeError:  # as in `list | head`
        # Python flushes once more at exit, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _refused(error: StoreError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 1


def _list(store: Store, options: argparse.Namespace) -> int:
    entries = [e for e in store.list() if options.name in (None, e.name)]
    if options.json:
        return _print_json([asdict(entry) for entry in entries])
    if not entries:
        print(f"{store.url}: no bundles")
        return 0
    header = ("NAME", "VERSION", "ALIASES", "CREATED", "SIZE", "DIGEST")
    print(_table([header, *map(_entry_row, entries)]))
    return 0


def _entry_row(entry: Entry) -> Row:
    start = (entry.name, entry.version, ", ".join(entry.aliases))
    if entry.problem:
        return (*start, "", "", f"damaged: {entry.problem}")
    return (*start, entry.created_at, size(entry.bytes), short(entry.digest))


def _show(store: Store, options: argparse.Namespace) -> int:
    opened = store.open(options.ref, verify=False)
    bundle, name, version = opened.bundle, opened.name, opened.version
    if options.json:
        return _print_json(
            {
                "name": name,
                "version": version,
                "digest": bundle.digest,
                "folder": str(bundle.root),
                "manifest": bundle.manifest.model_dump(mode="json"),
            }
        )
    aliases = [alias for alias, named in store.aliases(name).items() if named == version]
    print(_table(_facts(bundle, f"{name}@{version}", aliases)))
    features = [_feature_row(spec) for spec in bundle.manifest.features]
    if features:
        print("\n" + _table([("FEATURE", "SIDE", "KIND", "ENCODING", "INPUT"), *features]))
    return 0


def _facts(bundle: Bundle, ref: str, aliases: Sequence[str]) -> list[Row]:
    manifest, card = bundle.manifest, bundle.manifest.card
    facts = {
        "bundle": ref,
        "aliases": ", ".join(aliases) or "none",
        "digest": bundle.digest,
        "created": manifest.created_at,
        "folder": str(bundle.root),
        "files": f"{len(manifest.files)}, {size(bundle.size_bytes)}",
        "graph": f"{manifest.graph}, {manifest.numerics}, scores are of kind {manifest.scores}",
        "inputs": _tensors((t.name, t.dtype, t.shape) for t in manifest.inputs),
        "outputs": _tensors((t.name, t.dtype, t.shape) for t in manifest.outputs),
        "items": _items(manifest),
    }
    if manifest.session is not None:
        facts |= _session_form(manifest.session)
    facts |= _session_facts(card) if isinstance(card, SessionCard) else _click_facts(card)
    return list(facts.items())


def _click_facts(card: Card) -> dict[str, str]:
    facts = {
        "method": f"{card.method} on {card.ranker}, seed {card.seed}",
        "FLOPs": f"dense {card.dense.flops}, slim {card.slim.flops} per candidate",
    }
    for result in card.results:
        facts[f"AUC, seed {result.seed}"] = (
            f"dense {result.dense.auc:.5f}, slim {result.slim.auc:.5f} on {result.slim.rows} rows"
        )
    return facts


def _session_facts(card: SessionCard) -> dict[str, str]:
    dense, coded = sum(card.dense.bytes.values()), sum(card.coded.bytes.values())
    facts = {
        "method": f"{card.table} item table of {card.ranker}, seed {card.seed}",
        "bytes": f"dense {size(dense)}, coded {size(coded)}",
    }
    for result in card.results:
        before, after = result.dense.metrics, result.coded.metrics
        for metric in [shown for shown in SHOWN_METRICS if shown in before and shown in after]:
            facts[f"{metric}, seed {result.seed}"] = (
                f"dense {before[metric]:.5f}, coded {after[metric]:.5f} on {result.coded.rows} rows"
            )
    return facts


def _session_form(session: SessionSpec) -> dict[str, str]:
    """How a session ranker keeps its items, and how much of a session it takes."""
    form = "none" if session.vectors is None else f"{session.vectors.type}, {session.dim} numbers"
    counted = "none" if session.neighbours is None else "what followed what"
    return {"vectors": form, "neighbours": counted, "session": f"the newest {session.length}"}


def _items(manifest: Manifest) -> str:
    catalogue = manifest.items or manifest.session
    return "none" if catalogue is None else f"{catalogue.items}"


def _tensors(tensors: Iterable[tuple[str, str, tuple[int | str, ...]]]) -> str:
    return ", ".join(
        f"{name} {dtype}[{', '.join(map(str, shape))}]" for name, dtype, shape in tensors
    )


def _feature_row(spec: FeatureSpec) -> Row:
    end = spec.start + spec.length - 1
    columns = f"{spec.start}" if spec.length == 1 else f"{spec.start}-{end}"
    place = "pruned" if spec.pruned else f"{spec.tensor}[{columns}]"
    return (spec.name, spec.side, spec.kind, spec.encoding.type, place)


def _verify(store: Store, options: argparse.Namespace) -> int:
    failed = 0
    for ref in options.refs or [f"{entry.name}@{entry.version}" for entry in store.list()]:
        try:
            opened = store.open(ref)
        except StoreError as error:
            failed = _refused(error)
            continue
        files = len(opened.bundle.manifest.files)
        print(f"{opened.name}@{opened.version}: {files} files intact, {opened.bundle.digest}")
    return failed


def _alias(store: Store, options: argparse.Namespace) -> int:
    store.set_alias(options.name, options.alias, options.version, expected=options.expected)
    print(f"{options.name}@{options.alias} -> {options.version}")
    return 0


def _rollback(store: Store, options: argparse.Namespace) -> int:
    version = store.rollback(options.name, options.alias)
    print(f"{options.name}@{options.alias} -> {version}")
    return 0


def _publish(store: Store, options: argparse.Namespace) -> int:
    published = store.publish(options.folder, options.name, options.version)
    print(f"{published.name}@{published.version} {published.digest}")
    return 0


def _delete(store: Store, options: argparse.Namespace) -> int:
    store.delete(*parse_ref(options.ref))
    print(f"deleted {options.ref}")
    return 0


def _gc(store: Store, options: argparse.Namespace) -> int:
    gone = store.gc(options.name, keep_previous=options.keep_previous, dry_run=options.dry_run)
    for name, version in gone:
        print(f"{'would delete' if options.dry_run else 'deleted'} {name}@{version}")
    if not gone:
        print("nothing to delete")
    return 0


def size(count: int) -> str:
    """A number of bytes for people.

    >>> size(900), size(2_500_000)
    ('900 B', '2.5 MB')
    """
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:  # noqa: PLR2004
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def short(digest: str) -> str:
    """A digest's first twelve digits."""
    return digest.removeprefix("sha256:")[:12]


def _table(rows: Sequence[Row]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def _print_json(value: object) -> int:
    print(json.dumps(value, indent=2, ensure_ascii=False))
    return 0


def _natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text}")
    return number


NAME: Final[Mapping[str, Any]] = {"help": "a bundle's name"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model_store", description=__doc__)
    _add_store(parser, store="store", cache=None)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        # Also after the command; without a default there, or it would hide what came before.
        _add_store(sub, store=argparse.SUPPRESS, cache=argparse.SUPPRESS)
        sub.set_defaults(command=command)
        return sub

    sub = add("list", _list, "List versions, with their aliases.")
    sub.add_argument("name", nargs="?", help="only this bundle")
    sub.add_argument("--json", action="store_true")
    sub = add("show", _show, "Show a bundle's manifest and card.")
    sub.add_argument("ref", help="name@version, name@alias, or name for its alias prod")
    sub.add_argument("--json", action="store_true")
    sub = add("verify", _verify, "Check every file of versions against its digest.")
    sub.add_argument("refs", nargs="*", help="all versions, if none is given")
    sub = add("alias", _alias, "Make an alias name a version.")
    sub.add_argument("name", **NAME)
    sub.add_argument("alias")
    sub.add_argument("version")
    sub.add_argument("--expected", help="refuse unless the alias names this version now")
    sub = add("rollback", _rollback, "Make an alias name what it named before.")
    sub.add_argument("name", **NAME)
    sub.add_argument("alias", nargs="?", default=DEFAULT_ALIAS)
    sub = add("publish", _publish, "Add a sealed bundle, say from another store, as a version.")
    sub.add_argument("folder", type=Path)
    sub.add_argument("name", **NAME)
    sub.add_argument("--version", help="the next number, if not given")
    sub = add("delete", _delete, "Delete a version that no alias names.")
    sub.add_argument("ref", help="name@version")
    sub = add("gc", _gc, "Delete versions that no alias names, and what killed publishers left.")
    sub.add_argument("name", nargs="?", help="only this bundle")
    sub.add_argument(
        "--keep-previous", type=_natural, default=1, metavar="N",
        help="rollback targets to keep for each alias (1)",
    )  # fmt: skip
    sub.add_argument("--dry-run", action="store_true", help="only say what would go")
    return parser


def _add_store(parser: argparse.ArgumentParser, *, store: str, cache: str | None) -> None:
    parser.add_argument(
        "--store", default=store, metavar="URL", help="a folder or an fsspec URL (default: store)"
    )
    parser.add_argument(
        "--cache", default=cache, type=Path, metavar="FOLDER",
        help="where bundles from a URL are kept (default: ~/.cache/slimrank)",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
