"""Logging: JSON lines on standard output, configured once from ``__main__``."""

import logging
import sys
from typing import Any, Final, Literal

import orjson
import structlog
from structlog.types import Processor

Format = Literal["auto", "json", "text"]

_SHARED: Final[tuple[Processor, ...]] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)


def _to_json(event: Any, **_: Any) -> str:
    return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()


def configure(level: str, style: Format) -> None:
    """Send our events and those of the libraries to standard output, in one format."""
    text = style == "text" or (style == "auto" and sys.stdout.isatty())
    renderer: list[Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if text
        else [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_to_json),
        ]
    )
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*_SHARED, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_SHARED, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    logging.basicConfig(level=max(number, logging.INFO), handlers=[handler], force=True)
    # uvicorn says each start and stop at INFO; its access log would repeat ours.
    logging.getLogger("uvicorn.access").disabled = True
