"""An exported bundle scores as the ranker does, and holds what serving needs and no more."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from compress import export as exporting
from compress.config import ExportConfig
from compress.costs import bytes_by_part
from compress.data.encode import Dataset, encode_frame
from compress.export import ExportError, export, prove, real_rows, torch_scores
from compress.graph import GraphSession, one_request, repeat_request
from compress.rankers import RANKERS
from compress.rankers.base import Ranker
from compress.shipping import shipped
from compress.tables import TABLES
from model_store.bundle import Bundle, open_bundle
from model_store.manifest import Card


def feeds_of(ranker: Ranker, dataset: Dataset, rows: int = 64):
    """Real rows as the ranker's inputs."""
    encoders = exporting.make_encoders(ranker.features, dataset.tokens)
    inputs = encode_frame(real_rows(dataset, rows), ranker.features, encoders)
    return {name: array for name, array in inputs.items() if array.shape[1]}


def test_the_manifest_names_the_inputs_that_have_columns(exported: Bundle, slimmed: Ranker):
    """Dtypes by kind, axes by side, widths by the kept features."""
    inputs = {spec.name: (spec.dtype, spec.shape) for spec in exported.manifest.inputs}

    assert inputs == {
        "request_numeric": ("float32", ("R", 2)),
        "request_ids": ("int32", ("R", 3)),
        "candidate_numeric": ("float32", ("N", 2)),
        "candidate_ids": ("int32", ("N", 4)),
    }


def test_a_sealed_bundle_opens_verified(exported: Bundle):
    """Every file is listed with its digest, the graph and the golden requests among them."""
    listed = {entry.path for entry in open_bundle(exported.root).manifest.files}

    assert {"model.onnx", "golden.json", "history.json", "items/ids.json"} <= listed
    assert exported.digest == open_bundle(exported.root).digest


def test_a_pruned_feature_leaves_no_vocabulary(exported: Bundle):
    """Its name stays in the manifest without a tensor, so that requests may go on sending it."""
    tags = next(f for f in exported.manifest.features if f.name == "i_tags")

    assert tags.pruned
    assert not (exported.root / "vocab" / "i_tags.json").exists()
    assert (exported.root / "vocab" / "i_genre.json").exists()


def test_the_table_lies_in_the_graph_once_and_is_looked_up_once_a_side(
    exported: Bundle, slimmed: Ranker
):
    """One Gather per side over one fused table, and no second copy of any weight."""
    graph = onnx.load(exported.root / "model.onnx").graph
    tables = [n.input[0] for n in graph.node if n.op_type == "Gather"]
    weights = sum(p.numel() * 4 for p in slimmed.parameters())
    size = (exported.root / "model.onnx").stat().st_size

    assert tables == ["ranker.tables.4.weight"] * 2
    assert weights < size < weights + 16_384


def test_the_graph_tells_nothing_of_the_machine_that_made_it(exported: Bundle):
    """No metadata, no stack traces, no paths; axes are named R and N."""
    raw = (exported.root / "model.onnx").read_bytes()
    model = onnx.load(exported.root / "model.onnx")

    assert b"/compress/" not in raw
    assert b"stack_trace" not in raw
    assert not model.graph.value_info
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "R"
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "N"


@pytest.mark.parametrize("candidates", [1, 2, 64])
def test_one_graph_serves_one_request_and_evaluates_many(
    exported: Bundle, slimmed: Ranker, dataset: Dataset, candidates: int
):
    """R = 1 and R = N give what torch gives row by row, for a single candidate too."""
    session = GraphSession(exported.root / "model.onnx")
    feeds = {k: v[:candidates] for k, v in feeds_of(slimmed, dataset).items()}
    once = one_request(feeds)
    repeated = repeat_request(once, candidates)

    np.testing.assert_allclose(session.run(feeds), torch_scores(slimmed, feeds), atol=1e-6)
    np.testing.assert_allclose(session.run(once), torch_scores(slimmed, repeated), atol=1e-6)


def test_a_graph_that_differs_from_torch_is_refused_with_the_difference(
    exported: Bundle, slimmed: Ranker, dataset: Dataset
):
    """The proof says how far off the worst score is; nothing is sealed then."""
    other = RANKERS["dlrm"](
        slimmed.features, slimmed.config, torch.Generator().manual_seed(9)
    ).eval()

    with pytest.raises(ExportError, match=r"split graph.* differs from torch by 0\.\d+"):
        prove(other, exported.root / "model.onnx", feeds_of(slimmed, dataset))


def test_scores_that_are_not_numbers_are_refused(
    slimmed: Ranker, dataset: Dataset, card: Card, tmp_path: Path
):
    """NaN equals nothing, so a broken ranker cannot pass the proof."""
    broken = RANKERS["dlrm"](slimmed.features, slimmed.config, torch.Generator())
    with torch.no_grad():
        broken.tables["4"].weight.fill_(float("nan"))

    with pytest.raises(ExportError, match="by inf"):
        export(broken, dataset, tmp_path, name="ctr", card=card, options=ExportConfig())
    assert not (tmp_path / "manifest.json").exists()


