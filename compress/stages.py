"""What the stages of every run share: versions of tools, a fresh process, publishing."""

import multiprocessing
import os
import platform
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import metadata
from multiprocessing.connection import wait
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from compress.config import CompressError, PublishConfig
from compress.data.folders import replaced
from model_store.bundle import Bundle, open_bundle, seal
from model_store.errors import StoreError
from model_store.manifest import Card, SessionCard
from model_store.store import Store, check_alias, open_store

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C", Card, SessionCard)

MOST_SEALS: Final = 20
ORPHANED: Final = 1

TOOLS: Final = ("slimrank", "torch", "onnx", "onnxscript", "onnxruntime", "numpy", "polars")


class RunError(CompressError):
    """A stage could not be done for a reason outside the config and the data."""


def tools() -> dict[str, str]:
    """Versions of what makes a bundle."""
    found = {"python": platform.python_version()}
    for name in TOOLS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def attached() -> None:
    """Tie this process to the one that started it.

    Ctrl-C reaches both, and one message is enough; but where the other one ends, however it does,
    this one may not stay behind, at work on files that the next run wants.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if parent := multiprocessing.parent_process():
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(ORPHANED)  # at once: what is written is written whole


def apart(what: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a fresh process, which sees nothing but its arguments.

    Raises:
        RunError: that process died; ``what`` says what it was doing.
    """
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=context, initializer=attached) as pool:
            return pool.submit(function, *args, **kwargs).result()
    except BrokenProcessPool:
        raise RunError(
            f"{what} died, most likely for want of memory; free some and run again"
        ) from None


def publish_faults(publish: PublishConfig, kinds: Sequence[str]) -> list[str]:
    """What the store would refuse once everything is trained. Touches no storage.

    Args:
        publish: where to.
        kinds: aliases that every run sets.
    """
    faults = []
    if publish.alias in kinds:
        faults.append(
            f"publish.alias: {publish.alias!r} names a bundle of every run; expected another word, "
            "like 'prod'"
        )
    for key, check, value in (
        ("alias", check_alias, publish.alias),
        ("store", open_store, publish.store),
    ):
        try:
            check(value)
        except StoreError as error:
            faults.append(f"publish.{key}: {error}")
    return faults


def publish(config: PublishConfig, name: str, folders: Mapping[str, Path]) -> dict[str, str]:
    """Publish bundles in order; aliases move when all are there, the configured one to the last.

    Args:
        config: where to, and the alias.
        name: of the bundles.
        folders: alias -> the bundle's folder.
    """
    store = open_store(config.store)
    versions = {
        kind: _publish_once(store, name, open_bundle(folder)) for kind, folder in folders.items()
    }
    for kind, version in versions.items():
        store.set_alias(name, kind, version)
    store.set_alias(name, config.alias, [*versions.values()][-1])
    return versions


def _publish_once(store: Store, name: str, bundle: Bundle) -> str:
    # A run that goes on after a kill finds what it has published already.
    for entry in store.list():
        if (entry.name, entry.digest) == (name, bundle.digest):
            return entry.version
    return store.publish(bundle.root, name).version


def seal_with_costs(
    bundles: dict[str, Bundle], card: C, costs: Callable[[Mapping[str, Bundle], C], C]
) -> C:
    """Seal bundles, in place, under one card that tells what they cost, their manifests included.

    A manifest's size depends on the digits of the sizes in it, so this repeats until they agree.

    Args:
        bundles: by kind.
        card: all but the costs.
        costs: the card of bundles as they lie there.

    Raises:
        RunError: they never agreed.
    """
    for _ in range(MOST_SEALS):
        for kind, bundle in bundles.items():
            bundles[kind] = seal(bundle.root, bundle.manifest.model_copy(update={"card": card}))
        settled = costs(bundles, card)
        if settled == card:
            return card
        card = settled
    raise RunError(
        f"the card's figures of its own size did not come to rest in {MOST_SEALS} rounds; "
        "run again: its times will have other digits"
    )


def write_whole(path: Path, text: str) -> None:
    """Write all or nothing: a file that exists says that its stage is done."""
    with replaced(path) as staged:
        staged.write_text(text + "\n")
