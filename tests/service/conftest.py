"""Real little bundles: a logistic ranker whose score is arithmetic that a test can do by hand."""

import asyncio
import json
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import httpx2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_store.bundle import seal
from model_store.encoding import make_encoder
from model_store.manifest import (
    BucketEncoding,
    Card,
    DataSpec,
    FeatureSpec,
    ItemTableSpec,
    Manifest,
    NumericEncoding,
    Resources,
    TensorSpec,
    VocabularyEncoding,
)
from model_store.store import Store, open_store
from service import kernels
from service.app import Service, create_app
from service.settings import Settings

ways = pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "python"])

OCCUPATIONS = ["doctor", "technician"]
ITEMS = [f"i{n}" for n in range(1, 6)]
GENRES = ["comedy", "drama", "horror"]
PRICES = [1.0, 4.0, 9.0, 16.0, 25.0]
ITEM_GENRES = [["comedy"], ["drama"], ["comedy", "horror"], [], ["horror"]]
FLOPS = 20

# Rows: 0 out of vocabulary, 1 missing, 2.. known.
OCCUPATION_WEIGHTS = [0.0, 0.01, 0.1, 0.2]
ITEM_WEIGHTS = [-1.0, 0.0, 0.5, 0.1, 0.3, 0.2, 0.4]
GENRE_WEIGHTS = [0.0, 0.0, 0.05, -0.05, 0.02]
DECADE_WEIGHTS = [0.0, 0.0, 0.03, 0.06]

FEATURES = (
    FeatureSpec(
        name="age", kind="numeric", side="user", column="age",
        encoding=NumericEncoding(default=30.0), tensor="request_numeric", start=0,
    ),
    FeatureSpec(
        name="hour", kind="numeric", side="context", column="hour",
        encoding=NumericEncoding(transform="standardize", mean=12.0, scale=6.0, default=12.0),
        tensor="request_numeric", start=1,
    ),
    FeatureSpec(
        name="occupation", kind="categorical", side="user", column="occupation",
        encoding=VocabularyEncoding(file="vocab/occupation.json", rows=4),
        tensor="request_ids", start=0,
    ),
    FeatureSpec(
        name="decade", kind="numeric", side="context", column="decade",
        encoding=BucketEncoding(edges=(1990.0,)), tensor="request_ids", start=1,
    ),
    FeatureSpec(
        name="zip", kind="categorical", side="user", column="zip",
        encoding=VocabularyEncoding(file="vocab/zip.json", rows=9),
    ),
    FeatureSpec(
        name="price", kind="numeric", side="item", column="price",
        encoding=NumericEncoding(default=4.0), tensor="candidate_numeric", start=0,
    ),
    FeatureSpec(
        name="item_id", kind="categorical", side="item", column="item_id",
        encoding=VocabularyEncoding(file="vocab/item_id.json", rows=7),
        tensor="candidate_ids", start=0,
    ),
    FeatureSpec(
        name="genres", kind="multi", side="item", column="genres", length=2,
        encoding=VocabularyEncoding(file="vocab/genres.json", rows=5),
        tensor="candidate_ids", start=1,
    ),
    FeatureSpec(
        name="year", kind="numeric", side="item", column="year", encoding=NumericEncoding(),
    ),
)  # fmt: skip
# The same columns without a list of tokens: two genres by name.
FLAT_FEATURES = (
    *(spec for spec in FEATURES if spec.name != "genres"),
    *(
        FeatureSpec(
            name=name, kind="categorical", side="item", column=name,
            encoding=VocabularyEncoding(file="vocab/genres.json", rows=5),
            tensor="candidate_ids", start=start,
        )
        for start, name in enumerate(("genre", "mood"), start=1)
    ),
)  # fmt: skip
# The same without a bucket on the request side.
PLAIN_FEATURES = (
    *(spec for spec in FLAT_FEATURES if spec.name != "decade"),
    FeatureSpec(
        name="decade", kind="categorical", side="context", column="decade",
        encoding=VocabularyEncoding(file="vocab/occupation.json", rows=4),
        tensor="request_ids", start=1,
    ),
)  # fmt: skip
VOCABULARIES = {"occupation": OCCUPATIONS, "item_id": ITEMS, "genres": GENRES}


@contextmanager
def by(compiled: bool) -> Iterator[None]:
    """As if there were a compiler, or none."""
    with mock.patch.object(kernels, "COMPILED", compiled and kernels.COMPILED):
        yield


def sigmoid(x: float) -> float:
    """The logistic function."""
    return 1.0 / (1.0 + math.exp(-x))


def request_logit(
    age: float = 30.0, hour: float = 12.0, occupation: int = 1, decade: int = 1
) -> float:
    """What the request side adds."""
    return (
        0.01 * age
        + 0.1 * (hour - 12.0) / 6.0
        + OCCUPATION_WEIGHTS[occupation]
        + DECADE_WEIGHTS[decade]
    )