def test_weights_over_the_limit_lie_beside_the_graph(
    slimmed: Ranker, dataset: Dataset, tmp_path: Path
):
    """A graph with external data scores the same; protobuf's 2 GiB are no limit then."""
    path = tmp_path / "model.onnx"
    feeds = feeds_of(slimmed, dataset)

    exporting.export_split(slimmed, path, external_above=0)

    assert (tmp_path / "model.onnx.data").stat().st_size > path.stat().st_size / 2
    np.testing.assert_allclose(
        GraphSession(path).run(feeds), torch_scores(slimmed, feeds), atol=1e-6
    )
    parts = bytes_by_part(tmp_path)
    assert sum(parts.values()) == sum(p.stat().st_size for p in tmp_path.iterdir())


def test_the_catalogue_is_encoded_as_rows_are(exported: Bundle, dataset: Dataset):
    """Item i's tensors are what its raw values encode to; ids are strings."""
    table = exported.item_table()
    assert table is not None
    assert dataset.items is not None
    kept = [f for f in exported.manifest.features if f.side == "item" and not f.pruned]
    columns = encode_frame(dataset.items, kept, exported.encoders())

    assert table.ids == dataset.items["item_id"].to_list()
    np.testing.assert_array_equal(table.tensors["candidate_ids"], columns["candidate_ids"])
    np.testing.assert_array_equal(table.tensors["candidate_numeric"], columns["candidate_numeric"])
    assert table.values is not None
    assert table.values["i_genre"] == dataset.items["i_genre"].to_list()
    assert "i_tags" not in table.values


def test_golden_requests_are_real_rows_with_their_scores(exported: Bundle, dataset: Dataset):
    """Users are of the validation part; the last request leaves features to the catalogue."""
    cases = exported.golden()
    first = next(iter(dataset.raw("validation"))).head(1)

    assert len(cases) == 3
    assert cases[0].request["user"]["u_segment"] == first["u_segment"][0]
    assert cases[0].request["context"]["c_hour"] == first["c_hour"][0]
    assert "i_tags" in cases[0].request["candidates"]["features"]
    assert "features" not in cases[-1].request["candidates"]
    assert all(0.0 < score < 1.0 for case in cases for score in case.scores)


def test_golden_requests_repeat_no_candidate(exported: Bundle):
    """Of a repeated candidate only the first counts in serving, so scores would not align."""
    for case in exported.golden():
        ids = case.request["candidates"]["ids"]
        assert len(set(ids)) == len(ids) == len(case.scores)


def test_a_packed_bundle_means_the_same_in_fewer_bytes(
    exported: Bundle, slimmed: Ranker, dataset: Dataset, card: Card, tmp_path: Path
):
    """Rows that moved moved with their tokens: the same requests score the same."""
    packed = export(
        slimmed,
        dataset,
        tmp_path / "packed",
        name="ctr",
        card=card,
        options=ExportConfig(golden_requests=3, golden_candidates=10),
        history={"train": [{"step": 0, "logloss": 0.7}]},
        few_bytes=True,
    )

    names = {entry.path for entry in packed.manifest.files}
    assert {"golden.json.gz", "items/ids.json.gz", "items/values.json.gz"} <= names
    assert "history.json.gz" in names
    coded = [f.name for f in packed.manifest.features if "numbers" in f"{f.encoding!r}"]
    assert coded
    for feature in packed.manifest.features:
        assert sorted(packed.tokens(feature.name) or []) == sorted(
            exported.tokens(feature.name) or []
        )
    assert packed.item_table().values == exported.item_table().values
    assert packed.item_table().ids == exported.item_table().ids
    rows = real_rows(dataset, 64)
    scores = [
        GraphSession(bundle.path("model.onnx")).run(
            exporting.graph_inputs(rows, bundle.manifest.features, bundle.encoders())
        )
        for bundle in (packed, exported)
    ]
    np.testing.assert_array_equal(*scores)
    for ours, theirs in zip(packed.golden(), exported.golden(), strict=True):
        assert ours.request == theirs.request
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-7)
    assert slimmed.features == exported.manifest.features
    sizes = [sum(bytes_by_part(bundle.root).values()) for bundle in (packed, exported)]
    assert sizes[0] < 0.9 * sizes[1]


def test_the_manifest_says_what_tables_are_kept_in(
    slimmed: Ranker, dataset: Dataset, card: Card, tmp_path: Path
):
    """In words, beside the digest: whoever compares scores should know."""
    method: Any = TABLES["int8"]
    small = shipped(slimmed, method(method.Config()))

    bundle = export(small, dataset, tmp_path, name="ctr", card=card, options=ExportConfig())

    assert bundle.manifest.numerics == "fp32 (tables kept in int8)"


def test_history_is_strict_json(exported: Bundle):
    """What is no number is null: any reader can parse it."""
    text = (exported.root / "history.json").read_text()

    assert "NaN" not in text
    assert json.loads(text)["train"]["train_loss"][0] is None
