"""Kills a writer of a local store before each of its file operations, and looks at what is left.

A program of its own, as it forks: `kill_points ACTION STORE BUNDLE FOLDER`. It prints how many
points it killed at; it fails where a store was left in a state that is not allowed.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

from model_store.durable import LOCK_FILE, STAGING_FOLDER
from model_store.store import Journal, Store, open_store

# What the interpreter calls to change a file system; the code under test knows nothing of this.
OPERATIONS = frozenset(
    {"open", "write", "flush", "sendfile", "fsync", "close", "flock", "mkdir", "rename", "replace",
     "unlink", "remove", "rmdir"}
)  # fmt: skip
ACTIONS: dict[str, Callable[[Store, Path], object]] = {
    "publish": lambda store, bundle: store.publish(bundle, "ctr"),
    "first": lambda store, bundle: store.publish(bundle, "new"),
    "alias": lambda store, _: store.set_alias("ctr", "prod", "3"),
    "rollback": lambda store, _: store.rollback("ctr"),
    "delete": lambda store, _: store.delete("ctr", "3"),
    "gc": lambda store, _: store.gc(),
    "fresh": lambda store, _: store.add_fresh("ctr", "2", [b"one", b"two"]),
}
BEFORE = ({"ctr@1", "ctr@2", "ctr@3"}, "2")
AFTER = {
    "publish": (BEFORE[0] | {"ctr@4"}, "2"),
    "first": (BEFORE[0] | {"new@1"}, "2"),
    "alias": (BEFORE[0], "3"),
    "rollback": (BEFORE[0], "1"),
    "delete": ({"ctr@1", "ctr@2"}, "2"),
    "gc": ({"ctr@1", "ctr@2"}, "2"),
    "fresh": BEFORE,
}


ADDED = (Journal([], 0), Journal([(0, b"one"), (4, b"two")], 8))


def kill_before(nth: int) -> None:
    """Kill this process, as by kill -9, before its nth file operation from here on."""
    seen = 0

    def watch(_frame: object, event: str, function: object) -> None:
        nonlocal seen
        if event == "c_call" and getattr(function, "__name__", "") in OPERATIONS:
            seen += 1
            if seen == nth:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(watch)


def killed(action: Callable[[], object], nth: int) -> bool:
    """Run an action in a process that dies before its nth operation, if there are so many."""
    pid = os.fork()
    if pid == 0:
        kill_before(nth)
        action()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        raise AssertionError(f"the writer failed by itself, status {status}")
    return os.WIFSIGNALED(status)


def state(store: Store) -> tuple[set[str], str]:
    """The versions, each opened and verified, and what prod names."""
    refs = {f"{entry.name}@{entry.version}" for entry in store.list()}
    for ref in refs:
        store.open(ref)
    return refs, store.open("ctr").version


def check(root: Path, bundle: Path, action: str) -> None:
    """A store is in the state before or after the action, works on, and comes clean."""
    store = open_store(f"{root}")
    if (found := state(store)) not in (BEFORE, AFTER[action]):
        raise AssertionError(f"neither before nor after: {found}")
    if (added := store.fresh("ctr", "2")) not in ADDED:
        raise AssertionError(f"not what was added: {added}")
    if store.add_fresh("ctr", "2", [b"three"]).lines[0][0] != added.end:
        raise AssertionError("what was added was changed")
    published = store.publish(bundle, "ctr")
    store.set_alias("ctr", "prod", published.version)
    store.gc()
    kept = {LOCK_FILE, STAGING_FOLDER}
    hidden = [path for path in root.rglob("*") if path.name.startswith(".")]
    litter = [path for path in hidden if path.name not in kept or any(path.glob("*"))]
    if litter:
        raise AssertionError(f"left behind: {litter}")


def main(action: str, template: Path, bundle: Path, folder: Path) -> int:
    """Kill at the first point, the second, and so on, until the action gets through."""
    for nth in count(1):
        root = folder / f"{nth}"
        shutil.copytree(template, root)
        store = open_store(f"{root}")
        survived = not killed(lambda store=store: ACTIONS[action](store, bundle), nth)
        if survived and state(store) != AFTER[action]:
            raise AssertionError("the action got through and is not seen")
        try:
            check(root, bundle, action)
        except Exception as error:
            raise AssertionError(f"{action} killed before operation {nth}: {error}") from error
        shutil.rmtree(root)
        if survived:
            return nth - 1
    raise AssertionError("unreachable: count has no end")


if __name__ == "__main__":
    print(main(sys.argv[1], *map(Path, sys.argv[2:])))  # noqa: T201
