"""A run, from data to published bundles, as one list of stages.

    prepare data → for each seed: dense ranker: train → export → evaluate
                                  slim ranker: compress → fine-tune → export → evaluate
                                               → where asked: quantize → evaluate
    → card over all seeds → gate → publish

Each stage leaves its result in a folder that is named by a hash of all that it depends on, so a run
that was killed goes on where it stopped, and a changed config starts afresh. Dense rankers have a
folder of their own: runs that differ only in how they compress share them. What is quantized, too:
it is made of a finished run's slim bundles, without training.

Siblings under other budgets (`tiers`) are runs of their own as far as the card; the slim bundle
takes them in before it is published.

Several processes may train together (`train`); the rest is done by one.
"""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
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
    TierConfig,
    check,
    configured,
)
from compress.costs import bytes_by_part, request_us, resources
from compress.curves import HISTORY_FILE, history_file
from compress.data import SOURCES
from compress.data.base import Source
from compress.data.encode import Dataset, prepare
from compress.data.folders import alone, in_turn, locked, replaced, spacious
from compress.evaluate import evaluate_folder
from compress.export import click_card, export
from compress.methods import METHODS
from compress.methods.base import Compressed, Method
from compress.parallel import ALONE, World
from compress.pricing import MeasuredPricing
from compress.progress import Progress
from compress.quantize import FP32, quantize
from compress.rankers import RANKERS
from compress.rankers.base import Ranker, RankerConfig
from compress.shipping import learned, shipped
from compress.stages import apart, publish, publish_faults, seal_with_costs, tools, write_whole
from compress.tables import TABLES, TableMethod
from compress.tiers import join
from compress.train import FitResult, fit
from model_store.bundle import Bundle, open_bundle, seal
from model_store.errors import StoreError
from model_store.manifest import MANIFEST_FILE, Card, Quality, Resources, SeedResult
from model_store.packing import unpacked

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
    table: TableMethod
    table_config: Frozen
    tiers: Mapping[str, "Plan"] = field(default_factory=dict)


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
    """What one seed's stages found; kept in ``seed-<n>/result.json``.

    Attributes:
        seconds: compressing and fine-tuning took; None if a killed run had begun with it.
        numerics: of the slim graph.
    """

    result: SeedResult
    dense: Resources
    slim: Resources
    seconds: float | None
    numerics: str = FP32


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
    make_table = cast("Callable[[Any], TableMethod]", table[0])
    plan = Plan(
        config,
        make_source(source[1]),
        *ranker,
        method=method[0](),
        method_config=method[1],
        table=make_table(table[1]),
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
class Dense:
    """A seed's dense ranker: trained, exported and judged."""

    ranker: Ranker
    trained: FitResult
    bundle: Bundle
    quality: Quality


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


def run(plan: Plan, progress: Progress) -> Outcome:
    """Run a plan, or what is left of it.

    Raises:
        CompressError, StoreError: it cannot go on; the text says why.
    """
    site = site_of(plan, progress)
    with spacious(site.folder), alone(site.folder):
        return carry_out(site)


def train(plan: Plan, progress: Progress, world: World) -> None:
    """Train all rankers of a plan, as far as their checkpoints; `run` goes on from those.

    Args:
        plan: the same in all processes, which see the same ``runs`` folder.
        progress: told of the steps done.
        world: the processes; each of them calls this.

    Raises:
        CompressError, StoreError: it cannot go on; the text says why.
    """
    site = site_of(plan, progress, world)
    for each in (site, *site.tiers.values()):
        _train_one(each)


def _train_one(site: Site) -> None:
    seeds = site.plan.config.seeds
    with spacious(site.folder), _held(site, site.folder):
        done = site.world.from_first(
            lambda: [finished(site, s) is not None for s in seeds], len(seeds)
        )
        for seed in (seed for seed, is_done in zip(seeds, done, strict=True) if not is_done):
            with _held(site, site.of_seed(seed)):
                dense = make_dense(site, seed)
                slim, _ = retrain(site, seed, compress(site, seed, dense).ranker, dense.ranker)
                fine_tune(site, seed, slim, dense.ranker)


def _held(site: Site, folder: Path) -> AbstractContextManager[None]:
    # The first process keeps other runs out for all.
    return alone(folder) if site.world.first else nullcontext()


def site_of(plan: Plan, progress: Progress, world: World = ALONE) -> Site:
    """The plan's data, prepared by the first process that comes, and its folders."""
    config = plan.config
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    dataset = prepare(plan.source, config.runs / config.name / "data", progress)
    folders = (dense_folder(plan, dataset), run_folder(plan, dataset))
    return Site(plan, dataset, *folders, progress, world)


def carry_out(site: Site) -> Outcome:
    """All stages after the data, in a folder that no other run works in."""
    config = site.plan.config
    site, card = make_bundles(site)
    folders = {kind: site.of_seed(config.seeds[0]) / kind for kind in KINDS}
    if site.tiers:
        folders["slim"] = make_family(site, folders["slim"])
    verdict = judge(config.gate, card.results)
    versions: Mapping[str, str] = {}
    if verdict.holds:
        versions = publish(config.publish, config.name, folders)
    write_metrics(site.folder / "metrics.json", card, verdict, versions)
    return Outcome(site.folder, card, verdict, versions)


def make_bundles(site: Site) -> tuple[Site, Card]:
    """All seeds, and the first one's bundles sealed under the card of all.

    Returns:
        Where they lie, and the card.
    """
    config = site.plan.config
    write_whole(site.folder / "config.json", json.dumps(plan_as_json(site.plan), indent=1))
    runs = [run_seed(site, seed) for seed in config.seeds]
    if config.quantize.numerics != FP32:
        site, runs = quantized(site, runs)
    slim = open_bundle(site.of_seed(config.seeds[0]) / "slim")
    return site, write_card(site, runs, {"dense": own_dense(site, config.seeds[0]), "slim": slim})


def make_family(site: Site, slim: Path) -> Path:
    """The slim bundle with its siblings beside it in one; the gate is for the slim one alone."""
    siblings = {}
    for name, tier in site.tiers.items():
        with spacious(tier.folder), alone(tier.folder):
            made, _ = make_bundles(tier)
        siblings[name] = open_bundle(made.of_seed(site.plan.config.seeds[0]) / "slim")
    return join(open_bundle(slim), siblings, site.folder / "family").root


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
    return plan.config.runs / plan.config.name / f"{prefix}{_key(parts)}"


def _key(parts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def write_test_rows(dataset: Dataset, path: Path) -> None:
    """Write the raw test rows, so that anyone can evaluate the bundles on them."""
    with locked(path.parent, path.name):
        if path.exists():
            return
        tables = (frame.to_arrow() for frame in dataset.raw("test"))
        first = next(tables)
        with replaced(path) as staged, pq.ParquetWriter(staged, first.schema) as writer:
            for table in chain([first], tables):
                writer.write_table(table)


def run_seed(site: Site, seed: int) -> SeedRun:
    """All stages of a seed, or what an earlier run has found in them."""
    with alone(site.of_seed(seed)):
        return finished(site, seed) or slim_seed(site, seed)


def finished(site: Site, seed: int) -> SeedRun | None:
    """What the seed's stages found, if they are all done."""
    here = site.of_seed(seed)
    done = here / "result.json"
    if done.exists() and (here / "slim" / MANIFEST_FILE).exists():
        return SeedRun.model_validate_json(done.read_bytes())
    return None


def slim_seed(site: Site, seed: int) -> SeedRun:
    """Compress the seed's dense ranker, fine-tune, export and evaluate."""
    here = site.of_seed(seed)
    dense = make_dense(site, seed)
    started, resumed = time.perf_counter(), any(here.glob("*.ckpt"))
    compressed = compress(site, seed, dense)
    kept, retrained = retrain(site, seed, compressed.ranker, dense.ranker)
    slim, tuned = fine_tune(site, seed, kept, dense.ranker)
    seconds = None if resumed else time.perf_counter() - started

    card = describe(site.plan, seed, dense.ranker, compressed)
    curves = {
        "train": _curve(dense.trained),
        "finetune": _curve(tuned),
        "method": compressed.history,
    }
    if retrained is not None:
        curves["retrain"] = _curve(retrained)
    small = shipped(slim, site.plan.table)
    bundle, quality = judged(site, here / "slim", small, card, curves, few_bytes=True)
    result = SeedRun(
        result=SeedResult(seed=seed, dense=dense.quality, slim=quality),
        dense=resources(dense.ranker, dense.bundle),
        slim=resources(slim, bundle),
        seconds=seconds,
    )
    write_whole(here / "result.json", result.model_dump_json(indent=1))
    for checkpoint in here.glob("*.ckpt"):
        checkpoint.unlink()  # each several times as large as the bundle, and done with
    return result


def quantized(site: Site, runs: Sequence[SeedRun]) -> tuple[Site, list[SeedRun]]:
    """The finished run with its slim graphs' precision chosen, in a folder of its own in the run's.

    The slim bundles that it is made of stay, for another choice.
    """
    options = site.plan.config.quantize
    key = _key(options.model_dump(mode="json"))
    after = replace(site, folder=site.folder / f"{options.numerics}-{key}")
    write_whole(after.folder / "config.json", json.dumps(plan_as_json(site.plan), indent=1))
    return after, [quantize_seed(site, after, run) for run in runs]


def quantize_seed(site: Site, after: Site, before: SeedRun) -> SeedRun:
    """Quantize a seed's slim bundle and evaluate it, or read what an earlier run has found.

    Args:
        site: where the fp32 bundle lies.
        after: where the chosen one goes.
        before: what was found for fp32.
    """
    seed, config = before.result.seed, site.plan.config
    if (done := finished(after, seed)) is not None:
        return done
    folder, staged = after.of_seed(seed) / "slim", after.of_seed(seed) / ".slim.part"
    for left in (folder, staged):
        shutil.rmtree(left, ignore_errors=True)  # by a killed run
    site.progress.step(f"seed {seed}: quantize", 0, 2)
    shutil.copytree(site.of_seed(seed) / "slim", staged)
    candidates = config.export.timing_candidates
    made = quantize(open_bundle(staged), site.dataset, config.quantize, candidates, seed)
    staged.rename(folder)
    site.progress.step(f"seed {seed}: quantize", 1, 2)
    chosen = _chosen(made)
    slim = before.result.slim  # fp32 that stayed scores as it did
    if chosen != FP32:
        slim = evaluate_apart(folder, site.test)
    run = before.model_copy(
        update={
            "result": before.result.model_copy(update={"slim": slim}),
            "slim": before.slim.model_copy(update={"bytes": bytes_by_part(folder)}),
            "numerics": chosen,
        }
    )
    write_whole(after.of_seed(seed) / "result.json", run.model_dump_json(indent=1))
    site.progress.step(f"seed {seed}: quantize", 2, 2)
    return run


def _chosen(bundle: Bundle) -> str:
    found = click_card(bundle).quantization
    return FP32 if found is None else found.chosen


def compress(site: Site, seed: int, dense: Dense) -> Compressed:
    """What the method makes of the seed's dense ranker."""
    return site.plan.method.compress(
        dense.ranker,
        site.dataset,
        config=site.plan.method_config,
        seed=seed,
        train=site.plan.config.train,
        pricing=pricing_of(site, dense),
        progress=site.progress,
        checkpoint=site.of_seed(seed) / "compress.ckpt",
        world=site.world,
    )


def pricing_of(site: Site, dense: Dense) -> MeasuredPricing:
    """What slimmed versions of a dense ranker take; nothing is measured before it is asked for."""
    return MeasuredPricing(
        dense.ranker,
        dense.bundle,
        site.dataset,
        site.plan.config.export.timing_candidates,
        site.plan.table,
        cache=latency_file(site),
        progress=site.progress,
    )


def latency_file(site: Site) -> Path:
    """Where measured times lie, by which budgets of time are told."""
    return site.shared / "latency.json"


def make_dense(site: Site, seed: int) -> Dense:
    """The seed's dense ranker, or what an earlier run has left of it.

    Where another run makes it just now, this one waits and finds it done.
    """
    here = site.dense_of(seed)
    if site.world.first:
        with in_turn(here, site.progress):
            write_test_rows(site.dataset, site.test)
            return judged_dense(site, seed, *train_dense(site, seed))
    trained = train_dense(site, seed)
    with in_turn(here, site.progress):  # after the first process, which exports and judges it
        return judged_dense(site, seed, *trained)


def judged_dense(site: Site, seed: int, ranker: Ranker, trained: FitResult) -> Dense:
    """The trained ranker with its bundle and its quality."""
    flops = Resources(flops=sum(ranker.flops().values()))
    card = Card(
        method="none",
        ranker=site.plan.config.ranker.type,
        seed=seed,
        dense=flops,
        slim=flops,
        kept_features=tuple(feature.name for feature in ranker.features),
    )
    folder, curves = site.dense_of(seed) / "dense", {"train": _curve(trained)}
    return Dense(ranker, trained, *judged(site, folder, ranker, card, curves))


def has_dense(site: Site, seed: int) -> bool:
    """Whether all of the seed's `make_dense` is done."""
    return _quality_file(site.dense_of(seed) / "dense").exists()


def own_dense(site: Site, seed: int) -> Bundle:
    """This run's copy of a dense bundle: what is published, with the card and the curves of slim.

    Raises:
        StoreError: the slim bundle is damaged.
    """
    here, shared = site.of_seed(seed), site.dense_of(seed) / "dense"
    folder, staged = here / "dense", here / ".dense.part"
    try:
        return open_bundle(folder)
    except StoreError:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(staged, ignore_errors=True)  # what a killed run left
    try:
        dense = open_bundle(shared)
    except StoreError:
        dense = make_dense(site, seed).bundle
    slim = open_bundle(here / "slim")
    shutil.copytree(dense.root, staged)
    if curves := history_file(slim.root):
        (staged / HISTORY_FILE).write_bytes(unpacked(curves))
    seal(staged, dense.manifest.model_copy(update={"card": slim.manifest.card}))
    staged.rename(folder)
    return open_bundle(folder)


def train_dense(site: Site, seed: int) -> tuple[Ranker, FitResult]:
    """The ranker to be compressed; its first weights and its rows' order come from the seed."""
    plan, start = site.plan, torch.Generator().manual_seed(seed)
    ranker = plan.ranker(site.dataset.features, plan.ranker_config, start)
    return ranker, fit(
        ranker,
        site.dataset,
        plan.config.train,
        seed,
        checkpoint=site.dense_of(seed) / "dense.ckpt",
        progress=site.progress,
        stage=f"seed {seed}: train",
        world=site.world,
    )


def retrain(site: Site, seed: int, slim: Ranker, dense: Ranker) -> tuple[Ranker, FitResult | None]:
    """What was kept with fresh weights, trained as the dense ranker was; else ``slim`` as it is."""
    options, config = site.plan.config.retrain, site.plan.config.train
    if options is None:
        return slim, None
    fresh = type(slim)(slim.features, slim.config, torch.Generator().manual_seed(seed))
    return fresh, fit(
        fresh,
        site.dataset,
        config.model_copy(update={"distill": options.distill}),
        seed,
        checkpoint=site.of_seed(seed) / "retrain.ckpt",
        progress=site.progress,
        teacher=dense,
        stage=f"seed {seed}: retrain",
        world=site.world,
    )


def fine_tune(site: Site, seed: int, kept: Ranker, dense: Ranker) -> tuple[Ranker, FitResult]:
    """Train on from the pruned weights, tables in the form that learns; ``dense`` may teach."""
    slim = learned(kept, site.plan.table, site.dataset, seed, site.progress)
    return slim, fit(
        slim,
        site.dataset,
        site.plan.config.finetune,
        seed,
        checkpoint=site.of_seed(seed) / "finetune.ckpt",
        progress=site.progress,
        teacher=dense,
        stage=f"seed {seed}: fine-tune",
        world=site.world,
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


def judged(
    site: Site,
    folder: Path,
    ranker: Ranker,
    card: Card,
    history: Mapping[str, Any],
    *,
    few_bytes: bool = False,
) -> tuple[Bundle, Quality]:
    """Export and evaluate a ranker, or read what an earlier run has left of it."""
    stage = f"seed {card.seed}: export and evaluate {folder.name}"
    found = _quality_file(folder)
    site.progress.step(stage, 0, 2)
    bundle = export_once(site, folder, ranker, card, history, few_bytes=few_bytes)
    site.progress.step(stage, 1, 2)
    if not found.exists():
        write_whole(found, evaluate_apart(bundle.root, site.test).model_dump_json())
    site.progress.step(stage, 2, 2)
    return bundle, Quality.model_validate_json(found.read_bytes())


def _quality_file(bundle: Path) -> Path:
    return bundle.with_suffix(".quality.json")


def export_once(
    site: Site,
    folder: Path,
    ranker: Ranker,
    card: Card,
    history: Mapping[str, Any],
    *,
    few_bytes: bool,
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
        few_bytes=few_bytes,
    )


def evaluate_apart(bundle: Path, test: Path) -> Quality:
    """Evaluate in a fresh process, which sees nothing but the two paths, and loads no torch.

    Raises:
        RunError: that process died.
    """
    return apart(f"evaluating {bundle}", evaluate_folder, bundle, test)


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
            "notes": (*notes(site), *_numerics_notes(site, runs)),
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
            "achieved": {**card.achieved, "p50_us": us[1] / us[0], "speedup": us[0] / us[1]},
        }
    )


def with_bytes(bundles: Mapping[str, Bundle], card: Card) -> Card:
    """The card with what the bundles take on disk."""
    found = {kind: bytes_by_part(bundle.root) for kind, bundle in bundles.items()}
    dense, slim = (sum(found[kind].values()) for kind in KINDS)
    return card.model_copy(
        update={
            "dense": card.dense.model_copy(update={"bytes": found["dense"]}),
            "slim": card.slim.model_copy(update={"bytes": found["slim"]}),
            # Of few digits: `seal_with_costs` comes to rest once they stay the same.
            "achieved": {**card.achieved, "bytes": round(slim / dense, 4)},
        }
    )


def plan_as_json(plan: Plan) -> dict[str, Any]:
    """The config with every default written out."""
    config = plan.config.model_dump(mode="json")
    config["ranker"] |= plan.ranker_config.model_dump(mode="json")
    config["method"] |= plan.method_config.model_dump(mode="json")
    config["table"] |= plan.table_config.model_dump(mode="json")
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


def _numerics_notes(site: Site, runs: Sequence[SeedRun]) -> tuple[str, ...]:
    if site.plan.config.quantize.numerics == FP32:
        return ()
    by_seed = ", ".join(f"{run.numerics} of seed {run.result.seed}" for run in runs)
    return (f"slim graphs, each chosen on its own seed's validation rows: {by_seed}",)


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
