"""How well scores tell two classes apart, and the statistician's first try. No torch here."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]
Labels = NDArray[np.int64]
_WORD = re.compile(r"[a-z0-9]+")


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


def bag_of_words(train: Sequence[str], test: Sequence[str]) -> tuple[Any, Any]:
    """(train, test) as sparse matrices (texts, words): 1 where a word of the training texts occurs; a constant last."""
    from scipy.sparse import csr_matrix

    known: dict[str, int] = {}
    for text in train:
        for word in _WORD.findall(text.lower()):
            known.setdefault(word, len(known))

    def matrix(texts: Sequence[str]) -> Any:
        pairs = [
            (row, known[w]) for row, text in enumerate(texts) for w in set(_WORD.findall(text.lower())) if w in known
        ]
        pairs += [(row, len(known)) for row in range(len(texts))]
        places = np.array(pairs, dtype=np.int64).T
        return csr_matrix((np.ones(len(pairs)), (places[0], places[1])), shape=(len(texts), len(known) + 1))

    return matrix(train), matrix(test)


def multinomial_regression(features: Any, labels: Labels, classes: int, penalty: float = 1.0) -> Callable[[Any], Reals]:
    """Ridge multinomial logistic regression, the optimum by L-BFGS; what is returned gives logits (rows, classes)."""
    from scipy.optimize import minimize

    truth = np.zeros((len(labels), classes))
    truth[np.arange(len(labels)), labels] = 1.0
    shape = (features.shape[1], classes)

    def loss(flat: Reals) -> tuple[float, Reals]:
        weights = flat.reshape(shape)
        logits = features @ weights
        logits -= logits.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(logits).sum(axis=1, keepdims=True))
        gradient = features.T @ (np.exp(logits - log_sum) - truth) + penalty * weights
        value = float((log_sum[:, 0] - (logits * truth).sum(axis=1)).sum() + penalty * (flat @ flat) / 2)
        return value, np.asarray(gradient).reshape(-1)

    found = minimize(loss, np.zeros(shape[0] * classes), jac=True, method="L-BFGS-B", options={"maxiter": 200})
    weights: Reals = np.asarray(found.x).reshape(shape)
    return lambda rows: np.asarray(rows @ weights)


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
