"""Logging: JSON lines on standard output, configured once from ``__main__``."""

import logging
import sys
from collections.abc import Callable
from typing import Any, Final, Literal

import orjson
import structlog
from structlog.types import EventDict, Processor

Format = Literal["auto", "json", "text"]

_SHARED: Final[tuple[Processor, ...]] = (
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)


def _to_json(event: Any, **_: Any) -> bytes:
    return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS)


def _to_text(event: Any, **_: Any) -> str:
    return _to_json(event).decode()


def _without_colours(_: Any, __: str, event: EventDict) -> EventDict:
    """Uvicorn's events carry themselves a second time, coloured."""
    event.pop("color_message", None)
    return event


def configure(level: str, style: Format) -> None:
    """Send our events and those of the libraries to standard output, in one format."""
    number = logging.getLevelNamesMapping()[level.upper()]
    if style == "text" or (style == "auto" and sys.stdout.isatty()):
        ours: list[Processor] = [structlog.dev.ConsoleRenderer()]
        theirs = ours
        factory: Callable[..., Any] = structlog.WriteLoggerFactory(sys.stdout)
    else:
        stack = structlog.processors.format_exc_info
        ours = [stack, structlog.processors.JSONRenderer(serializer=_to_json)]
        theirs = [stack, structlog.processors.JSONRenderer(serializer=_to_text)]
        factory = structlog.BytesLoggerFactory(sys.stdout.buffer)
    structlog.configure(
        processors=[*_SHARED, *ours],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_SHARED, structlog.stdlib.ExtraAdder(), _without_colours],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *theirs],
        )
    )
    logging.basicConfig(level=max(number, logging.INFO), handlers=[handler], force=True)
    # uvicorn says each start and stop at INFO; its access log would repeat ours.
    logging.getLogger("uvicorn.access").disabled = True
