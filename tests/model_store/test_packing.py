"""Packed files come back as they were, in few bytes, and damage is told."""

from pathlib import Path

import numpy as np
import pytest

from model_store import packing
from model_store.errors import BundleCorrupt
from model_store.manifest import NumberCode
from model_store.packing import as_numbers, decode_tokens, encode_numbers, packed, unpacked

RNG = np.random.default_rng(0)
HASHES = [f"{n:08x}" for n in np.unique(RNG.integers(0, 1 << 32, 5000))]
SETS = {
    "hashes": HASHES,
    "long hashes": ["00000000000000ff", "0123456789abcdef", "ffffffffffffffff"],
    "ids": [str(n) for n in range(1, 3000)],
    "sparse ids": ["0", "7", "900000000000"],
    "zip codes": ["01002", "01003", "94110"],
    "hex without zeros": ["1f", "a", "ff0"],
    "the largest": ["1", str((1 << 64) - 1)],
    "one": ["5"],
    "zero": ["0"],
}


def coded(tokens: list[str]) -> tuple[NumberCode, bytes]:
    """The code of tokens and their file."""
    found = as_numbers(tokens)
    assert found is not None
    return found[0], encode_numbers(found[0], np.array(sorted(found[1]), np.uint64))


@pytest.mark.parametrize("tokens", SETS.values(), ids=SETS.keys())
def test_tokens_come_back_in_the_order_of_their_numbers(tokens: list[str]) -> None:
    """Every digit of them, whatever order they came in."""
    code, raw = coded(tokens[::-1])

    base = code.base
    assert decode_tokens(code, raw) == sorted(tokens, key=lambda text: int(text, base))


def test_low_bits_are_coded_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file does not depend on how many tokens are coded at once."""
    whole = coded(HASHES)
    monkeypatch.setattr(packing, "AT_ONCE", 64)

    assert coded(HASHES) == whole
    assert decode_tokens(*whole) == HASHES


def test_numbers_take_near_the_fewest_bits() -> None:
    """2 + log2(u / n) bits each: far under the four bytes of a hash, next to nothing for ids."""
    assert len(coded(HASHES)[1]) < 2.75 * len(HASHES)
    assert len(coded(SETS["ids"])[1]) < 0.3 * len(SETS["ids"])


@pytest.mark.parametrize(
    "tokens",
    [["drama"], ["1", "01"], ["001", "01"], ["AB"], ["1.5"], ["-1"], [""], ["٣"], ["9" * 20], []],
    ids=str,
)
def test_other_tokens_are_no_numbers(tokens: list[str]) -> None:
    """Signs, points, capitals, mixed zeros, other digits, and what is over 64 bits."""
    assert as_numbers(tokens) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": 3}, "expected 3 numbers, found 0"),
        ({"bits": 60}, "expected 2 numbers, found 0"),
        ({"digits": 1}, "expected numbers of 1 digits, found one of more"),
    ],
)
def test_a_code_that_does_not_fit_its_file_is_refused(change: dict[str, int], said: str) -> None:
    """What the manifest says and what the file holds must agree."""
    code, raw = coded(["0a", "ff"])

    with pytest.raises(ValueError, match=said):
        decode_tokens(code.model_copy(update=change), raw)


def test_a_number_twice_is_refused() -> None:
    """A token has one row."""
    code = NumberCode(base=10, digits=0, tokens=2, bits=0)

    with pytest.raises(ValueError, match="ascending order"):
        decode_tokens(code, encode_numbers(code, np.array([4, 4], np.uint64)))


def test_files_in_gzip_come_back(tmp_path: Path) -> None:
    """By their names alone, and the same bytes whenever they were packed."""
    path = tmp_path / "x.json.gz"
    path.write_bytes(packed(b"[1, 2]"))
    (tmp_path / "x.json").write_bytes(b"[3]")

    assert unpacked(path) == b"[1, 2]"
    assert unpacked(tmp_path / "x.json") == b"[3]"
    assert packed(b"[1, 2]") == packed(b"[1, 2]")


@pytest.mark.parametrize("cut", [0, 4, 15, -3])
def test_what_is_not_in_gzip_is_refused(tmp_path: Path, cut: int) -> None:
    """A file that was cut off, or is none, is named."""
    path = tmp_path / "x.json.gz"
    path.write_bytes(packed(b"[1, 2]")[:cut] if cut else b"[1, 2]")

    with pytest.raises(BundleCorrupt, match=r"x\.json\.gz: not in gzip"):
        unpacked(path)
