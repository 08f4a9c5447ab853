"""Raw values become the same numbers offline and online."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.encoding import (
    FIRST,
    LARGEST,
    MISSING,
    OOV,
    BucketEncoder,
    CategoricalEncoder,
    Encoder,
    hash_row,
    make_encoder,
    token,
)
from model_store.errors import BadValue
from model_store.manifest import (
    BucketEncoding,
    Encoding,
    FeatureSpec,
    HashEncoding,
    Kind,
    NumericEncoding,
    VocabularyEncoding,
)

NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)
TOKENS = ["Drama", "Comedy", "24"]


def encoder(
    encoding: Encoding, kind: Kind = "categorical", tokens: list[str] | None = None, length: int = 1
) -> Encoder:
    """An encoder of a feature named f."""
    spec = FeatureSpec(
        name="f", kind=kind, side="item", column="f", encoding=encoding, length=length,
        tensor="candidate_ids",
    )  # fmt: skip
    return make_encoder(spec, tokens)


def vocabulary(default: str | None = None, length: int = 0) -> Encoder:
    """An encoder of three known tokens; multi-valued with a length."""
    encoding = VocabularyEncoding(file="vocab/f.json", rows=5, default=default)
    if length:
        return encoder(encoding, "multi", TOKENS, length)
    return encoder(encoding, "categorical", TOKENS)


def numeric(**options: Any) -> Encoder:
    """An encoder of numbers."""
    return encoder(NumericEncoding(**options), "numeric")


def buckets(*edges: float, default: float | None = None) -> Encoder:
    """An encoder of numbers into buckets."""
    return encoder(BucketEncoding(edges=edges, default=default))


# Tokens


@given(st.integers(min_value=-(2**53), max_value=2**53))
def test_a_number_is_one_token_however_it_is_written(number: int) -> None:
    """24, 24.0 and "24" are the same category, whichever library read the column."""
    same = [number, float(number), np.int64(number), np.float64(number), f"{number}"]

    assert {token(value) for value in same} == {f"{number}"}


@given(st.floats(allow_nan=False))
def test_a_fraction_survives_its_token(number: float) -> None:
    """Different numbers stay different categories."""
    text = token(number)

    assert text is not None
    assert float(text) == number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (np.bool_(False), "false"),
        ("True", "True"),
        ("", ""),
        (" a ", " a "),
        (-0.0, "0"),
        (0.5, "0.5"),
        (math.inf, "inf"),
        (None, None),
        (math.nan, None),
        (np.float32("nan"), None),
    ],
)
def test_tokens_are_canonical(value: Any, text: str | None) -> None:
    """Text is taken as it is; missing values have no token."""
    assert token(value) == text


@pytest.mark.parametrize("value", [[1], {"a": 1}, b"bytes", object()])
def test_what_is_no_category_has_no_token(value: Any) -> None:
    """Lists, objects and bytes are mistakes of the caller."""
    with pytest.raises(TypeError, match="a string, a number or a boolean"):
        token(value)


# Vocabularies


def test_known_unknown_and_missing_have_rows() -> None:
    """0 out of vocabulary, 1 missing, 2.. the known tokens in their order."""
    rows = vocabulary().encode(["Drama", "Comedy", 24, "Crime", "", None, math.nan])

    assert rows.tolist() == [[2], [3], [4], [OOV], [OOV], [MISSING], [MISSING]]
    assert rows.dtype == np.int32


def test_missing_takes_the_default_if_there_is_one() -> None:
    """A declared default is a token like any other; it may even be unknown."""
    assert vocabulary(default="Comedy").encode([None, "Drama"]).tolist() == [[3], [2]]
    assert vocabulary(default="Crime").encode([None]).tolist() == [[OOV]]


@given(st.lists(st.sampled_from([*TOKENS, "Crime", None, 24, 24.0])))
def test_a_column_encodes_as_its_values_do(values: list[Any]) -> None:
    """Neither position nor neighbours change a value's row, whatever way the column takes."""
    one = vocabulary()
    assert isinstance(one, CategoricalEncoder)

    assert one.encode(values).tolist() == [[one.row(value)] for value in values]
    assert one.encode(np.array(values, dtype=object)).tolist() == one.encode(values).tolist()