def item_logit(price: float, item: int, genres: Sequence[int] = ()) -> float:
    """What a candidate adds."""
    return -0.1 * math.sqrt(price) + ITEM_WEIGHTS[item] + sum(GENRE_WEIGHTS[g] for g in genres)


def known_logit(item: str) -> float:
    """What an item of the catalogue adds."""
    row = ITEMS.index(item)
    return item_logit(PRICES[row], row + 2, [GENRES.index(g) + 2 for g in ITEM_GENRES[row]])


COLD_LOGIT = item_logit(4.0, 0)


def _graph(path: Path, bias: float) -> None:
    def constant(name: str, value: Any, dtype: Any) -> onnx.TensorProto:
        return numpy_helper.from_array(np.asarray(value, dtype=dtype), name)

    items, genres = len(ITEM_WEIGHTS), len(GENRE_WEIGHTS)
    table = [*ITEM_WEIGHTS, *GENRE_WEIGHTS]
    occupations = [*OCCUPATION_WEIGHTS, *DECADE_WEIGHTS]
    nodes = [
        helper.make_node("MatMul", ["request_numeric", "w_request"], ["r_numeric"]),
        helper.make_node("Add", ["request_ids", "request_offsets"], ["r_rows"]),
        helper.make_node("Gather", ["request_table", "r_rows"], ["r_terms"]),
        helper.make_node("ReduceSum", ["r_terms", "axis"], ["r_sum"], keepdims=1),
        helper.make_node("Add", ["r_numeric", "r_sum"], ["request_part"]),
        helper.make_node("Sqrt", ["candidate_numeric"], ["root"]),
        helper.make_node("MatMul", ["root", "w_candidate"], ["c_numeric"]),
        helper.make_node("Add", ["candidate_ids", "candidate_offsets"], ["c_rows"]),
        helper.make_node("Gather", ["candidate_table", "c_rows"], ["c_terms"]),
        helper.make_node("ReduceSum", ["c_terms", "axis"], ["c_sum"], keepdims=1),
        helper.make_node("Add", ["c_numeric", "c_sum"], ["candidate_part"]),
        helper.make_node("Add", ["request_part", "candidate_part"], ["both"]),
        helper.make_node("Add", ["both", "bias"], ["logit"]),
        helper.make_node("Reshape", ["logit", "flat"], ["flat_logit"]),
        helper.make_node("Sigmoid", ["flat_logit"], ["score"]),
    ]
    inputs = [
        helper.make_tensor_value_info("request_numeric", TensorProto.FLOAT, ["R", 2]),
        helper.make_tensor_value_info("request_ids", TensorProto.INT32, ["R", 2]),
        helper.make_tensor_value_info("candidate_numeric", TensorProto.FLOAT, ["N", 1]),
        helper.make_tensor_value_info("candidate_ids", TensorProto.INT32, ["N", 3]),
    ]
    constants = [
        constant("w_request", [[0.01], [0.1]], np.float32),
        constant("w_candidate", [[-0.1]], np.float32),
        constant("request_table", occupations, np.float32),
        constant("request_offsets", [0, len(OCCUPATION_WEIGHTS)], np.int32),
        constant("candidate_table", table, np.float32),
        constant("candidate_offsets", [0, items, items], np.int32),
        constant("bias", [bias], np.float32),
        constant("axis", [1], np.int64),
        constant("flat", [-1], np.int64),
    ]
    output = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"])
    graph = helper.make_graph(nodes, "logistic", inputs, [output], constants)
    assert genres == len(GENRE_WEIGHTS)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def write_bundle(
    folder: Path,
    *,
    name: str = "ctr",
    bias: float = 0.0,
    catalogue: bool = True,
    values: bool = True,
    golden_shift: float = 0.0,
    golden_tolerance: float = 0.0,
    flops: int = FLOPS,
    features: Sequence[FeatureSpec] = FEATURES,
) -> Path:
    """A sealed bundle of the logistic ranker in ``folder``."""
    for part in ("vocab", "items"):
        (folder / part).mkdir(parents=True)
    _graph(folder / "model.onnx", bias)
    for feature, tokens in VOCABULARIES.items():
        (folder / f"vocab/{feature}.json").write_text(json.dumps(tokens))
    spec = _write_items(folder, values=values) if catalogue else None
    user = request_logit(24.0) + bias
    golden = {
        "request": {
            "user": {"age": 24},
            "candidates": {"ids": ["i1", "nowhere"], "features": {"price": [9.0, None]}},
        },
        "scores": [
            sigmoid(user + item_logit(9.0, 2, [2] if catalogue else [])) + golden_shift,
            sigmoid(user + COLD_LOGIT) + golden_shift,
        ],
    }
    (folder / "golden.json").write_text(json.dumps([golden]))
    resources = Resources(flops=1)  # what it serves by is the manifest's, not the card's
    seal(
        folder,
        Manifest(
            name=name,
            created_at="2026-11-21T00:00:00+00:00",
            graph="model.onnx",
            scores="probability",
            flops=flops,
            inputs=(
                TensorSpec(name="request_numeric", dtype="float32", shape=("R", 2)),
                TensorSpec(name="request_ids", dtype="int32", shape=("R", 2)),
                TensorSpec(name="candidate_numeric", dtype="float32", shape=("N", 1)),
                TensorSpec(name="candidate_ids", dtype="int32", shape=("N", 3)),
            ),
            outputs=(TensorSpec(name="score", dtype="float32", shape=("N",)),),
            features=tuple(features),
            item_id="item_id",
            items=spec,
            data=DataSpec(label="label"),
            golden="golden.json",
            golden_tolerance=golden_tolerance,
            card=Card(
                method="umec", ranker="logistic", seed=1, dense=resources, slim=resources,
                kept_features=("age",), pruned_features=("zip", "year"),
            ),
        ),
    )  # fmt: skip
    return folder


