"""What ranks: ASGI callables of their own in front of the FastAPI application.

A FastAPI route costs 2.6 times the requests per second of these; their documents are written here.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter, time
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import orjson
import structlog
from starlette.types import Message, Receive, Scope, Send

from service import errors, tally
from service.candidates import Limits, texts
from service.deps import Parts, by_name, check_media_type, request_id_of
from service.errors import ServiceError
from service.problems import Header, problem, responses
from service.ranking import Given, Prepared, Ranked, Ranking, Request
from service.schemas import RawRankRequest
from service.stopwatch import ENCODE, FEATURES, PARSE, QUEUE, SCORE, Stopwatch

JSON: Final = b"application/json"
MAX_DIGITS: Final = 18
PARSE_US_PER_BYTE: Final = 0.01  # measured: 0.005, and twice that beside busy cores
T = TypeVar("T")
Headers = Mapping[bytes, bytes]

log = structlog.get_logger(__name__)


class Disconnected(Exception):
    """The caller went away before its body had arrived."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What tells one way to ask for a ranking from another.

    Attributes:
        parse: the body's bytes to a request; raises MalformedJson, InvalidRequest.
        parse_long: the same on a thread, where the event loop must get its turn.
        parse_raw: the same, with something of it left as it came; None: nothing can be.
        prepare: a request to what `Ranking.rank` takes; None: it is to be parsed whole first.
        request, reply: their types, for the document.
        summary, answer: what it does and what it answers, for the document.
    """

    path: str
    parse: Callable[[bytes], Request]
    parse_long: Callable[[bytes], Request]
    parse_raw: Callable[[bytes], Given | None]
    prepare: Callable[[Ranking, Any, Limits], Prepared | None]
    request: type
    reply: type
    summary: str
    answer: str


class Asked(NamedTuple):
    """A request that has been parsed.

    Attributes:
        id: the caller's own, else the request id.
        request: without what is yet to be read.
        given: the same, and what is yet to be read of it, if anything is.
        whole: parses it anew, with nothing left as it came.
    """

    id: str
    request: Request
    given: Given
    whole: Callable[[], Request]
    ranking: Ranking


class Ready(NamedTuple):
    """A request that only has to be ranked."""

    id: str
    request: Request
    ranking: Ranking
    prepared: Prepared


class Endpoint:
    """Bytes in, bytes out; all that ranks is in `Ranking`."""

    def __init__(self, operation: Operation, parts: Parts) -> None:
        self._operation = operation
        self._parts = parts
        self._settings = parts.settings
        self._metrics = parts.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        clock = Stopwatch()
        headers = by_name(scope["headers"])
        request_id = request_id_of(headers.get(b"x-request-id"))
        try:
            status, code = 200, None
            self._admit(scope, headers)
            reply_headers, body = await self._answer(headers, receive, clock, request_id)
        except Disconnected:
            self._record(scope, 499, "disconnected", clock, request_id)
            return
        except Exception as error:  # the edge: whatever went wrong, the caller gets a problem
            (status, code), reply_headers, body = problem(error, request_id)
            if not isinstance(error, ServiceError) or status == 500:  # noqa: PLR2004
                log.exception("internal error", request_id=request_id)
            self._metrics.problems.labels(code).inc()
        reply_headers.append((b"x-request-id", request_id.encode("ascii")))
        if self._parts.drain.leaving:
            reply_headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": reply_headers})
        await send({"type": "http.response.body", "body": body})
        self._record(scope, status, code, clock, request_id)

    async def _answer(
        self, headers: Headers, receive: Receive, clock: Stopwatch, request_id: str
    ) -> tuple[list[Header], bytes]:
        clock.deadline = _deadline(headers, clock.started)
        body = await read_body(
            headers, receive, self._settings.max_body_bytes, self._settings.body_timeout_s
        )
        in_flight = self._parts.in_flight
        in_flight.enter()
        try:
            # Let all that has arrived be counted before any of it is scored: without this turn of
            # the loop, a burst would wait uncounted and never be shed.
            await asyncio.sleep(0)
            return await self._rank(body, clock, request_id)
        finally:
            in_flight.leave()

    def _admit(self, scope: Scope, headers: Headers) -> None:
        """Refuse what need not be read."""
        if scope["method"] != "POST":
            raise errors.MethodNotAllowed(scope["method"], "POST")
        parts = self._parts
        parts.drain.check()
        key = parts.keys.check(headers.get(b"authorization"), "rank")
        if parts.rate_limit.on:
            client = scope.get("client")
            parts.rate_limit.take(key or (client[0] if client else ""))
        media_type = headers.get(b"content-type")
        if media_type != JSON and media_type is not None:
            check_media_type(media_type)

    async def _rank(
        self, body: bytes, clock: Stopwatch, request_id: str
    ) -> tuple[list[Header], bytes]:
        """On a thread if it takes long; else here, alone or among what waits (`Batches`)."""
        inline_us, operation = self._settings.inline_us, self._operation
        if len(body) * PARSE_US_PER_BYTE > inline_us:
            long = partial(operation.parse_long, body)
            return await self._apart(
                lambda: self._reply(self._read(body, long, clock, request_id), clock)
            )
        whole = partial(operation.parse, body)
        asked = self._read(body, whole, clock, request_id)
        if asked.ranking.predicted_us(asked.request, len(body)) > inline_us:
            return await self._apart(lambda: self._reply(asked, clock))
        ready = self._ready(asked, clock)
        if not self._is_for_batch(ready):
            return self._answered(ready, _ranked(ready, clock), clock)
        ranked = await self._parts.batches.rank(ready.ranking, ready.prepared, clock)
        clock.lap(QUEUE)
        return self._answered(ready, ranked, clock)

    async def _apart(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._parts.executor, work)

    def _read(
        self, body: bytes, whole: Callable[[], Request], clock: Stopwatch, request_id: str
    ) -> Asked:
        clock.lap(QUEUE)
        clock.check()
        loader, own = self._parts.loader, request_id
        given = self._operation.parse_raw(body) if loader.reads_raw else None
        if given is None:
            given = whole()
        request = given.asked if isinstance(given, RawRankRequest) else given
        try:
            if request.id is not None:
                own = texts([request.id], "/id", self._parts.limits)[0]
            ranking = loader.resolve(request.model)
        except ServiceError:
            if isinstance(given, RawRankRequest):
                whole()  # what is wrong with the body is told first
            raise
        if isinstance(given, RawRankRequest) and not ranking.reads_raw:
            given = request = whole()
        clock.lap(PARSE)
        clock.check()
        return Asked(own, request, given, whole, ranking)

    def _reply(self, asked: Asked, clock: Stopwatch) -> tuple[list[Header], bytes]:
        """Prepare, rank and write it: on a thread."""
        clock.lap(QUEUE)  # it may have waited for one
        clock.check()
        ready = self._ready(asked, clock)
        return self._answered(ready, _ranked(ready, clock), clock)

    def _is_for_batch(self, ready: Ready) -> bool:
        """Whether others may have come with it, and to be ranked among them takes something off."""
        parts, ranking, prepared = self._parts, ready.ranking, ready.prepared
        if parts.in_flight.count == 1 or parts.batches.most == 1 or not ranking.is_short(prepared):
            return False
        return parts.batches.waiting or ranking.gains(prepared)

    def _ready(self, asked: Asked, clock: Stopwatch) -> Ready:
        request, ranking = asked.request, asked.ranking
        prepared = self._prepared(ranking, asked.given)
        if prepared is None:
            request = asked.whole()
            prepared = self._prepared(ranking, request)
        assert prepared is not None  # noqa: S101  nothing of it was left as it came
        clock.ranking, clock.prepared = ranking, prepared
        clock.lap(FEATURES)
        clock.check()
        return Ready(asked.id, request, ranking, prepared)

    def _answered(
        self, ready: Ready, ranked: Ranked, clock: Stopwatch
    ) -> tuple[list[Header], bytes]:
        ranking = ready.ranking
        reply: dict[str, Any] = {"id": ready.id}
        reply |= ranking.answer(ready.request, ready.prepared, ranked)
        reply["timing_ms"] = clock.timing_ms()
        content = orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)
        clock.lap(ENCODE)
        return [
            (b"content-type", JSON),
            (b"content-length", str(len(content)).encode()),
            (b"x-model-version", ranking.version.encode()),
            (b"server-timing", clock.server_timing()),
        ], content

    def _prepared(self, ranking: Ranking, given: Given) -> Prepared | None:
        return self._operation.prepare(ranking, given, self._parts.limits)

    def _record(
        self, scope: Scope, status: int, code: str | None, clock: Stopwatch, request_id: str
    ) -> None:
        seconds, served = perf_counter() - clock.started, None
        if clock.prepared is not None and clock.ranking is not None:
            served = tally.Served(
                model=clock.ranking.name,
                version=clock.ranking.version,
                candidates=len(clock.prepared.ids),
                brought=clock.prepared.method is None,
                cold=len(clock.prepared.cold),
                warnings=[warned.code for warned in clock.prepared.warnings],
                laps=clock.laps,
            )
        method, route = scope["method"], self._operation.path
        self._parts.tally.add(
            tally.Answered(time(), request_id, method, route, status, code, seconds, served)
        )


def _ranked(ready: Ready, clock: Stopwatch) -> Ranked:
    ranked = ready.ranking.rank(ready.prepared)
    clock.lap(SCORE)
    return ranked


async def read_body(headers: Headers, receive: Receive, limit: int, timeout_s: float) -> bytes:
    """The whole body, never more than the limit of it.

    Raises:
        UnsupportedMediaType: it is compressed.
        BodyTooLarge: it is, or says it will be, longer.
        DeadlineExceeded: it did not arrive in time.
        Disconnected: the caller went away.
    """
    coding = headers.get(b"content-encoding")
    if coding is not None and coding.strip().lower() not in {b"", b"identity"}:
        raise errors.UnsupportedMediaType(
            f"Content-Encoding: expected none, got {coding.decode('latin-1')!r}"
        )
    declared = headers.get(b"content-length")
    if declared is not None and declared.isdigit() and int(declared[:MAX_DIGITS]) > limit:
        raise _too_large(int(declared[:MAX_DIGITS]), limit)
    first = _Begun(receive())
    message = first.arrived
    if message is not None and message["type"] == "http.request" and not message.get("more_body"):
        whole: bytes = message.get("body", b"")
        if len(whole) > limit:
            raise _too_large(len(whole), limit)
        return whole
    try:
        async with asyncio.timeout(timeout_s):
            return await _collect(first, receive, limit)
    except TimeoutError:
        raise errors.DeadlineExceeded(f"the body did not arrive within {timeout_s:g} s") from None


class _Begun:
    """A message that is asked for at once, before anybody waits for it.

    Most have arrived by then, and need no timer.

    Attributes:
        arrived: it, None where it is to be awaited.
    """

    def __init__(self, message: Awaitable[Message]) -> None:
        self.arrived: Message | None = None
        self._begun = message.__await__()
        try:
            self._waiting_for = next(self._begun)
        except StopIteration as done:
            self.arrived = done.value

    def __await__(self) -> Generator[Any, Any, Message]:
        if self.arrived is not None:
            return self.arrived
        waiting_for = self._waiting_for
        while True:
            try:
                try:
                    sent = yield waiting_for
                except BaseException as error:  # noqa: BLE001  it is for the coroutine
                    waiting_for = self._begun.throw(error)
                else:
                    waiting_for = self._begun.send(sent)
            except StopIteration as done:
                found: Message = done.value
                return found


async def _collect(message: Awaitable[Message], receive: Receive, limit: int) -> bytes:
    chunks, size = [], 0
    while (arrived := await message)["type"] == "http.request":
        chunk = arrived.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(size, limit)
        chunks.append(chunk)
        if not arrived.get("more_body", False):
            return b"".join(chunks)
        message = receive()
    raise Disconnected


def _too_large(size: int, limit: int) -> errors.BodyTooLarge:
    return errors.BodyTooLarge(f"a body of {size} bytes or more, limit {limit}")


def _deadline(headers: Headers, started: float) -> float:
    """When the caller's budget is spent, on our clock."""
    value = headers.get(b"x-deadline-ms")
    if value is None:
        return math.inf
    try:
        budget_ms = math.nan if b"_" in value else float(value)  # Python's own 1_000
    except ValueError:
        budget_ms = math.nan
    if math.isnan(budget_ms):
        raise errors.InvalidRequest(
            f"X-Deadline-Ms: expected milliseconds, got {value.decode('latin-1')!r}"
        )
    return started + budget_ms / 1e3


