"""AUC as integers, against the definition over all pairs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dp.report_utility import auc
from ffm.ranking import log_odds, twice_wins


@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 3), min_size=3, max_size=3)), max_size=20))
def test_against_all_pairs(records: list[tuple[int, list[int]]]) -> None:
    truth = np.array([t for t, _ in records], dtype=np.int64)
    scores = np.array([s for _, s in records], dtype=np.float64).reshape(len(records), 3)
    for k, wins in enumerate(twice_wins(scores, truth)):
        pairs = [(a[k], b[k]) for t, a in records if t == k for u, b in records if u != k]
        assert wins == sum(2 * (x > y) + (x == y) for x, y in pairs)


def test_two_classes_are_each_others_complement_and_monotone_in_probability() -> None:
    rng = np.random.default_rng(5)  # noqa: TID251 - scores of a test
    logits = rng.normal(size=(40, 2)).astype(np.float32)
    truth = (rng.random(40) < 0.4).astype(np.int64)
    scores = log_odds(logits)
    first, second = twice_wins(scores, truth)
    assert first == second and np.array_equal(scores[:, 0], -scores[:, 1])
    perfect = twice_wins(np.stack([1 - truth, truth], axis=1).astype(np.float64), truth)
    assert auc(perfect, [int((truth == 0).sum()), int(truth.sum())]) == 1
    three = rng.normal(size=(30, 3))
    probability = np.exp(three) / np.exp(three).sum(axis=1, keepdims=True)
    for k in range(3):
        assert np.array_equal(np.argsort(log_odds(three)[:, k]), np.argsort(probability[:, k]))


def test_no_pairs_no_auc() -> None:
    assert auc((0, 0), [4, 0]) is None
    assert float(auc((3, 3), [1, 2]) or 0) == pytest.approx(0.75)
