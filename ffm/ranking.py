"""AUC as integers: how many pairs of test records a model puts in the right order, for each class against the rest."""

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]


def log_odds(logits: NDArray[np.floating]) -> Scores:
    """(n, classes) scores: each class's logit minus the log-sum-exp of the others'; monotone in its probability.

    For two classes one column is exactly the negative of the other, so both have the same ordered pairs.
    """
    z = np.asarray(logits, dtype=np.float64)
    columns = []
    for k in range(z.shape[1]):
        others = np.delete(z, k, axis=1)
        top = others.max(axis=1)
        columns.append(z[:, k] - (top + np.log(np.exp(others - top[:, None]).sum(axis=1))))
    return np.stack(columns, axis=1)


def twice_wins(scores: Scores, truth: NDArray[np.int64]) -> tuple[int, ...]:
    """For each class twice the number of (record of the class, other record) pairs in which the former has the higher
    score for the class; a tie counts once. AUC is this over twice the number of pairs."""
    counts = []
    for k in range(scores.shape[1]):
        own, others = scores[truth == k, k], np.sort(scores[truth != k, k])
        below = np.searchsorted(others, own, side="left") + np.searchsorted(others, own, side="right")
        counts.append(int(below.sum()))
    return tuple(counts)
