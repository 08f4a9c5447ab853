"""The real service for the measurement: started on cores of its own, with what it was told."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from benchmarks.steady.bodies import Source, sources_of
from loadtest.server import Server, serving
from model_store.store import open_store

SERVICE: Final = ("-m", "service")
ALTERED: Final = ("-m", "benchmarks.steady.altered")


@dataclass(frozen=True, slots=True)
class Asked:
    """What is served, from where, and on which cores.

    Attributes:
        models: NAME@ALIAS of each.
        cores: the service's; the last one given is the generator's.
    """

    store: Path
    models: Sequence[str]
    cores: frozenset[int]

    def serving(
        self, log: Path, settings: Mapping[str, str], alterations: Sequence[str] = ()
    ) -> AbstractContextManager[Server]:
        """The service, ready inside the block and gone after it.

        Args:
            log: where its output goes.
            settings: SLIMRANK_* without the prefix.
            alterations: of `benchmarks.steady.altered`.
        """
        ours = {"STORE": str(self.store.absolute()), "MODELS": ",".join(self.models)}
        program = (*ALTERED, *alterations) if alterations else SERVICE
        command = (sys.executable, *program)
        return serving({**ours, **settings}, log, command=command, cores=self.cores)

    def sources(self, most: int, forms: Sequence[str]) -> list[Source]:
        """Where requests come from: all models."""
        store = open_store(str(self.store))
        return [
            source
            for name in self.models
            for source in sources_of(store.open(name).bundle, name, most, forms=forms)
        ]


def asked(options: argparse.Namespace) -> Asked:
    """From the command line; this process moves to the generator's core."""
    *cores, own = (int(core) for core in options.cores.split(","))
    os.sched_setaffinity(0, {own})
    return Asked(options.store, options.models, frozenset(cores))


def processes_of(service: int) -> dict[str, int]:
    """Ids of a service's processes by what they are; it may be one process."""
    children = psutil.Process(service).children(recursive=True)
    workers = [child.pid for child in children if not _is_helper(child)]
    if not workers:
        return {"worker": service}
    named = {f"worker {number}": pid for number, pid in enumerate(workers, start=1)}
    return {"supervisor": service, **named}


def _is_helper(process: psutil.Process) -> bool:
    """Whether it is multiprocessing's own, which does not serve."""
    return "resource_tracker" in " ".join(process.cmdline())


def port_of(url: str) -> int:
    """The port in the URL of a service."""
    return int(url.rpartition(":")[2])
