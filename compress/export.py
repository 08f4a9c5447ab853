"""A trained ranker → a sealed bundle: split graph, vocabularies, catalogue, golden requests.

The graph is the ranker's `forward_split` and a sigmoid: request-side inputs have R rows, R = 1 in
serving (computed once, broadcast as late as possible) or R = N in evaluation; one graph does both.
Before a bundle is sealed, real rows must score alike in torch, in the split graph both ways and in
the plain graph.
"""

import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import polars as pl
import torch
from numpy.typing import NDArray
from torch import nn

from compress.config import CompressError, ExportConfig
from compress.curves import HISTORY_FILE, PACKED_HISTORY_FILE, Curve, write_curves
from compress.data.base import Part, Schema
from compress.data.encode import Dataset, encode_frame
from compress.graph import (
    EXTERNAL_ABOVE_BYTES,
    OUTPUT,
    Array,
    Feeds,
    GraphSession,
    input_specs,
    is_numeric,
    is_request,
    one_request,
    pack,
    repeat_request,
)
from compress.rankers.base import Ranker
from compress.rankers.sides import Place
from compress.rankers.structure import Inputs
from compress.tables import ShippedTable, reordered
from compress.vocabularies import Vocabulary, as_json, in_few_bytes
from model_store.bundle import (
    GOLDEN_FILE,
    GRAPH_FILE,
    ITEM_IDS_FILE,
    ITEM_VALUES_FILE,
    Bundle,
    item_tensor_file,
    seal,
)
from model_store.encoding import FIRST, Encoder, make_encoder, token
from model_store.manifest import (
    Card,
    FeatureSpec,
    InputName,
    ItemTableSpec,
    Manifest,
    TensorSpec,
    VocabularyEncoding,
)
from model_store.packing import GZIP, packed

TOLERANCE: Final = 1e-5


class ExportError(CompressError):
    """The ranker cannot be exported faithfully; the text says by how much it misses."""


class _Graph(nn.Module):
    """What is traced: only the inputs that exist, probabilities out."""

    def __init__(self, ranker: Ranker, names: Sequence[InputName], *, split: bool) -> None:
        super().__init__()
        self.ranker, self.names, self.split = ranker, names, split

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        inputs = _inputs(dict(zip(self.names, tensors, strict=True)))
        logits = self.ranker.forward_split(inputs) if self.split else self.ranker(inputs)
        return torch.sigmoid(logits)


def _inputs(given: Mapping[InputName, torch.Tensor]) -> Inputs:
    def tensor(name: InputName) -> torch.Tensor:
        dtype = torch.float32 if is_numeric(name) else torch.int32
        return given.get(name, torch.zeros((1, 0), dtype=dtype))

    return Inputs(
        request_numeric=tensor("request_numeric"),
        request_ids=tensor("request_ids"),
        candidate_numeric=tensor("candidate_numeric"),
        candidate_ids=tensor("candidate_ids"),
    )


def export_split(ranker: Ranker, path: Path, *, external_above: int = EXTERNAL_ABOVE_BYTES) -> None:
    """Write the graph that serves: the request side computed once."""
    _write_graph(ranker, path, split=True, external_above=external_above)


def export_plain(ranker: Ranker, path: Path, *, external_above: int = EXTERNAL_ABOVE_BYTES) -> None:
    """Write the graph that computes every row in full, for proofs and benchmarks (R = N)."""
    _write_graph(ranker, path, split=False, external_above=external_above)


def _write_graph(ranker: Ranker, path: Path, *, split: bool, external_above: int) -> None:
    specs = input_specs(ranker.features)
    if all(map(is_request, specs)):
        raise ExportError("the ranker keeps no feature of the candidates: it cannot rank them")
    rows = torch.export.Dim("N")
    program = _quietly_traced(
        _Graph(ranker.eval(), list(specs), split=split),
        tuple(_example(spec) for spec in specs.values()),
        list(specs),
        (tuple({0: rows} for _ in specs),),
    )
    weights = sum(t.numel() * t.element_size() for t in ranker.state_dict().values())
    program.save(str(path), external_data=weights > external_above)
    _settle(path, list(specs.values()))


def _example(spec: TensorSpec) -> torch.Tensor:
    # R and N are traced as one axis of 7 rows: then no row count is burnt in, and what broadcasts
    # for R = 1 does so by ONNX's own rules.
    shape = (7, int(spec.shape[1]))
    if spec.dtype == "float32":
        return torch.zeros(shape, dtype=torch.float32)
    return torch.zeros(shape, dtype=torch.int32)


