"""What routes share: the parts of the service, and the callers' keys and request ids."""

import random
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer

from service.batches import Batches
from service.caches import TableCache
from service.candidates import Limits
from service.errors import UnsupportedMediaType
from service.gate import Drain, InFlight, Keys, RateLimit
from service.loader import Loader
from service.metrics import Metrics
from service.settings import Settings
from service.tally import Tally

_PRINTABLE: Final = re.compile(rb"[\x21-\x7e]{1,128}")
_UNPRINTABLE: Final = re.compile(rb"[^\x21-\x7e]")
MAX_REQUEST_ID: Final = 128


@dataclass(frozen=True, slots=True)
class Parts:
    """The service, put together by `create_app`."""

    settings: Settings
    limits: Limits
    metrics: Metrics
    loader: Loader
    cache: TableCache
    keys: Keys
    rate_limit: RateLimit
    drain: Drain
    in_flight: InFlight
    executor: ThreadPoolExecutor
    batches: Batches
    tally: Tally

    def tell_in_flight(self) -> None:
        """Set the metric to what the worker holds now."""
        self.metrics.in_flight.set(self.in_flight.count)


def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


PartsDep = Annotated[Parts, Depends(_parts)]

# Only for the document: `Keys.check` does the work, in constant time.
_BEARER: Final = HTTPBearer(auto_error=False, description="A key of SLIMRANK_KEYS.")


def requires(*scopes: str) -> Callable[..., None]:
    """A dependency that lets in callers whose key has one of ``scopes``."""

    def check(request: Request, parts: PartsDep, _: Annotated[object, Security(_BEARER)]) -> None:
        header = request.headers.get("authorization")
        parts.keys.check(None if header is None else header.encode("latin-1"), *scopes)

    return check


def takes_json(request: Request) -> None:
    """A dependency that lets in bodies declared as JSON."""
    check_media_type(request.headers.get("content-type", "").encode("latin-1"))


def check_media_type(value: bytes) -> None:
    """Let JSON in UTF-8 in.

    Raises:
        UnsupportedMediaType: it is declared as something else.
    """
    media_type, _, parameters = value.decode("latin-1").lower().partition(";")
    charset = parameters.replace(" ", "").replace('"', "").partition("charset=")[2]
    is_json = media_type.strip() == "application/json" or media_type.strip().endswith("+json")
    if not is_json or charset.partition(";")[0] not in {"", "utf-8", "utf8", "us-ascii"}:
        raise UnsupportedMediaType(
            f"expected application/json in UTF-8, got {value.decode('latin-1')!r}"
        )


def request_id_of(value: bytes | None) -> str:
    """The caller's request id, printable and of bounded length; or a new one."""
    if value is not None:
        if _PRINTABLE.fullmatch(value):
            return value.decode("ascii")
        if cleaned := _UNPRINTABLE.sub(b"", value)[:MAX_REQUEST_ID]:
            return cleaned.decode("ascii")
    return f"{random.getrandbits(64):016x}"  # a name, no secret; a fork has numbers of its own


def by_name(headers: Iterable[tuple[bytes, bytes]]) -> Mapping[bytes, bytes]:
    """Headers by name: of each the first."""
    return dict(reversed([*headers]))
