from typing import Any, Final

from numpy.typing import NDArray

# Arrays lie in C order; their types are what service/kernels.py says.
Array = NDArray[Any]

VERSION: Final[int]

def add_repeats(scores: Array, rows: Array, session: Array, weights: Array, /) -> None: ...
def told_apart(rows: Array, odd: int, /) -> bool: ...
def all_finite(numbers: Array, /) -> bool: ...
def best_first(scores: Array, places: Array, best: Array, /) -> None: ...
def items_json(ids: bytes, scores: bytes, cold: bytes, /) -> bytes: ...
def milliseconds(seconds: list[float], /) -> list[float]: ...
def server_timing(names: tuple[bytes, ...], seconds: list[float], /) -> bytes: ...
def picked(values: list[Any], places: Array, /) -> list[Any]: ...
def best_of(scores: Array, best: Array, rows: Array, /) -> None: ...
def taken(
    codes: Array,
    width: int,
    books: int,
    rows: Array,
    tables: Array,
    words: int,
    found: Array,
    /,
) -> None: ...
def ranking_loop(
    codes: Array,
    width: int,
    books: int,
    tables: Array,
    words: int,
    session: Array,
    repeats: Array,
    /,
) -> object: ...
def ranked(
    loop: object, values: list[Any], rows: Array, places: Array, best: Array, /
) -> list[Any] | None: ...
def vectors(
    codes: Array,
    bytes_: int,
    rows: Array,
    codebooks: Array,
    books: int,
    words: int,
    width: int,
    concatenated: bool,
    found: Array,
    /,
) -> None: ...
def scanned(
    codes: Array, width: int, books: int, tables: Array, words: int, best: Array, rows: Array, /
) -> None: ...
def taken_from_blocks(
    blocks: Array, pairs: int, rows: Array, tables: Array, words: int, found: Array, /
) -> None: ...
def scanned_blocks(
    blocks: Array,
    pairs: int,
    tables: Array,
    words: int,
    entries: Array,
    ceiling: float,
    step: float,
    items: int,
    shuffle: bool,
    best: Array,
    rows: Array,
    /,
) -> None: ...
def shuffles() -> bool: ...
def lay_tokens(columns: tuple[Any, ...], width: int, rows: Array, /) -> list[int]: ...
def numbers(columns: tuple[Any, ...], found: Array, /) -> bool: ...
def lay_numbers(numbers: Array, columns: Array, tensor: Array, width: int, /) -> None: ...
def layout(
    names: tuple[Any, ...], places: tuple[Any, ...], width: int, columns: int, several: bool, /
) -> Any: ...
def lay_side(layout: Any, values: dict[str, Any], rows: Array, numbers: Array, /) -> bool: ...
def cut_features(body: bytes | bytearray, /) -> tuple[bytes, bytearray] | None: ...
def read_features(
    layout: Any,
    body: Any,
    spans: Array,
    whole: bool,
    candidates: int,
    rows: Array,
    numbers: Array,
    /,
) -> bool: ...
def longest(texts: list[Any], /) -> int: ...
def index_ids(text: bytes | memoryview, ends: Array, key: bytes, slots: Array, /) -> None: ...
def id_rows(text: bytes | memoryview, ends: Array, key: bytes, slots: Array, /) -> object: ...
def find_ids(
    id_rows: object, texts: tuple[list[str] | tuple[str, ...], ...], rows: Array, /
) -> None: ...
