"""What slimmed rankers are told to take is what their bundles take."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress.config import CompressError, ExportConfig
from compress.costs import bytes_by_part
from compress.data.encode import Dataset
from compress.export import export
from compress.pricing import (
    FITTED,
    ByteTable,
    LatencyTable,
    MeasuredPricing,
    Outline,
    Timed,
    measure,
    outline,
    random_keep,
)
from compress.progress import Silent
from compress.rankers import RANKERS
from compress.rankers.base import Ranker
from compress.rankers.structure import Keep, Sizes
from compress.shipping import learned, shipped
from compress.slim import slim
from compress.tables import TABLES, TableMethod
from model_store.bundle import Bundle
from model_store.manifest import Card

Build = Callable[..., Ranker]
OPTIONS = ExportConfig(golden_requests=2, golden_candidates=5)


def exported(
    ranker: Ranker, dataset: Dataset, card: Card, folder: Path, *, few_bytes: bool = False
) -> Bundle:
    """A sealed bundle."""
    return export(
        ranker, dataset, folder, name="outline", card=card, options=OPTIONS, few_bytes=few_bytes
    )


KINDS: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in TABLES if kind != "pq"),
    ("pq", {"words": 16, "min_rows": 16}),
]


def method_of(kind: str, **options: Any) -> TableMethod:
    """A way for tables to ship."""
    method: Any = TABLES[kind]
    made: TableMethod = method(method.Config(**options))
    return made


def whole(dense: Ranker, small: Ranker) -> Sizes:
    """The slimmed ranker's sizes in the dense one's terms."""
    sizes = small.sizes()
    return Sizes({name: sizes.widths.get(name, 0) for name in dense.sizes().widths}, sizes.hidden)


@pytest.fixture(scope="module")
def outlined(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Outline:
    """A ranker of many sizes, and its outline."""
    config = RANKERS["dlrm"].Config(dim=96, bottom=(64,), top=(96, 32))
    dense = RANKERS["dlrm"](dataset.features, config, torch.Generator().manual_seed(0)).eval()
    return outline(dense, dataset, tmp_path_factory.mktemp("outline"), OPTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_bytes_are_told_and_hardly_too_few(
    outlined: Outline,
    dataset: Dataset,
    card: Card,
    tmp_path: Path,
    kind: tuple[str, dict[str, Any]],
) -> None:
    """Of any sizes, and of other weights than those that the outline was made of."""
    config = outlined.ranker.config
    dense = RANKERS["dlrm"](dataset.features, config, torch.Generator().manual_seed(5)).eval()
    method = method_of(kind[0], **kind[1])
    told = ByteTable(outlined, method, card, curves=0)

    def taken(ranker: Ranker, name: str) -> int:
        small = shipped(learned(ranker, method, dataset, 1, Silent()), method)
        found = export(
            small, dataset, tmp_path / name, name="outline", card=card, options=OPTIONS,
            history={}, few_bytes=True,
        )  # fmt: skip
        return sum(bytes_by_part(found.root).values())

    for seed in (None, 5, 8):
        keep = None if seed is None else random_keep(dense, np.random.default_rng(seed))
        small = dense if keep is None else slim(dense, keep).eval()
        size = taken(small, str(seed))
        assert size <= told(whole(dense, small)) <= 1.1 * size


@pytest.mark.slow
def test_the_smallest_bundle_is_told_closely(
    outlined: Outline, dataset: Dataset, card: Card, tmp_path: Path
) -> None:
    """No constant margin: of a bundle of a few kB one would be most."""
    dense = outlined.ranker
    numeric = tuple(field.name for field in dense.fields if field.numeric)
    small = slim(dense, Keep(numeric, {layer.name: (0, 1) for layer in dense.hidden()})).eval()

    made = exported(small, dataset, card, tmp_path / "small", few_bytes=True)

    size = sum(bytes_by_part(made.root).values())
    told = ByteTable(outlined, method_of("float32"), card, curves=0)(whole(dense, small))
    assert size <= told + 200  # it has no file of curves
    assert told <= 1.05 * size


def timed(build: Build, count: int, noise: float = 0.0) -> tuple[Ranker, list[Timed]]:
    """Rankers of known times.

    20 us, 3 ns a multiplication of a candidate, 20 ns a number looked up, 1 us a list to pool.
    """
    rng = np.random.default_rng(0)
    dense = build("dlrm", {"dim": 16, "top": (128, 64)})
    found = []
    for _ in range(count):
        small = slim(dense, random_keep(dense, rng))
        each = [layer for layer in small.layers_at(small.sizes()) if not layer.once]
        products = 50 * sum(layer.inputs * (-(-layer.outputs // 16) * 16) for layer in each)
        ids = [f for f in small.fields if not f.numeric and not f.request]
        looked_up = 50 * sum(f.width * (2 if f.name == "genres" else 1) for f in ids)
        pooled = 50 * sum(f.name == "genres" for f in ids)
        us = 20 + 0.003 * products + 0.02 * looked_up + pooled
        us *= float(np.exp(rng.normal(0, noise)))
        found.append(Timed(whole(dense, small), us))
    return dense, found


def test_times_of_rankers_that_were_not_measured_are_told(build: Build) -> None:
    """What is linear in the work is found again, through the noise of a clock."""
    dense, found = timed(build, FITTED + 20, noise=0.03)

    table = LatencyTable(dense, found[:FITTED], candidates=50)

    assert np.abs(table.errors(found[FITTED:])).max() < 0.15
    assert np.median(np.abs(table.errors(found[FITTED:]))) < 0.05


def test_a_smaller_ranker_is_never_told_to_be_slower(build: Build) -> None:
    """No coefficient is negative."""
    dense, found = timed(build, FITTED, noise=0.3)
    table = LatencyTable(dense, found, candidates=50)

    sizes = dense.sizes()
    narrower = Sizes(sizes.widths, {**sizes.hidden, "top.0": 40})
    fewer = Sizes({**sizes.widths, "item": 0}, sizes.hidden)

    assert table(narrower) <= table(sizes)
    assert table(fewer) <= table(sizes)


def test_lists_have_their_price(build: Build) -> None:
    """A list to pool takes what no other field does."""
    dense, found = timed(build, FITTED)
    table = LatencyTable(dense, found, candidates=50)
    sizes = dense.sizes()

    without = Sizes({**sizes.widths, "genres": 0}, sizes.hidden)

    assert table(sizes) - table(without) > 40


@pytest.mark.slow
def test_rankers_are_timed_as_they_would_be_served(dataset: Dataset) -> None:
    """The first is the dense one itself; a request has one row of the request side."""
    config = RANKERS["dlrm"].Config(dim=8, bottom=(16,), top=(64, 32))
    dense = RANKERS["dlrm"](dataset.features, config, torch.Generator().manual_seed(0)).eval()

    found = measure(dense, dataset, 20, method_of("int8"), Silent(), count=2)

    assert found[0].sizes == dense.sizes()
    assert found[1].sizes != dense.sizes()
    assert all(one.us > 0 for one in found)


def test_times_that_fit_nothing_are_refused(
    build: Build, dataset: Dataset, card: Card, tmp_path: Path
) -> None:
    """A budget must not be met on numbers that mean nothing."""
    dense, found = timed(build, FITTED + 8, noise=1.5)
    cache = tmp_path / "latency.json"
    rows = [{"widths": t.sizes.widths, "hidden": t.sizes.hidden, "us": t.us} for t in found]
    cache.write_text(json.dumps(rows))
    tables = method_of("float32")
    made = MeasuredPricing(
        dense, dataset, ExportConfig(timing_candidates=50), tables,
        card=lambda *_: card, curves=0, folder=tmp_path, cache=cache, progress=Silent(),
    )  # fmt: skip

    with pytest.raises(CompressError, match=r"budget\.p50_us: .* other work may disturb"):
        made.p50_us(dense.sizes())
