"""Item ids packed: in UTF-8 one after the other, and where each ends.

Ten million Python texts take seconds to make, over half a gigabyte, and Python's lock meanwhile. So
a file of ids, a JSON array of strings, is read by pieces, each cut after a string. In one as JSON
writers make them, `"a","b"` or `"a", "b"` without escapes, the quotes tell the ids apart; any other
piece goes through the JSON parser, which also says what is wrong with it.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

PIECE: Final = 1 << 18  # bytes: what is made of them stays in the processor's cache
MOST_BYTES: Final = np.iinfo(np.uint32).max

_STRINGS: Final = TypeAdapter(list[str])
_QUOTE, _BLANK, _COMMA = b'" ,'


@dataclass(frozen=True, slots=True)
class PackedIds:
    """Ids of row 0, 1, ….

    Attributes:
        text: all of them in UTF-8, one after the other.
        ends: (N + 1,) uint32; id i lies from ``ends[i]`` to ``ends[i + 1]``.
    """

    text: bytes | memoryview
    ends: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.ends) - 1

    @classmethod
    def of(cls, ids: Sequence[str]) -> Self:
        """From a list.

        Raises:
            ValueError: they take over 4 GiB, or one has half a surrogate pair.
        """
        texts = [item.encode() for item in ids]
        return cls._joined(b"".join(texts), [_lengths(texts)])

    @classmethod
    def read(cls, file: BinaryIO) -> Self:
        """From a JSON array of strings.

        Raises:
            ValueError: it is no such thing, or they take over 4 GiB.
        """
        # Not a bytearray: under Python's lock, a hundred megabytes of it take 50 ms to free.
        text, size = np.empty(PIECE, np.uint8), 0
        lengths = [np.empty(0, np.uint32)]
        for some, each in _pieces(file):
            if size + len(some) > len(text):
                text = _larger(text[:size], 2 * (size + len(some)))
            text[size : size + len(some)] = np.frombuffer(some, np.uint8)
            size += len(some)
            lengths.append(each)
        return cls._joined(text[:size].data.toreadonly(), lengths)

    @classmethod
    def _joined(cls, text: bytes | memoryview, lengths: list[NDArray[np.uint32]]) -> Self:
        if len(text) > MOST_BYTES:
            raise ValueError(f"the ids take {len(text)} bytes; expected up to {MOST_BYTES}")
        ends = np.zeros(sum(map(len, lengths)) + 1, np.uint32)
        np.cumsum(np.concatenate(lengths), dtype=np.uint32, out=ends[1:])
        return cls(text, ends)


def _larger(array: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    larger = np.empty(size, np.uint8)
    larger[: len(array)] = array
    return larger


def _pieces(file: BinaryIO) -> Iterator[tuple[bytes, NDArray[np.uint32]]]:
    """Ids one after the other, and the length of each, some at a time."""
    rest, count = b"", 0
    # At least as much as is left over: a string without end is not looked through again and again.
    while chunk := file.read(max(PIECE, len(rest))):
        rest += chunk
        # Backslashes in pairs from the left, then the quotes that one stands before: as escapes go.
        plain = rest.replace(b"\\\\", b"__").replace(b'\\"', b"__") if b"\\" in rest else rest
        quotes = np.flatnonzero(np.frombuffer(plain, np.uint8) == _QUOTE)
        quotes = quotes[: len(quotes) // 2 * 2]
        if not len(quotes):
            continue
        piece, rest = rest[: quotes[-1] + 1], rest[quotes[-1] + 1 :]
        found = _by_quotes(piece, quotes, first=not count) or _by_parser(piece, count)
        yield found
        count += len(found[1])
    # Whatever else there is, such as what is no string, the parser refuses.
    _parsed(_opening(count) + rest, count)


def _by_quotes(
    piece: bytes, quotes: NDArray[np.intp], *, first: bool
) -> tuple[bytes, NDArray[np.uint32]] | None:
    """What lies between quotes; None if the piece is not as JSON writers make it."""
    raw = np.frombuffer(piece, np.uint8)
    opens, closes = quotes[0::2], quotes[1::2]
    gaps = opens[1:] - closes[:-1]
    blank = bool(len(gaps)) and gaps[0] == 3  # noqa: PLR2004  a comma and a blank
    if (
        piece[: opens[0]] not in ((b"[",) if first else (b",", b", "))
        or b"\\" in piece
        or raw.min() < _BLANK
        or (gaps != 2 + blank).any()
        or (raw[closes[:-1] + 1] != _COMMA).any()
        or (blank and (raw[closes[:-1] + 2] != _BLANK).any())
    ):
        return None
    try:
        str(piece, "utf-8")
    except UnicodeDecodeError:
        return None
    within = np.ones(len(raw), np.bool_)
    within[: opens[0]] = within[opens] = within[closes] = within[closes[:-1] + 1] = False
    if blank:
        within[closes[:-1] + 2] = False
    return raw[within].tobytes(), (closes - opens - 1).astype(np.uint32)


def _opening(before: int) -> bytes:
    return b'[""' if before else b""


def _by_parser(piece: bytes, count: int) -> tuple[bytes, NDArray[np.uint32]]:
    texts = [item.encode() for item in _parsed(_opening(count) + piece + b"]", count)]
    return b"".join(texts), _lengths(texts)


def _parsed(array: bytes, before: int) -> list[str]:
    """The strings of an array; where others come before, its first one stands for these.

    Raises:
        ValueError: it is no array of strings.
    """
    texts: Any = None
    # A quarter of the time that the same parser takes to check types as it goes.
    with suppress(ValueError):
        texts = from_json(array, cache_strings="none")
    try:
        if type(texts) is not list or set(map(type, texts)) - {str}:
            texts = _STRINGS.validate_json(array, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f"{int(at) + max(0, before - 1)}: " for at in first["loc"][:1])
        raise ValueError(f"{place}{first['msg']}") from None
    found: list[str] = texts[1:] if before else texts
    return found


def _lengths(texts: Sequence[bytes]) -> NDArray[np.uint32]:
    return np.fromiter(map(len, texts), np.uint32, len(texts))