@given(st.lists(st.sampled_from(TOKENS)))
def test_a_column_of_texts_encodes_as_its_values_do(values: list[str]) -> None:
    """The fast way for plain texts gives what the slow one gives."""
    one = vocabulary()
    assert isinstance(one, CategoricalEncoder)

    assert one.encode(values).tolist() == [[one.row(value)] for value in values]


def test_a_vocabulary_needs_its_tokens() -> None:
    """An encoder without them would call everything unknown."""
    with pytest.raises(ValueError, match="f: a vocabulary encoding needs its tokens"):
        encoder(VocabularyEncoding(file="vocab/f.json", rows=5))


# Hashes


@pytest.mark.parametrize(
    ("text", "row"),
    [("", 2), ("i1", 557), ("user-42", 29), ("Amélie", 736), ("24", 185)],
)
def test_hash_rows_never_change(text: str, row: int) -> None:
    """A published table is indexed by these rows: they are part of the format."""
    assert hash_row(text, 1000) == row


@given(st.text(alphabet=st.characters(exclude_categories=[])), st.integers(3, 2**31 - 1))
def test_a_hash_row_is_in_its_table(text: str, rows: int) -> None:
    """Any text, half surrogate pairs included, has a row above those of unknown and missing."""
    assert FIRST <= hash_row(text, rows) < rows


def test_a_hashed_feature_has_no_unknown() -> None:
    """Only missing values have a row of their own."""
    one = encoder(HashEncoding(rows=1000))
    rows = one.encode(["i1", 24, None])

    assert rows.tolist() == [[hash_row("i1", 1000)], [hash_row("24", 1000)], [MISSING]]


# Several values


@pytest.mark.parametrize(
    ("value", "rows"),
    [
        (["Drama", "Comedy", "Crime"], [2, 3]),
        (["Comedy"], [3, MISSING]),
        (("Comedy",), [3, MISSING]),
        (np.array(["Comedy"]), [3, MISSING]),
        ([None, "Comedy"], [3, MISSING]),
        ("Comedy|Drama|Crime", [3, 2]),
        ("|Comedy|", [3, MISSING]),
        ("Crime", [OOV, MISSING]),
        ([24], [4, MISSING]),
        ("", [MISSING, MISSING]),
        ([], [MISSING, MISSING]),
        (None, [MISSING, MISSING]),
    ],
    ids=repr,
)
def test_several_values_are_cut_and_padded(value: Any, rows: list[int]) -> None:
    """The first values count, up to the length; row 1, which pools to nothing, fills up."""
    assert vocabulary(length=2).encode([value]).tolist() == [rows]


@given(st.lists(st.lists(st.sampled_from(TOKENS), max_size=4), max_size=4))
def test_several_values_keep_their_shape(values: list[list[str]]) -> None:
    """(n, length), also for no values at all."""
    rows = vocabulary(length=3).encode(values)

    assert rows.shape == (len(values), 3)
    assert rows.dtype == np.int32


@given(st.lists(st.sampled_from(TOKENS), max_size=4))
def test_a_list_and_its_text_are_the_same(values: list[str]) -> None:
    """A data file's "Drama|Comedy" and a request's list meet in the same rows."""
    one = vocabulary(length=3)

    assert one.encode([values]).tolist() == one.encode(["|".join(values)]).tolist()


# Buckets


@pytest.mark.parametrize(
    ("value", "row"),
    [(-1e30, 2), (5.999, 2), (6, 3), (17.9, 3), (18.0, 4), (1e30, 4), (None, MISSING)],
)
def test_an_edge_belongs_to_the_bucket_above(value: float | None, row: int) -> None:
    """The row is 2 + the number of edges at or below the value."""
    one = buckets(6.0, 18.0)
    assert isinstance(one, BucketEncoder)

    assert one.encode([value]).tolist() == [[row]]
    assert one.row(value) == row


@given(st.lists(NUMBERS, max_size=5).map(sorted), st.lists(st.none() | NUMBERS, max_size=5))
def test_every_bucket_has_a_row(edges: list[float], values: list[float | None]) -> None:
    """All rows lie in the table, and one value encodes as a column of it does."""
    one = buckets(*edges)
    assert isinstance(one, BucketEncoder)
    rows = one.encode(values)

    assert all(MISSING <= row < one.encoding.rows for row in rows[:, 0])
    assert rows.tolist() == [[one.row(value)] for value in values]


