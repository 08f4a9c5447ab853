"""A run, from data to published bundles, as one list of stages.

    prepare data → for each seed: train dense → compress → fine-tune → export → evaluate both
    → card over all seeds → gate → publish

Each stage leaves its result in the run's folder, which is named by a hash of the config and the
data; so a run that was killed goes on where it stopped, and a changed config starts afresh.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final, cast

import pyarrow.parquet as pq
import torch

from compress.config import (
    ConfigError,
    Frozen,
    GateConfig,
    RunConfig,
    configured,
)
from compress.costs import bytes_by_part, request_us, resources
from compress.data import SOURCES
from compress.data.base import Source
from compress.data.encode import Dataset, prepare
from compress.data.folders import alone, replaced, spacious
from compress.evaluate import evaluate
from compress.export import click_card, export
from compress.methods import METHODS
from compress.methods.base import Compressed, Method
from compress.progress import Progress, Silent
from compress.rankers import RANKERS
from compress.rankers.base import Ranker, RankerConfig
from compress.stages import apart, publish, publish_faults, seal_with_costs, tools, write_whole
from compress.train import FitResult, fit
from model_store.bundle import Bundle, open_bundle
from model_store.errors import StoreError
from model_store.manifest import MANIFEST_FILE, Card, Quality, Resources, SeedResult

KINDS: Final = ("dense", "slim")


@dataclass(frozen=True, slots=True)
class Plan:
    """A config with all its parts resolved: nothing in it can be wrong any more."""

    config: RunConfig
    source: Source
    ranker: type[Ranker]
    ranker_config: RankerConfig
    method: Method
    method_config: Frozen


@dataclass(frozen=True, slots=True)
class Verdict:
    """Mean quality that compression cost, against what the gate allows."""

    auc_loss: float
    logloss_rise: float
    gate: GateConfig

    @property
    def holds(self) -> bool:
        """Whether the bundles may be published."""
        return (
            self.auc_loss <= self.gate.max_auc_loss
            and self.logloss_rise <= self.gate.max_logloss_rise
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to.

    Attributes:
        versions: "dense" and "slim" -> published version; empty if the gate did not hold.
    """

    folder: Path
    card: Card
    verdict: Verdict
    versions: Mapping[str, str]


class SeedRun(Frozen):
    """What one seed's stages found; kept in ``seed-<n>/result.json``."""

    result: SeedResult
    dense: Resources
    slim: Resources


def resolve(config: RunConfig) -> Plan:
    """Check every section against the registries and the store's rules, before any work is done.

    Raises:
        ConfigError: a type or an option is unknown or wrong; all sections' faults at once.
    """
    faults = publish_faults(config.publish, KINDS)
    source = configured(SOURCES, config.data, "data", faults)
    ranker = configured(RANKERS, config.ranker, "ranker", faults)
    method = configured(METHODS, config.method, "method", faults)
    if weight := config.train.distill.weight:
        faults.append(
            f"train.distill.weight: expected 0, got {weight:g}: the dense ranker has no teacher; "
            "say in [finetune] or [method] how much the slim one imitates it"
        )
    if faults or source is None or ranker is None or method is None:
        raise ConfigError("\n".join(faults))
    make_source = cast("Callable[[Any], Source]", source[0])
    return Plan(config, make_source(source[1]), *ranker, method[0](), method[1])


@dataclass(frozen=True, slots=True)
class Site:
    """Where a plan is carried out: what every stage needs."""

    plan: Plan
    dataset: Dataset
    folder: Path
    progress: Progress

    @property
    def test(self) -> Path:
        """The raw test rows."""
        return self.folder / "test.parquet"

    def of_seed(self, seed: int) -> Path:
        """Where a seed's checkpoints, bundles and result lie."""
        return self.folder / f"seed-{seed}"


def run(plan: Plan, progress: Progress) -> Outcome:
    """Run a plan, or what is left of it.

    Raises:
        CompressError, StoreError: it cannot go on; the text says why.
    """
    config = plan.config
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    dataset = prepare(plan.source, config.runs / config.name / "data", progress)
    folder = run_folder(plan, dataset)
    with spacious(folder), alone(folder):
        return carry_out(Site(plan, dataset, folder, progress))


def carry_out(site: Site) -> Outcome:
    """All stages after the data, in a folder that no other run works in."""
    plan, config = site.plan, site.plan.config
    write_whole(site.folder / "config.json", json.dumps(plan_as_json(plan), indent=1))
    write_test_rows(site.dataset, site.test)

    runs = [run_seed(site, seed) for seed in config.seeds]

    first = site.of_seed(config.seeds[0])
    bundles = {kind: open_bundle(first / kind) for kind in KINDS}
    card = write_card(site, runs, bundles)
    verdict = judge(config.gate, card.results)
    versions: Mapping[str, str] = {}
    if verdict.holds:
        folders = {kind: first / kind for kind in KINDS}
        versions = publish(config.publish, config.name, folders)
    write_metrics(site.folder / "metrics.json", card, verdict, versions)
    return Outcome(site.folder, card, verdict, versions)


