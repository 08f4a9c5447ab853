"""torch, the split graph (R = 1 and R = N) and the plain graph agree, for every ranker.

In eight bits the split graph is near them, whichever way.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from compress import int8
from compress.data.encode import Dataset, encode_frame
from compress.export import export_plain, export_split, real_rows, torch_scores
from compress.graph import Feeds, GraphSession, one_request, repeat_request
from compress.progress import Silent
from compress.rankers import RANKERS
from compress.rankers.base import Ranker
from compress.rankers.structure import Keep
from compress.shipping import learned, shipped
from compress.slim import slim
from compress.tables import TABLES
from tests.compress.test_int8 import optimised

# Features of one width do not stand together, and one that is multi-valued is among them.
WIDTHS = {"u_segment": 3, "i_tags": 2, "item_id": 3, "i_genre": 6, "request_numeric": 5}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "dlrm": [
        {"interaction": "cat"},
        {"interaction": "dot"},
        {"widths": WIDTHS},
        {"interaction": "dot", "widths": WIDTHS},
    ],
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
SMALL: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in TABLES if kind not in {"float32", "pq"}),
    ("pq", {"cut": 2, "words": 8, "min_rows": 8, "rest": "int4"}),
]
ROWS = 50


def feeds_of(ranker: Ranker, dataset: Dataset) -> dict[Any, Any]:
    """Real rows as a ranker's inputs."""
    inputs = encode_frame(real_rows(dataset, ROWS), ranker.features, dataset.encoders())
    return {name: array for name, array in inputs.items() if array.shape[1]}


def slimmed(ranker: Ranker) -> Ranker:
    """The ranker without every third field."""
    kept = tuple(field.name for i, field in enumerate(ranker.fields) if i % 3)
    return slim(ranker, Keep(kept, {})).eval()


@dataclass(frozen=True)
class Exported:
    """A ranker with its graphs."""

    ranker: Ranker
    split: Path
    plain: Path


def ranker_of(name: str, options: dict[str, Any], dataset: Dataset) -> Ranker:
    """An untrained ranker, its scores far from each other."""
    config = RANKERS[name].Config(dim=4, bottom=(6, 5), **options)
    return RANKERS[name](dataset.features, config, torch.Generator().manual_seed(1)).eval()


def export_both(ranker: Ranker, folder: Path) -> Exported:
    """Both graphs of a ranker."""
    export_split(ranker, folder / "split.onnx")
    export_plain(ranker, folder / "plain.onnx")
    return Exported(ranker, folder / "split.onnx", folder / "plain.onnx")


@pytest.fixture(scope="module", params=[*DENSE, *SLIM], ids=str)
def exported(
    request: pytest.FixtureRequest, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    """Each ranker of the list, exported once."""
    name, options, slimming = request.param
    ranker = ranker_of(name, options, dataset)
    return export_both(slimmed(ranker) if slimming else ranker, tmp_path_factory.mktemp("graphs"))


@pytest.mark.slow
def test_graphs_score_as_torch(exported: Exported, dataset: Dataset):
    """Five ways to the same scores, on the same rows, to 1e-6."""
    check_agreement(exported, dataset)


@pytest.mark.slow
@pytest.mark.parametrize("table", SMALL, ids=str)
@pytest.mark.parametrize(
    ("name", "options"), [("dlrm", OPTIONS["dlrm"][2]), ("dcnv2", OPTIONS["dcnv2"][3])], ids=str
)
def test_graphs_of_small_tables_score_as_torch(
    name: str,
    options: dict[str, Any],
    table: tuple[str, dict[str, Any]],
    dataset: Dataset,
    tmp_path: Path,
):
    """The rounding is torch's, too: what is left between them is as little as ever."""
    member: Any = TABLES[table[0]]
    ranker, method = ranker_of(name, options, dataset), member(member.Config(**table[1]))

    small = shipped(learned(ranker, method, dataset, 1, Silent()), method)

    check_agreement(export_both(small, tmp_path), dataset)
    feeds = feeds_of(ranker, dataset)
    moved = np.abs(torch_scores(small, feeds) - torch_scores(ranker, feeds)).max()
    assert 0.0 < moved < 0.1


def check_agreement(exported: Exported, dataset: Dataset) -> None:
    """Torch, both graphs, with a request once and with it repeated."""
    ranker = exported.ranker
    feeds = feeds_of(ranker, dataset)
    once = one_request(feeds)
    repeated = repeat_request(once, ROWS)
    split, plain = GraphSession(exported.split), GraphSession(exported.plain)

    def agrees(session: GraphSession, given: Feeds, rows: Feeds) -> None:
        np.testing.assert_allclose(session.run(given), torch_scores(ranker, rows), atol=1e-6)

    agrees(split, feeds, feeds)
    agrees(plain, feeds, feeds)
    agrees(split, once, repeated)
    agrees(plain, once, repeated)


@pytest.mark.slow
@pytest.mark.parametrize("form", int8.FORMS)
def test_graphs_in_eight_bits_score_nearly_so(
    exported: Exported,
    form: str,
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """For a request given once as for one repeated, every layer of it in whole numbers."""
    monkeypatch.setattr(int8, "LEAST_INPUTS", 4)  # those of these rankers are narrow
    fp32, feeds = int8.load(exported.split), feeds_of(exported.ranker, dataset)
    once = one_request(feeds)

    model = int8.FORMS[form](fp32, feeds)

    onnx.checker.check_model(model)
    int8.save(model, tmp_path / "int8.onnx")
    eight, before = GraphSession(tmp_path / "int8.onnx"), GraphSession(exported.split).run(feeds)
    assert 0 < np.abs(eight.run(feeds) - before).max() < 0.01
    # A last bit of fp32 that is rounded otherwise for R = 1 can move a number by a whole step.
    np.testing.assert_allclose(eight.run(once), eight.run(repeat_request(once, ROWS)), atol=2e-3)
    kinds = optimised(model, tmp_path)
    whole = sum(kinds[k] for k in ("QGemm", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"))
    assert whole == len(int8.Draft(fp32).layers) > 2
