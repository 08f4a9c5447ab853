"""The gate by itself, with a clock in hand."""

import pytest

from service import gate
from service.errors import Forbidden, RateLimited, Unauthenticated
from service.gate import Keys, RateLimit


def test_without_keys_everybody_may() -> None:
    """Keys are off until configured."""
    assert Keys({}).check(None, "admin") is None


def test_a_key_is_named_by_its_digest_only() -> None:
    """What is logged or counted of a key does not hold it."""
    keys = Keys({"secret": frozenset({"rank"}), "other": frozenset({"admin"})})

    name = keys.check(b"bearer  secret ", "rank", "admin")

    assert name is not None
    assert "secret" not in name
    with pytest.raises(Forbidden):
        keys.check(b"Bearer secret", "admin")
    with pytest.raises(Unauthenticated):
        keys.check(b"Bearer secre", "rank")


def test_a_bucket_fills_with_time_up_to_the_burst() -> None:
    """Two tokens a second, never more than three."""
    now = 0.0
    limit = RateLimit(2.0, 3, lambda: now)
    for _ in range(3):
        limit.take("a")
    with pytest.raises(RateLimited) as refused:
        limit.take("a")
    limit.take("b")
    now = 0.5
    limit.take("a")
    now = 100.0
    for _ in range(3):
        limit.take("a")
    with pytest.raises(RateLimited):
        limit.take("a")

    assert refused.value.retry_after_s == 1
    RateLimit(None, 1, lambda: now).take("a")


def test_the_callers_seen_longest_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory does not grow with the number of callers."""
    monkeypatch.setattr(gate, "MAX_BUCKETS", 2)
    limit = RateLimit(0.001, 1, lambda: 0.0)
    for caller in ("a", "b", "c"):
        limit.take(caller)

    assert len(limit._buckets) == 2
    limit.take("a")
