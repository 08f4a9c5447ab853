"""Files that are kept small: JSON in gzip, tokens that are numbers as a code for sets of numbers.

Hashed categories are hexadecimal numbers, ids mostly decimal ones. A set of n numbers below u takes
about 2 + log2(u / n) bits a number as an Elias-Fano code (Elias, JACM 1974): the low bits of each
as they are, and of the high bits, which only grow, the steps in unary. 5,000 hashes of eight digits
take 2.6 bytes each, ids without gaps a quarter of a byte.
"""

import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, cast

import numpy as np
from numpy.typing import NDArray

from model_store.errors import BundleCorrupt
from model_store.manifest import NumberCode

Numbers = NDArray[np.uint64]

PATTERNS: Final = {10: re.compile(r"[0-9]{1,20}"), 16: re.compile(r"[0-9a-f]{1,16}")}
LARGEST: Final = (1 << 64) - 1
AT_ONCE: Final = 1 << 16  # tokens; their low bits fill whole bytes
GZIP: Final = ".gz"  # a file whose name ends so is kept in gzip


def packed(raw: bytes) -> bytes:
    """A file's bytes in gzip, the same ones for the same ``raw``."""
    return gzip.compress(raw, compresslevel=9, mtime=0)


def unpacked(path: Path) -> bytes:
    """What a file holds, taken out of gzip where its name says so.

    Raises:
        BundleCorrupt: it is not in gzip.
    """
    with unpacking(path) as file:
        return file.read()


@contextmanager
def unpacking(path: Path) -> Iterator[BinaryIO]:
    """The same, to be read by and by."""
    if path.suffix != GZIP:
        with path.open("rb") as file:
            yield file
        return
    try:
        with gzip.open(path) as file:
            yield cast("BinaryIO", file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BundleCorrupt(f"{path}: not in gzip ({error}); publish the bundle again") from None


def as_numbers(tokens: Sequence[str]) -> tuple[NumberCode, list[int]] | None:
    """How tokens can be kept as numbers, and the numbers; None if they cannot.

    >>> as_numbers(["07", "1f"])
    (NumberCode(base=16, digits=2, tokens=2, bits=4), [7, 31])
    >>> as_numbers(["7", "07"]), as_numbers(["1F"]), as_numbers([])
    (None, None, None)
    """
    for base in (10, 16):
        if tokens and all(map(PATTERNS[base].fullmatch, tokens)):
            digits = _digits(tokens)
            numbers = [int(text, base) for text in tokens]
            if digits is None or max(numbers) > LARGEST or len(set(numbers)) < len(numbers):
                return None
            gap = (max(numbers) + 1) // len(numbers)
            bits = min(63, max(0, gap.bit_length() - 1))
            return NumberCode(base=base, digits=digits, tokens=len(tokens), bits=bits), numbers
    return None


def _digits(tokens: Sequence[str]) -> int | None:
    if not any(text.startswith("0") and text != "0" for text in tokens):
        return 0
    lengths = set(map(len, tokens))
    return lengths.pop() if len(lengths) == 1 else None


def encode_numbers(code: NumberCode, numbers: Numbers) -> bytes:
    """The file of numbers (n,) in ascending order.

    >>> code = NumberCode(base=10, digits=0, tokens=3, bits=1)
    >>> encode_numbers(code, np.array([1, 4, 5], np.uint64)).hex()
    '0519'
    """
    low = bytearray()
    for start in range(0, len(numbers), AT_ONCE):
        block = numbers[start : start + AT_ONCE].astype("<u8").view(np.uint8).reshape(-1, 8)
        flags = np.unpackbits(block, axis=1, bitorder="little")[:, : code.bits]
        low += np.packbits(flags, bitorder="little").tobytes()
    high = (numbers >> np.uint64(code.bits)).astype(np.int64)
    steps = np.zeros(int(high[-1]) + len(numbers), np.uint8)
    steps[high + np.arange(len(numbers))] = 1
    return bytes(low) + np.packbits(steps, bitorder="little").tobytes()


def decode_tokens(code: NumberCode, raw: bytes) -> list[str]:
    """The tokens of a file, in ascending order of their numbers.

    Raises:
        ValueError: the file does not hold so many different numbers of so many digits.
    """
    numbers = _numbers(code, np.frombuffer(raw, np.uint8))
    if (numbers[1:] <= numbers[:-1]).any():
        raise ValueError("expected numbers in ascending order")
    if code.digits and int(numbers[-1]) >= code.base**code.digits:
        raise ValueError(f"expected numbers of {code.digits} digits, found one of more")
    if code.base == 16 and 0 < code.digits <= 16:  # noqa: PLR2004
        # One text for all of them: several times as fast as one by one.
        text = numbers.astype(">u8").tobytes().hex()
        return [text[end - code.digits : end] for end in range(16, len(text) + 1, 16)]
    form = f"{{:0{code.digits}{'d' if code.base == 10 else 'x'}}}".format  # noqa: PLR2004
    return list(map(form, numbers.tolist()))


def _numbers(code: NumberCode, raw: NDArray[np.uint8]) -> Numbers:
    size = -(-code.tokens * code.bits // 8)  # of the low bits, in bytes
    high = np.flatnonzero(np.unpackbits(raw[size:], bitorder="little"))
    if len(high) != code.tokens:
        raise ValueError(f"expected {code.tokens} numbers, found {len(high)}")
    high -= np.arange(code.tokens)
    numbers = high.astype(np.uint64) << np.uint64(code.bits)
    for start in range(0, code.tokens, AT_ONCE):
        block = numbers[start : start + AT_ONCE]
        first, count = start * code.bits // 8, len(block) * code.bits
        flags = np.zeros((len(block), 64), np.uint8)
        low = np.unpackbits(raw[first:size], bitorder="little", count=count)
        flags[:, : code.bits] = low.reshape(len(block), code.bits)
        block |= np.packbits(flags, axis=1, bitorder="little").view("<u8")[:, 0]
    return numbers