def run_folder(plan: Plan, dataset: Dataset) -> Path:
    """The run's folder. Seeds, gate and store are no part of its key: they change no ranker.

    The tools' versions are: what one release found may not stand on a card of another.
    """
    parts = {
        "tools": tools(),
        "data": dataset.fingerprint,
        "schema": dataset.schema.model_dump(mode="json"),
        "ranker": [plan.config.ranker.type, plan.ranker_config.model_dump(mode="json")],
        "method": [plan.config.method.type, plan.method_config.model_dump(mode="json")],
        **plan.config.model_dump(mode="json", include={"train", "finetune", "export"}),
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
    return plan.config.runs / plan.config.name / key


def write_test_rows(dataset: Dataset, path: Path) -> None:
    """Write the raw test rows, so that anyone can evaluate the bundles on them."""
    if path.exists():
        return
    tables = (frame.to_arrow() for frame in dataset.raw("test"))
    first = next(tables)
    with replaced(path) as staged, pq.ParquetWriter(staged, first.schema) as writer:
        for table in chain([first], tables):
            writer.write_table(table)


def run_seed(site: Site, seed: int) -> SeedRun:
    """Train, compress, fine-tune, export and evaluate under one seed."""
    here = site.of_seed(seed)
    done = here / "result.json"
    if done.exists() and all((here / kind / MANIFEST_FILE).exists() for kind in KINDS):
        return SeedRun.model_validate_json(done.read_bytes())
    dense, trained = train_dense(site, seed)
    compressed = site.plan.method.compress(
        dense,
        site.dataset,
        config=site.plan.method_config,
        seed=seed,
        train=site.plan.config.train,
        pricing=None,
        progress=site.progress,
        checkpoint=here / "compress.ckpt",
    )
    tuned = fine_tune(site, seed, compressed.ranker, dense)

    card = describe(site.plan, seed, dense, compressed)
    curves = {"train": _curve(trained), "finetune": _curve(tuned), "method": compressed.history}
    stage = f"seed {seed}: export and evaluate"
    site.progress.step(stage, 0, len(KINDS))
    bundles = [
        export_once(site, here / kind, ranker, card, curves)
        for kind, ranker in zip(KINDS, (dense, compressed.ranker), strict=True)
    ]
    qualities = []
    for bundle in bundles:
        qualities.append(evaluate_apart(bundle.root, site.test))
        site.progress.step(stage, len(qualities), len(KINDS))
    result = SeedRun(
        result=SeedResult(seed=seed, dense=qualities[0], slim=qualities[1]),
        dense=resources(dense, bundles[0]),
        slim=resources(compressed.ranker, bundles[1]),
    )
    write_whole(done, result.model_dump_json(indent=1))
    return result


def train_dense(site: Site, seed: int) -> tuple[Ranker, FitResult]:
    """The ranker to be compressed; its first weights and its rows' order come from the seed."""
    plan, start = site.plan, torch.Generator().manual_seed(seed)
    ranker = plan.ranker(site.dataset.features, plan.ranker_config, start)
    return ranker, fit(
        ranker,
        site.dataset,
        plan.config.train,
        seed,
        checkpoint=site.of_seed(seed) / "dense.ckpt",
        progress=site.progress,
        stage=f"seed {seed}: train",
    )


def fine_tune(site: Site, seed: int, slim: Ranker, dense: Ranker) -> FitResult:
    """Train on from the pruned weights, in place; ``dense`` may teach."""
    return fit(
        slim,
        site.dataset,
        site.plan.config.finetune,
        seed,
        checkpoint=site.of_seed(seed) / "finetune.ckpt",
        progress=site.progress,
        teacher=dense,
        stage=f"seed {seed}: fine-tune",
    )


def describe(plan: Plan, seed: int, dense: Ranker, compressed: Compressed) -> Card:
    """The card as far as it is known before the bundles are written."""
    slim = compressed.ranker
    widths = {f"dense {mlp}": sizes for mlp, sizes in dense.widths().items()}
    widths |= {f"slim {mlp}": sizes for mlp, sizes in slim.widths().items()}
    return Card(
        method=plan.config.method.type,
        ranker=plan.config.ranker.type,
        seed=seed,
        dense=Resources(flops=sum(dense.flops().values())),
        slim=Resources(flops=sum(slim.flops().values())),
        requested=dict(compressed.requested),
        achieved=dict(compressed.achieved),
        kept_features=tuple(f.name for f in slim.features if not f.pruned),
        pruned_features=tuple(f.name for f in slim.features if f.pruned),
        widths=widths,
    )


def export_once(
    site: Site, folder: Path, ranker: Ranker, card: Card, history: Mapping[str, Any]
) -> Bundle:
    """Export a ranker, or open what an earlier run has exported in full."""
    try:
        return open_bundle(folder)
    except StoreError:
        shutil.rmtree(folder, ignore_errors=True)  # not begun, or cut off
    return export(
        ranker,
        site.dataset,
        folder,
        name=site.plan.config.name,
        card=card,
        options=site.plan.config.export,
        history=history,
    )


def evaluate_apart(bundle: Path, test: Path) -> Quality:
    """Evaluate in a fresh process, which sees nothing but the two paths.

    Raises:
        RunError: that process died.
    """
    return apart(f"evaluating {bundle}", _evaluated, bundle, test)


def _evaluated(bundle: Path, test: Path) -> Quality:
    return evaluate(open_bundle(bundle), test, skip_bad=False, progress=Silent()).quality


def write_card(site: Site, runs: Sequence[SeedRun], bundles: dict[str, Bundle]) -> Card:
    """Seal both bundles of the first seed under the card over all seeds."""
    found, other = (click_card(bundle) for bundle in bundles.values())
    results = tuple(run.result for run in runs)
    card = found.model_copy(
        update={
            "results": results,
            "config": plan_as_json(site.plan),
            "data_hash": site.dataset.fingerprint,
            "tools": tools(),
            "notes": notes(site),
        }
    )
    if found == other == card:
        return found  # sealed by an earlier run
    if found != other or found.results != results:
        card = with_costs(card, site, runs[0], bundles)
    # Else only the gate or the store is another: what was measured stays, as do the bytes if the
    # first config comes back.
    return seal_with_costs(bundles, card, with_bytes)


def with_costs(card: Card, site: Site, first: SeedRun, bundles: Mapping[str, Bundle]) -> Card:
    """The card with what both rankers of the first seed cost, their times measured now."""
    us = request_us(list(bundles.values()), site.dataset, site.plan.config.export.timing_candidates)
    return card.model_copy(
        update={
            "dense": first.dense.model_copy(update={"us_per_request": us[0]}),
            "slim": first.slim.model_copy(update={"us_per_request": us[1]}),
            "achieved": {**card.achieved, "speedup": us[0] / us[1]},
        }
    )


def with_bytes(bundles: Mapping[str, Bundle], card: Card) -> Card:
    """The card with what the bundles take on disk."""
    return card.model_copy(
        update={
            kind: getattr(card, kind).model_copy(update={"bytes": bytes_by_part(bundle.root)})
            for kind, bundle in bundles.items()
        }
    )


def plan_as_json(plan: Plan) -> dict[str, Any]:
    """The config with every default written out."""
    config = plan.config.model_dump(mode="json")
    config["ranker"] |= plan.ranker_config.model_dump(mode="json")
    config["method"] |= plan.method_config.model_dump(mode="json")
    return config


def notes(site: Site) -> tuple[str, ...]:
    """What a reader of the card should know besides."""
    rows = ", ".join(f"{part} {count:,}" for part, count in site.dataset.rows.items())
    lines = [
        f"rows: {rows}",
        "quality is that of the exported graphs, on test rows that no choice was made on",
        f"times: {site.plan.config.export.timing_candidates} candidates a request, one thread, "
        "both graphs in turn in one process; only their ratio carries over to other machines",
    ]
    if site.dataset.skipped_cells:
        lines.append(f"{site.dataset.skipped_cells:,} rows were left out for a bad cell")
    return tuple(lines)


def judge(gate: GateConfig, results: Sequence[SeedResult]) -> Verdict:
    """Compare the means over seeds with the gate."""
    auc = sum(r.dense.auc - r.slim.auc for r in results) / len(results)
    logloss = sum(r.slim.logloss - r.dense.logloss for r in results) / len(results)
    return Verdict(auc, logloss, gate)


def write_metrics(path: Path, card: Card, verdict: Verdict, versions: Mapping[str, str]) -> None:
    """The run's figures in one JSON file."""
    content = {
        "results": [result.model_dump() for result in card.results],
        "dense": card.dense.model_dump(),
        "slim": card.slim.model_dump(),
        "achieved": card.achieved,
        "auc_loss": verdict.auc_loss,
        "logloss_rise": verdict.logloss_rise,
        "gate_holds": verdict.holds,
        "versions": dict(versions),
    }
    write_whole(path, json.dumps(content, indent=1))


def _curve(result: FitResult) -> list[dict[str, float | None]]:
    # What is not a number (the training loss before the first step) is null in JSON.
    looks = [asdict(look) for look in result.history]
    return [{k: v if math.isfinite(v) else None for k, v in look.items()} for look in looks]
