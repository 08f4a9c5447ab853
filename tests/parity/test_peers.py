"""The handler of the servers that Slimrank is measured against scores as the bundle promises."""

from pathlib import Path

import orjson
import pytest
import torch

from benchmarks.peers.bodies import pool_of
from benchmarks.peers.scoring import Model, make_ranker, rank_dict
from compress.config import ExportConfig
from compress.data.encode import Dataset
from compress.export import export
from compress.rankers import RANKERS
from model_store.bundle import Bundle
from model_store.manifest import Card, Resources


@pytest.fixture(scope="module")
def bundle(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An untrained ranker's bundle with all kinds of features."""
    config = RANKERS["dlrm"].Config(dim=4, bottom=(6,), top=(8,))
    cost = Resources(flops=1)
    return export(
        RANKERS["dlrm"](dataset.features, config, torch.Generator().manual_seed(3)).eval(),
        dataset,
        tmp_path_factory.mktemp("bundle"),
        name="ctr",
        card=Card(method="none", ranker="dlrm", seed=3, dense=cost, slim=cost, kept_features=()),
        options=ExportConfig(golden_requests=3, golden_candidates=20),
    )


@pytest.mark.parametrize("whole_rows", [False, True])
def test_handler_reproduces_the_golden_scores(bundle: Bundle, whole_rows: bool) -> None:
    """Rows with all their features, best first; the request side given once or once a row."""
    rankers = {"m": make_ranker(Model(str(bundle.root), None, whole_rows))}
    cases = [case for case in bundle.golden() if "features" in case.request["candidates"]]

    for case in cases:
        ids, columns = (case.request["candidates"][key] for key in ("ids", "features"))
        features = [{name: column[i] for name, column in columns.items()} for i in range(len(ids))]
        rows = [{"id": i, "features": each} for i, each in zip(ids, features, strict=True)]
        sides = {side: case.request[side] for side in ("user", "context")}
        answer = orjson.loads(rank_dict(rankers, {"model": "m", "candidates": rows, **sides}))

        assert answer["scores"] == sorted(answer["scores"], reverse=True)
        scores = dict(zip(answer["ids"], answer["scores"], strict=True))
        expected = dict(zip(ids, case.scores, strict=True))
        assert scores == pytest.approx(expected, abs=1e-5)
    assert cases


def test_pool_takes_the_catalogue_where_there_is_one(bundle: Bundle) -> None:
    """Its ids, and its features but for the item's own id, which is the id already."""
    pool = pool_of(bundle)

    assert pool.catalogue
    assert len(pool.ids) == len(pool.features["i_price"])
    assert bundle.manifest.item_id not in pool.features


def test_pool_takes_the_golden_requests_candidates_else(bundle: Bundle) -> None:
    """Without values of a catalogue: what all golden requests bring of features."""
    without = bundle.manifest.model_copy(update={"items": None})
    golden = [case.request["candidates"] for case in bundle.golden()]
    brought = [each for each in golden if "features" in each]

    pool = pool_of(Bundle(Path(bundle.root), without, bundle.digest))

    assert not pool.catalogue
    assert len(pool.ids) == sum(len(each["ids"]) for each in brought)
    assert len(pool.ids) == len(pool.features["i_price"])
