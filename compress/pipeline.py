"""A run, from data to published bundles, as one list of stages.

    prepare data → check budgets
    → for each seed: dense ranker: train → export → evaluate
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

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from compress.budget import bounds
from compress.card import (
    SeedRun,
    Verdict,
    card_to_come,
    describe,
    judge,
    write_card,
    write_metrics,
)
from compress.config import ConfigError
from compress.costs import bytes_by_part, resources
from compress.curves import MOST_BYTES, bytes_to_come, history_file
from compress.data.encode import Dataset, prepare
from compress.data.folders import alone, in_turn, locked, replaced, spacious
from compress.evaluate import evaluate_folder
from compress.export import click_card, export
from compress.methods.base import Compressed
from compress.methods.groups import SlimmingConfig
from compress.methods.removable import check_budget
from compress.methods.steps import StepsConfig
from compress.parallel import ALONE, World
from compress.plan import (
    KINDS,
    Plan,
    Site,
    dense_folder,
    key_of,
    latency_file,
    plan_as_json,
    run_folder,
)
from compress.pricing import MeasuredPricing
from compress.progress import Progress
from compress.quantize import FP32, quantize
from compress.rankers.base import Ranker
from compress.shipping import learned, shipped
from compress.stages import apart, publish, write_whole
from compress.tiers import join
from compress.train import FitResult, fit
from model_store.bundle import Bundle, open_bundle, seal
from model_store.errors import StoreError
from model_store.manifest import MANIFEST_FILE, Card, Quality, Resources, SeedResult


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to.

    Attributes:
        versions: "dense" and "slim" -> published version; empty if the gate did not hold.
        with_tiers: bytes of the slim bundle and its siblings in one; None if it has none.
    """

    folder: Path
    card: Card
    verdict: Verdict
    versions: Mapping[str, str]
    with_tiers: int | None = None


@dataclass(frozen=True, slots=True)
class Dense:
    """A seed's dense ranker: trained, exported and judged."""

    ranker: Ranker
    trained: FitResult
    bundle: Bundle
    quality: Quality


def run(plan: Plan, progress: Progress) -> Outcome:
    """Run a plan, or what is left of it.

    Raises:
        CompressError, StoreError: it cannot go on; the text says why.
    """
    site = site_of(plan, progress)
    with spacious(site.folder), alone(site.folder):
        check_budgets(site)
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
    with spacious(site.folder):
        check_budgets(site)
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
    with_tiers = None
    if site.tiers:
        folders["slim"] = make_family(site, folders["slim"])
        with_tiers = sum(bytes_by_part(folders["slim"]).values())
    verdict = judge(config.gate, card.results)
    versions: Mapping[str, str] = {}
    if verdict.holds:
        versions = publish(config.publish, config.name, folders)
    write_metrics(site.folder / "metrics.json", card, verdict, versions)
    return Outcome(site.folder, card, verdict, versions, with_tiers)


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
    key = key_of(options.model_dump(mode="json"))
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
        pricing=pricing_of(site, dense.ranker),
        progress=site.progress,
        checkpoint=site.of_seed(seed) / "compress.ckpt",
        world=site.world,
    )


def pricing_of(site: Site, ranker: Ranker) -> MeasuredPricing:
    """What slimmed versions of a dense ranker take, trained or not; nothing is measured unasked."""
    return MeasuredPricing(
        ranker,
        site.dataset,
        site.plan.config.export,
        site.plan.table,
        card=partial(card_to_come, site),
        curves=_curves_to_come(site.plan),
        folder=site.shared / "outline",
        cache=latency_file(site),
        progress=site.progress,
    )


def _curves_to_come(plan: Plan) -> int:
    """Bytes at most of a run's curves."""
    if isinstance(plan.method_config, StepsConfig):  # what it records of its steps fills them
        return MOST_BYTES
    config = plan.config
    courses = [config.train, config.finetune, *([config.train] if config.retrain else [])]
    return bytes_to_come(sum(c.epochs * c.evaluations_per_epoch + 1 for c in courses))


def check_budgets(site: Site) -> None:
    """Refuse budgets, those of tiers too, that nothing can meet, before anything is trained.

    Raises:
        ConfigError: the text names the key, and the smallest budget that can be.
    """
    named = {"method.budget": site}
    named |= {f"tiers.{name}.budget": tier for name, tier in site.tiers.items()}
    ranker, faults = untrained(site, 0), []
    for where, each in named.items():
        if all(finished(each, seed) is not None for seed in each.plan.config.seeds):
            continue  # it was met
        try:
            _check_budget(each, ranker, where)
        except ConfigError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError("\n".join(faults))


def _check_budget(site: Site, ranker: Ranker, where: str) -> None:
    config = site.plan.method_config
    if isinstance(config, SlimmingConfig):
        bounded = bounds(ranker, config.budget, config.flops_of, pricing_of(site, ranker))
        check_budget(ranker, config, bounded, where)


def untrained(site: Site, seed: int) -> Ranker:
    """The dense ranker before it is trained."""
    start = torch.Generator().manual_seed(seed)
    return site.plan.ranker(site.dataset.features, site.plan.ranker_config, start)


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
        history = history_file(staged)
        if history is not None:
            history.unlink()
        shutil.copy(curves, staged)
    seal(staged, dense.manifest.model_copy(update={"card": slim.manifest.card}))
    staged.rename(folder)
    return open_bundle(folder)


def train_dense(site: Site, seed: int) -> tuple[Ranker, FitResult]:
    """The ranker to be compressed; its first weights and its rows' order come from the seed."""
    ranker = untrained(site, seed)
    return ranker, fit(
        ranker,
        site.dataset,
        site.plan.config.train,
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
    codes = b"".join(held.numpy(force=True).tobytes() for held in slim.buffers())
    site.world.agree("the codes of their tables", codes)
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


def _curve(result: FitResult) -> list[dict[str, float | None]]:
    # What is not a number (the training loss before the first step) is null in JSON.
    looks = [asdict(look) for look in result.history]
    return [{k: v if math.isfinite(v) else None for k, v in look.items()} for look in looks]
