"""Encodings learnt from training rows."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.data import fit as module
from compress.data.base import ColumnSpec
from compress.data.fit import make_fitter, x4_bucket
from model_store.manifest import BucketEncoding, Encoding, HashEncoding, NumericEncoding


def fitted(chunks: list[pl.Series], **options: Any) -> tuple[Encoding, list[str] | None]:
    """The encoding after so many chunks."""
    column = ColumnSpec(
        **({"name": "f", "kind": "categorical", "side": "user", "column": "f"} | options)
    )
    fitter = make_fitter(column)
    for chunk in chunks:
        fitter.update(chunk)
    return fitter.result()


def test_tokens_are_ordered_by_count_and_then_by_text() -> None:
    """The order does not depend on the order of the rows."""
    _, tokens = fitted([pl.Series(["b", "a", "c"]), pl.Series(["c", None, "b", "c"])])

    assert tokens == ["c", "b", "a"]


def test_rare_tokens_are_left_out() -> None:
    """min_count is inclusive, and counts over all chunks."""
    encoding, tokens = fitted(
        [pl.Series(["a", "b"]), pl.Series(["a", "c"]), pl.Series(["b", "a"])], min_count=2
    )

    assert tokens == ["a", "b"]
    assert getattr(encoding, "rows", None) == 4


def test_numbers_and_booleans_become_their_canonical_text() -> None:
    """24 and 24.0 are one token, however the file stores them."""
    _, whole = fitted([pl.Series([24, 24, 7])])
    _, float_ = fitted([pl.Series([24.0, 24.0, 7.0, float("nan")])])
    _, truth = fitted([pl.Series([True, True, False])])

    assert whole == float_ == ["24", "7"]
    assert truth == ["true", "false"]


def test_multi_values_are_counted_one_by_one() -> None:
    """Lists and separated text give the same vocabulary; empty parts and lists count nothing."""
    lists = pl.Series([["x", "y"], [], None, ["x", None]])
    text = pl.Series(["x|y", "", None, "x|"])

    assert fitted([lists], kind="multi")[1] == fitted([text], kind="multi")[1] == ["x", "y"]


def test_merging_counts_early_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts merged chunk by chunk equal counts merged at the end."""
    chunks = [pl.Series([f"t{i % k}" for i in range(50)]) for k in (3, 7, 11)]
    late = fitted(chunks)
    monkeypatch.setattr(module, "_PENDING", 0)

    assert fitted(chunks) == late


def test_hashed_features_learn_nothing() -> None:
    """So many buckets and the two special rows."""
    assert fitted([pl.Series(["a"])], hash_buckets=10) == (HashEncoding(rows=12), None)


@given(st.lists(st.lists(st.floats(-1e6, 1e6), max_size=20), min_size=1, max_size=6))
def test_moments_of_chunks_are_those_of_the_whole(chunks: list[list[float]]) -> None:
    """Merging chunk by chunk gives numpy's mean and deviation."""
    encoding, _ = fitted(
        [pl.Series(chunk, dtype=pl.Float64) for chunk in chunks],
        kind="numeric",
        transform="standardize",
    )

    assert isinstance(encoding, NumericEncoding)
    whole = np.concatenate([np.array(chunk) for chunk in chunks])
    if len(whole):
        assert encoding.mean == pytest.approx(whole.mean(), abs=1e-6)
        assert encoding.default == encoding.mean
        if whole.std() > 1e-3:
            assert encoding.scale == pytest.approx(whole.std(), rel=1e-6)


def test_a_constant_column_is_not_divided_by_zero() -> None:
    """Its scale is 1; missing values do not enter the mean."""
    encoding, _ = fitted(
        [pl.Series([3.0, None, 3.0, float("nan")])], kind="numeric", transform="standardize"
    )

    assert encoding == NumericEncoding(transform="standardize", mean=3.0, scale=1.0, default=3.0)


def test_x4_edges_stand_at_the_buckets_seen() -> None:
    """0, 1, 2, then 3-4 (ln² in [1, 2)), 5 (ln² in [2, 3)): an edge at each but the first."""
    encoding, tokens = fitted([pl.Series([0, 1, 2, 3, 4, 5, None])], kind="numeric", transform="x4")

    assert tokens is None
    assert isinstance(encoding, BucketEncoding)
    assert encoding.edges == pytest.approx((1.0, 2.0, np.e, np.exp(np.sqrt(2.0))))


def test_rare_x4_buckets_join_the_one_below() -> None:
    """A bucket seen less than min_count times gets no edge of its own."""
    encoding, _ = fitted(
        [pl.Series([0, 0, 1, 1, 2, 100, 100])], kind="numeric", transform="x4", min_count=2
    )

    assert isinstance(encoding, BucketEncoding)
    assert len(encoding.edges) == 2
    assert encoding.edges[0] == 1.0


@given(st.lists(st.integers(-3, 10**7), min_size=1, max_size=50))
def test_x4_edges_tell_apart_just_the_buckets(values: list[int]) -> None:
    """Two training values share a row exactly if they share a bucket."""
    encoding, _ = fitted([pl.Series(values)], kind="numeric", transform="x4")

    assert isinstance(encoding, BucketEncoding)
    x = np.array(values, np.float64)
    rows = np.searchsorted(np.array(encoding.edges), x, side="right")
    buckets = x4_bucket(x)
    assert ((rows[:, None] == rows) == (buckets[:, None] == buckets)).all()


def test_x4_buckets_follow_the_published_formula() -> None:
    """floor(ln(x)²) above 2, x itself below; the numbering is shifted by 2 to stay in order."""
    x = np.arange(3, 2000, dtype=np.float64)

    assert (x4_bucket(x) - 2 == np.floor(np.log(x) ** 2)).all()
    assert x4_bucket(np.array([-2.0, 0.0, 2.0])).tolist() == [-2, 0, 2]
