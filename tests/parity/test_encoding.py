"""What training reads from its files is what serving assembles from a request."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from compress.config import ExportConfig
from compress.data.encode import Batch, Dataset
from compress.evaluate import evaluate
from compress.export import export
from compress.graph import GraphSession
from compress.progress import Silent
from compress.rankers import RANKERS
from compress.rankers.base import Ranker
from compress.shipping import shipped
from compress.tables import TABLES
from model_store.bundle import Bundle
from model_store.manifest import Card, Resources
from service.click_ranking import ClickRanking
from service.features import FeaturePlan
from service.item_ids import ItemIds
from service.item_table import ItemTable
from service.ranking import NO_LIMITS, check_golden
from service.schemas import convert_rank
from service.scorer import OrtScorer

ROWS = 200
INPUTS = ("request_numeric", "request_ids", "candidate_numeric", "candidate_ids")


@pytest.fixture(scope="module")
def bundle(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An untrained dense ranker's bundle: all features, so all encodings, are in use."""
    return exported(untrained(dataset), dataset, tmp_path_factory.mktemp("bundle"))


def untrained(dataset: Dataset) -> Ranker:
    """A dense ranker."""
    config = RANKERS["dlrm"].Config(dim=4, bottom=(6,), top=(8,))
    return RANKERS["dlrm"](dataset.features, config, torch.Generator().manual_seed(2)).eval()


def exported(ranker: Ranker, dataset: Dataset, folder: Path, *, few_bytes: bool = False) -> Bundle:
    """A sealed bundle."""
    cost = Resources(flops=1)
    return export(
        ranker,
        dataset,
        folder,
        name="ctr",
        card=Card(method="none", ranker="dlrm", seed=2, dense=cost, slim=cost, kept_features=()),
        options=ExportConfig(golden_requests=3, golden_candidates=20),
        few_bytes=few_bytes,
    )


@pytest.fixture(scope="module")
def ranking(bundle: Bundle) -> ClickRanking:
    """The bundle as the service holds it."""
    return served(bundle)


def served(bundle: Bundle) -> ClickRanking:
    """A bundle as the service holds it."""
    manifest = bundle.manifest
    return ClickRanking(
        name=manifest.name,
        manifest=manifest,
        digest=bundle.digest,
        version="1",
        plan=FeaturePlan(manifest, bundle.encoders()),
        table=ItemTable.read(bundle, ItemIds(bundle.item_ids())),
        scorer=OrtScorer(bundle.path(manifest.graph), manifest.inputs, manifest.outputs),
    )


def rows_of(dataset: Dataset) -> Iterator[tuple[dict[str, Any], int, Batch]]:
    """Raw test rows, their position, and the batch of all test rows as training reads it."""
    batch = next(dataset.batches("test", 1 << 20))
    frames = (frame.iter_rows(named=True) for frame in dataset.raw("test"))
    rows = itertools.islice(itertools.chain.from_iterable(frames), ROWS)
    return ((row, i, batch) for i, row in enumerate(rows))


def request_of(row: dict[str, Any], dataset: Dataset, *, joined: bool) -> dict[str, Any]:
    """A row as a client would send it, over JSON."""
    sides: dict[str, dict[str, Any]] = {"user": {}, "context": {}, "item": {}}
    for feature in dataset.features:
        sides[feature.side][feature.name] = row[feature.column]
    key = sides["item"].pop("item_id")
    features = {} if joined else {name: [value] for name, value in sides["item"].items()}
    body = {
        "user": sides["user"],
        "context": sides["context"],
        "candidates": {"ids": [key], "features": features},
    }
    return dict(json.loads(json.dumps(body)))


@pytest.mark.parametrize("joined", [False, True], ids=["brought", "joined"])
def test_a_request_fills_the_tensors_that_training_read(
    dataset: Dataset, ranking: ClickRanking, joined: bool
):
    """Byte for byte the same, whether item features are brought or joined by id."""
    for row, i, batch in rows_of(dataset):
        request = convert_rank(request_of(row, dataset, joined=joined))

        feeds = ranking.prepare(request, NO_LIMITS).feeds

        for name in INPUTS:
            np.testing.assert_array_equal(feeds[name][0], getattr(batch, name)[i], err_msg=name)


def test_golden_requests_reproduce_their_scores_in_the_service(
    bundle: Bundle, ranking: ClickRanking
):
    """Scores that torch gave at export come out of the service's own path."""
    cases = [(convert_rank(case.request), case.scores) for case in bundle.golden()]

    assert check_golden(ranking, cases, 1e-6) is None


@pytest.mark.parametrize("kind", TABLES)
def test_a_bundle_of_few_bytes_reproduces_its_scores_in_the_service(
    dataset: Dataset, tmp_path: Path, kind: str
):
    """Packed vocabularies, rows in another order, small tables: what torch gave, all the same."""
    method: Any = TABLES[kind]
    small = shipped(untrained(dataset), method(method.Config())).eval()

    bundle = exported(small, dataset, tmp_path, few_bytes=True)

    cases = [(convert_rank(case.request), case.scores) for case in bundle.golden()]
    assert any("numbers" in file.path for file in bundle.manifest.files)
    assert check_golden(served(bundle), cases, 1e-6) is None


def test_evaluate_scores_a_file_as_the_training_rows(
    bundle: Bundle, dataset: Dataset, tmp_path: Path
):
    """A CSV of raw rows is judged as the encoded files are, although all its cells are text."""
    frames = [frame.with_columns(pl.col("i_tags").list.join("|")) for frame in dataset.raw("test")]
    pl.concat(frames).write_csv(tmp_path / "rows.csv")
    session = GraphSession(bundle.path("model.onnx"))
    batch = next(dataset.batches("test", 1 << 20))
    scores = session.run({name: getattr(batch, name) for name in INPUTS})

    found = evaluate(bundle, tmp_path / "rows.csv", skip_bad=False, progress=Silent()).quality

    likelihood = np.where(batch.label == 1.0, scores, 1 - scores).astype(np.float64)
    assert found.logloss == pytest.approx(-float(np.log(likelihood).mean()), abs=1e-6)
    assert found.rows == len(batch)