def _write_items(folder: Path, *, values: bool) -> ItemTableSpec:
    encoders = {
        spec.name: make_encoder(spec, VOCABULARIES.get(spec.name))
        for spec in FEATURES
        if spec.side == "item" and not spec.pruned
    }
    numeric = encoders["price"].encode(PRICES)
    ids = np.concatenate(
        [encoders["item_id"].encode(ITEMS), encoders["genres"].encode(ITEM_GENRES)], axis=1
    )
    np.save(folder / "items/candidate_numeric.npy", numeric)
    np.save(folder / "items/candidate_ids.npy", ids)
    (folder / "items/ids.json").write_text(json.dumps(ITEMS))
    if values:
        raw = {"price": PRICES, "genres": ITEM_GENRES, "item_id": ITEMS}
        (folder / "items/values.json").write_text(json.dumps(raw))
    return ItemTableSpec(
        ids="items/ids.json",
        tensors={
            "candidate_numeric": "items/candidate_numeric.npy",
            "candidate_ids": "items/candidate_ids.npy",
        },
        items=len(ITEMS),
        values="items/values.json" if values else None,
    )


@pytest.fixture(autouse=True)
def _no_settings_of_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.upper().startswith("SLIMRANK_")]:  # noqa: TID251
        monkeypatch.delenv(variable)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The loop that uvicorn runs."""
    return "asyncio"


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sealed bundles, by name: one, two, off (its golden scores are wrong), bare (no catalogue).

    flat has no feature whose values are lists, and plain no bucket of the request besides.
    """
    root = tmp_path_factory.mktemp("bundles")
    write_bundle(root / "one")
    write_bundle(root / "two", bias=1.0)
    write_bundle(root / "off", bias=2.0, golden_shift=0.5)
    write_bundle(root / "flat", name="flat", features=FLAT_FEATURES, values=False)
    write_bundle(root / "plain", name="plain", features=PLAIN_FEATURES, values=False)
    write_bundle(root / "bare", name="bare", catalogue=False, values=False)
    return root


@pytest.fixture
def store(tmp_path: Path, bundles: Path) -> Store:
    """A store with ctr 1 (prod) and ctr 2, which scores higher."""
    opened = open_store(str(tmp_path / "store"))
    opened.publish(bundles / "one", "ctr")
    opened.publish(bundles / "two", "ctr")
    opened.set_alias("ctr", "prod", "1")
    return opened


@asynccontextmanager
async def lifespan(service: Service) -> AsyncIterator[None]:
    """Run an application's start and stop around a test, as a server does."""
    inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    task = asyncio.create_task(service(scope, inbox.get, outbox.put))
    await inbox.put({"type": "lifespan.startup"})
    message = await outbox.get()
    assert message["type"] == "lifespan.startup.complete", message
    try:
        yield
    finally:
        await inbox.put({"type": "lifespan.shutdown"})
        await task


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what another process or task brings about; there is nothing to be woken by."""
    async with asyncio.timeout(30):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class Client(httpx2.AsyncClient):
    """A client of a service in this process."""

    service: Service

    async def rank(self, candidates: Any, **fields: Any) -> httpx2.Response:
        """POST /rank."""
        return await self.post("/rank", json={"candidates": candidates, **fields})

    async def version(self, model: str = "ctr") -> str:
        """The version that answers a ranking, which must succeed."""
        reply = await self.rank(["i1"], model=model)
        assert reply.status_code == 200, reply.text
        return str(reply.headers["x-model-version"])


Serve = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture
def serve(store: Store) -> Serve:
    """Serves ``store`` in this process, with given settings."""

    @asynccontextmanager
    async def serving(**settings: Any) -> AsyncIterator[Client]:
        given = {"store": store.url, "models": ("ctr",), "store_poll_s": 0, "request_log": False}
        service = create_app(Settings(**{**given, **settings}))
        async with lifespan(service):
            transport = httpx2.ASGITransport(service, raise_app_exceptions=True)
            async with Client(transport=transport, base_url="http://test") as client:
                client.service = service
                yield client

    return serving
