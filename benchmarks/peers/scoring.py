"""What every peer's handler calls: a parsed body in, the ranking out.

It runs in the peers' environments, which hold numpy, pydantic, ONNX Runtime and orjson, with this
repository's `model_store` for the encoders. Bodies carry raw values (tokens and counts), as callers
have them; so all peers turn them into rows by the same code, column by column, and what differs is
the server around it. Slimrank has compiled loops of its own for that. Numbers of all columns are
transformed at once, and answers hold numpy's arrays, which orjson writes as they are.
"""

import gc
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import numpy as np
import onnxruntime as ort
import orjson
from numpy.typing import NDArray

from model_store.bundle import Bundle, open_bundle
from model_store.encoding import CategoricalEncoder, Encoder, transformed
from model_store.manifest import FeatureSpec, NumericEncoding

MODELS: Final = "PEERS_MODELS"
Values = Mapping[str, Any]


class Model(NamedTuple):
    """A graph to serve.

    Attributes:
        bundle: the folder that holds encoders, and the graph where ``graph`` is None.
        whole_rows: the graph takes the request side once a candidate, instead of once.
    """

    bundle: str
    graph: str | None
    whole_rows: bool


def write_models(path: Path, models: Mapping[str, Model]) -> None:
    """Write what a server shall serve, by the name that bodies call it."""
    path.write_text(json.dumps({name: model._asdict() for name, model in models.items()}))


def load_rankers() -> dict[str, "Ranker"]:
    """The rankers that the starter of this server asks for."""
    named = os.environ[MODELS]  # noqa: TID251 - some servers take no arguments of a handler's own
    found = json.loads(Path(named).read_text())
    rankers = {name: make_ranker(Model(**fields)) for name, fields in found.items()}
    # As Slimrank does once it has loaded: a full collection walks all vocabularies otherwise.
    gc.collect()
    gc.freeze()
    return rankers


def make_ranker(model: Model) -> "Ranker":
    """A ranker over a bundle, or over another graph with that bundle's features."""
    bundle = open_bundle(Path(model.bundle), verify=False)
    graph = bundle.path(bundle.manifest.graph) if model.graph is None else Path(model.graph)
    return Ranker(bundle, _session(graph), whole_rows=model.whole_rows)


def _session(graph: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # the server has one core
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


class _Numbers:
    """The numeric features of one input, transformed together."""

    def __init__(self, specs: Sequence[FeatureSpec]) -> None:
        pairs = [(s, s.encoding) for s in specs if isinstance(s.encoding, NumericEncoding)]
        self.names = [spec.name for spec, _ in pairs]
        self._at = [spec.start for spec, _ in pairs]
        self._default = np.array([encoding.default for _, encoding in pairs])
        self._groups = [
            (kind, np.array([i for i, (_, e) in enumerate(pairs) if e.transform == kind], np.intp))
            for kind in ("identity", "log1p", "standardize")
        ]
        self._mean = np.array([encoding.mean for _, encoding in pairs])
        self._scale = np.array([encoding.scale for _, encoding in pairs])

    def encode(self, rows: Sequence[Values]) -> NDArray[np.float32]:
        """(N, columns) of values by name; None is missing."""
        raw = np.array([[row.get(name) for name in self.names] for row in rows], np.float64)
        raw = np.where(np.isnan(raw), self._default, raw)
        out = np.empty(raw.shape, np.float32)
        for kind, at in self._groups:
            if at.size:
                found = transformed(raw[:, at], cast("Any", kind), self._mean[at], self._scale[at])
                out[:, np.take(self._at, at)] = found
        return out


class Ranker:
    """A graph with its features' encoders."""

    def __init__(self, bundle: Bundle, session: ort.InferenceSession, *, whole_rows: bool) -> None:
        encoders = bundle.encoders()
        self._session, self._whole_rows = session, whole_rows
        self._item_id = bundle.manifest.item_id
        self._widths = {spec.name: int(spec.shape[1]) for spec in bundle.manifest.inputs}
        self._numbers: dict[str, _Numbers] = {}
        self._tokens: dict[str, list[Encoder]] = {}
        for name in self._widths:
            held = [encoder for encoder in encoders.values() if encoder.spec.tensor == name]
            if name.endswith("_numeric"):
                self._numbers[name] = _Numbers([encoder.spec for encoder in held])
            else:
                self._tokens[name] = held

    def rank(
        self, request: Values, ids: Sequence[str], features: Sequence[Values]
    ) -> dict[str, Any]:
        """Rank candidates.

        Args:
            request: the features of the request side, by name.
            ids: of the candidates.
            features: of each candidate, by name.

        Returns:
            ``ids`` and ``scores``, best first.

        Raises:
            BadValue, ValueError: a value cannot be encoded.
        """
        feeds = {name: self._tensor(name, request, ids, features) for name in self._widths}
        scores = self._session.run(["score"], feeds)[0].reshape(-1)
        order = np.argsort(-scores, kind="stable")
        return {"ids": [ids[place] for place in order.tolist()], "scores": scores[order]}

    def _tensor(
        self, name: str, request: Values, ids: Sequence[str], features: Sequence[Values]
    ) -> NDArray[Any]:
        if name.startswith("candidate_"):
            if name in self._numbers:
                return self._numbers[name].encode(features)
            return self._columns(name, ids, features)
        row = (
            self._numbers[name].encode([request])
            if name in self._numbers
            else self._one_row(name, request)
        )
        return np.repeat(row, len(ids), axis=0) if self._whole_rows else row

    def _columns(
        self, name: str, ids: Sequence[str], features: Sequence[Values]
    ) -> NDArray[np.int32]:
        out = np.empty((len(ids), self._widths[name]), np.int32)
        for encoder in self._tokens[name]:
            spec = encoder.spec
            column: Sequence[Any] = [row.get(spec.name) for row in features]
            if spec.name == self._item_id:
                pairs = zip(ids, column, strict=True)
                column = [own if given is None else given for own, given in pairs]
            out[:, spec.start : spec.start + spec.length] = encoder.encode(column)
        return out

    def _one_row(self, name: str, request: Values) -> NDArray[np.int32]:
        row = [0] * self._widths[name]
        for encoder in self._tokens[name]:
            spec, value = encoder.spec, request.get(encoder.spec.name)
            if isinstance(encoder, CategoricalEncoder) and spec.kind != "multi":
                row[spec.start] = encoder.row(value)  # without the cost of arrays
            else:
                row[spec.start : spec.start + spec.length] = encoder.encode([value])[0].tolist()
        return np.array([row], np.int32)


def rank_dict(rankers: Mapping[str, Ranker], body: Values) -> bytes:
    """A parsed body, as dicts and lists, to the answer's JSON."""
    candidates = body["candidates"]
    return as_json(
        rankers[body["model"]].rank(
            {**body["user"], **body["context"]},
            [candidate["id"] for candidate in candidates],
            [candidate["features"] for candidate in candidates],
        )
    )


def as_json(ranking: Mapping[str, Any]) -> bytes:
    """The answer's JSON; scores as float32 has them."""
    return orjson.dumps(ranking, option=orjson.OPT_SERIALIZE_NUMPY)