def _quietly_traced(
    graph: nn.Module,
    example: tuple[torch.Tensor, ...],
    names: Sequence[str],
    axes: tuple[Any, ...],
) -> torch.onnx.ONNXProgram:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # The exporter warns of its own internals, and of one axis having two names.
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph,
                example,
                dynamo=True,
                verbose=False,
                input_names=list(names),
                output_names=[OUTPUT],
                dynamic_shapes=axes,
            )
    finally:
        logger.setLevel(level)
    if program is None:
        raise ExportError("the exporter returned no graph")
    return program


def _settle(path: Path, specs: Sequence[TensorSpec]) -> None:
    """Name the axes R and N, and drop what tracing left behind.

    Shapes inside the graph were inferred for R = N and would be wrong for R = 1; they also stop
    quantisers. Node metadata holds the paths of the machine that exported.
    """
    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    axes = {spec.name: spec.shape[0] for spec in specs} | {OUTPUT: "N"}
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = str(axes[value.name])
    del graph.value_info[:]
    del graph.metadata_props[:]
    del model.metadata_props[:]
    for node in graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    path.write_bytes(model.SerializeToString())


def prove(ranker: Ranker, split: Path, feeds: Feeds) -> float:
    """Compare torch, the split graph (R = N and R = 1) and the plain graph on real rows.

    Returns:
        The largest difference of any two scores.

    Raises:
        ExportError: it is over ``TOLERANCE``.
    """
    with tempfile.TemporaryDirectory() as folder:
        plain_path = Path(folder) / "plain.onnx"
        export_plain(ranker, plain_path)
        plain = GraphSession(plain_path)
        serving = GraphSession(split)
        rows = len(next(iter(feeds.values())))
        once = one_request(feeds)
        repeated = repeat_request(once, rows)
        differences = {
            "plain graph": _difference(plain.run(feeds), torch_scores(ranker, feeds)),
            "plain graph, one request": _difference(
                plain.run(repeated), torch_scores(ranker, repeated)
            ),
            "split graph, R = N": _difference(serving.run(feeds), torch_scores(ranker, feeds)),
            "split graph, R = 1": _difference(serving.run(once), torch_scores(ranker, repeated)),
        }
    worst = max(differences, key=lambda name: differences[name])
    if differences[worst] > TOLERANCE:
        raise ExportError(
            f"{worst} differs from torch by {differences[worst]:.3g} in a score; "
            f"at most {TOLERANCE:g} is allowed, so no bundle was sealed"
        )
    return differences[worst]


