"""Settings: the only reader of the environment. Every ``SLIMRANK_*`` variable is a field here."""

import json
import os
from contextlib import suppress
from difflib import get_close_matches
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX: Final = "SLIMRANK_"
KEYS: Final = f"{PREFIX}KEYS"
KEYS_FILE: Final = f"{PREFIX}KEYS_FILE"
SCOPES: Final = frozenset({"rank", "admin", "metrics"})


class SettingsInvalid(Exception):
    """The environment does not make sense; the message says which variable and why."""


class Settings(BaseSettings):
    """What can be set: as ``SLIMRANK_`` and the field's name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", allow_inf_nan=False
    )

    store: str = Field(
        default="store", description="Where bundles are: a folder or an fsspec URL (s3://...)."
    )
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="What to serve, comma-separated: name, name@alias or name@version. "
        "A bare name follows the alias prod. Empty: every bundle of the store with that alias.",
    )
    default_model: str | None = Field(
        default=None,
        description="The model of requests that name none. Not needed while one model is served.",
    )
    host: str = Field(default="127.0.0.1", description="The address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="The port to listen on.")
    workers: int = Field(
        default=1, ge=1, le=256, description="Worker processes. One per core, each with one thread."
    )
    cache: str = Field(
        default="memory://",
        description="The cache of item tables and the activation signal: memory://, "
        "redis://[user:password@]host:port/db or rediss://... .",
    )
    cache_timeout_s: float = Field(
        default=2.0, gt=0, description="How long a cache operation may take before it is given up."
    )
    cache_ttl_s: int = Field(
        default=7 * 86400, gt=0, description="How long an unused item table stays in Redis."
    )
    cache_poll_s: float = Field(
        default=1.0, gt=0, description="How often the activation pointer in Redis is read."
    )
    store_poll_s: float = Field(
        default=2.0,
        ge=0,
        description="How often the aliases of the store are read, so that all workers and replicas "
        "follow an activation. 0 turns it off.",
    )
    keys: SecretStr | None = Field(
        default=None,
        description='API keys: a JSON object of key to scopes, {"k1": ["rank"], "k2": ["admin"]}; '
        "scopes are rank, admin and metrics. Unset (and no keys_file): no keys are asked for.",
    )
    keys_file: Path | None = Field(
        default=None, description="A file that holds the same JSON object as keys."
    )
    max_candidates: int = Field(
        default=2000, ge=1, description="Most candidates of one request (422 above)."
    )
    max_body_bytes: int = Field(
        default=2 * 1024 * 1024,
        ge=1,
        description="Longest body (413 above), checked as it arrives.",
    )
    max_session_items: int = Field(
        default=200, ge=0, description="Most session items of one request (422 above)."
    )
    max_id_bytes: int = Field(
        default=256, ge=1, description="Longest id in bytes of UTF-8 (422 above)."
    )
    max_fresh_items: int = Field(
        default=10_000,
        ge=0,
        description="Most items that may be added to a version of a session ranker (409 above).",
    )
    max_in_flight: int = Field(
        default=256,
        ge=1,
        description="Requests a worker holds at once, scoring and waiting (503 overloaded above).",
    )
    body_timeout_s: float = Field(
        default=30.0, gt=0, description="How long a body may take to arrive (504 above)."
    )
    rate_limit_per_s: float | None = Field(
        default=None,
        gt=0,
        description="Requests per second that each key (without keys: each client address) may "
        "send to one worker; 429 above. Unset: no limit.",
    )
    rate_limit_burst: int = Field(
        default=20, ge=1, description="Requests that may come at once under rate_limit_per_s."
    )
    max_batch: int = Field(
        default=32,
        ge=1,
        description="Requests that wait at the same time and are ranked one right after the other, "
        "the last before the first is answered. 1: none.",
    )
    inline_us: float = Field(
        default=2000.0,
        ge=0,
        description="Microseconds: requests predicted to take no longer are answered on the event "
        "loop, others on a thread that gives way to it.",
    )
    score_threads: int = Field(
        default=1, ge=1, le=64, description="Threads for the long requests, per worker."
    )
    golden_tolerance: float = Field(
        default=1e-4,
        gt=0,
        description="How far a score may be from the bundle's golden one; further off, the bundle "
        "is not served.",
    )
    keep_alive_s: int = Field(
        default=75,
        ge=1,
        description="How long an idle connection is kept. Longer than the proxy's.",
    )
    drain_delay_s: float = Field(
        default=1.0,
        ge=0,
        description="After SIGTERM: how long requests are still served while /readyz says no.",
    )
    drain_timeout_s: int = Field(
        default=30, ge=1, description="After drain_delay_s: how long requests in flight may take."
    )
    trusted_proxies: str | None = Field(
        default=None,
        description="Addresses whose X-Forwarded-For is believed (comma-separated, or *). "
        "Unset: nobody's.",
    )
    metrics_dir: Path | None = Field(
        default=None,
        description="Where several workers share their metrics; a temporary folder by default. "
        "Emptied at start.",
    )
    shared_dir: Path | None = Field(
        default=None,
        description="Where several workers share item ids; ~/.cache/slimrank/ids by default. "
        "Delete it at will while no service runs.",
    )
    request_log: bool = Field(default=True, description="One log line per request.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least level that is logged."
    )
    log_format: Literal["auto", "json", "text"] = Field(
        default="auto", description="JSON lines, or coloured text; auto is text on a terminal."
    )

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("models")
    @classmethod
    def _unique(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"a model is listed twice: {', '.join(value)}")
        return value

    @field_validator("cache")
    @classmethod
    def _has_scheme(cls, value: str) -> str:
        if "://" not in value:
            raise ValueError(f"expected a URL like memory:// or redis://host:6379/0, got {value!r}")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _addresses(cls, value: str | None) -> str | None:
        # The server takes what is no address for a name that no connection ever has.
        for part in (value or "").split(","):
            try:
                if part.strip() not in {"", "*"}:
                    ip_network(part.strip())
            except ValueError:
                raise ValueError(
                    f"expected addresses, networks (10.0.0.0/8) or *, got {part.strip()!r}"
                ) from None
        return value

    @model_validator(mode="after")
    def _keys_make_sense(self) -> Self:
        if self.keys is not None and self.keys_file is not None:
            raise ValueError(f"set {KEYS} or {KEYS_FILE}, not both")
        self.api_keys()
        return self

    def shared_folder(self) -> Path | None:
        """Where workers share item ids; None if they do not: one has nobody to share with."""
        if self.workers == 1:
            return None
        if self.shared_dir is not None:
            return self.shared_dir
        with suppress(RuntimeError):  # this user has no home
            return Path.home() / ".cache" / "slimrank" / "ids"
        return None

    def api_keys(self) -> dict[str, frozenset[str]]:
        """API key -> scopes; empty while no keys are asked for."""
        if self.keys_file is not None:
            return _parse_keys(self.keys_file.read_bytes(), KEYS_FILE)
        if self.keys is not None:
            return _parse_keys(self.keys.get_secret_value(), KEYS)
        return {}


def _parse_keys(text: str | bytes, source: str) -> dict[str, frozenset[str]]:
    # No message here may quote the text: it holds secrets.
    try:
        value = json.loads(text)
    except ValueError:
        raise ValueError(f"{source}: not JSON") from None
    if not isinstance(value, dict) or not value:
        raise ValueError(f'{source}: expected a JSON object like {{"the-key": ["rank"]}}')
    keys = {}
    for number, (key, scopes) in enumerate(value.items(), start=1):
        if not key or not isinstance(scopes, list) or not SCOPES.issuperset(map(str, scopes)):
            known = ", ".join(sorted(SCOPES))
            raise ValueError(f"{source}: entry {number}: expected a list of scopes among {known}")
        keys[key] = frozenset(scopes)
    return keys


def load_settings() -> Settings:
    """Settings from the environment.

    Raises:
        SettingsInvalid: a variable is unknown or has no sensible value.
    """
    known = {PREFIX + field.upper() for field in Settings.model_fields}
    # pydantic-settings ignores a mistyped variable in silence.
    for name in sorted(os.environ):  # noqa: TID251  the one reader
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            near = get_close_matches(name.upper(), known, n=1, cutoff=0.0)[0]
            raise SettingsInvalid(f"{name} is not a setting; did you mean {near}?")
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsInvalid(_explain(error)) from None
    except OSError as error:
        raise SettingsInvalid(f"{KEYS_FILE}: {error}") from None


def _explain(error: ValidationError) -> str:
    # The input is left out: it may be a key.
    return "; ".join(
        "".join(f"{PREFIX}{str(field).upper()}: " for field in e["loc"][:1])
        + e["msg"].removeprefix("Value error, ")
        for e in error.errors(include_input=False, include_url=False)
    )


def share_metrics(folder: Path) -> None:
    """Make workers share their metrics through ``folder``: read once, when metrics are imported."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)  # noqa: TID251  prometheus-client reads it


def shared_metrics() -> Path | None:
    """The folder that `share_metrics` named, in this process or the one that started it."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")  # noqa: TID251
    return Path(folder) if folder else None
