"""How well scores tell two classes apart, and the statistician's first try. No torch here."""

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]
Labels = NDArray[np.int64]


def auc(scores: Reals, labels: Labels) -> float:
    """Area under the ROC curve: the share of (ill, healthy) pairs in the right order, ties half. NaN without a pair."""
    positive, negative = scores[labels == 1], np.sort(scores[labels == 0])
    if not positive.size or not negative.size:
        return float("nan")
    below = np.searchsorted(negative, positive, side="left") + np.searchsorted(negative, positive, side="right")
    return float(below.sum() / (2 * positive.size * negative.size))


def accuracy_at_share(scores: Reals, labels: Labels, share: float) -> float:
    """Accuracy where the highest `share` of the scores is called positive: a threshold that no label chose."""
    return float((called_at_share(scores, share) == labels).mean())


def called_at_share(scores: Reals, share: float) -> Labels:
    """1 for the highest `share` of the scores, 0 for the others."""
    called = np.zeros(len(scores), dtype=np.int64)
    called[np.argsort(-scores, kind="stable")[: round(share * len(scores))]] = 1
    return called


def logistic_regression(features: Reals, labels: Labels, penalty: float = 1.0) -> "Logistic":
    """Ridge logistic regression on standardised features, the intercept free; the optimum, by L-BFGS."""
    from scipy.optimize import minimize

    mean, deviation = features.mean(axis=0), features.std(axis=0)
    deviation[deviation == 0] = 1.0
    x = np.hstack([(features - mean) / deviation, np.ones((len(features), 1))])
    sign = 2.0 * labels - 1

    def loss(w: Reals) -> tuple[float, Reals]:
        margin = sign * (x @ w)
        weight = -sign * np.exp(-np.logaddexp(0.0, margin))
        ridge = penalty * np.append(w[:-1], 0.0)
        return float(np.logaddexp(0.0, -margin).sum() + ridge @ w / 2), x.T @ weight + ridge

    found = minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B")
    return Logistic(mean, deviation, np.asarray(found.x))


class Logistic:
    """A fitted model."""

    def __init__(self, mean: Reals, deviation: Reals, weights: Reals) -> None:
        self._mean, self._deviation, self._weights = mean, deviation, weights

    def scores(self, features: Reals) -> Reals:
        """Log odds, one per row."""
        logits: Reals = (features - self._mean) / self._deviation @ self._weights[:-1] + self._weights[-1]
        return logits


def interval(values: list[float]) -> tuple[float, float]:
    """(mean, half width) of the 95 % interval of the mean by Student's t; the half width is NaN for one value."""
    from scipy.stats import t

    data = np.array(values)
    if len(data) < 2:
        return float(data.mean()), float("nan")
    return float(data.mean()), float(t.ppf(0.975, len(data) - 1) * data.std(ddof=1) / np.sqrt(len(data)))
