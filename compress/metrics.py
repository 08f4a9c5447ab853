"""Quality of click probabilities, from scikit-learn."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from model_store.manifest import Quality


class MetricError(ValueError):
    """A metric is not defined on these labels and scores."""


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve; scores in any monotone scale.

    Raises:
        MetricError: the labels are of one class only, or a value is not usable.
    """
    y, s = _checked(labels, scores)
    if len(classes := np.unique(y)) == 1:
        raise MetricError(
            f"AUC needs positive and negative rows; all {len(y)} labels are {classes[0]:g}"
        )
    return float(roc_auc_score(y, s))


def logloss(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean negative log-likelihood, in nats; defined for one class too."""
    y, p = _checked(labels, probabilities)
    return float(log_loss(y, _within(p), labels=[0.0, 1.0]))


def accuracy(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Share of rows on the right side of 0.5."""
    y, p = _checked(labels, probabilities)
    return float(accuracy_score(y == 1.0, _within(p) >= 0.5))  # noqa: PLR2004


def quality(labels: ArrayLike, probabilities: ArrayLike) -> Quality:
    """All three."""
    return Quality(
        auc=auc(labels, probabilities),
        logloss=logloss(labels, probabilities),
        accuracy=accuracy(labels, probabilities),
        rows=len(np.asarray(labels)),
    )


def _checked(
    labels: ArrayLike, scores: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y, s = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    if y.ndim != 1 or y.shape != s.shape:
        raise MetricError(f"expected a score for each label, got shapes {y.shape} and {s.shape}")
    if not len(y):
        raise MetricError("expected at least one row, got none")
    if strangers := y[(y != 0.0) & (y != 1.0)][:1].tolist():
        raise MetricError(f"labels are 0 or 1, got {strangers[0]!r}")
    if bad := int((~np.isfinite(s)).sum()):
        raise MetricError(f"{bad} of {len(s)} scores are not finite")
    return y, s


def _within(p: NDArray[np.float64]) -> NDArray[np.float64]:
    if p.min() < 0.0 or p.max() > 1.0:
        raise MetricError(f"expected probabilities, got values in [{p.min():g}, {p.max():g}]")
    return p
