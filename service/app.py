"""The composition root: settings in, an ASGI application out."""

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from time import monotonic, perf_counter, time
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route
from starlette.types import Message, Receive, Scope, Send

from model_store.store import open_store
from service import errors
from service.batches import Batches
from service.caches import CacheOptions, open_cache
from service.candidates import Limits
from service.deps import Parts, by_name, request_id_of
from service.errors import Fault, ServiceError, escape
from service.gate import Drain, InFlight, Keys, RateLimit
from service.loader import Loader, NothingLoaded
from service.log import lines_of_requests
from service.metrics import Metrics
from service.problems import REQUEST_ID_HEADER, SCHEMA, from_starlette, problem, responses
from service.routes import OPERATIONS, ROUTERS, endpoint
from service.settings import Settings, shared_metrics
from service.shared_ids import SharedIds
from service.tally import Answered, Tally

VERSION: Final = "0.1.0"
FOLLOW_AGAIN_S: Final = 1.0
CANCEL_AGAIN_S: Final = 0.2
TELL_AGAIN_S: Final = 0.25
THREAD_NICE: Final = 10
# The statuses that the edge may answer with, whatever the route; and where it reads a body.
ANY_METHOD: Final = (405, 500)
ANY_BODY: Final = (413, 415, 504)

log = structlog.get_logger(__name__)


