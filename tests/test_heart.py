"""The heart example: its data, its words, its scores, and the ways of training that it compares."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dp.sampling import Csprng
from ffm import heart
from ffm.federation import Federation
from ffm.models import locate
from ffm.scores import accuracy_at_share, auc, called_at_share, interval, logistic_regression
from ffm.step import parameters_of
from ffm.task import build_manifest, load_settings
from protocol.manifest import Manifest

SETTINGS = Path(__file__).parent.parent / "examples" / "heart" / "settings.toml"
SIZES = {"cleveland": 304, "hungary": 293, "switzerland": 123, "long-beach": 200}


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    settings = load_settings(SETTINGS)
    return build_manifest(settings, "bert-tiny")


def test_four_hospitals_of_920_patients() -> None:
    assert {site: len(rows) for site, rows in heart.rows().items()} == SIZES
    ill = {site: round(100 * float(heart.labels(rows).mean())) for site, rows in heart.rows().items()}
    assert ill == {"cleveland": 46, "hungary": 36, "switzerland": 93, "long-beach": 74}


def test_no_patient_is_trained_on_and_tested() -> None:
    train, test = heart.split(3)
    for site, size in SIZES.items():
        kept, held = ({row["id"] for row in part[site]} for part in (train, test))
        assert not kept & held and len(kept) + len(held) == size
        assert abs(len(held) - size / heart.TEST_ONE_IN) <= 2
    assert heart.split(3) == (train, test) != heart.split(4)


def test_the_text_says_what_was_measured_and_never_the_label() -> None:
    for rows in heart.rows().values():
        for row in rows:
            said = heart.text(row)
            assert ("cholesterol" in said) == (row["chol"] not in ("", "0")) and ("scan" in said) == bool(row["thal"])
            assert said == heart.text({**row, "num": "4", "id": "0", "dataset": "x"})


def test_the_table_has_a_column_for_what_is_missing() -> None:
    rows = heart.rows()["switzerland"]
    features, labels = heart.table(rows)
    assert features.shape[0] == len(labels) == 123 and np.isfinite(features).all()
    assert features[:, 5].all() and not features[:, 4].any()  # no cholesterol was measured there


# -- scores -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=40))
def test_auc_counts_ordered_pairs(raw: list[tuple[int, bool]]) -> None:
    scores, labels = np.array([s for s, _ in raw], dtype=float), np.array([int(y) for _, y in raw])
    pairs = [
        (a, b) for a, x in zip(scores, labels, strict=True) if x for b, y in zip(scores, labels, strict=True) if not y
    ]
    if not pairs:
        assert np.isnan(auc(scores, labels))
    else:
        assert auc(scores, labels) == pytest.approx(np.mean([1.0 if a > b else 0.5 * (a == b) for a, b in pairs]))


def test_the_threshold_needs_no_label() -> None:
    scores = np.array([0.9, 0.1, 0.5, 0.7])
    assert called_at_share(scores, 0.5).tolist() == [1, 0, 0, 1]
    assert accuracy_at_share(scores, np.array([1, 0, 1, 0]), 0.5) == 0.5


def test_logistic_regression_is_at_its_optimum() -> None:
    rng = np.random.default_rng(1)  # noqa: TID251 - data for a test
    x = rng.normal(size=(300, 3))
    y = (x @ np.array([1.0, -2.0, 0.0]) + rng.normal(size=300) > 0).astype(np.int64)
    fitted = logistic_regression(x, y)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    w = fitted._weights
    gradient = z.T @ (1 / (1 + np.exp(-(z @ w[:-1] + w[-1]))) - y) + w[:-1]
    assert np.abs(gradient).max() < 0.01 and auc(fitted.scores(x), y) > 0.85


def test_an_interval_is_students() -> None:
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2.0 and half == pytest.approx(4.3027 / 3**0.5, rel=1e-3)
    assert np.isnan(interval([1.0])[1])


# -- training ---------------------------------------------------------------------------------------------------------


def test_the_settings_fit_their_budget(manifest: Manifest) -> None:
    assert manifest.privacy.protocol == "R2" and manifest.noise_shares == 2
    assert manifest.largest_contribution() <= manifest.aggregation.bound


def test_all_ways_of_training_start_alike_and_differ_in_noise(manifest: Manifest) -> None:
    """One round each on a few patients: without noise every hospital's gradients add up to those of the union."""
    training = manifest.training.model_copy(update={"rounds": 1})
    privacy = manifest.privacy.model_copy(update={"sampling_numerator": 1, "sampling_denominator": 1})
    small = manifest.model_copy(update={"training": training, "privacy": privacy})
    parts = [heart.records(rows[:6]) for rows in heart.rows().values()]
    arms = Federation.load(small, locate("bert-tiny"), parts)
    rng, without_dp = Csprng(bytes(32)), partial(arms.centralised, private=False)
    moved = {
        name: parameters_of(learn(rng), small) - parameters_of(arms.start, small)
        for name, learn in (
            ("R2", arms.federated),
            ("R1", arms.local_noise),
            ("centralised", arms.centralised),
            ("alone", lambda rng: arms.alone(0, rng)),
            ("no DP", without_dp),
        )
    }
    assert all(np.isfinite(change).all() and change.any() for change in moved.values())
    assert len({change.tobytes() for change in moved.values()}) == len(moved)
    assert without_dp(rng).tobytes() == without_dp(rng).tobytes()  # q = 1 and no noise: nothing is drawn
    scores = arms.odds(arms.start, parts[0])
    assert scores.shape == (6,) and np.isfinite(scores).all()
