"""The synthetic source: known signal, known noise, any size."""

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression

from compress.data.base import PARTS, Part
from compress.data.synthetic import CHUNK_ROWS, LABEL, Synthetic, SyntheticConfig
from compress.metrics import auc


def synthetic(**options: object) -> Synthetic:
    """A source with these options."""
    return Synthetic(SyntheticConfig.model_validate(options))


def rows_of(source: Synthetic, part: Part) -> pl.DataFrame:
    """A whole part."""
    return pl.concat(frame for _, frame in source.chunks((part,)))


def mean_target_auc(source: Synthetic, name: str) -> float:
    """How well one field tells the label: test rows scored by their value's training mean."""
    train, test = rows_of(source, "train"), rows_of(source, "test")
    if train[name].dtype == pl.Float64:  # by tenths
        edges = np.nanquantile(train[name].to_numpy(), np.arange(0.1, 1.0, 0.1))
        train, test = (
            f.with_columns(pl.Series(name, np.searchsorted(edges, f[name].to_numpy())))
            for f in (train, test)
        )
    means = train.group_by(name).agg(pl.col(LABEL).mean().alias("p"))
    scored = test.join(means, on=name, how="left", nulls_equal=True)
    return auc(scored[LABEL].to_numpy(), scored["p"].fill_null(0.3).to_numpy())


def test_parts_are_in_time_order_and_complete() -> None:
    """80, 10 and 10 % of the rows, over chunk borders."""
    rows = 2 * CHUNK_ROWS + 100
    source = synthetic(rows=rows)

    sizes = [sum(len(frame) for _, frame in source.chunks((part,))) for part in PARTS]

    assert sum(sizes) == rows
    assert sizes[1] == sizes[2] == round(rows / 10)


def test_a_row_does_not_depend_on_how_many_there_are() -> None:
    """The first training rows of a larger set are those of a smaller one."""
    small, large = (rows_of(synthetic(rows=rows), "train") for rows in (1000, 40_000))

    assert large.head(len(small)).equals(small)


def test_a_seed_makes_the_data() -> None:
    """The same seed gives the same rows, another one others."""
    one, same, other = (rows_of(synthetic(rows=500, seed=s), "test") for s in (1, 1, 2))

    assert one.equals(same)
    assert not one.equals(other)


def test_an_item_has_the_same_features_in_every_row() -> None:
    """They are the catalogue's."""
    source = synthetic(rows=2000, catalogue=30)
    items = source.items()
    assert items is not None

    rows = rows_of(source, "train")
    shown = rows.select(items.columns).unique()

    assert len(shown) == rows["item_id"].n_unique()
    assert len(shown.join(items, on="item_id", how="semi")) == len(shown)
    assert shown.sort("item_id").equals(
        items.filter(pl.col("item_id").is_in(shown["item_id"].implode())).sort("item_id")
    )


def test_without_a_catalogue_there_are_no_ids() -> None:
    """Each row shows an item of its own."""
    source = synthetic(rows=100, catalogue=0)

    assert source.items() is None
    assert source.schema().item_id is None


def test_noise_tells_nothing() -> None:
    """Each noise field alone scores test rows like a coin; each informative one better."""
    source = synthetic(rows=60_000, catalogue=0)

    assert len(source.noise) == 6
    for name in source.noise:
        assert abs(mean_target_auc(source, name) - 0.5) < 0.025
    for name in set(source.informative) - {"i_tags"}:
        assert mean_target_auc(source, name) > 0.53


@pytest.mark.slow
def test_no_learner_beats_the_bayes_auc_and_the_right_one_comes_near() -> None:
    """A logistic regression on the rule's own terms ends just below it."""
    source = synthetic(rows=24_000, catalogue=0, missing=0.0)

    def inputs(part: Part) -> tuple[np.ndarray, np.ndarray]:
        rows = rows_of(source, part)
        segment, genre = (
            rows[name].str.slice(1).cast(pl.Int64).to_numpy() for name in ("u_segment", "i_genre")
        )
        columns = [np.eye(240)[segment * 12 + genre], np.eye(24)[rows["c_hour"].to_numpy()]]
        columns += [
            np.log1p(rows["c_dwell"].to_numpy())[:, None] - 2.0,
            rows["i_price"].to_numpy()[:, None] / 5.0 - 2.0,
        ]
        tags = rows["i_tags"].fill_null(pl.Series([[]], dtype=pl.List(pl.String)))
        columns += [tags.list.contains(f"t{t}").to_numpy()[:, None] for t in range(10)]
        return np.hstack(columns), rows[LABEL].to_numpy()

    learner = LogisticRegression(C=0.3, max_iter=300).fit(*inputs("train"))
    x, y = inputs("test")
    learnt = auc(y, learner.predict_proba(x)[:, 1])

    assert learnt < source.bayes_auc("test") < 0.9
    assert learnt > source.bayes_auc("test") - 0.03


def test_without_signal_the_bayes_auc_is_a_half() -> None:
    """All logits are the bias."""
    assert synthetic(rows=2000, signal=0.0).bayes_auc() == 0.5
