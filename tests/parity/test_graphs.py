"""torch, the split graph (R = 1 and R = N) and the plain graph agree, for every ranker."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress.data.encode import Dataset, encode_frame
from compress.export import export_plain, export_split, real_rows, torch_scores
from compress.graph import Feeds, GraphSession, one_request, repeat_request
from compress.pipeline import shipped
from compress.rankers import RANKERS
from compress.rankers.base import Keep, Ranker
from compress.slim import slim
from compress.tables import TABLES

# Features of one width do not stand together, and one that is multi-valued is among them.
WIDTHS = {"u_segment": 3, "i_tags": 2, "item_id": 3, "i_genre": 6, "request_numeric": 5}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "dlrm": [{"interaction": "cat"}, {"interaction": "dot"}, {"widths": WIDTHS}],
    "dcnv2": [
        {"structure": "parallel"},
        {"structure": "parallel", "rank": 3},
        {"structure": "stacked"},
        {"structure": "stacked", "rank": 3},
        {"widths": WIDTHS, "rank": (3, 2)},
    ],
}
DENSE = [(name, options, False) for name in RANKERS for options in OPTIONS.get(name, [{}])]
SLIM = [(name, OPTIONS.get(name, [{}])[0], True) for name in RANKERS]
ROWS = 50


def feeds_of(ranker: Ranker, dataset: Dataset) -> dict[Any, Any]:
    """Real rows as a ranker's inputs."""
    inputs = encode_frame(real_rows(dataset, ROWS), ranker.features, dataset.encoders())
    return {name: array for name, array in inputs.items() if array.shape[1]}


def slimmed(ranker: Ranker) -> Ranker:
    """The ranker without every third field."""
    kept = tuple(field.name for i, field in enumerate(ranker.fields) if i % 3)
    return slim(ranker, Keep(kept, {})).eval()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "slimming"), [*DENSE, *SLIM], ids=str)
def test_graphs_score_as_torch(
    name: str, options: dict[str, Any], slimming: bool, dataset: Dataset, tmp_path: Path
):
    """Five ways to the same scores, on the same rows, to 1e-6."""
    ranker = ranker_of(name, options, dataset)
    agree(slimmed(ranker) if slimming else ranker, dataset, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in TABLES if kind != "float32"])
@pytest.mark.parametrize(
    ("name", "options"), [("dlrm", OPTIONS["dlrm"][2]), ("dcnv2", OPTIONS["dcnv2"][3])], ids=str
)
def test_graphs_of_small_tables_score_as_torch(
    name: str, options: dict[str, Any], kind: str, dataset: Dataset, tmp_path: Path
):
    """The rounding is torch's, too: what is left between them is as little as ever."""
    method: Any = TABLES[kind]
    ranker = ranker_of(name, options, dataset)

    small = shipped(ranker, method(method.Config()))

    agree(small, dataset, tmp_path)
    feeds = feeds_of(ranker, dataset)
    moved = np.abs(torch_scores(small, feeds) - torch_scores(ranker, feeds)).max()
    assert 0.0 < moved < 0.02


def ranker_of(name: str, options: dict[str, Any], dataset: Dataset) -> Ranker:
    """An untrained ranker, its scores far from each other."""
    config = RANKERS[name].Config(dim=4, bottom=(6, 5), **options)
    return RANKERS[name](dataset.features, config, torch.Generator().manual_seed(1)).eval()


def agree(ranker: Ranker, dataset: Dataset, tmp_path: Path) -> None:
    """Torch, both graphs, with a request once and with it repeated."""
    feeds = feeds_of(ranker, dataset)
    once = one_request(feeds)
    repeated = repeat_request(once, ROWS)

    export_split(ranker, tmp_path / "split.onnx")
    export_plain(ranker, tmp_path / "plain.onnx")
    split, plain = (GraphSession(tmp_path / f"{kind}.onnx") for kind in ("split", "plain"))

    def agrees(session: GraphSession, given: Feeds, rows: Feeds) -> None:
        np.testing.assert_allclose(session.run(given), torch_scores(ranker, rows), atol=1e-6)

    agrees(split, feeds, feeds)
    agrees(plain, feeds, feeds)
    agrees(split, once, repeated)
    agrees(plain, once, repeated)
