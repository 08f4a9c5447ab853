"""The offline compressor: trains rankers, slims them and exports bundles."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from compress.any_module import Slimmed, slim_module
    from compress.budget import Budget

# ONNX Runtime's Linux builds report to their vendor unless told not to before it is imported, and
# `disable_telemetry_events` comes too late: the first report is sent on import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # noqa: TID251 - set for a library, not a setting
# Ray's clusters do the same.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # noqa: TID251

__all__ = ["Budget", "Slimmed", "slim_module"]

HOMES: Final = {
    "Budget": "compress.budget",
    "Slimmed": "compress.any_module",
    "slim_module": "compress.any_module",
}


def __getattr__(name: str) -> Any:
    """What is offered here is imported when it is asked for: commands need no torch to start."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)
