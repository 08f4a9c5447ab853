"""The gate: who may come in (keys, rate limits) and when (in flight, draining)."""

import hmac
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from service.errors import Draining, Forbidden, Overloaded, RateLimited, Unauthenticated

Clock = Callable[[], float]
MAX_BUCKETS: Final = 10_000
BEARER: Final = b"bearer "


class Keys:
    """API keys by the SHA-256 of each; comparisons take the same time whatever the key is."""

    def __init__(self, scopes_by_key: Mapping[str, frozenset[str]]) -> None:
        self._scopes = {
            sha256(key.encode()).digest(): scopes for key, scopes in scopes_by_key.items()
        }

    @property
    def required(self) -> bool:
        """Whether keys are asked for at all."""
        return bool(self._scopes)

    def check(self, authorization: bytes | None, *scopes: str) -> str | None:
        """Let a caller in who has one of ``scopes``; returns a name for the key (never the key).

        Raises:
            Unauthenticated: no key, or an unknown one.
            Forbidden: the key has none of the scopes.
        """
        if not self._scopes:
            return None
        if authorization is None or authorization[: len(BEARER)].lower() != BEARER:
            raise Unauthenticated("send a key as 'Authorization: Bearer KEY'")
        digest = sha256(authorization[len(BEARER) :].strip()).digest()
        granted: frozenset[str] | None = None
        for known, known_scopes in self._scopes.items():
            if hmac.compare_digest(known, digest):
                granted = known_scopes
        if granted is None:
            raise Unauthenticated("unknown key")
        if granted.isdisjoint(scopes):
            raise Forbidden(scopes[0])
        return digest.hex()[:12]


class RateLimit:
    """A token bucket per caller. Those seen longest ago are forgotten, which only helps them."""

    def __init__(self, per_s: float | None, burst: int, clock: Clock) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (tokens, at)

    @property
    def on(self) -> bool:
        """Whether there is a limit."""
        return self._per_s is not None

    def take(self, caller: str) -> None:
        """Take a token.

        Raises:
            RateLimited: there is none, and when there will be.
        """
        if self._per_s is None:
            return
        now = self._clock()
        tokens, at = self._buckets.pop(caller, (float(self._burst), now))
        tokens = min(float(self._burst), tokens + (now - at) * self._per_s)
        granted = tokens >= 1.0
        self._buckets[caller] = (tokens - 1.0 if granted else tokens, now)
        if len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)
        if not granted:
            wait_s = (1.0 - tokens) / self._per_s
            raise RateLimited(
                f"{self._per_s:g} requests per second are agreed, in bursts of {self._burst}",
                math.ceil(wait_s),
            )


@dataclass(slots=True)
class Drain:
    """A worker's way out: serving → leaving (still serves, not ready) → closed (refuses)."""

    leaving: bool = False
    closed: bool = False

    def check(self) -> None:
        """Refuse new work once closed.

        Raises:
            Draining: the worker is about to stop.
        """
        if self.closed:
            raise Draining("this worker is stopping; try again, another one will answer")


@dataclass(slots=True)
class InFlight:
    """How many requests a worker holds, scoring and waiting."""

    limit: int
    count: int = field(default=0, init=False)

    def enter(self) -> None:
        """Count a request in.

        Raises:
            Overloaded: the worker holds as many as it takes.
        """
        if self.count >= self.limit:
            raise Overloaded(f"{self.limit} requests are in flight, no more are taken")
        self.count += 1

    def leave(self) -> None:
        """Count it out."""
        self.count -= 1
