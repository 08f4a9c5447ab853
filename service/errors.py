"""What can go wrong while ranking. Nothing here knows HTTP: `problems.py` does."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a request: where (a JSON pointer into the body) and what."""

    pointer: str
    detail: str


@dataclass(frozen=True, slots=True)
class Warned:
    """Something in a request that had no effect, and how often it came."""

    code: str
    detail: str
    count: int


def escape(name: str) -> str:
    """A name as a part of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


class ServiceError(Exception):
    """Base of all errors of the service.

    Attributes:
        faults: the places in the body that caused it, if any.
        retry_after_s: when to come back, for errors that pass.
    """

    retry_after_s: float | None = None

    def __init__(self, detail: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.faults = tuple(faults)


class MalformedJson(ServiceError):
    """The body is not JSON."""


class BodyTooLarge(ServiceError):
    """The body is longer than the limit."""


class UnsupportedMediaType(ServiceError):
    """The body is declared to be something else than JSON."""


class Unauthenticated(ServiceError):
    """No key, or not one of ours."""


class Forbidden(ServiceError):
    """The key lacks the scope.

    Attributes:
        scope: the scope that was needed.
    """

    def __init__(self, scope: str) -> None:
        super().__init__(f"this key lacks the scope {scope!r}")
        self.scope = scope


class NotFound(ServiceError):
    """No such route."""


class MethodNotAllowed(ServiceError):
    """The route does not take that method.

    Attributes:
        allow: the methods it takes.
    """

    def __init__(self, method: str, allow: str) -> None:
        super().__init__(f"{method} is not allowed here, only {allow}")
        self.allow = allow


class ModelNotFound(ServiceError):
    """No model of that name is served."""


class VersionNotFound(ServiceError):
    """The model is served, but not in that version."""


class ActivationConflict(ServiceError):
    """The version was not activated; the one before goes on."""


class ItemsRefused(ServiceError):
    """Fresh items were not added: this ranker cannot take any, or not so many."""


class InvalidRequest(ServiceError):
    """The body is JSON but not a request."""


class TooManyCandidates(ServiceError):
    """More candidates than the limit."""


class UnknownItem(ServiceError):
    """A candidate is not in the catalogue, and the caller asked to refuse such ones."""


class RateLimited(ServiceError):
    """The caller asks more often than agreed."""

    def __init__(self, detail: str, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class Overloaded(ServiceError):
    """As many requests are in flight as the worker takes."""

    retry_after_s = 1.0


class Draining(ServiceError):
    """The worker is about to stop."""

    retry_after_s = 1.0


class ModelNotReady(ServiceError):
    """The model is configured but could not be loaded yet."""

    retry_after_s = 2.0


class DeadlineExceeded(ServiceError):
    """The caller's time was up before scoring began."""


class BadScores(ServiceError):
    """The ranker answered with something that is no score."""


class BundleRejected(ServiceError):
    """A bundle was opened but cannot be served: its golden vectors or its graph do not fit."""


class CacheUnavailable(ServiceError):
    """The cache does not answer."""
