"""How the tokens of a feature lie in a bundle: as a plain JSON array, or in the fewest bytes.

Few bytes are JSON in gzip or, for tokens that are numbers, the code of a set of numbers, which
forgets their order. So the rows of such a feature's table are put in the order of its numbers.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_store.manifest import VocabularyEncoding
from model_store.packing import GZIP, as_numbers, encode_numbers, packed

NUMBERS = ".numbers"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Known tokens as a bundle holds them.

    Attributes:
        encoding: names the file and its form.
        raw: the file's bytes.
        tokens: in the order of their rows, row 2 first.
        order: where each of them stood before, (tokens,); None: where it stands.
    """

    encoding: VocabularyEncoding
    raw: bytes
    tokens: Sequence[str]
    order: NDArray[np.int64] | None = None


def as_json(encoding: VocabularyEncoding, tokens: Sequence[str]) -> Vocabulary:
    """The tokens as a JSON array."""
    text = json.dumps(list(tokens), ensure_ascii=False)
    return Vocabulary(encoding, f"{text}\n".encode(), tokens)


def in_few_bytes(encoding: VocabularyEncoding, tokens: Sequence[str]) -> Vocabulary:
    """The tokens in whichever form takes the fewest bytes."""
    plain = as_json(encoding, tokens)
    zipped = encoding.model_copy(update={"file": encoding.file + GZIP})
    forms = [plain, Vocabulary(zipped, packed(plain.raw), tokens), *_as_numbers(encoding, tokens)]
    return min(forms, key=lambda form: len(form.raw))


def _as_numbers(encoding: VocabularyEncoding, tokens: Sequence[str]) -> list[Vocabulary]:
    found = as_numbers(tokens)
    if found is None:
        return []
    numbers = np.array(found[1], np.uint64)
    order = np.argsort(numbers)
    file = encoding.file.removesuffix(".json") + NUMBERS
    return [
        Vocabulary(
            encoding.model_copy(update={"file": file, "numbers": found[0]}),
            encode_numbers(found[0], numbers[order]),
            [tokens[place] for place in order],
            order,
        )
    ]
