"""Vocabularies take few bytes, and say which token stands in which row."""

import json

import numpy as np

from compress.vocabularies import as_json, in_few_bytes
from model_store.manifest import VocabularyEncoding
from model_store.packing import decode_tokens

ENCODING = VocabularyEncoding(file="vocab/f.json", rows=3002, default="x")


def test_plain_vocabularies_are_json_in_the_order_that_they_came_in() -> None:
    """As the first formats held all of them."""
    found = as_json(ENCODING, ["b", "ä"])

    assert json.loads(found.raw) == ["b", "ä"]
    assert (found.encoding, found.tokens, found.order) == (ENCODING, ["b", "ä"], None)


def test_hashes_are_kept_as_numbers_in_their_order() -> None:
    """A third of the hexadecimal digits' bytes; the order says where each token stood."""
    rng = np.random.default_rng(0)
    tokens = [f"{n:08x}" for n in rng.permutation(np.unique(rng.integers(0, 1 << 32, 3000)))]

    found = in_few_bytes(ENCODING, tokens)

    assert len(found.raw) < 3 * len(tokens)
    assert found.encoding.file == "vocab/f.numbers"
    assert found.encoding.default == "x"
    assert found.encoding.numbers is not None
    assert found.tokens == sorted(tokens)
    assert decode_tokens(found.encoding.numbers, found.raw) == found.tokens
    assert found.order is not None
    assert [tokens[place] for place in found.order] == found.tokens


def test_words_are_kept_in_gzip_in_the_order_that_they_came_in() -> None:
    """And a few words, which gzip would make longer, as they are."""
    many = [f"genre {n % 7} of {n}" for n in range(500)]

    assert in_few_bytes(ENCODING, many).encoding.file == "vocab/f.json.gz"
    assert in_few_bytes(ENCODING, many).tokens == many
    assert len(in_few_bytes(ENCODING, many).raw) < len(as_json(ENCODING, many).raw) / 3
    assert in_few_bytes(ENCODING, ["jazz", "rock"]) == as_json(ENCODING, ["jazz", "rock"])
