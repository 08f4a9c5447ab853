"""Logging: JSON lines on standard output, configured once from ``__main__``."""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from select import PIPE_BUF
from typing import Any, Final, Literal

import msgspec
import orjson
import structlog
from structlog.types import EventDict, Processor

Format = Literal["auto", "json", "text"]
_LINES: Final = msgspec.json.Encoder()
_ADDED: Final = frozenset({"level", "timestamp"})  # what structlog adds itself

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


def lines_of_requests(level: str, style: Format) -> Callable[[Sequence[msgspec.Struct]], None]:
    """What writes finished lines of level INFO, many at once, in the format of all others.

    As JSON without structlog's steps, which cost five times as much as the line.
    """
    if logging.getLevelNamesMapping()[level.upper()] > logging.INFO:
        return _write_nothing
    return _write_text if _is_text(style) else _write_json


def _write_nothing(events: Sequence[msgspec.Struct]) -> None:
    del events


def _write_text(events: Sequence[msgspec.Struct]) -> None:
    log = structlog.get_logger(__name__)
    for each in map(msgspec.to_builtins, events):
        log.info(**{name: value for name, value in each.items() if name not in _ADDED})


def _write_json(events: Sequence[msgspec.Struct]) -> None:
    for some in _together(_LINES.encode_lines(events)):
        sys.stdout.buffer.write(some)
        sys.stdout.buffer.flush()


def _together(lines: bytes) -> Iterator[bytes]:
    """As many lines as a pipe takes whole: more could be cut by those of another worker."""
    start = 0
    while len(lines) - start > PIPE_BUF:
        end = lines.rfind(b"\n", start, start + PIPE_BUF) + 1
        end = end or lines.index(b"\n", start) + 1  # a line that is longer
        yield lines[start:end]
        start = end
    yield lines[start:]


def _is_text(style: Format) -> bool:
    return style == "text" or (style == "auto" and sys.stdout.isatty())


class _Lossy:
    """A stream whose lines are lost where nothing can be written: what told of them goes on."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, line: str | bytes) -> None:
        with suppress(OSError, ValueError):  # nobody reads, a full disk; a closed stream
            self._stream.write(line)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


def configure(level: str, style: Format) -> None:
    """Send our events and those of the libraries to standard output, in one format."""
    number = logging.getLevelNamesMapping()[level.upper()]
    if _is_text(style):
        ours: list[Processor] = [structlog.dev.ConsoleRenderer()]
        theirs = ours
        factory: Callable[..., Any] = structlog.WriteLoggerFactory(_Lossy(sys.stdout))  # type: ignore[arg-type]
    else:
        stack = structlog.processors.format_exc_info
        ours = [stack, structlog.processors.JSONRenderer(serializer=_to_json)]
        theirs = [stack, structlog.processors.JSONRenderer(serializer=_to_text)]
        factory = structlog.BytesLoggerFactory(_Lossy(sys.stdout.buffer))  # type: ignore[arg-type]
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
