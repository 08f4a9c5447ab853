"""Metrics are scikit-learn's, and say plainly when they are not defined."""

import numpy as np
import pytest

from compress.metrics import MetricError, accuracy, auc, logloss, quality


def test_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    """Of the four pairs of a positive and a negative row, three are ordered rightly."""
    assert auc([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1]) == 0.75


def test_a_tie_counts_half() -> None:
    """Rows with equal scores are half right."""
    assert auc([1, 0], [0.5, 0.5]) == 0.5


def test_logloss_is_the_mean_of_minus_log_likelihood() -> None:
    """Worked by hand: -(ln 0.8 + ln 0.6) / 2."""
    assert logloss([1, 0], [0.8, 0.4]) == pytest.approx(-(np.log(0.8) + np.log(0.6)) / 2)


def test_a_sure_and_wrong_probability_costs_a_finite_loss() -> None:
    """Float32 probabilities of exactly 0 and 1 do not make the loss infinite."""
    loss = logloss(np.array([1, 0], np.float32), np.array([0.0, 1.0], np.float32))

    assert np.isfinite(loss)
    assert loss > 10.0


def test_logloss_of_one_class_is_defined() -> None:
    """Unlike AUC, log loss needs no second class."""
    assert logloss([1, 1], [0.5, 0.5]) == pytest.approx(np.log(2))


def test_accuracy_cuts_at_a_half() -> None:
    """0.5 counts as a click."""
    assert accuracy([1, 0, 1, 0], [0.5, 0.49, 0.2, 0.9]) == 0.5


def test_quality_gathers_all_three() -> None:
    """The record holds each metric and the number of rows."""
    labels, p = np.array([1, 0, 1, 0]), np.array([0.9, 0.8, 0.7, 0.1])

    found = quality(labels, p)

    assert (found.auc, found.logloss, found.accuracy, found.rows) == (
        auc(labels, p),
        logloss(labels, p),
        accuracy(labels, p),
        4,
    )


@pytest.mark.parametrize("label", [0, 1])
def test_auc_of_one_class_is_refused(label: int) -> None:
    """The error says which label all the rows have."""
    with pytest.raises(MetricError, match=f"all 3 labels are {label}"):
        auc([label] * 3, [0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([], [], "at least one row"),
        ([1, 0], [0.5], r"shapes \(2,\) and \(1,\)"),
        ([1, 2], [0.5, 0.5], "labels are 0 or 1, got 2.0"),
        ([1, 0], [0.5, np.nan], "1 of 2 scores are not finite"),
    ],
)
def test_unusable_values_are_refused(labels: list[int], scores: list[float], message: str) -> None:
    """Each fault is named."""
    with pytest.raises(MetricError, match=message):
        auc(labels, scores)


def test_scores_that_are_no_probabilities_have_no_logloss() -> None:
    """Logits handed in by mistake are noticed."""
    with pytest.raises(MetricError, match="expected probabilities"):
        logloss([1, 0], [2.5, -1.0])