def _difference(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    if got.shape != expected.shape:
        return float("inf")
    largest = float(np.max(np.abs(got - expected), initial=0.0))
    return largest if np.isfinite(largest) else float("inf")


def torch_scores(ranker: Ranker, feeds: Feeds) -> NDArray[np.float32]:
    """The plain ranker's probabilities, (N,)."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in feeds.items()}
    with torch.inference_mode():
        scores: NDArray[np.float32] = torch.sigmoid(ranker.eval()(_inputs(tensors))).numpy()
    return scores


def export(
    ranker: Ranker,
    dataset: Dataset,
    folder: Path,
    *,
    name: str,
    card: Card,
    options: ExportConfig,
    history: Mapping[str, Curve] | None = None,
    few_bytes: bool = False,
) -> Bundle:
    """Write and seal a ranker's bundle.

    Args:
        ranker: trained, dense or slim; its features say which columns are left.
        dataset: gives vocabularies, catalogue and the real rows of proof and golden requests.
        folder: is created; must not hold other files.
        name: the bundle's name in a store.
        card: the compression card so far; `seal_with_costs` replaces it once figures are in.
        options: sizes of what is written.
        history: the run's curves, kept for `report`.
        few_bytes: whether vocabularies and JSON are packed; else they lie open to any reader.

    Raises:
        ExportError: the graph does not reproduce torch's scores.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write = _write_packed if few_bytes else _write_json
    vocabularies = _vocabularies(ranker.features, dataset.tokens, few_bytes=few_bytes)
    ranker = with_vocabularies(ranker, vocabularies)
    encoders = make_encoders(ranker.features, {n: v.tokens for n, v in vocabularies.items()})
    rows = real_rows(dataset, options.golden_candidates * options.golden_requests)
    feeds = graph_inputs(rows, ranker.features, encoders)

    export_split(ranker, folder / GRAPH_FILE)
    prove(ranker, folder / GRAPH_FILE, feeds)
    for vocabulary in vocabularies.values():
        _write(folder / vocabulary.encoding.file, vocabulary.raw)
    items = _write_items(folder, ranker.features, encoders, dataset, write)
    requests = golden_requests(dataset, ranker.features, rows, options.golden_candidates)
    cases = [
        {"request": request, "scores": golden_scores(ranker, encoders, request, dataset)}
        for request in requests
    ]
    golden = write(folder, GOLDEN_FILE, cases)
    if history is not None:
        write_curves(folder / (PACKED_HISTORY_FILE if few_bytes else HISTORY_FILE), history)

    return seal(
        folder,
        Manifest(
            name=name,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            graph=GRAPH_FILE,
            scores="probability",
            numerics=_numerics(ranker),
            flops=sum(ranker.flops().values()),
            inputs=tuple(input_specs(ranker.features).values()),
            outputs=(TensorSpec(name=OUTPUT, dtype="float32", shape=("N",)),),
            features=ranker.features,
            item_id=dataset.schema.item_id,
            items=items,
            data=dataset.schema.data,
            golden=golden,
            card=card,
        ),
    )


def click_card(bundle: Bundle) -> Card:
    """The card of a click-through ranker's bundle.

    Raises:
        ExportError: the bundle holds a session ranker.
    """
    card = bundle.manifest.card
    if not isinstance(card, Card):
        raise ExportError(f"{bundle.root}: expected a click-through ranker, found a session ranker")
    return card


def make_encoders(
    features: Sequence[FeatureSpec], tokens: Mapping[str, Sequence[str]]
) -> dict[str, Encoder]:
    """An encoder for every feature that was kept."""
    return {f.name: make_encoder(f, tokens.get(f.name)) for f in features if not f.pruned}


def graph_inputs(
    frame: pl.DataFrame, features: Sequence[FeatureSpec], encoders: Mapping[str, Encoder]
) -> dict[InputName, Array]:
    """Encode raw rows as a graph's inputs; what a frame does not have is missing in all rows."""
    absent = {f.column for f in features if not f.pruned} - set(frame.columns)
    whole = frame.with_columns(pl.lit(None, pl.String).alias(column) for column in absent)
    inputs = encode_frame(whole, features, encoders)
    return {name: array for name, array in inputs.items() if array.shape[1]}


def real_rows(dataset: Dataset, count: int) -> pl.DataFrame:
    """The first raw rows of the validation part (of the training part if that is empty)."""
    part: Part = "validation" if dataset.rows["validation"] else "train"
    frames: list[pl.DataFrame] = []
    for frame in dataset.raw(part):
        frames.append(frame.head(count - sum(map(len, frames))))
        if sum(map(len, frames)) >= count:
            break
    return pl.concat(frames)


def _numerics(ranker: Ranker) -> str:
    kept_as = sorted({t.kept_as for t in ranker.tables.modules() if isinstance(t, ShippedTable)})
    return f"fp32 (tables kept in {', '.join(kept_as)})" if kept_as else "fp32"


def _vocabularies(
    features: Sequence[FeatureSpec], tokens: Mapping[str, Sequence[str]], *, few_bytes: bool
) -> dict[str, Vocabulary]:
    make = in_few_bytes if few_bytes else as_json
    return {
        feature.name: make(feature.encoding, tokens[feature.name])
        for feature in features
        if not feature.pruned and isinstance(feature.encoding, VocabularyEncoding)
    }


def with_vocabularies(ranker: Ranker, vocabularies: Mapping[str, Vocabulary]) -> Ranker:
    """The ranker with its tables' rows in the order of the vocabularies, and its features so."""
    orders = {name: v.order for name, v in vocabularies.items() if v.order is not None}

    def make(table: nn.Module, places: Sequence[Place]) -> nn.Module:
        moved = {place.rows.start: orders.get(place.feature.name) for place in places}
        if all(order is None for order in moved.values()):
            return table
        rows = torch.arange(max(place.rows.stop for place in places))
        for start, order in moved.items():
            if order is not None:
                first = start + FIRST
                rows[first : first + len(order)] = first + torch.from_numpy(order)
        return reordered(table, rows)

    found = ranker.with_tables(make)
    found.features = tuple(
        f.model_copy(update={"encoding": vocabularies[f.name].encoding})
        if f.name in vocabularies
        else f
        for f in ranker.features
    )
    return found


def _write_items(
    folder: Path,
    features: Sequence[FeatureSpec],
    encoders: Mapping[str, Encoder],
    dataset: Dataset,
    write: Callable[[Path, str, Any], str],
) -> ItemTableSpec | None:
    catalogue, key = dataset.items, id_column(dataset.schema)
    if catalogue is None or key is None:
        return None
    ids = [text for text in map(token, catalogue[key]) if text is not None]
    if len(set(ids)) != len(catalogue):
        raise ExportError(f"the catalogue's {key!r} is missing or repeated in some rows")
    kept = [f for f in features if not f.request_side and not f.pruned]
    packed = graph_inputs(catalogue, kept, encoders)
    for name, tensor in packed.items():
        path = folder / item_tensor_file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, tensor, allow_pickle=False)
    values = {f.name: _column(catalogue, f) for f in kept if f.column in catalogue.columns}
    return ItemTableSpec(
        ids=write(folder, ITEM_IDS_FILE, ids),
        tensors={name: item_tensor_file(name) for name in packed},
        items=len(ids),
        values=write(folder, ITEM_VALUES_FILE, values),
    )


