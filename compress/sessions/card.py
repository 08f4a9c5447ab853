"""The card of a session run: what all seeds came to, sealed into both bundles of the first."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from compress.sessions.costs import achieved, request_us, resources
from compress.sessions.metrics import ratio
from compress.sessions.plan import Site, dense_folder, plan_as_json
from compress.stages import seal_with_costs, tools, write_whole
from model_store.bundle import Bundle, open_bundle
from model_store.errors import StoreError
from model_store.manifest import SessionCard, SessionQuality, SessionSeed

TIMES_FILE: Final = "us_per_request.json"
COMPARED: Final = ("NDCG@10", "MRR@20", "P@20")


@dataclass(frozen=True, slots=True)
class Judged:
    """A sealed bundle, and what it is worth on the test prefixes.

    Attributes:
        ranks: (prefixes,) of the targets, for paired comparisons.
    """

    bundle: Bundle
    quality: SessionQuality
    ranks: NDArray[np.float64]


def write_card(
    site: Site,
    seeds: Sequence[tuple[int, Judged, Judged]],
    floors: Mapping[str, SessionQuality],
    boosts: tuple[float, float],
) -> SessionCard:
    """Seal both bundles of the first seed under the card over all seeds."""
    first, dense, coded = seeds[0]
    bundles = {
        "dense": copied(dense.bundle, dense_folder(site, first)),
        "coded": coded.bundle,
    }
    us = measured_us(site, first, [*bundles.values()])
    owner = site.data.test.owner
    theirs = np.stack([one.ranks for _, one, _ in seeds])
    ours = np.stack([other.ranks for _, _, other in seeds])
    compared = ratio(ours, theirs, owner)
    card = SessionCard(
        ranker=site.plan.config.ranker.type,
        table=site.plan.config.table.type,
        seed=first,
        results=tuple(
            SessionSeed(seed=seed, dense=one.quality, coded=other.quality)
            for seed, one, other in seeds
        ),
        dense=resources(bundles["dense"], us[0]),
        coded=resources(bundles["coded"], us[1]),
        achieved={
            **achieved(bundles["dense"], bundles["coded"]),
            **{
                f"{metric} {part}": value
                for metric in COMPARED
                for part, value in (
                    ("ratio", compared[metric].value),
                    ("ratio, low", compared[metric].interval[0]),
                    ("ratio, high", compared[metric].interval[1]),
                )
                if metric in compared
            },
            "speedup": us[0] / us[1],
            "boost of repeats, dense": boosts[0],
            "boost of repeats, coded": boosts[1],
        },
        floors=dict(floors),
        config=plan_as_json(site.plan),
        data_hash=site.plan.source.fingerprint(),
        tools=tools(),
        notes=notes(site),
    )
    return seal_with_costs(bundles, card, with_costs)


def copied(bundle: Bundle, folder: Path) -> Bundle:
    """A bundle's copy, made now unless an earlier run has made it in full."""
    try:
        return open_bundle(folder)
    except StoreError:
        shutil.rmtree(folder, ignore_errors=True)  # not begun, or cut off
    shutil.copytree(bundle.root, folder)
    return open_bundle(folder)


def measured_us(site: Site, seed: int, bundles: Sequence[Bundle]) -> list[float]:
    """Microseconds a request; measured once, so that a run again seals the same bytes."""
    path = site.folder / f"seed-{seed}" / TIMES_FILE
    if not path.exists():
        us = request_us(bundles, site.plan.config.export.timing_candidates)
        write_whole(path, json.dumps(us))
    return [float(each) for each in json.loads(path.read_text())]


def with_costs(bundles: Mapping[str, Bundle], card: SessionCard) -> SessionCard:
    """The card with what the bundles take on disk, and the ratios of it."""
    costs: dict[str, Any] = {
        kind: resources(bundle, getattr(card, kind).us_per_request)
        for kind, bundle in bundles.items()
    }
    ratios = card.achieved | achieved(bundles["dense"], bundles["coded"])
    return card.model_copy(update={**costs, "achieved": ratios})


def notes(site: Site) -> tuple[str, ...]:
    """What a reader of the card should know besides."""
    data = site.data
    return (
        f"{len(data.whole):,} training sessions, {data.whole.items:,} items, {len(data.test):,} "
        f"test prefixes; how long to train was chosen with the newest "
        f"{len(data.whole) - len(data.train):,} sessions held out",
        "quality is that of the exported bundles: the whole catalogue ranked, ties against the "
        "ranker, on test prefixes that no choice was made on; intervals by bootstrap over sessions",
        f"times: encoding one session and scoring {site.plan.config.export.timing_candidates:,} "
        "candidates with numpy, one thread, both bundles in turn; only their ratio carries over",
    )
