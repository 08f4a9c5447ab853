"""A run's config, resolved and checked; what names its folders, and where they lie."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, cast

from pydantic import BaseModel

from compress.config import (
    ConfigError,
    Frozen,
    RunConfig,
    TierConfig,
    check,
    configured,
)
from compress.data import SOURCES
from compress.data.base import Source
from compress.data.encode import Dataset
from compress.methods import METHODS
from compress.methods.base import Method
from compress.parallel import ALONE, World
from compress.progress import Progress
from compress.rankers import RANKERS
from compress.rankers.base import Ranker
from compress.rankers.structure import RankerConfig
from compress.stages import publish_faults, tools
from compress.tables import TABLES, TableMethod
from compress.tables.pq import PqConfig

KINDS: Final = ("dense", "slim")
REGISTRIES: Final[Mapping[str, Mapping[str, Any]]] = {
    "data": SOURCES,
    "ranker": RANKERS,
    "method": METHODS,
    "table": TABLES,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """A config with all its parts resolved: nothing in it can be wrong any more."""

    config: RunConfig
    source: Source
    ranker: type[Ranker]
    ranker_config: RankerConfig
    method: Method
    method_config: Frozen
    table: TableMethod
    table_config: Frozen
    tiers: Mapping[str, "Plan"] = field(default_factory=dict)


def check_run(table: Mapping[str, Any], where: str) -> RunConfig:
    """Validate a run's config, but for what `resolve` does.

    Raises:
        ConfigError: a line a fault; of a key that stands in no section, which one it belongs into.
    """
    sections: dict[str, type[BaseModel]] = {}
    for key, registry in REGISTRIES.items():
        section = table.get(key)
        kind = section.get("type") if isinstance(section, Mapping) else None
        if isinstance(kind, str) and kind in registry:
            sections[key] = registry[kind].Config
    return check(RunConfig, table, where, sections=sections)


def resolve(config: RunConfig) -> Plan:
    """Check every section against the registries and the store's rules, before any work is done.

    Raises:
        ConfigError: a type or an option is unknown or wrong; all sections' faults at once.
    """
    faults = publish_faults(config.publish, KINDS)
    source = configured(SOURCES, config.data, "data", faults)
    ranker = configured(RANKERS, config.ranker, "ranker", faults)
    method = configured(METHODS, config.method, "method", faults)
    table = configured(TABLES, config.table, "table", faults)
    if weight := config.train.distill.weight:
        faults.append(
            f"train.distill.weight: expected 0, got {weight:g}: the dense ranker has no teacher; "
            "say in [finetune] or [method] how much the slim one imitates it"
        )
    tiers = [] if method is None else _tier_configs(config, method[0], faults)
    if faults or source is None or ranker is None or method is None or table is None:
        raise ConfigError("\n".join(faults))
    make_source = cast("Callable[[Any], Source]", source[0])
    plan = Plan(
        config,
        make_source(source[1]),
        *ranker,
        method=method[0](),
        method_config=method[1],
        table=table[0](table[1]),
        table_config=table[1],
    )
    for number, (_, options) in enumerate(tiers):
        if options in [plan.method_config, *(other for _, other in tiers[:number])]:
            faults.append(f"tiers.{number}.budget: makes a ranker that the bundle has already")
    if faults:
        raise ConfigError("\n".join(faults))
    return replace(plan, tiers={own.name: _tier_plan(plan, own, options) for own, options in tiers})


def _tier_configs(
    config: RunConfig, method: type[Method], faults: list[str]
) -> list[tuple[TierConfig, Frozen]]:
    """Each tier's options of the method; what is wrong joins ``faults``."""
    found = []
    for number, tier in enumerate(config.tiers):
        options = {**config.method.options, "budget": tier.budget}
        try:
            found.append((tier, check(method.Config, options, f"tiers.{number}", ["type"])))
        except ConfigError as error:
            faults.append(str(error))
    return found


def _tier_plan(plan: Plan, tier: TierConfig, options: Frozen) -> Plan:
    method = plan.config.method.model_copy(update={"budget": tier.budget})
    config = plan.config.model_copy(update={"method": method, "tiers": ()})
    return replace(plan, config=config, method_config=options)


@dataclass(frozen=True, slots=True)
class Site:
    """Where a plan is carried out: what every stage needs.

    Attributes:
        shared: the dense rankers, of all runs that have them in common.
        folder: what is of this run alone.
    """

    plan: Plan
    dataset: Dataset
    shared: Path
    folder: Path
    progress: Progress
    world: World = ALONE

    @property
    def test(self) -> Path:
        """The raw test rows."""
        return self.shared / "test.parquet"

    def dense_of(self, seed: int) -> Path:
        """Where a seed's dense checkpoint, bundle and quality lie."""
        return self.shared / f"seed-{seed}"

    @property
    def tiers(self) -> "dict[str, Site]":
        """Where the siblings are made: by the same stages, each in a folder of its own."""
        return {
            name: replace(self, plan=plan, folder=run_folder(plan, self.dataset))
            for name, plan in self.plan.tiers.items()
        }

    def of_seed(self, seed: int) -> Path:
        """Where the checkpoints, bundles and result of a seed of this run lie."""
        return self.folder / f"seed-{seed}"


def dense_folder(plan: Plan, dataset: Dataset) -> Path:
    """Where the dense rankers lie: named by all that makes one, its seed apart."""
    return _folder(plan, "dense-", _dense_parts(plan, dataset))


def run_folder(plan: Plan, dataset: Dataset) -> Path:
    """The run's folder. Seeds, gate and store are no part of its key: they change no ranker.

    The tools' versions are: what one release found may not stand on a card of another.
    """
    parts = {
        "dense": _dense_parts(plan, dataset),
        "method": [plan.config.method.type, plan.method_config.model_dump(mode="json")],
        "table": [plan.config.table.type, plan.table_config.model_dump(mode="json")],
        **plan.config.model_dump(mode="json", include={"finetune"}),
    }
    if plan.config.retrain is not None:  # a run without keeps the name that it had
        parts |= plan.config.model_dump(mode="json", include={"retrain"})
    return _folder(plan, "", parts)


def _dense_parts(plan: Plan, dataset: Dataset) -> dict[str, Any]:
    return {
        "tools": tools(),
        "data": dataset.fingerprint,
        "schema": dataset.schema.model_dump(mode="json"),
        "ranker": [plan.config.ranker.type, plan.ranker_config.model_dump(mode="json")],
        **plan.config.model_dump(mode="json", include={"train", "export"}),
    }


def _folder(plan: Plan, prefix: str, parts: Mapping[str, Any]) -> Path:
    return plan.config.runs / plan.config.name / f"{prefix}{key_of(parts)}"


def key_of(parts: Mapping[str, Any]) -> str:
    """A short name of all that it is made of."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def plan_as_json(plan: Plan) -> dict[str, Any]:
    """The config with every default written out."""
    config = plan.config.model_dump(mode="json")
    config["ranker"] |= plan.ranker_config.model_dump(mode="json")
    config["method"] |= plan.method_config.model_dump(mode="json")
    config["table"] |= plan.table_config.model_dump(mode="json")
    return config


def latency_file(site: Site) -> Path:
    """Where measured times lie, by which budgets of time are told."""
    config = site.plan.table_config
    # Codes are made later: until then rows are looked up as those of small fields ship.
    table = config.rest if isinstance(config, PqConfig) else site.plan.config.table.type
    return site.shared / ("times.json" if table == "float32" else f"times-{table}.json")
