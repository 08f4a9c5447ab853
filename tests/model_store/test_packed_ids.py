"""Packed ids: what a JSON parser reads is what is packed, however the file is cut."""

import json
from io import BytesIO
from itertools import pairwise
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from model_store import packed_ids
from model_store.packed_ids import PackedIds

STRINGS = TypeAdapter(list[str])
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
tokens = st.sampled_from(
    [b'"', b"\\", b",", b"[", b"]", b" ", b"a", b"\xc3", b"\xa9", b"\n", b'"a"', b'","', b"3",
     b"u0041"]
)  # fmt: skip


def read(raw: bytes, piece: int = packed_ids.PIECE) -> list[str]:
    """The ids of a file that is read by so many bytes."""
    with mock.patch.object(packed_ids, "PIECE", piece):
        ids = PackedIds.read(BytesIO(raw))
    text, ends = bytes(ids.text), ids.ends.tolist()
    assert ids.ends.dtype == np.uint32
    assert len(ids) == len(ends) - 1
    return [text[start:end].decode() for start, end in pairwise(ends)]


@given(
    st.lists(texts, max_size=30),
    st.booleans(),
    st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", ":")]),
    st.integers(1, 40),
)
@example(['\\"', '"', "\\\\", '\\",", "'], True, (",", ":"), 1)
@example(["é", "日本", "𝄞", ""], False, (", ", ": "), 3)
@example(["é", "𝄞"], True, (", ", ": "), 5)
def test_what_json_writes_is_read(
    ids: list[str], ascii_only: bool, separators: tuple[str, str], piece: int
) -> None:
    """With escapes or without, whatever stands between, wherever a piece ends."""
    raw = json.dumps(ids, ensure_ascii=ascii_only, separators=separators).encode()

    assert read(raw, piece) == ids
    assert read(raw) == ids


@given(st.lists(tokens, max_size=12).map(b"".join), st.booleans(), st.integers(1, 9))
@example(b'"a"]["b"', True, 3)
@example(b'"a", \\"b"', True, 3)
@example(b'"a","b",', True, 3)
@example(b'"a","\\ud800"', True, 3)
def test_what_a_parser_refuses_is_refused(middle: bytes, array: bool, piece: int) -> None:
    """And what it takes is taken: no file means one thing here and another there."""
    raw = b"[" + middle + b"]" if array else middle
    try:
        expected = STRINGS.validate_json(raw, strict=True)
    except ValidationError:
        with pytest.raises(ValueError, match=r"."):
            read(raw, piece)
    else:
        assert read(raw, piece) == expected


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"{}", "should be a valid array"),
        (b'["a", "b", 3, "c"]', "^2: Input should be a valid string"),
        (b'["a", "b", 3]', "^2: Input should be a valid string"),
        (b"[3]", "^0: Input should be a valid string"),
        (b'["a"', "Invalid JSON"),
        (b"", "Invalid JSON"),
    ],
)
@pytest.mark.parametrize("piece", [3, 1000])
def test_what_is_wrong_is_told(raw: bytes, complaint: str, piece: int) -> None:
    """By the place in the whole array, wherever pieces end."""
    with pytest.raises(ValueError, match=complaint):
        read(raw, piece)


def test_a_string_without_end_is_not_looked_through_again_and_again() -> None:
    """Pieces grow with what is left over: a megabyte takes some twenty of them, not a million."""
    chunks: list[int] = []

    class Counted(BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            chunks.append(size or 0)
            return super().read(size)

    with mock.patch.object(packed_ids, "PIECE", 1), pytest.raises(ValueError, match="EOF"):
        PackedIds.read(Counted(b'["' + b"a" * 1_000_000))

    assert len(chunks) < 30


def test_more_than_ends_can_count_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else they would begin again at 0."""
    monkeypatch.setattr(packed_ids, "MOST_BYTES", 9)

    with pytest.raises(ValueError, match="the ids take 10 bytes; expected up to 9"):
        PackedIds.of(["12345", "67890"])


def test_half_a_surrogate_pair_is_refused() -> None:
    """JSON can spell it and UTF-8 cannot."""
    with pytest.raises(ValueError, match="surrogates not allowed"):
        PackedIds.of(["\ud800"])