def test_a_missing_number_takes_the_default_bucket() -> None:
    """If one is declared."""
    assert buckets(6.0, default=7.0).encode([None, math.nan, 1.0]).tolist() == [[3], [3], [2]]


# Numbers


@pytest.mark.parametrize(
    ("options", "encoded"),
    [
        ({}, [3.0, -2.0, 0.0]),
        ({"default": 9.0}, [3.0, -2.0, 9.0]),
        ({"transform": "log1p"}, [math.log(4), 0.0, 0.0]),
        ({"transform": "standardize", "mean": 1.0, "scale": 2.0}, [1.0, -1.5, -0.5]),
        (
            {"transform": "standardize", "mean": 1.0, "scale": 2.0, "default": 5.0},
            [1.0, -1.5, 2.0],
        ),
    ],
)
def test_numbers_are_transformed(options: dict[str, Any], encoded: list[float]) -> None:
    """The default stands for a missing value before the transform."""
    numbers = numeric(**options).encode([3, -2.0, None])

    assert numbers.dtype == np.float32
    assert numbers[:, 0].tolist() == pytest.approx(encoded)


@given(st.lists(st.none() | NUMBERS | st.just(math.nan)), st.sampled_from(["identity", "log1p"]))
def test_the_kind_of_column_does_not_matter(values: list[float | None], transform: str) -> None:
    """A list, an array of objects and an array of floats encode alike."""
    one = numeric(transform=transform, default=1.5)
    floats = np.array([math.nan if value is None else value for value in values], np.float64)
    expected = one.encode([None if value is None else np.float64(value) for value in values])

    assert one.encode(values).tolist() == expected.tolist()
    assert one.encode(floats).tolist() == expected.tolist()
    assert np.isfinite(expected).all()


@pytest.mark.parametrize("dtype", [np.int8, np.uint64, np.float32])
def test_arrays_of_any_number_type_are_taken(dtype: type) -> None:
    """As they come from a data frame."""
    assert numeric().encode(np.array([1, 2], dtype)).tolist() == [[1.0], [2.0]]


@given(NUMBERS, NUMBERS, st.floats(min_value=1e-30, max_value=1e30))
def test_a_transformed_number_is_finite(value: float, mean: float, scale: float) -> None:
    """What would not fit float32 becomes its largest number: a graph turns infinity into NaN."""
    one = numeric(transform="standardize", mean=mean, scale=scale)

    assert np.isfinite(one.encode([value])).all()


# Refusals


@pytest.mark.parametrize(
    ("one", "value", "expected"),
    [
        (numeric(), "24", "a number or null"),
        (numeric(), True, "a number or null"),
        (numeric(), [1], "a number or null"),
        (numeric(), math.inf, "a number within ±3.4e38"),
        (numeric(), -1e39, "a number within ±3.4e38"),
        (numeric(), 10**400, "a number within ±3.4e38"),
        (buckets(1.0), "a", "a number or null"),
        (vocabulary(), ["a"], "a string, a number or a boolean"),
        (vocabulary(length=2), 7, "a list of strings, or null"),
        (vocabulary(length=2), [{}], "a string, a number or a boolean"),
    ],
)
def test_a_bad_value_is_told_with_its_place(one: Encoder, value: Any, expected: str) -> None:
    """The error carries feature, position, value and what would have been right."""
    with pytest.raises(BadValue) as caught:
        one.encode([None, value])

    assert (caught.value.feature, caught.value.index) == ("f", 1)
    assert caught.value.expected == expected
    assert f"{caught.value}".startswith(f"f[1]: expected {expected}, got ")


def test_a_bad_number_in_an_array_is_told_with_its_place() -> None:
    """The fast way names the first bad value too."""
    with pytest.raises(BadValue, match=r"f\[2\]: expected a number within ±3.4e38, got inf"):
        numeric().encode(np.array([1.0, math.nan, math.inf, math.inf]))


def test_the_largest_number_is_still_a_number() -> None:
    """The limit is float32's own."""
    assert numeric().encode([LARGEST]).tolist() == [[LARGEST]]