class Service:
    """The whole service: what ranks in front, FastAPI behind it, both under one edge.

    Attributes:
        parts: what the service is made of.
    """

    def __init__(self, parts: Parts, api: FastAPI) -> None:
        self.parts = parts
        self._api = api
        self._front = {each.path: endpoint.Endpoint(each, parts) for each in OPERATIONS}
        routes = (*api.routes, *(route for router in ROUTERS for route in router.routes))
        self._routes = [route for route in routes if isinstance(route, Route)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer anything an ASGI server asks."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif scope["type"] != "http":
            await self._api(scope, receive, send)
        elif scope["path"] in self._front:
            await self._front[scope["path"]](scope, receive, send)
        else:
            await self._behind(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start and stop. A start without a model says why in one line, not by a stack."""
        try:
            await self._api(scope, receive, _without_stack(send))
        except NothingLoaded as error:
            log.error("cannot start", reason=f"{error}")  # noqa: TRY400  the reason is whole
        except Exception:  # the edge: the server has been told that, not why
            log.exception("start or stop failed")

    async def _behind(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Every other route: request ids, metrics and the log as in front."""
        started, status = perf_counter(), 500
        headers = by_name(scope["headers"])
        request_id = request_id_of(headers.get(b"x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode("ascii")),
                    *([(b"connection", b"close")] if self.parts.drain.leaving else []),
                ]
            await send(message)

        try:
            body = await self._body(scope["method"], headers, receive)
            await self._api(_get_for_head(scope), _replay(body, receive), tell)
        except endpoint.Disconnected:
            status = 499
        except Exception as error:  # the edge: FastAPI has answered, unless the body was unreadable
            if isinstance(error, ServiceError):
                code = await _send_problem(tell, error, request_id)
                self.parts.metrics.problems.labels(code).inc()
            else:
                log.exception("internal error", request_id=request_id)
        self._record(scope, status, request_id, perf_counter() - started)

    async def _body(self, method: str, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        if method in {"GET", "HEAD", "OPTIONS"}:
            return b""
        settings = self.parts.settings
        return await endpoint.read_body(
            headers, receive, settings.max_body_bytes, settings.body_timeout_s
        )

    def _record(self, scope: Scope, status: int, request_id: str, seconds: float) -> None:
        method, route = scope["method"], self._route(scope)
        self.parts.tally.add(Answered(time(), request_id, method, route, status, None, seconds))

    def _route(self, scope: Scope) -> str:
        """The template, never the path: labels come from a closed set."""
        # FastAPI leaves its own only where it got to route, and not for its documentation.
        found = (r.path for r in self._routes if r.matches(scope)[0] is not Match.NONE)
        return next(found, "unknown")


def _get_for_head(scope: Scope) -> Scope:
    """HEAD is answered like GET, as balancers probe with it; the server leaves the body out."""
    return {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope


def _without_stack(send: Send) -> Send:
    """What went wrong goes to our log, not into the server's."""

    async def tell(message: Message) -> None:
        if message["type"] in {"lifespan.startup.failed", "lifespan.shutdown.failed"}:
            message = {"type": message["type"], "message": ""}
        await send(message)

    return tell


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body once more, for who comes after us."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _send_problem(send: Send, error: Exception, request_id: str) -> str:
    """Answer with a problem, and tell its code."""
    found = problem(error, request_id)
    await send(
        {"type": "http.response.start", "status": found.kind.status, "headers": found.headers}
    )
    await send({"type": "http.response.body", "body": found.body})
    return found.kind.code


def create_app(
    settings: Settings,
    *,
    started: Callable[[Parts], None] | None = None,
) -> Service:
    """Put the service together. Nothing is loaded before its lifespan begins.

    Args:
        settings: all that can be chosen.
        started: called once everything is loaded, before the first request.

    Raises:
        UnknownCache: the cache's URL makes no sense.
    """
    metrics = Metrics(shared_metrics())
    cache = open_cache(
        settings.cache,
        CacheOptions(
            timeout_s=settings.cache_timeout_s,
            ttl_s=settings.cache_ttl_s,
            poll_s=settings.cache_poll_s,
            tell_up=metrics.cache_up.set,
        ),
    )
    write = lines_of_requests(settings.log_level, settings.log_format)
    parts = Parts(
        settings=settings,
        limits=Limits(settings.max_candidates, settings.max_session_items, settings.max_id_bytes),
        metrics=metrics,
        loader=Loader(
            store=open_store(settings.store),
            ids=SharedIds(settings.shared_folder()),
            cache=cache,
            refs=settings.models,
            default=settings.default_model,
            tolerance=settings.golden_tolerance,
            max_fresh_items=settings.max_fresh_items,
            metrics=metrics,
        ),
        cache=cache,
        keys=Keys(settings.api_keys()),
        rate_limit=RateLimit(settings.rate_limit_per_s, settings.rate_limit_burst, monotonic),
        drain=Drain(),
        in_flight=InFlight(settings.max_in_flight),
        executor=ThreadPoolExecutor(
            settings.score_threads, thread_name_prefix="score", initializer=_give_way
        ),
        batches=Batches(settings.max_batch),
        tally=Tally(metrics, write if settings.request_log else None),
    )
    return Service(parts, _api(parts, started))


def _give_way() -> None:
    """Let the event loop have the core as soon as it wakes up: at one priority it would wait."""
    if sys.platform == "linux":  # where a thread has a priority of its own
        thread = threading.get_native_id()
        with suppress(OSError):  # a sandbox may forbid it
            ours = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, ours + THREAD_NICE)


def _api(parts: Parts, started: Callable[[Parts], None] | None) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with _running(parts):
            if started is not None:
                started(parts)
            yield

    api = FastAPI(
        title="Slimrank",
        version=VERSION,
        description="Ranks candidates with compressed recommender rankers.",
        lifespan=lifespan,
        redoc_url=None,
        exception_handlers={
            ServiceError: _answer_problem,
            HTTPException: _answer_problem,
            RequestValidationError: _answer_problem,
            Exception: _answer_problem,
        },
    )
    api.state.parts = parts
    for router in ROUTERS:
        api.include_router(router)
    api.openapi = lambda: _openapi(api)  # type: ignore[method-assign]
    return api


@asynccontextmanager
async def _running(parts: Parts) -> AsyncIterator[None]:
    """Everything loaded, and following the store; closed in reverse."""
    if not parts.keys.required:
        log.warning("no keys are configured: everybody may rank, activate and read metrics")
    # Whatever loads gives way as well: a version is activated beside requests.
    asyncio.get_running_loop().set_default_executor(
        ThreadPoolExecutor(thread_name_prefix="load", initializer=_give_way)
    )
    await parts.loader.load_all()
    every_s = parts.settings.store_poll_s
    follow = (parts.loader.follow_cache, partial(_tell_in_flight, parts))
    followers = [asyncio.create_task(_for_ever(each)) for each in follow]
    if every_s > 0:
        follow_store = partial(parts.loader.follow_store, every_s)
        followers.append(asyncio.create_task(_for_ever(follow_store)))
    try:
        yield
    finally:
        for follower in followers:
            await _stop(follower)
        parts.tally.settle()
        parts.tell_in_flight()
        await parts.cache.close()
        parts.executor.shutdown(wait=False, cancel_futures=True)


async def _tell_in_flight(parts: Parts) -> None:
    """So that other workers can tell it. At each change it would be dear: a request makes two."""
    while True:
        parts.tell_in_flight()
        await asyncio.sleep(TELL_AGAIN_S)


async def _for_ever(follow: Callable[[], Awaitable[None]]) -> None:
    """Follow as long as the service runs, whatever happens in between."""
    while True:
        try:
            await follow()
        except Exception:  # the edge: a worker that stops following goes stale in silence
            log.exception("following failed; trying again")
        await asyncio.sleep(FOLLOW_AGAIN_S)


async def _stop(task: asyncio.Task[None]) -> None:
    # A cancellation can get lost on its way: redis-py drops one that comes while it connects.
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=CANCEL_AGAIN_S)


async def _answer_problem(request: Request, error: Exception) -> Response:
    parts: Parts = request.app.state.parts
    found = problem(_ours(error, request.method), request.state.request_id)
    parts.metrics.problems.labels(found.kind.code).inc()
    response = Response(found.body, found.kind.status)
    response.raw_headers = list(found.headers)
    return response


def _ours(error: Exception, method: str) -> Exception:
    match error:
        case HTTPException():
            return from_starlette(error, method)
        case RequestValidationError():
            return _invalid(error)
    return error


def _invalid(error: RequestValidationError) -> ServiceError:
    found = error.errors()
    if any(each["type"] == "json_invalid" for each in found):
        return errors.MalformedJson("the body is not JSON")
    faults = [
        Fault("".join(f"/{escape(str(part))}" for part in each["loc"][1:]), each["msg"])
        for each in found
    ]
    return errors.InvalidRequest(faults[0].detail, faults)


def _complete(operation: dict[str, Any], statuses: Sequence[int]) -> None:
    """Add what the edge answers for every route, and the header that it puts on every reply."""
    replies: dict[str, Any] = operation["responses"]
    for status, described in responses(*statuses).items():
        replies.setdefault(str(status), described)
    for reply in replies.values():
        reply["headers"] = {**REQUEST_ID_HEADER, **reply.get("headers", {})}


def _openapi(api: FastAPI) -> dict[str, Any]:
    """FastAPI's document, completed by what stands in front and by what any route may answer."""
    if api.openapi_schema is None:
        document = get_openapi(
            title=api.title, version=api.version, description=api.description, routes=api.routes
        )
        for operation in OPERATIONS:
            document["paths"][operation.path], schemas = endpoint.openapi(operation)
            document["components"]["schemas"] |= schemas
        document["components"]["schemas"]["Problem"] = SCHEMA
        for methods in document["paths"].values():
            for method, operation in methods.items():
                _complete(operation, ANY_METHOD if method == "get" else ANY_METHOD + ANY_BODY)
        api.openapi_schema = document
    return api.openapi_schema
