"""Errors as HTTP: one table from class to status and code, one body (RFC 9457)."""

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import orjson
from starlette.exceptions import HTTPException

from service import errors
from service.errors import ServiceError

PROBLEM_JSON: Final = "application/problem+json"
Header = tuple[bytes, bytes]


class Kind(NamedTuple):
    """What HTTP says of an error."""

    status: int
    code: str


PROBLEMS: Final[Mapping[type[Exception], Kind]] = {
    errors.MalformedJson: Kind(400, "malformed_json"),
    errors.Unauthenticated: Kind(401, "unauthenticated"),
    errors.Forbidden: Kind(403, "forbidden"),
    errors.NotFound: Kind(404, "not_found"),
    errors.ModelNotFound: Kind(404, "model_not_found"),
    errors.VersionNotFound: Kind(404, "version_not_found"),
    errors.MethodNotAllowed: Kind(405, "method_not_allowed"),
    errors.ActivationConflict: Kind(409, "activation_conflict"),
    errors.ItemsRefused: Kind(409, "items_refused"),
    errors.BodyTooLarge: Kind(413, "body_too_large"),
    errors.UnsupportedMediaType: Kind(415, "unsupported_media_type"),
    errors.InvalidRequest: Kind(422, "invalid_request"),
    errors.TooManyCandidates: Kind(422, "too_many_candidates"),
    errors.UnknownItem: Kind(422, "unknown_item"),
    errors.RateLimited: Kind(429, "rate_limited"),
    errors.Overloaded: Kind(503, "overloaded"),
    errors.Draining: Kind(503, "draining"),
    errors.ModelNotReady: Kind(503, "model_not_ready"),
    errors.DeadlineExceeded: Kind(504, "deadline_exceeded"),
}
INTERNAL: Final = Kind(500, "internal")
CODES: Final = tuple(kind.code for kind in (*PROBLEMS.values(), INTERNAL))
STATUSES: Final = tuple(sorted({kind.status for kind in (*PROBLEMS.values(), INTERNAL)}))

SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "description": "What went wrong (RFC 9457).",
    "required": ["type", "title", "status", "detail", "code", "request_id"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer", "enum": list(STATUSES)},
        "detail": {"type": "string"},
        "code": {"type": "string", "enum": list(CODES)},
        "request_id": {"type": "string"},
        "errors": {
            "type": "array",
            "description": "Where in the body (JSON pointers), and what.",
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {"pointer": {"type": "string"}, "detail": {"type": "string"}},
            },
        },
    },
}


def _text(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


REQUEST_ID_HEADER: Final = {"X-Request-ID": _text("The caller's, or a new one.")}
_RETRY_AFTER: Final = {
    "Retry-After": {"description": "When to come back, in s.", "schema": {"type": "integer"}}
}
_WWW_AUTHENTICATE: Final = {"WWW-Authenticate": _text("How to send a key.")}
HEADERS: Final[Mapping[int, dict[str, Any]]] = {
    401: _WWW_AUTHENTICATE,
    403: _WWW_AUTHENTICATE,
    405: {"Allow": _text("The methods that the route takes.")},
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI of problems of those statuses."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "headers": HEADERS.get(status, {}),
            "content": {PROBLEM_JSON: {"schema": schema}},
        }
        for status in statuses
    }


class Problem(NamedTuple):
    """An error, ready to send."""

    kind: Kind
    headers: list[Header]
    body: bytes


def problem(error: Exception, request_id: str) -> Problem:
    """The reply to an error. One that is not in the table tells nothing but the request's id."""
    kind = PROBLEMS.get(type(error), INTERNAL)
    known = isinstance(error, ServiceError) and kind is not INTERNAL
    body: dict[str, Any] = {
        "type": f"/errors/{kind.code.replace('_', '-')}",
        "title": kind.code.replace("_", " ").capitalize().replace("json", "JSON"),
        "status": kind.status,
        "detail": error.detail  # type: ignore[attr-defined]
        if known
        else "something went wrong here; quote the request id when you report it",
        "code": kind.code,
        "request_id": request_id,
    }
    if known and error.faults:  # type: ignore[attr-defined]
        body["errors"] = [{"pointer": f.pointer, "detail": f.detail} for f in error.faults]  # type: ignore[attr-defined]
    content = orjson.dumps(body)
    headers = [
        (b"content-type", PROBLEM_JSON.encode()),
        (b"content-length", str(len(content)).encode()),
        *_headers(error),
    ]
    return Problem(kind, headers, content)


def _headers(error: Exception) -> list[Header]:
    headers: list[Header] = []
    match error:
        case errors.Unauthenticated():
            headers.append((b"www-authenticate", b"Bearer"))
        case errors.Forbidden(scope=scope):
            value = f'Bearer error="insufficient_scope", scope="{scope}"'
            headers.append((b"www-authenticate", value.encode()))
        case errors.MethodNotAllowed(allow=allow):
            headers.append((b"allow", allow.encode()))
        case errors.BodyTooLarge() | errors.Draining():
            # The rest of the body is not read; the worker is going away.
            headers.append((b"connection", b"close"))
    if isinstance(error, ServiceError) and error.retry_after_s is not None:
        headers.append((b"retry-after", str(math.ceil(error.retry_after_s)).encode()))
    return headers


def from_starlette(error: HTTPException, method: str) -> ServiceError:
    """What the router says, in our words."""
    if error.status_code == PROBLEMS[errors.MethodNotAllowed].status:
        allowed = set((error.headers or {}).get("Allow", "GET").split(", "))
        if "GET" in allowed:
            allowed.add("HEAD")
        return errors.MethodNotAllowed(method, ", ".join(sorted(allowed)))
    if error.status_code == PROBLEMS[errors.MalformedJson].status:
        return errors.MalformedJson("the body cannot be read as JSON")
    return errors.NotFound("no such route; see /docs")
