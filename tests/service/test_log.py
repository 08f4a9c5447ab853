"""The log: lines of ours and of libraries, and what happens where none can be written."""

import io
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from service import log


class _Pipe(io.BytesIO):
    """Where standard output goes, whose reader may have gone."""

    gone = False

    def write(self, line: Any) -> int:
        """As a pipe does."""
        if self.gone:
            raise BrokenPipeError
        return super().write(line)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize("style", ["json", "text"])
def test_what_cannot_be_written_is_lost_and_nothing_else(
    style: log.Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error is told of while a request is answered: the answer must not depend on it."""
    pipe = _Pipe()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(pipe, write_through=True))
    log.configure("info", style)
    ours = structlog.get_logger("ours")

    ours.info("first")
    pipe.gone = True
    ours.error("nobody reads this")
    pipe.gone = False
    ours.info("again")

    assert b"first" in pipe.getvalue()
    assert b"again" in pipe.getvalue()
