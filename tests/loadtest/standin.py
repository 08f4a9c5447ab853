# ruff: noqa: T201, TID251 - a process of its own, set by the environment as the service is
"""A stand-in for the service: the part of its contract that a load generator meets, no model.

It reads the same SLIMRANK_* variables; its command line says how it misbehaves.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

Send = Callable[[dict[str, Any]], Awaitable[None]]


class StandIn:
    """An ASGI application that ranks by the candidates' order after a known delay."""

    def __init__(self, options: argparse.Namespace, models: str) -> None:
        self.options = options
        self.aliases = dict(model.partition("@")[::2] for model in models.split(","))
        self.name = next(iter(self.aliases))
        self.ranked = 0

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Send) -> None:
        """Read the whole body, answer in one piece."""
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        status, answer = await self.answer(scope["path"], body)
        payload = json.dumps(answer).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(payload)),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": payload})

    async def answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Route by path."""
        if path == "/readyz":
            return (503, {"reason": "warming"}) if self.options.never_ready else (200, {})
        name = path.removeprefix("/models/")
        if name in self.aliases:
            version = self.version(name)
            served = {"name": name, "version": version, "digest": f"sha256:{version}"}
            return 200, {**served, "numerics": "fp32"}
        if path == "/recommend":
            return self.recommend(json.loads(body))
        if path != "/rank":
            return 404, {"code": "not_found"}
        return await self.rank(json.loads(body))

    def recommend(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """The session once more, latest first, but what is excluded."""
        left = [i for i in request["session_items"][::-1] if i not in request["exclude"]]
        items = [{"id": item, "score": -place} for place, item in enumerate(left)]
        version = self.version(request["model"])
        return 200, {"items": items, "version": version, "timing_ms": {"total": 0.5}}

    async def rank(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Keep the candidates in their order."""
        self.ranked += 1
        await asyncio.sleep(self.delay_s())
        if self.options.fail_every and self.ranked % self.options.fail_every == 0:
            return 503, {"code": "overloaded", "status": 503}
        candidates = request["candidates"]
        ids = list(candidates if isinstance(candidates, list) else candidates["ids"])
        scores = [1.0 / (place + 2) for place in range(len(ids))]
        if self.options.forget_last:
            ids[-1] = "somebody else"
        answer = {
            "model": self.name,
            "version": self.version(self.name),
            "timing_ms": {"total": 0.5},
        }
        if request.get("shape") == "columns":
            return 200, {**answer, "ids": ids, "scores": scores}
        rows = [{"id": item, "score": score} for item, score in zip(ids, scores, strict=True)]
        return 200, {**answer, "items": rows[: request.get("top_k")]}

    def version(self, name: str) -> str:
        """As the pipelines publish: dense first, then slim or coded; a version is itself."""
        selector = self.aliases[name]
        return selector if selector.isdecimal() else "1" if selector == "dense" else "2"

    def delay_s(self) -> float:
        """How long a ranking takes: known beforehand, by the model's version."""
        slow = self.version(self.name) == "1"
        return float(self.options.dense_ms if slow else self.options.slim_ms) / 1000


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dense-ms", type=float, default=10.0)
    parser.add_argument("--slim-ms", type=float, default=10.0)
    parser.add_argument("--fail-every", type=int, default=0)
    parser.add_argument("--forget-last", action="store_true")
    parser.add_argument("--never-ready", action="store_true")
    parser.add_argument("--exit-at-start", action="store_true")
    parser.add_argument("--ignore-sigterm", action="store_true")
    options = parser.parse_args()
    if options.exit_at_start:
        raise SystemExit("SLIMRANK_STORE: no such store")
    print(
        "settings", json.dumps({k: v for k, v in os.environ.items() if k.startswith("SLIMRANK_")})
    )
    config = uvicorn.Config(
        StandIn(options, os.environ.get("SLIMRANK_MODELS", "ctr@slim")),
        host=os.environ["SLIMRANK_HOST"],
        port=int(os.environ["SLIMRANK_PORT"]),
        log_level="warning",
        lifespan="off",
    )
    server = uvicorn.Server(config)
    if options.ignore_sigterm:
        server.install_signal_handlers = lambda: None
        server.capture_signals = contextlib.nullcontext
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    server.run()


if __name__ == "__main__":
    main()
