"""Exports of one ranker over and over, for the price of one."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from compress.sessions import export as exporting
from compress.sessions.config import Weights
from compress.sessions.rankers.base import SessionRanker


@contextmanager
def traced_once() -> Iterator[None]:
    """Where the same ranker is exported again, its graph is written again without tracing.

    Tracing takes seconds; that it comes to the same bytes each time is a test of `test_export`.
    """
    trace, written = exporting.write_graph, {}

    def write(ranker: SessionRanker, path: Path, weights: Weights) -> None:
        key = (type(ranker), ranker.config, weights, digest(ranker))
        if key not in written:
            trace(ranker, path, weights)
            written[key] = path.read_bytes()
        path.write_bytes(written[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "write_graph", write)
        yield


def digest(ranker: SessionRanker) -> str:
    """Of every number that a ranker holds."""
    found = hashlib.sha256()
    for name, value in ranker.state_dict().items():
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.numpy().tobytes())
    return found.hexdigest()
