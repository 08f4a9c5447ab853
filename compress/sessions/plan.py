"""A session run's config, resolved and checked; what names its folders, and where they lie."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from compress.config import ConfigError, Frozen, Section, configured
from compress.config import resolve as resolve_type
from compress.progress import Progress
from compress.sessions.config import SessionRunConfig
from compress.sessions.data import SessionData
from compress.sessions.rankers import SESSION_RANKERS
from compress.sessions.rankers.base import SessionRanker, SessionRankerConfig
from compress.sessions.sources import SESSION_SOURCES
from compress.sessions.sources.base import SessionSource
from compress.sessions.tables import TABLES
from compress.sessions.tables.base import TableMethod
from compress.stages import publish_faults, tools

KINDS: Final = ("dense", "coded")
TEST_FILE: Final = "test.parquet"


@dataclass(frozen=True, slots=True)
class Plan:
    """A config with all its parts resolved: nothing in it can be wrong any more."""

    config: SessionRunConfig
    source: SessionSource
    ranker: type[SessionRanker]
    ranker_config: SessionRankerConfig
    table: TableMethod
    table_config: Frozen
    floors: tuple[type[SessionRanker], ...]


def resolve(config: SessionRunConfig) -> Plan:
    """Check every section against the registries and the store's rules, before any work is done.

    Raises:
        ConfigError: a type or an option is unknown or wrong; all sections' faults at once.
    """
    faults = publish_faults(config.publish, KINDS)
    source = configured(SESSION_SOURCES, config.data, "data", faults)
    ranker = configured(SESSION_RANKERS, config.ranker, "ranker", faults)
    table = configured(TABLES, config.table, "table", faults)
    free = {name: kind for name, kind in SESSION_RANKERS.items() if not kind.USES_VECTORS}
    floors = []
    for place, name in enumerate(config.floors):
        try:
            floors.append(resolve_type(free, Section(type=name), f"floors.{place}"))
        except ConfigError as error:
            faults.append(str(error))
    if not config.train.lr:
        faults.append("train.lr: expected over 0: the teacher's encoder begins at random")
    if ranker is not None and not ranker[0].USES_VECTORS:
        faults.append(f"ranker.type: {config.ranker.type!r} has no item vectors to compress")
    if faults or source is None or ranker is None or table is None:
        raise ConfigError("\n".join(faults))
    make_source = cast("Callable[[Any], SessionSource]", source[0])
    return Plan(config, make_source(source[1]), *ranker, table[0](), table[1], tuple(floors))


def teacher_key(plan: Plan) -> str:
    """Of all that makes a teacher: of the seeds the first alone, and neither gate nor store."""
    return _key(_teacher_parts(plan))


def student_key(plan: Plan) -> str:
    """Of all that makes a student, its teacher included."""
    config = plan.config
    parts = {
        "teacher": _teacher_parts(plan),
        "table": [config.table.type, plan.table_config.model_dump(mode="json")],
        **config.model_dump(mode="json", include={"finetune", "distill", "floors"}),
    }
    return _key(parts)


def _teacher_parts(plan: Plan) -> dict[str, Any]:
    config = plan.config
    return {
        "tools": tools(),
        "data": plan.source.fingerprint(),
        # How long to train is chosen under it, for all seeds.
        "first seed": config.seeds[0],
        "ranker": [config.ranker.type, plan.ranker_config.model_dump(mode="json")],
        **config.model_dump(mode="json", include={"train", "calibrate", "export", "threads"}),
    }


def _key(parts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def plan_as_json(plan: Plan) -> dict[str, Any]:
    """The config with every default written out."""
    config = plan.config.model_dump(mode="json")
    config["ranker"] |= plan.ranker_config.model_dump(mode="json")
    config["table"] |= plan.table_config.model_dump(mode="json")
    return config


@dataclass(frozen=True, slots=True)
class Site:
    """Where a plan is carried out: what every stage needs."""

    plan: Plan
    data: SessionData
    teachers: Path
    folder: Path
    progress: Progress

    @property
    def test(self) -> Path:
        """The test prefixes as a file: all that evaluation sees besides a bundle."""
        return self.teachers / TEST_FILE


def dense_folder(site: Site, seed: int) -> Path:
    """Where the student's run keeps its copy of the teacher's bundle, under its own card."""
    return site.folder / f"seed-{seed}" / "dense"


def coded_folder(site: Site, seed: int) -> Path:
    """Where the coded bundle lies."""
    return site.folder / f"seed-{seed}" / "coded"
