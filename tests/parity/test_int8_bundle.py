"""A bundle in eight bits serves as it was judged, near what torch says."""

from pathlib import Path

import numpy as np
import pytest
import torch

from compress import int8
from compress.config import ExportConfig, QuantizeConfig
from compress.data.encode import Dataset
from compress.export import export, golden_scores
from compress.quantize import quantize
from compress.rankers import RANKERS
from model_store.manifest import Card, Resources
from model_store.store import OpenedVersion
from service.assembly import assemble, kind_of
from service.item_ids import ItemIds
from service.ranking import NO_LIMITS
from service.schemas import convert_rank

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("form", int8.FORMS)
def test_the_service_ranks_by_whole_numbers(
    form: str, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its golden scores hold, and they are as far from torch as the manifest says, at most."""
    monkeypatch.setattr(int8, "LEAST_INPUTS", 4)
    config = RANKERS["dlrm"].Config(dim=4, bottom=(6,), top=(8, 4))
    ranker = RANKERS["dlrm"](dataset.features, config, torch.Generator().manual_seed(2)).eval()
    cost = Resources(flops=1)
    fp32 = export(
        ranker,
        dataset,
        tmp_path / "bundle",
        name="ctr",
        card=Card(method="none", ranker="dlrm", seed=2, dense=cost, slim=cost, kept_features=()),
        options=ExportConfig(golden_requests=3, golden_candidates=20),
    )
    asked = QuantizeConfig(numerics=form, max_logloss_rise=1, max_auc_loss=1)

    bundle = quantize(fp32, dataset, asked, candidates=20, seed=2)
    opened = OpenedVersion(bundle=bundle, name="ctr", version="1")
    table = kind_of(bundle.manifest).read_table(bundle, ItemIds(bundle.item_ids()))
    ranking = assemble(opened, table, tolerance=0.0)  # the bundle's own tolerance is what holds

    assert bundle.manifest.numerics == form
    for case in bundle.golden():
        served = ranking.score(ranking.prepare(convert_rank(case.request), NO_LIMITS))
        expected = golden_scores(ranker, bundle.encoders(), case.request, dataset)
        off = np.abs(served - expected).max()
        assert 0 < off < bundle.manifest.golden_tolerance + 1e-4
