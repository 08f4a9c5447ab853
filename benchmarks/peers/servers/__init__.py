"""The servers side by side, each at what its documentation advises for low latency on one core.

Everywhere: one worker on one core, one ONNX Runtime thread, no request log, metrics as they come,
uvloop and httptools where uvicorn serves, no waiting for others to batch with (with one thread it
only adds a wait), the ranking on the event loop where the server lets a handler run there. Where a
server lets a handler read and write bytes itself, orjson does both.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

_MODULE: Final = "benchmarks.peers.servers"


@dataclass(frozen=True, slots=True)
class Peer:
    """A server to compare with, started from an environment of its own.

    Arguments may hold ``{python}``, ``{port}``, ``{port2}``, ``{port3}`` and ``{folder}``, a folder
    for what it writes.

    Attributes:
        name: of its environment and its file in ``constraints/peers``.
        title: what tables call it, with its version's place left to the constraint.
        variables: of its environment.
        path: where bodies are posted.
        settle_s: how long it must answer without a break before it counts as ready.
        is_yardstick: it is no server to choose, but the least that Python can do.
        settings: what is set and why.
        source: where that is documented.
        parses: who parses and checks a body.
        catalogue: how features reach it that a body does not hold.
        batches: across requests.
        swaps: how another version of a model comes to be served.
    """

    name: str
    title: str
    arguments: tuple[str, ...]
    settings: str
    source: str
    parses: str
    batches: str
    swaps: str
    catalogue: str = "no"
    variables: Mapping[str, str] = field(default_factory=dict, hash=False)
    path: str = "/rank"
    settle_s: float = 0.5
    is_yardstick: bool = False


PEERS: Final = (
    Peer(
        name="bentoml",
        title="BentoML",
        arguments=(
            *("{python}", "-m", "bentoml", "serve", f"{_MODULE}.on_bentoml:Ranking"),
            *("--host", "127.0.0.1", "--port", "{port}"),
        ),
        variables={"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": "{folder}"},
        settings="1 worker; async API: runs on the loop, where a sync one takes a thread; "
        "positional-only body: parsed by pydantic from bytes, once; access log off",
        source="docs.bentoml.com: Services, Workers, Input and output types",
        parses="pydantic",
        batches="can (adaptive), off here",
        swaps="a new process",
    ),
    Peer(
        name="litserve",
        title="LitServe",
        arguments=("{python}", "-m", f"{_MODULE}.on_litserve", "{port}"),
        settings="accelerator cpu, 1 worker per device, 1 API server, fast_queue (ZeroMQ: advised "
        "over 100 requests/s), answer written by orjson in the worker; LitServe itself parses the "
        "body (standard json) and pickles it to the worker",
        source="lightning.ai/docs/litserve: LitServer; docstring of LitServer",
        parses="standard json, unchecked",
        batches="can, off here",
        swaps="a new process",
    ),
    Peer(
        name="mlserver",
        title="MLServer",
        arguments=("{python}", "-m", f"{_MODULE}.on_mlserver", "{port}", "{port2}", "{port3}"),
        settings="parallel_workers 0: inference in the server's process, without a pool; debug and "
        "gzip off; a custom handler that takes the body as it is, past the V2 protocol's tensors",
        source="docs.seldon.ai/mlserver: Parallel Inference, Settings, Custom Inference Runtimes",
        parses="orjson (the handler), unchecked",
        batches="can (V2 protocol), off here",
        swaps="load and unload by its repository API",
    ),
    Peer(
        name="kserve",
        title="KServe",
        arguments=("{python}", "-m", f"{_MODULE}.on_kserve", "{port}"),
        path="/v1/models/ranking:predict",
        settings="the Python server alone, no Kubernetes: 1 worker, no gRPC, no latency log, "
        "no request lines, uvloop, V1 protocol with an async predict that answers with bytes",
        source="kserve.github.io: Python Serving Runtime API (ModelServer, Model)",
        parses="orjson, unchecked",
        batches="no (a sidecar's work)",
        swaps="load and unload by its repository API",
    ),
    Peer(
        name="ray",
        title="Ray Serve",
        arguments=("{python}", "-m", f"{_MODULE}.on_ray", "{port}"),
        variables={
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_NBTHREAD": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        },
        settle_s=4.0,  # its HAProxy is loaded again soon after the first answer
        settings="1 replica; throughput-optimised mode (the handler on the replica's own loop) and "
        "HAProxy in place of the Python proxy; max_ongoing_requests 100, as the replica is where "
        "requests shall wait; access log off; dashboard off",
        source="docs.ray.io: Serve, Performance Tuning; Enable High Throughput on Ray Serve",
        parses="orjson (the handler), unchecked",
        batches="can, off here",
        swaps="a rolling update of the application",
    ),
    Peer(
        name="fastapi",
        title="FastAPI",
        arguments=("{python}", "-m", f"{_MODULE}.on_fastapi", "{port}"),
        settings="uvicorn with uvloop and httptools, 1 worker, async endpoint, body by pydantic, "
        "answer as bytes by orjson; access log off",
        source="fastapi.tiangolo.com: Concurrency and async, Return a Response Directly; "
        "uvicorn's Settings",
        parses="pydantic",
        batches="no",
        swaps="a new process",
    ),
    Peer(
        name="bare",
        title="bare ASGI",
        arguments=("{python}", "-m", f"{_MODULE}.on_bare", "{port}"),
        settings="uvicorn with uvloop and httptools, no framework, body by msgspec, answer "
        "by orjson",
        source="uvicorn's Settings; msgspec's Structs",
        parses="msgspec, typed",
        batches="no",
        swaps="a new process",
        is_yardstick=True,
    ),
)

SLIMRANK: Final = Peer(
    name="slimrank",
    title="Slimrank",
    arguments=("{python}", "-m", "service"),
    variables={
        "SLIMRANK_PORT": "{port}",
        "SLIMRANK_REQUEST_LOG": "false",
        "SLIMRANK_DRAIN_DELAY_S": "0",
        "SLIMRANK_INLINE_US": "1e9",
    },
    settings="`python -m service`, 1 worker; request log off and every ranking on the event loop, "
    "as everywhere here; values turned into rows by its own compiled loops, where the others' "
    "handlers do by numpy and dictionaries",
    source="docs/operations.md",
    parses="msgspec, typed",
    catalogue="by id, from the bundle",
    batches="what has arrived is ranked in a row, nothing is waited for; 32 at most",
    swaps="an alias in the store, without a failed request",
)
