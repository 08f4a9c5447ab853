"""The card of a run: what all seeds came to, sealed into both bundles of the first; the gate."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from compress.budget import TIMES_WITHIN
from compress.config import Frozen, GateConfig
from compress.costs import bytes_by_part, request_us, resources
from compress.export import click_card
from compress.methods.base import Compressed, keep_all, ratios
from compress.methods.groups import SlimmingConfig
from compress.plan import KINDS, Plan, Site, plan_as_json
from compress.quantize import FP32, MANY
from compress.rankers.base import Ranker
from compress.stages import seal_with_costs, tools, write_whole
from model_store.bundle import Bundle
from model_store.manifest import (
    Card,
    NumericsTrial,
    Quality,
    Quantization,
    Resources,
    SeedResult,
)

ENOUGH: Final = 1e-4  # how far a share of bytes may be off
LONG: Final = 0.1234567890123456  # a figure with all its digits
LONG_LIMIT: Final = "12345678901234567B"
REASON: Final = 200  # characters of why a graph stays as it is
FORMS: Final = 3  # of a graph that are tried


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


def card_to_come(site: Site, dense: Ranker, bundle: Bundle) -> Card:
    """A card as long as the one that a run will write, its figures made up: for what it weighs.

    Args:
        site: of the run.
        dense: the ranker to be compressed.
        bundle: its.
    """
    plan, costs = site.plan, resources(dense, bundle)
    quality = Quality(auc=LONG, logloss=LONG, accuracy=LONG, rows=site.dataset.rows["test"])
    nothing_gone = Compressed(keep_all(dense), dense, {}, {}, ())
    method = plan.method_config
    limits = dict(method.budget) if isinstance(method, SlimmingConfig) else {}
    named = [key for key, limit in limits.items() if limit is not None]
    return describe(plan, plan.config.seeds[0], dense, nothing_gone).model_copy(
        update={
            "results": tuple(
                SeedResult(seed=seed, dense=quality, slim=quality) for seed in plan.config.seeds
            ),
            "dense": costs.model_copy(update={"us_per_request": LONG}),
            "slim": costs.model_copy(update={"us_per_request": LONG}),
            "requested": dict.fromkeys(named, LONG),
            "achieved": dict.fromkeys([*ratios(dense, dense), *named, "p50_us", "speedup"], LONG),
            "config": _as_long_as_any(plan_as_json(plan)),
            "data_hash": site.dataset.fingerprint,
            "tools": tools(),
            "notes": (*notes(site), *_numerics_notes(site, ())),
            "quantization": quantization_to_come(plan.config.export.timing_candidates)
            if plan.config.quantize.numerics != FP32
            else None,
        }
    )


def _as_long_as_any(value: Any) -> Any:
    """A config with long limits: what a budget asks for must not change what can be."""
    if isinstance(value, list | tuple):
        return [_as_long_as_any(one) for one in value]
    if not isinstance(value, Mapping):
        return value
    found = {name: _as_long_as_any(one) for name, one in value.items()}
    if isinstance(budget := found.get("budget"), dict):
        found["budget"] = {name: limit and LONG_LIMIT for name, limit in budget.items()}
    return found


def quantization_to_come(candidates: int) -> Quantization:
    """As long as it is where all forms are tried and none taken: the graph stays as it was.

    Args:
        candidates: of the requests that are timed.
    """
    sizes = (candidates, MANY)
    trial = NumericsTrial(
        numerics="int8-dynamic",
        auc=LONG,
        logloss=LONG,
        moved=LONG,
        split_gap=LONG,
        bytes=1_000_000_000,
        us_per_request=dict.fromkeys(sizes, LONG),
        speedup=dict.fromkeys(sizes, (LONG, LONG, LONG)),
    )
    return Quantization(chosen=FP32, reason="x" * REASON, trials=(trial,) * FORMS)


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
    told = card.achieved.get("bytes", math.inf)
    return card.model_copy(
        update={
            "dense": card.dense.model_copy(update={"bytes": found["dense"]}),
            "slim": card.slim.model_copy(update={"bytes": found["slim"]}),
            # Good enough stays: a last digit more or less would change what it tells of, for ever.
            "achieved": {
                **card.achieved,
                "bytes": told if abs(told - slim / dense) < ENOUGH else round(slim / dense, 4),
            },
        }
    )


def over_budget(card: Card) -> list[str]:
    """What the finished bundle misses of what was asked for: bytes and times are told beforehand.

    Times may be off by a tenth, as the ones that budgets are told by.
    """
    borne = {"bytes": 1 + ENOUGH, "p50_us": 1 + TIMES_WITHIN}
    return [
        f"{name}: {card.achieved[name]:.4f} of the dense ranker's, {asked:.4f} were asked for"
        for name, asked in card.requested.items()
        if card.achieved.get(name, 0.0) > asked * borne.get(name, 1 + ENOUGH)
    ]


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