def id_column(schema: Schema) -> str | None:
    """The data column that holds the candidate's own id."""
    return next((c.column for c in schema.columns if c.name == schema.item_id), None)


def golden_requests(
    dataset: Dataset, features: Sequence[FeatureSpec], rows: pl.DataFrame, candidates: int
) -> list[dict[str, Any]]:
    """Requests made of real rows, pruned features included as callers go on sending them.

    Each takes the user and context of its first row. All bring the candidates' features, but the
    last one, if there is a catalogue: it leaves them to be joined by id.
    """
    requests = []
    for start in range(0, len(rows), candidates):
        chunk = rows.slice(start, candidates)
        key = id_column(dataset.schema)
        if key is not None:
            chunk = chunk.drop_nulls(key).unique(key, keep="first", maintain_order=True)
        requests.append(_golden_request(features, chunk, key))
    if dataset.items is not None:
        requests[-1]["candidates"] = {"ids": requests[-1]["candidates"]["ids"]}
    return requests


def _golden_request(
    features: Sequence[FeatureSpec], rows: pl.DataFrame, key: str | None
) -> dict[str, Any]:
    first = rows.head(1)
    ids = [f"row-{i}" for i in range(len(rows))] if key is None else [*map(token, rows[key])]
    brought = [f for f in features if not f.request_side and f.column != key]
    return {
        "user": {f.name: _column(first, f)[0] for f in features if f.side == "user"},
        "context": {f.name: _column(first, f)[0] for f in features if f.side == "context"},
        "candidates": {"ids": ids, "features": {f.name: _column(rows, f) for f in brought}},
    }


def _column(frame: pl.DataFrame, feature: FeatureSpec) -> list[Any]:
    # As JSON carries them: a number that is none is a missing one.
    values = frame[feature.column]
    return (values.fill_nan(None) if values.dtype.is_float() else values).to_list()


def golden_scores(
    ranker: Ranker,
    encoders: Mapping[str, Encoder],
    request: Mapping[str, Any],
    dataset: Dataset,
) -> list[float]:
    """What the plain torch ranker answers to a golden request."""
    feeds = golden_inputs(ranker.features, encoders, request, dataset)
    repeated = repeat_request(feeds, len(request["candidates"]["ids"]))
    return [float(score) for score in torch_scores(ranker, repeated)]


def golden_inputs(
    features: Sequence[FeatureSpec],
    encoders: Mapping[str, Encoder],
    request: Mapping[str, Any],
    dataset: Dataset,
) -> Feeds:
    """A golden request as a graph's inputs, R = 1."""
    given = _with_catalogue(dataset, features, request["candidates"])
    asked = {**request["user"], **request["context"]}
    columns = {
        name: encoder.encode([asked[name]] if encoder.spec.request_side else given[name])
        for name, encoder in encoders.items()
    }
    return pack(features, columns)


def _with_catalogue(
    dataset: Dataset, features: Sequence[FeatureSpec], candidates: Mapping[str, Any]
) -> dict[str, list[Any]]:
    """Item features as serving takes them: what is null or absent comes from the catalogue.

    All are missing of an item that the catalogue does not hold.
    """
    ids, brought = candidates["ids"], dict(candidates.get("features", {}))
    catalogue, key = dataset.items, id_column(dataset.schema)
    if catalogue is None or key is None:
        return brought | {str(dataset.schema.item_id): ids}
    rows = {token(value): row for row, value in enumerate(catalogue[key])}
    index = pl.Series([rows.get(text) for text in ids], dtype=pl.Int64)
    held = catalogue.select(pl.all().gather(index))
    nothing = [None] * len(ids)
    joined = {}
    for f in features:
        if not f.request_side:
            stored = _column(held, f) if f.column in held.columns else nothing
            pairs = zip(brought.get(f.name, nothing), stored, strict=True)
            joined[f.name] = [old if new is None else new for new, old in pairs]
    return joined | {str(dataset.schema.item_id): ids}


def _write_json(folder: Path, name: str, content: Any) -> str:
    _write(folder / name, _as_json(content))
    return name


def _write_packed(folder: Path, name: str, content: Any) -> str:
    _write(folder / (name + GZIP), packed(_as_json(content)))
    return name + GZIP


def _as_json(content: Any) -> bytes:
    return (json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _write(path: Path, raw: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