def openapi(operation: Operation) -> tuple[dict[str, Any], dict[str, Any]]:
    """An operation's path in the OpenAPI document, and the schemas that it refers to."""
    ref = "#/components/schemas/{name}"
    (request, reply), schemas = msgspec.json.schema_components(
        [operation.request, operation.reply], ref_template=ref
    )
    document = {
        "tags": ["rank"],
        "summary": operation.summary,
        "operationId": operation.path.removeprefix("/"),
        "security": [{"HTTPBearer": []}],
        "parameters": PARAMETERS,
        "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
        "responses": {
            "200": {
                "description": operation.answer,
                "headers": REPLY_HEADERS,
                "content": {"application/json": {"schema": reply}},
            },
            **{str(k): v for k, v in responses(*PROBLEM_STATUSES).items()},
        },
    }
    return {"post": document}, schemas


PROBLEM_STATUSES: Final = (400, 401, 403, 404, 422, 429, 503)
_TEXT: Final = {"schema": {"type": "string"}}
PARAMETERS: Final[list[dict[str, Any]]] = [
    {"name": "X-Request-ID", "in": "header", "description": "Echoed; made if absent.", **_TEXT},
    {
        "name": "X-Deadline-Ms",
        "in": "header",
        "description": "The caller's remaining time in milliseconds.",
        "schema": {"type": "number"},
    },
]
REPLY_HEADERS: Final[dict[str, Any]] = {
    "X-Model-Version": {"description": "The version that ranked.", **_TEXT},
    "Server-Timing": {"description": "Time by stage.", **_TEXT},
}
